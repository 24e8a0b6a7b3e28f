use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::budget::{Budget, Cost};
use super::group::Group;
use super::losses::Losses;
use super::references::{self, Referrers};
use super::working_set::WorkingSet;
use super::{Refusal, RowResult, Set, TableResults};
use crate::broken;
use crate::model::{EarlierState, Role, RowKey, Stored, Timestamp};
use crate::reconcile::{
    Context, Decision, Incoming, Operation, Rejection, RejectionCode, RowHistory, Skew, Verdict,
    needs_history, settle, union_bytes,
};
use crate::schema::{Policy, Schema, TableId};
use crate::storage::WriteTxn;

/// What is known of the clock of the sending device.
#[derive(Clone, Copy)]
pub(super) struct DeviceClock {
    /// How far the clock is off, if the device sent its time.
    pub skew: Option<Skew>,
    /// When the request was sent, by the device's own clock, if it reported that.
    pub sent_at: Option<Timestamp>,
    /// When the request arrived, by the server's clock.
    pub received: Timestamp,
}

/// Settles the rows of a batch over the working copy.
///
/// A row gets a result each time the batch names it, but its data is looked up once: the stored row
/// ([`WorkingSet`]), its history, and the rows that refer to it ([`Referrers`]).
pub(super) struct Settler<'a, 'b> {
    txn: &'a mut dyn WriteTxn,
    schema: &'a Schema,
    context: Context,
    role: Role,
    clock: DeviceClock,
    rows: &'a mut WorkingSet,
    budget: &'a mut Budget<'b>,
    /// Keys of the current table whose rows are created, or deleted, together with the current row.
    together: HashSet<RowKey>,
    losses: Losses,
    /// The histories of rows that the batch names more than once.
    histories: HashMap<(TableId, RowKey), KnownHistory>,
    /// Built once something is deleted that other rows may refer to.
    referrers: Option<Referrers>,
}

/// The history of a row, as a device that sent a `base` needs it.
struct KnownHistory {
    states: Vec<EarlierState>,
    base: Option<Timestamp>,
    history: Rc<RowHistory>,
}

impl<'a, 'b> Settler<'a, 'b> {
    pub fn new(
        txn: &'a mut dyn WriteTxn,
        schema: &'a Schema,
        (context, role): (Context, Role),
        clock: DeviceClock,
        rows: &'a mut WorkingSet,
        budget: &'a mut Budget<'b>,
    ) -> Self {
        Self {
            txn,
            schema,
            context,
            role,
            clock,
            rows,
            budget,
            together: HashSet::new(),
            losses: Losses::default(),
            histories: HashMap::new(),
            referrers: None,
        }
    }

    /// Sets the final state of each row in the results, since no other state becomes visible; returns the losses,
    /// and the rows as the batch leaves them.
    pub fn finish<'t>(self, result: impl Iterator<Item = &'t mut TableResults>) -> (Losses, &'a WorkingSet) {
        let mut result: Vec<_> = result.collect();
        for (table, list) in result.iter_mut().map(|set| (set.0, &mut set.1)) {
            for result in list.iter_mut() {
                let held = self.rows.get(table, result.key);
                result.last_update = result.last_update.and(held.map(|row| row.last_update));
            }
        }
        let mut losses = self.losses;
        losses.name(self.schema, self.rows, &self.context, result.into_iter());
        (losses, self.rows)
    }

    /// Settles `add` or `update`: tables that others refer to first.
    pub fn edits(&mut self, operation: Operation, sets: &[Set]) -> Result<Vec<TableResults>, Refusal> {
        let mut result: Vec<TableResults> = sets.iter().map(|(table, _)| (*table, Vec::new())).collect();
        for table in self.schema.parents_first() {
            for (index, (_, set)) in sets.iter().enumerate().filter(|(_, (of, _))| of == table) {
                let list = &mut result[index].1;
                for incoming in set {
                    list.push(self.edit(*table, operation, incoming)?);
                }
                self.edit_together(*table, operation, set, list)?;
            }
        }
        Ok(result)
    }

    /// Settles `delete`: tables that refer to others first.
    pub fn deletes(&mut self, sets: &[Set]) -> Result<Vec<TableResults>, Refusal> {
        let is_parent = |(table, set): &&Set| {
            !set.is_empty()
                && self.not_allowed(*table).is_none()
                && self.schema.referrers(*table).next().is_some()
        };
        let parents: Vec<&Set> = sets.iter().filter(is_parent).collect();
        if !parents.is_empty() {
            let mut referrers = Referrers::of(self.schema, self.rows);
            for (table, set) in parents {
                let keys: BTreeSet<RowKey> = set.iter().map(|incoming| incoming.key).collect();
                let keys: Vec<RowKey> =
                    keys.into_iter().filter(|key| self.rows.is_live(*table, *key)).collect();
                referrers.look_up(self.txn, self.schema, self.rows, *table, &keys)?;
            }
            self.referrers = Some(referrers);
        }
        let mut result: Vec<TableResults> = sets.iter().map(|(table, _)| (*table, Vec::new())).collect();
        for table in self.schema.parents_first().iter().rev() {
            for (index, (_, set)) in sets.iter().enumerate().filter(|(_, (of, _))| of == table) {
                let list = &mut result[index].1;
                for incoming in set {
                    list.push(self.delete(*table, incoming)?);
                }
                self.delete_together(*table, set, list)?;
            }
        }
        Ok(result)
    }

    /// Settles again the rows that name later rows of their list, or that name each other.
    fn edit_together(
        &mut self,
        table: TableId,
        operation: Operation,
        set: &[Incoming],
        result: &mut [RowResult],
    ) -> Result<(), Refusal> {
        let Some(mut group) = Group::of(result, RejectionCode::ReferenceMissing) else { return Ok(()) };
        for index in group.indexes() {
            self.budget.check()?;
            let corrected = self.corrected(&set[index]);
            let history = self.history(table, &corrected)?;
            self.weigh_union(table, &corrected, &history)?;
            let stored = self.rows.get(table, corrected.key);
            let settled = self.settle(table, stored, &history, operation, &corrected);
            let Ok(Decision { write: Some(row), .. }) = &settled else { continue };
            for (_, parent, named) in
                references::missing(self.schema, self.rows, table, corrected.key, stored, row)
            {
                if parent == table { group.needs(index, named) } else { group.leave(index) }
            }
        }
        let indexes = group.indexes();
        self.together = group.close();
        for index in indexes {
            result[index] = self.edit(table, operation, &set[index])?;
        }
        self.together.clear();
        Ok(())
    }

    /// Settles again the deletions of rows whose referring rows are deleted as well.
    fn delete_together(
        &mut self,
        table: TableId,
        set: &[Incoming],
        result: &mut [RowResult],
    ) -> Result<(), Refusal> {
        let Some(group) = Group::of(result, RejectionCode::StillReferenced) else { return Ok(()) };
        let Some(mut referrers) = self.referrers.take() else { return Ok(()) };
        let indexes = group.indexes();
        let mut group = group.once_a_key();
        for index in group.indexes() {
            self.budget.check()?;
            let key = set[index].key;
            if referrers.is_among_others(self.txn, self.schema, self.rows, table, key)? {
                group.leave(index);
                continue;
            }
            for (child, by) in referrers.among_loaded(self.schema, table, key) {
                if child == table { group.needs(index, by) } else { group.leave(index) }
            }
        }
        self.referrers = Some(referrers);
        self.together = group.close();
        let mut rejected: HashMap<RowKey, RowResult> = HashMap::new();
        for index in indexes {
            let key = set[index].key;
            if let Some(known) = rejected.get(&key) {
                result[index] = known.clone();
                continue;
            }
            result[index] = self.delete(table, &set[index])?;
            if result[index].rejection.is_some() {
                rejected.insert(key, result[index].clone()); // whatever refers to the row, the row stays
            }
        }
        self.together.clear();
        Ok(())
    }

    fn edit(
        &mut self,
        table: TableId,
        operation: Operation,
        incoming: &Incoming,
    ) -> Result<RowResult, Refusal> {
        self.budget.check()?;
        if let Some(rejection) = self.not_allowed(table) {
            return self.tell(table, incoming.clone(), Rc::default(), Err(rejection), false);
        }
        let corrected = self.corrected(incoming);
        let history = self.history(table, &corrected)?;
        self.weigh_union(table, &corrected, &history)?;
        let stored = self.rows.get(table, incoming.key);
        let mut settled = self.settle(table, stored, &history, operation, &corrected);
        if let Ok(Decision { write: Some(row), .. }) = &settled {
            let open = references::missing(self.schema, self.rows, table, incoming.key, stored, row)
                .find(|(_, parent, named)| *parent != table || !self.together.contains(named));
            if let Some((column, parent, named)) = open {
                settled = Err(references::is_missing(self.schema, table, column, parent, named));
            }
        }
        self.tell(table, corrected, history, settled, false)
    }

    fn delete(&mut self, table: TableId, incoming: &Incoming) -> Result<RowResult, Refusal> {
        self.budget.check()?;
        if let Some(rejection) = self.not_allowed(table) {
            return self.tell(table, incoming.clone(), Rc::default(), Err(rejection), true);
        }
        let mut corrected = self.corrected(incoming);
        if self.clock.skew.is_some() {
            // A deletion without a time of its own was made, at the latest, when it was sent.
            corrected.last_update = corrected.last_update.or(Some(self.clock.received));
        }
        let history = self.history(table, &corrected)?;
        let stored = self.rows.get(table, incoming.key);
        let mut settled = self.settle(table, stored, &history, Operation::Delete, &corrected);
        if let (Ok(Decision { write: Some(_), .. }), Some(referrers)) = (&settled, &mut self.referrers) {
            let row = (table, incoming.key);
            let stays = referrers.staying(self.txn, self.schema, self.rows, row, &self.together)?;
            match stays {
                Some((child, column, by)) => {
                    settled = Err(references::is_referenced(self.schema, self.role, child, column, by));
                }
                None => referrers.delete(self.schema, table, incoming.key, stored),
            }
        }
        self.tell(table, corrected, history, settled, true)
    }

    /// Why the sender may not change the table, if it may not.
    fn not_allowed(&self, table: TableId) -> Option<Rejection> {
        let table = self.schema.at(table);
        let is_allowed = self.role >= table.write
            || broken::is("reader_writes")
            || (self.role >= Role::Write && broken::is("table_rights_unchecked"));
        (!is_allowed).then(|| Rejection {
            code: RejectionCode::NotAllowed,
            column: None,
            detail: match table.write {
                Role::Manage => {
                    format!("only members who manage the owner may change rows of {}", table.name)
                }
                _ => "your role at this owner does not include changes of its rows".into(),
            },
        })
    }

    fn settle(
        &self,
        table: TableId,
        stored: Option<&Stored>,
        history: &RowHistory,
        operation: Operation,
        corrected: &Incoming,
    ) -> Result<Decision, Rejection> {
        settle(self.schema.at(table), stored, history, operation, corrected, &self.context)
    }

    /// The row's history, if the result depends on it.
    fn history(&mut self, table: TableId, incoming: &Incoming) -> Result<Rc<RowHistory>, Refusal> {
        let (key, context) = (incoming.key, &self.context);
        let Some(stored) = self.rows.get(table, key) else { return Ok(Rc::default()) };
        if !needs_history(stored, incoming, context) {
            return Ok(Rc::default());
        }
        if !self.rows.is_named_again(table, key) {
            let states = self.txn.earlier(table, key, self.rows.before(table, key))?;
            return Ok(Rc::new(RowHistory::new(&states, stored, incoming, context)));
        }
        let known = match self.histories.remove(&(table, key)) {
            Some(known) => known.again(stored, incoming, context),
            None => {
                let states = self.txn.earlier(table, key, self.rows.before(table, key))?;
                self.budget.take(Cost::Held, 2 * states.iter().map(EarlierState::weight).sum::<usize>())?;
                KnownHistory::of(states, stored, incoming, context)
            }
        };
        let history = Rc::clone(&known.history);
        self.histories.insert((table, key), known);
        Ok(history)
    }

    /// Weighs the lists that an edit may be merged with, each time the batch does so.
    fn weigh_union(
        &mut self,
        table: TableId,
        incoming: &Incoming,
        history: &RowHistory,
    ) -> Result<(), Refusal> {
        let table = self.schema.at(table);
        let stored = self.rows.get(table.id, incoming.key);
        let joins = |stored: &&Stored| {
            table.policy == Policy::Merge && needs_history(stored, incoming, &self.context)
        };
        let Some(values) = stored.filter(joins).and_then(|stored| stored.values.as_deref()) else {
            return Ok(());
        };
        let ancestor = history.ancestor.as_deref();
        self.budget.take(Cost::Held, union_bytes(&table.columns, ancestor, values, &incoming.values))
    }

    /// The row with its time converted to the server's clock. Its base is a time of the server already.
    ///
    /// So is the time of a row that is put back, since no device made it now. Without a time it counts as
    /// older than any state.
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

    /// Applies a decision to the working copy, and returns the result.
    fn tell(
        &mut self,
        table: TableId,
        incoming: Incoming,
        history: Rc<RowHistory>,
        settled: Result<Decision, Rejection>,
        deletes: bool,
    ) -> Result<RowResult, Refusal> {
        let key = incoming.key;
        let (verdict, write, echo, lost, rejection) = match settled {
            Ok(Decision { verdict, write, echo, conflict }) => (verdict, write, echo, conflict, None),
            Err(rejection) => (Verdict::Rejected, None, true, None, Some(rejection)),
        };
        if let Some(resolution) = lost.filter(|_| self.rows.before(table, key).is_some()) {
            if !self.rows.is_named_again(table, key) {
                self.budget.take(Cost::Held, history.weight())?;
            }
            self.losses.add(table, incoming, history, resolution, deletes);
        }
        if let Some(row) = write {
            if !deletes && !self.rows.is_changed(table, key) {
                // Columns that are not sent are copied.
                self.budget.take(Cost::Held, self.rows.get(table, key).map_or(0, Stored::weight))?;
            }
            self.rows.set(table, key, row);
        }
        let held = self.rows.get(table, key);
        Ok(RowResult {
            key,
            verdict,
            last_update: held.map(|row| row.last_update),
            row: None,
            rejection,
            conflict: None,
            echo,
            lost: lost.is_some(),
        })
    }
}

impl KnownHistory {
    fn of(states: Vec<EarlierState>, stored: &Stored, incoming: &Incoming, context: &Context) -> Self {
        let history = Rc::new(RowHistory::new(&states, stored, incoming, context));
        Self { states, base: incoming.base, history }
    }

    /// The context for another edit of the same row: nothing is copied unless it names another base.
    fn again(self, stored: &Stored, incoming: &Incoming, context: &Context) -> Self {
        let was_written = RowHistory::was_written(&self.states, stored, incoming, context);
        if self.base == incoming.base && self.history.was_written == was_written {
            return self;
        }
        Self::of(self.states, stored, incoming, context)
    }
}
