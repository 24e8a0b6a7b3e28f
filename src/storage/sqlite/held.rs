//! What the database holds of the application's tables, and what rollcall remembers of their declarations.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension};

use crate::schema::{Column, Table};

/// What rollcall declared, by table and column; the key and the owner column are listed too,
/// and under no table how times are kept. SQL types say less: a boolean is an INTEGER there.
pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS rollcall_column (
  tbl      TEXT    NOT NULL COLLATE NOCASE,
  name     TEXT    NOT NULL COLLATE NOCASE,
  type     TEXT    NOT NULL,
  required INTEGER NOT NULL CHECK (required IN (0, 1)),
  PRIMARY KEY (tbl, name)
) STRICT";
pub(super) const RECORD: &str =
    "INSERT INTO rollcall_column (tbl, name, type, required) VALUES (?1, ?2, ?3, ?4)
  ON CONFLICT (tbl, name) DO UPDATE SET type = excluded.type, required = excluded.required";
/// The types of rows that are no columns of the wire.
pub(super) const OWNER: &str = "owner";
pub(super) const KEY: &str = "key";
/// How times are kept, as the schema file spells it.
pub(super) const PRECISION: &str = "timestamps";

/// What rollcall declared of one table before.
pub(super) struct Records {
    pub table: String,
    /// By column name in lower case: its type and whether it was required.
    pub columns: HashMap<String, (String, bool)>,
    pub owner: String,
    pub key: String,
}

impl Records {
    pub(super) fn column(&self, name: &str) -> Option<&(String, bool)> {
        self.columns.get(&name.to_ascii_lowercase())
    }

    /// Whether the column was declared before, with the type that it has now.
    pub(super) fn agrees(&self, column: &Column) -> bool {
        self.column(&column.name).is_some_and(|(kind, _)| kind == column.kind.name())
    }

    /// Whether the column is the key or the owner column.
    pub(super) fn is_own(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case(&self.owner) || name.eq_ignore_ascii_case(&self.key)
    }

    /// Whether every row had to have the column.
    pub(super) fn required(&self, column: &Column) -> bool {
        self.column(&column.name).is_some_and(|(_, required)| *required)
    }
}

/// Names compare as SQL compares them: whatever the case.
pub(super) fn records(conn: &Connection) -> rusqlite::Result<BTreeMap<String, Records>> {
    let mut known = BTreeMap::new();
    if object(conn, "rollcall_column")?.is_none() {
        return Ok(known);
    }
    let mut statement = conn.prepare("SELECT tbl, name, type, required FROM rollcall_column")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (table, name, kind): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let records = known.entry(table.to_ascii_lowercase()).or_insert_with(|| Records {
            table,
            columns: HashMap::new(),
            owner: String::new(),
            key: String::new(),
        });
        match kind.as_str() {
            OWNER => records.owner = name,
            KEY => records.key = name,
            _ => {
                records.columns.insert(name.to_ascii_lowercase(), (kind, row.get(3)?));
            }
        }
    }
    Ok(known)
}

/// The kind and the spelling of whatever has that name in the database.
pub(super) fn object(conn: &Connection, name: &str) -> rusqlite::Result<Option<(String, String)>> {
    conn.query_row("SELECT type, name FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE", [name], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
    .optional()
}

/// What the database has of one table.
pub(super) struct Held {
    /// Every column, the owner's and the key among them, in the table's own order.
    pub columns: Vec<String>,
    /// By column name in lower case: the table it refers to.
    pub references: HashMap<String, String>,
}

impl Held {
    pub(super) fn read(conn: &Connection, table: &Table) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare("SELECT name FROM pragma_table_xinfo(?1) ORDER BY cid")?;
        let columns = statement.query_map([&table.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut statement = conn.prepare(
            "SELECT lower(\"from\"), \"table\" FROM pragma_foreign_key_list(?1)
             WHERE \"table\" <> 'rollcall_owner' AND seq = 1",
        )?;
        let references = statement
            .query_map([&table.name], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(Self { columns, references })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.eq_ignore_ascii_case(name))
    }
}

pub(super) fn count(conn: &Connection, from: &str) -> rusqlite::Result<i64> {
    conn.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| row.get(0))
}
