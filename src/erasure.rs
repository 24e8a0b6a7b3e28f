//! Removes the rows of erased owners: step by step, in transactions of a bounded size.
//!
//! Nobody sees these rows: nobody is a member of an erased owner. A stop in between loses nothing, since the owner stays
//! marked as erased.

use crate::model::Timestamp;
use crate::storage::{Storage, StorageResult};

/// Owners that are looked up at once.
const OWNERS_AT_ONCE: usize = 100;

/// Erases what is to be erased, until `go_on` returns `false`. Returns how many transactions it took.
///
/// - `rows_max`: most rows of one transaction.
/// - `late_ms`: how long an owner stays marked. A request that was at work when its user was erased may write until then,
///   and that goes with a later run.
pub fn run(
    storage: &dyn Storage,
    now: Timestamp,
    rows_max: usize,
    late_ms: i64,
    go_on: &mut dyn FnMut() -> bool,
) -> StorageResult<usize> {
    let accounts = storage.accounts();
    let mut steps = 0;
    for erasure in accounts.erasures(OWNERS_AT_ONCE)? {
        loop {
            if !go_on() {
                return Ok(steps);
            }
            steps += 1;
            if !storage.erase(erasure.owner, rows_max)? {
                break;
            }
        }
        if now.ms() - erasure.since.ms() > late_ms {
            accounts.end_erasure(erasure.owner)?;
        }
    }
    accounts.forget_gone(now)?;
    Ok(steps)
}
