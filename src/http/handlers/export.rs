use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, HeaderValue};

use super::changes::{Lines, line, stream};
use super::owners::memberships;
use super::{ApiError, App, HandlerResult, off_reactor};
use crate::accounts::Caller;
use crate::export::{self, Account};
use crate::http::stream::{ChunkWriter, Progress, Source};
use crate::model::{Owner, Version};
use crate::storage::Membership;

/// `GET /account/export`: who the user is, the declared tables, and every row of each owner, as lines.
pub async fn export(app: Arc<App>, caller: Result<Caller, ApiError>) -> HandlerResult {
    let caller = caller?;
    let (at_work, who) = (Arc::clone(&app), caller.clone());
    let source = off_reactor(move || Export::begin(at_work, who)).await?;
    let mut response = stream(app, &caller, source).await?;
    let name = HeaderValue::from_static("attachment; filename=\"export.ndjson\"");
    response.headers_mut().insert(CONTENT_DISPOSITION, name);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The lines of all owners of a user, one owner after the other.
struct Export {
    app: Arc<App>,
    /// The owner that is read.
    lines: Lines,
    /// Those that follow.
    others: std::vec::IntoIter<Membership>,
    caller: Caller,
}

impl Export {
    fn begin(app: Arc<App>, caller: Caller) -> Result<Self, ApiError> {
        let mut others = memberships(&app, &caller)?;
        let home = export::take_first(&mut others, caller.default_owner);
        let (mut known, mut devices) = (None, Vec::new());
        if let Some(local) = app.accounts.local() {
            known = Some(local.user(&caller)?);
            devices = local.devices(&caller)?;
        }
        let account = Account {
            user: caller.user,
            owner: caller.default_owner,
            known: known.as_ref(),
            devices: &devices,
        };
        let mut first = Vec::new();
        line(&mut first, &export::account_line(&app.schema, &account, home.as_ref(), others.len()))?;
        let lines = Lines::whole(Arc::clone(&app), caller.clone(), first);
        Ok(Self { app, lines, others: others.into_iter(), caller })
    }
}

impl Source for Export {
    /// The version at which the feed of the first owner ends; 0 if the user is no member of it.
    type Head = Version;

    fn owner(&self) -> Owner {
        self.lines.owner()
    }

    /// A run reads one owner at most, since it takes the turn of that owner.
    fn read(&mut self, out: &mut ChunkWriter<Version>) -> Result<Progress, ApiError> {
        match self.lines.read(out) {
            Ok(Progress::Finished) => {}
            // The user has left the owner, or it was deleted, since the list was read.
            Err(ApiError::NotAMember) => {
                if let Some(first) = self.lines.unwritten() {
                    out.begin(Version(0));
                    out.buf.extend_from_slice(first);
                }
                line(&mut out.buf, &export::left_line(self.owner()))?;
            }
            unfinished => return unfinished,
        }
        let Some(next) = self.others.next() else { return Ok(Progress::Finished) };
        let mut first = Vec::new();
        line(&mut first, &export::owner_line(&next))?;
        self.lines = Lines::whole(Arc::clone(&self.app), self.caller.about(next.owner), first);
        let _ = out.flush_if_full(); // this run ends in any case
        Ok(Progress::Paused)
    }
}
