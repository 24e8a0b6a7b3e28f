//! Removes the rows of erased owners: step by step, in transactions of a bounded size.
//!
//! Nobody sees these rows: nobody is a member of an erased owner. A stop in between loses nothing, since the owner stays
//! marked as erased.

use std::collections::HashSet;

use crate::model::{Owner, Timestamp};
use crate::storage::{Storage, StorageResult};

/// Owners that are looked up at once.
const OWNERS_AT_ONCE: usize = 100;

/// How an erasure goes on.
#[derive(Clone, Copy, Debug)]
pub struct ErasureTerms {
    /// The present time.
    pub now: Timestamp,
    /// Most rows of one transaction.
    pub rows_max: usize,
    /// How long an owner stays marked, ms. A request that was in progress when its user was erased may write until then;
    /// a run after that time removes what it wrote.
    pub late_ms: i64,
}

/// Owners whose rows an earlier run removed, and which stay marked until they are late. They are not visited until then.
pub type Emptied = HashSet<Owner>;

/// Erases what is to be erased, until `go_on` returns `false`. Returns how many transactions it took.
pub fn run(
    storage: &dyn Storage,
    terms: ErasureTerms,
    emptied: &mut Emptied,
    go_on: &mut dyn FnMut() -> bool,
) -> StorageResult<usize> {
    let accounts = storage.accounts();
    let (mut steps, mut after) = (0, None);
    while go_on() {
        let erasures = accounts.erasures(after, OWNERS_AT_ONCE)?;
        for erasure in &erasures {
            let is_late = terms.now.ms() - erasure.since.ms() > terms.late_ms;
            if !is_late && emptied.contains(&erasure.owner) {
                continue;
            }
            loop {
                if !go_on() {
                    return Ok(steps);
                }
                steps += 1;
                if !storage.erase(erasure.owner, terms.rows_max)? {
                    break;
                }
            }
            if is_late {
                accounts.end_erasure(erasure.owner)?;
                emptied.remove(&erasure.owner);
            } else {
                emptied.insert(erasure.owner);
            }
        }
        after = erasures.last().map(|erasure| erasure.owner);
        if erasures.len() < OWNERS_AT_ONCE {
            break;
        }
    }
    accounts.forget_gone(terms.now)?;
    Ok(steps)
}
