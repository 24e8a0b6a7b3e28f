use uuid::Uuid;

use crate::model::{RowKey, Timestamp};
use crate::schema::{Schema, TableId};

/// Writes the manifest as JSON, row by row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manifest {
    /// The current table, and whether it has a row yet.
    table: Option<(TableId, bool)>,
}

impl Manifest {
    /// About how many bytes a row takes.
    pub const ROW_BYTES: u64 = 88;

    /// Begins the rows of a table.
    pub fn table(&mut self, schema: &Schema, body: &mut Vec<u8>, table: TableId) {
        let before = if self.table.is_some() { "]," } else { "{" };
        self.table = Some((table, false));
        // Declared names need no escapes.
        for part in [before, "\"", &schema.at(table).name, "\":["] {
            body.extend_from_slice(part.as_bytes());
        }
    }

    /// Writes one row of that table.
    pub fn row(&mut self, schema: &Schema, body: &mut Vec<u8>, key: RowKey, last_update: Timestamp) {
        let Some((table, begun)) = &mut self.table else { return };
        let mut buffer = Uuid::encode_buffer();
        let key = key.0.hyphenated().encode_lower(&mut buffer);
        for part in [
            if *begun { ",{\"" } else { "{\"" }.as_bytes(),
            schema.at(*table).key.as_bytes(),
            b"\":\"",
            key.as_bytes(),
            b"\",\"last_update\":\"",
            last_update.format(schema.precision).as_bytes(),
            b"\"}",
        ] {
            body.extend_from_slice(part);
        }
        *begun = true;
    }

    /// Ends the manifest.
    pub fn end(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(if self.table.is_some() { b"]}" } else { b"{}" });
    }
}
