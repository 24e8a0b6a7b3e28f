//! Rows of a batch that cannot be read: each gets its result in its place, and none is applied.

use super::{
    Batch, LiveRow, Part, Report, RowResult, SentKey, TableResults, UnreadableItem, ValueFault, WorkingSet,
};
use crate::model::{RowKey, Timestamp};
use crate::reconcile::{Rejection, Verdict};
use crate::schema::TableId;

/// The result of one row of the request.
#[derive(Clone, Debug, PartialEq)]
pub enum ItemResult {
    /// The rules have settled the row.
    Settled(RowResult),
    /// The row could not be read.
    Unreadable(Unreadable),
}

/// The results of the rows of one table, in the order sent.
pub type TableItemResults = (TableId, Vec<ItemResult>);

/// A row or key that could not be read, and what the server holds under its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// The row's key, as far as it can be read.
    pub key: SentKey,
    /// When the row (or its tombstone) last changed, if the server holds one.
    pub last_update: Option<Timestamp>,
    /// The server's row, unless the response contains it elsewhere.
    pub row: Option<LiveRow>,
    /// Why it was rejected.
    pub fault: ValueFault,
}

/// Keys under `get` of one table that could not be read, each with its index in the list sent.
pub type RejectedKeys = (TableId, Vec<(usize, Unreadable)>);

/// Why a row was rejected.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// It breaks a rule of the schema.
    Rule(Rejection),
    /// It could not be read.
    Value(ValueFault),
}

impl ItemResult {
    /// The outcome.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Settled(result) => result.verdict,
            Self::Unreadable(_) => Verdict::Rejected,
        }
    }

    /// The rules' result, if the row could be read.
    pub fn settled(&self) -> Option<&RowResult> {
        match self {
            Self::Settled(result) => Some(result),
            Self::Unreadable(_) => None,
        }
    }

    /// The rules' result, by value.
    pub fn into_settled(self) -> Option<RowResult> {
        match self {
            Self::Settled(result) => Some(result),
            Self::Unreadable(_) => None,
        }
    }

    /// The server's row, if the response contains it.
    pub fn row(&self) -> Option<&LiveRow> {
        match self {
            Self::Settled(result) => result.row.as_ref(),
            Self::Unreadable(unreadable) => unreadable.row.as_ref(),
        }
    }

    /// Why it was rejected, if it was.
    pub fn why(&self) -> Option<Why> {
        match self {
            Self::Settled(result) => result.rejection.clone().map(Why::Rule),
            Self::Unreadable(unreadable) => Some(Why::Value(unreadable.fault.clone())),
        }
    }

    /// The row whose state the response shows, if it shows one.
    pub fn key(&self) -> Option<RowKey> {
        match self {
            Self::Settled(result) => Some(result.key),
            Self::Unreadable(Unreadable { key: SentKey::Read(key), .. }) => Some(*key),
            Self::Unreadable(_) => None,
        }
    }
}

impl Unreadable {
    fn of(item: &UnreadableItem, rows: &WorkingSet) -> Self {
        let key = match &item.key {
            SentKey::Read(key) => Some(*key),
            _ => None,
        };
        let held = key.and_then(|key| rows.get(item.table, key));
        Self {
            key: item.key.clone(),
            last_update: held.map(|row| row.last_update),
            row: None,
            fault: item.fault.clone(),
        }
    }
}

impl Batch {
    fn unreadable_in(&self, part: Part, table: TableId) -> impl Iterator<Item = &UnreadableItem> {
        self.unreadable.iter().filter(move |item| item.part == part && item.table == table)
    }

    /// The keys of the rows that cannot be read, as far as the keys can be, to be looked up.
    pub(super) fn keys_of_unreadable(&self) -> impl Iterator<Item = (TableId, RowKey)> {
        self.unreadable.iter().filter(|item| item.part != Part::Get).filter_map(|item| match item.key {
            SentKey::Read(key) => Some((item.table, key)),
            _ => None,
        })
    }

    /// Puts the results of unreadable rows between the others, in the order sent.
    pub(super) fn in_order(
        &self,
        part: Part,
        result: Vec<TableResults>,
        rows: &WorkingSet,
    ) -> Vec<TableItemResults> {
        let merge = |(table, result): TableResults| {
            let mut result = result.into_iter();
            let mut list = Vec::with_capacity(result.len());
            for item in self.unreadable_in(part, table) {
                let before = item.index.saturating_sub(list.len());
                list.extend(result.by_ref().take(before).map(ItemResult::Settled));
                list.push(ItemResult::Unreadable(Unreadable::of(item, rows)));
            }
            list.extend(result.map(ItemResult::Settled));
            (table, list)
        };
        result.into_iter().map(merge).collect()
    }

    /// The keys under `get` that cannot be read.
    pub(super) fn rejected_keys(&self, rows: &WorkingSet) -> Vec<RejectedKeys> {
        let rejected = |table: TableId| {
            let items = self.unreadable_in(Part::Get, table);
            items.map(|item| (item.index, Unreadable::of(item, rows))).collect::<Vec<_>>()
        };
        let tables = self.get.iter().map(|(table, _)| (*table, rejected(*table)));
        tables.filter(|(_, keys)| !keys.is_empty()).collect()
    }
}

/// A row of a batch that was rejected, its place in the batch, and the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct RejectedRow {
    /// The set that contains it.
    pub part: Part,
    /// Its table.
    pub table: TableId,
    /// Its index in the list that was sent.
    pub index: usize,
    /// The reason.
    pub why: Why,
}

impl Report {
    /// Every row and key that was rejected, in the order sent.
    pub(super) fn rejections(
        sets: [(Part, &[TableItemResults]); 3],
        keys: &[RejectedKeys],
    ) -> Vec<RejectedRow> {
        let mut found = Vec::new();
        for (part, lists) in sets {
            for (table, list) in lists {
                let rejected =
                    list.iter().enumerate().filter_map(|(index, answered)| Some((index, answered.why()?)));
                found.extend(rejected.map(|(index, why)| RejectedRow { part, table: *table, index, why }));
            }
        }
        for (table, keys) in keys {
            found.extend(keys.iter().map(|(index, unreadable)| RejectedRow {
                part: Part::Get,
                table: *table,
                index: *index,
                why: Why::Value(unreadable.fault.clone()),
            }));
        }
        found
    }
}
