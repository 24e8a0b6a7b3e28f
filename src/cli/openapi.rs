use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::Done;
use super::serve::read_schema;
use crate::contract;
use crate::dialects::Dialect;

/// Print the API of your tables as OpenAPI 3.0.3, for a generator of clients
///
/// It has a type for each table's rows, new rows, edits, deletions, manifest entries and verdicts. A running server
/// returns the same at /openapi.json.
#[derive(Debug, Args)]
pub(super) struct Openapi {
    /// Read your tables from this file
    #[arg(long, env = "ROLLCALL_SCHEMA", value_name = "FILE")]
    schema: PathBuf,

    /// Add the operations of this dialect
    ///
    /// Repeat the flag, or separate by commas.
    #[arg(long = "dialect", env = "ROLLCALL_DIALECTS", value_name = "NAME", value_delimiter = ',')]
    dialects: Vec<Dialect>,
}

impl Openapi {
    pub fn run(self) -> Done {
        let document = contract::typed(&read_schema(&self.schema)?, &self.dialects)?;
        let mut out = std::io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &document)?;
        Ok(writeln!(out)?)
    }
}
