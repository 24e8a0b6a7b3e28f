use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::Done;
use super::database::{Database, open_beside_server};
use super::serve::read_schema;
use crate::changes::{self, Feed, FeedFilter};
use crate::clock::Clock;
use crate::export::{self, Account};
use crate::http::wire::{ChangeLine, EndLine};
use crate::model::{DeviceId, Owner};
use crate::schema::{Schema, TableId};
use crate::storage::readable::Readable;
use crate::storage::{ReadTxn, Storage};

/// How long the command waits for its turn while a server is busy.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// What one transaction reads at most. A page stays in memory until it is written.
const PAGE_ENTRIES: usize = 10_000;
const PAGE_BYTES: usize = 1024 * 1024;

/// Why the pages that were read are not enough.
const OVERTAKEN: &str = "old data was removed meanwhile, or the database was put back: run the command again";

/// Writes what `GET /account/export` returns to standard output.
pub(super) fn run(email: &str, schema: &Path, database: &Database) -> Done {
    let schema = Arc::new(read_schema(schema)?);
    let storage = open_beside_server(database, &schema, BUSY_WAIT)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    write(&*storage, &schema, email, &Clock::system(), &mut out)?;
    out.flush()?;
    Ok(())
}

/// Writes the lines of a user's export.
fn write(storage: &dyn Storage, schema: &Schema, email: &str, clock: &Clock, out: &mut impl Write) -> Done {
    let accounts = storage.accounts();
    let user = accounts.user(email)?.ok_or_else(|| format!("there is no user {email}"))?;
    let mut devices = accounts.devices(user.id)?;
    devices.retain(|device| device.expires_at > clock.now());
    let mut others = accounts.owners_of(user.id)?;
    let first = export::take_first(&mut others, user.owner);
    let account = Account { user: user.id, owner: user.owner, known: Some(&user), devices: &devices };
    line(out, &export::account_line(schema, &account, first.as_ref(), others.len()))?;
    rows(storage, schema, user.id, user.owner, out)?;
    for one in &others {
        line(out, &export::owner_line(one))?;
        rows(storage, schema, user.id, one.owner, out)?;
    }
    Ok(())
}

/// Writes the rows of an owner and its last line, page by page.
fn rows(storage: &dyn Storage, schema: &Schema, user: Uuid, owner: Owner, out: &mut impl Write) -> Done {
    let mut page = Page { schema, user, owner, rest: None, text: Vec::new() };
    loop {
        let is_last = storage.read(owner, |txn| page.read(txn))?;
        out.write_all(&page.text)?;
        if is_last {
            return Ok(());
        }
    }
}

/// A part of an owner's lines.
struct Page<'a> {
    schema: &'a Schema,
    user: Uuid,
    owner: Owner,
    /// What is not read yet, once reading has begun.
    rest: Option<Feed>,
    text: Vec<u8>,
}

impl Page<'_> {
    /// Reads the next page, with the last line if it is the last one; returns whether it is.
    fn read(&mut self, txn: &mut dyn ReadTxn) -> Result<bool, Box<dyn std::error::Error>> {
        self.text.clear();
        let member = txn.member(self.user)?.filter(|_| txn.state().erased_at.is_none());
        let Some(member) = member else {
            line(&mut self.text, &export::left_line(self.owner))?;
            return Ok(true);
        };
        self.read_as_member(&mut Readable::new(txn, self.schema, member.role))
    }

    fn read_as_member(&mut self, txn: &mut dyn ReadTxn) -> Result<bool, Box<dyn std::error::Error>> {
        let (schema, state) = (self.schema, txn.state());
        let feed = match self.rest {
            // What changed meanwhile is read in one snapshot, if it fits a page: then there is nothing more to follow.
            Some(feed) if feed.is_unread() => Feed::begin(state, feed.since),
            Some(feed) => feed.resume(state),
            None => Feed::begin(state, None),
        };
        let feed = feed.map_err(|_| OVERTAKEN)?;
        let tables: Vec<TableId> = schema.tables().iter().map(|table| table.id).collect();
        let wanted = FeedFilter {
            device: DeviceId(Uuid::nil()),
            tables: &tables,
            rows_max: usize::MAX,
            bytes_max: PAGE_BYTES,
            entries_max: PAGE_ENTRIES,
        };
        let (text, mut written) = (&mut self.text, Ok(()));
        let page = changes::run(txn, feed, &wanted, &mut |net, table, key, row| {
            written = line(text, &ChangeLine { schema, net, table, key, row });
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        written?;
        self.rest = page.next;
        if state.version > feed.until && self.rest.is_none() {
            self.rest = Some(Feed::begin(state, Some(feed.until)).map_err(|_| OVERTAKEN)?);
        }
        if self.rest.is_some() {
            return Ok(false);
        }
        let feed = Feed { since: None, ..feed };
        let digests = txn.digests()?;
        line(&mut self.text, &EndLine { schema, feed: &feed, digests: (state.version, &digests) })?;
        Ok(true)
    }
}

fn line(out: &mut impl Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}
