use std::collections::{HashMap, HashSet};

use super::Told;
use crate::model::RowKey;
use crate::reconcile::RejectionCode;

/// Rows of one list that may be settled together though none of them may be alone: each names another.
///
/// Finding out who may stay takes one look at each row and each need, however long the chains are: settling
/// the list again and again would keep the writer busy for seconds over a long list in the wrong order.
pub(super) struct Group {
    /// The rows left, by their place in the list.
    rows: HashMap<usize, RowKey>,
    /// How many of them have this key.
    keys: HashMap<RowKey, usize>,
    /// Who needs a row of this key to be in the group.
    needs: HashMap<RowKey, Vec<usize>>,
    leaving: Vec<usize>,
}

impl Group {
    /// The rows of a list that were rejected for what other rows are; `None` if there are none.
    pub fn of(told: &[Told], code: RejectionCode) -> Option<Self> {
        let waits = |told: &Told| told.rejection.as_ref().is_some_and(|rejection| rejection.code == code);
        let rows: HashMap<_, _> = told
            .iter()
            .enumerate()
            .filter(|(_, told)| waits(told))
            .map(|(at, told)| (at, told.key))
            .collect();
        let mut keys = HashMap::new();
        for key in rows.values() {
            *keys.entry(*key).or_insert(0) += 1;
        }
        (!rows.is_empty()).then(|| Self { rows, keys, needs: HashMap::new(), leaving: Vec::new() })
    }

    /// The same with one place for each key, for rows of which every mention needs the same.
    pub fn once_a_key(mut self) -> Self {
        let mut first: HashMap<RowKey, usize> = HashMap::new();
        for (place, key) in &self.rows {
            let first = first.entry(*key).or_insert(*place);
            *first = (*first).min(*place);
        }
        self.rows.retain(|place, key| first.get(key) == Some(place));
        self.keys.values_mut().for_each(|mentions| *mentions = 1);
        self
    }

    /// The places of its rows, in the order sent.
    pub fn places(&self) -> Vec<usize> {
        let mut places: Vec<_> = self.rows.keys().copied().collect();
        places.sort_unstable();
        places
    }

    /// The row at `place` stays only if one of this key does.
    pub fn needs(&mut self, place: usize, key: RowKey) {
        self.needs.entry(key).or_default().push(place);
    }

    /// The row at `place` does not stay.
    pub fn leave(&mut self, place: usize) {
        self.leaving.push(place);
    }

    /// The keys of the rows that stay, once all have left whose needs are not met.
    pub fn close(mut self) -> HashSet<RowKey> {
        for (key, by) in &self.needs {
            if !self.keys.contains_key(key) {
                self.leaving.extend(by);
            }
        }
        while let Some(place) = self.leaving.pop() {
            let Some(key) = self.rows.remove(&place) else { continue };
            let left = self.keys.get_mut(&key).map(|left| {
                *left -= 1;
                *left
            });
            if left == Some(0) {
                self.keys.remove(&key);
                self.leaving.extend(self.needs.remove(&key).unwrap_or_default());
            }
        }
        self.keys.into_keys().collect()
    }
}
