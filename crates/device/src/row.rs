//! One row of the device's file: its contents, and what is known of it.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, named_params};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value as Json;

use super::decide::{Contents, Local, Outcome, State};
use super::store::StoreResult;
use super::text::{Columns, JsonText};
use rollcall_core::model::{Precision, RowKey, Timestamp};
use rollcall_core::reconcile::Operation;
use rollcall_core::schema::Table;

/// The beginning of every statement that reads rows of a table.
macro_rules! columns {
    () => {
        "SELECT key, state, last_update, base, edited_at, edit, contents, changed, error FROM rows
         WHERE table_name = ?1"
    };
}

/// Selects rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFilter {
    /// Rows that the user sees.
    Shown,
    /// Rows whose deletion by the user waits.
    Deleted,
    /// Rows that were changed here and wait for the server.
    Waiting,
    /// Rows that the server rejected.
    Rejected,
    /// Rows that a full feed did not mention.
    Unmentioned,
}

/// A row as the device stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its key.
    pub key: RowKey,
    /// What the rules need to know.
    pub local: Local,
    /// Columns by name, without the key and `last_update`.
    pub contents: Columns,
    /// The columns that the user changed, with the number of the last edit. Edits are counted over the whole
    /// file: a response settles what was sent, and no column with a later number.
    pub changed: BTreeMap<String, u64>,
    /// The last edit of the row.
    pub edit: u64,
    /// Why the server rejected it, for the user.
    pub error: Option<String>,
}

impl Row {
    /// A row that does not exist yet.
    pub fn new(key: RowKey) -> Self {
        let (contents, changed) = (Columns::new(), BTreeMap::new());
        Self { key, local: Local::clean(None), contents, changed, edit: 0, error: None }
    }

    /// Applies an outcome. `theirs` is the row that the server sent, `settled` the last edit that the server
    /// has judged. Returns `None` if the row must be dropped.
    pub fn after(mut self, outcome: Outcome, theirs: Option<Columns>, settled: u64) -> Option<Self> {
        let local = outcome.local?;
        self.changed.retain(|_, edit| *edit > settled);
        match (outcome.contents, theirs) {
            (Contents::Mine, _) | (_, None) => {}
            (Contents::Theirs, Some(theirs)) => self.contents = theirs,
            (Contents::MineOverTheirs, Some(mut theirs)) => {
                for column in self.changed.keys() {
                    let mine = self.contents.get(column).cloned().unwrap_or_else(JsonText::null);
                    theirs.insert(column.clone(), mine);
                }
                self.contents = theirs;
            }
        }
        if local.state == State::Clean {
            self.changed.clear();
            self.error = None;
        }
        self.local = local;
        Some(self)
    }

    /// The row as a JSON object, for people and apps: its key, then its columns in declared order. Columns
    /// that the schema does not have come last.
    pub fn shown(&self, table: &Table) -> serde_json::Result<JsonText> {
        let declared = table.columns.iter().filter_map(|column| self.contents.get_key_value(&column.name));
        let others = self.contents.iter().filter(|(name, _)| table.column(name).is_none());
        JsonText::of(&Shown { key: (&table.key, self.key), columns: declared.chain(others).collect() })
    }

    /// The row as it is sent: the member of the request, and its own members.
    pub fn outgoing(&self, table: &Table) -> (Operation, Columns) {
        let local = &self.local;
        let operation = match local.state {
            State::Added => Operation::Add,
            State::Clean | State::Edited => Operation::Update,
            State::Deleted => Operation::Delete,
        };
        let text = |text: String| JsonText::from(Json::from(text));
        let mut item = Columns::from([(table.key.clone(), text(self.key.to_string()))]);
        if operation != Operation::Delete {
            item.extend(self.columns_to_send(table).map(|(name, value)| (name.clone(), value.clone())));
        }
        // A row that is put back is sent as the state that it is.
        let (at, base) = if local.is_put_back() { (local.base, None) } else { (local.edited_at, local.base) };
        for (name, at) in [("last_update", at), ("_base", base)] {
            if let Some(at) = at {
                item.insert(name.into(), text(at.format(Precision::Milliseconds).to_string()));
            }
        }
        (operation, item)
    }

    fn columns_to_send(&self, table: &Table) -> impl Iterator<Item = (&String, &JsonText)> {
        let is_new = self.local.state == State::Added && !self.local.is_put_back();
        // Columns that the schema no longer has would fail the request.
        let columns = self.contents.iter().filter(|(name, _)| table.column(name).is_some());
        columns.filter(move |(name, value)| {
            // An empty column of a new row need not be sent.
            let says = self.local.goes_whole() && (!is_new || !value.is_null());
            says || self.changed.contains_key(*name)
        })
    }

    /// Reads a row.
    pub fn load(conn: &Connection, table: &Table, key: RowKey) -> StoreResult<Option<Self>> {
        let mut statement = conn.prepare_cached(concat!(columns!(), " AND key = ?2"))?;
        statement.query_row((&table.name, key.to_string()), read).optional()?.transpose()
    }

    /// Reads some rows of a table, by key.
    pub fn load_all(conn: &Connection, table: &Table, which: RowFilter) -> StoreResult<Vec<Self>> {
        let mut statement = conn.prepare_cached(match which {
            RowFilter::Shown => concat!(columns!(), " AND state <> 'deleted' ORDER BY key"),
            RowFilter::Deleted => concat!(columns!(), " AND state = 'deleted' ORDER BY key"),
            RowFilter::Waiting => concat!(columns!(), " AND state <> 'clean' ORDER BY key"),
            RowFilter::Rejected => concat!(columns!(), " AND error IS NOT NULL ORDER BY key"),
            RowFilter::Unmentioned => concat!(columns!(), " AND mentioned = 0 ORDER BY key"),
        })?;
        let rows = statement.query_map([&table.name], read)?;
        rows.map(|row| row?).collect()
    }

    /// Writes the row.
    pub fn save(&self, conn: &Connection, table: &Table) -> StoreResult<()> {
        let mut statement = conn.prepare_cached(
            "INSERT INTO rows (table_name, key, state, last_update, base, edited_at, edit, contents, changed, error)
             VALUES (:table, :key, :state, :last_update, :base, :edited_at, :edit, :contents, :changed, :error)
             ON CONFLICT (table_name, key) DO UPDATE SET state = excluded.state,
                 last_update = excluded.last_update, base = excluded.base, edited_at = excluded.edited_at,
                 edit = excluded.edit, contents = excluded.contents, changed = excluded.changed,
                 error = excluded.error",
        )?;
        let ms = |at: Option<Timestamp>| at.map(Timestamp::ms);
        statement.execute(named_params! {
            ":table": table.name,
            ":key": self.key.to_string(),
            ":state": state_text(self.local.state),
            ":last_update": ms(self.local.last_update),
            ":base": ms(self.local.base),
            ":edited_at": ms(self.local.edited_at),
            ":edit": self.edit.cast_signed(),
            ":contents": serde_json::to_string(&self.contents)?,
            ":changed": serde_json::to_string(&self.changed)?,
            ":error": self.error,
        })?;
        Ok(())
    }

    /// Forgets a row.
    pub fn remove(conn: &Connection, table: &Table, key: RowKey) -> StoreResult<()> {
        let mut statement = conn.prepare_cached("DELETE FROM rows WHERE table_name = ?1 AND key = ?2")?;
        statement.execute((&table.name, key.to_string()))?;
        Ok(())
    }
}

/// A row for people, with its members in this order.
struct Shown<'a> {
    key: (&'a str, RowKey),
    columns: Vec<(&'a String, &'a JsonText)>,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut members = to.serialize_map(None)?;
        members.serialize_entry(self.key.0, &self.key.1)?;
        self.columns.iter().try_for_each(|(name, value)| members.serialize_entry(name, value))?;
        members.end()
    }
}

/// What the rules need to know of every row of a table, without reading contents.
pub fn locals(conn: &Connection, table: &Table) -> StoreResult<BTreeMap<RowKey, Local>> {
    let mut statement = conn
        .prepare_cached("SELECT key, state, last_update, base, edited_at FROM rows WHERE table_name = ?1")?;
    let rows = statement.query_map([&table.name], |row| Ok((key_of(row)?, local_of(row)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub const fn state_text(state: State) -> &'static str {
    match state {
        State::Clean => "clean",
        State::Added => "added",
        State::Edited => "edited",
        State::Deleted => "deleted",
    }
}

fn key_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<RowKey> {
    let text: String = row.get(0)?;
    RowKey::parse(&text).ok_or(rusqlite::Error::InvalidColumnType(
        0,
        "key".into(),
        rusqlite::types::Type::Text,
    ))
}

fn local_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Local> {
    let at = |column: usize| -> rusqlite::Result<Option<Timestamp>> {
        Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_ms))
    };
    let state = match row.get_ref(1)?.as_str()? {
        "added" => State::Added,
        "edited" => State::Edited,
        "deleted" => State::Deleted,
        _ => State::Clean,
    };
    Ok(Local { state, last_update: at(2)?, base: at(3)?, edited_at: at(4)? })
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoreResult<Row>> {
    let (key, local) = (key_of(row)?, local_of(row)?);
    let edit: i64 = row.get(5)?;
    let (contents, changed): (String, String) = (row.get(6)?, row.get(7)?);
    let error = row.get(8)?;
    let parse = || {
        Ok(Row {
            key,
            local,
            contents: serde_json::from_str(&contents)?,
            changed: serde_json::from_str(&changed)?,
            edit: edit.cast_unsigned(),
            error,
        })
    };
    Ok(parse())
}
