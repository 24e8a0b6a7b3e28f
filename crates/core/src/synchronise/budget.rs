use super::Refusal;
use crate::broken;
use crate::model::{RowKey, Stored};
use crate::schema::TableId;
use crate::storage::ReadTxn;

/// Whether a client still waits for the result of a request.
pub trait StillWanted {
    /// `false` once the client has disconnected or the request's time is over. It never becomes `true` again.
    fn still_wanted(&self) -> bool;

    /// Whether the server has memory for another `bytes` of rows to load or return. Granted bytes count until
    /// the request ends.
    fn may_hold(&self, bytes: usize) -> bool {
        let _ = bytes;
        true
    }
}

impl<F: Fn() -> bool> StillWanted for F {
    fn still_wanted(&self) -> bool {
        self()
    }
}

/// The bytes that a request may still use for each [`Cost`], in addition to what it sends itself.
///
/// Everything is weighed here before it is created, except the result of one load: at most
/// [`LOADED_AT_A_TIME`] rows, or the states of one row.
pub(super) struct Budget<'a> {
    max: usize,
    left: [usize; 3],
    again_left: usize,
    wanted: &'a dyn StillWanted,
}

/// What the bytes are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    /// Rows in memory: loaded rows, copied columns, stored states.
    Held,
    /// What is stored of conflicts.
    Noted,
    /// Rows in the response.
    ItemResult,
}

/// Bytes of rows that a response may contain more than once: a request that names a small row twice finds it
/// at both places.
pub(super) const TOLD_AGAIN_BYTES_MAX: usize = 16 * 1024;

/// Rows that are loaded before they are weighed.
const LOADED_AT_A_TIME: usize = 128;

impl<'a> Budget<'a> {
    /// `max` is for each [`Cost`].
    pub fn new(max: usize, wanted: &'a dyn StillWanted) -> Self {
        Self { max, left: [max; 3], again_left: TOLD_AGAIN_BYTES_MAX, wanted }
    }

    /// Takes a number of bytes from the budget.
    ///
    /// Errors: [`Refusal::TooHeavy`] if fewer are left, [`Refusal::NoMemory`] if the server has none now.
    pub fn take(&mut self, cost: Cost, bytes: usize) -> Result<(), Refusal> {
        let left = &mut self.left[cost as usize];
        *left = left.checked_sub(bytes).ok_or(Refusal::TooHeavy(self.max))?;
        if bytes == 0 || self.wanted.may_hold(bytes) { Ok(()) } else { Err(Refusal::NoMemory) }
    }

    /// Whether the response may contain a row of this many bytes once more.
    pub fn may_repeat(&mut self, bytes: usize) -> bool {
        let left = self.again_left.checked_sub(bytes);
        self.again_left = left.unwrap_or(self.again_left);
        left.is_some() || broken::is("row_told_each_time")
    }

    /// Called between rows.
    ///
    /// Errors: [`Refusal::Unwanted`] if no client waits for the response any more.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.wanted.still_wanted() { Ok(()) } else { Err(Refusal::Unwanted) }
    }

    /// Loads rows like [`ReadTxn::load`], unless they are too heavy.
    pub fn load<T: ReadTxn + ?Sized>(
        &mut self,
        cost: Cost,
        txn: &mut T,
        table: TableId,
        keys: &[RowKey],
    ) -> Result<Vec<Option<Stored>>, Refusal> {
        let mut loaded = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LOADED_AT_A_TIME) {
            self.check()?;
            let rows = txn.load(table, keys)?;
            self.take(cost, rows.iter().flatten().map(Stored::weight).sum())?;
            loaded.extend(rows);
        }
        Ok(loaded)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_taken_is_gone() {
        let mut budget = Budget::new(10, &|| true);
        for cost in [Cost::Held, Cost::Noted, Cost::ItemResult] {
            budget.take(cost, 7).unwrap();
            assert!(matches!(budget.take(cost, 4), Err(Refusal::TooHeavy(10))));
            budget.take(cost, 3).unwrap();
            assert!(matches!(budget.take(cost, 1), Err(Refusal::TooHeavy(10))));
        }
    }

    #[test]
    fn what_the_server_has_no_memory_for_is_refused() {
        struct Memory(usize);
        impl StillWanted for Memory {
            fn still_wanted(&self) -> bool {
                true
            }
            fn may_hold(&self, bytes: usize) -> bool {
                bytes <= self.0
            }
        }
        let memory = Memory(5);
        let mut budget = Budget::new(10, &memory);
        budget.take(Cost::Held, 5).unwrap();
        assert!(matches!(budget.take(Cost::ItemResult, 6), Err(Refusal::NoMemory)));
    }

    #[test]
    fn little_is_told_again() {
        let mut budget = Budget::new(10, &|| true);
        assert!(budget.may_repeat(TOLD_AGAIN_BYTES_MAX - 5));
        assert!(!budget.may_repeat(6));
        assert!(budget.may_repeat(5));
        assert!(!budget.may_repeat(1));
    }

    #[test]
    fn a_check_asks_each_time() {
        let looks = Cell::new(0);
        let wanted = || looks.replace(looks.get() + 1) < 2;
        let budget = Budget::new(0, &wanted);
        assert!(budget.check().is_ok() && budget.check().is_ok());
        assert!(matches!(budget.check(), Err(Refusal::Unwanted)));
    }
}
