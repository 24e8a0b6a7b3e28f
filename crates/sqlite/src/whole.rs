//! Reads a whole SQLite file, while a server runs or without one.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::connections::Connections;
use super::file::{Served, resolved};
use super::{OpenError, Sqlite, census, migrate, tables, values};
use crate::failed;
use rollcall_core::model::{Fence, Owner, Timestamp, Value};
use rollcall_core::schema::Schema;
use rollcall_core::storage::plan::quoted;
use rollcall_core::storage::whole::{Deployment, Part, RowSink, Section, Sections, Whole, unretired};
use rollcall_core::storage::{OwnerState, StorageResult};

/// A file whose data is copied. It is not changed.
pub struct SqliteWhole {
    conn: Connection,
    sections: Sections,
    /// A lock that keeps servers from starting; `None` if one runs.
    unserved: Option<File>,
}

/// A server that still runs ten years after a copy began may give out a fence twice.
const FENCES_AHEAD_S: u64 = 10 * 365 * 86_400;

impl SqliteWhole {
    /// Opens a file that a server of this release has served with this schema.
    ///
    /// If no server runs, none can start until this is dropped.
    pub fn open(
        path: &Path,
        schema: &Schema,
        busy_wait: Duration,
        now: Timestamp,
    ) -> Result<(Self, Deployment), OpenError> {
        let in_file = |error| OpenError::of(path, &error);
        let conn = Connections::look(path, busy_wait)?;
        let (done, known) = (migrate::done(&conn, path)?, migrate::migrations_known());
        if done < known {
            return Err(OpenError::FromOlderRelease(path.to_owned()));
        }
        let unserved = match Served::lock_name(&resolved(path)) {
            Ok(file) => Some(file),
            Err(OpenError::Served(_)) => None,
            Err(error) => return Err(error),
        };
        let plan = tables::plan(&conn, schema).map_err(in_file)?;
        let (schema, strange) = unretired(&mut tables::Tables(&conn), schema).map_err(in_file)?;
        let strange =
            strange.iter().map(|column| format!("{column}: retired, and never rollcall's; drop the column"));
        let lines: Vec<String> = plan.describe().into_iter().chain(strange).collect();
        if !plan.is_empty() || !lines.is_empty() {
            return Err(OpenError::Unfit { path: path.to_owned(), lines });
        }
        let sections = Sections::of(&schema);
        let deployment = deployment(&conn, schema, now).map_err(in_file)?;
        Ok((Self { conn, sections, unserved }, deployment))
    }

    /// Whether a server uses the file, so that it may still change.
    pub fn is_served(&self) -> bool {
        self.unserved.is_none()
    }
}

fn deployment(conn: &Connection, schema: Schema, now: Timestamp) -> rusqlite::Result<Deployment> {
    let meta = |name: &str| {
        conn.query_row("SELECT value FROM rollcall_meta WHERE name = ?1", [name], |row| row.get::<_, i64>(0))
    };
    let seconds = (now.ms() / 1_000).max(meta("start")? + 1).unsigned_abs() + FENCES_AHEAD_S;
    let mut tables = conn.prepare("SELECT id, name FROM rollcall_table ORDER BY id")?;
    let tables = tables.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (owners, rows) =
        conn.query_row("SELECT count(*), coalesce(sum(live_rows), 0) FROM rollcall_owner", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })?;
    Ok(Deployment {
        schema,
        epoch: meta("epoch")?,
        tables: tables.collect::<rusqlite::Result<_>>()?,
        fence: Fence(seconds * Sqlite::FENCES_PER_S),
        owners: owners.unsigned_abs(),
        rows: rows.unsigned_abs(),
    })
}

/// The query of a table. Integers represent owners everywhere except in the accounts, and devices in the
/// ledger.
fn select(section: &Section) -> String {
    let expression = |column: &str| match (section.table.as_str(), column) {
        ("rollcall_ledger", "made_by" | "changed_by") => {
            format!("(SELECT device FROM rollcall_writer WHERE id = {column})")
        }
        ("rollcall_device", "user_id") => "user".to_owned(),
        _ => quoted(column),
    };
    let columns: Vec<_> = section.columns.iter().map(|(name, _)| expression(name)).collect();
    let owner = match (&section.owner, section.table.as_str()) {
        (None, _) => String::new(),
        (Some(_), "rollcall_owner") => " WHERE id = ?1".to_owned(),
        (Some(owner), _) => format!(" WHERE {} = ?1", quoted(owner)),
    };
    format!("SELECT {} FROM {}{owner}", columns.join(", "), quoted(&section.table))
}

impl Whole for SqliteWhole {
    fn owners(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<(Owner, OwnerState)>> {
        census::states(&self.conn, after, owners_max).map_err(failed)
    }

    fn read(&self, part: Part, each: &mut RowSink<'_>) -> StorageResult<()> {
        // The first statement fixes the snapshot; dropping the transaction ends it.
        let snapshot = self.conn.unchecked_transaction().map_err(failed)?;
        let owner = match part {
            Part::Accounts => None,
            Part::Owner(owner) => {
                let id = snapshot
                    .prepare_cached("SELECT id FROM rollcall_owner WHERE owner = ?1")
                    .map_err(failed)?
                    .query_row([owner.0.as_bytes()], |row| row.get::<_, i64>(0))
                    .optional()
                    .map_err(failed)?;
                let Some(id) = id else { return Ok(()) };
                Some(id)
            }
        };
        let mut held = Vec::new();
        for (place, section) in self.sections.of_part(part).iter().enumerate() {
            let mut statement = snapshot.prepare_cached(&select(section)).map_err(failed)?;
            let mut rows = statement.query(rusqlite::params_from_iter(owner)).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                held.clear();
                for (at, (_, kind)) in section.columns.iter().enumerate() {
                    held.push(
                        values::read(*kind, row.get_ref(at).map_err(failed)?)
                            .map_err(rusqlite::Error::from)
                            .map_err(failed)?,
                    );
                }
                let row: &[Value] = &held;
                if !each(place, row) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
