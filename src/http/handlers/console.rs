//! The console's API, below `/console/api`: across owners, for the operator.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ApiError, App, HandlerResult, conflicts, json, no_content, off_reactor, refused, time_text};
use crate::accounts::{Caller, Rights};
use crate::config::AuthMode;
use crate::explain::{self, Facts, SignedIn};
use crate::http::console::Operator;
use crate::http::query::{self, Limit};
use crate::locks::Lease;
use crate::metrics::series::STEP_S;
use crate::model::{DeviceId, Owner, RowKey, Timestamp, Version};
use crate::storage::{OwnerState, PastBytes};

/// Owners on a page, unless the request has a lower limit.
const OWNERS_MAX: usize = 100;

/// Most members of an owner that are shown.
const MEMBERS_MAX: usize = 100;

/// Locks that an overview lists.
const LOCKS_MAX: usize = 100;

/// The device id of the console's writes: the same on all servers, and different from every app's.
const CONSOLE: DeviceId = DeviceId(Uuid::from_u128(0x726f_6c6c_6361_8c6c_8000_636f_6e73_6f6c));

type Admitted = Result<Operator, ApiError>;

/// `GET /console/api/overview`
pub async fn overview(app: Arc<App>, operator: Admitted) -> HandlerResult {
    operator?;
    off_reactor(move || {
        let totals = app.console.totals(&*app.storage, app.clock.now())?;
        let tombstones = app.console.tombstones();
        let tables = app.schema.tables().iter().map(|table| {
            let place = table.id.index();
            let buried = tombstones.as_ref().map(|counted| counted.count.get(place).copied().unwrap_or(0));
            json!({ "table": table.name, "rows": totals.count.tables.get(place), "tombstones": buried })
        });
        let locks = app.locks.held_now(LOCKS_MAX).map_err(|error| refused(error, &app.clock))?;
        let locks = locks.iter().map(|(owner, lease)| {
            let mut lock = lock(lease);
            lock["owner"] = json!(owner.0);
            lock
        });
        let metrics = &app.metrics;
        json(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "started_at": time_text(app.console.started_at),
            "engine": app.storage.census().engine(),
            "owners": totals.count.owners,
            "rows": totals.count.rows,
            "bytes": totals.count.bytes,
            "counted_at": time_text(totals.at),
            "tables": tables.collect::<Vec<_>>(),
            "tombstones_counted_at": tombstones.as_ref().map(|counted| time_text(counted.at)),
            "locks": locks.collect::<Vec<_>>(),
            "totals": {
                "commits": metrics.commits.get(),
                "feed_rows": metrics.feed_rows.get(),
                "busy": metrics.busy.get(),
                "connections": metrics.connections.get(),
                "event_streams": metrics.event_streams.get(),
            },
        }))
    })
    .await
}

fn lock(lease: &Lease) -> Value {
    json!({
        "device_id": lease.device,
        "device": lease.device_name,
        "since": time_text(lease.since),
        "until": time_text(lease.until),
    })
}

/// `GET /console/api/series`
pub async fn series(app: Arc<App>, operator: Admitted) -> HandlerResult {
    operator?;
    let shown = app.metrics.series.report();
    let ago_ms = i64::try_from(shown.began.as_millis()).unwrap_or(i64::MAX);
    let verdicts: BTreeMap<_, _> = shown.verdicts.into_iter().collect();
    // Two decimals, since the measurement is not more precise.
    let ms = |steps: Vec<Option<f64>>| -> Vec<Option<f64>> {
        steps.into_iter().map(|ms| ms.map(|ms| (ms * 100.0).round() / 100.0)).collect()
    };
    json(json!({
        "step_s": STEP_S,
        "since": time_text(app.clock.now().shifted(ago_ms.saturating_neg())),
        "syncs": shown.syncs,
        "p50_ms": ms(shown.p50_ms),
        "p99_ms": ms(shown.p99_ms),
        "verdicts": verdicts,
        "refused": shown.refused,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnersQuery {
    after: Option<String>,
    limit: Option<Limit>,
    email: Option<String>,
}

/// `GET /console/api/owners`
pub async fn owners(app: Arc<App>, operator: Admitted, query: String) -> HandlerResult {
    operator?;
    let OwnersQuery { after, limit, email } = query::read(&query)?;
    let owner_of =
        |id: String| Uuid::try_parse(&id).map_err(|_| query::invalid("after must be an owner's id."));
    let after = after.map(owner_of).transpose()?.map(Owner);
    let limit = Limit::within(limit, OWNERS_MAX);
    if email.is_some() && after.is_some() {
        return Err(query::invalid("email and after cannot be combined: the owners of a user are one page."));
    }
    off_reactor(move || {
        if let Some(email) = email {
            return json(json!({ "owners": owners_of_user(&app, &email, limit)? }));
        }
        // One more than returned shows whether there is another page.
        let mut states = app.storage.census().states(after, limit + 1)?;
        let more = states.len() > limit;
        states.truncate(limit);
        let owners = states.iter().map(|(owner, state)| {
            Ok(about(&app, *owner, *state, app.storage.read(*owner, |txn| txn.owner_name())?))
        });
        let owners = owners.collect::<Result<Vec<_>, ApiError>>()?;
        let mut body = json!({ "owners": owners });
        if let Some((last, _)) = states.last().filter(|_| more) {
            body["next"] = json!(last.0);
        }
        json(body)
    })
    .await
}

/// The owners of which the user with that address is a member, with the user's role at each.
fn owners_of_user(app: &App, email: &str, owners_max: usize) -> Result<Vec<Value>, ApiError> {
    let accounts = app.storage.accounts();
    let Some(user) = accounts.user(&email.trim().to_lowercase())? else { return Ok(Vec::new()) };
    let mut memberships = accounts.owners_of(user.id)?;
    memberships.truncate(owners_max);
    let shown = memberships.into_iter().map(|one| {
        let state = app.storage.read(one.owner, |txn| Ok::<_, ApiError>(txn.state()))?;
        let mut shown = about(app, one.owner, state, one.name);
        shown["role"] = json!(one.role);
        Ok(shown)
    });
    shown.collect()
}

fn about(app: &App, owner: Owner, state: OwnerState, name: String) -> Value {
    let mut shown = json!({
        "owner": owner.0,
        "name": name,
        "version": state.version,
        "horizon": state.horizon,
        "rows": state.rows,
        "bytes": state.bytes,
        "past": state.past.bytes().map(|bytes| past(bytes, &state.past)),
    });
    // A lock that cannot be read now is left out.
    if let Ok(Some(lease)) = app.locks.holder(owner) {
        shown["lock"] = lock(&lease);
    }
    shown
}

/// The size of an owner's past, once it is counted.
fn past(bytes: u64, past: &PastBytes) -> Value {
    let bytes_of = |sum: i64| sum.max(0);
    json!({
        "bytes": bytes,
        "tombstones": bytes_of(past.tombstones),
        "history_bytes": bytes_of(past.history),
        "conflicts_bytes": bytes_of(past.conflicts),
        "answers_bytes": bytes_of(past.responses),
    })
}

/// `GET /console/api/owners/{owner}`
pub async fn owner(id: String, app: Arc<App>, operator: Admitted) -> HandlerResult {
    operator?;
    let owner = owner_of(&id)?;
    off_reactor(move || {
        let (state, digests, name, members) = app.storage.read(owner, |txn| {
            Ok::<_, ApiError>((txn.state(), txn.digests()?, txn.owner_name()?, txn.members(None, MEMBERS_MAX)?))
        })?;
        let devices = devices(&app, owner)?;
        if state.seed.is_none() && devices.is_empty() {
            return Err(ApiError::no_such_owner());
        }
        let mut shown = about(&app, owner, state, name);
        let accounts = app.storage.accounts();
        let members = members.into_iter().map(|member| {
            let email = accounts.user_of(member.user)?.map(|user| user.email);
            let joined_at = time_text(member.joined_at);
            Ok(json!({
                "user": member.user, "email": email, "name": member.name, "role": member.role, "joined_at": joined_at,
            }))
        });
        shown["members"] = members.collect::<Result<Vec<_>, ApiError>>()?.into();
        let tables = app.schema.tables().iter();
        let tables =
            tables.map(|table| json!({ "table": table.name, "rows": digests[table.id.index()].count }));
        shown["tables"] = tables.collect();
        let devices = devices.iter().map(|(id, device)| {
            let seen = device.seen.filter(|(version, _)| version.epoch() == state.version.epoch());
            json!({
                "device_id": id,
                "device": device.name,
                "acknowledged": device.seen.map(|(version, _)| version),
                "behind": seen.map(|(version, _)| state.version.0.saturating_sub(version.0)),
                "seen_at": device.seen.map(|(_, at)| time_text(at)),
                "signed_in": device.signed_in,
            })
        });
        shown["devices"] = devices.collect();
        json(shown)
    })
    .await
}

fn owner_of(id: &str) -> Result<Owner, ApiError> {
    // An invalid id is the id of no owner.
    Uuid::try_parse(id).map(Owner).map_err(|_| ApiError::no_such_owner())
}

/// What is known of a device of an owner.
#[derive(Default)]
struct KnownDevice {
    name: Option<String>,
    seen: Option<(Version, Timestamp)>,
    signed_in: bool,
}

/// Every device that is signed in for the owner, or has acknowledged a cursor.
fn devices(app: &App, owner: Owner) -> Result<BTreeMap<Uuid, KnownDevice>, ApiError> {
    let census = app.storage.census();
    let now = app.clock.now();
    let mut devices: BTreeMap<Uuid, KnownDevice> = BTreeMap::new();
    for device in census.signed_in(owner)? {
        let known = devices.entry(device.id.0).or_default();
        (known.name, known.signed_in) = (Some(device.name), now < device.expires_at);
    }
    for one in app.storage.read(owner, |txn| Ok::<_, ApiError>(txn.installations()?))? {
        let of_token = devices.get(&one.token_device.0).map(|token| (token.name.clone(), token.signed_in));
        let known = devices.entry(one.device.0).or_default();
        (known.name, known.signed_in) = of_token.unwrap_or_default();
    }
    // The cache is newer than the database.
    for (device, version, at) in census.acknowledged(owner)?.into_iter().chain(app.acks.noted(owner)) {
        devices.entry(device.0).or_default().seen = Some((version, at));
    }
    Ok(devices)
}

/// The console as a caller, for the locks and the rules.
fn caller(owner: Owner) -> Caller {
    Caller {
        owner,
        default_owner: owner,
        token_owners: None,
        rights: Rights::OPERATOR,
        device: CONSOLE,
        device_name: "The console".into(),
        token_device: CONSOLE,
        installation: None,
        user: CONSOLE.0,
    }
}

/// `GET /console/api/owners/{owner}/conflicts`
pub async fn list_conflicts(id: String, app: Arc<App>, operator: Admitted, query: String) -> HandlerResult {
    operator?;
    let owner = owner_of(&id)?;
    conflicts::list(app, Ok(caller(owner)), query).await
}

/// `POST /console/api/owners/{owner}/conflicts/{id}/restore`
pub async fn restore(
    id: String,
    conflict: String,
    app: Arc<App>,
    operator: Admitted,
    headers: HeaderMap,
) -> HandlerResult {
    operator?;
    let owner = owner_of(&id)?;
    conflicts::restore(conflict, app, Ok(caller(owner)), headers).await
}

/// `DELETE /console/api/owners/{owner}/lock`
pub async fn break_lock(id: String, app: Arc<App>, operator: Admitted) -> HandlerResult {
    operator?;
    let owner = owner_of(&id)?;
    off_reactor(move || {
        app.locks.break_open(owner).map_err(|error| refused(error, &app.clock))?;
        tracing::info!(%owner, "the console broke a lock");
        Ok(no_content())
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhyQuery {
    table: Option<String>,
    key: Option<String>,
    device: Option<String>,
}

/// `GET /console/api/owners/{owner}/why`: why does a device not have a row?
pub async fn why(id: String, app: Arc<App>, operator: Admitted, query: String) -> HandlerResult {
    operator?;
    let owner = owner_of(&id)?;
    let WhyQuery { table, key, device } = query::read(&query)?;
    let table = table.and_then(|name| app.schema.table(&name)).map(|table| table.id);
    let table = table.ok_or_else(|| query::invalid("table must be a table of the schema."))?;
    let key = key.and_then(|key| RowKey::parse(&key));
    let key = key.ok_or_else(|| query::invalid("key must be a UUID with hyphens."))?;
    let device = device.and_then(|id| Uuid::try_parse(&id).ok()).map(DeviceId);
    let device = device.ok_or_else(|| query::invalid("device must be a device's id."))?;
    off_reactor(move || {
        let signed_in = app.storage.census().device(device)?;
        let (state, row, is_member) = app.storage.read(owner, |txn| {
            let is_member = match &signed_in {
                Some(device) => device.owner == owner || txn.member(device.user)?.is_some(),
                None => false,
            };
            Ok::<_, ApiError>((txn.state(), txn.load(table, &[key])?.into_iter().next().flatten(), is_member))
        })?;
        let seen = devices(&app, owner)?.remove(&device.0).and_then(|known| known.seen);
        let facts = Facts {
            version: state.version,
            horizon: state.horizon,
            row: row.as_ref(),
            device,
            signed_in: signed_in.as_ref().map(|device| SignedIn {
                name: &device.name,
                is_member,
                expired: device.expires_at <= app.clock.now(),
            }),
            acknowledged: seen,
            knows_devices: app.settings.auth.auth == AuthMode::Local,
        };
        let shown = row.as_ref().map(|row| {
            json!({
                "alive": !row.is_tombstone(),
                "version": row.version,
                "created": row.created,
                "last_update": time_text(row.last_update),
                "made_by": row.made_by,
                "changed_by": row.changed_by,
            })
        });
        let known = seen.is_some() || signed_in.is_some();
        let device = known.then(|| {
            json!({
                "device": signed_in.as_ref().map(|device| &device.name),
                "acknowledged": seen.map(|(version, _)| version),
                "seen_at": seen.map(|(_, at)| time_text(at)),
            })
        });
        json(json!({ "answer": explain::explain(&facts), "facts": { "row": shown, "device": device } }))
    })
    .await
}
