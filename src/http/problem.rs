//! Every error response, as an RFC 9457 problem document.

use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use warp::reply::Reply;

use crate::accounts::AccountError;
use crate::accounts::rights::RightsError;
use crate::changes::Expired;
use crate::error_chain::error_chain;
use crate::model::{Timestamp, Version};
use crate::storage::StorageError;

/// Every error response. Only `http` uses statuses; `openapi.yaml` lists the codes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message describes it
pub enum ApiError {
    #[error("The body is not JSON: {reason} at line {line}, column {column}.")]
    MalformedJson { reason: String, line: usize, column: usize },
    #[error("{reason}")]
    InvalidBody { code: BodyFault, at: String, reason: String },
    #[error("{reason}")]
    InvalidRequest { reason: String },
    #[error("{reason}")]
    Unauthorized { reason: &'static str },
    #[error("{reason}")]
    Forbidden { reason: &'static str },
    #[error("The token is unknown, was used, or has expired. Have another mail sent.")]
    InvalidToken,
    #[error("The address is not verified yet. Follow the link in the mail that was sent to it.")]
    EmailNotVerified,
    #[error("The password is wrong. Nothing was changed.")]
    WrongPassword,
    #[error("There is {what}.")]
    NotFound { what: &'static str },
    #[error("This path takes {allow}.")]
    MethodNotAllowed { allow: String },
    #[error("{reason}")]
    BodyTooSlow { reason: String },
    #[error(
        "Your lease has ended, or another device holds the lock by now. Nothing was written: fetch again."
    )]
    LockLost,
    #[error("The data changed between two pages. Fetch again from the first page.")]
    VersionMoved,
    #[error(
        "The token is not of the user and owner that Sync-For names. Nothing was read or written: log in again as \
         the user of these rows, or begin with an empty store."
    )]
    OtherUser,
    #[error("The owner does not exist, or you are no member of it. Nothing was read or written.")]
    NotAMember,
    #[error("{reason}")]
    NotAllowed { reason: &'static str },
    #[error("An account with this email exists already.")]
    EmailTaken,
    #[error("The account was erased. Its data is not on the server any more.")]
    AccountGone,
    #[error("The cursor {given} is of no use here. Fetch everything again.")]
    CursorExpired { given: Version, version: Version, horizon: Version },
    #[error("Say how long the body is (Content-Length), or send it in chunks.")]
    LengthRequired,
    #[error("The body has more than {bytes_max} bytes.")]
    BodyTooLarge { bytes_max: usize },
    #[error("{reason}")]
    UnsupportedMediaType { reason: &'static str },
    #[error(
        "The request would delete {deletes} of the {rows} rows of {table}{}. Repeat it with \"confirm_deletes\": {confirm} if that is meant.",
        lately(*before)
    )]
    MassDelete { table: String, deletes: u64, rows: u64, confirm: u64, before: u64 },
    #[error("This Idempotency-Key came before with another body. Nothing was done.")]
    IdempotencyKeyReused,
    #[error(
        "Nobody would manage the owner any more. Make another member a manager first, or delete the owner."
    )]
    LastManager,
    #[error("The code is unknown, was used up or withdrawn, or has expired. Nothing was changed.")]
    InvalidInvitation,
    #[error("{what} would be more than {max}.")]
    TooMany { what: &'static str, max: u64 },
    #[error("Too little of the row is known to bring it back. Add it again.")]
    NotRestorable,
    #[error("{} of the rows cannot be taken, and the request is atomic. Nothing was written.", rejections.len())]
    BatchRejected { rejections: Vec<Value> },
    #[error("{holder} is in the middle of a sync.")]
    SyncInProgress { holder: String, since: Timestamp, until: Timestamp, retry_after_s: u64 },
    #[error("{reason}")]
    TooManyAttempts { reason: &'static str, retry_after_s: u64 },
    #[error("{reason}")]
    HeaderTooLarge { reason: String },
    #[error("The owner's {what} would pass the limit of {max}.")]
    QuotaExceeded { what: &'static str, max: u64 },
    #[error("{reason}")]
    Unavailable { code: Unavailable, reason: &'static str, retry_after_s: u64 },
    #[error("The server failed; its log has the cause under the request id of this answer.")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What is wrong with a body that is valid JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// A member that the contract does not have, or a duplicate.
    UnknownMember,
    /// A table that the schema does not declare.
    UnknownTable,
    /// A column that the table does not have.
    UnknownColumn,
    /// A value of another type than in the contract.
    WrongType,
    /// More rows or keys than the limits allow.
    TooManyRows,
    /// A value that breaks another rule of the contract.
    InvalidValue,
}

/// Why the server cannot handle a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The writer's queue is full, or stayed busy.
    Busy,
    /// The connection to the database broke during the commit, and the result is unknown.
    OutcomeUnknown,
    /// The disk is full; reads still work.
    StorageFull,
    /// The request took longer than `request_s`.
    Timeout,
    /// The server is stopping.
    ShuttingDown,
}

/// Declares each status and code once: the match for the wire, and the list for `tests/server/openapi.rs`.
macro_rules! codes {
    ($($error:pat => $status:ident $code:literal,)+) => {
        /// Every status and code that a problem can have, as `openapi.yaml` lists them.
        pub const CODES: &[(StatusCode, &str)] = &[$((StatusCode::$status, $code),)+];

        /// How a refusal of a mass deletion mentions earlier deletions.
fn lately(deletes: u64) -> String {
    match deletes {
        0 => String::new(),
        deletes => format!(", and this device has deleted {deletes} others lately"),
    }
}

impl ApiError {
            /// The status and the stable code. A test compares them with `openapi.yaml`.
            pub fn status_and_code(&self) -> (StatusCode, &'static str) {
                match self {
                    $($error => (StatusCode::$status, $code),)+
                }
            }
        }
    };
}

codes! {
    Self::MalformedJson { .. } => BAD_REQUEST "malformed_json",
    Self::InvalidRequest { .. } => BAD_REQUEST "invalid_request",
    Self::Unauthorized { .. } => UNAUTHORIZED "unauthorized",
    Self::Forbidden { .. } => FORBIDDEN "forbidden",
    Self::WrongPassword => FORBIDDEN "wrong_password",
    Self::InvalidToken => FORBIDDEN "invalid_token",
    Self::EmailNotVerified => FORBIDDEN "email_not_verified",
    Self::InvalidInvitation => FORBIDDEN "invalid_invitation",
    Self::NotAMember => FORBIDDEN "not_a_member",
    Self::NotAllowed { .. } => FORBIDDEN "not_allowed",
    Self::NotFound { .. } => NOT_FOUND "not_found",
    Self::MethodNotAllowed { .. } => METHOD_NOT_ALLOWED "method_not_allowed",
    Self::BodyTooSlow { .. } => REQUEST_TIMEOUT "body_too_slow",
    Self::LockLost => CONFLICT "lock_lost",
    Self::VersionMoved => CONFLICT "version_moved",
    Self::OtherUser => CONFLICT "other_user",
    Self::EmailTaken => CONFLICT "email_taken",
    Self::NotRestorable => CONFLICT "not_restorable",
    Self::LastManager => CONFLICT "last_manager",
    Self::AccountGone => GONE "account_gone",
    Self::CursorExpired { .. } => GONE "cursor_expired",
    Self::LengthRequired => LENGTH_REQUIRED "length_required",
    Self::BodyTooLarge { .. } => PAYLOAD_TOO_LARGE "body_too_large",
    Self::UnsupportedMediaType { .. } => UNSUPPORTED_MEDIA_TYPE "unsupported_media_type",
    Self::InvalidBody { code: BodyFault::UnknownMember, .. } => UNPROCESSABLE_ENTITY "unknown_member",
    Self::InvalidBody { code: BodyFault::UnknownTable, .. } => UNPROCESSABLE_ENTITY "unknown_table",
    Self::InvalidBody { code: BodyFault::UnknownColumn, .. } => UNPROCESSABLE_ENTITY "unknown_column",
    Self::InvalidBody { code: BodyFault::WrongType, .. } => UNPROCESSABLE_ENTITY "wrong_type",
    Self::InvalidBody { code: BodyFault::TooManyRows, .. } => UNPROCESSABLE_ENTITY "too_many_rows",
    Self::InvalidBody { code: BodyFault::InvalidValue, .. } => UNPROCESSABLE_ENTITY "invalid_value",
    Self::IdempotencyKeyReused => UNPROCESSABLE_ENTITY "idempotency_key_reused",
    Self::MassDelete { .. } => UNPROCESSABLE_ENTITY "mass_delete",
    Self::BatchRejected { .. } => UNPROCESSABLE_ENTITY "batch_rejected",
    Self::SyncInProgress { .. } => LOCKED "sync_in_progress",
    Self::TooManyAttempts { .. } => TOO_MANY_REQUESTS "too_many_attempts",
    Self::HeaderTooLarge { .. } => REQUEST_HEADER_FIELDS_TOO_LARGE "header_too_large",
    Self::Internal(_) => INTERNAL_SERVER_ERROR "internal",
    Self::Unavailable { code: Unavailable::Busy, .. } => SERVICE_UNAVAILABLE "busy",
    Self::Unavailable { code: Unavailable::OutcomeUnknown, .. } => SERVICE_UNAVAILABLE "outcome_unknown",
    Self::Unavailable { code: Unavailable::StorageFull, .. } => SERVICE_UNAVAILABLE "storage_full",
    Self::Unavailable { code: Unavailable::Timeout, .. } => SERVICE_UNAVAILABLE "timeout",
    Self::Unavailable { code: Unavailable::ShuttingDown, .. } => SERVICE_UNAVAILABLE "shutting_down",
    Self::QuotaExceeded { .. } | Self::TooMany { .. } => INSUFFICIENT_STORAGE "quota_exceeded",
}

const NO_MEMORY: &str = "Too many large requests are under way: the server has no memory for this one now.";

impl ApiError {
    /// How long the client should wait before it tries again, s.
    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::SyncInProgress { retry_after_s, .. }
            | Self::TooManyAttempts { retry_after_s, .. }
            | Self::Unavailable { retry_after_s, .. } => Some(*retry_after_s),
            _ => None,
        }
    }

    /// Members of the document in addition to those of every problem.
    fn extensions(&self) -> Map<String, Value> {
        let mut members = Map::new();
        let mut insert = |name: &str, value: Value| members.insert(name.to_owned(), value);
        match self {
            Self::MalformedJson { line, column, .. } => {
                insert("line", json!(line));
                insert("column", json!(column));
            }
            Self::InvalidBody { at, .. } => {
                insert("at", json!(clipped(at.clone())));
            }
            Self::CursorExpired { version, horizon, .. } => {
                insert("version", json!(version));
                insert("horizon", json!(horizon));
            }
            Self::MassDelete { table, deletes, rows, confirm, before } => {
                insert("at", json!(format!("/delete/{table}")));
                insert("deletes", json!(deletes));
                insert("rows", json!(rows));
                insert("deleted_before", json!(before));
                insert("confirm_deletes", json!(confirm));
            }
            Self::BatchRejected { rejections } => {
                insert("rejections", json!(rejections));
            }
            Self::SyncInProgress { holder, since, until, retry_after_s } => {
                let precision = crate::model::Precision::Milliseconds;
                insert("holder", json!(holder));
                insert("since", json!(since.format(precision).to_string()));
                insert("until", json!(until.format(precision).to_string()));
                insert("retry_after_s", json!(retry_after_s));
            }
            Self::TooManyAttempts { retry_after_s, .. } | Self::Unavailable { retry_after_s, .. } => {
                insert("retry_after_s", json!(retry_after_s));
            }
            _ => {}
        }
        members
    }
}

impl ApiError {
    /// The memory budget is used up: see `memory_bytes_max`.
    pub const fn no_memory() -> Self {
        Self::Unavailable { code: Unavailable::Busy, reason: NO_MEMORY, retry_after_s: 2 }
    }

    /// The request has no token.
    pub const fn no_token() -> Self {
        Self::Unauthorized { reason: "Send a token: Authorization: Bearer …" }
    }

    /// The caller may only read the owner's rows.
    pub const fn may_not_write() -> Self {
        Self::NotAllowed { reason: "Your role at this owner lets you read its rows, and no more." }
    }

    /// The caller may not change rows of the table.
    pub const fn may_not_write_table() -> Self {
        Self::NotAllowed { reason: "Only members who manage the owner may change rows of this table." }
    }

    /// No route has this path.
    pub const fn no_such_path() -> Self {
        Self::NotFound { what: "nothing at this path" }
    }

    /// The user has no device of this id.
    pub const fn no_such_device() -> Self {
        Self::NotFound { what: "no device of yours with this id" }
    }

    /// No write was ever made for this owner, and it has no known device.
    pub const fn no_such_owner() -> Self {
        Self::NotFound { what: "no owner with this id" }
    }

    /// The owner has no conflict of this id, or it was forgotten.
    pub const fn no_such_conflict() -> Self {
        Self::NotFound { what: "no conflict of yours with this id" }
    }
}

impl From<Expired> for ApiError {
    fn from(Expired { given, version, horizon }: Expired) -> Self {
        Self::CursorExpired { given, version, horizon }
    }
}

impl From<RightsError> for ApiError {
    fn from(error: RightsError) -> Self {
        match error {
            RightsError::NotAMember => Self::NotAMember,
            RightsError::Storage(error) => error.into(),
        }
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Busy => Self::Unavailable {
                code: Unavailable::Busy,
                reason: "The database is busy.",
                retry_after_s: 1,
            },
            StorageError::OutcomeUnknown => Self::Unavailable {
                code: Unavailable::OutcomeUnknown,
                reason: "The connection to the database broke, and whether the request was carried out is not \
                         known. Send it again: what it wrote already is then the same.",
                retry_after_s: 1,
            },
            StorageError::QueueFull => Self::Unavailable {
                code: Unavailable::Busy,
                reason: "Too many writes are waiting.",
                retry_after_s: 1,
            },
            StorageError::Full(_) => Self::Unavailable {
                code: Unavailable::StorageFull,
                reason: "The server's disk is full. Reading still works.",
                retry_after_s: 60,
            },
            StorageError::Engine(cause) => Self::Internal(cause),
        }
    }
}

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        match error {
            AccountError::Unauthorized(reason) => Self::Unauthorized { reason },
            AccountError::RegistrationClosed => Self::Forbidden { reason: "Registration is closed here." },
            AccountError::EmailTaken => Self::EmailTaken,
            AccountError::WrongPassword => Self::WrongPassword,
            AccountError::AccountGone => Self::AccountGone,
            AccountError::InvalidToken => Self::InvalidToken,
            AccountError::EmailNotVerified => Self::EmailNotVerified,
            AccountError::NoMail => Self::no_such_path(),
            AccountError::TooManyAttempts { retry_after_s } => {
                Self::TooManyAttempts { reason: "Too many attempts. Try again later.", retry_after_s }
            }
            AccountError::Invalid { member, reason } => Self::InvalidBody {
                code: BodyFault::InvalidValue,
                at: format!("/{member}"),
                reason: reason.into(),
            },
            AccountError::NoSuchDevice => Self::no_such_device(),
            AccountError::KeysUnavailable { retry_after_s } => Self::Unavailable {
                code: Unavailable::Busy,
                reason: "The server cannot check the token now: it cannot fetch the identity provider's keys, or they may have \
                         changed. Send the same request again.",
                retry_after_s,
            },
            AccountError::Storage(error) => error.into(),
            AccountError::Internal(cause) => Self::Internal(cause),
        }
    }
}

/// The longest text of a problem document: a request may have sent the name or the value that it is about.
const TEXT_BYTES_MAX: usize = 1_024;

/// The beginning of a long text.
fn clipped(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

impl Reply for ApiError {
    fn into_response(self) -> warp::reply::Response {
        let (status, code) = self.status_and_code();
        match &self {
            Self::Internal(cause) => tracing::error!(cause = %error_chain(cause.as_ref()), "request failed"),
            _ => tracing::debug!(code, "request refused: {self}"),
        }
        let mut document = Map::new();
        document.insert("type".into(), json!("about:blank"));
        document.insert("title".into(), json!(status.canonical_reason().unwrap_or("Error")));
        document.insert("status".into(), json!(status.as_u16()));
        document.insert("code".into(), json!(code));
        document.insert("detail".into(), json!(clipped(self.to_string())));
        document.append(&mut self.extensions());

        let mut response = Response::new(Value::Object(document).to_string().into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self {
            Self::MethodNotAllowed { allow } => {
                if let Ok(allow) = HeaderValue::from_str(&allow) {
                    headers.insert(ALLOW, allow);
                }
            }
            Self::Unauthorized { .. } => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the body is still arriving: reading all of it would help an attacker.
            Self::BodyTooLarge { .. } | Self::BodyTooSlow { .. } => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
