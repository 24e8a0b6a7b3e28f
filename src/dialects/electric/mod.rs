//! Electric: `GET /v1/shape` returns the rows of a table, and then what changes, to Electric's clients.
//!
//! An offset is a version of the owner, or a page token between two pages. A handle names what an offset is of: owner,
//! table, columns, epoch, and the version at which the client began. Where an offset is of no use any more, the response
//! is 409 `must-refetch` with another handle, and the client begins anew.

mod message;
mod request;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use warp::Filter;
use warp::filters::BoxedFilter;

use self::message::{Messages, schema_json};
use self::request::{Handle, Offset, ShapeRequest};
use super::Who;
use crate::accounts::Caller;
use crate::changes::{self, Feed, FeedFilter};
use crate::http::console_routes::boxed;
use crate::http::handlers::caller::handle_caller;
use crate::http::handlers::{HandlerResult, hold, json_bytes, off_reactor};
use crate::http::methods::get;
use crate::http::page_token::write_feed;
use crate::http::{ApiError, App, Permit, Sight};
use crate::model::{RowKey, Stored};
use crate::reconcile::NetChange;
use crate::storage::OwnerState;

/// The headers that Electric's clients read.
pub(super) const RESPONSE_HEADERS: [&str; 5] =
    ["electric-cursor", "electric-handle", "electric-offset", "electric-schema", "electric-up-to-date"];

const CURSOR: HeaderName = HeaderName::from_static(RESPONSE_HEADERS[0]);
const HANDLE: HeaderName = HeaderName::from_static(RESPONSE_HEADERS[1]);
const OFFSET: HeaderName = HeaderName::from_static(RESPONSE_HEADERS[2]);
const SCHEMA: HeaderName = HeaderName::from_static(RESPONSE_HEADERS[3]);
const UP_TO_DATE: HeaderName = HeaderName::from_static(RESPONSE_HEADERS[4]);

/// `GET /v1/shape`
pub(super) fn routes(app: &Arc<App>, who: &BoxedFilter<(Who,)>) -> BoxedFilter<(warp::reply::Response,)> {
    let app = Arc::clone(app);
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let shape = warp::path!("v1" / "shape")
        .and(get())
        .and(warp::any().map(move || Arc::clone(&app)))
        .and(who.clone())
        .and(query)
        .then(|app, who: Who, query| handle_caller(who, |who| shape(app, who, query)));
    boxed(shape)
}

async fn shape(app: Arc<App>, caller: Who, query: String) -> HandlerResult {
    let caller = caller?;
    let mut request = ShapeRequest::read(&query, &app.schema)?;
    if !request.is_live {
        let outcome = read(&app, &caller, &request).await?;
        return respond(&app, &request, outcome);
    }
    // First a place among the listeners, then a read: no change between the two is missed.
    let mut subscription = app.events.listen(&caller)?;
    let until = Instant::now() + Duration::from_secs(app.settings.dialects.electric_wait_s);
    loop {
        let is_over = Instant::now() >= until || app.draining.is_set();
        let outcome = match read(&app, &caller, &request).await? {
            Outcome::Page(page) if page.rows.is_empty() && page.next.is_none() && !is_over => page.feed.until,
            outcome => return respond(&app, &request, outcome),
        };
        // What has been looked at and was of other tables is not looked at again.
        request.offset = Offset::At(outcome);
        loop {
            tokio::select! {
                biased;
                () = app.draining.begun() => break,
                () = subscription.changed() => {}
                () = sleep_until(until) => break,
            }
            let news = subscription.pending();
            if news.ended.is_some() {
                return respond(&app, &request, read(&app, &caller, &request).await?);
            }
            if news.version.is_some_and(|version| version > outcome) {
                break;
            }
        }
    }
}

/// What came of reading a page.
enum Outcome {
    Page(Page),
    /// The offset is of no use: the client begins anew, under this handle.
    Refetch {
        handle: String,
    },
}

struct Page {
    handle: String,
    feed: Feed,
    next: Option<Feed>,
    rows: Vec<(NetChange, RowKey, Stored)>,
    permit: Permit,
}

async fn read(app: &Arc<App>, caller: &Caller, request: &ShapeRequest) -> Result<Outcome, ApiError> {
    let slot = app.readers.enter(caller.owner).await?;
    let (app, caller, request) = (Arc::clone(app), caller.clone(), request.clone());
    off_reactor(move || {
        let permit = app.memory.permit(Some(caller.owner));
        let outcome = app.read_as(&caller, |txn, Sight { state, .. }| {
            let handle = Handle::new(&request.shape, caller.owner, state.version, &app.schema);
            let Some((handle, feed)) = begin(&request, state, &handle) else {
                return Ok(Outcome::Refetch { handle: request.another(handle.new_one()) });
            };
            let filter = FeedFilter {
                device: caller.device,
                tables: &[request.shape.table],
                rows_max: app.settings.sync.changes_rows_max,
                bytes_max: app.settings.sync.changes_bytes_max,
                entries_max: app.settings.sync.page_entries_max,
            };
            permit.settle(0)?;
            let (mut rows, mut refused) = (Vec::new(), None);
            let page = changes::run(txn, feed, &filter, &mut |net, _, key, row| {
                refused = permit.grow(row.weight()).err();
                if refused.is_some() {
                    return ControlFlow::Break(());
                }
                rows.push((net, key, row.clone()));
                ControlFlow::Continue(())
            })?;
            app.metrics.fed(rows.len() as u64, page.looked as u64);
            if let Some(refused) = refused {
                return Err(refused);
            }
            Ok(Outcome::Page(Page { handle, feed, next: page.next, rows, permit: permit.clone() }))
        });
        drop(slot);
        outcome
    })
    .await
}

/// The handle to answer under, and where to read on; `None` where the offset or the handle is of no use.
fn begin(request: &ShapeRequest, state: OwnerState, handle: &Handle) -> Option<(String, Feed)> {
    let given = request.handle.as_deref();
    let known = given.filter(|given| handle.is_kin(given)).map(str::to_owned);
    match &request.offset {
        Offset::Beginning => {
            let handle = known.unwrap_or_else(|| request.another(handle.new_one()));
            Some((handle, Feed::begin(state, None).ok()?))
        }
        Offset::Now => {
            let handle = known.unwrap_or_else(|| request.another(handle.new_one()));
            Some((handle, Feed::begin(state, Some(state.version)).ok()?))
        }
        Offset::At(version) => Some((known?, Feed::begin(state, Some(*version)).ok()?)),
        Offset::Within(feed) => Some((known?, feed.resume(state).ok()?)),
    }
}

fn respond(app: &App, request: &ShapeRequest, outcome: Outcome) -> HandlerResult {
    match outcome {
        Outcome::Refetch { handle } => refetch(&handle),
        Outcome::Page(page) => page_response(app, request, page),
    }
}

fn refetch(handle: &str) -> HandlerResult {
    let body = json!([{ "headers": { "control": "must-refetch" } }]);
    let mut response: warp::reply::Response = json_bytes(body.to_string());
    *response.status_mut() = StatusCode::CONFLICT;
    response.headers_mut().insert(HANDLE, header(handle)?);
    Ok(response)
}

fn page_response(app: &App, request: &ShapeRequest, page: Page) -> HandlerResult {
    let Page { handle, feed, next, rows, permit } = page;
    let (schema, shape) = (&app.schema, &request.shape);
    let until = next.is_none().then_some(feed.until);
    let offset = match next {
        None => format!("{}_0", feed.until),
        Some(next) => format!("0_{}", write_feed(next, &[shape.table], schema)),
    };
    let body = permit.json(&Messages { schema, shape, rows: &rows, until })?;
    drop(rows);
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HANDLE, header(&handle)?);
    headers.insert(OFFSET, header(&offset)?);
    headers.insert(SCHEMA, header(&schema_json(schema, shape))?);
    headers.insert(CURSOR, HeaderValue::from(feed.until.0));
    if until.is_some() {
        headers.insert(UP_TO_DATE, HeaderValue::from_static("true"));
    }
    hold(response, permit)
}

fn header(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(text).map_err(|error| ApiError::Internal(Box::new(error)))
}
