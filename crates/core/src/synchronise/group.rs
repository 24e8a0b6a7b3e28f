use std::collections::{HashMap, HashSet};

use super::RowResult;
use crate::model::RowKey;
use crate::reconcile::RejectionCode;

/// Rows of one list that may be settled together though none of them may be alone, because each names
/// another.
///
/// Finding the rows that may stay takes one look at each row and each need, however long the chains are.
/// Settling the list again and again would occupy the writer for seconds if a long list is in the wrong
/// order.
pub(super) struct Group {
    /// The remaining rows, by their index in the list.
    rows: HashMap<usize, RowKey>,
    /// How many of them have each key.
    keys: HashMap<RowKey, usize>,
    /// The rows that need a row of this key in the group.
    needs: HashMap<RowKey, Vec<usize>>,
    leaving: Vec<usize>,
}

impl Group {
    /// The rows of a list that were rejected because of other rows; `None` if there are none.
    pub fn of(result: &[RowResult], code: RejectionCode) -> Option<Self> {
        let waits =
            |result: &RowResult| result.rejection.as_ref().is_some_and(|rejection| rejection.code == code);
        let rows: HashMap<_, _> = result
            .iter()
            .enumerate()
            .filter(|(_, result)| waits(result))
            .map(|(at, result)| (at, result.key))
            .collect();
        let mut keys = HashMap::new();
        for key in rows.values() {
            *keys.entry(*key).or_insert(0) += 1;
        }
        (!rows.is_empty()).then(|| Self { rows, keys, needs: HashMap::new(), leaving: Vec::new() })
    }

    /// The same group with one index for each key, for rows of which every mention needs the same.
    pub fn once_a_key(mut self) -> Self {
        let mut seen = HashSet::new();
        self.rows.retain(|_, key| seen.insert(*key));
        self.keys.values_mut().for_each(|mentions| *mentions = 1);
        self
    }

    /// The indexes of its rows, in the order sent.
    pub fn indexes(&self) -> Vec<usize> {
        let mut indexes: Vec<_> = self.rows.keys().copied().collect();
        indexes.sort_unstable();
        indexes
    }

    /// Records that the row at `index` stays only if a row of this key does.
    pub fn needs(&mut self, index: usize, key: RowKey) {
        self.needs.entry(key).or_default().push(index);
    }

    /// Records that the row at `index` does not stay.
    pub fn leave(&mut self, index: usize) {
        self.leaving.push(index);
    }

    /// The keys of the rows that stay, after every row has left whose needs are not met.
    pub fn close(mut self) -> HashSet<RowKey> {
        for (key, by) in &self.needs {
            if !self.keys.contains_key(key) {
                self.leaving.extend(by);
            }
        }
        while let Some(index) = self.leaving.pop() {
            let Some(key) = self.rows.remove(&index) else { continue };
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
