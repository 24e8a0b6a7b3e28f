//! Whether the database is the one that the last server left, or one that was put back to an earlier time.
//!
//! Whoever puts a database back is to run `rollcall epoch`. If nobody does, a server that starts still sees most ways
//! of it from outside of the data: point-in-time recovery and a standby that took over begin a timeline of their own, a
//! dump that is put into another cluster or database has another identity, and one that is put back in place has made
//! the tables anew. What none of this shows, a snapshot of the whole disk, only devices can see.

use postgres::types::Type;

use super::connections::{Connections, Terms};
use super::session::{Param, Purpose, Session};
use super::{Address, OpenError};
use crate::failure::failed;
use rollcall_core::broken;
use rollcall_core::model::Timestamp;
use rollcall_core::storage::StorageResult;

/// What is noted of a database, each with the statement that gives it. Not every service allows each.
const SIGNS: [(&str, &str); 4] = [
    ("past_system", "SELECT system_identifier FROM pg_control_system()"),
    ("past_timeline", "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint"),
    ("past_database", "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"),
    ("past_table", "SELECT 'rollcall_meta'::regclass::oid::bigint"),
];

const NOTED: &str = "SELECT value FROM rollcall_meta WHERE name = $1";
const NOTE: &str = "INSERT INTO rollcall_meta (name, value) VALUES ($1, $2) \
     ON CONFLICT (name) DO UPDATE SET value = excluded.value";

/// What the database shows, as far as it can be seen: a sign that cannot is left out.
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
    /// Begins a new epoch if the database is not the one that the last server left. Broken off, the next server does it
    /// again: the signs are noted last.
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
        // It notes the signs at its end.
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

    /// Takes the database as it is for the one that the next server is to find.
    pub(super) fn note_signs(address: &Address, terms: &Terms) -> Result<(), OpenError> {
        let mut session = Self::single(address, terms)?;
        let signs = shown(&mut session);
        note(&mut session, &signs).map_err(|error| OpenError::database(address, &error))
    }
}
