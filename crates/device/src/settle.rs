//! Applies the rules' decisions to the device's file: one transaction for each response.

use std::collections::{BTreeMap, HashMap, HashSet};

use rusqlite::Transaction;

use super::calls::ServerFacts;
use super::decide::{
    self, Contents, CursorEvent, Entry, Epoch, Local, Outcome, Plan, RetryWhen, RowResult, Sent,
};
use super::responses::{self, Changes, Kind, Report, VerdictItem};
use super::row::{self, Row, RowFilter};
use super::store::{Outstanding, SentRow, Store, StoreResult, names, outstanding, recall, remember, writing};
use super::text::Columns;
use rollcall_core::model::{InstallationName, RowKey, Version};
use rollcall_core::reconcile::{Operation, Verdict};
use rollcall_core::schema::{Schema, Table};

/// The effect of a sync, in rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows that the server accepted.
    pub taken: u64,
    /// Rows that came from the server.
    pub received: u64,
    /// Rows that were dropped here because they are deleted there.
    pub dropped: u64,
    /// Rows whose edits were lost: the server's row replaced them, or none.
    pub lost: Vec<(String, RowKey)>,
    /// Rejected rows that wait for their user: table, key, reason.
    pub rejected: Vec<(String, RowKey, String)>,
}

/// One transaction that applies a response.
pub struct Settling<'a> {
    txn: Transaction<'a>,
    schema: &'a Schema,
    tally: &'a mut Tally,
    /// The server's epoch.
    epoch: Option<u64>,
    /// The name of the installation from now on.
    installation: Option<InstallationName>,
    /// Whether rows are marked as mentioned by a full feed.
    marks: bool,
    /// Whether the server's past is the one that the device knows, as far as this response shows.
    past: Epoch,
}

impl Store {
    /// Begins to apply a response; `facts` is what it reported about the server and this installation.
    pub fn settling<'a>(&'a mut self, tally: &'a mut Tally, facts: ServerFacts) -> StoreResult<Settling<'a>> {
        let (conn, schema) = self.parts();
        let ServerFacts { epoch, installation } = facts;
        let settling = Settling {
            txn: writing(conn)?,
            schema,
            tally,
            epoch,
            installation,
            marks: false,
            past: Epoch::Same,
        };
        settling.name(installation)?;
        Ok(settling)
    }
}

impl Settling<'_> {
    /// Applies the results of a response, stores the requested rows, and closes the request.
    pub fn report(&mut self, sending: &Outstanding, report: Report) -> StoreResult<Option<Changes>> {
        let Report { add, update, delete, get, changes, .. } = report;
        if let Some(page) = changes.as_ref().filter(|changes| changes.kind == Kind::Full) {
            self.begin_full(page.version)?; // before the results, so that they mark rows as mentioned
        }
        let sent: HashMap<(&str, Operation, RowKey), &SentRow> =
            sending.sent.iter().map(|sent| ((sent.table.as_str(), sent.operation, sent.key), sent)).collect();
        // A response contains the server's row once: a row that was requested as well is under `get` only.
        let mut got = asked_for_as_well(self.schema, sending, &get);
        for (operation, lists) in
            [(Operation::Add, add), (Operation::Update, update), (Operation::Delete, delete)]
        {
            for (table, items) in responses::declared_tables(self.schema, lists) {
                for mut item in items {
                    let key = item.others.get(&table.key).and_then(responses::key);
                    let sent = key.and_then(|key| sent.get(&(table.name.as_str(), operation, key)));
                    if let Some(sent) = sent {
                        item.row = item.row.or_else(|| got.remove(&(table.name.clone(), sent.key)));
                        self.verdict(table, sent, item)?;
                    }
                }
            }
        }
        for (table, rows) in responses::declared_tables(self.schema, get) {
            rows.into_iter().try_for_each(|row| self.entry(table, row))?;
        }
        // In this transaction: a copy of the file that was made before falls behind, and is recognised by
        // that.
        self.name(self.installation.map(InstallationName::next))?;
        // Only this request: the user's program may have begun another one in between.
        if outstanding(&self.txn)?.is_some_and(|known| known.key == sending.key) {
            self.forget(names::OUTSTANDING)?;
        }
        Ok(changes)
    }

    fn verdict(&mut self, table: &Table, sent: &SentRow, item: VerdictItem) -> StoreResult<()> {
        let Some(row) = Row::load(&self.txn, table, sent.key)? else { return Ok(()) };
        let theirs = item.row.and_then(|row| responses::parts(table, row)).map(|(_, _, columns)| columns);
        let told = RowResult {
            verdict: item.verdict,
            last_update: item.last_update.as_deref().and_then(responses::time),
            row: theirs.is_some(),
        };
        let edited_since = row.edit > sent.edit;
        let SentRow { operation, whole, complete, .. } = *sent;
        let outcome =
            decide::apply_verdict(&row.local, Sent { operation, whole, complete, edited_since }, told);
        if outcome.local == Some(Local::clean(None)) {
            self.forget(names::ETAG)?; // the next manifest has to list it
        }
        let judged = !matches!(item.verdict, Verdict::Gone | Verdict::Absent | Verdict::Rejected);
        let lost =
            item.verdict == Verdict::Kept || (item.verdict == Verdict::Gone && outcome.local.is_none());
        if lost && row.local.is_put_back() {
            self.tally.received += u64::from(outcome.local.is_some()); // without an edit nothing was lost
        } else if lost {
            self.tally.lost.push((table.name.clone(), sent.key));
        } else if judged {
            self.tally.taken += 1;
        }
        if outcome.local.is_none() && item.verdict == Verdict::Gone {
            self.tally.dropped += 1;
        }
        // An edit that came too fast waits like any other, and is sent with the next sync.
        let error =
            item.error.filter(|error| error.retry_when() != RetryWhen::Later).map(|error| error.detail);
        let settled = if judged { sent.edit } else { 0 };
        // If the row has no change of its user, nothing needs a correction.
        let row = row.after(outcome, theirs, settled);
        self.put(table, sent.key, row.map(|row| Row { error: error.filter(|_| row.local.is_dirty()), ..row }))
    }

    /// Stores a row from the server: requested, or from the feed.
    fn entry(&mut self, table: &Table, told: Columns) -> StoreResult<()> {
        let Some((key, at, theirs)) = responses::parts(table, told) else { return Ok(()) };
        let row = Row::load(&self.txn, table, key)?;
        let outcome = decide::apply(row.as_ref().map(|row| &row.local), Entry::Row(at), self.past);
        let news = row.as_ref().is_none_or(|row| row.contents != theirs);
        self.tally.received += u64::from(outcome.contents == Contents::Theirs && news);
        let row = row.unwrap_or_else(|| Row::new(key)).after(outcome, Some(theirs), 0);
        self.put(table, key, row)
    }

    /// Applies a page of the change feed. After the last page of a full feed, a row that was not mentioned
    /// was deleted if the server's past is the one that the device knows; otherwise it is put back.
    pub fn page(&mut self, page: Changes) -> StoreResult<()> {
        if page.kind == Kind::Full {
            self.marks = true;
            self.past = self.past(page.version, false)?;
            if self.past == Epoch::Same {
                self.adopt(page.version)?; // a device without data has no other past
            }
        } else {
            self.know(page.version)?;
        }
        // An interrupted diff is continued; a full feed is started again.
        match page.next.as_deref().filter(|_| page.more && page.kind == Kind::Diff) {
            Some(next) => remember(&self.txn, names::NEXT, next)?,
            None => self.forget(names::NEXT)?,
        }
        for lists in [page.add, page.update] {
            for (table, rows) in responses::declared_tables(self.schema, lists) {
                rows.into_iter().try_for_each(|row| self.entry(table, row))?;
            }
        }
        for (table, keys) in responses::declared_tables(self.schema, page.delete) {
            for key in keys {
                let row = Row::load(&self.txn, table, key)?;
                let outcome = decide::apply(row.as_ref().map(|row| &row.local), Entry::Deleted, Epoch::Same);
                self.decided(table, key, row, outcome)?;
            }
        }
        if page.kind == Kind::Full && !page.more {
            for table in self.schema.tables() {
                for row in Row::load_all(&self.txn, table, RowFilter::Unmentioned)? {
                    let outcome = decide::absent(&row.local, self.past);
                    self.decided(table, row.key, Some(row), outcome)?;
                }
            }
        }
        if page.kind == Kind::Full && !page.more {
            self.adopt(page.version)?; // what may have been lost is marked, row by row
        }
        self.move_cursor(CursorEvent::Page { version: page.version, more: page.more })
    }

    /// Applies the immediate part of the manifest's comparison: drops rows, and stores what the server holds.
    pub fn plan(&mut self, table: &Table, plan: &Plan<RowKey>) -> StoreResult<()> {
        for key in &plan.drop {
            self.tally.dropped += 1;
            self.put(table, *key, None)?;
        }
        for (key, local) in &plan.note {
            if let Some(row) = Row::load(&self.txn, table, *key)? {
                self.put(table, *key, Some(Row { local: *local, ..row }))?;
            }
        }
        Ok(())
    }

    /// Moves the cursor, or leaves it.
    pub fn move_cursor(&mut self, event: CursorEvent) -> StoreResult<()> {
        let cursor = recall(&self.txn, names::CURSOR)?.and_then(|text| text.parse().ok()).map(Version);
        let moved = decide::cursor_after(cursor, event);
        match moved {
            Some(moved) => remember(&self.txn, names::CURSOR, &moved.to_string())?,
            None => self.forget(names::CURSOR)?,
        }
        if moved.is_none() { self.forget(names::NEXT) } else { Ok(()) }
    }

    /// Whether the server, now at `version`, has the past that the device knows. `doubt`: something apart
    /// from its epoch and version shows that it does not.
    pub fn past(&self, version: Version, doubt: bool) -> StoreResult<Epoch> {
        let number = |name| -> StoreResult<Option<u64>> {
            Ok(recall(&self.txn, name)?.and_then(|text| text.parse().ok()))
        };
        let (epoch, cursor) = (number(names::EPOCH)?, number(names::CURSOR)?);
        let version_known = number(names::KNOWN)?.or(cursor).map(Version);
        let holds = "SELECT 1 FROM rows WHERE last_update IS NOT NULL OR state = 'clean' LIMIT 1";
        let holds = self.txn.prepare_cached(holds)?.exists([])?;
        let known =
            (holds || version_known.is_some()).then_some((epoch, version_known.unwrap_or(Version(0))));
        Ok(if doubt { Epoch::Earlier } else { decide::past(known, (self.epoch, version)) })
    }

    /// Accepts the server's past as the device's own: what the device knows beyond it is marked row by row,
    /// to be put back.
    pub fn adopt(&self, version: Version) -> StoreResult<()> {
        if self.past(version, false)? == Epoch::Earlier {
            // They belong to the other past.
            self.forget(names::SEED)?;
            self.forget(names::ETAG)?;
            self.forget(names::KNOWN)?;
        }
        match self.epoch {
            Some(epoch) => remember(&self.txn, names::EPOCH, &epoch.to_string())?,
            None => self.forget(names::EPOCH)?,
        }
        self.know(version)
    }

    /// Records that the owner has reached `version`, in the past that the device knows.
    pub fn know(&self, version: Version) -> StoreResult<()> {
        if recall(&self.txn, names::EPOCH)? != self.epoch.map(|epoch| epoch.to_string()) {
            return Ok(());
        }
        let known = recall(&self.txn, names::KNOWN)?.and_then(|text| text.parse().ok());
        if known.is_none_or(|known: u64| known < version.0) {
            remember(&self.txn, names::KNOWN, &version.to_string())?;
        }
        Ok(())
    }

    /// Stores the name of the installation.
    fn name(&self, installation: Option<InstallationName>) -> StoreResult<()> {
        let Some(name) = installation.map(|named| named.to_string()) else { return Ok(()) };
        if recall(&self.txn, names::INSTALLATION)?.as_ref() == Some(&name) {
            return Ok(());
        }
        remember(&self.txn, names::INSTALLATION, &name)
    }

    /// What the rules need to know of every row of a table.
    pub fn locals(&self, table: &Table) -> StoreResult<std::collections::BTreeMap<RowKey, Local>> {
        row::locals(&self.txn, table)
    }

    /// Stores why the server refused a whole request because of one row.
    pub fn refused(&mut self, table: &Table, key: RowKey, reason: &str) -> StoreResult<()> {
        let Some(row) = Row::load(&self.txn, table, key)? else { return Ok(()) };
        self.put(table, key, Some(Row { error: Some(reason.to_owned()), ..row }))
    }

    /// Commits the transaction.
    pub fn commit(self) -> StoreResult<()> {
        Ok(self.txn.commit()?)
    }

    /// Begins the first page of a full feed: no row has been mentioned yet.
    pub fn begin_full(&mut self, version: Version) -> StoreResult<()> {
        self.marks = true;
        self.past = self.past(version, false)?;
        self.txn.execute("UPDATE rows SET mentioned = 0 WHERE mentioned <> 0", [])?;
        Ok(())
    }

    fn decided(&mut self, table: &Table, key: RowKey, row: Option<Row>, outcome: Outcome) -> StoreResult<()> {
        let Some(row) = row else { return Ok(()) };
        self.tally.dropped += u64::from(outcome.local.is_none());
        self.put(table, key, row.after(outcome, None, 0))
    }

    fn put(&mut self, table: &Table, key: RowKey, row: Option<Row>) -> StoreResult<()> {
        let Some(row) = row else { return Row::remove(&self.txn, table, key) };
        row.save(&self.txn, table)?;
        if self.marks {
            let mark = "UPDATE rows SET mentioned = 1 WHERE table_name = ?1 AND key = ?2";
            self.txn.prepare_cached(mark)?.execute((&table.name, key.to_string()))?;
        }
        Ok(())
    }

    fn forget(&self, name: &str) -> StoreResult<()> {
        self.txn.execute("DELETE FROM meta WHERE name = ?1", [name])?;
        Ok(())
    }
}

/// The rows that the device has both sent and requested in one request.
fn asked_for_as_well(
    schema: &Schema,
    sending: &Outstanding,
    get: &BTreeMap<String, Vec<Columns>>,
) -> HashMap<(String, RowKey), Columns> {
    let sent: HashSet<(&str, RowKey)> =
        sending.sent.iter().map(|sent| (sent.table.as_str(), sent.key)).collect();
    let mut got = HashMap::new();
    for (name, rows) in get {
        let Some(table) = schema.table(name) else { continue };
        for row in rows {
            let key = responses::key_in(table, row);
            if let Some(key) = key.filter(|key| sent.contains(&(name.as_str(), *key))) {
                got.insert((name.clone(), key), row.clone());
            }
        }
    }
    got
}
