use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::OpenError;

/// The migrations of rollcall's own tables. A released migration never changes.
const STEPS: &[&str] = &[
    include_str!("migrations/0001_init.sql"),
    include_str!("migrations/0002_accounts.sql"),
    include_str!("migrations/0003_user_of_owner.sql"),
    include_str!("migrations/0004_unchecked_numbers.sql"),
    include_str!("migrations/0005_claims.sql"),
    include_str!("migrations/0006_installations.sql"),
    include_str!("migrations/0007_conflict_pages.sql"),
    include_str!("migrations/0008_delete_windows.sql"),
    include_str!("migrations/0009_sightings.sql"),
    include_str!("migrations/0010_past_bytes.sql"),
    include_str!("migrations/0011_mail_tokens.sql"),
    include_str!("migrations/0012_erasures.sql"),
    include_str!("migrations/0013_members.sql"),
    include_str!("migrations/0014_due.sql"),
];

/// Brings rollcall's own tables up to date, each migration in a transaction of its own.
///
/// Their number is stored in a table and not in `user_version`, which belongs to the program that shares the
/// file.
pub(super) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let in_file = |error| OpenError::of(path, &error);
    loop {
        // Another process that starts on this file waits here, and then finds the migration done.
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

/// How many migrations this release has.
pub(super) fn migrations_known() -> usize {
    STEPS.len()
}

/// How many migrations have run on a file: none if it is new to rollcall.
///
/// Errors: [`OpenError::FromNewerRelease`] if there are more than this release knows.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Goal: a file of an earlier release keeps its contents. Method: one file for each migration, with an
    /// owner's row if it has the tables for one.
    #[test]
    fn files_of_earlier_releases_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        for steps in 1..=STEPS.len() {
            let path = dir.path().join(format!("{steps}.db"));
            let mut conn = Connection::open(&path).unwrap();
            conn.pragma_update(None, "foreign_keys", true).unwrap();
            STEPS[..steps].iter().for_each(|step| conn.execute_batch(step).unwrap());
            conn.execute_batch(
                "INSERT INTO rollcall_owner (id, owner, version, horizon, live_rows, live_bytes, seed)
                   VALUES (1, x'07', 5, 1, 1, 10, x'08');
                 INSERT INTO rollcall_table VALUES (2, 'guests');
                 INSERT INTO rollcall_writer VALUES (3, x'09');
                 INSERT INTO rollcall_digest VALUES (1, 2, 1, 77);
                 INSERT INTO rollcall_day VALUES (1, 20000, 1);
                 INSERT INTO rollcall_ledger (owner, tbl, key, version, created, last_update, deleted, made_by, changed_by)
                   VALUES (1, 2, x'0a', 5, 5, 1000, 0, 3, 3)",
            )
            .unwrap();
            conn.execute("UPDATE rollcall_meta SET value = ?1 WHERE name = 'migrations'", [steps as i64])
                .unwrap();

            migrate(&mut conn, &path).unwrap();
            for conn in [conn, Connection::open(&path).unwrap()] {
                assert_eq!(done(&conn, &path).unwrap(), STEPS.len());
                let one = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
                assert_eq!(one("PRAGMA integrity_check"), "ok");
                assert_eq!(
                    one("SELECT concat_ws(' ', l.version, l.last_update, d.root, y.version, count(*))
                         FROM rollcall_ledger l, rollcall_digest d, rollcall_day y"),
                    "5 1000 77 1 1"
                );
                let looked_up =
                    "SELECT concat(count(*)) FROM sqlite_schema s, pragma_foreign_key_list(s.name)
                    WHERE s.name IN ('rollcall_ledger', 'rollcall_digest', 'rollcall_day')";
                assert_eq!(one(looked_up), "0");
                // The schema table must not be writable any more.
                assert!(conn.execute("UPDATE sqlite_schema SET sql = sql", []).is_err());
            }
        }
    }

    /// Goal: a user who could sync an owner's rows still can. Method: a file of before there were members; one user alone,
    /// two who share an owner, and two who share one that nothing was written for.
    #[test]
    fn users_of_earlier_releases_become_members() {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.pragma_update(None, "foreign_keys", true).unwrap();
        STEPS[..12].iter().for_each(|step| conn.execute_batch(step).unwrap());
        conn.execute_batch(
            "UPDATE rollcall_meta SET value = 12 WHERE name = 'migrations';
             UPDATE rollcall_meta SET value = 2 WHERE name = 'epoch';
             INSERT INTO rollcall_user (id, email, password_hash, owner, created_at) VALUES
               (x'00000000000000000000000000000001', 'alone', '', x'00000000000000000000000000000001', 50),
               (x'00000000000000000000000000000002', 'guest', '', x'00000000000000000000000000000003', 70),
               (x'00000000000000000000000000000003', 'host', '', x'00000000000000000000000000000003', 60),
               (x'00000000000000000000000000000004', 'first', '', x'0000000000000000000000000000000f', 80),
               (x'00000000000000000000000000000005', 'second', '', x'0000000000000000000000000000000f', 80);
             INSERT INTO rollcall_owner (owner, version, horizon, live_rows, live_bytes, seed) VALUES
               (x'00000000000000000000000000000001', 7, 1, 0, 0, zeroblob(16)), (x'00000000000000000000000000000003', 9, 1, 0, 0, zeroblob(16)),
               (x'00000000000000000000000000000004', 5, 1, 0, 0, zeroblob(16));
             INSERT INTO rollcall_erasure (owner, since) VALUES (x'00000000000000000000000000000004', 40)",
        )
        .unwrap();
        migrate(&mut conn, Path::new("memory")).unwrap();
        let lines = |sql: &str| -> Vec<String> {
            let mut statement = conn.prepare(sql).unwrap();
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(
            lines(
                "SELECT concat_ws(' ', u.email, u.home, m.role, m.joined_at, hex(m.owner) = hex(u.owner))
                 FROM rollcall_user u JOIN rollcall_member m ON m.user_id = u.id ORDER BY u.id"
            ),
            ["alone 1 3 50 1", "guest 0 2 70 1", "host 1 3 60 1", "first 1 3 80 1", "second 0 2 80 1"]
        );
        // The roles of those who share an owner are to be read; what one user has alone is as it was.
        assert_eq!(
            lines(
                "SELECT concat_ws(' ', version, members_at, length(seed)) FROM rollcall_owner ORDER BY owner"
            ),
            [
                "7 0 16".to_owned(),
                "9 9 16".to_owned(),
                "5 0 16".to_owned(),
                format!("{0} {0} 16", (2_u64 << 40) | 1)
            ]
        );
        assert_eq!(lines("SELECT concat(count(*)) FROM rollcall_member"), ["5"]);
        let erased =
            "SELECT concat_ws(' ', version, erased_at) FROM rollcall_owner WHERE erased_at IS NOT NULL";
        assert_eq!(lines(erased), ["5 40"], "rows that were to go still are");
    }
}
