use std::sync::Arc;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::json;

use super::{
    ApiError, App, HandlerResult, Hold, fence, json, lock_for_work, no_content, refused, set_lease_headers,
    time_text, with_locks,
};
use crate::accounts::Caller;
use crate::http::query;

/// `GET /lock`: shows the holder.
pub async fn show(app: Arc<App>, caller: Result<Caller, ApiError>) -> HandlerResult {
    let caller = caller?;
    let holder = with_locks(&app, move |locks| locks.holder(caller.owner)).await?;
    let holder = holder.map_err(|error| refused(error, &app.clock))?;
    let Some(lease) = holder else { return json(json!({ "held": false })) };
    let mine = lease.device == caller.device;
    let mut body = json!({
        "held": true,
        "mine": mine,
        "holder": { "device_id": lease.device, "device": lease.device_name },
        "since": time_text(lease.since),
        "until": time_text(lease.until),
    });
    if mine {
        body["fence"] = json!(lease.fence);
    }
    json(body)
}

/// The caller, if it may write: the lock is for those who do.
fn writing(caller: Result<Caller, ApiError>) -> Result<Caller, ApiError> {
    caller.and_then(
        |caller| if caller.rights.may_write() { Ok(caller) } else { Err(ApiError::may_not_write()) },
    )
}

/// `POST /lock`: takes or renews the lock.
pub async fn take(app: Arc<App>, caller: Result<Caller, ApiError>, headers: HeaderMap) -> HandlerResult {
    let caller = writing(caller)?;
    let work = lock_for_work(&app, &caller, Hold::Lease, fence(&headers)?, &headers).await?;
    let lease = work.lease().ok_or(ApiError::LockLost)?;
    let mut response = json(json!({
        "fence": lease.fence,
        "expires_at": time_text(lease.until),
        "lease_ms": app.settings.sync.lease_ms,
    }))?;
    set_lease_headers(response.headers_mut(), lease);
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndQuery {
    #[serde(default, rename = "break")]
    breaks: bool,
}

/// `DELETE /lock`: releases the lock, or breaks it, whoever holds it.
pub async fn end(app: Arc<App>, caller: Result<Caller, ApiError>, query: String) -> HandlerResult {
    let caller = writing(caller)?;
    let EndQuery { breaks } = query::read(&query)?;
    let ended =
        with_locks(
            &app,
            move |locks| {
                if breaks { locks.break_open(caller.owner) } else { locks.give_back(&caller) }
            },
        );
    ended.await?.map_err(|error| refused(error, &app.clock))?;
    Ok(no_content())
}
