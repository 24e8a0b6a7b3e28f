//! What a failure means, by its code and never by its text.

use std::error::Error;

use postgres::error::{Severity, SqlState};

use rollcall_core::storage::StorageError;

/// Why a statement failed, as far as this decides what is tried next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Another transaction conflicted: another attempt may succeed.
    InTheWay,
    /// The server works, but cannot reach a node that the statement needs. The session remains usable.
    Away,
    /// The server takes no writes: a standby, or one that was the primary.
    ReadOnly,
    /// The connection is lost, or the server is shutting down.
    Lost,
    /// A statement took longer than it may: what it waits for does not answer.
    TooLong,
    /// It would fail again.
    Lasting,
}

impl Failure {
    pub fn of(error: &postgres::Error) -> Self {
        let Some(error) = error.as_db_error() else {
            let is_io = error.source().is_some_and(|source| source.is::<std::io::Error>());
            return if error.is_closed() || is_io { Self::Lost } else { Self::Lasting };
        };
        // A failure that ends the session has another severity. A node's shutdown arrives as an ERROR of the
        // coordinator.
        let goes_on = error.parsed_severity() == Some(Severity::Error);
        Self::of_code(error.code(), goes_on)
    }

    /// Classifies a code; `goes_on` is whether the session survives.
    fn of_code(code: &SqlState, goes_on: bool) -> Self {
        let in_the_way = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
        ];
        let going = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ];
        if in_the_way.contains(code) {
            Self::InTheWay
        } else if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
            Self::ReadOnly
        } else if *code == SqlState::INVALID_SQL_STATEMENT_NAME {
            Self::Lost // a pooler has switched the connection between statements
        } else if *code == SqlState::QUERY_CANCELED {
            Self::TooLong
        } else if going.contains(code) || code.code().starts_with("08") {
            if goes_on { Self::Away } else { Self::Lost }
        } else {
            Self::Lasting
        }
    }

    pub fn breaks_the_session(self) -> bool {
        matches!(self, Self::Lost | Self::ReadOnly)
    }

    /// Whether another attempt may succeed.
    pub fn may_pass(self) -> bool {
        !matches!(self, Self::Lasting | Self::TooLong)
    }
}

/// Converts PostgreSQL's error to that of the storage contract.
pub(super) fn failed(error: postgres::Error) -> StorageError {
    let full = [SqlState::DISK_FULL];
    match error.code() {
        Some(code) if full.contains(code) => return StorageError::Full(error.to_string()),
        _ => {}
    }
    match Failure::of(&error) {
        Failure::Lasting => StorageError::Engine(Box::new(error)),
        _ => StorageError::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_living_server_keeps_the_session() {
        let of = |code: &str, goes_on| Failure::of_code(&SqlState::from_code(code), goes_on);
        for code in ["08000", "08006", "08P01", "57P01", "57P02", "57P03"] {
            assert_eq!(of(code, true), Failure::Away, "{code}");
            assert_eq!(of(code, false), Failure::Lost, "{code}");
        }
        assert!(!Failure::Away.breaks_the_session() && Failure::Away.may_pass());
        assert_eq!(of("26000", true), Failure::Lost, "a pooler's");
        assert_eq!(of("25006", true), Failure::ReadOnly);
        assert!(Failure::ReadOnly.breaks_the_session() && Failure::ReadOnly.may_pass());
        assert_eq!(of("40001", true), Failure::InTheWay);
        assert_eq!(of("42P01", true), Failure::Lasting);
        assert_eq!(of("57014", true), Failure::TooLong);
        assert!(!Failure::TooLong.may_pass(), "what was cancelled once takes as long again");
    }
}
