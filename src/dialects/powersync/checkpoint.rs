//! One checkpoint, as it is read: its head, the operations since the client's last one, its end.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::cursor::{OpId, Position};
use super::lines::{self, Head};
use crate::accounts::Caller;
use crate::changes::{self, Feed, FeedFilter};
use crate::http::stream::{ChunkWriter, Progress, Source};
use crate::http::{ApiError, App, Sight};
use crate::model::{Owner, RowKey, Stored, Version};
use crate::reconcile::NetChange;
use crate::schema::{Schema, TableId};
use crate::storage::{FeedPosition, OwnerState};

/// A line ends after so many operations or bytes: an SDK takes a line at once.
const LINE_OPERATIONS: usize = 500;
const LINE_BYTES: usize = 64 * 1024;

/// The bucket of an owner on one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Names the owner, what the rows look like, and the version at which the client began to load them.
    pub name: String,
    begun: Version,
    /// The last operation that the client has.
    pub at: OpId,
}

impl Bucket {
    /// One that a client does not have yet.
    fn new(kind: &str, now: Version) -> Self {
        Self { name: format!("{kind}:{now}"), begun: now, at: OpId(0) }
    }

    /// One that a client has, if it is of the same owner, epoch and schema, and the server still knows what changed since.
    ///
    /// What was deleted while the client loads for the first time is later than the version at which it began.
    pub fn usable(kind: &str, name: &str, at: OpId, state: OwnerState) -> Option<Self> {
        let begun = Version(name.strip_prefix(kind)?.strip_prefix(':')?.parse().ok()?);
        let reached = match at.position() {
            Position::Nothing => begun,
            Position::Complete(version) | Position::Within(version, _) => version.max(begun),
        };
        changes::check(state, Some(reached)).ok()?;
        Some(Self { name: name.to_owned(), begun, at })
    }
}

/// How the buckets of an owner are called, in one epoch and with one schema: rows of another look are loaded anew.
fn kind_of(owner: Owner, state: OwnerState, schema: &Schema) -> String {
    let mut hash = Sha256::new();
    hash.update(state.version.epoch().to_be_bytes());
    hash.update(format!("{:?}", schema.precision));
    for table in schema.tables() {
        hash.update(format!("\n{} {}", table.name, table.key));
        for column in &table.columns {
            hash.update(format!(",{} {}", column.name, column.kind.name()));
        }
    }
    hash.finalize().iter().take(6).fold(format!("{owner}:"), |mut kind, byte| {
        let _ = write!(kind, "{byte:02x}"); // a String takes everything
        kind
    })
}

/// What a stream has sent so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent {
    /// The buckets that the client said it has, until the first checkpoint has chosen one.
    pub given: Vec<(String, OpId)>,
    /// The bucket of the last checkpoint.
    pub bucket: Option<Bucket>,
    /// The version of the last checkpoint.
    pub version: Option<Version>,
}

/// A checkpoint.
pub(super) struct Checkpoint {
    app: Arc<App>,
    caller: Caller,
    tables: Vec<TableId>,
    /// The number that the client waits for, where it chose one.
    requested: u64,
    sent: Arc<Mutex<Sent>>,
    /// What is still to be sent, once it has begun.
    rest: Option<Rest>,
    scratch: Vec<u8>,
}

struct Rest {
    until: Version,
    bucket: Bucket,
    feeds: VecDeque<Feed>,
    /// Operations and bytes of the line that is open.
    line: (usize, usize),
    /// The version of the last row, and its place in it.
    place: (Version, u64),
}

impl Checkpoint {
    pub fn new(app: Arc<App>, caller: Caller, requested: u64, sent: Arc<Mutex<Sent>>) -> Self {
        let tables = app.schema.tables().iter().map(|table| table.id).collect();
        Self { app, caller, tables, requested, sent, rest: None, scratch: Vec::new() }
    }

    /// Writes the head, and finds out what follows.
    fn begin(&self, state: OwnerState, buf: &mut Vec<u8>) -> Rest {
        let sent = self.sent.lock();
        let kind = kind_of(self.caller.owner, state, &self.app.schema);
        let before = sent.bucket.as_ref();
        let given = sent.given.iter().map(|(name, at)| (name.as_str(), *at));
        let mut known = before.map(|bucket| (bucket.name.as_str(), bucket.at)).into_iter().chain(given);
        let usable = known.find_map(|(name, at)| Bucket::usable(&kind, name, at, state));
        let bucket = usable.unwrap_or_else(|| Bucket::new(&kind, state.version));
        let last = OpId::complete(state.version);
        let removed = before.map(|bucket| bucket.name.as_str()).filter(|name| *name != bucket.name);
        let head = Head {
            last,
            write_checkpoint: self.requested.max(state.version.0),
            bucket: &bucket.name,
            count: state.rows,
            removed,
            is_changed: bucket.at != last,
        };
        head.write(buf, sent.version.is_none());
        if let Position::Complete(version) = bucket.at.position() {
            self.app.acks.note(&self.caller, Some(version), self.app.clock.now());
        }
        let feeds = feeds(bucket.at, state.version);
        let place = match bucket.at.position() {
            Position::Within(version, place) => (version, place),
            _ => (Version(0), 0),
        };
        Rest { until: state.version, bucket, feeds, line: (0, 0), place }
    }
}

/// What a client lacks, in feeds to be read one after the other.
fn feeds(at: OpId, until: Version) -> VecDeque<Feed> {
    let after = |since: Option<Version>, until| {
        let position = FeedPosition { version: since.unwrap_or(Version(0)), within: None };
        Feed { since, until, exclude: None, position }
    };
    let feeds = match at.position() {
        Position::Nothing => vec![after(None, until)],
        Position::Complete(version) => vec![after(Some(version), until)],
        // All rows of that version again, since some of them may have moved; then what follows. A row of it that was
        // sent and is deleted since is known to the client.
        Position::Within(version, _) => {
            vec![after(Some(Version(version.0 - 1)), version.min(until)), after(Some(version), until)]
        }
    };
    feeds.into_iter().filter(|feed| feed.position.version < feed.until).collect()
}

impl Source for Checkpoint {
    type Head = ();

    fn owner(&self) -> Owner {
        self.caller.owner
    }

    /// Each stretch has a snapshot of its own: a row that changes between two moves above the checkpoint, and comes
    /// with the next one.
    fn read(&mut self, out: &mut ChunkWriter<()>) -> Result<Progress, ApiError> {
        let app = Arc::clone(&self.app);
        let caller = self.caller.clone();
        app.read_as(&caller, |txn, Sight { state, .. }| {
            if self.rest.is_none() {
                out.begin(());
                out.buf.clear();
                self.rest = Some(self.begin(state, &mut out.buf));
            }
            let Self { rest: Some(rest), caller, tables, scratch, .. } = self else {
                return Err(ApiError::Internal("a checkpoint that did not begin".into()));
            };
            changes::check(state, Some(rest.until.max(rest.bucket.begun)))?;
            while let Some(feed) = rest.feeds.front().copied() {
                let filter = FeedFilter {
                    device: caller.device,
                    tables,
                    rows_max: usize::MAX,
                    bytes_max: usize::MAX,
                    entries_max: app.settings.sync.page_entries_max,
                };
                let (mut failure, mut rows) = (None, 0);
                let page = changes::run(txn, feed, &filter, &mut |net, table, key, row| {
                    rows += 1;
                    failure = rest.write(&mut out.buf, scratch, &app.schema, net, table, key, row).err();
                    if let Some(feed) = rest.feeds.front_mut() {
                        feed.position = FeedPosition { version: row.version, within: Some((table, key)) };
                    }
                    if failure.is_some() { ControlFlow::Break(()) } else { out.flush_if_full() }
                })?;
                app.metrics.fed(rows, page.looked as u64);
                if let Some(error) = failure {
                    return Err(error);
                }
                let Some(next) = page.next else {
                    rest.feeds.pop_front();
                    continue;
                };
                if let Some(feed) = rest.feeds.front_mut() {
                    *feed = next;
                }
                return Ok(Progress::Paused);
            }
            rest.end(&mut out.buf);
            let mut sent = self.sent.lock();
            sent.given.clear();
            (sent.bucket, sent.version) = (Some(rest.bucket.clone()), Some(rest.until));
            Ok(Progress::Finished)
        })
    }
}

impl Rest {
    #[allow(clippy::too_many_arguments)] // what the feed lends of a row, and where it goes
    fn write(
        &mut self,
        buf: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
        schema: &Schema,
        net: NetChange,
        table: TableId,
        key: RowKey,
        row: &Stored,
    ) -> Result<(), ApiError> {
        let place = if self.place.0 == row.version { self.place.1 + 1 } else { 1 };
        self.place = (row.version, place);
        let id = OpId::within(row.version, place);
        self.open_line(buf);
        let before = buf.len();
        let checksum = id.checksum_after(self.bucket.at);
        lines::write_row(buf, scratch, schema, (id, checksum), (net, schema.at(table), key, row))?;
        self.bucket.at = id;
        self.line = (self.line.0 + 1, self.line.1 + buf.len() - before);
        if self.line.0 >= LINE_OPERATIONS || self.line.1 >= LINE_BYTES {
            self.close_line(buf);
        }
        Ok(())
    }

    /// Brings the client's sum to that of the checkpoint, and ends it.
    fn end(&mut self, buf: &mut Vec<u8>) {
        let last = OpId::complete(self.until);
        if self.bucket.at != last {
            self.open_line(buf);
            lines::write_move(buf, last, last.checksum_after(self.bucket.at));
            self.bucket.at = last;
            self.line.0 += 1;
        }
        self.close_line(buf);
        lines::complete(buf, last);
    }

    fn open_line(&self, buf: &mut Vec<u8>) {
        if self.line.0 == 0 {
            lines::begin_data(buf, &self.bucket.name, self.bucket.at);
        } else {
            buf.push(b',');
        }
    }

    fn close_line(&mut self, buf: &mut Vec<u8>) {
        if std::mem::take(&mut self.line).0 > 0 {
            lines::end_data(buf, self.bucket.at);
        }
    }
}
