//! The guard against mass deletion. It refuses requests of a device that seems to have lost its data and
//! sends the loss as deletions, all at once or a few in each request.

use super::working_set::WorkingSet;
use super::{Batch, Refusal, Terms};
use crate::broken;
use crate::digest::Digest;
use crate::model::{RowKey, Version};
use crate::schema::{Schema, TableId};
use crate::storage::{DeleteWindow, StorageResult, WriteTxn};

/// What a batch would delete, and what its device has deleted recently.
pub(super) struct Deletions {
    tables: Vec<OfTable>,
    confirmed: bool,
}

/// What a batch would delete of one table.
struct OfTable {
    table: TableId,
    /// Live rows of the table now.
    rows: u64,
    /// Live rows that would be deleted.
    deletes: u64,
    /// The keys of those rows that existed when the window began.
    counted: Vec<RowKey>,
    window: DeleteWindow,
}

impl Deletions {
    /// Counts the deletions. A batch that deletes no live row needs no lookup.
    pub fn count(
        txn: &mut dyn WriteTxn,
        schema: &Schema,
        held: &[Digest],
        batch: &Batch,
        rows: &WorkingSet,
        terms: &Terms,
    ) -> StorageResult<Self> {
        let mut sets = Vec::new();
        // What is rejected deletes nothing.
        for (table, set) in batch.delete.iter().filter(|(table, _)| terms.role >= schema.at(*table).write) {
            let mut keys: Vec<RowKey> = set.iter().map(|incoming| incoming.key).collect();
            keys.sort_unstable();
            keys.dedup();
            keys.retain(|key| rows.is_live(*table, *key));
            if !keys.is_empty() {
                sets.push((*table, keys));
            }
        }
        let known = if sets.is_empty() { Vec::new() } else { txn.delete_windows(terms.device)? };
        let version = txn.state().version;
        let tables = sets.into_iter().map(|(table, keys)| {
            let count = held[table.index()].count;
            let running = known.iter().find(|(of, window)| *of == table && is_running(window, terms));
            let new = DeleteWindow { began: terms.now, version, rows: count, deletes: 0 };
            let window = running.map_or(new, |(_, window)| *window);
            let deletes = keys.len() as u64;
            let was_there =
                |key: &RowKey| rows.get(table, *key).is_some_and(|row| row.created <= window.version);
            let counted = keys.into_iter().filter(was_there).collect();
            OfTable { table, rows: count, deletes, counted, window }
        });
        Ok(Self { tables: tables.collect(), confirmed: false })
    }

    /// Refuses the batch if it would delete too much without a confirmation.
    ///
    /// Errors: [`Refusal::MassDelete`], with the number that must be confirmed.
    pub fn guard(&mut self, confirmed: Option<u64>, rows_max: usize) -> Result<(), Refusal> {
        let confirm = self.tables.iter().map(|one| one.deletes).sum();
        let Some(one) = self.tables.iter().find(|one| one.is_mass(rows_max as u64)) else { return Ok(()) };
        self.confirmed = confirmed == Some(confirm);
        if self.confirmed {
            return Ok(());
        }
        let (table, deletes, rows) = (one.table, one.deletes, one.rows);
        Err(Refusal::MassDelete { table, deletes, rows, confirm, before: one.window.deletes })
    }

    /// Records what was really deleted. A confirmed deletion begins a new window, in which as much may be
    /// deleted again.
    ///
    /// - `held`: the digests of the tables after the batch.
    /// - `current`: the owner's version after it.
    pub fn note(
        &self,
        txn: &mut dyn WriteTxn,
        held: &[Digest],
        rows: &WorkingSet,
        current: Version,
        terms: &Terms,
    ) -> StorageResult<()> {
        for one in &self.tables {
            let gone = one.counted.iter().filter(|key| !rows.is_live(one.table, **key)).count() as u64;
            let window = if self.confirmed {
                let rows = held[one.table.index()].count;
                DeleteWindow { began: terms.now, version: current, rows, deletes: 0 }
            } else if gone > 0 {
                DeleteWindow { deletes: one.window.deletes + gone, ..one.window }
            } else {
                continue;
            };
            txn.put_delete_window(terms.device, one.table, &window)?;
        }
        Ok(())
    }
}

impl OfTable {
    /// Whether more than `rows_max` rows and more than half of the table would be deleted, at once or
    /// together with what the device deleted before.
    fn is_mass(&self, rows_max: u64) -> bool {
        let is_much = |deletes: u64, of: u64| deletes > rows_max && deletes * 2 > of;
        let lately = self.window.deletes + self.counted.len() as u64;
        is_much(self.deletes, self.rows)
            || (is_much(lately, self.window.rows) && !broken::is("deletes_counted_alone"))
    }
}

/// Whether the deletions of the window still count. A window that begins in the future comes from a clock
/// that was set back.
fn is_running(window: &DeleteWindow, terms: &Terms) -> bool {
    let elapsed = terms.now.ms().saturating_sub(window.began.ms());
    (0..terms.mass_delete_window_ms).contains(&elapsed)
}
