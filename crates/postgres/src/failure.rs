//! What a failure means, read off its code and never off its text.

use std::error::Error;

use postgres::error::SqlState;

use rollcall_core::storage::StorageError;

/// Why a statement failed, as far as it matters to what is tried next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Another transaction was in the way: the work may go well if it is run again.
    InTheWay,
    /// The connection is gone, or the server is going.
    Lost,
    /// It would fail again.
    Lasting,
}

impl Failure {
    pub fn of(error: &postgres::Error) -> Self {
        let Some(code) = error.code() else {
            let is_io = error.source().is_some_and(|source| source.is::<std::io::Error>());
            return if error.is_closed() || is_io { Self::Lost } else { Self::Lasting };
        };
        let in_the_way = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
        ];
        let lost = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            // Whoever is between us and the server has changed the connection under our statements.
            SqlState::INVALID_SQL_STATEMENT_NAME,
        ];
        if in_the_way.contains(code) {
            Self::InTheWay
        } else if lost.contains(code) || code.code().starts_with("08") {
            Self::Lost
        } else {
            Self::Lasting
        }
    }

    pub fn breaks_the_session(&self) -> bool {
        *self == Self::Lost
    }
}

/// What PostgreSQL's failure means at the contract.
pub(super) fn failed(error: postgres::Error) -> StorageError {
    let full = [SqlState::DISK_FULL];
    match error.code() {
        Some(code) if full.contains(code) => return StorageError::Full(error.to_string()),
        // A statement that took longer than it may.
        Some(code) if *code == SqlState::QUERY_CANCELED => return StorageError::Busy,
        _ => {}
    }
    match Failure::of(&error) {
        Failure::InTheWay | Failure::Lost => StorageError::Busy,
        Failure::Lasting => StorageError::Engine(Box::new(error)),
    }
}
