use postgres::types::Type;
use uuid::Uuid;

use super::connections::Connections;
use super::session::{Param, Purpose, Session};
use super::{Postgres, statements, txn};
use crate::failure::failed;
use rollcall_core::model::{DeviceId, Owner, Timestamp, Version};
use rollcall_core::storage::accounts::Device;
use rollcall_core::storage::census::{Census, Totals};
use rollcall_core::storage::{OwnerState, StorageResult};

/// The columns that may hold the newest time, and the milliseconds of one of its units. One statement for
/// each table, since tables are sharded.
const TIMES: [(&str, i64); 5] = [
    ("SELECT max(day) FROM rollcall_day", Timestamp::DAY_MS),
    ("SELECT max(at) FROM rollcall_ack", 1),
    ("SELECT max(at) FROM rollcall_answer", 1),
    ("SELECT max(at) FROM rollcall_conflict", 1),
    ("SELECT max(created_at) FROM rollcall_device", 1),
];

impl Census for Postgres {
    fn engine(&self) -> &'static str {
        "postgres"
    }

    fn totals(&self) -> StorageResult<Totals> {
        self.connections.with_retry(|session| {
            let transaction = session.begin(Purpose::Survey)?; // one snapshot for both
            let Some(row) = transaction.session.row(statements::TOTALS, &[])? else {
                return Ok(Totals::default());
            };
            let count = |at| row.try_get::<_, i64>(at).map(i64::cast_unsigned);
            let (owners, rows, bytes) =
                (count(0).map_err(failed)?, count(1).map_err(failed)?, count(2).map_err(failed)?);
            let tables = self.by_table(transaction.session, statements::TABLES, &[])?;
            Ok(Totals { owners, rows, bytes, tables })
        })
    }

    fn newest_time(&self) -> StorageResult<Option<Timestamp>> {
        self.connections.with_retry(|session| {
            let transaction = session.begin(Purpose::Survey)?;
            let mut newest = None;
            for (sql, unit_ms) in TIMES {
                let row = transaction.session.row(sql, &[])?;
                let found =
                    row.map(|row| row.try_get::<_, Option<i64>>(0)).transpose().map_err(failed)?.flatten();
                newest = newest.max(found.map(|found| Timestamp::from_ms(found.saturating_mul(unit_ms))));
            }
            Ok(newest)
        })
    }

    fn states(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<(Owner, OwnerState)>> {
        self.connections.states(after, owners_max)
    }

    fn tombstones(&self, owner: Owner) -> StorageResult<Vec<u64>> {
        let params: [Param<'_>; 1] = [(&owner.0, Type::UUID)];
        self.connections.with_retry(|session| self.by_table(session, statements::TOMBSTONES, &params))
    }

    fn acknowledged(&self, owner: Owner) -> StorageResult<Vec<(DeviceId, Version, Timestamp)>> {
        let params: [Param<'_>; 1] = [(&owner.0, Type::UUID)];
        let rows = self.connections.with_retry(|session| session.query(statements::ACKNOWLEDGED, &params))?;
        rows.iter()
            .map(|row| {
                let version = Version(row.try_get::<_, i64>(1).map_err(failed)?.cast_unsigned());
                Ok((
                    DeviceId(row.try_get(0).map_err(failed)?),
                    version,
                    Timestamp::from_ms(row.try_get(2).map_err(failed)?),
                ))
            })
            .collect()
    }

    fn signed_in(&self, owner: Owner) -> StorageResult<Vec<Device>> {
        self.connections.devices_of_owner(owner)
    }

    fn device(&self, device: DeviceId) -> StorageResult<Option<Device>> {
        self.connections.device_of_id(device)
    }
}

impl Connections {
    /// Owners after `after`, by id, at most `owners_max`.
    pub(super) fn states(
        &self,
        after: Option<Owner>,
        owners_max: usize,
    ) -> StorageResult<Vec<(Owner, OwnerState)>> {
        let Some(from) = after.map_or(Some(Uuid::nil()), |after| txn::successor(after.0)) else {
            return Ok(Vec::new());
        };
        let limit = i64::try_from(owners_max).unwrap_or(i64::MAX);
        let params: [Param<'_>; 2] = [(&from, Type::UUID), (&limit, Type::INT8)];
        let rows = self.with_retry(|session| session.query(statements::STATES, &params))?;
        rows.iter().map(|row| Ok((Owner(row.try_get(22).map_err(failed)?), txn::state_of(row)?))).collect()
    }
}

impl Postgres {
    /// Counts by table, in declared order.
    fn by_table(&self, session: &mut Session, sql: &str, params: &[Param<'_>]) -> StorageResult<Vec<u64>> {
        let mut counts = vec![0; self.schema.tables().len()];
        for row in session.query(sql, params)? {
            if let Some(place) = self.statements.table(row.try_get(0).map_err(failed)?) {
                counts[place] = row.try_get::<_, i64>(1).map_err(failed)?.cast_unsigned();
            }
        }
        Ok(counts)
    }
}
