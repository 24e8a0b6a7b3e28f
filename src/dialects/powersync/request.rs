use serde::Deserialize;
use serde_json::Value as Json;

use super::cursor::OpId;
use crate::http::{ApiError, BodyFault};

/// What an SDK sends to begin a stream. Members that the server has no use for are passed over.
#[derive(Debug)]
pub(super) struct StreamRequest {
    /// The buckets that the client has, and the last operation of each.
    pub buckets: Vec<(String, OpId)>,
    pub client_id: Option<String>,
}

#[derive(Deserialize)]
struct StreamBody {
    #[serde(default)]
    buckets: Vec<BucketBody>,
    #[serde(default)]
    client_id: Option<String>,
}

#[derive(Deserialize)]
struct BucketBody {
    name: String,
    after: Json,
}

impl StreamRequest {
    /// Errors: 400 `malformed_json`; 422 for a member of another type, and for more than `buckets_max` buckets.
    pub fn read(body: &[u8], buckets_max: usize) -> Result<Self, ApiError> {
        let StreamBody { buckets, client_id } = read(body)?;
        if buckets.len() > buckets_max {
            let reason = format!("expected at most {buckets_max} buckets");
            return Err(ApiError::InvalidBody {
                code: BodyFault::InvalidValue,
                at: "/buckets".into(),
                reason,
            });
        }
        let bucket = |(place, BucketBody { name, after }): (usize, BucketBody)| {
            let at = format!("/buckets/{place}/after");
            Ok::<_, ApiError>((name, OpId(number(&after, &at)?)))
        };
        let buckets = buckets.into_iter().enumerate().map(bucket).collect::<Result<_, _>>()?;
        Ok(Self { buckets, client_id: client_id.filter(|id| !id.is_empty()) })
    }
}

/// What an SDK sends to learn when its uploads have come back.
#[derive(Debug)]
pub(super) struct CheckpointRequest {
    pub client_id: String,
    pub number: u64,
}

#[derive(Deserialize)]
struct CheckpointBody {
    client_id: String,
    checkpoint_request_id: Json,
}

impl CheckpointRequest {
    /// Errors: as [`StreamRequest::read`].
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        let CheckpointBody { client_id, checkpoint_request_id } = read(body)?;
        let number = number(&checkpoint_request_id, "/checkpoint_request_id")?;
        Ok(Self { client_id, number })
    }
}

fn read<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, ApiError> {
    let read = serde_json::from_slice(body);
    if read.is_ok() && !body.trim_ascii_start().starts_with(b"{") {
        // A struct is read from a list of its members too.
        let (code, reason) = (BodyFault::WrongType, "expected an object".into());
        return Err(ApiError::InvalidBody { code, at: String::new(), reason });
    }
    read.map_err(|error| {
        let reason = error.to_string();
        if error.is_data() {
            let code = BodyFault::WrongType;
            return ApiError::InvalidBody { code, at: String::new(), reason };
        }
        ApiError::MalformedJson { reason, line: error.line(), column: error.column() }
    })
}

/// A number that may be written as text, and that SQLite can hold.
fn number(json: &Json, at: &str) -> Result<u64, ApiError> {
    let number = json.as_u64().or_else(|| json.as_str()?.parse().ok());
    number.filter(|number| i64::try_from(*number).is_ok()).ok_or_else(|| ApiError::InvalidBody {
        code: BodyFault::InvalidValue,
        at: at.to_owned(),
        reason: "expected a whole number from 0, or its digits as text".into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_the_sdks_send_it() {
        let body = br#"{"buckets": [{"name": "a", "after": "7"}, {"name": "b", "after": 8}], "include_checksum": true,
            "raw_data": true, "client_id": "c", "parameters": {}, "streams": {"include_defaults": true}}"#;
        let request = StreamRequest::read(body, 2).unwrap();
        assert_eq!(request.buckets, [("a".into(), OpId(7)), ("b".into(), OpId(8))]);
        assert_eq!(request.client_id.as_deref(), Some("c"));
        assert!(StreamRequest::read(b"{}", 0).unwrap().buckets.is_empty());
        let request =
            CheckpointRequest::read(br#"{"client_id": "c", "checkpoint_request_id": "12"}"#).unwrap();
        assert_eq!((request.client_id.as_str(), request.number), ("c", 12));
    }

    #[test]
    fn what_cannot_be_read_is_a_fault_of_the_client() {
        for body in [
            "",
            "[",
            "[]",
            r#"{"buckets": 7}"#,
            r#"{"buckets": [{"name": "a"}]}"#,
            r#"{"buckets": [{"name": "a", "after": "x"}]}"#,
            r#"{"buckets": [{"name": "a", "after": "-1"}]}"#,
            r#"{"buckets": [{"name": "a", "after": "9223372036854775808"}]}"#,
            r#"{"buckets": [{"name": "a", "after": "1"}, {"name": "b", "after": "1"}]}"#,
            r#"{"client_id": 7}"#,
        ] {
            let refused = StreamRequest::read(body.as_bytes(), 1).unwrap_err();
            assert!(refused.status_and_code().0.is_client_error(), "{body}: {refused}");
        }
    }
}
