//! The channel of a batch, from the thread that writes it to the task that responds.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::super::report;
use super::super::{HandlerResult, json_bytes, set_version_headers};
use crate::accounts::Caller;
use crate::http::Permit;
use crate::http::app::App;
use crate::http::problem::ApiError;
use crate::model::{Owner, Version};
use crate::storage::not_run;
use crate::synchronise::Report;

/// The result of a batch for its client.
pub(super) enum SyncResponse {
    /// This response, which is stored.
    Whole(warp::reply::Response),
    /// This report, which has to be written as JSON.
    Report(Box<Report>),
    /// The report that was sent before the COMMIT.
    Previewed,
    /// Nothing was done: the caller is another installation now, or has another role.
    AsAnother(Box<Caller>),
}

enum Message {
    /// The report, before the result of the COMMIT is known: it is written as JSON in the meantime.
    Preview(Box<Report>),
    End(Box<Result<SyncResponse, ApiError>>),
}

/// Sends the result of a batch, and a large report before it. Nothing receives it if the client has
/// disconnected.
pub(super) struct ReplySender(mpsc::UnboundedSender<Message>);

pub(super) struct ReplyReceiver(mpsc::UnboundedReceiver<Message>);

pub(super) fn reply_channel() -> (ReplySender, ReplyReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel(); // at most two messages
    (ReplySender(sender), ReplyReceiver(receiver))
}

impl ReplySender {
    pub fn preview(&self, report: Box<Report>) {
        let _ = self.0.send(Message::Preview(report));
    }

    pub fn end(self, result: Result<SyncResponse, ApiError>) {
        let _ = self.0.send(Message::End(Box::new(result)));
    }

    /// Whether the client has disconnected, or the request's deadline is over.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// The result of an attempt at a request.
pub(super) enum Ended {
    Response(warp::reply::Response),
    /// Nothing was done: the caller is another installation now, or has another role.
    AsAnother(Box<Caller>),
}

impl ReplyReceiver {
    /// Waits for the result of the caller's batch, and builds the response within the memory of `permit`.
    pub async fn ended(
        mut self,
        app: &Arc<App>,
        caller: &Caller,
        permit: &Permit,
    ) -> Result<Ended, ApiError> {
        let owner = caller.other_owner();
        let mut previewed = None;
        let result = loop {
            match self.0.recv().await {
                Some(Message::Preview(report)) => {
                    previewed = Some(write_report(app, owner, report, permit).await)
                }
                Some(Message::End(result)) => break *result,
                None => return Err(ApiError::Internal("the batch was dropped without a reply".into())),
            }
        };
        let response = match result? {
            SyncResponse::AsAnother(caller) => return Ok(Ended::AsAnother(caller)),
            SyncResponse::Whole(response) => response,
            SyncResponse::Report(report) => write_report(app, owner, report, permit).await?,
            SyncResponse::Previewed => previewed.unwrap_or_else(|| Err(not_run().into()))?,
        };
        Ok(Ended::Response(response))
    }
}

async fn write_report(
    app: &Arc<App>,
    owner: Option<Owner>,
    report: Box<Report>,
    permit: &Permit,
) -> HandlerResult {
    let version = report.current;
    Ok(report_response(report::write_later(app, owner, report, permit).await?, version))
}

pub(super) fn report_response(body: Vec<u8>, version: Version) -> warp::reply::Response {
    let mut response = json_bytes(body);
    set_version_headers(response.headers_mut(), version);
    response
}
