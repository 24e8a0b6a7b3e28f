use std::borrow::Cow;
use std::collections::BTreeMap;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::reply::report_response;
use crate::accounts::Caller;
use crate::broken;
use crate::http::app::App;
use crate::http::problem::ApiError;
use crate::model::{DeviceId, Timestamp, Version};
use crate::storage::quota::RECORD_BYTES;
use crate::storage::{ResponsesMax, StorageResult, StoredResponse, WriteTxn};
use crate::synchronise::FORGOTTEN_MAX;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// The `Idempotency-Key` of a request, if it has one.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let is_key = |key: &&str| {
        (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let reason =
        format!("Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters.");
    value.to_str().ok().filter(is_key).ok_or(ApiError::InvalidRequest { reason }).map(Some)
}

/// A request that takes effect once, however often it is sent.
#[derive(Clone)]
pub(super) struct IdempotentRequest {
    key: String,
    body_hash: [u8; 32],
}

impl IdempotentRequest {
    /// `None` if the request has no `Idempotency-Key`.
    pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Option<Self>, ApiError> {
        Ok(idempotency_key(headers)?.map(|key| Self { key: key.to_owned(), body_hash: fingerprint(body) }))
    }

    /// The response that one of these devices received for this request before, if any.
    ///
    /// - `look`: returns what a device was given under a key.
    /// - Errors: 422 `idempotency_key_reused` if it was for another body.
    pub fn stored_response(
        &self,
        mut look: impl FnMut(DeviceId, &str) -> StorageResult<Option<StoredResponse>>,
        app: &App,
        senders: impl Iterator<Item = DeviceId>,
    ) -> Result<Option<StoredResponse>, ApiError> {
        let mut stored = None;
        for device in senders {
            stored = stored.map_or_else(|| look(device, &self.key), |stored| Ok(Some(stored)))?;
        }
        let oldest = oldest_kept(app);
        match stored.filter(|stored| stored.at > oldest && !broken::is("replay_applied_twice")) {
            Some(stored) if stored.body_hash != self.body_hash => Err(ApiError::IdempotencyKeyReused),
            stored => Ok(stored),
        }
    }

    pub fn store_response(
        &self,
        txn: &mut dyn WriteTxn,
        app: &App,
        caller: &Caller,
        body: Vec<u8>,
        version: Version,
    ) -> Result<(), ApiError> {
        let bytes = RECORD_BYTES + (body.len() + self.key.len()) as u64;
        let response = StoredResponse { body_hash: self.body_hash, body, version, at: app.clock.now() };
        let sync = &app.settings.sync;
        // If there is too little room, this response is stored nevertheless: a request with a key takes
        // effect once.
        txn.make_room(bytes, app.settings.limits.owner_past_bytes_max, FORGOTTEN_MAX)?;
        let most = ResponsesMax { responses: sync.idempotency_keys_max, bytes: sync.idempotency_bytes_max };
        Ok(txn.store_response(caller.device, &self.key, &response, most)?)
    }
}

/// Sends a stored response again.
pub(super) fn replay(stored: StoredResponse) -> warp::reply::Response {
    let mut response = report_response(stored.body, stored.version);
    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    response
}

/// Responses from before this time are no longer stored.
fn oldest_kept(app: &App) -> Timestamp {
    let hours = i64::from(app.settings.sync.idempotency_hours);
    app.clock.now().shifted(-hours * 3_600_000)
}

/// Two bodies are the same request if they differ at most in `sent_at`. A device that repeats a request sends
/// its present time there. With the old time, the wait would look like clock skew.
fn fingerprint(body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    match serde_json::from_slice::<BTreeMap<Cow<'_, str>, &RawValue>>(body) {
        Ok(members) => {
            for (name, value) in members.iter().filter(|(name, _)| *name != "sent_at") {
                hash.update(name.as_bytes());
                hash.update([0]); // no name of the contract contains it
                hash.update(value.get());
                hash.update([0]);
            }
        }
        Err(_) => hash.update(body),
    }
    hash.finalize().into()
}
