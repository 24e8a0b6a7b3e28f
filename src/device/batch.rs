//! What goes up: the rows that wait, cut into requests that the server takes.

use std::collections::VecDeque;

use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use super::answers::Limits;
use super::decide::State;
use super::row::Row;
use super::store::{Outstanding, SentRow, Store, StoreResult, names, remember, writing};
use crate::model::{Precision, RowKey, Timestamp, Version};
use crate::reconcile::Operation;
use crate::schema::{Schema, Table, TableId};

/// What is still to be sent and to be asked for.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// Rows to send, in the order in which the server can take them.
    pub rows: VecDeque<(TableId, RowKey)>,
    /// Rows to ask for.
    pub gets: VecDeque<(TableId, RowKey)>,
}

impl Queue {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.gets.is_empty()
    }

    /// Puts back what was in a request of which nothing was written.
    pub fn put_back(&mut self, schema: &Schema, sending: &Outstanding) {
        for sent in sending.sent.iter().rev() {
            if let Some(table) = schema.table(&sent.table) {
                self.rows.push_front((table.id, sent.key));
            }
        }
        for (name, keys) in sending.body.get("get").and_then(Json::as_object).into_iter().flatten() {
            let Some(table) = schema.table(name) else { continue };
            let keys = keys.as_array().into_iter().flatten().filter_map(super::answers::key);
            self.gets.extend(keys.map(|key| (table.id, key)));
        }
    }
}

/// What a request says beside rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// The version that the device's copy was built on.
    pub base: Option<Version>,
    /// Whether the last request asks for the changes of others.
    pub pull: bool,
    /// How many deletions the user has confirmed.
    pub confirm_deletes: Option<u64>,
}

/// Sendings of one request that are remembered.
const STAMPS_MAX: usize = 16;

/// A share of `body_bytes_max`: the rest is for names, brackets and `sent_at`.
const BODY_SHARE_PERCENT: usize = 80;

impl Store {
    /// Every row that waits: what is put back, then new and changed rows, each parents first, then deletions children
    /// first, so that a request never refers to a row of a later one.
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

    /// Takes the next request from the queue and writes it down as outstanding, in one transaction: rows go
    /// up as they are now, and what the user changes from here on has a later edit number.
    pub fn next_request(
        &mut self,
        queue: &mut Queue,
        limits: &Limits,
        terms: &Terms,
    ) -> StoreResult<Outstanding> {
        let schema = self.schema().clone();
        let txn = writing(&mut self.conn)?;
        let mut sets = Sets::default();
        let mut sent = Vec::new();
        let mut bytes_left = limits.body_bytes_max / 100 * BODY_SHARE_PERCENT;
        let mut put_back = None;
        while sent.len() < limits.rows_max.max(1) {
            let Some((id, key)) = queue.rows.front().copied() else { break };
            let table = schema.at(id);
            if let Some(row) = Row::load(&txn, table, key)? {
                // What is put back is judged by other rules, so it goes up in requests of its own.
                if *put_back.get_or_insert(row.local.is_put_back()) != row.local.is_put_back() {
                    break;
                }
                let (operation, item) = item(table, &row);
                let bytes = item.to_string().len() + 1;
                if bytes > bytes_left && !sent.is_empty() {
                    break;
                }
                bytes_left = bytes_left.saturating_sub(bytes);
                sets.push(member(operation), table, item);
                let whole = row.local.goes_whole();
                let complete = whole && table.columns.iter().all(|one| row.contents.contains_key(&one.name));
                let table = table.name.clone();
                sent.push(SentRow { table, key, operation, whole, complete, edit: row.edit });
            }
            queue.rows.pop_front();
        }
        // A key takes some 40 bytes; the rows have precedence.
        let keys = limits.get_keys_max.min(bytes_left / 40).max(usize::from(sent.is_empty()));
        for (id, key) in queue.gets.drain(..keys.min(queue.gets.len())) {
            sets.push("get", schema.at(id), json!(key));
        }
        let mut body = sets.0;
        let last = queue.is_empty();
        if let Some(base) = terms.base {
            body.insert("base".into(), json!(base));
        }
        if !last {
            body.insert("keep_lock".into(), json!(true));
        } else if terms.pull {
            body.insert("pull".into(), json!(true));
        }
        if put_back == Some(true) {
            body.insert("put_back".into(), json!(true));
        }
        if let Some(confirmed) = terms.confirm_deletes {
            body.insert("confirm_deletes".into(), json!(confirmed));
        }
        let sending = Outstanding { key: Uuid::now_v7(), body, sent, stamps: Vec::new() };
        remember(&txn, names::OUTSTANDING, &serde_json::to_string(&sending)?)?;
        txn.commit()?;
        Ok(sending)
    }

    /// Writes down what is about to be sent: an answer to it may be lost.
    pub(super) fn send_next(&self, sending: &Outstanding) -> StoreResult<()> {
        self.remember(names::OUTSTANDING, &serde_json::to_string(sending)?)
    }
}

impl Outstanding {
    /// Marks a sending at `now`. A request that never arrived would else tell the server the clock of its
    /// first sending, and old edits would pass for new ones.
    pub(super) fn stamp(&mut self, now: Timestamp) -> Json {
        if self.stamps.len() >= STAMPS_MAX {
            self.stamps.remove(0);
        }
        self.stamps.push(spelt(now));
        self.stamped(self.stamps.len() - 1)
    }

    /// The body as it was sent that time.
    pub(super) fn stamped(&self, place: usize) -> Json {
        let mut body = self.body.clone();
        body.extend(self.stamps.get(place).map(|stamp| ("sent_at".to_owned(), json!(stamp))));
        Json::Object(body)
    }
}

/// A request's `add`, `update`, `delete` and `get` while they grow.
#[derive(Default)]
struct Sets(Map<String, Json>);

impl Sets {
    fn push(&mut self, member: &str, table: &Table, item: Json) {
        let tables = self.0.entry(member).or_insert_with(|| json!({}));
        if let Json::Object(tables) = tables
            && let Json::Array(list) = tables.entry(table.name.clone()).or_insert_with(|| json!([]))
        {
            list.push(item);
        }
    }
}

const fn member(operation: Operation) -> &'static str {
    match operation {
        Operation::Add => "add",
        Operation::Update => "update",
        Operation::Delete => "delete",
    }
}

/// A row as it goes up.
fn item(table: &Table, row: &Row) -> (Operation, Json) {
    let local = &row.local;
    let operation = match local.state {
        State::Added => Operation::Add,
        State::Clean | State::Edited => Operation::Update,
        State::Deleted => Operation::Delete,
    };
    let mut item = Map::new();
    item.insert(table.key.clone(), json!(row.key));
    if operation != Operation::Delete {
        // Columns that the schema has no longer would cost the request.
        let columns = row.contents.iter().filter(|(name, _)| table.column(name).is_some());
        // What is empty in a new row, and never was anything else, need not be said.
        let wanted = columns.filter(|(name, value)| {
            let is_new = local.state == State::Added && !local.is_put_back();
            let says = local.goes_whole() && (!is_new || !value.is_null());
            says || row.changed.contains_key(*name)
        });
        item.extend(wanted.map(|(name, value)| (name.clone(), value.clone())));
    }
    // What is put back goes up as the state that it is.
    let (at, base) = if local.is_put_back() { (local.base, None) } else { (local.edited_at, local.base) };
    for (name, at) in [("last_update", at), ("_base", base)] {
        if let Some(at) = at {
            item.insert(name.into(), spelt(at).into());
        }
    }
    (operation, Json::Object(item))
}

fn spelt(at: Timestamp) -> String {
    at.spelt(Precision::Milliseconds).to_string()
}
