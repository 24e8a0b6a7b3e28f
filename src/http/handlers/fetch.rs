use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{CACHE_CONTROL, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LINK};
use http::{Response, StatusCode};
use warp::path::FullPath;

use super::{
    Answer, ApiError, App, flag, json_bytes, lock_for_work, off_reactor, parameters, tell_lease, tell_version,
};
use crate::accounts::Caller;
use crate::fetch::{self, FetchError, Mark};
use crate::http::wire::Manifest;
use crate::model::{Owner, RowKey, Version};
use crate::schema::{Schema, TableId};

/// What a query asks for.
#[derive(Debug)]
struct Asked {
    tables: Vec<TableId>,
    /// As the query spells it, for the link to the next page.
    tables_given: Option<String>,
    lock: bool,
    page: Option<Mark>,
}

/// One page of the roll call, or nothing if the caller has it already.
enum Page {
    Unchanged(Version),
    Full { version: Version, body: Vec<u8>, next: Option<Mark> },
}

/// `GET /fetch`, phase 1.
pub async fn fetch(
    app: Arc<App>,
    caller: Result<Caller, ApiError>,
    headers: HeaderMap,
    path: FullPath,
    query: String,
) -> Answer {
    let caller = caller?;
    let asked = Asked::read(&query, &app.schema)?;
    // A sync begins here: whatever hold of the lock the caller had before is no condition.
    let work = if asked.lock { Some(lock_for_work(&app, &caller, None, &headers).await?) } else { None };

    off_reactor(move || {
        let page = app.storage.read(caller.owner, |txn| {
            let version = txn.state().version;
            let moved = asked.page.is_some_and(|page| page.version != version);
            if !moved && lists(&headers, &etag(caller.owner, version, &asked, &app.schema)) {
                return Ok(Page::Unchanged(version));
            }
            let mut manifest = Manifest::new(&app.schema);
            let rows_max = app.settings.sync.fetch_rows_max;
            let next = fetch::run(txn, &asked.tables, asked.page, rows_max, &mut manifest)?;
            Ok::<_, ApiError>(Page::Full { version, body: manifest.finish(), next })
        })?;
        let (version, mut answer) = match page {
            Page::Unchanged(version) => {
                let mut answer = Response::new(Vec::new().into());
                *answer.status_mut() = StatusCode::NOT_MODIFIED;
                (version, answer)
            }
            Page::Full { version, body, next } => {
                let mut answer = json_bytes(body);
                if let Some(next) = next {
                    answer.headers_mut().insert(LINK, header(&asked.link(path.as_str(), next))?);
                }
                (version, answer)
            }
        };
        let headers = answer.headers_mut();
        headers.insert(ETAG, header(&etag(caller.owner, version, &asked, &app.schema))?);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        tell_version(headers, version);
        if let Some(work) = &work {
            tell_lease(headers, work.lease());
        }
        Ok(answer)
    })
    .await
}

impl Asked {
    fn read(query: &str, schema: &Schema) -> Result<Self, ApiError> {
        let every = schema.tables().iter().map(|table| table.id).collect();
        let mut asked = Self { tables: every, tables_given: None, lock: true, page: None };
        for (name, value) in parameters(query, &["tables", "lock", "page"])? {
            match name.as_str() {
                "tables" => {
                    asked.tables = tables(&value, schema)?;
                    asked.tables_given = Some(value);
                }
                "lock" => asked.lock = flag("lock", &value)?,
                _ => asked.page = Some(read_mark(&value).ok_or_else(bad_page)?),
            }
        }
        if asked.page.is_some_and(|page| page.table >= asked.tables.len()) {
            return Err(bad_page());
        }
        Ok(asked)
    }

    fn link(&self, path: &str, next: Mark) -> String {
        let mut query = vec![("page", write_mark(next))];
        if let Some(tables) = &self.tables_given {
            query.insert(0, ("tables", tables.clone()));
        }
        if !self.lock {
            query.push(("lock", "false".into()));
        }
        // Pairs of strings always have a spelling.
        let query = serde_urlencoded::to_string(query).unwrap_or_default();
        format!("<{path}?{query}>; rel=\"next\"")
    }
}

pub(super) fn tables(names: &str, schema: &Schema) -> Result<Vec<TableId>, ApiError> {
    let mut tables = Vec::new();
    for name in names.split(',') {
        let table = schema.table(name).ok_or_else(|| ApiError::InvalidRequest {
            reason: format!("tables: there is no table {name:?}."),
        })?;
        if !tables.contains(&table.id) {
            tables.push(table.id);
        }
    }
    Ok(tables)
}

fn write_mark(mark: Mark) -> String {
    let after = mark.after.map(|key| key.to_string()).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(format!("{}.{}.{after}", mark.version, mark.table))
}

fn read_mark(text: &str) -> Option<Mark> {
    let mark = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let mut parts = mark.splitn(3, '.');
    let version = Version(parts.next()?.parse().ok()?);
    let table = parts.next()?.parse().ok()?;
    let after = match parts.next()? {
        "" => None,
        key => Some(RowKey::parse(key)?),
    };
    Some(Mark { version, table, after })
}

fn bad_page() -> ApiError {
    ApiError::InvalidRequest { reason: "page must come from the Link of the page before.".into() }
}

/// Names one answer: the owner's version, and what was asked of it.
///
/// Weak, since a proxy may compress it. The owner is in it, or a browser that changed accounts could keep
/// the other's.
fn etag(owner: Owner, version: Version, asked: &Asked, schema: &Schema) -> String {
    let mut hasher = DefaultHasher::new();
    let names: Vec<_> = asked.tables.iter().map(|table| &schema.at(*table).name).collect();
    (owner, names, asked.page.map(write_mark)).hash(&mut hasher);
    format!("W/\"{version}-{:016x}\"", hasher.finish())
}

/// Whether `If-None-Match` lists the tag.
pub(super) fn lists(headers: &HeaderMap, etag: &str) -> bool {
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    known.flat_map(|line| line.split(',')).any(|tag| tag.trim() == "*" || strong(tag) == strong(etag))
}

pub(super) fn header(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(text).map_err(|error| ApiError::Internal(Box::new(error)))
}

impl From<FetchError> for ApiError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::VersionMoved => Self::VersionMoved,
            FetchError::Storage(error) => error.into(),
        }
    }
}
