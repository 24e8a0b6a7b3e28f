use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use uuid::Uuid;

use super::budget::{Budget, Cost};
use super::working_set::WorkingSet;
use super::{Refusal, TableResults};
use crate::broken;
use crate::conflicts::{self, RecordedColumns};
use crate::model::{EarlierState, RowKey, Stored, Value};
use crate::reconcile::{Context, Incoming, Resolution, RowHistory};
use crate::schema::{Schema, TableId};
use crate::storage::states::{RecordedSide, SHARED_BYTES_MIN};
use crate::storage::{Conflict, Side, WriteTxn};

/// Conflicts that are noted by one statement.
const NOTED_AT_ONCE: usize = 64;

/// Bytes of long values that the conflicts of one batch may record although nobody lost them, so that a person can
/// compare both sides: what the row kept, and what both sides began with. Beyond that a conflict leaves them out, and
/// some bytes of a request do not make the server copy whole rows.
const CONTEXT_BYTES_MAX: usize = 128 * 1024;

/// The conflicts of a batch that record replaced states, by row.
pub(super) type RecordedSides = HashMap<(TableId, RowKey), RecordedSide>;

/// The losses of a batch: one for each row of which a device lost a change.
///
/// A device that changes a row more than once in one request means the last state. Its later edit is laid
/// over its earlier one, and only the last loss is recorded.
#[derive(Default)]
pub(super) struct Losses {
    indexes: HashMap<(TableId, RowKey), usize>,
    list: Vec<Loss>,
}

/// How a device lost a change of one row. The batch had not changed the row before.
struct Loss {
    table: TableId,
    id: Uuid,
    /// What the device sent, over its earlier edits of the request.
    incoming: Incoming,
    history: Rc<RowHistory>,
    resolution: Resolution,
    deletes: bool,
    /// Whether the record leaves out long values that the device replaced by shorter ones and that nobody lost.
    is_brief: bool,
}

impl Losses {
    /// Records a loss.
    pub fn add(
        &mut self,
        table: TableId,
        mut incoming: Incoming,
        history: Rc<RowHistory>,
        resolution: Resolution,
        deletes: bool,
    ) {
        let index = self.indexes.get(&(table, incoming.key)).copied();
        if let Some(earlier) = index.and_then(|index| self.list.get_mut(index)) {
            let beneath = std::mem::take(&mut earlier.incoming.values);
            for (sent, beneath) in incoming.values.iter_mut().zip(beneath) {
                *sent = sent.take().or(beneath);
            }
            *earlier =
                Loss { table, id: Uuid::nil(), incoming, history, resolution, deletes, is_brief: false };
            return;
        }
        self.indexes.insert((table, incoming.key), self.list.len());
        self.list.push(Loss {
            table,
            id: Uuid::nil(),
            incoming,
            history,
            resolution,
            deletes,
            is_brief: false,
        });
    }

    /// Sets the ids of the conflicts, here and in the results that belong to them.
    pub fn name<'t>(
        &mut self,
        schema: &Schema,
        rows: &WorkingSet,
        context: &Context,
        result: impl Iterator<Item = &'t mut TableResults>,
    ) {
        self.bound_context(schema, rows, context);
        for loss in &mut self.list {
            loss.id = loss.name(schema, rows, context);
        }
        for (table, list) in result {
            for result in list.iter_mut().filter(|result| result.lost) {
                let index = self.indexes.get(&(*table, result.key));
                result.conflict = index.and_then(|index| self.list.get(*index)).map(|loss| loss.id);
            }
        }
    }

    /// Decides which losses are recorded without the values that nobody lost: see [`CONTEXT_BYTES_MAX`].
    fn bound_context(&mut self, schema: &Schema, rows: &WorkingSet, context: &Context) {
        let mut left = CONTEXT_BYTES_MAX;
        for loss in &mut self.list {
            let whole = loss.weight(schema, rows, context);
            loss.is_brief = whole > SHARED_BYTES_MIN + size_of::<Conflict>();
            if !loss.is_brief || broken::is("context_unbounded") {
                loss.is_brief = false;
                continue;
            }
            if let Some(rest) = left.checked_sub(whole - loss.weight(schema, rows, context)) {
                left = rest;
                loss.is_brief = false;
            }
        }
    }

    /// The conflicts that record long values of states that the batch replaces.
    pub fn recorded_sides(&self, schema: &Schema, rows: &WorkingSet, context: &Context) -> RecordedSides {
        let of = |loss: &Loss| {
            let columns = loss.recorded_columns(schema, rows, context)?;
            Some(((loss.table, loss.incoming.key), RecordedSide { id: loss.id, columns }))
        };
        let is_broken = broken::is("lost_value_copied") || broken::is("conflict_not_noted");
        self.list.iter().filter(|_| !is_broken).filter_map(of).collect()
    }

    /// Weighs the records of the losses; returns about how many bytes they take, and whether all of them are
    /// deletions.
    ///
    /// Errors: [`Refusal::TooHeavy`] if that exceeds the budget.
    pub fn weigh(
        &self,
        schema: &Schema,
        rows: &WorkingSet,
        context: &Context,
        budget: &mut Budget<'_>,
    ) -> Result<(u64, bool), Refusal> {
        let mut bytes = 0;
        for loss in &self.list {
            let weight = loss.weight(schema, rows, context);
            budget.take(Cost::Noted, weight)?;
            bytes += weight as u64;
        }
        Ok((bytes, self.list.iter().all(|loss| loss.deletes)))
    }

    /// Writes each loss as a conflict.
    pub fn note(
        self,
        txn: &mut dyn WriteTxn,
        schema: &Schema,
        rows: &WorkingSet,
        context: &Context,
        budget: &Budget<'_>,
    ) -> Result<(), Refusal> {
        let mut noted = Vec::new();
        for loss in self.list {
            budget.check()?;
            noted.extend(loss.conflict(schema, rows, context).filter(|_| !broken::is("conflict_not_noted")));
            if noted.len() == NOTED_AT_ONCE {
                txn.note_conflicts(&noted)?;
                noted.clear();
            }
        }
        Ok(txn.note_conflicts(&noted)?)
    }
}

/// The values that an edit was compared with: see [`Loss::met`]. A deleted row has none.
fn values_met<'a>(stored: &'a Stored, foreign: Option<&'a EarlierState>) -> &'a [Value] {
    foreign.map(|state| state.values.as_slice()).or(stored.values.as_deref()).unwrap_or_default()
}

/// Values by index; `None` for those that are left out.
type Columns<'a> = Vec<Option<&'a Value>>;

impl Loss {
    /// The row as the batch found it, and the state that the edit was compared with if that was another: see
    /// [`RowHistory::foreign_state`].
    fn met<'a>(
        &'a self,
        schema: &Schema,
        rows: &'a WorkingSet,
        context: &Context,
    ) -> Option<(&'a Stored, Option<&'a EarlierState>)> {
        let stored = rows.before(self.table, self.incoming.key)?;
        let foreign =
            self.history.foreign_state(schema.at(self.table).policy, stored, &self.incoming, context);
        let foreign = foreign.filter(|_| !self.deletes && self.resolution != Resolution::Overwritten);
        Some((stored, foreign))
    }

    fn name(&self, schema: &Schema, rows: &WorkingSet, context: &Context) -> Uuid {
        let (table, met) = (schema.at(self.table), self.met(schema, rows, context));
        let version = met.map(|(stored, foreign)| foreign.map_or(stored.version, |state| state.version));
        let values = met.map(|(stored, foreign)| values_met(stored, foreign));
        let (recorded, _) = self.recorded(rows, values.unwrap_or_default());
        let columns = table.columns.iter().zip(recorded);
        let left_out = columns.filter(|(_, value)| value.is_none()).map(|(column, _)| column.name.as_str());
        let left_out: Vec<&str> = left_out.collect();
        let sent = (!self.deletes).then_some(&self.incoming.values);
        let (key, version) = (self.incoming.key, version.unwrap_or(context.writing));
        conflicts::id(table, key, version, context.device, sent, &left_out)
    }

    /// Whether the conflict has the long value of each column of the row as the batch found it; `None` if it has
    /// none.
    fn recorded_columns(&self, schema: &Schema, rows: &WorkingSet, context: &Context) -> Option<Vec<bool>> {
        let (stored, foreign) = self.met(schema, rows, context)?;
        let values = stored.values.as_deref().filter(|_| foreign.is_none())?;
        let (of_met, _) = self.recorded(rows, values);
        let is_long = |value: &Value| value.weight() > SHARED_BYTES_MIN;
        let columns: Vec<bool> = of_met.into_iter().map(|value| value.is_some_and(is_long)).collect();
        columns.contains(&true).then_some(columns)
    }

    /// What is recorded of the state that the edit was compared with, `met`, and of the one that it began with.
    ///
    /// A long value that the device did not send is left out if the row still has it: nobody lost it, and an
    /// edit of a few bytes must not copy it. A brief record also leaves it out if the device sent less.
    fn recorded<'a>(&'a self, rows: &WorkingSet, met: &'a [Value]) -> (Columns<'a>, Columns<'a>) {
        let now = rows.get(self.table, self.incoming.key).and_then(|row| row.values.as_deref());
        let now = now.unwrap_or_default();
        let is_long = |index: usize, value: &Value| {
            let sent = self.incoming.values.get(index).and_then(Option::as_ref);
            let is_copy = sent.is_none_or(|sent| self.is_brief && value.weight() > sent.weight());
            is_copy && value.weight() > SHARED_BYTES_MIN
        };
        let is_kept = |index: usize| {
            met.get(index).is_some_and(|value| is_long(index, value) && now.get(index) == Some(value))
        };
        let base = self.history.ancestor.iter().flatten().enumerate();
        let of_base = base.map(|(index, value)| {
            // Of a deleted row the base is all that is left, except for its history.
            let is_apart = met.get(index).map_or(self.is_brief, |met| met != value);
            let is_left_out = is_kept(index) || (is_apart && is_long(index, value));
            (!is_left_out).then_some(value)
        });
        let of_met = met.iter().enumerate().map(|(index, value)| (!is_kept(index)).then_some(value));
        (of_met.collect(), of_base.collect())
    }

    /// About how many bytes the conflict takes.
    fn weight(&self, schema: &Schema, rows: &WorkingSet, context: &Context) -> usize {
        let Some((stored, foreign)) = self.met(schema, rows, context) else { return 0 };
        let (met, base) = self.recorded(rows, values_met(stored, foreign));
        let apart = base.iter().enumerate().filter(|(index, value)| met.get(*index) != Some(value));
        let recorded = met.iter().chain(apart.map(|(_, value)| value)).flatten().copied();
        let sent = self.incoming.values.iter().flatten();
        size_of::<Conflict>() + recorded.chain(sent).map(Value::weight).sum::<usize>()
    }

    /// The conflict; `None` if no row existed.
    fn conflict(&self, schema: &Schema, rows: &WorkingSet, context: &Context) -> Option<Conflict> {
        let (stored, foreign) = self.met(schema, rows, context)?;
        let met = foreign.map_or_else(|| Cow::Borrowed(stored), |state| Cow::Owned(state.over(stored)));
        let incoming = Side {
            values: (!self.deletes).then(|| self.incoming.values.clone()),
            last_update: self.incoming.last_update.unwrap_or(context.now),
            device: context.device,
        };
        let owned = |values: Columns<'_>| values.into_iter().map(Option::<&Value>::cloned).collect();
        let (of_met, of_base) = self.recorded(rows, met.values.as_deref().unwrap_or_default());
        let columns = RecordedColumns {
            id: self.id,
            stored: met.values.is_some().then(|| owned(of_met)),
            base: self.history.ancestor.is_some().then(|| owned(of_base)),
        };
        let (table, key) = (schema.at(self.table), self.incoming.key);
        Some(conflicts::note(table, key, &met, columns, incoming, self.resolution, context.now))
    }
}
