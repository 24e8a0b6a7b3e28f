//! Change tracking: `GET /{table}/sync` returns the whole table, or its net changes since a version.

use std::ops::ControlFlow;
use std::sync::Arc;

use http::Response;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Reply;

use super::Who;
use crate::accounts::Caller;
use crate::changes::{self, Feed, FeedFilter};
use crate::http::console_routes::boxed;
use crate::http::handlers::caller::handle_caller;
use crate::http::handlers::{HandlerResult, hold};
use crate::http::methods::get;
use crate::http::query::{self, invalid};
use crate::http::stream::{self, Body, ChunkWriter, Progress, Source};
use crate::http::{ApiError, App, Sight};
use crate::model::{Owner, RowKey, Stored, Version};
use crate::reconcile::NetChange;
use crate::schema::{Schema, Table, TableId, WireValue};
use crate::storage::{FeedPosition, OwnerState};

const FROM_VERSION: HeaderName = HeaderName::from_static("fromversion");

/// First parts of paths below which a table of that name could have its path in common with another.
const PATHS: [&str; 7] = ["conflicts", "console", "demo", "devices", "owners", "sync", "v1"];

/// Why the table cannot have a path `/{table}/sync`, if it cannot.
pub(super) fn fault(table: &Table) -> Option<String> {
    let name = table.name.as_str();
    PATHS.contains(&name).then(|| {
        format!("a table cannot be called {name:?}, since the server has paths below /{name}; rename it")
    })
}

/// `GET /{table}/sync` and `GET /sync`.
pub(super) fn routes(app: &Arc<App>, who: &BoxedFilter<(Who,)>) -> BoxedFilter<(warp::reply::Response,)> {
    let with_app = {
        let app = Arc::clone(app);
        warp::any().map(move || Arc::clone(&app))
    };
    let headers = warp::header::headers_cloned();
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let one = warp::path!(String / "sync")
        .and(get())
        .and(with_app.clone())
        .and(who.clone())
        .and(headers)
        .and(query)
        .then(|table: String, app, who: Who, headers, query| {
            handle_caller(who, |who| of_one(table, app, who, headers, query))
        });
    let many =
        warp::path!("sync").and(get()).and(with_app).and(who.clone()).and(headers).and(query).then(
            |app, who: Who, headers, query| handle_caller(who, |who| of_many(app, who, headers, query)),
        );
    boxed(one).or(boxed(many)).unify().boxed()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneQuery {
    #[serde(rename = "fromVersion")]
    from_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManyQuery {
    #[serde(rename = "fromVersion")]
    from_version: Option<String>,
    tables: Option<String>,
}

/// Returns one table. Another name than that of a table is a path that does not exist.
async fn of_one(
    table: String,
    app: Arc<App>,
    caller: Who,
    headers: HeaderMap,
    query: String,
) -> HandlerResult {
    let table = app.schema.table(&table).ok_or(ApiError::no_such_path())?.id;
    let caller = caller?;
    let OneQuery { from_version } = query::read(&query)?;
    let since = from_version_of(&headers, from_version.as_deref())?;
    respond(app, caller, Tables::One(table), since).await
}

/// Returns several tables; each row says in `$table` whose it is.
async fn of_many(app: Arc<App>, caller: Who, headers: HeaderMap, query: String) -> HandlerResult {
    let caller = caller?;
    let ManyQuery { from_version, tables } = query::read(&query)?;
    let since = from_version_of(&headers, from_version.as_deref())?;
    let tables = query::tables(tables.as_deref(), &app.schema)?;
    respond(app, caller, Tables::Many(tables), since).await
}

/// The version to begin at, from the header or the query; `None` for everything.
fn from_version_of(headers: &HeaderMap, in_query: Option<&str>) -> Result<Option<Version>, ApiError> {
    let wrong = || invalid("fromVersion must be a version that came with Metadata.Sync.Version.");
    let mut given = headers.get_all(FROM_VERSION).iter();
    let in_header = given.next().map(|value| value.to_str().map_err(|_| wrong())).transpose()?;
    let text = match (in_header, in_query) {
        _ if given.next().is_some() => return Err(wrong()),
        (Some(header), Some(query)) if header.trim() != query => {
            return Err(invalid("fromVersion comes twice, and the two differ: send it once."));
        }
        (header, query) => header.map(str::trim).or(query),
    };
    let version = text.map(|text| text.parse().map_err(|_| wrong())).transpose()?;
    Ok(version.filter(|version| *version > 0).map(Version))
}

/// Which tables a response has.
enum Tables {
    One(TableId),
    Many(Vec<TableId>),
}

impl Tables {
    fn ids(&self) -> &[TableId] {
        match self {
            Self::One(table) => std::slice::from_ref(table),
            Self::Many(tables) => tables,
        }
    }
}

async fn respond(app: Arc<App>, caller: Caller, tables: Tables, since: Option<Version>) -> HandlerResult {
    let readers = Arc::clone(&app.readers);
    let permit = app.memory.permit(Some(caller.owner));
    let rows = Rows { app, caller, tables, since, rest: None, is_first_row: true };
    let ((), body) = stream::respond(&readers, &permit, rows).await?;
    let mut response = match body {
        Body::Buffered(text) => hold(Response::new(text.into()), permit)?,
        Body::Streaming(coming) => {
            let mut response = warp::reply::stream(coming.holding(permit.clone())).into_response();
            response.extensions_mut().insert(permit);
            response
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The rows of a response, as they are read.
struct Rows {
    app: Arc<App>,
    caller: Caller,
    tables: Tables,
    since: Option<Version>,
    /// What is still to be returned, once it has begun.
    rest: Option<Feed>,
    is_first_row: bool,
}

impl Source for Rows {
    type Head = ();

    fn owner(&self) -> Owner {
        self.caller.owner
    }

    /// A client inserts what is `I` and updates what is `U`, so the response is of one version throughout.
    fn needs_one_snapshot(&self) -> bool {
        true
    }

    fn read(&mut self, out: &mut ChunkWriter<()>) -> Result<Progress, ApiError> {
        let app = Arc::clone(&self.app);
        let caller = self.caller.clone();
        app.read_as(&caller, |txn, Sight { state, .. }| {
            let mut feed = match self.rest {
                Some(feed) if feed.until != state.version => return Err(ApiError::VersionMoved),
                Some(feed) => feed,
                None => {
                    out.begin(());
                    self.begin(state, &mut out.buf)?
                }
            };
            loop {
                let filter = FeedFilter {
                    device: self.caller.device,
                    tables: self.tables.ids(),
                    rows_max: usize::MAX,
                    bytes_max: usize::MAX,
                    entries_max: app.settings.sync.page_entries_max,
                };
                let (mut failure, mut rows, mut is_stopped) = (None, 0, false);
                let (rest, is_first_row) = (&mut self.rest, &mut self.is_first_row);
                let item = Item { schema: &app.schema, is_diff: feed.since.is_some(), tables: &self.tables };
                let page = changes::run(txn, feed, &filter, &mut |net, table, key, row| {
                    failure = item.write(&mut out.buf, is_first_row, net, table, key, row).err();
                    rows += 1;
                    let position = FeedPosition { version: row.version, within: Some((table, key)) };
                    *rest = Some(Feed { position, ..feed });
                    let flow = if failure.is_some() { ControlFlow::Break(()) } else { out.flush_if_full() };
                    is_stopped |= flow.is_break();
                    flow
                })?;
                app.metrics.fed(rows, page.looked as u64);
                if let Some(error) = failure {
                    return Err(error);
                }
                let Some(next) = page.next else { break };
                (feed, self.rest) = (next, Some(next));
                if is_stopped || out.is_due() {
                    return Ok(Progress::Paused);
                }
            }
            out.buf.extend_from_slice(b"]}");
            Ok(Progress::Finished)
        })
    }
}

impl Rows {
    /// Writes the head of the response, and returns the feed that it goes on with.
    fn begin(&mut self, state: OwnerState, buf: &mut Vec<u8>) -> Result<Feed, ApiError> {
        let (feed, reason) = match Feed::begin(state, self.since) {
            Ok(feed) if self.since.is_some() => (feed, None),
            Ok(feed) => (feed, Some(0)),
            Err(_) => (Feed::begin(state, None)?, Some(1)),
        };
        if self.tables.ids().len() == self.app.schema.tables().len() {
            self.app.acks.note(&self.caller, feed.since, self.app.clock.now());
        }
        let mut sync =
            json!({ "Version": feed.until, "Type": if reason.is_some() { "Full" } else { "Diff" } });
        if let Some(reason) = reason {
            sync["ReasonCode"] = reason.into();
        }
        buf.clear();
        buf.extend_from_slice(format!("{{\"Metadata\":{{\"Sync\":{sync}}},\"Data\":[").as_bytes());
        (self.rest, self.is_first_row) = (Some(feed), true);
        Ok(feed)
    }
}

/// Writes the rows of one response.
struct Item<'a> {
    schema: &'a Schema,
    is_diff: bool,
    tables: &'a Tables,
}

impl Item<'_> {
    fn write(
        &self,
        buf: &mut Vec<u8>,
        is_first_row: &mut bool,
        net: NetChange,
        table: TableId,
        key: RowKey,
        row: &Stored,
    ) -> Result<(), ApiError> {
        if !std::mem::replace(is_first_row, false) {
            buf.push(b',');
        }
        let row = RowBody { item: self, net, table: self.schema.at(table), key, row };
        serde_json::to_writer(buf, &row).map_err(|error| ApiError::Internal(Box::new(error)))
    }
}

/// One row with its operation; of a deleted one only the key.
struct RowBody<'a> {
    item: &'a Item<'a>,
    net: NetChange,
    table: &'a Table,
    key: RowKey,
    row: &'a Stored,
}

impl Serialize for RowBody<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { item, net, table, key, row } = *self;
        let mut map = to.serialize_map(None)?;
        if matches!(item.tables, Tables::Many(_)) {
            map.serialize_entry("$table", &table.name)?;
        }
        if item.is_diff {
            let operation = match net {
                NetChange::Add => "I",
                NetChange::Update => "U",
                NetChange::Delete => "D",
            };
            map.serialize_entry("$operation", operation)?;
        }
        map.serialize_entry(&table.key, &key)?;
        if let (Some(values), true) = (&row.values, net != NetChange::Delete) {
            let precision = item.schema.precision;
            for (column, value) in table.columns.iter().zip(values) {
                map.serialize_entry(&column.name, &WireValue { value, precision })?;
            }
            map.serialize_entry("last_update", row.last_update.format(precision).as_str())?;
        }
        map.end()
    }
}
