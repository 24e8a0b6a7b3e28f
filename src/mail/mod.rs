//! Mails that the server has sent: a command or a webhook of the operator's gets each as JSON, and sends it.
//!
//! - `outbox`: what waits to be sent, and the one thread that sends.
//! - `hook`: how a mail is handed over.
//!
//! Nothing here blocks a request: a request only puts into the queue what is to be done.

mod hook;
mod outbox;

use serde::Serialize;

pub use crate::storage::accounts::MailKind;
pub use hook::{Hook, HookError, Sender};
pub use outbox::{Outbox, OutboxFull};

/// One mail, as the hook gets it. Its `Debug` hides the token.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Mail {
    /// What it is for.
    pub kind: MailKind,
    /// The address that it goes to.
    pub to: String,
    /// Where the user goes: a page of the app, which reads the token behind `#`. Absent without `public_url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// What proves that the user reads this address.
    pub token: String,
    /// From when on the token is refused, as RFC 3339 writes it.
    pub expires_at: String,
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mail").field("kind", &self.kind).finish_non_exhaustive()
    }
}
