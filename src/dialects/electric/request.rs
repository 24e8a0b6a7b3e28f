use std::fmt::Write as _;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::changes::Feed;
use crate::http::ApiError;
use crate::http::page_token::read_feed;
use crate::http::query::{self, invalid};
use crate::model::{Owner, Version};
use crate::schema::{Schema, TableId};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    table: Option<String>,
    offset: Option<String>,
    handle: Option<String>,
    live: Option<bool>,
    columns: Option<String>,
    replica: Option<String>,
    log: Option<String>,
    r#where: Option<String>,
    live_sse: Option<bool>,
    experimental_live_sse: Option<bool>,
    expired_handle: Option<String>,
    /// Both only make an address differ from an earlier one, so that no cache answers.
    #[serde(rename = "cursor")]
    _cursor: Option<String>,
    #[serde(rename = "cache-buster")]
    _cache_buster: Option<String>,
}

/// What a client wants of a table.
#[derive(Clone, Debug)]
pub(super) struct ShapeRequest {
    pub shape: Shape,
    pub offset: Offset,
    pub handle: Option<String>,
    pub is_live: bool,
    expired_handle: Option<String>,
}

/// A table, and the columns of it that are sent.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub table: TableId,
    pub columns: Vec<Column>,
}

/// A member of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Key,
    /// By its place in the schema.
    Declared(usize),
    LastUpdate,
}

/// How far a client has come.
#[derive(Clone, Debug)]
pub(super) enum Offset {
    Beginning,
    /// Everything up to now is of no interest.
    Now,
    /// Everything up to this version.
    At(Version),
    /// Some pages of a feed.
    Within(Feed),
}

impl ShapeRequest {
    /// Reads a query string.
    ///
    /// Errors: 400 `invalid_request` that says what is not served, or which parameter cannot be read.
    pub fn read(query: &str, schema: &Schema) -> Result<Self, ApiError> {
        let query: Query = query::read(query)?;
        query.refuse_what_is_not_served()?;
        let shape = Shape::read(query.table.as_deref(), query.columns.as_deref(), schema)?;
        let offset = Offset::read(query.offset.as_deref(), &shape, schema)?;
        let goes_on = matches!(offset, Offset::At(_) | Offset::Within(_));
        if goes_on && query.handle.is_none() {
            return Err(invalid("handle must come with an offset: both are headers of the response before."));
        }
        Ok(Self {
            shape,
            is_live: query.live == Some(true) && matches!(offset, Offset::At(_)),
            offset,
            handle: query.handle,
            expired_handle: query.expired_handle,
        })
    }

    /// `handle`, or one that the client has not seen expire.
    pub fn another(&self, handle: String) -> String {
        let seen = [&self.handle, &self.expired_handle];
        if seen.iter().any(|seen| seen.as_deref() == Some(&handle)) { handle + "r" } else { handle }
    }
}

impl Query {
    fn refuse_what_is_not_served(&self) -> Result<(), ApiError> {
        if self.r#where.is_some() {
            return Err(invalid(
                "where is not served: a shape is a whole table of the owner. Leave it out, and filter on the device.",
            ));
        }
        if self.live_sse == Some(true) || self.experimental_live_sse == Some(true) {
            return Err(invalid(
                "live_sse is not served: leave it out, and the client waits with long polls (live=true).",
            ));
        }
        if self.log.as_deref().is_some_and(|log| log != "full") {
            return Err(invalid("log must be full: a shape begins with all its rows."));
        }
        if self.replica.as_deref().is_some_and(|replica| replica != "default" && replica != "full") {
            return Err(invalid("replica must be default or full."));
        }
        Ok(())
    }
}

impl Shape {
    fn read(table: Option<&str>, columns: Option<&str>, schema: &Schema) -> Result<Self, ApiError> {
        let name = table.ok_or_else(|| invalid("table is missing: name the table of the shape."))?;
        let plain = name.strip_prefix("public.").unwrap_or(name);
        let table =
            schema.table(plain).ok_or_else(|| invalid(format!("table: there is no table {name:?}.")))?;
        let mut chosen = Vec::new();
        let Some(columns) = columns else {
            chosen.push(Column::Key);
            chosen.extend((0..table.columns.len()).map(Column::Declared));
            chosen.push(Column::LastUpdate);
            return Ok(Self { table: table.id, columns: chosen });
        };
        for name in columns.split(',') {
            let plain = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name);
            let column = match plain {
                _ if plain == table.key => Some(Column::Key),
                "last_update" => Some(Column::LastUpdate),
                _ => table.column(plain).map(Column::Declared),
            };
            let column =
                column.ok_or_else(|| invalid(format!("columns: {} has no column {name:?}.", table.name)))?;
            if !chosen.contains(&column) {
                chosen.push(column);
            }
        }
        if !chosen.contains(&Column::Key) {
            return Err(invalid(format!("columns must name the key, {:?}.", table.key)));
        }
        Ok(Self { table: table.id, columns: chosen })
    }
}

impl Offset {
    fn read(text: Option<&str>, shape: &Shape, schema: &Schema) -> Result<Self, ApiError> {
        let wrong = || invalid("offset must be -1, now, or what came in the header electric-offset.");
        match text.ok_or_else(wrong)? {
            "-1" => Ok(Self::Beginning),
            "now" => Ok(Self::Now),
            text => {
                let (first, rest) = text.split_once('_').ok_or_else(wrong)?;
                if let (true, Ok(version)) = (rest == "0", first.parse()) {
                    return Ok(Self::At(Version(version)));
                }
                let (feed, tables) = read_feed(rest, schema).filter(|_| first == "0").ok_or_else(wrong)?;
                if tables == [shape.table] { Ok(Self::Within(feed)) } else { Err(wrong()) }
            }
        }
    }
}

/// The names that a shape of an owner can have.
pub(super) struct Handle {
    kin: String,
    version: Version,
}

impl Handle {
    /// - Shape: a hash of what an offset depends on, and the owner's version when the client began. So a handle that
    ///   has expired never comes again.
    pub fn new(shape: &Shape, owner: Owner, version: Version, schema: &Schema) -> Self {
        let table = schema.at(shape.table);
        let mut hash = Sha256::new();
        hash.update(owner.0.as_bytes());
        hash.update(version.epoch().to_be_bytes());
        hash.update(format!("{} {:?}", table.name, schema.precision));
        for column in &shape.columns {
            let described = match column {
                Column::Key => format!(",{}", table.key),
                Column::LastUpdate => ",last_update".into(),
                Column::Declared(place) => {
                    let column = &table.columns[*place];
                    format!(",{} {} {}", column.name, column.kind.name(), column.required)
                }
            };
            hash.update(described);
        }
        let kin = hash.finalize().iter().take(8).fold(String::new(), |mut kin, byte| {
            let _ = write!(kin, "{byte:02x}"); // a String takes everything
            kin
        });
        Self { kin, version }
    }

    /// A handle for a client that begins now.
    pub fn new_one(&self) -> String {
        format!("{}-{}", self.kin, self.version)
    }

    /// Whether a handle is of this owner, table, columns and epoch.
    pub fn is_kin(&self, handle: &str) -> bool {
        handle.strip_prefix(self.kin.as_str()).is_some_and(|rest| rest.starts_with('-'))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        Schema::parse(
            "[table.notes]\nkey = \"nid\"\n[table.notes.columns]\ntext = \"text\"\nstars = \"integer\"\n",
        )
        .unwrap()
    }

    #[test]
    fn what_is_not_served_is_refused_with_a_sentence() {
        for (query, reason_part) in [
            ("offset=-1", "table is missing"),
            ("table=nothing&offset=-1", "there is no table"),
            ("table=notes", "offset must be"),
            ("table=notes&offset=5", "offset must be"),
            ("table=notes&offset=0_bm90", "offset must be"),
            ("table=notes&offset=5_0", "handle must come"),
            ("table=notes&offset=-1&where=stars>1", "where is not served"),
            ("table=notes&offset=-1&live_sse=true", "live_sse is not served"),
            ("table=notes&offset=-1&experimental_live_sse=true", "live_sse is not served"),
            ("table=notes&offset=-1&log=changes_only", "log must be full"),
            ("table=notes&offset=-1&replica=some", "replica must be"),
            ("table=notes&offset=-1&columns=text", "must name the key"),
            ("table=notes&offset=-1&columns=nid,colour", "has no column"),
            ("table=notes&offset=-1&subset__limit=3", "unknown field"),
        ] {
            match ShapeRequest::read(query, &schema()) {
                Err(ApiError::InvalidRequest { reason }) => {
                    assert!(reason.contains(reason_part), "{query}: {reason}")
                }
                other => panic!("{query}: {other:?}"),
            }
        }
    }

    #[test]
    fn columns_are_chosen_as_the_client_quotes_them() {
        let read = |query: &str| ShapeRequest::read(query, &schema()).unwrap().shape.columns;
        let all = [Column::Key, Column::Declared(0), Column::Declared(1), Column::LastUpdate];
        assert_eq!(read("table=public.notes&offset=-1&log=full&replica=full"), all);
        assert_eq!(
            read("table=notes&offset=now&columns=%22stars%22,nid,last_update,stars"),
            [Column::Declared(1), Column::Key, Column::LastUpdate]
        );
    }

    #[test]
    fn a_handle_is_of_one_owner_shape_and_epoch_and_never_comes_again() {
        let schema = schema();
        let shape = |columns: &str| Shape::read(Some("notes"), Some(columns), &schema).unwrap();
        let of = |columns, owner: u128, version| {
            Handle::new(&shape(columns), Owner(uuid::Uuid::from_u128(owner)), version, &schema)
        };
        let (first, later) = (of("nid", 1, Version(5)), of("nid", 1, Version(9)));
        assert!(later.is_kin(&first.new_one()));
        assert_ne!(first.new_one(), later.new_one());
        for other in
            [of("nid,text", 1, Version(5)), of("nid", 2, Version(5)), of("nid", 1, Version::first(3))]
        {
            assert!(!other.is_kin(&first.new_one()));
        }
        let handle = first.new_one();
        let query = format!("table=notes&offset=-1&expired_handle={handle}");
        assert_ne!(ShapeRequest::read(&query, &schema).unwrap().another(handle.clone()), handle);
    }
}
