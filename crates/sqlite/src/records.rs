//! What is stored in addition to the rows: replaced states, conflicts, responses.

use rusqlite::types::{FromSqlError, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::quota::forgotten;
use super::statements::{self, Statements};
use super::values;
use crate::failed;
use rollcall_core::model::{DeviceId, EarlierState, RowKey, Stored, Timestamp, Value, Version};
use rollcall_core::schema::{Schema, Table};
use rollcall_core::storage::records::{
    ConflictListing, policy, read_base, read_columns, record_bytes, resolution, write_base, write_columns,
};
use rollcall_core::storage::states::{PartialState, read_state};
use rollcall_core::storage::{
    Conflict, ConflictPage, Replaced, ResponsesMax, Side, StorageResult, StoredResponse, WantedConflicts,
};

/// The records of one owner.
pub(super) struct Records<'a> {
    pub conn: &'a Connection,
    pub schema: &'a Schema,
    pub statements: &'a Statements,
    pub owner: i64,
}

impl Records<'_> {
    /// Returns how many bytes the history has grown by.
    pub fn remember(&self, table: &Table, rows: &[Replaced<'_>], states_max: usize) -> StorageResult<i64> {
        let mut grown = 0;
        if rows.is_empty() {
            return Ok(grown);
        }
        let tbl = self.statements.of(table.id).id;
        let mut remember = self.conn.prepare_cached(statements::REMEMBER).map_err(failed)?;
        for replaced in rows {
            let Some(columns) = replaced.written(table) else { continue };
            let (key, row) = (replaced.key.0.as_bytes(), replaced.before);
            let version = row.version.0.cast_signed();
            let (at, by) = (row.last_update.ms(), row.changed_by.0.as_bytes());
            let (made, claimed) = (row.made_at.map(Timestamp::ms), row.claim.at.map(Timestamp::ms));
            let new = remember
                .execute(params![self.owner, tbl, key, version, at, by, columns, made, claimed])
                .map_err(failed)?;
            grown += if new > 0 { record_bytes([columns.as_str()]) } else { 0 };
            grown -= self.forget_surplus(tbl, replaced.key, states_max).map_err(failed)?;
        }
        Ok(grown)
    }

    /// Forgets the states of a row beyond the newest `states_max`; returns how many bytes they took.
    fn forget_surplus(&self, tbl: i64, key: RowKey, states_max: usize) -> rusqlite::Result<i64> {
        let key = key.0.as_bytes();
        let mut surplus = self.conn.prepare_cached(statements::SURPLUS_STATES)?;
        let mut rows = surplus.query(params![self.owner, tbl, key, states_max as i64])?;
        let (mut latest, mut bytes) = (None, 0);
        while let Some(row) = rows.next()? {
            latest = Some(latest.map_or_else(|| row.get::<_, i64>(0), Ok)?);
            bytes += row.get::<_, i64>(1)?;
        }
        if let Some(latest) = latest {
            let mut forget = self.conn.prepare_cached(statements::FORGET_STATES)?;
            forget.execute(params![self.owner, tbl, key, latest])?;
        }
        Ok(bytes)
    }

    /// The states up to the first that shares a value with one that was not kept.
    pub fn earlier(
        &self,
        table: &Table,
        key: RowKey,
        stored: Option<&Stored>,
    ) -> StorageResult<Vec<EarlierState>> {
        let tbl = self.statements.of(table.id).id;
        let mut statement = self.conn.prepare_cached(statements::STATES).map_err(failed)?;
        let mut rows = statement.query(params![self.owner, tbl, key.0.as_bytes()]).map_err(failed)?;
        let mut states: Vec<EarlierState> = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let next = states.last().map(|state| state.values.as_slice());
            let next = next.or_else(|| stored.and_then(|row| row.values.as_deref()));
            let Some((state, partial)) = state_of(table, row, next).map_err(failed)? else { break };
            let Some(values) = partial.complete(|id| self.conflict(id))? else { break };
            states.push(EarlierState { values, ..state });
        }
        Ok(states)
    }

    /// Returns how many bytes the conflict takes; 0 if it was stored already.
    pub fn note_conflict(&self, conflict: &Conflict) -> StorageResult<i64> {
        let table = self.schema.at(conflict.table);
        let side = |side: &Side| side.values.as_ref().map(|values| write_columns(table, values));
        let (base, stored) = (write_base(table, conflict), side(&conflict.stored));
        let incoming = side(&conflict.incoming);
        let new = self
            .conn
            .prepare_cached(statements::NOTE_CONFLICT)
            .map_err(failed)?
            .execute(params![
                self.owner,
                conflict.id.as_bytes(),
                conflict.at.ms(),
                self.statements.of(conflict.table).id,
                conflict.key.0.as_bytes(),
                conflict.policy.name(),
                conflict.resolution.name(),
                base,
                stored,
                conflict.stored.last_update.ms(),
                conflict.stored.device.0.as_bytes(),
                incoming,
                conflict.incoming.last_update.ms(),
                conflict.incoming.device.0.as_bytes(),
                conflict.stored_made_at.map(Timestamp::ms),
            ])
            .map_err(failed)?;
        let texts = [&base, &stored, &incoming].into_iter().flatten();
        Ok(if new > 0 { record_bytes(texts.map(String::as_str)) } else { 0 })
    }

    pub fn note_restored(&self, id: Uuid, at: Timestamp) -> StorageResult<()> {
        let mut statement = self.conn.prepare_cached(statements::NOTE_RESTORED).map_err(failed)?;
        statement.execute(params![self.owner, id.as_bytes(), at.ms()]).map_err(failed)?;
        Ok(())
    }

    pub fn conflicts(&self, wanted: &WantedConflicts) -> StorageResult<ConflictPage> {
        let (at, id) = wanted.after.map_or((i64::MAX, Uuid::max()), |(at, id)| (at.ms(), id));
        let prepared = |sql| self.conn.prepare_cached(sql);
        let mut statement;
        // Tables may share rows of one key, but few: the page leaves out those of other tables.
        let mut rows = match (wanted.key, wanted.table) {
            (Some(key), _) => {
                statement = prepared(statements::CONFLICTS_OF_KEY).map_err(failed)?;
                statement.query(params![self.owner, at, id.as_bytes(), key.0.as_bytes()])
            }
            (None, Some(table)) => {
                statement = prepared(statements::CONFLICTS_OF_TABLE).map_err(failed)?;
                statement.query(params![self.owner, at, id.as_bytes(), self.statements.of(table).id])
            }
            (None, None) => {
                statement = prepared(statements::CONFLICTS).map_err(failed)?;
                statement.query(params![self.owner, at, id.as_bytes()])
            }
        }
        .map_err(failed)?;
        let mut listing = ConflictListing::new(wanted);
        while let Some(row) = rows.next().map_err(failed)? {
            if listing.is_full() {
                return Ok(listing.end(true));
            }
            let id = values::uuid(row.get_ref(0).map_err(failed)?)
                .map_err(rusqlite::Error::from)
                .map_err(failed)?;
            listing.look(
                Timestamp::from_ms(row.get(1).map_err(failed)?),
                id,
                stored_bytes(row).map_err(failed)?,
                self.conflict_of(row).map_err(failed)?,
            );
        }
        Ok(listing.end(false))
    }

    pub fn conflict(&self, id: Uuid) -> StorageResult<Option<Conflict>> {
        let mut statement = self.conn.prepare_cached(statements::CONFLICT).map_err(failed)?;
        Ok(statement
            .query_row(params![self.owner, id.as_bytes()], |row| self.conflict_of(row))
            .optional()
            .map_err(failed)?
            .flatten())
    }

    /// Reads a conflict from a row; `None` if its table is no longer declared.
    fn conflict_of(&self, row: &Row<'_>) -> rusqlite::Result<Option<Conflict>> {
        let Some(place) = self.statements.table(row.get(2)?) else { return Ok(None) };
        let table = &self.schema.tables()[place];
        let side = |at: usize| -> rusqlite::Result<Side> {
            Ok(Side {
                values: match row.get_ref(at)? {
                    ValueRef::Null => None,
                    text => Some(columns(table, text)?),
                },
                last_update: Timestamp::from_ms(row.get(at + 1)?),
                device: DeviceId(values::uuid(row.get_ref(at + 2)?)?),
            })
        };
        let policy_name = row.get_ref(4)?.as_str()?;
        let resolution_name = row.get_ref(5)?.as_str()?;
        let stored = side(7)?;
        let base = match row.get_ref(6)? {
            ValueRef::Null => None,
            text => Some(base_of(table, text, &stored)?),
        };
        Ok(Some(Conflict {
            id: values::uuid(row.get_ref(0)?)?,
            at: Timestamp::from_ms(row.get(1)?),
            table: table.id,
            key: values::key(row.get_ref(3)?)?,
            policy: policy(policy_name),
            resolution: resolution(resolution_name).ok_or(FromSqlError::InvalidType)?,
            base,
            stored,
            incoming: side(10)?,
            restored_at: row.get::<_, Option<i64>>(13)?.map(Timestamp::from_ms),
            stored_made_at: row.get::<_, Option<i64>>(14)?.map(Timestamp::from_ms),
        }))
    }

    pub fn stored_response(&self, device: DeviceId, key: &str) -> StorageResult<Option<StoredResponse>> {
        let mut statement = self.conn.prepare_cached(statements::RESPONSE).map_err(failed)?;
        let response = statement.query_row(params![self.owner, device.0.as_bytes(), key], |row| {
            Ok(StoredResponse {
                body_hash: row.get(0)?,
                body: row.get(1)?,
                version: Version(row.get::<_, i64>(2)?.cast_unsigned()),
                at: Timestamp::from_ms(row.get(3)?),
            })
        });
        response.optional().map_err(failed)
    }

    /// Returns how many bytes the stored responses have grown by.
    pub fn store_response(
        &self,
        device: DeviceId,
        key: &str,
        response: &StoredResponse,
        most: ResponsesMax,
    ) -> StorageResult<i64> {
        let device = device.0.as_bytes();
        let others_max = most.responses.saturating_sub(1) as i64;
        let others = params![self.owner, device, key, others_max];
        let (_, mut gone) = forgotten(self.conn, statements::FORGET_RESPONSES, others).map_err(failed)?;
        self.conn
            .prepare_cached(statements::STORE_RESPONSE)
            .map_err(failed)?
            .execute(params![
                self.owner,
                device,
                key,
                response.at.ms(),
                response.version.0.cast_signed(),
                response.body_hash,
                response.body,
            ])
            .map_err(failed)?;
        if most.is_long(response) {
            let beside = most.bytes_beside(response);
            let others = params![self.owner, device, key, beside];
            gone += forgotten(self.conn, statements::FORGET_LONG_RESPONSES, others).map_err(failed)?.1;
        }
        Ok(response.record_bytes(key) - gone)
    }
}

/// The state of a row of `STATES`, and apart from it its values; `next` is the state after it.
fn state_of(
    table: &Table,
    row: &Row<'_>,
    next: Option<&[Value]>,
) -> rusqlite::Result<Option<(EarlierState, PartialState)>> {
    let columns = read_state(table, row.get_ref(3)?.as_str()?, next);
    let Some(partial) = columns.map_err(|error| FromSqlError::Other(Box::new(error)))? else {
        return Ok(None);
    };
    let state = EarlierState {
        version: Version(row.get::<_, i64>(0)?.cast_unsigned()),
        last_update: Timestamp::from_ms(row.get(1)?),
        changed_by: DeviceId(values::uuid(row.get_ref(2)?)?),
        values: Vec::new(),
        made_at: row.get::<_, Option<i64>>(4)?.map(Timestamp::from_ms),
        claimed_at: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_ms),
    };
    Ok(Some((state, partial)))
}

/// How many bytes the sides of a conflict take in the database.
fn stored_bytes(row: &Row<'_>) -> rusqlite::Result<usize> {
    const TEXTS: [usize; 3] = [6, 7, 10];
    let bytes = |at| Ok(row.get_ref(at)?.as_str_or_null()?.map_or(0, str::len));
    TEXTS.into_iter().map(bytes).sum()
}

fn base_of(table: &Table, text: ValueRef<'_>, stored: &Side) -> Result<Vec<Option<Value>>, FromSqlError> {
    read_base(table, text.as_str()?, stored).map_err(|error| FromSqlError::Other(Box::new(error)))
}

fn columns(table: &Table, text: ValueRef<'_>) -> Result<Vec<Option<Value>>, FromSqlError> {
    read_columns(table, text.as_str()?).map_err(|error| FromSqlError::Other(Box::new(error)))
}
