//! A database that no server uses, held against itself: whatever was written, this must be true of it.

use rollcall::schema::{ColumnType, Schema, Table};
use rusqlite::Connection;

/// Every statement that finds something finds a fault.
pub fn audit(conn: &Connection, schema: &Schema) -> Vec<String> {
    let mut faults = Vec::new();
    let mut look = |what: &str, sql: &str| {
        let mut statement = conn.prepare(sql).unwrap_or_else(|error| panic!("{what}: {error}"));
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<_> = (0..columns).map(|at| format!("{:?}", row.get_ref_unwrap(at))).collect();
            faults.push(format!("{what}: {}", values.join(", ")));
        }
    };
    look("integrity", "SELECT * FROM pragma_integrity_check() WHERE integrity_check <> 'ok'");
    look("reference", "SELECT * FROM pragma_foreign_key_check()");
    // References that SQLite itself does not check: see migration 4.
    for (table, numbers) in [
        (
            "ledger",
            &[("owner", "owner"), ("tbl", "table"), ("made_by", "writer"), ("changed_by", "writer")][..],
        ),
        ("digest", &[("owner", "owner"), ("tbl", "table")]),
        ("day", &[("owner", "owner")]),
    ] {
        for (number, of) in numbers {
            look(
                "number of nobody",
                &format!(
                    "SELECT '{table}', '{number}', t.* FROM rollcall_{table} t
                     WHERE {number} NOT IN (SELECT id FROM rollcall_{of})"
                ),
            );
        }
    }
    look(
        "row version above its owner's",
        "SELECT o.id, o.version, l.version, l.created FROM rollcall_ledger l JOIN rollcall_owner o ON o.id = l.owner
         WHERE l.version IS NULL OR l.version > o.version OR l.created > l.version",
    );
    let mut weighed = Vec::new();
    for table in schema.tables() {
        let Table { name, key, owner_column, .. } = table;
        let of = format!("(SELECT id FROM rollcall_table WHERE name = '{name}')");
        look(
            "ledger entry without its row",
            &format!(
                "SELECT l.owner, l.tbl, l.key FROM rollcall_ledger l WHERE l.tbl = {of} AND l.deleted = 0 AND NOT EXISTS
                 (SELECT 1 FROM \"{name}\" r WHERE r.\"{owner_column}\" = l.owner AND r.\"{key}\" = l.key)"
            ),
        );
        look(
            "row without its live ledger entry",
            &format!(
                "SELECT '{name}', r.* FROM \"{name}\" r WHERE NOT EXISTS (SELECT 1 FROM rollcall_ledger l WHERE
                 l.owner = r.\"{owner_column}\" AND l.tbl = {of} AND l.key = r.\"{key}\" AND l.deleted = 0)"
            ),
        );
        let weights: Vec<_> = table.columns.iter().map(|column| weight(&column.name, column.kind)).collect();
        let weights = weights.join(" + ");
        weighed.push(format!("SELECT \"{owner_column}\" AS owner, {weights} AS bytes FROM \"{name}\""));
    }
    look(
        "owner's rows or bytes miscounted",
        &format!(
            "WITH weighed AS ({}) SELECT o.id, o.live_rows, count(w.owner), o.live_bytes, total(w.bytes)
             FROM rollcall_owner o LEFT JOIN weighed w ON w.owner = o.id GROUP BY o.id
             HAVING o.live_rows <> count(w.owner) OR o.live_bytes <> total(w.bytes)",
            weighed.join(" UNION ALL ")
        ),
    );
    faults
}

/// What quotas count of a column.
fn weight(name: &str, kind: ColumnType) -> String {
    let bytes = match kind {
        ColumnType::Boolean => "1".to_owned(),
        ColumnType::Integer | ColumnType::Real | ColumnType::Timestamp => "8".to_owned(),
        ColumnType::Decimal | ColumnType::Uuid => "16".to_owned(),
        ColumnType::Date => "10".to_owned(),
        ColumnType::Text | ColumnType::Json | ColumnType::Blob => format!("octet_length(\"{name}\")"),
    };
    format!("iif(\"{name}\" IS NULL, 0, {bytes})")
}
