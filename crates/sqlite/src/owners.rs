//! The owners of a file, and when each is due for a purge.

use rusqlite::{OptionalExtension, Row, params};

use super::{Connections, statements, values};
use crate::failed;
use rollcall_core::model::{Owner, Timestamp};
use rollcall_core::storage::{DueOwner, Owners, StorageResult};

fn owner(row: &Row<'_>, at: usize) -> rusqlite::Result<Owner> {
    Ok(Owner(values::uuid(row.get_ref(at)?)?))
}

impl Owners for Connections {
    fn page(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<Owner>> {
        // Every id is greater than the empty blob.
        let after = after.as_ref().map_or(&[][..], |owner| owner.0.as_bytes());
        self.reading(|conn| {
            let mut statement = conn.prepare_cached(statements::OWNERS).map_err(failed)?;
            let owners = statement
                .query_map(params![after, owners_max as i64], |row| owner(row, 0))
                .map_err(failed)?;
            owners.collect::<Result<_, _>>().map_err(failed)
        })
    }

    fn due(
        &self,
        now: Timestamp,
        after: Option<DueOwner>,
        owners_max: usize,
    ) -> StorageResult<Vec<DueOwner>> {
        let (at, id) = after.as_ref().map_or((i64::MIN, &[][..]), |(at, id)| (at.ms(), id.0.as_bytes()));
        self.reading(|conn| {
            let mut statement = conn.prepare_cached(statements::DUE_OWNERS).map_err(failed)?;
            let due = statement
                .query_map(params![now.ms(), at, id, owners_max as i64], |row| {
                    Ok((Timestamp::from_ms(row.get(0)?), owner(row, 1)?))
                })
                .map_err(failed)?;
            due.collect::<Result<_, _>>().map_err(failed)
        })
    }

    fn due_by(&self) -> StorageResult<Option<i64>> {
        self.reading(|conn| {
            conn.query_row(statements::DUE_BY, [], |row| row.get(0)).optional().map_err(failed)
        })
    }

    fn set_due_by(&self, fingerprint: i64) -> StorageResult<()> {
        self.writing(|conn| conn.execute(statements::SET_DUE_BY, [fingerprint])).map(drop)
    }
}
