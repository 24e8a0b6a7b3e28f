//! What goes over the wire, and what must hold of every answer; requests that no well-made device sends.

use std::collections::BTreeMap;

use rollcall::accounts::installations::{copy_of, device_of};
use rollcall::device::{Request, Response, responses};
use rollcall::model::{DeviceId, InstallationName, Owner, Precision, RowKey, Stored, Timestamp, Value};
use rollcall::reconcile::Operation;
use rollcall::schema::{Policy, Schema, Table};
use serde_json::{Map, Value as Json, json};

use crate::ops::{DEVICES, OWNERS, Rng, SLOTS};
use crate::oracle::{Check, Id, Named, must, slot_key};
use crate::shown::{shown, shows, texts};
use crate::world::{TABLES, World, columns};

/// Answers that a device can be given.
const STATUSES: [u16; 8] = [200, 204, 304, 404, 409, 410, 422, 423];

/// Answered requests of a device that the network may still deliver again.
const ANSWERED_MAX: usize = 4;

const DAY_MS: i64 = Timestamp::DAY_MS;

impl World {
    /// Brings a request of a device to the server, and looks at the answer and at what came of it.
    pub fn serve(&mut self, device: usize, request: &Request) -> Response {
        self.requests += 1;
        let answer = self.server().ask(request);
        let check = self.check_answer(device, request, &answer).map_err(|what| {
            let sent = String::from_utf8_lossy(request.body.as_deref().unwrap_or_default());
            let result = String::from_utf8_lossy(&answer.body);
            format!(
                "{what}\n  device {device}: {} /{} {:?} {sent}\n  {} {result}",
                request.method, request.path, request.headers, answer.status
            )
        });
        self.note(check);
        let is_once = request.headers.iter().any(|(name, _)| *name == "idempotency-key");
        if request.path == "synchronise" && answer.status == 200 && is_once {
            let now = self.now();
            let answered = &mut self.devices[device].answered;
            if !answered.iter().any(|(known, ..)| known == request) {
                answered.push_back((request.clone(), answer.clone(), now));
                if answered.len() > ANSWERED_MAX {
                    answered.pop_front();
                }
            }
        }
        answer
    }

    fn check_answer(&mut self, device: usize, request: &Request, answer: &Response) -> Check {
        let owner = self.devices[device].owner;
        let path = path_of(request);
        // A device gives a lock back without asking whether it may have one.
        let has_no_lock = path == "lock" && !self.may_write(device);
        let is_refused = answer.status == 403 && (!self.is_member(device) || has_no_lock);
        must(STATUSES.contains(&answer.status) || is_refused, || {
            "every answer is one that a device can be given".into()
        })?;
        let is_about_rows = request.path.contains("owner=") || device < DEVICES;
        must(self.is_member(device) || is_refused || !is_about_rows, || {
            "who is no member gets no row, and no answer but one".into()
        })?;
        for other in (0..OWNERS).filter(|other| *other != owner) {
            let mark = format!("\"o{other}:");
            let leaks = answer.body.windows(mark.len()).any(|bytes| bytes == mark.as_bytes());
            must(!leaks, || format!("no answer holds a byte of another owner: {mark}"))?;
        }
        let app = std::sync::Arc::clone(&self.server().app);
        let (storage, schema) = (&*app.storage, &*app.schema);
        let home = self.shadows[self.devices[device].home].owner;
        let id = named_by(request, (home, self.shadows[owner].owner), storage);
        let id = id.unwrap_or(self.devices[device].id);
        let may_write = self.may_write(device);
        let body: Json =
            request.body.as_deref().and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default();
        let result: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
        let named = match path {
            "synchronise" => named(schema, &body),
            path if path.ends_with("/restore") => every(schema),
            _ => Vec::new(),
        };
        let shadow = &mut self.shadows[owner];
        if let Some(fence) = answer.header("sync-lock").and_then(|text| text.parse().ok()) {
            must(fence >= shadow.fence, || format!("fences rise: {} to {fence}", shadow.fence))?;
            shadow.fence = fence;
        }
        if let Some(guest) = device.checked_sub(DEVICES).filter(|_| answer.status == 200) {
            let decided = |named: &&Named| {
                let table = schema.at(named.id.0);
                let items = ["add", "update", "delete"].map(|set| result[set][&table.name].as_array());
                let mut items = items.into_iter().flatten().flatten();
                items.any(|item| {
                    responses::key(&item[&table.key]) == Some(named.id.1) && item["verdict"] != "rejected"
                })
            };
            self.guests[guest].settled.extend(named.iter().filter(decided).map(|named| named.id));
        }
        let changed = shadow.after_request(storage, schema, id, &named)?;
        must(may_write || changed.is_empty(), || "nothing that a reader sends is stored".into())?;
        if path == "synchronise" && answer.status == 200 {
            let replayed = answer.header("idempotency-replayed").is_some();
            must(!replayed || changed.is_empty(), || "a replay changes nothing".into())?;
            if !replayed {
                let base = body["base"].as_u64().map(rollcall::model::Version);
                let noted = check_verdicts(shadow, schema, (id, base), &named, &result, &changed, storage)?;
                shadow.seen.extend(noted);
                check_digests(shadow, schema, &result)?;
            }
        } else if !path.ends_with("/restore") {
            must(changed.is_empty(), || "whoever is not told of a change has made none".into())?;
        }
        if answer.status == 200 && path.starts_with("changes") {
            check_feed(shadow, schema, &result)?;
        }
        if let Some(changes) =
            result.get("changes").filter(|_| answer.header("idempotency-replayed").is_none())
        {
            check_feed(shadow, schema, changes)?;
        }
        Ok(())
    }

    fn ask(&mut self, device: usize, method: &'static str, path: &str, body: Option<&Json>) -> Response {
        self.ask_with(device, method, path, body, None)
    }

    fn ask_with(
        &mut self,
        device: usize,
        method: &'static str,
        path: &str,
        body: Option<&Json>,
        fence: Option<&str>,
    ) -> Response {
        let mut headers = vec![("authorization", format!("Bearer {}", self.devices[device].token))];
        headers.extend(fence.map(|fence| ("sync-lock", fence.to_owned())));
        let body = body.map(|body| body.to_string().into_bytes());
        self.serve(device, &Request { method, path: path.into(), headers, body })
    }

    /// The network delivers once more what was answered before: within a day the answer is the same.
    pub fn again(&mut self, device: usize, draw: u64) {
        let answered = &self.devices[device].answered;
        if answered.is_empty() {
            return;
        }
        let (request, answer, at) = answered[(draw % answered.len() as u64) as usize].clone();
        let again = self.serve(device, &request);
        // An answer is kept for a day by the server's clock, which steps with every request.
        if self.now() - at < DAY_MS - 60_000 {
            self.note(must((again.status, &again.body) == (200, &answer.body), || {
                let result = |answer: &Response| String::from_utf8_lossy(&answer.body).into_owned();
                format!(
                    "the same request gets the same answer: {} {}, then {} {}",
                    answer.status,
                    result(&answer),
                    again.status,
                    result(&again)
                )
            }));
        }
    }

    /// A row as an app writes it that keeps no copy: on the state that it has last seen, or an older one.
    fn edit(&mut self, device: usize, table: usize, slot: usize, draw: u64) -> Json {
        let owner = self.devices[device].owner;
        let mut rng = Rng(draw);
        let token = self.token(owner);
        let mut row = columns(TABLES[table], &mut rng);
        row.insert("title".into(), json!(token));
        let declared = self.server().app.schema.table(TABLES[table]).unwrap().clone();
        row.insert(declared.key.clone(), json!(slot_key(table, slot)));
        row.insert("last_update".into(), json!(self.device_time(device)));
        let held = self.shadows[owner].rows.get(&(declared.id, slot_key(table, slot)));
        let older = if rng.often(300) { rng.below(100_000) as i64 } else { 0 };
        if let Some(held) = held.filter(|_| rng.often(700)) {
            let base = held.last_update.shifted(-older).format(Precision::Milliseconds).to_string();
            row.insert("_base".into(), json!(base));
        }
        let operation = if rng.often(300) { "add" } else { "update" };
        json!({ operation: { TABLES[table]: [row] } })
    }

    /// Writes without an idempotency key, and sends the very same again.
    pub fn plain(&mut self, device: usize, table: usize, slot: usize, draw: u64) {
        let body = self.edit(device, table, slot, draw);
        let first = self.ask(device, "POST", "synchronise", Some(&body));
        if first.status != 200 {
            return;
        }
        self.advance((draw % 50) as i64);
        let before = self.shadows[self.devices[device].owner].version;
        let again = self.ask(device, "POST", "synchronise", Some(&body));
        let after = self.shadows[self.devices[device].owner].version;
        self.note(must(before == after, || {
            let result = |answer: &Response| String::from_utf8_lossy(&answer.body).into_owned();
            format!("sent again, nothing more is written: {body}\n  {}\n  {}", result(&first), result(&again))
        }));
    }

    /// An app without idempotency keys changes a row twice, and the first request comes once more, late.
    pub fn late(&mut self, device: usize, table: usize, slot: usize, draw: u64) {
        let Some((first, base, true)) = self.own_edit(device, table, slot, draw, None) else { return };
        if !draw.is_multiple_of(3) {
            self.advance((draw % 7) as i64);
        }
        let deletes = draw.is_multiple_of(5);
        let Some((second, _, true)) = self.own_edit(device, table, slot, draw | 1, Some((base, deletes)))
        else {
            return;
        };
        // An add names no base: within one moment nobody can tell it from a next edit.
        let named = first.get("update").is_some();
        for late in [&second, &first] {
            let before = self.shadows[self.devices[device].owner].version;
            let again = self.ask(device, "POST", "synchronise", Some(late));
            let after = self.shadows[self.devices[device].owner].version;
            self.note(must((before == after && again.status == 200) || (late == &first && !named), || {
                let result = String::from_utf8_lossy(&again.body).into_owned();
                format!("a late copy changes nothing: {first}, {second}, then {late}: {result}")
            }));
        }
    }

    /// Sends an edit, or a deletion, on the row's present state, or on the one given. Gives what was sent, the row's time
    /// after it, and whether it was taken; nothing if it was refused.
    fn own_edit(
        &mut self,
        device: usize,
        table: usize,
        slot: usize,
        draw: u64,
        on: Option<(Json, bool)>,
    ) -> Option<(Json, Json, bool)> {
        let owner = self.devices[device].owner;
        let declared = self.server().app.schema.table(TABLES[table]).unwrap().clone();
        let held = self.shadows[owner].rows.get(&(declared.id, slot_key(table, slot)));
        let present = held.map(|row| json!(row.last_update.format(Precision::Milliseconds).to_string()));
        let (base, deletes) = on.map_or((present, false), |(base, deletes)| (Some(base), deletes));
        let mut rng = Rng(draw);
        let mut row = Map::new();
        row.insert(declared.key.clone(), json!(slot_key(table, slot)));
        if !deletes {
            row.extend(columns(TABLES[table], &mut rng));
            row.insert("title".into(), json!(self.token(owner)));
        }
        if let Some(base) = base {
            row.insert("_base".into(), base);
        }
        let is_added = !row.contains_key("_base");
        if rng.often(700) {
            row.insert("last_update".into(), json!(self.device_time(device)));
        }
        let set = if deletes {
            "delete"
        } else if is_added {
            "add"
        } else {
            "update"
        };
        let body = json!({ set: { TABLES[table]: [row] } });
        let answer = self.ask(device, "POST", "synchronise", Some(&body));
        let result: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
        let result = &result[set][TABLES[table]][0];
        let verdict = result["verdict"].as_str();
        let taken = matches!(verdict, Some("added" | "updated" | "deleted"));
        (answer.status == 200 && verdict != Some("rejected"))
            .then(|| (body, result["last_update"].clone(), taken))
    }

    /// Two phones share a token, and both change what they have seen; or one deletes it. Neither edit vanishes.
    pub fn clones(&mut self, device: usize, table: usize, slot: usize, draw: u64) {
        let Some((_, base, true)) = self.own_edit(device, table, slot, draw, None) else { return };
        let mut titles = Vec::new();
        for n in 0..3 {
            self.advance((draw % 3) as i64);
            let deletes = n == 1 && draw.is_multiple_of(4);
            let on = Some((base.clone(), deletes));
            if let Some((sent, ..)) = self.own_edit(device, table, slot, draw.wrapping_add(n), on) {
                titles.extend(sent["update"][TABLES[table]][0]["title"].as_str().map(str::to_owned));
            }
        }
        let owner = self.devices[device].owner;
        let declared = self.server().app.schema.table(TABLES[table]).unwrap().id;
        let held = self.shadows[owner].rows.get(&(declared, slot_key(table, slot))).cloned();
        let there = |title: &str| {
            held.as_ref()
                .and_then(|row| row.values.as_ref())
                .is_some_and(|values| values.first() == Some(&Value::Text(title.to_owned())))
        };
        let noted = self.ask(device, "GET", "conflicts", None);
        let noted = String::from_utf8_lossy(&noted.body).into_owned();
        for title in titles {
            self.note(must(there(&title) || noted.contains(&format!("\"{title}\"")), || {
                format!("no edit of two phones with one token vanishes: {title}, {held:?}")
            }));
        }
    }

    /// An app that says nothing but `last_update` changes a row twice in one moment: if it was the last to change it, the
    /// second edit is taken like the first.
    pub fn quick(&mut self, device: usize, table: usize, slot: usize, draw: u64) {
        let owner = self.devices[device].owner;
        let declared = self.server().app.schema.table(TABLES[table]).unwrap().clone();
        let at = json!(self.device_time(device));
        let mut taken = false;
        for n in 0..3 {
            let mut row = columns(TABLES[table], &mut Rng(draw.wrapping_add(n)));
            row.insert(declared.key.clone(), json!(slot_key(table, slot)));
            row.insert("title".into(), json!(self.token(owner)));
            row.insert("last_update".into(), at.clone());
            let answer =
                self.ask(device, "POST", "synchronise", Some(&json!({ "update": { TABLES[table]: [row] } })));
            let result: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
            let result = &result["update"][TABLES[table]][0];
            let verdict = result["verdict"].as_str();
            if taken && answer.status == 200 {
                let right = verdict == Some("updated") || verdict == Some("rejected");
                self.note(must(right, || format!("all edits of one moment are taken: {result}")));
            }
            taken = matches!(verdict, Some("added" | "updated"));
        }
    }

    /// A device asks for a row without a base, and another deletes it: a feed from before tells so.
    pub fn look(&mut self, device: usize, other: usize, table: usize, slot: usize) {
        let owner = self.devices[device].owner;
        if !self.is_another(device, other) {
            return;
        }
        let declared = self.server().app.schema.table(TABLES[table]).unwrap().clone();
        let since = self.shadows[owner].version;
        if since.0 == 0 || !matches!(self.own_edit(other, table, slot, 0, None), Some((.., true))) {
            return;
        }
        let key = slot_key(table, slot);
        let got = self.ask(device, "POST", "synchronise", Some(&json!({ "get": { TABLES[table]: [key] } })));
        if got.status != 200 {
            return;
        }
        self.ask(other, "POST", "synchronise", Some(&json!({ "delete": { TABLES[table]: [key] } })));
        let gone = self.shadows[owner].rows.get(&(declared.id, key)).is_none_or(Stored::is_tombstone);
        let feed = self.ask(device, "GET", &format!("changes?since={since}"), None);
        if gone && feed.status == 200 {
            let result: Json = serde_json::from_slice(&feed.body).unwrap_or_default();
            let keys = result["delete"][TABLES[table]].as_array();
            let right = keys.is_some_and(|keys| keys.contains(&json!(key))) || result["more"] == json!(true);
            self.note(must(right, || format!("a row that was got leaves no ghost: {key} in {result}")));
        }
    }

    /// Whether both are of one owner, and the server can tell them apart by their tokens alone.
    fn is_another(&self, device: usize, other: usize) -> bool {
        let (device, other) = (&self.devices[device], &self.devices[other]);
        other.owner == other.home && device.owner == other.owner && device.token != other.token
    }

    /// Takes the lock and is not heard of again; until the lease ends nobody else may write.
    pub fn hold(&mut self, device: usize) {
        if self.ask(device, "POST", "lock", None).status != 200 {
            return;
        }
        let Some(other) = (0..self.devices.len()).find(|other| self.is_another(device, *other)) else {
            return;
        };
        let body = self.edit(other, 0, 0, 1);
        let answer = self.ask(other, "POST", "synchronise", Some(&body));
        self.note(must(answer.status == 423, || {
            format!("under another's lease nobody writes: {}", answer.status)
        }));
    }

    /// A device was paused while it held the lock, and another has had it since.
    pub fn stale(&mut self, device: usize, other: usize, table: usize, slot: usize) {
        let fence = |answer: &Response| {
            let result: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
            Some(result["fence"].as_u64()?.to_string())
        };
        let taken = self.ask(device, "POST", "lock", None);
        let (true, Some(fence)) = (taken.status == 200, fence(&taken)) else { return };
        if !self.is_another(device, other) {
            return;
        }
        self.advance(16_000);
        let takes = self.ask(other, "POST", "lock", None).status;
        self.note(must(takes == 200, || format!("a lease that has run out keeps nobody out: {takes}")));
        self.ask(other, "DELETE", "lock", None);
        let body = self.edit(device, table, slot, 0);
        let answer = self.ask_with(device, "POST", "synchronise", Some(&body), Some(&fence));
        self.note(must(answer.status == 409, || {
            format!("nobody writes under an old fence: {}", answer.status)
        }));
    }

    /// The owner breaks the lock while a request is at work under it.
    pub fn break_lock(&mut self, device: usize, table: usize, slot: usize, draw: u64) {
        let body = self.edit(device, table, slot, draw);
        // Where leases are kept beside the rows, a request alone has none that could be broken.
        if self.server().app.locks.is_remote() && self.ask(device, "POST", "lock", None).status != 200 {
            return;
        }
        let (app, owner) =
            (std::sync::Arc::clone(&self.server().app), self.shadows[self.devices[device].owner].owner);
        self.server().trap.set(move || app.locks.break_open(owner).unwrap());
        let answer = self.ask(device, "POST", "synchronise", Some(&body));
        let sprang = self.server().trap.sprang();
        self.note(must(!sprang || answer.status == 409, || {
            format!("nothing is kept under a lock that was broken: {}", answer.status)
        }));
    }

    /// Brings the loser of a conflict back.
    pub fn undo(&mut self, device: usize, draw: u64) {
        let answer = self.ask(device, "GET", "conflicts", None);
        let result: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
        let mut noted: Vec<&Json> = result["conflicts"].as_array().into_iter().flatten().collect();
        // Ids are of chance, and conflicts of one moment come in their order; a seed must mean one history.
        let what = |one: &Json| {
            [&one["at"], &one["table"], &one["key"], &one["incoming"]["row"]].map(Json::to_string)
        };
        noted.sort_by_cached_key(|one| what(one));
        let ids: Vec<&str> = noted.iter().filter_map(|one| one["id"].as_str()).collect();
        if !ids.is_empty() {
            let path = format!("conflicts/{}/restore", ids[(draw % ids.len() as u64) as usize]);
            self.ask(device, "POST", &path, None);
        }
    }
}

/// The rows that the body of a request changes.
fn named(schema: &Schema, body: &Json) -> Vec<Named> {
    let mut all = Vec::new();
    for (operation, member) in
        [(Operation::Add, "add"), (Operation::Update, "update"), (Operation::Delete, "delete")]
    {
        for (name, items) in body[member].as_object().into_iter().flatten() {
            let Some(table) = schema.table(name) else { continue };
            for item in items.as_array().into_iter().flatten() {
                let time = |member: &str| item[member].as_str().and_then(responses::time);
                let key = responses::key(item.get(&table.key).unwrap_or(item)).unwrap();
                all.push(Named {
                    id: (table.id, key),
                    operation,
                    last_update: time("last_update"),
                    base: time("_base"),
                    columns: item.as_object().cloned().unwrap_or_default(),
                });
            }
        }
    }
    all
}

/// Every row there can be, as if any of them were named.
fn every(schema: &Schema) -> Vec<Named> {
    let slots = schema
        .tables()
        .iter()
        .flat_map(|table| (0..SLOTS).map(|slot| (table.id, slot_key(table.id.index(), slot))));
    let at = Some(rollcall::model::Timestamp::from_ms(0));
    slots
        .map(|id| Named {
            id,
            operation: Operation::Update,
            last_update: at,
            base: None,
            columns: Map::new(),
        })
        .collect()
}

/// The path of a request, without the owner that its query may name.
fn path_of(request: &Request) -> &str {
    let path = request.path.as_str();
    let (path, _) = path.split_once("?owner=").unwrap_or((path, ""));
    path.split_once("&owner=").unwrap_or((path, "")).0
}

/// The device as which the server knows the installation that a request names; users here are their own owners. A late
/// copy of a request is behind by then.
fn named_by(
    request: &Request,
    (home, owner): (Owner, Owner),
    storage: &dyn rollcall::storage::Storage,
) -> Option<DeviceId> {
    let (_, value) = request.headers.iter().find(|(name, _)| *name == "sync-device")?;
    let InstallationName { mut id, counter } = InstallationName::read(value)?;
    loop {
        let device = device_of(home.0, id);
        match storage.counter(owner, device) {
            Ok(Some(highest)) if highest > counter => id = copy_of(id),
            _ => return Some(device),
        }
    }
}

/// What a device is told of its rows is what became of them. Gives the titles that are noted in conflicts.
fn check_verdicts(
    shadow: &crate::oracle::Shadow,
    schema: &Schema,
    sender: Sender,
    named: &[Named],
    result: &Json,
    changed: &BTreeMap<Id, Option<Stored>>,
    storage: &dyn rollcall::storage::Storage,
) -> Check<Vec<String>> {
    let mut noted = Vec::new();
    let mut writes: BTreeMap<Id, bool> = BTreeMap::new();
    for (operation, member) in
        [(Operation::Add, "add"), (Operation::Update, "update"), (Operation::Delete, "delete")]
    {
        for (name, items) in result[member].as_object().into_iter().flatten() {
            let table = schema.table(name).ok_or("a verdict is about a declared table")?;
            for item in items.as_array().into_iter().flatten() {
                let key = responses::key(&item[&table.key]).ok_or("a verdict names a row")?;
                let id = (table.id, key);
                let verdict = item["verdict"].as_str().unwrap_or_default();
                let wrote = matches!(verdict, "added" | "updated" | "merged" | "deleted");
                *writes.entry(id).or_default() |= wrote;
                let row = shadow.rows.get(&id);
                let at = item["last_update"].as_str().and_then(responses::time);
                must(at == row.map(|row| row.last_update) || at.is_none(), || {
                    format!("the time that is told is the row's: {item}, {row:?}")
                })?;
                let sent = named.iter().find(|named| named.id == id && named.operation == operation);
                if let (Some(sent), Some(row), "added" | "updated") = (sent, row, verdict) {
                    let held = shows(table, row);
                    for (column, value) in
                        sent.columns.iter().filter(|(column, _)| table.column(column).is_some())
                    {
                        must(held.get(column) == Some(&value.clone().into()), || {
                            format!("what was taken is held: {column} of {item}, {row:?}")
                        })?;
                    }
                }
                if let Some(shown_row) = item["row"].as_object() {
                    let held = row.filter(|row| !row.is_tombstone()).ok_or("only a live row is shown")?;
                    must(shows(table, held) == shown(table, &texts(shown_row)), || {
                        format!("the row that is shown is the row that is held: {item}, {held:?}")
                    })?;
                }
                noted.extend(check_conflict(shadow, table, sender, sent, item, changed.get(&id), storage)?);
            }
        }
    }
    for (id, wrote) in &writes {
        must(*wrote == changed.contains_key(id), || {
            format!(
                "a row is written if its verdict says so: {id:?} {wrote}, was {:?}, is {:?}",
                changed.get(id),
                shadow.rows.get(id)
            )
        })?;
    }
    must(
        writes.len() == named.iter().map(|named| named.id).collect::<std::collections::BTreeSet<_>>().len(),
        || "every row that was sent has a verdict".into(),
    )?;
    Ok(noted)
}

/// Who sends a request, and the version that its copy was built on.
type Sender = (rollcall::model::DeviceId, Option<rollcall::model::Version>);

/// Whoever loses a true conflict is noted, and no edit vanishes: it is in a row, was replaced by one that knew it, or is
/// noted. Gives the titles in the note.
fn check_conflict(
    shadow: &crate::oracle::Shadow,
    table: &Table,
    (device, version): Sender,
    sent: Option<&Named>,
    item: &Json,
    changed: Option<&Option<Stored>>,
    storage: &dyn rollcall::storage::Storage,
) -> Check<Vec<String>> {
    if let Some(noted) = item["conflict"].as_str() {
        let id = uuid::Uuid::parse_str(noted).map_err(|_| "a conflict has an id".to_owned())?;
        let known = storage.read(shadow.owner, |txn| txn.conflict(id));
        let known = known.map_err(|error: rollcall::storage::StorageError| error.to_string())?;
        let known = known.ok_or_else(|| format!("a conflict that is told is noted: {item}"))?;
        let title = |side: rollcall::storage::Side| match side.values?.swap_remove(0)? {
            Value::Text(title) => Some(title),
            _ => None,
        };
        return Ok([known.stored, known.incoming].into_iter().filter_map(title).collect());
    }
    let Some(sent) = sent else { return Ok(Vec::new()) };
    let verdict = item["verdict"].as_str().unwrap_or_default();
    let before = match changed {
        Some(before) => before.as_ref(),
        None => shadow.rows.get(&sent.id),
    };
    let Some(before) = before.filter(|row| !row.is_tombstone()) else { return Ok(Vec::new()) };
    let is_own = before.changed_by == device;
    let unseen = match (sent.base, version) {
        (Some(base), _) => before.last_update != base,
        (None, Some(version)) => before.version > version,
        (None, None) => is_own && sent.last_update.is_none(), // else the later time wins, as it says
    };
    // A late copy of what was in the row once is lost to nobody.
    let was_there =
        sent.columns.get("title").and_then(Json::as_str).is_some_and(|title| shadow.seen.contains(title));
    let loses = match verdict {
        "updated" | "deleted" => true,
        "kept" => {
            table.policy != Policy::Merge && !(is_own && (was_there || sent.operation == Operation::Delete))
        }
        _ => false,
    };
    must(!(unseen && loses), || format!("whoever loses a conflict is noted: {item}, was {before:?}"))?;
    Ok(Vec::new())
}

/// The digests in an answer are those of the rows.
fn check_digests(shadow: &crate::oracle::Shadow, schema: &Schema, result: &Json) -> Check {
    let digests = &result["digests"];
    must(digests["as_of"].as_u64() == Some(shadow.version.0), || format!("digests are of now: {digests}"))?;
    for table in schema.tables() {
        let count =
            shadow.rows.iter().filter(|((of, _), row)| *of == table.id && !row.is_tombstone()).count();
        must(digests["tables"][&table.name]["count"].as_u64() == Some(count as u64), || {
            format!("digests count the rows: {} {count}, {digests}", table.name)
        })?;
    }
    Ok(())
}

/// The rows of a feed are as they are.
fn check_feed(shadow: &crate::oracle::Shadow, schema: &Schema, feed: &Json) -> Check {
    for member in ["add", "update"] {
        for (name, rows) in feed[member].as_object().into_iter().flatten() {
            let table = schema.table(name).ok_or("a feed is of declared tables")?;
            for row in rows.as_array().into_iter().flatten() {
                let key = responses::key(&row[&table.key]).ok_or("a feed's row has a key")?;
                let held = shadow.rows.get(&(table.id, key)).filter(|held| !held.is_tombstone());
                let same = held.zip(row.as_object()).is_some_and(|(held, row)| {
                    row.get("last_update").and_then(Json::as_str).and_then(responses::time)
                        == Some(held.last_update)
                        && shows(table, held) == shown(table, &texts(row))
                });
                must(same, || format!("a feed tells rows as they are: {row}, {held:?}"))?;
            }
        }
    }
    for (name, keys) in feed["delete"].as_object().into_iter().flatten() {
        let table = schema.table(name).ok_or("a feed is of declared tables")?;
        for key in keys.as_array().into_iter().flatten().filter_map(responses::key) {
            let held = shadow.rows.get(&(table.id, RowKey(key.0)));
            must(held.is_none_or(Stored::is_tombstone), || {
                format!("a feed deletes no live row: {name} {key}")
            })?;
        }
    }
    Ok(())
}
