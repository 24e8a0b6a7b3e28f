//! The application's tables: `schema.toml` as types. Depends on the model alone.

mod column;
mod declare;
mod json;
mod names;
mod read;
mod write;

use std::collections::HashMap;

use crate::broken;
use crate::model::{Precision, Role, Timestamp, Value};

pub use declare::{Fault, SchemaError};
pub use json::{JsonFault, canonical_json};
pub use read::{HAS_NUL, ValueSeed};
pub use write::{WireValue, wire_len};

/// Every declared table, and how times are written.
#[derive(Clone, Debug)]
pub struct Schema {
    /// How finely times are stored, and their format.
    pub precision: Precision,
    tables: Vec<Table>,
    by_name: HashMap<String, TableId>,
    parents_first: Vec<TableId>,
}

/// A declared table's index in its schema. It is valid only for the schema that created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(usize);

impl TableId {
    /// The index in [`Schema::tables`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// One declared table.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its index in the schema.
    pub id: TableId,
    /// The name on the wire and in SQL.
    pub name: String,
    /// The name of its key column (`bid`, `icid`, `id`, …).
    pub key: String,
    /// Which side wins a true conflict.
    pub policy: Policy,
    /// The least role whose members may read rows. For all others the table looks empty.
    pub read: Role,
    /// The least role whose members may change rows: at least [`Self::read`].
    pub write: Role,
    /// How many earlier states of a row are stored, to find the common ancestor of a conflict.
    pub history: usize,
    /// The SQL column with the owner of a row; never on the wire.
    pub owner_column: String,
    /// Without the key, in declared order.
    pub columns: Vec<Column>,
    /// Columns that the database still has and the app no longer syncs.
    pub retired: Vec<String>,
}

impl Table {
    /// The index of a column in [`Table::columns`].
    pub fn column(&self, name: &str) -> Option<usize> {
        // Tables have a handful of columns: a scan is faster than hashing.
        self.columns.iter().position(|column| column.name == name)
    }

    /// The columns that refer to a row of a table, with their indexes.
    pub fn references(&self) -> impl Iterator<Item = (usize, TableId)> + '_ {
        self.columns.iter().enumerate().filter_map(|(at, column)| Some((at, column.references?)))
    }
}

/// One declared column.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The name on the wire and in SQL.
    pub name: String,
    /// The type of its values.
    pub kind: ColumnType,
    /// Whether every row must have a value.
    pub required: bool,
    /// The value of a row that was added without this column.
    pub default: Option<DefaultValue>,
    /// Most characters (`text`) or bytes (`json`, `blob`).
    pub max_length: Option<usize>,
    /// The table whose key it holds.
    pub references: Option<TableId>,
    /// Which side wins the column under the policy `merge`.
    pub merge: ColumnMerge,
}

impl Column {
    /// The time as this column stores it: the value of the default `now`.
    pub fn now(&self, now: Timestamp, precision: Precision) -> Value {
        match self.kind {
            ColumnType::Date => Value::Date(now.date()),
            _ => Value::Timestamp(now.truncated(precision)),
        }
    }
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Unicode without U+0000, which PostgreSQL cannot hold.
    Text,
    /// 64 bits.
    Integer,
    /// Finite, 64 bits.
    Real,
    /// Exact, at most 28 digits.
    Decimal,
    /// True or false.
    Boolean,
    /// A UUID.
    Uuid,
    /// An instant.
    Timestamp,
    /// A calendar day.
    Date,
    /// Any JSON.
    Json,
    /// Bytes, as base64.
    Blob,
}

impl ColumnType {
    /// Every type, in the order of messages and documents.
    pub const ALL: [Self; 10] = [
        Self::Text,
        Self::Integer,
        Self::Real,
        Self::Decimal,
        Self::Boolean,
        Self::Uuid,
        Self::Timestamp,
        Self::Date,
        Self::Json,
        Self::Blob,
    ];

    /// The name in the schema file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Real => "real",
            Self::Decimal => "decimal",
            Self::Boolean => "boolean",
            Self::Uuid => "uuid",
            Self::Timestamp => "timestamp",
            Self::Date => "date",
            Self::Json => "json",
            Self::Blob => "blob",
        }
    }
}

/// The value of a row that was added without the column.
#[derive(Clone, Debug, PartialEq)]
pub enum DefaultValue {
    /// When the row is added, by the server's clock.
    Now,
    /// Always the same.
    Constant(Value),
}

/// Which side wins a true conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The later `last_update`, the server's on a tie.
    #[default]
    Newest,
    /// What the server holds.
    Server,
    /// What the device sends.
    Client,
    /// Each column by itself, against the common ancestor.
    Merge,
    /// Neither side: the server's row stays, and the device receives both.
    Manual,
}

/// Which side wins a column that both sides changed, under [`Policy::Merge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnMerge {
    /// The side with the later `last_update`, the server's on a tie.
    #[default]
    Newest,
    /// The larger value.
    Max,
    /// The smaller value.
    Min,
    /// The ancestor plus what each side added to it.
    Sum,
    /// A `json` list with the items of either side, without what either side removed.
    Union,
}

impl ColumnMerge {
    /// The name in the schema file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Max => "max",
            Self::Min => "min",
            Self::Sum => "sum",
            Self::Union => "union",
        }
    }

    /// Whether columns of that type can be merged this way.
    pub const fn takes(self, kind: ColumnType) -> bool {
        let number = matches!(kind, ColumnType::Integer | ColumnType::Real | ColumnType::Decimal);
        match self {
            Self::Newest => true,
            Self::Max | Self::Min => number || matches!(kind, ColumnType::Timestamp | ColumnType::Date),
            Self::Sum => number,
            Self::Union => matches!(kind, ColumnType::Json),
        }
    }
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 5] = [Self::Newest, Self::Server, Self::Client, Self::Merge, Self::Manual];

    /// The name in the schema file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Server => "server",
            Self::Client => "client",
            Self::Merge => "merge",
            Self::Manual => "manual",
        }
    }
}

impl Schema {
    /// No table at all: for work on an owner that touches no rows.
    pub fn empty() -> Self {
        let (tables, by_name) = (Vec::new(), HashMap::new());
        Self { precision: Precision::Milliseconds, tables, by_name, parents_first: Vec::new() }
    }

    /// Every table, in declared order.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The table of that name.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.by_name.get(name).map(|id| &self.tables[id.0])
    }

    /// The table with that id.
    pub fn at(&self, id: TableId) -> &Table {
        &self.tables[id.0]
    }

    /// Whether a table looks empty to members of that role.
    pub fn hides(&self, table: TableId, role: Role) -> bool {
        self.at(table).read > role && !broken::is("table_readers_unchecked")
    }

    /// How many tables look empty to members of that role. Roles include each other, so two roles that read the same
    /// number of tables read the same tables.
    pub fn hidden_from(&self, role: Role) -> usize {
        self.tables.iter().filter(|table| self.hides(table.id, role)).count()
    }

    /// Every table, parents before the tables that refer to them.
    pub fn parents_first(&self) -> &[TableId] {
        &self.parents_first
    }

    /// The same schema with its retired columns declared again. `known` returns the present name and type of
    /// a table's column; a column that it does not return is left out.
    pub fn unretired(&self, known: impl Fn(&str, &str) -> Option<(String, ColumnType)>) -> Self {
        let mut schema = self.clone();
        for table in &mut schema.tables {
            for name in std::mem::take(&mut table.retired) {
                if let Some((name, kind)) = known(&table.name, &name) {
                    table.columns.push(Column {
                        name,
                        kind,
                        required: false,
                        default: None,
                        max_length: None,
                        references: None,
                        merge: ColumnMerge::default(),
                    });
                }
            }
        }
        schema
    }

    /// The columns that hold keys of `parent`, with their tables.
    pub fn referrers(&self, parent: TableId) -> impl Iterator<Item = (TableId, usize)> + '_ {
        self.tables.iter().flat_map(move |table| {
            table.references().filter(move |(_, to)| *to == parent).map(move |(column, _)| (table.id, column))
        })
    }
}
