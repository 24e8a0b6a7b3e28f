use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::Done;
use super::database::{Database, patient_terms};
use super::serve::read_schema;
use crate::model::Role;
use crate::schema::Table;
use crate::storage::postgres::Postgres;
use crate::storage::sqlite::Sqlite;

/// How long to wait for a busy database.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// Check a schema file, alone or against a database
#[derive(Debug, Subcommand)]
pub(super) enum SchemaCommand {
    /// Check a schema file; with a database, print what a server would make, add or refuse
    Check {
        /// Read your tables from this file
        #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
        schema: PathBuf,

        /// Compare it with this database; nothing is changed in it
        #[arg(long, env = "ROLLCALL_DATABASE", value_name = "URL", hide_env_values = true)]
        database: Option<Database>,
    },
}

/// Who reads and writes a table, if not all members that usually do.
fn members(table: &Table) -> &'static str {
    match (table.read, table.write) {
        (Role::Manage, _) => ", for members who manage the owner",
        (Role::Write, Role::Manage) => {
            ", read by members who may write, written by those who manage the owner"
        }
        (Role::Write, _) => ", for members who may write",
        (Role::Read, Role::Manage) => ", written by members who manage the owner",
        (Role::Read, _) => "",
    }
}

impl SchemaCommand {
    pub fn run(self) -> Done {
        let Self::Check { schema, database } = self;
        let declared = read_schema(&schema)?;
        for table in declared.tables() {
            let columns = table.columns.len();
            println!(
                "{}: key {}, {columns} columns, policy {}{}",
                table.name,
                table.key,
                table.policy.name(),
                members(table)
            );
        }
        let Some(database) = database else {
            println!("{}: good", schema.display());
            return Ok(());
        };
        let plan = match &database {
            Database::Sqlite(path) => Sqlite::compare(path, &declared, BUSY_WAIT)?,
            Database::Postgres(address) => Postgres::compare(address, &declared, &patient_terms(BUSY_WAIT))?,
        };
        for line in plan.describe() {
            println!("{line}");
        }
        if !plan.refusals().is_empty() {
            return Err("the schema does not fit the database; nothing was changed".into());
        }
        if plan.is_empty() {
            println!("{}: fits {database} as it is", schema.display());
        }
        Ok(())
    }
}
