//! The application's tables in SQLite: created from the schema, and changed to fit it.

use rusqlite::{Connection, OptionalExtension, params};

use super::ddl;
use rollcall_core::model::Timestamp;
use rollcall_core::schema::{Column, ColumnType, Schema, Table};
use rollcall_core::storage::plan::{self, Change, Database, Held, Plan, Record, Records, quoted};

/// Holds a table's rows while the table is created again.
const COPY: &str = "\"rollcall_copy\"";

/// What rollcall declared, by table and column.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS rollcall_column (
  tbl      TEXT    NOT NULL COLLATE NOCASE,
  name     TEXT    NOT NULL COLLATE NOCASE,
  type     TEXT    NOT NULL,
  required INTEGER NOT NULL CHECK (required IN (0, 1)),
  PRIMARY KEY (tbl, name)
) STRICT";
const RECORD: &str = "INSERT INTO rollcall_column (tbl, name, type, required) VALUES (?1, ?2, ?3, ?4)
  ON CONFLICT (tbl, name) DO UPDATE SET type = excluded.type, required = excluded.required";

/// Compares the database with the schema, without changing it.
pub fn plan(conn: &Connection, schema: &Schema) -> rusqlite::Result<Plan> {
    plan::compare(&mut Tables(conn), schema)
}

/// Carries a plan out, all of it or nothing; inside the caller's transaction if one is open.
///
/// - `now`: the value of existing rows when a column with the default `now` is added.
/// - Errors: SQLite's own. A plan with refusals is not carried out.
pub fn apply(plan: &Plan, conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    plan.carry_out(&mut Tables(conn), now)
}

/// A connection, as a plan needs it.
pub(super) struct Tables<'c>(pub &'c Connection);

impl Database for Tables<'_> {
    type Error = rusqlite::Error;
    const CASE_MATTERS: bool = false;
    const REFERENCES_MAKE_ANEW: bool = true;

    fn records(&mut self) -> rusqlite::Result<Vec<Record>> {
        if self.object("rollcall_column")?.is_none() {
            return Ok(Vec::new());
        }
        let mut statement = self.0.prepare("SELECT tbl, name, type, required FROM rollcall_column")?;
        let records = statement.query_map([], |row| {
            Ok(Record { table: row.get(0)?, name: row.get(1)?, kind: row.get(2)?, required: row.get(3)? })
        })?;
        records.collect()
    }

    fn object(&mut self, name: &str) -> rusqlite::Result<Option<(String, String)>> {
        self.0
            .query_row("SELECT type, name FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE", [name], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
    }

    fn held(&mut self, table: &Table) -> rusqlite::Result<Held> {
        let mut statement = self.0.prepare("SELECT name FROM pragma_table_xinfo(?1) ORDER BY cid")?;
        let columns = statement.query_map([&table.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut statement = self.0.prepare(
            "SELECT lower(\"from\"), \"table\" FROM pragma_foreign_key_list(?1)
             WHERE \"table\" <> 'rollcall_owner' AND seq = 1",
        )?;
        let references = statement
            .query_map([&table.name], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(Held { columns, references })
    }

    fn count(&mut self, from: &str) -> rusqlite::Result<i64> {
        self.0.query_row(&format!("SELECT count(*) FROM {from}"), [], |row| row.get(0))
    }

    fn change(&mut self, change: &Change, schema: &Schema, now: Timestamp) -> rusqlite::Result<()> {
        match change {
            Change::Create(table) => {
                let table = schema.at(*table);
                let columns: Vec<_> =
                    table.columns.iter().map(|column| ddl::column(&column.name, column.kind)).collect();
                self.0.execute_batch(&ddl::create_table(schema, table, &columns))?;
                index_references(self.0, table)
            }
            Change::AddColumns(table, columns) => {
                let table = schema.at(*table);
                columns.iter().try_for_each(|column| {
                    let Column { name, kind, .. } = &table.columns[*column];
                    let column = ddl::column(name, *kind);
                    self.0.execute_batch(&format!("ALTER TABLE {} ADD COLUMN {column}", quoted(&table.name)))
                })
            }
            Change::Refer(table, added) => make_anew(self.0, schema, schema.at(*table), added),
            Change::Fill { table, column, only_empty } => {
                let table = schema.at(*table);
                let column = &table.columns[*column];
                let Some(default) = &column.default else { return Ok(()) };
                let name = quoted(&column.name);
                let condition = if *only_empty { format!(" WHERE {name} IS NULL") } else { String::new() };
                let sql = format!("UPDATE {} SET {name} = ?1{condition}", quoted(&table.name));
                self.0.execute(&sql, [ddl::fill(column.kind, default, now, schema.precision)]).map(drop)
            }
            Change::Record(Record { table, name, kind, required }) => {
                self.0.execute(RECORD, params![table, name, kind, required]).map(drop)
            }
        }
    }

    fn whole(&mut self, work: &mut dyn FnMut(&mut Self) -> rusqlite::Result<()>) -> rusqlite::Result<()> {
        self.0.execute_batch("SAVEPOINT rollcall_tables")?;
        let done = self.0.execute_batch(TABLE).and_then(|()| {
            // A table that is created again is missing for a moment; the pragma ends with the transaction.
            self.0.pragma_update(None, "defer_foreign_keys", true)?;
            work(self)
        });
        let end = match done {
            Ok(()) => "RELEASE rollcall_tables",
            Err(_) => "ROLLBACK TO rollcall_tables; RELEASE rollcall_tables",
        };
        // If this is the outermost savepoint, RELEASE is where SQLite refuses a broken reference.
        let ended = self.0.execute_batch(end);
        if ended.is_err() {
            let _ = self.0.execute_batch("ROLLBACK TO rollcall_tables; RELEASE rollcall_tables");
        }
        done.and(ended)
    }

    fn refused(lines: &[String]) -> rusqlite::Error {
        rusqlite::Error::ToSqlConversionFailure(lines.join("\n").into())
    }
}

fn index_references(conn: &Connection, table: &Table) -> rusqlite::Result<()> {
    let mut indexes = table.references().map(|(at, _)| ddl::create_index(table, &table.columns[at]));
    indexes.try_for_each(|index| conn.execute_batch(&index))
}

/// Creates a table again with the same rows: SQLite cannot add a reference of two columns otherwise.
///
/// The rows are copied out and back, and the copy is not renamed. When the old table is dropped, SQLite
/// counts a violation for each reference to its rows, and only inserted rows reduce that count.
fn make_anew(conn: &Connection, schema: &Schema, table: &Table, added: &[usize]) -> rusqlite::Result<()> {
    let name = quoted(&table.name);
    let held = Tables(conn).held(table)?;
    let records = Records::by_table(Tables(conn).records()?)
        .remove(&table.name.to_ascii_lowercase())
        .unwrap_or_default();
    let listed = held.columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ");
    let mut columns = Vec::new();
    for column in &held.columns {
        let recorded = records.column(column);
        let kind =
            ColumnType::ALL.into_iter().find(|kind| recorded.is_some_and(|(was, _)| was == kind.name()));
        columns.extend(kind.map(|kind| ddl::column(column, kind)));
    }
    columns.extend(added.iter().map(|column| {
        let Column { name, kind, .. } = &table.columns[*column];
        ddl::column(name, *kind)
    }));
    // Indexes and triggers are dropped with a table, including those of other programs.
    let mut others = conn.prepare(
        "SELECT sql FROM sqlite_schema
         WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL
           AND name NOT LIKE 'rollcall\\_ref\\_%' ESCAPE '\\' ORDER BY rowid",
    )?;
    let others: Vec<String> = others.query_map([&table.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for statement in [
        format!("CREATE TABLE {COPY} AS SELECT {listed} FROM {name}"),
        format!("DROP TABLE {name}"),
        ddl::create_table(schema, table, &columns),
        format!("INSERT INTO {name} ({listed}) SELECT {listed} FROM {COPY}"),
        format!("DROP TABLE {COPY}"),
    ] {
        conn.execute_batch(&statement)?;
    }
    others.iter().try_for_each(|sql| conn.execute_batch(sql))?;
    index_references(conn, table)
}
