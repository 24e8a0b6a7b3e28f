//! The app's operations on its rows, offline or not, and what waits for the next sync.

use rusqlite::Connection;
use serde::de::DeserializeSeed;

use super::decide::{Local, State};
use super::row::{Row, RowFilter};
use super::store::{Store, StoreError, StoreResult, names, outstanding, recall, remember, writing};
use super::text::{Columns, JsonText};
use rollcall_core::model::RowKey;
use rollcall_core::schema::{Table, ValueSeed, WireValue};

/// How many rows wait for the next sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Rows that were created here.
    pub added: u64,
    /// Rows that were changed here.
    pub edited: u64,
    /// Rows that were deleted here.
    pub deleted: u64,
    /// Rows among them that the server rejected.
    pub rejected: u64,
}

impl Pending {
    /// The total.
    pub fn rows(&self) -> u64 {
        self.added + self.edited + self.deleted
    }
}

impl Store {
    /// Creates a row, or changes the given columns of one; offline or not.
    ///
    /// Errors: a column that the schema does not have, or a value of another type. The server would refuse
    /// the whole request for it, long after the user has left.
    pub fn put(&mut self, table: &str, key: RowKey, columns: &Columns) -> StoreResult<()> {
        let table = self.table(table)?.clone();
        let columns = self.checked(&table, columns)?;
        let now = self.clock().now();
        let txn = writing(&mut self.conn)?;
        let known = Row::load(&txn, &table, key)?;
        let (made, mut row) = (known.is_none(), known.unwrap_or_else(|| Row::new(key)));
        let news: Vec<(String, JsonText)> =
            columns.into_iter().filter(|(name, value)| row.contents.get(name) != Some(value)).collect();
        if news.is_empty() && !made && row.local.state != State::Deleted {
            return Ok(()); // the row has these values already
        }
        row.edit = next_edit(&txn)?;
        if made {
            // A column without a default is empty on the server as well, so the row is complete before it is
            // sent.
            let empty = table.columns.iter().filter(|column| column.default.is_none());
            row.contents.extend(empty.map(|column| (column.name.clone(), JsonText::null())));
        }
        for (name, value) in news {
            row.changed.insert(name.clone(), row.edit);
            row.contents.insert(name, value);
        }
        let known = row.local.last_update.is_some() || row.local.base.is_some();
        if row.local.is_put_back() {
            row.local.last_update = None; // the edit was not made on the server's state: the row is sent whole
        }
        row.local = match row.local.state {
            State::Clean if made => Local { state: State::Added, ..row.local },
            State::Clean => Local { state: State::Edited, base: row.local.held(), ..row.local },
            State::Deleted if known => Local { state: State::Edited, ..row.local },
            State::Deleted => Local { state: State::Added, ..row.local },
            State::Added | State::Edited => row.local,
        };
        row.local.edited_at = Some(now);
        row.error = None;
        row.save(&txn, &table)?;
        Ok(txn.commit()?)
    }

    /// Deletes a row.
    pub fn delete(&mut self, table: &str, key: RowKey) -> StoreResult<()> {
        let table = self.table(table)?.clone();
        let now = self.clock().now();
        let txn = writing(&mut self.conn)?;
        let row = Row::load(&txn, &table, key)?.filter(|row| row.local.state != State::Deleted);
        let mut row = row.ok_or(StoreError::NoSuchRow { table: table.name.clone(), key })?;
        let in_flight = outstanding(&txn)?.is_some_and(|sending| {
            sending.sent.iter().any(|sent| sent.table == table.name && sent.key == key)
        });
        let is_known = row.local.last_update.is_some() || row.local.base.is_some() || in_flight;
        if row.local.state == State::Added && !is_known {
            Row::remove(&txn, &table, key)?; // no other device or server knew it
        } else {
            if row.local.state == State::Clean {
                row.local.base = row.local.held();
            }
            row.local.state = State::Deleted;
            row.local.edited_at = Some(now);
            row.edit = next_edit(&txn)?;
            row.error = None;
            row.save(&txn, &table)?;
        }
        Ok(txn.commit()?)
    }

    /// One row, unless it is deleted.
    pub fn get(&self, table: &str, key: RowKey) -> StoreResult<Option<Row>> {
        let row = Row::load(&self.conn, self.table(table)?, key)?;
        Ok(row.filter(|row| row.local.state != State::Deleted))
    }

    /// Every row of a table that is not deleted, by key.
    pub fn list(&self, table: &str) -> StoreResult<Vec<Row>> {
        Row::load_all(&self.conn, self.table(table)?, RowFilter::Shown)
    }

    /// Every row of a table that was deleted here and that the server may still hold, by key.
    pub fn deleted(&self, table: &str) -> StoreResult<Vec<Row>> {
        Row::load_all(&self.conn, self.table(table)?, RowFilter::Deleted)
    }

    /// What waits for the next sync.
    pub fn pending(&self) -> StoreResult<Pending> {
        let mut pending = Pending::default();
        let mut statement = self.conn.prepare_cached(
            "SELECT state, count(*), count(error) FROM rows WHERE state <> 'clean' GROUP BY state",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (rows, rejected): (i64, i64) = (row.get(1)?, row.get(2)?);
            pending.rejected += rejected.cast_unsigned();
            match row.get_ref(0)?.as_str().unwrap_or_default() {
                "added" => pending.added = rows.cast_unsigned(),
                "edited" => pending.edited = rows.cast_unsigned(),
                _ => pending.deleted = rows.cast_unsigned(),
            }
        }
        Ok(pending)
    }

    /// The rows that the server rejected, with its reasons.
    pub fn rejected(&self) -> StoreResult<Vec<(String, RowKey, String)>> {
        let mut all = Vec::new();
        for table in self.schema().tables() {
            let rows = Row::load_all(&self.conn, table, RowFilter::Rejected)?;
            all.extend(
                rows.into_iter().map(|row| (table.name.clone(), row.key, row.error.unwrap_or_default())),
            );
        }
        Ok(all)
    }

    /// Converts values to the form in which the server writes them, so that a row is the same text wherever
    /// it was written.
    fn checked(&self, table: &Table, columns: &Columns) -> StoreResult<Columns> {
        let precision = self.schema().precision;
        let mut checked = Columns::new();
        for (name, value) in columns.iter().filter(|(name, _)| **name != table.key) {
            let Some(place) = table.column(name) else {
                return Err(StoreError::NoSuchColumn { table: table.name.clone(), column: name.clone() });
            };
            let seed = ValueSeed { column: &table.columns[place], precision, json_depth_max: 16 };
            let value = seed.deserialize(&mut serde_json::Deserializer::from_str(value.as_str())).map_err(
                |error| {
                    let reason = error.to_string();
                    let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
                    StoreError::WrongValue { table: table.name.clone(), column: name.clone(), reason }
                },
            )?;
            checked.insert(name.clone(), JsonText::of(&WireValue { value: &value, precision })?);
        }
        Ok(checked)
    }
}

fn next_edit(conn: &Connection) -> StoreResult<u64> {
    let last = recall(conn, names::EDITS)?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    remember(conn, names::EDITS, &(last + 1).to_string())?;
    Ok(last + 1)
}
