use postgres::types::Type;

use super::address::Address;
use super::session::{Purpose, Session};
use super::{OpenError, session::Param};
use crate::failure::failed;
use rollcall_core::storage::StorageResult;

/// The migrations of rollcall's own tables. A released migration never changes. Servers of the release before
/// keep working during and after a migration: it removes only what no supported release needs any more, and
/// then raises `oldest`.
const STEPS: &[&str] = &[
    include_str!("migrations/0001_init.sql"),
    include_str!("migrations/0002_claims.sql"),
    include_str!("migrations/0003_installations.sql"),
    include_str!("migrations/0004_conflict_pages.sql"),
    include_str!("migrations/0005_delete_windows.sql"),
    include_str!("migrations/0006_sightings.sql"),
    include_str!("migrations/0007_past_bytes.sql"),
    include_str!("migrations/0008_dated.sql"),
    include_str!("migrations/0009_mail_tokens.sql"),
    include_str!("migrations/0010_erasures.sql"),
    include_str!("migrations/0011_members.sql"),
    include_str!("migrations/0012_due.sql"),
];

const IS_THERE: &str = "SELECT to_regclass('rollcall_meta') IS NOT NULL";
/// Another process that starts on this database waits here, and then finds the migration done.
const META: &str = "SELECT value FROM rollcall_meta WHERE name = $1 FOR UPDATE";
const COUNT: &str = "UPDATE rollcall_meta SET value = $1 WHERE name = 'migrations'";

/// Brings rollcall's own tables up to date, each migration in a transaction of its own.
pub(super) fn migrate(session: &mut Session, address: &Address) -> Result<(), OpenError> {
    let mut tries = 0;
    loop {
        match step(session, address) {
            Ok(true) => tries = 0,
            Ok(false) => return Ok(()),
            // Two servers that start on an empty database both create the first table; one fails and tries
            // again.
            Err(OpenError::Database { .. }) if tries < 5 && is_there(session).unwrap_or(false) => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Runs the next migration; `false` if there is none.
fn step(session: &mut Session, address: &Address) -> Result<bool, OpenError> {
    let failed = |error| OpenError::database(address, &error);
    let transaction = session.begin(Purpose::Write).map_err(failed)?;
    let done = done(transaction.session, address)?;
    let Some(step) = STEPS.get(done) else { return Ok(false) };
    // One by one: Citus hands the whole text of a change of a table on to its nodes, and takes one change in it.
    for statement in parts(step) {
        transaction.session.batch(&statement).map_err(failed)?;
    }
    let count = done as i64 + 1;
    transaction.session.execute(COUNT, &[(&count, Type::INT8)]).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    Ok(true)
}

/// The statements of a step, without its comments. None of them has a semicolon or two dashes in a text.
fn parts(step: &str) -> Vec<String> {
    let lines = step.lines().map(|line| line.split_once("--").map_or(line, |(before, _)| before));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.split(';').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// How many migrations this release has.
pub(super) fn migrations_known() -> usize {
    STEPS.len()
}

/// How many migrations that this release knows have run: none if the database is new to rollcall.
///
/// Errors: [`OpenError::FromNewerRelease`] if a newer release has removed what this one needs.
pub(super) fn done(session: &mut Session, address: &Address) -> Result<usize, OpenError> {
    let in_database = |error| OpenError::database(address, &error);
    if !is_there(session).map_err(in_database)? {
        return Ok(0);
    }
    let mut value = |name: &str| -> StorageResult<i64> {
        let params: [Param<'_>; 1] = [(&name, Type::TEXT)];
        session.row(META, &params)?.map_or(Ok(0), |row| row.try_get(0)).map_err(failed)
    };
    let (done, oldest) = (value("migrations").map_err(in_database)?, value("oldest").map_err(in_database)?);
    let known = STEPS.len();
    if oldest > known as i64 {
        return Err(OpenError::FromNewerRelease { address: address.to_string(), oldest, known });
    }
    Ok(usize::try_from(done).unwrap_or_default().min(known))
}

pub(super) fn is_there(session: &mut Session) -> StorageResult<bool> {
    session.row(IS_THERE, &[])?.map_or(Ok(false), |row| row.try_get(0)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_taken_apart_into_its_statements() {
        let begins = [
            "CREATE TABLE ",
            "CREATE INDEX ",
            "CREATE UNIQUE INDEX ",
            "ALTER TABLE ",
            "DROP TABLE ",
            "INSERT INTO ",
            "UPDATE ",
        ];
        for step in STEPS {
            let parts = parts(step);
            assert!(!parts.is_empty());
            for part in &parts {
                assert!(begins.iter().any(|begin| part.starts_with(begin)), "{part}");
                assert!(!part.contains("$$") && !part.contains(" ADD COLUMN\n"), "{part}");
                assert_eq!(part.matches('\'').count() % 2, 0, "{part}");
            }
        }
        let of = "-- a; b\nCREATE TABLE a (x INT); -- c;\nALTER TABLE a ADD COLUMN y INT;\n";
        assert_eq!(parts(of), ["CREATE TABLE a (x INT)", "ALTER TABLE a ADD COLUMN y INT"]);
    }
}
