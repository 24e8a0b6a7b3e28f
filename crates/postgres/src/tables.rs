//! The application's tables in PostgreSQL: created from the schema, and changed to fit it.

use postgres::types::Type;

use super::ddl;
use super::session::Session;
use super::values::{Bound, sql_type};
use crate::failure::failed;
use rollcall_core::model::Timestamp;
use rollcall_core::schema::{Schema, Table};
use rollcall_core::storage::plan::{Change, Database, Held, Record, quoted};
use rollcall_core::storage::{StorageError, StorageResult};

const RECORD: &str = "INSERT INTO rollcall_column (tbl, name, type, required) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (tbl, name) DO UPDATE SET type = excluded.type, required = excluded.required";

/// The objects in the schema in which tables are created; other schemas are ignored.
const OBJECT: &str = "SELECT c.relkind = 'v', c.relname::text FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE n.nspname = current_schema() AND lower(c.relname::text) = lower($1)";

const COLUMNS: &str = "SELECT a.attname::text FROM pg_catalog.pg_attribute a \
     JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE n.nspname = current_schema() AND c.relname::text = $1 AND a.attnum > 0 AND NOT a.attisdropped \
     ORDER BY a.attnum";

/// The columns with an index of this crate, and the table that the constraint of the same column refers to.
const REFERENCES: &str = "SELECT i.relname::text, lower(a.attname::text), p.relname::text \
     FROM pg_catalog.pg_index x \
     JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid JOIN pg_catalog.pg_class c ON c.oid = x.indrelid \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = x.indkey[1] \
     LEFT JOIN pg_catalog.pg_constraint f ON f.conrelid = c.oid AND f.contype = 'f' AND f.conkey[2] = a.attnum \
     LEFT JOIN pg_catalog.pg_class p ON p.oid = f.confrelid \
     WHERE n.nspname = current_schema() AND c.relname::text = $1 AND i.relname::text LIKE 'rollcall\\_ref\\_%'";

impl Database for &mut Session {
    type Error = StorageError;
    const CASE_MATTERS: bool = true;
    const REFERENCES_MAKE_ANEW: bool = false;

    fn records(&mut self) -> StorageResult<Vec<Record>> {
        if self.object("rollcall_column")?.is_none() {
            return Ok(Vec::new());
        }
        let rows = self.query("SELECT tbl, name, type, required FROM rollcall_column", &[])?;
        rows.iter()
            .map(|row| {
                Ok(Record {
                    table: row.try_get(0).map_err(failed)?,
                    name: row.try_get(1).map_err(failed)?,
                    kind: row.try_get(2).map_err(failed)?,
                    required: row.try_get(3).map_err(failed)?,
                })
            })
            .collect()
    }

    fn object(&mut self, name: &str) -> StorageResult<Option<(String, String)>> {
        let found = self.row(OBJECT, &[(&name, Type::TEXT)])?;
        let Some(row) = found else { return Ok(None) };
        let kind = if row.try_get(0).map_err(failed)? { "view" } else { "table" };
        Ok(Some((kind.into(), row.try_get(1).map_err(failed)?)))
    }

    fn held(&mut self, table: &Table) -> StorageResult<Held> {
        let columns = self.query(COLUMNS, &[(&table.name, Type::TEXT)])?;
        let columns = columns.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
        let mut references = std::collections::HashMap::new();
        for row in self.query(REFERENCES, &[(&table.name, Type::TEXT)])? {
            // Rows of one table refer to each other without a constraint.
            let to =
                row.try_get::<_, Option<String>>(2).map_err(failed)?.unwrap_or_else(|| table.name.clone());
            references.insert(row.try_get(1).map_err(failed)?, to);
        }
        Ok(Held { columns, references })
    }

    fn count(&mut self, from: &str) -> StorageResult<i64> {
        let row = self.row(&format!("SELECT count(*) FROM {from}"), &[])?;
        row.map_or(Ok(0), |row| row.try_get(0)).map_err(failed)
    }

    fn change(&mut self, change: &Change, schema: &Schema, now: Timestamp) -> StorageResult<()> {
        match change {
            Change::Create(table) => {
                let table = schema.at(*table);
                self.batch(&ddl::create_table(schema, table))?;
                let mut indexed = table.references();
                indexed.try_for_each(|(at, _)| self.batch(&ddl::create_index(table, &table.columns[at])))
            }
            Change::AddColumns(table, added) => add_columns(self, schema.at(*table), added),
            Change::Refer(table, added) => {
                add_columns(self, schema.at(*table), added)?;
                refer(self, schema, schema.at(*table))
            }
            Change::Fill { table, column, only_empty } => {
                let table = schema.at(*table);
                let column = &table.columns[*column];
                let Some(default) = &column.default else { return Ok(()) };
                let name = quoted(&column.name);
                let condition = if *only_empty { format!(" WHERE {name} IS NULL") } else { String::new() };
                let sql = format!("UPDATE {} SET {name} = $1{condition}", quoted(&table.name));
                let value = ddl::fill(column, default, now, schema.precision);
                self.execute(&sql, &[(&Bound(&value), sql_type(column.kind).1)]).map(drop)
            }
            Change::Record(Record { table, name, kind, required }) => self
                .execute(
                    RECORD,
                    &[(table, Type::TEXT), (name, Type::TEXT), (kind, Type::TEXT), (required, Type::BOOL)],
                )
                .map(drop),
        }
    }

    /// The caller has opened a transaction, and ends it.
    fn whole(&mut self, work: &mut dyn FnMut(&mut Self) -> StorageResult<()>) -> StorageResult<()> {
        work(self)
    }

    fn refused(lines: &[String]) -> StorageError {
        StorageError::Engine(lines.join("\n").into())
    }
}

fn add_columns(session: &mut Session, table: &Table, added: &[usize]) -> StorageResult<()> {
    added.iter().try_for_each(|at| {
        let column = ddl::column(&table.columns[*at]);
        session.batch(&format!("ALTER TABLE {} ADD COLUMN {column}", quoted(&table.name)))
    })
}

/// Drops the references that are no longer declared, and creates the declared ones.
fn refer(mut session: &mut Session, schema: &Schema, table: &Table) -> StorageResult<()> {
    let mut held = session.held(table)?.references;
    let name = quoted(&table.name);
    for (at, to) in table.references() {
        let column = &table.columns[at];
        let was = held.get(&column.name.to_ascii_lowercase());
        if was.is_some_and(|was| was.eq_ignore_ascii_case(&schema.at(to).name)) {
            held.remove(&column.name.to_ascii_lowercase());
        }
    }
    for column in held.keys() {
        let (key, index) =
            (ddl::reference_name("fk", table, column), ddl::reference_name("ref", table, column));
        session.batch(&format!("ALTER TABLE {name} DROP CONSTRAINT IF EXISTS {}", quoted(&key)))?;
        session.batch(&format!("DROP INDEX IF EXISTS {}", quoted(&index)))?;
    }
    let there = session.held(table)?.references;
    for (at, to) in table.references() {
        let column = &table.columns[at];
        if there.contains_key(&column.name.to_ascii_lowercase()) {
            continue;
        }
        if let Some(key) = ddl::foreign_key(schema, table, at, to) {
            session.batch(&format!("ALTER TABLE {name} ADD {key}"))?;
        }
        session.batch(&ddl::create_index(table, column))?;
    }
    Ok(())
}
