//! Leases in the owners' rows. The time is read first, always from the server that the session is connected
//! to. Then each method runs one statement, which waits for a concurrent write of the owner.

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::connections::Connections;
use super::session::Param;
use super::{statements, txn};
use crate::failure::failed;
use rollcall_core::model::{DeviceId, Fence, Owner, Timestamp};
use rollcall_core::storage::{LeaseListener, LeaseState, LeaseStore, LeaseTerms, StorageResult};

impl LeaseStore for Connections {
    fn look(&self, owner: Owner) -> StorageResult<Option<LeaseState>> {
        self.for_owner(owner, |session| {
            let now = session.now()?;
            let row = session.row(statements::LEASE, &[(&owner.0, Type::UUID)])?;
            row.map(|row| lease(&row, now)).transpose()
        })
    }

    fn held_now(&self, leases_max: usize) -> StorageResult<Vec<(Owner, LeaseState)>> {
        let limit = i64::try_from(leases_max).unwrap_or(i64::MAX);
        self.with_retry(|session| {
            let now = session.now()?;
            let rows = session.query(statements::LEASES, &[(&limit, Type::INT8), (&now, Type::INT8)])?;
            rows.iter().map(|row| Ok((Owner(row.try_get(5).map_err(failed)?), lease(row, now)?))).collect()
        })
    }

    fn take(
        &self,
        owner: Owner,
        device: DeviceId,
        name: &str,
        fence: Option<Fence>,
        terms: LeaseTerms,
    ) -> StorageResult<Option<LeaseState>> {
        let fence = fence.map(|fence| fence.0.cast_signed());
        let taken = self.for_owner(owner, |session| {
            let now = session.now()?;
            let params: [Param<'_>; 7] = [
                (&owner.0, Type::UUID),
                (&device.0, Type::UUID),
                (&name, Type::TEXT),
                (&terms.lease_ms, Type::INT8),
                (&fence, Type::INT8),
                (&terms.hold_ms, Type::INT8),
                (&now, Type::INT8),
            ];
            let mut taken = session.row(statements::TAKE_LEASE, &params)?;
            if taken.is_none() && session.row(statements::LEASE, &params[..1])?.is_none() {
                txn::make(session, owner)?;
                taken = session.row(statements::TAKE_LEASE, &params)?;
            }
            taken.map(|row| lease(&row, now)).transpose()
        })?;
        // A lease that began before was renewed, which is not reported.
        taken
            .iter()
            .filter(|lease| lease.since == lease.now)
            .for_each(|lease| self.notify.taken(owner, lease));
        Ok(taken)
    }

    fn renew(&self, owner: Owner, device: DeviceId, terms: LeaseTerms, below_ms: i64) -> StorageResult<()> {
        self.for_owner(owner, |session| {
            let now = session.now()?;
            let params: [Param<'_>; 6] = [
                (&owner.0, Type::UUID),
                (&device.0, Type::UUID),
                (&terms.lease_ms, Type::INT8),
                (&below_ms, Type::INT8),
                (&terms.hold_ms, Type::INT8),
                (&now, Type::INT8),
            ];
            session.execute(statements::RENEW_LEASE, &params)
        })
        .map(drop)
    }

    fn cut(&self, owner: Owner, lease_ms: i64) -> StorageResult<()> {
        self.for_owner(owner, |session| {
            let now = session.now()?;
            let params: [Param<'_>; 3] =
                [(&owner.0, Type::UUID), (&lease_ms, Type::INT8), (&now, Type::INT8)];
            session.execute(statements::CUT_LEASE, &params)
        })
        .map(drop)
    }

    fn give_back(&self, owner: Owner, device: DeviceId) -> StorageResult<()> {
        let params: [Param<'_>; 2] = [(&owner.0, Type::UUID), (&device.0, Type::UUID)];
        self.ended(owner, statements::GIVE_LEASE_BACK, &params)
    }

    fn break_open(&self, owner: Owner) -> StorageResult<()> {
        self.ended(owner, statements::BREAK_LEASE, &[(&owner.0, Type::UUID)])
    }

    fn on_changed(&self, listener: LeaseListener) {
        self.notify.on_leased(listener);
    }
}

impl Connections {
    fn ended(&self, owner: Owner, sql: &str, params: &[Param<'_>]) -> StorageResult<()> {
        if self.for_owner(owner, |session| session.execute(sql, params))? > 0 {
            self.notify.freed(owner);
        }
        Ok(())
    }
}

/// Reads the lease in the first columns of a row, at a time in ms.
pub(super) fn lease(row: &Row, now: i64) -> StorageResult<LeaseState> {
    Ok(LeaseState {
        fence: Fence(row.try_get::<_, i64>(0).map_err(failed)?.cast_unsigned()),
        holder: row.try_get::<_, Option<Uuid>>(1).map_err(failed)?.map(DeviceId),
        holder_name: row.try_get(2).map_err(failed)?,
        since: Timestamp::from_ms(row.try_get(3).map_err(failed)?),
        until: row.try_get::<_, Option<i64>>(4).map_err(failed)?.map(Timestamp::from_ms),
        now: Timestamp::from_ms(now),
    })
}
