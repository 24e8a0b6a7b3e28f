use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::caller::bearer;
use super::fetch::header;
use super::{ApiError, App, HandlerResult, hold, json, json_bytes, off_reactor};
use crate::config::{AuthMode, Limits, SyncSettings};
use crate::contract;
use crate::http::Unavailable;
use crate::http::etag;
use crate::metrics;
use crate::model::Precision;

/// `GET /healthz`: the process is alive.
pub async fn healthz() -> HandlerResult {
    json(json!({ "status": "ok" }))
}

/// `GET /readyz`: whether the server can take requests.
pub async fn readyz(app: Arc<App>) -> HandlerResult {
    if app.draining.is_set() {
        return Err(ApiError::Unavailable {
            code: Unavailable::ShuttingDown,
            reason: "The server is about to stop.",
            retry_after_s: 5,
        });
    }
    off_reactor(move || Ok(app.storage.ready()?)).await?;
    json(json!({ "status": "ok" }))
}

/// `GET /limits`: the limits for clients.
pub async fn limits(app: Arc<App>) -> HandlerResult {
    let precision = match app.schema.precision {
        Precision::Milliseconds => "milliseconds",
        Precision::Seconds => "seconds",
    };
    let auth = match app.settings.auth.auth {
        AuthMode::Local => "local",
        AuthMode::Jwt => "jwt",
    };
    json(LimitsBody {
        limits: &app.settings.limits,
        event_streams_per_owner_max: app.settings.limits.event_streams_per_user_max,
        sync: &app.settings.sync,
        time_precision: precision,
        auth,
    })
}

/// The limits under the names of their settings, and what else a client must know in advance.
#[derive(Serialize)]
struct LimitsBody<'a> {
    #[serde(flatten)]
    limits: &'a Limits,
    /// The former name of `event_streams_per_user_max`: generated clients may need it.
    event_streams_per_owner_max: usize,
    #[serde(flatten)]
    sync: &'a SyncSettings,
    time_precision: &'static str,
    auth: &'static str,
}

/// `GET /metrics`: the metrics for Prometheus.
pub async fn metrics(app: Arc<App>, headers: HeaderMap) -> HandlerResult {
    if let Some(token) = &app.settings.operator.metrics_token
        && !token.is(bearer(&headers)?)
    {
        return Err(ApiError::Unauthorized { reason: "This is not the token of --metrics-token." });
    }
    let permit = app.memory.permit(None);
    let text = off_reactor(move || Ok(app.metrics.written())).await?;
    let mut response = Response::new(text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    hold(response, permit)
}

/// `GET /openapi.json`: the contract of the declared tables.
pub async fn typed_contract(app: Arc<App>, headers: HeaderMap) -> HandlerResult {
    let permit = app.memory.permit(None);
    let document = match app.contract.get() {
        Some(document) => document.clone(),
        None => off_reactor(move || app.contract()).await?,
    };
    let known = etag::matches(headers.get_all(IF_NONE_MATCH), &document.etag);
    let mut response = json_bytes(if known { Bytes::new() } else { document.text.clone() });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().remove(CONTENT_TYPE);
    }
    let headers = response.headers_mut();
    headers.insert(ETAG, header(&document.etag)?);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    response.extensions_mut().insert(permit); // for the compressor; the document exists only once
    Ok(response)
}

/// `GET /openapi.yaml`: the general contract.
pub async fn general_contract() -> HandlerResult {
    let mut response = Response::new(contract::GENERAL.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
    Ok(response)
}
