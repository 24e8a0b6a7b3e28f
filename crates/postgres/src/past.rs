//! Detects whether the database is the one that the last server left, or one that was put back to an earlier
//! time.
//!
//! An operator who puts a database back should run `rollcall epoch`. If that is forgotten, a starting server
//! still detects most cases from outside of the data. Point-in-time recovery and a promoted standby begin a
//! new timeline. A dump that is restored into another cluster or database has another identity, and one that
//! is restored in place has created the tables again. None of this detects a snapshot of the whole disk: only
//! devices can.

use postgres::types::Type;

use super::connections::{Connections, Terms};
use super::session::{Param, Purpose, Session};
use super::{Address, OpenError};
use crate::failure::failed;
use rollcall_core::broken;
use rollcall_core::model::Timestamp;
use rollcall_core::storage::StorageResult;

/// The signs that are stored of a database, each with its statement. Not every service permits each of them.
const SIGNS: [(&str, &str); 4] = [
    ("past_system", "SELECT system_identifier FROM pg_control_system()"),
    ("past_timeline", "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint"),
    ("past_database", "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"),
    ("past_table", "SELECT 'rollcall_meta'::regclass::oid::bigint"),
];

const NOTED: &str = "SELECT value FROM rollcall_meta WHERE name = $1";
const NOTE: &str = "INSERT INTO rollcall_meta (name, value) VALUES ($1, $2) \
     ON CONFLICT (name) DO UPDATE SET value = excluded.value";

/// The database's present signs; one that cannot be read is left out.
fn shown(session: &mut Session) -> Vec<(&'static str, i64)> {
    let mut signs = Vec::new();
    for (name, sql) in SIGNS {
        match session
            .row(sql, &[])
            .and_then(|row| row.map(|row| row.try_get::<_, i64>(0)).transpose().map_err(failed))
        {
            Ok(Some(value)) => signs.push((name, value)),
            Ok(None) => {}
            Err(error) => tracing::debug!(name, %error, "the database does not show this"),
        }
        session.forget_failure();
    }
    signs
}

fn noted(session: &mut Session, name: &str) -> StorageResult<Option<i64>> {
    let params: [Param<'_>; 1] = [(&name, Type::TEXT)];
    session.row(NOTED, &params)?.map(|row| row.try_get(0)).transpose().map_err(failed)
}

fn note(session: &mut Session, signs: &[(&'static str, i64)]) -> StorageResult<()> {
    let transaction = session.begin(Purpose::Write)?;
    for (name, value) in signs {
        if noted(transaction.session, name)? != Some(*value) {
            let params: [Param<'_>; 2] = [(name, Type::TEXT), (value, Type::INT8)];
            transaction.session.execute(NOTE, &params)?;
        }
    }
    transaction.commit()
}

impl Connections {
    /// Begins a new epoch if the database is not the one that the last server left. If this is interrupted,
    /// the next server does it again: the signs are stored last.
    pub(super) fn notice(address: &Address, terms: &Terms, now: Timestamp) -> Result<(), OpenError> {
        let failed = |error| OpenError::database(address, &error);
        let mut session = Self::single(address, terms)?;
        let signs = shown(&mut session);
        let mut changed = Vec::new();
        for (name, value) in &signs {
            let known = noted(&mut session, name).map_err(failed)?;
            if known.is_some_and(|known| known != *value) && !broken::is("restore_unnoticed") {
                changed.push(*name);
            }
        }
        if changed.is_empty() {
            return note(&mut session, &signs).map_err(failed);
        }
        drop(session);
        // It stores the signs at its end.
        let (epoch, owners) = Self::begin_epoch(address, terms, None, now, &mut |_| {})?;
        tracing::warn!(
            signs = changed.join(", "),
            epoch,
            owners,
            "the database was put back to an earlier time, or moved: a new epoch begins, and devices put back what it \
             lacks"
        );
        Ok(())
    }

    /// Stores the database's present signs for the next server.
    pub(super) fn note_signs(address: &Address, terms: &Terms) -> Result<(), OpenError> {
        let mut session = Self::single(address, terms)?;
        let signs = shown(&mut session);
        note(&mut session, &signs).map_err(|error| OpenError::database(address, &error))
    }
}
