//! The response to a batch: its length, and its text.

use std::io;
use std::sync::Arc;

use super::{ApiError, App, off_reactor};
use crate::config::Settings;
use crate::http::page_token::{for_owner, write_feed};
use crate::http::wire::ReportBody;
use crate::http::{BodyFault, Permit, Unavailable};
use crate::model::Owner;
use crate::schema::Schema;
use crate::synchronise::Report;

/// Writes the response after the batch is committed: a large one on a thread of its own.
///
/// `owner`: whose rows the request is about, if it names an owner.
///
/// Errors: 503 `outcome_unknown` if there is no memory for it.
pub(super) async fn write_later(
    app: &Arc<App>,
    owner: Option<Owner>,
    report: Box<Report>,
    permit: &Permit,
) -> Result<Vec<u8>, ApiError> {
    let is_short = report.weight() <= SHORT_BYTES;
    let (app, permit) = (Arc::clone(app), permit.clone());
    let write = move || write(&app.schema, owner, &report, &permit);
    let body = if is_short { write() } else { off_reactor(write).await };
    body.map_err(after_write)
}

/// A body up to this length is read on the thread where it arrived, and a response of this weight is written
/// there: a switch of threads takes longer.
pub(super) const SHORT_BYTES: usize = 16 * 1024;

/// Converts an error after the commit: `busy` would mean that the rows were not written.
fn after_write(refusal: ApiError) -> ApiError {
    match refusal {
        ApiError::Unavailable { code: Unavailable::Busy, retry_after_s, .. } => ApiError::Unavailable {
            code: Unavailable::OutcomeUnknown,
            reason: "There is no memory for the answer now, though the request may have been carried out. Send it \
                     again: what it wrote already is then the same.",
            retry_after_s,
        },
        other => other,
    }
}

/// Writes the response, whose weight was reserved in `permit`.
pub(super) fn write(
    schema: &Schema,
    owner: Option<Owner>,
    report: &Report,
    permit: &Permit,
) -> Result<Vec<u8>, ApiError> {
    permit.shrink(report.weight()); // the weight was reserved for this text
    with_body(schema, owner, report, |body| permit.json(body))
}

fn with_body<T>(
    schema: &Schema,
    owner: Option<Owner>,
    report: &Report,
    with: impl FnOnce(&ReportBody<'_>) -> T,
) -> T {
    let every: Vec<_> = schema.tables().iter().map(|table| table.id).collect();
    let next = report.changes.as_ref().and_then(|changes| changes.next);
    let next = next.map(|feed| for_owner(write_feed(feed, &every, schema), owner));
    with(&ReportBody { schema, report, next: next.as_deref() })
}

/// The longest JSON of one byte of text: `\u0001`.
const ESCAPED_BYTES: usize = 6;

/// Refuses a request with a too long response, before anything is written.
///
/// - Bounds: `batch_bytes_max`; with a page of the feed, plus the most that such a page takes, since a device
///   cannot request a smaller one.
/// - Errors: 422 `too_many_rows`.
pub(super) fn bound_length(
    schema: &Schema,
    owner: Option<Owner>,
    report: &Report,
    settings: &Settings,
) -> Result<(), ApiError> {
    let page = settings.sync.changes_bytes_max.saturating_add(settings.limits.row_bytes_max);
    let page = if report.changes.is_some() { page.saturating_mul(ESCAPED_BYTES) } else { 0 };
    let bytes_max = settings.limits.batch_bytes_max.saturating_add(page);
    let most = report.weight().saturating_mul(ESCAPED_BYTES);
    // Nearly every response is far shorter, whatever its texts contain; only the others are measured.
    if most <= bytes_max {
        return Ok(());
    }
    let mut length = Length { left: bytes_max };
    match with_body(schema, owner, report, |body| serde_json::to_writer(&mut length, body)) {
        Ok(()) => Ok(()),
        Err(error) if error.is_io() => {
            let reason = format!(
                "the answer to this request would have more than {bytes_max} bytes: fewer rows at a time"
            );
            Err(ApiError::InvalidBody { code: BodyFault::TooManyRows, at: String::new(), reason })
        }
        Err(error) => Err(ApiError::Internal(Box::new(error))),
    }
}

/// Counts written bytes, and fails once there are too many.
struct Length {
    left: usize,
}

impl io::Write for Length {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(more.len());
        self.left = left.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
