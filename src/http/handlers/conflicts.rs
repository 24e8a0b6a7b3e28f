use std::sync::Arc;

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::patience::{Patience, Waiting};
use super::synchronise::explain;
use super::{
    ApiError, App, HandlerResult, Hold, ended, fence, hold, json, json_bytes, lock_for_work, off_reactor,
    refused, set_version_headers,
};
use crate::accounts::Caller;
use crate::conflicts::{self, RestoreError};
use crate::http::page_token;
use crate::http::query::{self, Limit};
use crate::http::wire::{ConflictBody, RestoredBody};
use crate::model::RowKey;
use crate::schema::Table;
use crate::storage::WantedConflicts;

/// `GET /conflicts`: lost changes, newest first.
pub async fn list(app: Arc<App>, caller: Result<Caller, ApiError>, query: String) -> HandlerResult {
    let caller = caller?;
    let wanted = read_wanted(&query, &caller, &app)?;
    let place = app.readers.enter(caller.owner).await?;
    off_reactor(move || {
        let permit = app.memory.permit(Some(caller.owner));
        permit.grow(page_bytes(&wanted, &app))?;
        let page = app.read_as(&caller, |txn, _| Ok(txn.conflicts(&wanted)?))?;
        drop(place);
        let schema = &app.schema;
        let conflicts = page.conflicts.iter().map(|conflict| ConflictBody { schema, conflict }).collect();
        let next = page.next.map(page_token::write_conflicts);
        let next = next.map(|token| page_token::for_owner(token, caller.other_owner()));
        let body = permit.json(&Page { conflicts, next })?;
        hold(json_bytes(body), permit)
    })
    .await
}

/// States of a row in memory during a restore: three of the conflict, the row's own and the new one, with
/// copies, and as JSON.
const STATES: usize = 12;

/// Most bytes of a page of conflicts: the last one may exceed the bound, and has three states of a row.
fn page_bytes(wanted: &WantedConflicts, app: &App) -> usize {
    let conflict = app.settings.limits.row_bytes_max.saturating_mul(3);
    let rows = wanted.rows_max.saturating_mul(conflict);
    rows.min(wanted.bytes_max.saturating_add(conflict))
}

/// A page of conflicts, serialised without a tree in memory.
#[derive(Serialize)]
struct Page<'a> {
    conflicts: Vec<ConflictBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// `POST /conflicts/{id}/restore`: brings the loser back, as a new edit.
pub async fn restore(
    id: String,
    app: Arc<App>,
    caller: Result<Caller, ApiError>,
    headers: HeaderMap,
) -> HandlerResult {
    let caller = caller?;
    if !caller.rights.may_write() {
        return Err(ApiError::may_not_write());
    }
    // Memory for the row, the conflict's states, and the response.
    let permit = app.memory.permit(Some(caller.owner));
    permit.grow(app.settings.limits.row_bytes_max.saturating_mul(STATES))?;
    let (waiting, due) = (Waiting::new(), Instant::now() + app.bounds.request);
    let waited = waiting.watch();
    // An invalid id is the id of no conflict.
    let id = Uuid::try_parse(&id).map_err(|_| ApiError::no_such_conflict())?;
    let work = lock_for_work(&app, &caller, Hold::Request, fence(&headers)?, &headers).await?;
    off_reactor(move || {
        let restored = app.storage.write(caller.owner, |txn| {
            let rights = app.rights(&caller, txn)?;
            if !rights.may_write() {
                return Err(ApiError::may_not_write());
            }
            let terms = app.terms(caller.device, rights, app.clock.now());
            let table = txn.conflict(id)?.map(|conflict| app.schema.at(conflict.table));
            let is_read_only = |table: &Table| rights.role < table.write && rights.role >= table.read;
            if table.is_some_and(is_read_only) {
                return Err(ApiError::may_not_write_table());
            }
            let patience = Patience::begin(due);
            let wanted = || patience.lasts(waited.is_gone());
            let restored = conflicts::restore(&wanted, txn, &app.schema, id, &terms);
            let restored = restored.map_err(|error| match error {
                RestoreError::TooLittleKnown => ApiError::NotRestorable,
                RestoreError::Refused(refusal) => explain(refusal, &app.schema),
            })?;
            work.confirm(txn.lease()).map_err(|error| refused(error, &app.clock))?;
            restored.ok_or(ApiError::no_such_conflict())
        });
        // A restore is an edit, not a sync: the device keeps a lock that it had before.
        ended(work.end(work.had_lock()));
        let restored = restored?;
        let mut response = json(RestoredBody { schema: &app.schema, restored: &restored })?;
        set_version_headers(response.headers_mut(), restored.version);
        hold(response, permit)
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConflictsQuery {
    table: Option<String>,
    key: Option<String>,
    limit: Option<Limit>,
    page: Option<String>,
}

fn read_wanted(query: &str, caller: &Caller, app: &App) -> Result<WantedConflicts, ApiError> {
    let sync = &app.settings.sync;
    let ConflictsQuery { table, key, limit, page } = query::read(query)?;
    let table_of = |name: String| match app.schema.table(&name) {
        Some(table) => Ok(table.id),
        None => Err(query::invalid(format!("table: there is no table {name:?}."))),
    };
    let key_of =
        |key: String| RowKey::parse(&key).ok_or_else(|| query::invalid("key must be a UUID with hyphens."));
    let after = |token: String| {
        let invalid = || query::invalid("page must come from the page before.");
        let token = page_token::of_owner(&token, caller.other_owner());
        token.and_then(page_token::read_conflicts).ok_or_else(invalid)
    };
    Ok(WantedConflicts {
        table: table.map(table_of).transpose()?,
        key: key.map(key_of).transpose()?,
        after: page.map(after).transpose()?,
        rows_max: Limit::within(limit, sync.conflicts_rows_max),
        entries_max: sync.page_entries_max,
        bytes_max: sync.changes_bytes_max,
    })
}
