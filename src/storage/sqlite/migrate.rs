use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::OpenError;

/// rollcall's own tables, step by step. A step that was released never changes.
const STEPS: &[&str] = &[
    include_str!("migrations/0001_init.sql"),
    include_str!("migrations/0002_accounts.sql"),
    include_str!("migrations/0003_user_of_owner.sql"),
];

/// Brings rollcall's own tables up to date, each step in a transaction of its own.
///
/// The count of steps is kept in a table and not in `user_version`, which belongs to whichever program
/// shares the file.
pub(super) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let in_file = |error| OpenError::of(path, &error);
    loop {
        // Whoever else starts on this file waits here, then finds the step done.
        let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(in_file)?;
        let done = done(&transaction, path)?;
        let Some(step) = STEPS.get(done) else { return Ok(()) };
        let run = || {
            transaction.execute_batch(step)?;
            transaction
                .execute("UPDATE rollcall_meta SET value = ?1 WHERE name = 'migrations'", [done as i64 + 1])
        };
        run().map_err(in_file)?;
        transaction.commit().map_err(in_file)?;
    }
}

/// How many steps there are.
pub(super) fn known() -> usize {
    STEPS.len()
}

/// How many steps have run on a file: none if rollcall never saw it.
///
/// Errors: [`OpenError::FromNewerRelease`] if they are more than this release knows.
pub(super) fn done(conn: &Connection, path: &Path) -> Result<usize, OpenError> {
    let read = || {
        let asked = "SELECT 1 FROM sqlite_schema WHERE name = 'rollcall_meta'";
        if conn.query_row(asked, [], |_| Ok(())).optional()?.is_none() {
            return Ok(0);
        }
        conn.query_row("SELECT value FROM rollcall_meta WHERE name = 'migrations'", [], |row| row.get(0))
    };
    let (done, known): (i64, _) = (read().map_err(|error| OpenError::of(path, &error))?, STEPS.len());
    match usize::try_from(done) {
        Ok(done) if done <= known => Ok(done),
        _ => Err(OpenError::FromNewerRelease { path: path.to_owned(), done, known }),
    }
}
