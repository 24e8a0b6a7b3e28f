use std::sync::Arc;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::json;

use super::{
    Answer, ApiError, App, Hold, fence, json, lock_for_work, no_content, refused, spelt, tell_lease,
    with_locks,
};
use crate::accounts::Caller;
use crate::http::query;

/// `GET /lock`: who holds it.
pub async fn tell(app: Arc<App>, caller: Result<Caller, ApiError>) -> Answer {
    let caller = caller?;
    let holder = with_locks(&app, move |locks| locks.holder(caller.owner)).await?;
    let holder = holder.map_err(|error| refused(error, &app.clock))?;
    let Some(lease) = holder else { return json(json!({ "held": false })) };
    let mine = lease.device == caller.device;
    let mut body = json!({
        "held": true,
        "mine": mine,
        "holder": { "device_id": lease.device, "device": lease.device_name },
        "since": spelt(lease.since),
        "until": spelt(lease.until),
    });
    if mine {
        body["fence"] = json!(lease.fence);
    }
    json(body)
}

/// `POST /lock`: take or renew it.
pub async fn take(app: Arc<App>, caller: Result<Caller, ApiError>, headers: HeaderMap) -> Answer {
    let caller = caller?;
    let work = lock_for_work(&app, &caller, Hold::Lease, fence(&headers)?, &headers).await?;
    let lease = work.lease().ok_or(ApiError::LockLost)?;
    let mut answer = json(json!({
        "fence": lease.fence,
        "expires_at": spelt(lease.until),
        "lease_ms": app.settings.sync.lease_ms,
    }))?;
    tell_lease(answer.headers_mut(), lease);
    Ok(answer)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndQuery {
    #[serde(default, rename = "break")]
    breaks: bool,
}

/// `DELETE /lock`: give it back, or break it whoever holds it.
pub async fn end(app: Arc<App>, caller: Result<Caller, ApiError>, query: String) -> Answer {
    let caller = caller?;
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
