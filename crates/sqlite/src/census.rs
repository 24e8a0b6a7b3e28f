use rusqlite::params;

use super::{Sqlite, accounts, txn, values};
use crate::failed;
use rollcall_core::model::{DeviceId, Owner, Timestamp, Version};
use rollcall_core::storage::accounts::Device;
use rollcall_core::storage::census::{Census, Totals};
use rollcall_core::storage::{OwnerState, StorageResult};

const TOTALS: &str =
    "SELECT count(*), coalesce(sum(live_rows), 0), coalesce(sum(live_bytes), 0) FROM rollcall_owner";

const TABLES: &str = "SELECT tbl, sum(live_rows) FROM rollcall_digest GROUP BY tbl";

const STATES: &str =
    "SELECT id, version, horizon, live_rows, live_bytes, seed, shown_ahead, past_tombstones, past_history,
      past_conflicts, past_answers, past_version, members_at, public, erased_at, due_at, owner FROM rollcall_owner
    WHERE owner > ?1 ORDER BY owner LIMIT ?2";

// In key order SQLite would read every row of the owner to sort the groups.
const TOMBSTONES: &str = "SELECT tbl, count(*) FROM rollcall_ledger INDEXED BY rollcall_ledger_tombstones
    WHERE owner = (SELECT id FROM rollcall_owner WHERE owner = ?1) AND deleted = 1 GROUP BY tbl";

const ACKNOWLEDGED: &str = "SELECT device, version, at FROM rollcall_ack
    WHERE owner = (SELECT id FROM rollcall_owner WHERE owner = ?1)";

/// The columns that may hold the newest time, and the milliseconds of one of its units.
const TIMES: [(&str, i64); 5] = [
    ("SELECT max(day) FROM rollcall_day", Timestamp::DAY_MS),
    ("SELECT max(at) FROM rollcall_ack", 1),
    ("SELECT max(at) FROM rollcall_answer", 1),
    ("SELECT max(at) FROM rollcall_conflict", 1),
    ("SELECT max(created_at) FROM rollcall_device", 1),
];

impl Census for Sqlite {
    fn engine(&self) -> &'static str {
        "sqlite"
    }

    fn totals(&self) -> StorageResult<Totals> {
        self.connections.reading(|conn| {
            let conn = conn.transaction().map_err(failed)?; // one snapshot for both
            let count = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let mut totals = conn
                .prepare_cached(TOTALS)
                .map_err(failed)?
                .query_row([], |row| {
                    let (owners, rows, bytes) = (count(row, 0)?, count(row, 1)?, count(row, 2)?);
                    Ok(Totals { owners, rows, bytes, tables: Vec::new() })
                })
                .map_err(failed)?;
            totals.tables = self.by_table(&conn, TABLES, []).map_err(failed)?;
            Ok(totals)
        })
    }

    fn newest_time(&self) -> StorageResult<Option<Timestamp>> {
        self.connections.reading(|conn| {
            let mut newest = None;
            for (sql, unit_ms) in TIMES {
                let found: Option<i64> = conn.query_row(sql, [], |row| row.get(0)).map_err(failed)?;
                newest = newest.max(found.map(|found| Timestamp::from_ms(found.saturating_mul(unit_ms))));
            }
            Ok(newest)
        })
    }

    fn states(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<(Owner, OwnerState)>> {
        self.connections.reading(|conn| states(conn, after, owners_max).map_err(failed))
    }

    fn tombstones(&self, owner: Owner) -> StorageResult<Vec<u64>> {
        self.connections.reading(|conn| self.by_table(conn, TOMBSTONES, [owner.0.as_bytes()]).map_err(failed))
    }

    fn acknowledged(&self, owner: Owner) -> StorageResult<Vec<(DeviceId, Version, Timestamp)>> {
        self.connections.reading(|conn| {
            let mut statement = conn.prepare_cached(ACKNOWLEDGED).map_err(failed)?;
            let devices = statement
                .query_map([owner.0.as_bytes()], |row| {
                    let device = DeviceId(values::uuid(row.get_ref(0)?)?);
                    let version = Version(row.get::<_, i64>(1)?.cast_unsigned());
                    Ok((device, version, Timestamp::from_ms(row.get(2)?)))
                })
                .map_err(failed)?;
            devices.collect::<Result<_, _>>().map_err(failed)
        })
    }

    fn signed_in(&self, owner: Owner) -> StorageResult<Vec<Device>> {
        self.connections.reading(|conn| accounts::devices_of(conn, owner).map_err(failed))
    }

    fn device(&self, device: DeviceId) -> StorageResult<Option<Device>> {
        self.connections.reading(|conn| accounts::device_of_id(conn, device).map_err(failed))
    }
}

/// Owners after `after`, by id, at most `owners_max`.
pub(super) fn states(
    conn: &rusqlite::Connection,
    after: Option<Owner>,
    owners_max: usize,
) -> rusqlite::Result<Vec<(Owner, OwnerState)>> {
    // Every id is greater than the empty blob.
    let after = after.as_ref().map_or(&[][..], |owner| owner.0.as_bytes());
    let mut statement = conn.prepare_cached(STATES)?;
    let limit = i64::try_from(owners_max).unwrap_or(i64::MAX);
    let states = statement.query_map(params![after, limit], |row| {
        Ok((Owner(values::uuid(row.get_ref(16)?)?), txn::state(row)?))
    })?;
    states.collect()
}

impl Sqlite {
    /// Counts by table, in declared order; a table that the schema no longer has is left out.
    fn by_table(
        &self,
        conn: &rusqlite::Connection,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> rusqlite::Result<Vec<u64>> {
        let mut counts = vec![0; self.schema.tables().len()];
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        while let Some(row) = rows.next()? {
            if let Some(place) = self.statements.table(row.get(0)?) {
                counts[place] = row.get::<_, i64>(1)?.cast_unsigned();
            }
        }
        Ok(counts)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::migrate::migrate;
    use crate::statements::tests::steps;

    /// Goal: a console that stays open costs little. Method: the plans of its statements; only the totals,
    /// which are cached, may read every owner.
    #[test]
    fn what_is_asked_of_one_owner_reads_one_owner() {
        let mut conn = Connection::open_in_memory().unwrap();
        migrate(&mut conn, std::path::Path::new("memory")).unwrap();
        for sql in [STATES, TOMBSTONES, ACKNOWLEDGED, accounts::DEVICES_OF_OWNER, accounts::DEVICE_OF_ID] {
            let plan = steps(&conn, sql);
            assert!(!plan.is_empty());
            for step in plan {
                assert!(!step.contains("SCAN"), "{step}\n{sql}");
                // Its groups are the tables, which are few.
                let covering = !step.contains("rollcall_ledger") || step.contains("COVERING INDEX");
                assert!(covering, "{step}\n{sql}");
            }
        }
    }
}
