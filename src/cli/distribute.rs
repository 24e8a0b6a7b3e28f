use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Done;
use super::database::{Database, patient_terms};
use super::serve::read_schema;
use crate::storage::postgres;

/// Moving the rows of a large table to their nodes may take long.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Print or run the statements that spread the tables over the nodes of Citus by owner
///
/// Before: make the extension citus on every node, add the workers (citus_add_node), and serve the database once, so that
/// the tables are there. Run this while no server runs. It skips tables that are distributed already, so run it again if
/// it was broken off. After: rows that were there stay on the coordinator too, until
/// truncate_local_data_after_distributing_table removes them.
#[derive(Debug, Args)]
pub(super) struct Distribute {
    /// Read your tables from this file
    #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
    schema: PathBuf,

    /// Use this database on Citus' coordinator; only needed with --apply
    #[arg(long, env = "ROLLCALL_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Option<Database>,

    /// Run the statements instead of printing them alone
    #[arg(long, requires = "database")]
    apply: bool,
}

impl Distribute {
    pub fn run(self) -> Done {
        let schema = read_schema(&self.schema)?;
        match self.database {
            Some(Database::Postgres(address)) if self.apply => {
                let terms =
                    postgres::Terms { statement_max: PATIENCE, ..patient_terms(Duration::from_secs(30)) };
                postgres::distribute(&address, &terms, &schema, &mut |statement| println!("{statement};"))?;
            }
            Some(Database::Sqlite(_)) if self.apply => {
                return Err("only a database of PostgreSQL with Citus can be distributed".into());
            }
            _ => postgres::distribution(&schema).iter().for_each(|(_, statement)| println!("{statement};")),
        }
        Ok(())
    }
}
