use std::collections::HashSet;

use super::group::Group;
use super::working_set::WorkingSet;
use super::{LiveRow, Set, Told, ToldSet, references};
use crate::broken;
use crate::conflicts;
use crate::model::{RowKey, Stored, Timestamp};
use crate::reconcile::{
    Context, Incoming, Operation, Past, RejectionCode, Resolution, Settled, Skew, Verdict, needs_past, settle,
};
use crate::schema::{Schema, TableId};
use crate::storage::{Conflict, Side, StorageResult, WriteTxn};

/// What is known of the clock of the device that sent the batch.
#[derive(Clone, Copy)]
pub(super) struct DeviceClock {
    /// How far it is off, if the device told its time.
    pub skew: Option<Skew>,
    /// When the request was sent, by the device's own clock, if it said so.
    pub sent_at: Option<Timestamp>,
    /// When the request came, by the server's clock.
    pub received: Timestamp,
}

/// Settles the rows of a batch over the working copy.
pub(super) struct Settler<'a> {
    txn: &'a mut dyn WriteTxn,
    schema: &'a Schema,
    context: Context,
    clock: DeviceClock,
    rows: &'a mut WorkingSet,
    /// Keys of the table at hand whose rows are made together, or deleted together, with the row at hand.
    together: HashSet<RowKey>,
    /// Those by which somebody lost.
    conflicts: Vec<Conflict>,
    /// Whether a row was written more than once.
    is_rewritten: bool,
}

impl<'a> Settler<'a> {
    pub fn new(
        txn: &'a mut dyn WriteTxn,
        schema: &'a Schema,
        context: Context,
        clock: DeviceClock,
        rows: &'a mut WorkingSet,
    ) -> Self {
        Self {
            txn,
            schema,
            context,
            clock,
            rows,
            together: HashSet::new(),
            conflicts: Vec::new(),
            is_rewritten: false,
        }
    }

    /// Has verdicts on a row that was written more than once name its final state: nobody ever sees another.
    pub fn name_final_states<'t>(&self, told: impl Iterator<Item = &'t mut ToldSet>) {
        if !self.is_rewritten {
            return;
        }
        for (table, list) in told {
            for told in list.iter_mut() {
                let held = self.rows.get(*table, told.key);
                told.last_update = told.last_update.and(held.map(|row| row.last_update));
                told.row = told.row.take().and_then(|_| LiveRow::of(told.key, held?));
            }
        }
    }

    /// The conflicts by which somebody lost.
    pub fn conflicts(self) -> Vec<Conflict> {
        self.conflicts
    }

    /// Settles one of `add` and `update`: tables that others refer to first.
    pub fn edits(&mut self, operation: Operation, sets: &[Set]) -> StorageResult<Vec<ToldSet>> {
        let mut told: Vec<ToldSet> = sets.iter().map(|(table, _)| (*table, Vec::new())).collect();
        for table in self.schema.parents_first() {
            for (place, (_, set)) in sets.iter().enumerate().filter(|(_, (of, _))| of == table) {
                let list = &mut told[place].1;
                for incoming in set {
                    list.push(self.edit(*table, operation, incoming)?);
                }
                self.edit_together(*table, operation, set, list)?;
            }
        }
        Ok(told)
    }

    /// Settles `delete`: tables that refer to others first.
    pub fn deletes(&mut self, sets: &[Set]) -> StorageResult<Vec<ToldSet>> {
        let mut told: Vec<ToldSet> = sets.iter().map(|(table, _)| (*table, Vec::new())).collect();
        for table in self.schema.parents_first().iter().rev() {
            for (place, (_, set)) in sets.iter().enumerate().filter(|(_, (of, _))| of == table) {
                let list = &mut told[place].1;
                for incoming in set {
                    list.push(self.delete(*table, incoming)?);
                }
                self.delete_together(*table, set, list)?;
            }
        }
        Ok(told)
    }

    /// Settles once more the rows that name rows which come later in their list, or which name them in turn.
    fn edit_together(
        &mut self,
        table: TableId,
        operation: Operation,
        set: &[Incoming],
        told: &mut [Told],
    ) -> StorageResult<()> {
        let Some(mut group) = Group::of(told, RejectionCode::ReferenceMissing) else { return Ok(()) };
        for place in group.places() {
            let corrected = self.corrected(&set[place]);
            let past = self.past(table, &corrected)?;
            let stored = self.rows.get(table, corrected.key);
            let settled = self.settle(table, stored, &past, operation, &corrected);
            let Settled::Written { row, .. } = &settled else { continue };
            for (_, parent, named) in
                references::missing(self.schema, self.rows, table, corrected.key, stored, row)
            {
                if parent == table { group.needs(place, named) } else { group.leave(place) }
            }
        }
        let places = group.places();
        self.together = group.close();
        for place in places {
            told[place] = self.edit(table, operation, &set[place])?;
        }
        self.together.clear();
        Ok(())
    }

    /// Settles once more the deletions of rows that others refer to which are deleted as well.
    fn delete_together(&mut self, table: TableId, set: &[Incoming], told: &mut [Told]) -> StorageResult<()> {
        let Some(mut group) = Group::of(told, RejectionCode::StillReferenced) else { return Ok(()) };
        let places = group.places();
        for place in &places {
            let key = set[*place].key;
            for (child, _, by) in
                references::referring(self.txn, self.schema, self.rows, table, key, places.len() + 1)?
            {
                if child == table { group.needs(*place, by) } else { group.leave(*place) }
            }
        }
        self.together = group.close();
        for place in places {
            told[place] = self.delete(table, &set[place])?;
        }
        self.together.clear();
        Ok(())
    }

    fn edit(&mut self, table: TableId, operation: Operation, incoming: &Incoming) -> StorageResult<Told> {
        let corrected = self.corrected(incoming);
        let past = self.past(table, &corrected)?;
        let stored = self.rows.get(table, incoming.key);
        let mut settled = self.settle(table, stored, &past, operation, &corrected);
        if let Settled::Written { row, .. } = &settled {
            let open = references::missing(self.schema, self.rows, table, incoming.key, stored, row)
                .find(|(_, parent, named)| *parent != table || !self.together.contains(named));
            if let Some((column, parent, named)) = open {
                settled =
                    Settled::Rejected(references::is_missing(self.schema, table, column, parent, named));
            }
        }
        Ok(self.tell(table, corrected, past, settled, false))
    }

    fn delete(&mut self, table: TableId, incoming: &Incoming) -> StorageResult<Told> {
        let mut corrected = self.corrected(incoming);
        if self.clock.skew.is_some() {
            // A deletion without a time of its own was made, at the latest, when it was sent.
            corrected.last_update = corrected.last_update.or(Some(self.clock.received));
        }
        let past = self.past(table, &corrected)?;
        let stored = self.rows.get(table, incoming.key);
        let mut settled = self.settle(table, stored, &past, Operation::Delete, &corrected);
        if matches!(settled, Settled::Written { .. }) {
            let most = self.together.len() + 1;
            let by = references::referring(self.txn, self.schema, self.rows, table, incoming.key, most)?;
            let stays = by.into_iter().find(|(child, _, by)| *child != table || !self.together.contains(by));
            if let Some((child, column, by)) = stays {
                settled = Settled::Rejected(references::is_referenced(self.schema, child, column, by));
            }
        }
        Ok(self.tell(table, corrected, past, settled, true))
    }

    fn settle(
        &self,
        table: TableId,
        stored: Option<&Stored>,
        past: &Past,
        operation: Operation,
        corrected: &Incoming,
    ) -> Settled {
        settle(self.schema.at(table), stored, past, operation, corrected, &self.context)
    }

    /// What is known of the row's past, if it matters.
    fn past(&mut self, table: TableId, incoming: &Incoming) -> StorageResult<Past> {
        let Some(stored) = self.rows.get(table, incoming.key) else { return Ok(Past::default()) };
        if !needs_past(stored, incoming, &self.context) {
            return Ok(Past::default());
        }
        let states = self.txn.earlier(table, incoming.key)?;
        Ok(Past::of(states, stored, incoming, &self.context))
    }

    /// The row with its time in the server's clock; what it was built on is the server's own time already.
    ///
    /// So is the time of a row that is put back: no device made it now. Without a time it counts as older than any state.
    fn corrected(&self, incoming: &Incoming) -> Incoming {
        if self.context.put_back {
            let held = incoming.last_update.unwrap_or(Timestamp::from_ms(0));
            return Incoming { last_update: Some(held), claimed_at: None, base: None, ..incoming.clone() };
        }
        let skew = self.clock.skew;
        let last_update = incoming.last_update.map(|at| skew.map_or(at, |skew| skew.correct(at)));
        Incoming {
            last_update: last_update.map(|at| at.truncated(self.context.precision)),
            claimed_at: incoming.last_update.or(self.clock.sent_at),
            ..incoming.clone()
        }
    }

    /// Takes a decision over into the working copy, and says what the device is told.
    fn tell(
        &mut self,
        table: TableId,
        incoming: Incoming,
        past: Past,
        settled: Settled,
        deletes: bool,
    ) -> Told {
        let key = incoming.key;
        let (verdict, echo, rejection, lost) = match &settled {
            Settled::Written { verdict, echo, conflict, .. } => (*verdict, *echo, None, *conflict),
            Settled::Left { verdict, echo, conflict } => (*verdict, *echo, None, *conflict),
            Settled::Rejected(rejection) => (Verdict::Rejected, true, Some(rejection.clone()), None),
        };
        let stored = self.rows.get(table, key);
        let conflict = lost.zip(stored).map(|(resolution, stored)| {
            let policy = self.schema.at(table).policy;
            let beneath = past.beneath(policy, stored, &incoming, &self.context);
            let met = match beneath.filter(|_| !deletes && resolution != Resolution::Overwritten) {
                Some(state) => state.over(stored),
                None => stored.clone(),
            };
            let sent = (!deletes).then_some(incoming.values);
            let incoming = Side {
                values: sent,
                last_update: incoming.last_update.unwrap_or(self.context.now),
                device: self.context.device,
            };
            conflicts::note(
                self.schema.at(table),
                key,
                &met,
                past.ancestor,
                incoming,
                resolution,
                self.context.now,
            )
        });
        let id = conflict.as_ref().map(|conflict| conflict.id);
        if !broken::is("conflict_not_noted") {
            self.conflicts.extend(conflict);
        }
        if let Settled::Written { row, .. } = settled {
            self.is_rewritten |= self.rows.is_changed(table, key);
            self.rows.set(table, key, row);
        }
        let held = self.rows.get(table, key);
        Told {
            key,
            verdict,
            last_update: held.map(|row| row.last_update),
            row: held.filter(|_| echo).and_then(|row| LiveRow::of(key, row)),
            rejection,
            conflict: id,
        }
    }
}
