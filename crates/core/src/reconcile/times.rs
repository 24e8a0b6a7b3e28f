use super::{Context, Rejection, RejectionCode};
use crate::broken;
use crate::model::{Stored, Timestamp};

/// How far `last_update` may run ahead of the clock, in units of the schema's times.
///
/// Each change of a row has a later `last_update` than the one before, so changes that come faster than the
/// unit push it ahead. People make fewer than 60 changes of one row within a minute. Where times are whole
/// seconds, no row shows a time of more than a minute from now.
pub const AHEAD_UNITS_MAX: i64 = 60;

/// The two times of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// Identifies the state: later than that of the state which it replaces.
    pub last_update: Timestamp,
    /// When the change was made, if `last_update` had to be later.
    pub made_at: Option<Timestamp>,
}

/// A device's time as it is stored: never later than now.
pub(super) fn capped(at: Timestamp, context: &Context) -> Timestamp {
    at.min(context.now).truncated(context.precision)
}

/// When a change counts as made: as the device reports, but never later than now, and never before the state
/// that it replaces. Its `last_update` is later than that state's, so that (key, `last_update`) identifies
/// one state of one row.
///
/// - All changes of a row within one request make one state, and have one time.
/// - `is_joined`: the state was made from two and equals neither. After a restore, a device may send a state
///   that other devices still know under its time. So its `last_update` is later than that of both.
/// - Errors: [`RejectionCode::TooManyEdits`] if `last_update` would run too far ahead of the clock.
pub(super) fn stamp(
    given: Option<Timestamp>,
    replaced: Option<&Stored>,
    is_joined: bool,
    context: &Context,
) -> Result<Times, Rejection> {
    let at = capped(given.unwrap_or(context.now), context);
    let Some(old) = replaced.filter(|_| !broken::is("time_not_rising")) else {
        return Ok(Times { last_update: at, made_at: None });
    };
    let unit_ms = context.precision.unit_ms();
    let made = at.max(old.true_time());
    let last_update = if old.version == context.writing {
        at.max(old.last_update)
    } else {
        let next = if is_joined { at.max(old.last_update) } else { old.last_update };
        let next = next.shifted(unit_ms);
        // A clock that was set back is behind the times that it stored. The row is not to blame for that.
        let latest = context.now.max(made).shifted(AHEAD_UNITS_MAX * unit_ms);
        if next > latest && !broken::is("times_run_ahead") {
            return Err(too_many_edits());
        }
        at.max(next)
    };
    Ok(Times { last_update, made_at: (made < last_update).then_some(made) })
}

fn too_many_edits() -> Rejection {
    Rejection {
        code: RejectionCode::TooManyEdits,
        column: None,
        detail: "the row has changed too often within a moment; send the edit again later".into(),
    }
}
