use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::Done;
use super::database::Database;
use super::serve::read_schema;
use crate::storage::sqlite::Sqlite;

/// Look at a schema file, alone or beside a database
#[derive(Debug, Subcommand)]
pub(super) enum SchemaCommand {
    /// Check a schema file; with a database, say what a server would make, add or refuse
    Check {
        /// File that declares your tables
        #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
        schema: PathBuf,

        /// The database to compare it with; nothing is changed in it
        #[arg(long, env = "ROLLCALL_DATABASE", value_name = "sqlite:PATH")]
        database: Option<Database>,
    },
}

impl SchemaCommand {
    pub fn run(self) -> Done {
        let Self::Check { schema, database } = self;
        let declared = read_schema(&schema)?;
        for table in declared.tables() {
            let columns = table.columns.len();
            println!("{}: key {}, {columns} columns, policy {}", table.name, table.key, table.policy.name());
        }
        let Some(Database::Sqlite(path)) = database else {
            println!("{}: good", schema.display());
            return Ok(());
        };
        let plan = Sqlite::compare(&path, &declared, Duration::from_secs(5))?;
        for line in plan.describe() {
            println!("{line}");
        }
        if !plan.refusals().is_empty() {
            return Err("the schema does not fit the database; nothing was changed".into());
        }
        if plan.is_empty() {
            println!("{}: fits {} as it is", schema.display(), path.display());
        }
        Ok(())
    }
}
