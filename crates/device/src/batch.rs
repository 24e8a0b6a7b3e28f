//! The requests of a push: the waiting rows, in parts that the server accepts.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Not;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::responses::Limits;
use super::row::Row;
use super::store::{Outstanding, SentRow, Store, StoreResult, names, remember, writing};
use super::text::Columns;
use rollcall_core::model::{Precision, RowKey, Timestamp, Version};
use rollcall_core::reconcile::Operation;
use rollcall_core::schema::{Schema, Table, TableId};

/// What is still to be sent and requested.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// Rows to send, in an order that the server can apply.
    pub rows: VecDeque<(TableId, RowKey)>,
    /// Keys of rows to request.
    pub gets: VecDeque<(TableId, RowKey)>,
}

impl Queue {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.gets.is_empty()
    }

    /// Puts the rows of a request back, of which nothing was written.
    pub fn put_back(&mut self, schema: &Schema, sending: &Outstanding) {
        for sent in sending.sent.iter().rev() {
            if let Some(table) = schema.table(&sent.table) {
                self.rows.push_front((table.id, sent.key));
            }
        }
        for (name, keys) in &sending.body.get {
            let Some(table) = schema.table(name) else { continue };
            self.gets.extend(keys.iter().map(|key| (table.id, *key)));
        }
    }
}

/// The members of a request apart from rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestOptions {
    /// The version that the device's copy was built on.
    pub base: Option<Version>,
    /// Whether the last request also fetches the changes of other devices.
    pub pull: bool,
    /// How many deletions the user has confirmed.
    pub confirm_deletes: Option<u64>,
}

/// The body of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Body {
    /// Rows to create, by table.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, Vec<Columns>>,
    /// Rows to change.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub update: BTreeMap<String, Vec<Columns>>,
    /// Rows to delete.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub delete: BTreeMap<String, Vec<Columns>>,
    /// Keys of rows to return.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub get: BTreeMap<String, Vec<RowKey>>,
    /// The version that the device's copy was built on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Version>,
    /// Whether another request follows under the same lock.
    #[serde(skip_serializing_if = "Not::not")]
    pub keep_lock: bool,
    /// Whether to return what other devices changed.
    #[serde(skip_serializing_if = "Not::not")]
    pub pull: bool,
    /// Whether the rows are states that a server returned and may have lost.
    #[serde(skip_serializing_if = "Not::not")]
    pub put_back: bool,
    /// How many deletions the user has confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_deletes: Option<u64>,
    /// When it is sent, by the device's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<String>,
}

impl Body {
    fn push(&mut self, operation: Operation, table: &Table, item: Columns) {
        let tables = match operation {
            Operation::Add => &mut self.add,
            Operation::Update => &mut self.update,
            Operation::Delete => &mut self.delete,
        };
        tables.entry(table.name.clone()).or_default().push(item);
    }

    /// The key of the row at a position of the body, such as `add`, `lists` and 0.
    pub fn key_at(&self, member: &str, table: &Table, place: usize) -> Option<RowKey> {
        let tables = match member {
            "add" => &self.add,
            "update" => &self.update,
            "delete" => &self.delete,
            "get" => return self.get.get(&table.name)?.get(place).copied(),
            _ => return None,
        };
        super::responses::key_in(table, tables.get(&table.name)?.get(place)?)
    }
}

/// Sendings of one request that are stored.
const STAMPS_MAX: usize = 16;

/// The usable share of `body_bytes_max`: the rest is for names, brackets and `sent_at`.
const BODY_SHARE_PERCENT: usize = 80;

impl Store {
    /// Every waiting row: first what is put back, then new and changed rows, parents first, then deletions,
    /// children first. So a request never refers to a row of a later one.
    pub fn waiting(&self) -> StoreResult<VecDeque<(TableId, RowKey)>> {
        let mut waiting = VecDeque::new();
        let parents_first = self.schema().parents_first();
        let mut take = |state: &'static str, by_user: bool, id: TableId| -> StoreResult<()> {
            let mut statement = self.conn.prepare_cached(
                "SELECT key FROM rows WHERE table_name = ?1 AND state = ?2 AND state <> 'clean'
                 AND (edited_at IS NOT NULL) = ?3 ORDER BY key",
            )?;
            let name = &self.schema().at(id).name;
            let asked = (name.as_str(), state, by_user);
            for key in statement.query_map(asked, |row| row.get::<_, String>(0))? {
                waiting.extend(RowKey::parse(&key?).map(|key| (id, key)));
            }
            Ok(())
        };
        for (state, by_user) in [("added", false), ("edited", false), ("added", true), ("edited", true)] {
            parents_first.iter().try_for_each(|id| take(state, by_user, *id))?;
        }
        parents_first.iter().rev().try_for_each(|id| take("deleted", true, *id))?;
        Ok(waiting)
    }

    /// Takes the next request from the queue and stores it as outstanding, in one transaction. It contains
    /// the rows in their present state; later changes of the user have a higher edit number.
    pub fn next_request(
        &mut self,
        queue: &mut Queue,
        limits: &Limits,
        terms: &RequestOptions,
    ) -> StoreResult<Outstanding> {
        let schema = self.schema().clone();
        let txn = writing(&mut self.conn)?;
        let mut body = Body::default();
        let mut sent = Vec::new();
        let mut bytes_left = limits.body_bytes_max / 100 * BODY_SHARE_PERCENT;
        let mut put_back = None;
        while sent.len() < limits.rows_max.max(1) {
            let Some((id, key)) = queue.rows.front().copied() else { break };
            let table = schema.at(id);
            if let Some(row) = Row::load(&txn, table, key)? {
                // Rows that are put back follow other rules, so they are sent in separate requests.
                if *put_back.get_or_insert(row.local.is_put_back()) != row.local.is_put_back() {
                    break;
                }
                let (operation, item) = row.outgoing(table);
                let bytes = serde_json::to_string(&item)?.len() + 1;
                if bytes > bytes_left && !sent.is_empty() {
                    break;
                }
                bytes_left = bytes_left.saturating_sub(bytes);
                body.push(operation, table, item);
                let whole = row.local.goes_whole();
                let complete = whole && table.columns.iter().all(|one| row.contents.contains_key(&one.name));
                let table = table.name.clone();
                sent.push(SentRow { table, key, operation, whole, complete, edit: row.edit });
            }
            queue.rows.pop_front();
        }
        // A key takes some 40 bytes; rows have priority.
        let keys = limits.get_keys_max.min(bytes_left / 40).max(usize::from(sent.is_empty()));
        for (id, key) in queue.gets.drain(..keys.min(queue.gets.len())) {
            body.get.entry(schema.at(id).name.clone()).or_default().push(key);
        }
        let last = queue.is_empty();
        (body.base, body.confirm_deletes) = (terms.base, terms.confirm_deletes);
        (body.keep_lock, body.pull) = (!last, last && terms.pull);
        body.put_back = put_back == Some(true);
        let sending = Outstanding { key: Uuid::now_v7(), body, sent, stamps: Vec::new() };
        remember(&txn, names::OUTSTANDING, &serde_json::to_string(&sending)?)?;
        txn.commit()?;
        Ok(sending)
    }

    /// Stores a request before it is sent, since its response may be lost.
    pub(super) fn send_next(&self, sending: &Outstanding) -> StoreResult<()> {
        self.remember(names::OUTSTANDING, &serde_json::to_string(sending)?)
    }
}

impl Outstanding {
    /// Records a sending at `now`. Otherwise a repeated request would report the clock of its first sending,
    /// and old edits would count as new ones.
    pub(super) fn stamp(&mut self, now: Timestamp) -> Body {
        if self.stamps.len() >= STAMPS_MAX {
            self.stamps.remove(0);
        }
        self.stamps.push(now.format(Precision::Milliseconds).to_string());
        self.stamped(self.stamps.len() - 1)
    }

    /// The body of that sending.
    pub(super) fn stamped(&self, place: usize) -> Body {
        Body { sent_at: self.stamps.get(place).cloned(), ..self.body.clone() }
    }
}
