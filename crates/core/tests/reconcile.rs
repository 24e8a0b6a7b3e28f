//! The rules: every written case, and what holds in all that nobody wrote down.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::too_many_lines
)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use rollcall_core::model::{
    Claim, DeviceId, EarlierState, Lifetime, Precision, RowKey, Stored, Timestamp, Value, Version,
};
use rollcall_core::reconcile::{
    AHEAD_UNITS_MAX, Context, Decision, ForeignEdits, Incoming, Operation, Rejection, RejectionCode,
    Resolution, RowHistory, Skew, TOLERATED_SKEW_MS, Verdict, needs_history, settle,
};
use rollcall_core::schema::{ColumnMerge, Policy, Schema, Table, ValueSeed};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _};
use serde_json::{Map, Value as Json};
use uuid::Uuid;

/// What the rules decide for one row.
type Settled = Result<Decision, Rejection>;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/reconcile");
/// The day of times that are written without one.
const DAY: &str = "2024-05-01";
/// The version that a case's request writes.
const WRITING: Version = Version(10);

/// One file of `fixtures/reconcile`; its README says what the members mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    title: String,
    #[serde(default)]
    timestamps: Timestamps,
    #[serde(default = "task")]
    table: String,
    policy: Option<Policy>,
    #[serde(default = "noon")]
    now: At,
    row_bytes_max: Option<usize>,
    /// Which epoch the request writes in.
    #[serde(default)]
    epoch: u16,
    /// The row that both sides began with, if it is still known.
    ancestor: Option<Map<String, Json>>,
    /// Instead of it: the states of the row that are remembered, the latest first.
    #[serde(default)]
    history: Vec<State>,
    stored: Option<Held>,
    sent: Sent,
    expect: Expect,
}

#[derive(Deserialize, Clone, Copy, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Timestamps {
    #[default]
    Milliseconds,
    Seconds,
}

/// What the server holds before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    by: String,
    last_update: At,
    #[serde(default = "five")]
    version: u64,
    #[serde(default = "maker")]
    made_by: String,
    #[serde(default = "one")]
    created: u64,
    #[serde(default)]
    lives: Vec<(u64, u64)>,
    #[serde(default)]
    writers: Vec<String>,
    row: Option<Map<String, Json>>,
    #[serde(default)]
    deleted: bool,
    /// When it was really made, where `last_update` is later.
    made_at: Option<At>,
    /// What its device said of the change.
    given: Option<At>,
    _base: Option<At>,
    base: Option<u64>,
}

/// What the row was before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    by: String,
    version: u64,
    last_update: At,
    row: Map<String, Json>,
    made_at: Option<At>,
    given: Option<At>,
}

/// What the device sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    by: String,
    add: Option<Map<String, Json>>,
    update: Option<Map<String, Json>>,
    delete: Option<bool>,
    last_update: Option<At>,
    _base: Option<At>,
    base: Option<u64>,
    sent_at: Option<At>,
    #[serde(default)]
    put_back: bool,
}

/// What must come of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    verdict: Verdict,
    written: Option<Written>,
    #[serde(default)]
    tells_row: bool,
    conflict: Option<Resolution>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    last_update: At,
    row: Option<Map<String, Json>>,
    #[serde(default)]
    deleted: bool,
    /// When it was really made, where the case is about that.
    made_at: Option<At>,
    /// What the row remembers of before, where the case is about that.
    lives: Option<Vec<(u64, u64)>>,
    writers: Option<Vec<String>>,
}

#[derive(Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Fault {
    code: RejectionCode,
    column: Option<String>,
}

/// An instant as text; `12:00:05` is on the day of all cases.
#[derive(Clone, Copy, PartialEq)]
struct At(Timestamp);

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let dated = if text.contains('-') { text } else { format!("{DAY} {text}") };
        Timestamp::parse(&dated).map(Self).map_err(|error| D::Error::custom(format!("{dated:?}: {error}")))
    }
}

fn task() -> String {
    "task".into()
}

fn noon() -> At {
    At(Timestamp::parse(&format!("{DAY} 12:00:00")).unwrap())
}

fn five() -> u64 {
    5
}

fn one() -> u64 {
    1
}

fn maker() -> String {
    "maker".into()
}

fn schema(timestamps: Timestamps) -> Schema {
    let tables = std::fs::read_to_string(Path::new(FOLDER).join("schema.toml")).unwrap();
    let precision = match timestamps {
        Timestamps::Milliseconds => "milliseconds",
        Timestamps::Seconds => "seconds",
    };
    Schema::parse(&format!("timestamps = \"{precision}\"\n{tables}")).unwrap()
}

/// The same name is the same device, in every case.
fn device(name: &str) -> DeviceId {
    DeviceId(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

fn key() -> RowKey {
    RowKey(Uuid::from_u128(1))
}

/// A case made ready for the rules.
struct Ready {
    table: Table,
    precision: Precision,
    past: RowHistory,
    /// The states that are remembered, the latest first, and how many will be once the row is written.
    history: Vec<EarlierState>,
    keeps: usize,
    stored: Option<Stored>,
    operation: Operation,
    incoming: Incoming,
    context: Context,
}

impl Case {
    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|error| error.to_string())?;
        serde_json::from_slice(&text).map_err(|error| error.to_string())
    }

    fn ready(&self) -> Result<Ready, String> {
        let schema = schema(self.timestamps);
        let precision = schema.precision;
        let mut table = schema.table(&self.table).ok_or("there is no such table")?.clone();
        if let Some(policy) = self.policy {
            table.policy = policy;
        }
        let stored = self.stored.as_ref().map(|held| -> Result<_, String> {
            Ok(Stored {
                version: Version(held.version),
                created: Version(held.created),
                last_update: held.last_update.0,
                made_at: held.made_at.map(|at| at.0),
                claim: Claim {
                    at: held.given.map(|at| at.0),
                    row_base: held._base.map(|at| at.0),
                    base: held.base.map(Version),
                },
                made_by: device(&held.made_by),
                changed_by: device(&held.by),
                lifetimes: lives(&held.lives),
                aware_devices: held.writers.iter().map(|name| device(name)).collect(),
                values: state(&table, precision, held.row.as_ref(), held.deleted)?,
            })
        });
        let sent = &self.sent;
        let (operation, row) = match (&sent.add, &sent.update, sent.delete) {
            (Some(row), None, None) => (Operation::Add, Some(row)),
            (None, Some(row), None) => (Operation::Update, Some(row)),
            (None, None, Some(true)) => (Operation::Delete, None),
            _ => return Err("sent: write one of \"add\": {…}, \"update\": {…}, \"delete\": true".into()),
        };
        // As `synchronise` does before it asks the rules.
        let skew = sent.sent_at.map(|at| Skew::measure(at.0, self.now.0));
        let skew = skew.filter(|_| !sent.put_back);
        let corrected = sent.last_update.map(|at| skew.map_or(at.0, |skew| skew.correct(at.0)));
        let incoming = Incoming {
            key: key(),
            values: row.map_or(Ok(Vec::new()), |row| values(&table, precision, row))?,
            last_update: corrected.map(|at| at.truncated(precision)),
            claimed_at: sent.last_update.or(sent.sent_at).map(|at| at.0),
            base: sent._base.map(|at| at.0),
        };
        let context = Context {
            device: device(&sent.by),
            base: sent.base.map(Version),
            put_back: sent.put_back,
            writing: if self.epoch == 0 { WRITING } else { Version::first(self.epoch) },
            now: self.now.0,
            precision,
            row_bytes_max: self.row_bytes_max.unwrap_or(262_144),
        };
        let stored = stored.transpose()?;
        let asked = stored.as_ref().filter(|stored| needs_history(stored, &incoming, &context));
        let state_of = |held: &State| -> Result<_, String> {
            Ok(EarlierState {
                version: Version(held.version),
                last_update: held.last_update.0,
                made_at: held.made_at.map(|at| at.0),
                claimed_at: held.given.map(|at| at.0),
                changed_by: device(&held.by),
                values: state(&table, precision, Some(&held.row), false)?.unwrap_or_default(),
            })
        };
        let history: Vec<_> = self.history.iter().map(state_of).collect::<Result<_, _>>()?;
        let past = match (&self.ancestor, asked) {
            (None, None) if self.history.is_empty() => RowHistory::default(),
            (_, None) => return Err("ancestor, history: the rules do not ask for them here".into()),
            (Some(_), _) if !self.history.is_empty() => return Err("write ancestor or history".into()),
            (Some(row), _) => {
                RowHistory { ancestor: state(&table, precision, Some(row), false)?, ..RowHistory::default() }
            }
            (None, Some(stored)) => RowHistory::new(&history, stored, &incoming, &context),
        };
        let keeps = history.len() + 1;
        Ok(Ready { table, precision, past, history, keeps, stored, operation, incoming, context })
    }

    fn expected(&self, ready: &Ready) -> Result<Outcome, String> {
        let expect = &self.expect;
        let written = expect.written.as_ref().map(|written| -> Result<_, String> {
            let values = state(&ready.table, ready.precision, written.row.as_ref(), written.deleted)?;
            Ok((written.last_update.0, values))
        });
        let error = expect.error.as_ref().map(|error| (error.code, error.column.clone()));
        Ok(Outcome {
            verdict: expect.verdict,
            written: written.transpose()?,
            tells_row: expect.tells_row,
            conflict: expect.conflict,
            error,
        })
    }

    /// What the written row remembers of its past, where the case tells it.
    fn check_past(&self, settled: &Settled) -> Result<(), String> {
        let (Some(expected), Ok(Decision { write: Some(row), .. })) = (&self.expect.written, settled) else {
            return Ok(());
        };
        if expected.made_at.is_some_and(|at| row.true_time() != at.0) {
            return Err(format!("expected another true time than {:?}", row.true_time()));
        }
        if expected.lives.as_ref().is_some_and(|expected| row.lifetimes != lives(expected)) {
            return Err(format!("expected other lives than {:?}", row.lifetimes));
        }
        let mut writers = row.aware_devices.clone();
        writers.sort_unstable_by_key(|writer| writer.0);
        let expected = expected.writers.as_ref().map(|names| {
            let mut writers: Vec<_> = names.iter().map(|name| device(name)).collect();
            writers.sort_unstable_by_key(|writer| writer.0);
            writers
        });
        if expected.is_some_and(|expected| expected != writers) {
            return Err(format!("expected other writers than {writers:?}"));
        }
        Ok(())
    }
}

impl Ready {
    fn settle(&self) -> Settled {
        let Self { table, past, stored, operation, incoming, context, .. } = self;
        settle(table, stored.as_ref(), past, *operation, incoming, context)
    }
}

fn lives(versions: &[(u64, u64)]) -> Vec<Lifetime> {
    versions
        .iter()
        .map(|(made, deleted)| Lifetime { made: Version(*made), deleted: Version(*deleted) })
        .collect()
}

/// A whole row, or `None` for a tombstone; columns left out are empty.
fn state(
    table: &Table,
    precision: Precision,
    row: Option<&Map<String, Json>>,
    deleted: bool,
) -> Result<Option<Vec<Value>>, String> {
    match (row, deleted) {
        (None, true) => Ok(None),
        (Some(row), false) => {
            let values = values(table, precision, row)?;
            Ok(Some(values.into_iter().map(|value| value.unwrap_or(Value::Null)).collect()))
        }
        _ => Err("stored, written: write one of \"row\": {…}, \"deleted\": true".into()),
    }
}

/// A row's values by their places; `None` was left out.
fn values(
    table: &Table,
    precision: Precision,
    row: &Map<String, Json>,
) -> Result<Vec<Option<Value>>, String> {
    if let Some(name) = row.keys().find(|name| table.column(name).is_none()) {
        return Err(format!("{} has no column {name:?}", table.name));
    }
    let read = |column| {
        let seed = ValueSeed { column, precision, json_depth_max: 16 };
        row.get(&column.name)
            .map(|value| seed.deserialize(value.clone()).map_err(|error| format!("{}: {error}", column.name)))
    };
    table.columns.iter().map(|column| read(column).transpose()).collect()
}

/// What the rules decided, as far as a case can tell.
#[derive(PartialEq)]
struct Outcome {
    verdict: Verdict,
    written: Option<(Timestamp, Option<Vec<Value>>)>,
    tells_row: bool,
    conflict: Option<Resolution>,
    error: Option<(RejectionCode, Option<String>)>,
}

impl Outcome {
    fn of(settled: &Settled, table: &Table) -> Self {
        let plain =
            |verdict, tells_row| Self { verdict, written: None, tells_row, conflict: None, error: None };
        match settled {
            Ok(Decision { verdict, write: Some(row), echo, conflict }) => Self {
                written: Some((row.last_update, row.values.clone())),
                conflict: *conflict,
                ..plain(*verdict, *echo)
            },
            Ok(Decision { verdict, echo, conflict, write: None }) => {
                Self { conflict: *conflict, ..plain(*verdict, *echo) }
            }
            Err(rejection) => {
                let column = rejection.column.map(|index| table.columns[index].name.clone());
                Self { error: Some((rejection.code, column)), ..plain(Verdict::Rejected, false) }
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.verdict)?;
        if let Some((at, values)) = &self.written {
            let at = at.format(Precision::Milliseconds);
            match values {
                Some(values) => write!(f, ", written at {at}: {values:?}")?,
                None => write!(f, ", a tombstone at {at}")?,
            }
        }
        if let Some((code, column)) = &self.error {
            write!(f, ", {code:?} of {}", column.as_deref().unwrap_or("the row"))?;
        }
        if let Some(conflict) = &self.conflict {
            write!(f, ", notes a conflict: {conflict:?}")?;
        }
        write!(f, "{}", if self.tells_row { ", tells the row" } else { "" })
    }
}

/// What holds in every case, besides what the case itself says.
fn check_invariants(ready: &Ready, settled: &Settled) -> Result<(), String> {
    let Ready { table, history, keeps, stored, operation, incoming, context, .. } = ready;
    let must = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    match settled {
        Ok(Decision { verdict, write: Some(row), .. }) => {
            must(row.version == context.writing, "what is written has the request's version")?;
            must(row.changed_by == context.device, "the sender is who changed it")?;
            must(
                row.is_tombstone() == (*operation == Operation::Delete),
                "only a deletion leaves a tombstone",
            )?;
            must(
                row.last_update == row.last_update.truncated(context.precision),
                "no time is finer than the schema keeps",
            )?;
            let rises = stored.as_ref().is_none_or(|stored| match stored.version == context.writing {
                true => row.last_update >= stored.last_update, // all changes of one request make one state
                false => row.last_update > stored.last_update,
            });
            must(rises, "last_update rises")?;
            // Only the rise may carry a time beyond now.
            let by_one =
                stored.as_ref().map(|stored| stored.last_update.shifted(context.precision.unit_ms()));
            let joined = *verdict == Verdict::Merged
                && row.last_update <= context.now.shifted(context.precision.unit_ms());
            let by_this_request = stored.as_ref().is_some_and(|stored| stored.version == context.writing);
            must(
                row.last_update <= context.now
                    || Some(row.last_update) == by_one
                    || joined
                    || by_this_request,
                "last_update is not later than now",
            )?;
            let latest = stored.as_ref().map_or(context.now, |stored| context.now.max(stored.true_time()));
            must(row.true_time() <= latest, "what conflicts are judged by never runs ahead of the clock")?;
            must(
                by_this_request
                    || row.last_update <= latest.shifted(AHEAD_UNITS_MAX * context.precision.unit_ms()),
                "last_update runs ahead of the clock within a bound",
            )?;
            let anew = stored.as_ref().is_none_or(Stored::is_tombstone);
            match stored.as_ref().filter(|_| !anew) {
                Some(stored) => {
                    must(
                        (row.created, row.made_by) == (stored.created, stored.made_by),
                        "a change does not forget who made the row",
                    )?;
                    must(
                        matches!(verdict, Verdict::Updated | Verdict::Merged | Verdict::Deleted),
                        "a live row is updated, merged or deleted",
                    )?;
                }
                None => {
                    must(
                        (row.created, row.made_by) == (context.writing, context.device),
                        "who makes a row anew is its maker",
                    )?;
                    must(*verdict == Verdict::Added, "what was not there is added")?;
                }
            }
            must(
                row.values.as_ref().is_none_or(|values| {
                    table
                        .columns
                        .iter()
                        .zip(values)
                        .all(|(column, value)| !column.required || !value.is_null())
                }),
                "no row lacks a required column",
            )?;
            let merges = table.policy == Policy::Merge;
            must(merges || *verdict != Verdict::Merged, "only the policy merge merges")?;
            // No device can have begun with a state that was made only now.
            if incoming.base.is_some_and(|base| base.truncated(context.precision) == row.last_update) {
                return Ok(());
            }
            // The answer is lost and the device sends the same again. What was replaced is remembered now, and
            // the oldest may be forgotten.
            let replaced = stored.as_ref().and_then(|stored| {
                let Stored { version, last_update, made_at, claim, changed_by, .. } = *stored;
                let values = stored.values.clone()?;
                let claimed_at = claim.at;
                Some(EarlierState { version, last_update, made_at, claimed_at, changed_by, values })
            });
            let mut states: Vec<_> = replaced.into_iter().chain(history.iter().cloned()).collect();
            let all_known = states.len() <= *keeps;
            states.truncate(*keeps);
            // To a server that has forgotten what an edit was joined with, it is a new one if it seems later than
            // the row: by a clock that was ahead, or where it says neither when nor on what it was made.
            let seems_later = match incoming.last_update {
                Some(at) => at > context.now,
                None => incoming.base.is_none(),
            };
            if !all_known && seems_later {
                return Ok(());
            }
            let now = context.now.shifted(60_000);
            let context = Context { writing: context.writing.next(), now, ..*context };
            let past = match needs_history(row, incoming, &context) {
                true => RowHistory::new(&states, row, incoming, &context),
                false => RowHistory::default(),
            };
            match settle(table, Some(row), &past, *operation, incoming, &context) {
                Ok(Decision { verdict: Verdict::Same | Verdict::Kept, write: None, .. }) => Ok(()),
                again => Err(format!("sent again, nothing more is written, not {again:?}, {past:?}")),
            }
        }
        Ok(Decision { verdict, echo, write: None, .. }) => {
            must(
                matches!(verdict, Verdict::Same | Verdict::Kept | Verdict::Gone | Verdict::Absent),
                "what is left alone has a verdict that says so",
            )?;
            must(!echo || stored.as_ref().is_some_and(|row| !row.is_tombstone()), "only a live row is told")?;
            must((*verdict == Verdict::Absent) == stored.is_none(), "absent means that nothing is held")?;
            must(*verdict != Verdict::Kept || *echo, "the row that won is told")
        }
        Err(_) => Ok(()),
    }
}

/// Who loses a true conflict is noted, and nobody else is.
fn check_conflict(ready: &Ready, settled: &Settled) -> Result<(), String> {
    let Ready { table, stored, incoming, context, .. } = ready;
    let merges = table.policy == Policy::Merge;
    let own = stored.as_ref().filter(|stored| stored.changed_by == context.device);
    if let Some(stored) = own.filter(|stored| !context.put_back && !is_covered(stored, incoming, context)) {
        return check_own(ready, stored, settled);
    }
    let contested = stored.as_ref().is_some_and(|stored| is_contested(stored, incoming, context));
    let right = match settled {
        Ok(Decision { verdict, conflict, write: Some(_), .. }) => match (conflict, verdict) {
            (None, Verdict::Merged) => contested && merges,
            (None, _) => !contested,
            (Some(Resolution::Merged), verdict) => contested && merges && *verdict == Verdict::Merged,
            (Some(resolution), _) => contested && *resolution == Resolution::Overwritten,
        },
        Ok(Decision { verdict, conflict, write: None, .. }) => match (conflict, verdict) {
            (None, Verdict::Kept | Verdict::Gone) => !contested || merges,
            (None, _) => true,
            (Some(resolution), verdict) => {
                contested
                    && *resolution == Resolution::Kept
                    && matches!(verdict, Verdict::Kept | Verdict::Gone)
            }
        },
        Err(_) => true,
    };
    if right { Ok(()) } else { Err("a conflict is noted just if somebody lost it".into()) }
}

/// Whether another device changed the row since the device saw it, so that one of the two loses.
fn is_contested(stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
    if !context.put_back {
        let names_base = incoming.base.is_some() || context.base.is_some();
        return names_base && !is_covered(stored, incoming, context);
    }
    // A row that nobody has written since the restore is as the backup had it.
    let is_anothers =
        stored.version.epoch() == context.writing.epoch() && stored.changed_by != context.device;
    // A deletion stands against what is older: no edit loses.
    let is_older = incoming.last_update.is_some_and(|at| at <= stored.true_time());
    is_anothers && !(stored.is_tombstone() && is_older)
}

/// Whether the device says that it knew the present state, or this very request made it.
fn is_covered(stored: &Stored, incoming: &Incoming, context: &Context) -> bool {
    stored.version == context.writing
        || match (incoming.base, context.base) {
            (Some(base), _) => base.truncated(context.precision) == stored.last_update,
            (None, base) => base.is_some_and(|base| stored.version <= base),
        }
}

/// That the row's last change is the device's own does not prove that the device knows it: two phones may share a
/// token. So whoever loses is noted, but for two cases that prove more.
fn check_own(ready: &Ready, stored: &Stored, settled: &Settled) -> Result<(), String> {
    let Ready { table, past, incoming, context, precision, .. } = ready;
    let must = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    let names_base = incoming.base.is_some() || context.base.is_some();
    let is_later = match (incoming.claimed_at, stored.claim.at) {
        (Some(own), Some(other)) => own > other,
        (Some(_), None) => incoming.last_update > Some(stored.true_time()),
        (None, _) => false,
    };
    let row_base = incoming.base.map(|base| base.truncated(*precision));
    let is_late = match (row_base.zip(stored.claim.row_base), context.base.zip(stored.claim.base)) {
        (Some((own, other)), _) => own < other,
        (None, Some((own, other))) => own < other,
        (None, None) => false,
    };
    // Nothing was named, and the later change wins, as between any two devices.
    let is_plain = !names_base && is_later;
    let is_known = is_late && past.was_written;
    let is_joined = table.policy == Policy::Merge && past.foreign_edits != ForeignEdits::None;
    match settled {
        Ok(Decision { verdict, conflict, write: Some(_), .. }) => {
            must(!is_late, "a late copy writes nothing")?;
            let in_doubt = is_joined && past.is_incomplete(stored, incoming, context);
            match conflict {
                None => {
                    must(is_plain || (in_doubt && *verdict == Verdict::Merged), "what it overwrites is noted")
                }
                Some(Resolution::Overwritten) => must(!is_plain, "no conflict is noted in vain"),
                Some(resolution) => must(
                    in_doubt && *resolution == Resolution::Merged,
                    "what it overwrites is noted as a whole",
                ),
            }
        }
        Ok(Decision { verdict: Verdict::Kept | Verdict::Gone, conflict, write: None, .. }) => {
            match conflict {
                None => must(is_known || is_plain || is_joined, "what was not applied is noted"),
                Some(resolution) => must(
                    *resolution == Resolution::Kept && !is_known,
                    "what was not applied is noted, unless it was in the row once",
                ),
            }
        }
        Ok(Decision { conflict, write: None, .. }) => {
            must(conflict.is_none(), "nobody loses where nothing is decided")
        }
        Err(_) => Ok(()),
    }
}

fn cases() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
    paths.sort();
    assert!(paths.len() >= 300, "only {} cases found: a moved folder must not pass", paths.len());
    paths
}

/// Goal: the rules hold for every written case. Method: one file a case, all that fail named at once.
#[test]
fn every_written_case_settles_as_told() {
    let mut faults = Vec::new();
    for path in cases() {
        let case = match Case::read(&path) {
            Ok(case) => case,
            Err(error) => {
                faults.push(format!("{}\n  cannot be read: {error}", path.display()));
                continue;
            }
        };
        let judged = case.ready().and_then(|ready| {
            let expected = case.expected(&ready)?;
            let settled = ready.settle();
            let got = Outcome::of(&settled, &ready.table);
            if got != expected {
                return Err(format!("expected {expected}\n  got      {got}"));
            }
            case.check_past(&settled)?;
            check_invariants(&ready, &settled)
                .and_then(|()| check_conflict(&ready, &settled))
                .map_err(|broken| format!("it must hold that {broken}"))
        });
        if let Err(fault) = judged {
            faults.push(format!("{}: {}\n  {fault}", path.display(), case.title));
        }
    }
    assert!(faults.is_empty(), "{} cases fail\n\n{}\n", faults.len(), faults.join("\n\n"));
}

/// Goal: no verdict goes untested, and no two cases are called alike.
#[test]
fn the_cases_show_every_verdict_and_have_titles_of_their_own() {
    let cases: Vec<_> = cases().iter().map(|path| Case::read(path).unwrap()).collect();
    let every = [
        Verdict::Added,
        Verdict::Updated,
        Verdict::Merged,
        Verdict::Deleted,
        Verdict::Same,
        Verdict::Kept,
        Verdict::Gone,
        Verdict::Absent,
        Verdict::Rejected,
    ];
    for verdict in every {
        assert!(cases.iter().any(|case| case.expect.verdict == verdict), "no case for {verdict:?}");
    }
    let mut titles: Vec<_> = cases.iter().map(|case| case.title.as_str()).collect();
    titles.sort_unstable();
    let twice: Vec<_> = titles.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "titles that come twice: {twice:?}");
}

/// Goal: a typing error in a case never makes it test less. Method: one member too many, at every level.
#[test]
fn a_member_that_is_not_known_is_an_error() {
    let case = |stored: &str, sent: &str, expect: &str, top: &str| {
        format!(
            r#"{{"title": "t", {top}
                "stored": {{"by": "tablet", "last_update": "10:00:00", "deleted": true{stored}}},
                "sent": {{"by": "phone", "delete": true{sent}}},
                "expect": {{"verdict": "same"{expect}}}}}"#
        )
    };
    let read = |text: String| serde_json::from_str::<Case>(&text).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(read(case("", "", "", "")), Ok(()));
    for text in [
        case(r#", "verison": 5"#, "", "", ""),
        case("", r#", "bases": 5"#, "", ""),
        case("", "", r#", "row": {}"#, ""),
        case("", "", "", r#""when": "11:00:00","#),
        case("", "", r#", "written": {"last_update": "11:00:00", "deletd": true}"#, ""),
        case("", "", "", r#""ancester": {},"#),
    ] {
        assert!(read(text.clone()).is_err_and(|error| error.contains("unknown field")), "{text}");
    }
}

/// Few instants, so that ties and equal states come up often.
fn instants() -> impl Strategy<Value = Timestamp> {
    let noon = noon().0.ms();
    prop_oneof![
        (-3_i64..=3).prop_map(move |s| Timestamp::from_ms(noon + s * 1_000)),
        (-3_i64..=3).prop_map(move |ms| Timestamp::from_ms(noon + ms)),
        Just(Timestamp::from_ms(0)),
        Just(Timestamp::from_ms(noon + 86_400_000_000)),
        (-60_000_000_000_000_i64..=250_000_000_000_000).prop_map(Timestamp::from_ms),
    ]
}

fn texts() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        "[ab]{1,2}".prop_map(Value::Text),
        Just(Value::Text("longer than the title may be".into())),
    ]
}

prop_compose! {
    fn rows()(title in texts(), notes in texts(), stars in 0_i64..3, begun in instants(), state in "[ab]") -> Vec<Value> {
        let state = Value::Text(state);
        vec![title, notes, Value::Integer(stars), Value::Timestamp(begun.truncated(Precision::Seconds)), state]
    }
}

/// The two ways to keep times, read once: there are millions of situations.
static SCHEMAS: LazyLock<[Schema; 2]> =
    LazyLock::new(|| [Timestamps::Milliseconds, Timestamps::Seconds].map(schema));

prop_compose! {
    fn situations()(
        seconds in any::<bool>(),
        sums in any::<bool>(),
        policy in proptest::sample::select(&Policy::ALL[..]),
        now in instants(),
        row_bytes_max in prop_oneof![Just(10_usize), Just(262_144)],
        stored in proptest::option::of((rows(), any::<bool>(), instants(), 1_u64..=10, 0..3_usize)),
        history in proptest::collection::vec((rows(), instants(), 0..3_usize), 0..4),
        (keeps, created) in (0..6_usize, 1_u64..=10),
        operation in prop_oneof![Just(Operation::Add), Just(Operation::Update), Just(Operation::Delete)],
        sent in rows(),
        left_out in proptest::collection::vec(any::<bool>(), 5),
        last_update in proptest::option::of(instants()),
        claim in proptest::option::of((proptest::option::of(instants()), proptest::option::of(instants()), proptest::option::of(1_u64..10))),
        made in proptest::option::of(instants()),
        (row_base, base_is_known) in (proptest::option::of(instants()), proptest::option::of(0..4_usize)),
        base in proptest::option::of(1_u64..10),
    ) -> Ready {
        let schema = &SCHEMAS[usize::from(seconds)];
        let precision = schema.precision;
        let mut table = schema.table("task").unwrap().clone();
        table.policy = policy;
        let devices = ["phone", "tablet", "laptop"].map(device);
        if sums {
            table.columns[2].merge = ColumnMerge::Sum;
        }
        // The schema lets no row in that lacks a required column.
        let whole = |mut values: Vec<Value>| {
            for (column, value) in table.columns.iter().zip(&mut values) {
                if value.is_null() && column.required {
                    *value = Value::Text("a".into());
                }
            }
            values
        };
        let stored = stored.map(|(values, live, at, version, by)| {
            let values = whole(values);
            Stored {
                version: Version(version),
                created: Version(created.min(version)),
                last_update: at.truncated(precision),
                made_at: made.map(|made| made.truncated(precision)).filter(|made| *made < at.truncated(precision)),
                claim: claim.map_or(Claim::default(), |(at, row_base, base)| Claim {
                    at,
                    row_base: row_base.map(|base| base.truncated(precision)),
                    base: base.map(Version),
                }),
                made_by: devices[2],
                // What this very request wrote was written by who sent it.
                changed_by: if version == WRITING.0 { devices[0] } else { devices[by] },
                lifetimes: Vec::new(),
                aware_devices: Vec::new(),
                values: live.then_some(values),
            }
        });
        let values = if operation == Operation::Delete {
            Vec::new()
        } else {
            sent.into_iter().zip(left_out).map(|(value, out)| (!out).then_some(value)).collect()
        };
        // Versions and times of a row's states only rise.
        let mut next = stored.as_ref().map_or((1, Timestamp::from_ms(0)), |row| (row.version.0, row.last_update));
        let mut earlier = Vec::new();
        for (values, at, by) in history {
            let at = at.truncated(precision).min(next.1.shifted(-precision.unit_ms()));
            next = (next.0 - 1, at);
            if next.0 == 0 {
                break;
            }
            let (version, changed_by) = (Version(next.0), devices[by]);
            let (made_at, claimed_at) = (None, Some(at));
            let values = whole(values);
            earlier.push(EarlierState { version, last_update: at, made_at, claimed_at, changed_by, values });
        }
        let history = earlier;
        let base_of_row = match (&stored, base_is_known) {
            (Some(stored), Some(0)) => Some(stored.last_update),
            (_, Some(place)) if place > 0 => history.get(place - 1).map(|state| state.last_update).or(row_base),
            _ => row_base,
        };
        let incoming = Incoming {
            key: key(),
            values,
            last_update: last_update.map(|at| at.truncated(precision)),
            claimed_at: last_update,
            base: base_of_row,
        };
        let context =
            Context { device: devices[0], base: base.map(Version), put_back: false, writing: WRITING, now, precision, row_bytes_max };
        let asked =
            stored.as_ref().is_some_and(|stored| needs_history(stored, &incoming, &context));
        let past = match stored.as_ref().filter(|_| asked) {
            Some(stored) => RowHistory::new(&history, stored, &incoming, &context),
            None => RowHistory::default(),
        };
        Ready { table, precision, past, history, keeps, stored, operation, incoming, context }
    }
}

/// How many situations each property tries; a long run sets the variable.
fn random_cases() -> u32 {
    std::env::var("ROLLCALL_RULES_CASES").map_or(4_000, |cases| cases.parse().unwrap())
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, past, history, keeps, stored, operation, incoming, context, .. } = self;
        write!(
            f,
            "{:?}: {past:?} of {history:?} ({keeps}) {stored:?} {operation:?} {incoming:?} {context:?}",
            table.policy
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: random_cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: what nobody wrote a case for keeps the promises too.
    #[test]
    fn whatever_comes_the_invariants_hold(ready in situations()) {
        let settled = ready.settle();
        let kept = check_invariants(&ready, &settled).and_then(|()| check_conflict(&ready, &settled));
        if let Err(broken) = kept {
            return Err(TestCaseError::fail(format!("{broken}: {settled:?}")));
        }
    }

    /// Goal: what the rules say of a forgotten past is all they need to say. Whoever knows the row that an edit
    /// began with knows as well what became of it since: states are forgotten from the oldest.
    #[test]
    fn an_ancestor_that_is_known_stands_beside_a_known_past(ready in situations()) {
        let past = &ready.past;
        prop_assert!(past.ancestor.is_none() || past.foreign_edits != ForeignEdits::Forgotten, "{past:?}");
    }

    /// Goal: under the policy `server` nobody overwrites what they had not seen. Method: somebody else changed
    /// the row, and neither base covers it.
    #[test]
    fn under_server_a_true_conflict_writes_nothing(mut ready in situations()) {
        ready.table.policy = Policy::Server;
        let Some(stored) = &mut ready.stored else { return Ok(()) };
        stored.changed_by = device("tablet");
        stored.version = Version(9);
        ready.context.base = Some(Version(ready.context.base.map_or(1, |base| base.0.min(8))));
        let seen = ready.incoming.base.is_some_and(|base| base.truncated(ready.precision) == stored.last_update);
        if seen {
            return Ok(());
        }
        let settled = ready.settle();
        prop_assert!(!matches!(settled, Ok(Decision { write: Some(_), .. })), "{settled:?}");
    }

    /// Goal: a deleted row never comes back by a device that says neither when it was edited nor on what.
    #[test]
    fn a_tombstone_outlasts_whatever_says_nothing_of_itself(mut ready in situations()) {
        let Some(stored) = &mut ready.stored else { return Ok(()) };
        stored.values = None;
        stored.version = Version(5);
        ready.incoming.last_update = None;
        ready.incoming.claimed_at = None;
        ready.incoming.base = None;
        ready.context.base = None;
        let settled = ready.settle();
        prop_assert!(!matches!(settled, Ok(Decision { write: Some(_), .. })), "{settled:?}");
    }

    /// Goal: the correction of clocks is what the design says. Method: small offsets leave times alone, large
    /// ones shift by the whole.
    #[test]
    fn a_clock_is_corrected_by_all_of_its_error_or_not_at_all(at in instants(), offset in -10_000_i64..10_000) {
        let now = noon().0;
        let skew = Skew::measure(now.shifted(-offset), now);
        prop_assert_eq!(skew.offset_ms(), offset);
        let expected = if offset.abs() < TOLERATED_SKEW_MS { at } else { at.shifted(offset) };
        prop_assert_eq!(skew.correct(at), expected);
    }
}
