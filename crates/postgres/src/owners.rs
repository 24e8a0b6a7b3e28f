//! The owners of a database, and when each is due for a purge.

use postgres::types::Type;
use uuid::Uuid;

use super::failure::failed;
use super::session::Param;
use super::{Connections, statements};
use rollcall_core::model::{Owner, Timestamp};
use rollcall_core::storage::{DueOwner, Owners, StorageResult};

impl Owners for Connections {
    fn page(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Owner>> {
        let from = match after {
            None => Uuid::nil(),
            Some(after) => match after.0.as_u128().checked_add(1) {
                Some(next) => Uuid::from_u128(next),
                None => return Ok(Vec::new()),
            },
        };
        let limit = i64::try_from(owners_max).unwrap_or(i64::MAX);
        let rows = self.with_retry(|session| {
            session.query(statements::OWNERS, &[(&from, Type::UUID), (&limit, Type::INT8)])
        })?;
        rows.iter().map(|row| Ok(Owner(row.try_get(0).map_err(failed)?))).collect()
    }

    fn due(
        &self,
        now: Timestamp,
        after: Option<DueOwner>,
        owners_max: usize,
    ) -> StorageResult<Vec<DueOwner>> {
        let (at, id) = after.map_or((i64::MIN, Uuid::nil()), |(at, owner)| (at.ms(), owner.0));
        let limit = i64::try_from(owners_max).unwrap_or(i64::MAX);
        let now = now.ms();
        let params: [Param<'_>; 4] =
            [(&now, Type::INT8), (&at, Type::INT8), (&id, Type::UUID), (&limit, Type::INT8)];
        let rows = self.with_retry(|session| session.query(statements::DUE_OWNERS, &params))?;
        let due = rows.iter().map(|row| {
            let at = Timestamp::from_ms(row.try_get(0).map_err(failed)?);
            Ok((at, Owner(row.try_get(1).map_err(failed)?)))
        });
        due.collect()
    }

    fn due_by(&self) -> StorageResult<Option<i64>> {
        let row = self.with_retry(|session| session.row(statements::DUE_BY, &[]))?;
        row.map(|row| row.try_get(0)).transpose().map_err(failed)
    }

    fn set_due_by(&self, fingerprint: i64) -> StorageResult<()> {
        let params: [Param<'_>; 1] = [(&fingerprint, Type::INT8)];
        self.with_retry(|session| session.execute(statements::SET_DUE_BY, &params)).map(drop)
    }
}
