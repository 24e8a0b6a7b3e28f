//! The tenant matrix: no response to one owner depends on the data of another.
//!
//! Every request is sent twice, byte for byte the same: in a world where another owner has what it names, and
//! in a twin where nobody has. The twins are copies of one database, so ids, versions and secret seeds are
//! the same and the responses must be the same bytes. A third time it names data of the caller: that response
//! must differ, or the request would prove nothing.

use std::collections::BTreeSet;

use crate::app::{Answer, Device, PASSWORD, Server, key};
use crate::contract::{document, follow, operation_objects, operations};
use rollcall::config::Settings;
use serde_json::{Value, json};

/// Part of every text of the other owner: rows, conflicts, devices, the address.
const MARKER: &str = "zq7marker";

/// What names something of an owner, in a path, a query, a header or a body.
#[derive(Clone, Debug)]
struct Names {
    list: String,
    item: String,
    node: String,
    conflict: String,
    device: String,
    owner: String,
    email: String,
    idempotency: String,
    fence: u64,
    version: u64,
    base: String,
    etag: String,
    page: String,
    next: String,
    conflicts_page: String,
    /// The key of the row on the next page of conflicts.
    conflicts_next: String,
    /// What an installation calls itself.
    installation: String,
    /// Of a shape of the first table.
    shape_handle: String,
    shape_page: String,
    /// Of a PowerSync client.
    bucket: String,
    after: String,
}

/// An owner with two devices, rows in several tables and two conflicts.
struct Tenant {
    phone: Device,
    tablet: Device,
    names: Names,
}

/// Small pages, so that there are marks to come back with.
fn change(settings: &mut Settings) {
    settings.sync.fetch_rows_max = 2;
    settings.auth.mail.mail_command = vec!["a test".into()];
    settings.operator.console_token = Some("the operator's own token".into());
}

async fn furnish(server: &Server, user: &str, first: u64, word: &str, syncs: u64) -> Tenant {
    let phone = server.device(user, &format!("{word} phone"));
    let tablet = server.device(user, &format!("{word} tablet"));
    let (list, lost) = (key(first), key(first + 1));
    let (item, node) = (key(first + 2), key(first + 3));
    for n in 0..syncs {
        let row = json!({ "id": key(first + 100 + n), "title": word });
        server.sync(&phone, json!({ "add": { "theirs": [row] } })).await.ok();
    }
    let lists = json!([{ "lid": list, "title": word }, { "lid": lost, "title": word }]);
    let rows = json!({
        "lists": lists,
        "items": [{ "iid": item, "title": word, "list": list }],
        "nodes": [{ "id": node, "name": word }],
    });
    let result = server.sync(&phone, json!({ "add": rows })).await.ok();
    let base = result["add"]["lists"][0]["last_update"].as_str().unwrap().to_owned();
    server.turn(10_000);
    let edit = |title: &str| {
        let row = |lid: &str| json!({ "lid": lid, "title": format!("{word}{title}"), "_base": base });
        json!({ "update": { "lists": [row(&list), row(&lost)] } })
    };
    server.sync(&phone, edit("1")).await.ok();
    server.turn(10_000);
    server.sync(&tablet, edit("2")).await.ok();

    let installation = key(first + 50);
    let name = format!("{installation}.{syncs}");
    let named = server.ask("POST", "/synchronise").of(&phone).header("sync-device", name);
    named.json(&json!({ "get": {} })).send().await.ok();

    let idempotency = format!("request-of-{user}");
    let once = server.ask("POST", "/synchronise").of(&phone).header("idempotency-key", &idempotency);
    once.json(&same_body()).send().await.ok();
    let first_page = server.fetch(&tablet, "?lock=false").await;
    let link = first_page.header("link").unwrap();
    let page = link.split("page=").nth(1).unwrap().split(['&', '>']).next().unwrap().to_owned();
    let conflicts = server.get("/conflicts?limit=1").of(&tablet).send().await.ok();
    let both = server.get("/conflicts").of(&tablet).send().await.ok();
    let feed = server.get("/changes?limit=1").of(&tablet).send().await.ok();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let shape = server.get("/v1/shape?table=lists&offset=-1").of(&tablet).send().await;
    let lists = server.get("/changes?limit=1&tables=lists").of(&tablet).send().await.ok();
    let stream = server.ask("POST", "/sync/stream").of(&tablet).json(&json!({})).send().await;
    let checkpoint: Value =
        serde_json::from_slice(stream.bytes.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    let names = Names {
        bucket: text(&checkpoint["checkpoint"]["buckets"][0]["bucket"]),
        after: text(&checkpoint["checkpoint"]["last_op_id"]),
        shape_handle: shape.header("electric-handle").unwrap().to_owned(),
        shape_page: text(&lists["next"]),
        list,
        item,
        node,
        conflict: text(&conflicts["conflicts"][0]["id"]),
        device: tablet.id.clone(),
        owner: server.owner(user).0.to_string(),
        email: format!("{user}@example.org"),
        idempotency,
        fence: 0, // of a hold that is taken in each world anew
        version: first_page.version(),
        base,
        etag: first_page.header("etag").unwrap().to_owned(),
        page,
        next: text(&feed["next"]),
        conflicts_page: text(&conflicts["next"]),
        conflicts_next: text(&both["conflicts"][1]["key"]),
        installation,
    };
    Tenant { phone, tablet, names }
}

/// The body under an `Idempotency-Key`: the same for everyone, so that only the key matters.
fn same_body() -> Value {
    json!({ "get": { "lists": [key(0xfff)] } })
}

/// One request of the asker.
#[derive(Clone)]
struct Probe {
    what: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Value>,
    /// Why the response is the same whoever has what it names; otherwise it must differ.
    alike: Option<&'static str>,
}

fn probe_of(what: &'static str, path: impl Into<String>) -> Probe {
    Probe { what, path: path.into(), headers: Vec::new(), body: None, alike: None }
}

impl Probe {
    fn with(mut self, header: &'static str, value: impl ToString) -> Self {
        self.headers.push((header, value.to_string()));
        self
    }

    fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    fn alike(mut self, why: &'static str) -> Self {
        self.alike = Some(why);
        self
    }

    fn text(&self) -> String {
        let body = self.body.as_ref().map(Value::to_string).unwrap_or_default();
        format!("{} {:?} {body}", self.path, self.headers)
    }
}

/// What is not in the matrix, and why.
const EXEMPT: &[(&str, &str)] = &[
    ("GET /healthz", "knows of nobody"),
    ("GET /limits", "settings"),
    ("GET /metrics", "counts of all owners together; tests/server/metrics.rs holds that it names none"),
    ("GET /openapi.json", "the schema, the same for all"),
    ("GET /openapi.yaml", "a file"),
    ("GET /readyz", "knows of nobody"),
    ("POST /owners", "makes an owner of a random id, and names nothing"),
    (
        "POST /register",
        "an address that is taken cannot be registered again, and says so: emailTaken in openapi.yaml. Log-in does not tell",
    ),
];

/// Parameters that name nothing that anyone has.
const PLAIN: &[&str] = &[
    "X-Request-Id",
    "Prefer",
    "tables",
    "lock",
    "limit",
    "break",
    "table",
    "columns",
    "live",
    "replica",
    "log",
    "cursor",
    "cache-buster",
];

/// Operations that take no token, and so say nothing of whose store it is.
const WITHOUT_TOKEN: &[&str] =
    &["POST /login", "POST /password/reset", "POST /password/reset/confirm", "POST /email/verify"];

/// What ends the operations that take `?owner=`.
const OF_OWNER: &[&str] = &[
    " /fetch",
    " /fetch.json",
    " /synchronise",
    " /synchronise.json",
    " /changes",
    " /digests",
    " /events",
    " /conflicts",
    " /conflicts/{id}/restore",
    " /lock",
];

const NOT_THE_OPERATOR: &str = "a device's token opens no door of the console";

/// The requests of an operation, for the data of `of`; `None` for an operation without an entry.
fn probes(operation: &str, of: &Names) -> Option<Vec<Probe>> {
    let Names { list, item, node, conflict, device, owner, version, base, .. } = of;
    let (path, page, next) = (operation.split(' ').nth(1).unwrap(), &of.page, &of.next);
    let sync = |what, body| probe_of(what, path).body(body);
    let operator = |what, path: String| probe_of(what, path).alike(NOT_THE_OPERATOR);
    let console = format!("/console/api/owners/{owner}");
    let mut probes = match operation {
        "GET /fetch" | "GET /fetch.json" => vec![
            probe_of("a page mark", format!("{path}?page={page}")),
            probe_of("a page mark without the lock", format!("{path}?lock=false&page={page}")),
            probe_of("an ETag", format!("{path}?lock=false")).with("if-none-match", &of.etag),
            probe_of("an ETag of a page", format!("{path}?page={page}")).with("if-none-match", &of.etag),
        ],
        "POST /synchronise" | "POST /synchronise.json" => vec![
            sync("add", json!({ "add": { "lists": [{ "lid": list, "title": "mine" }] } })),
            sync("add, later", json!({ "add": { "lists": [{ "lid": list, "title": "x", "last_update": "2030-01-01T00:00:00Z" }] } })),
            sync("add over a base", json!({ "base": 1, "add": { "lists": [{ "lid": list, "title": "x", "_base": base }] } })),
            sync("a reference", json!({ "add": { "items": [{ "iid": key(0xffe), "title": "x", "list": list }] } })),
            sync("a reference, atomic", json!({ "atomic": true, "add": { "items": [{ "iid": key(0xffe), "title": "x", "list": list }] } })),
            sync("a reference in an update", json!({ "update": { "items": [{ "iid": key(0xffe), "title": "x", "list": list }] } })),
            sync("two references to its own table", json!({ "add": { "nodes": [{ "id": key(0xffe), "parent": node, "twin": node }] } })),
            sync("update in part", json!({ "update": { "items": [{ "iid": item, "list": null }] } })),
            sync("update whole", json!({ "update": { "lists": [{ "lid": list, "title": "mine", "colour": "blue" }] } })),
            sync("update with a base", json!({ "update": { "lists": [{ "lid": list, "title": "mine", "_base": base }] } })),
            sync("update by another's clock", json!({ "sent_at": "2031-01-01T00:00:00Z", "update": { "lists": [{ "lid": list, "title": "x", "last_update": "2030-12-31T00:00:00Z" }] } })),
            sync("delete", json!({ "delete": { "lists": [list], "items": [item], "nodes": [node] } })),
            sync("delete with times", json!({ "confirm_deletes": 5, "delete": { "lists": [{ "lid": list, "_base": base }] } })),
            sync("get", json!({ "get": { "lists": [list], "items": [item], "nodes": [node] } })),
            sync("all four", json!({ "add": { "lists": [{ "lid": list, "title": "x" }] }, "update": { "lists": [{ "lid": list, "title": "y" }] },
                "delete": { "lists": [list] }, "get": { "lists": [list], "items": [item] } })),
            sync("dry run", json!({ "dry_run": true, "delete": { "lists": [list] }, "get": { "nodes": [node] } })),
            sync("base", json!({ "base": version, "pull": true })),
            sync("keep_lock", json!({ "keep_lock": true, "get": { "nodes": [node] } })),
            sync("put_back", json!({ "put_back": true, "add": { "lists": [{ "lid": list, "title": "again", "last_update": base }] } })),
            sync("Idempotency-Key", same_body()).with("idempotency-key", &of.idempotency),
            sync("Sync-Lock", json!({ "get": {} })).with("sync-lock", of.fence),
        ],
        "GET /changes" => vec![
            probe_of("since", format!("{path}?since={version}")),
            probe_of("an ETag", format!("{path}?since={version}")).with("if-none-match", &of.etag),
            probe_of("next", format!("{path}?next={next}")),
            probe_of("next, as lines", format!("{path}?next={next}")).with("accept", "application/x-ndjson"),
        ],
        "GET /{table}/sync" => vec![
            probe_of("fromVersion", format!("/lists/sync?fromVersion={version}")),
            probe_of("fromVersion in a header", "/lists/sync").with("fromversion", version),
        ],
        "GET /sync" => vec![
            probe_of("fromVersion", format!("{path}?fromVersion={version}")),
            probe_of("fromVersion in a header", path).with("fromversion", version),
        ],
        "POST /sync/stream" => {
            let buckets = json!([{ "name": of.bucket, "after": of.after }]);
            vec![sync("a bucket", json!({ "buckets": buckets, "client_id": of.idempotency }))]
        }
        "POST /sync/checkpoint-request" => {
            let body = json!({ "client_id": of.idempotency, "checkpoint_request_id": "1" });
            vec![sync("a client", body).alike("the version is the caller's own")]
        }
        "GET /write-checkpoint2.json" => vec![
            probe_of("a client", format!("{path}?client_id={}", of.idempotency)).alike("the version is the caller's own"),
        ],
        "GET /v1/shape" => {
            let shape = format!("{path}?table=lists&handle={}&offset", of.shape_handle);
            vec![
                probe_of("an offset and a handle", format!("{shape}={version}_0")),
                probe_of("an offset, live", format!("{shape}={version}_0&live=true")),
                probe_of("a page token", format!("{shape}=0_{}", of.shape_page)),
                probe_of("a handle alone", format!("{shape}=-1")),
                probe_of(
                    "an expired handle",
                    format!("{path}?table=lists&offset=now&expired_handle={}", of.shape_handle),
                ),
            ]
        }
        "GET /digests" => vec![probe_of("the seed", path).alike("names nothing")],
        "GET /events" => vec![probe_of("Last-Event-ID", path).with("last-event-id", version)],
        "GET /conflicts" => vec![
            probe_of("key", format!("{path}?key={list}")),
            probe_of("key and table", format!("{path}?table=lists&key={list}")),
            probe_of("page", format!("{path}?page={}", of.conflicts_page)),
            probe_of("page of a row", format!("{path}?limit=1&key={}&page={}", of.conflicts_next, of.conflicts_page)),
        ],
        "POST /conflicts/{id}/restore" => vec![
            probe_of("id", format!("/conflicts/{conflict}/restore")),
            probe_of("Sync-Lock", format!("/conflicts/{conflict}/restore")).with("sync-lock", of.fence),
        ],
        "GET /lock" => vec![probe_of("the holder", path).alike("names nothing")],
        "POST /lock" => vec![probe_of("Sync-Lock", path).with("sync-lock", of.fence)],
        "DELETE /lock" => vec![
            probe_of("give back", path).alike("names nothing"),
            probe_of("break", format!("{path}?break=true")).alike("names nothing"),
        ],
        "POST /login" => vec![
            probe_of("the address, a wrong password", path)
                .body(json!({ "email": of.email, "password": "wrong horse", "device": "x" }))
                .alike("a wrong password says nothing of the address"),
            probe_of("device_id, a wrong password", path)
                .body(json!({ "email": of.email, "password": "wrong horse", "device": "x", "device_id": device }))
                .alike("a wrong password says nothing of the device"),
        ],
        "POST /password/reset" => vec![
            probe_of("the address", path)
                .body(json!({ "email": of.email }))
                .alike("the address goes into a queue, and the account is looked up behind it"),
        ],
        "POST /password/reset/confirm" => vec![
            probe_of("a token that nobody has", path)
                .body(json!({ "token": format!("rp_{}", "x".repeat(64)), "new": "battery staple" }))
                .alike("names nothing"),
        ],
        "POST /email/verify" => vec![
            probe_of("a token that nobody has", path)
                .body(json!({ "token": format!("rv_{}", "x".repeat(64)), "password": "correct horse" }))
                .alike("names nothing"),
        ],
        "GET /account/export" => vec![probe_of("its own account", path).alike("names nothing")],
        "POST /account/erase" => vec![
            probe_of("its own account", path).body(json!({ "password": PASSWORD })).alike("names nothing"),
        ],
        "GET /owners" => vec![probe_of("the list", path).with("if-none-match", &of.etag).alike("names nothing")],
        "PATCH /owners/{owner}" => {
            let path = format!("/owners/{owner}");
            vec![
                probe_of("name", &path).body(json!({ "name": "mine" })),
                probe_of("public", &path).body(json!({ "public": true })),
            ]
        }
        "DELETE /owners/{owner}" => vec![probe_of("owner", format!("/owners/{owner}"))],
        "GET /owners/{owner}/members" => {
            vec![probe_of("owner", format!("/owners/{owner}/members?after={}", key(0)))]
        }
        "PUT /owners/{owner}/members/{user}" => {
            // A user who was not added to another's owner has the id of its own.
            let path = format!("/owners/{owner}/members/{owner}");
            vec![probe_of("owner and user", path).body(json!({ "role": "manage" }))]
        }
        "DELETE /owners/{owner}/members/{user}" => {
            vec![probe_of("owner and user", format!("/owners/{owner}/members/{owner}"))]
        }
        "GET /owners/{owner}/invitations" => vec![probe_of("owner", format!("/owners/{owner}/invitations"))],
        "POST /owners/{owner}/invitations" => {
            let body = json!({ "role": "read", "expires_s": 60, "uses": 1 });
            vec![probe_of("owner", format!("/owners/{owner}/invitations")).body(body)]
        }
        "DELETE /owners/{owner}/invitations/{id}" => {
            vec![probe_of("owner", format!("/owners/{owner}/invitations/{conflict}"))]
        }
        "POST /invitations/accept" => vec![
            probe_of("a code that nobody has", path)
                .body(json!({ "code": "ri_GZYBNbyCScqFgPBHL6qAqQ", "name": "me" }))
                .alike("whoever has a code may become a member by it"),
        ],
        "POST /logout" => vec![probe_of("its own token", path).alike("names nothing")],
        "GET /me" => vec![probe_of("its own token", path).alike("names nothing")],
        "POST /password" => vec![
            probe_of("its own password", path)
                .body(json!({ "old": PASSWORD, "new": "battery staple", "sign_out_others": true }))
                .alike("names nothing"),
        ],
        "GET /devices" => vec![probe_of("the list", path).alike("names nothing")],
        "DELETE /devices" => vec![probe_of("its own devices", path).alike("names nothing")],
        "DELETE /devices/{device_id}" => vec![probe_of("device_id", format!("/devices/{device}"))],
        "GET /console/api/overview" | "GET /console/api/series" => vec![operator("all", path.into())],
        "GET /console/api/owners" => vec![
            operator("after", format!("{path}?after={owner}&limit=1")),
            operator("email", format!("{path}?email=nobody@example.com")),
        ],
        "GET /console/api/owners/{owner}" => vec![operator("owner", console)],
        "GET /console/api/owners/{owner}/conflicts" => {
            vec![operator("owner", format!("{console}/conflicts?table=lists&key={list}&page={}", of.conflicts_page))]
        }
        "POST /console/api/owners/{owner}/conflicts/{id}/restore" => {
            vec![operator("owner and id", format!("{console}/conflicts/{conflict}/restore"))]
        }
        "DELETE /console/api/owners/{owner}/lock" => vec![operator("owner", format!("{console}/lock"))],
        "GET /console/api/owners/{owner}/why" => {
            vec![operator("owner, key, device", format!("{console}/why?table=lists&key={list}&device={device}"))]
        }
        _ => return None,
    };
    if OF_OWNER.iter().any(|one| operation.ends_with(one)) {
        let Probe { path, body, .. } = probes[0].clone();
        let and = if path.contains('?') { '&' } else { '?' };
        probes.push(Probe { body, ..probe_of("owner", format!("{path}{and}owner={owner}")) });
    }
    if !operation.contains("/console/") && !WITHOUT_TOKEN.contains(&operation) {
        // The first probe's names, from a client whose store is that owner's.
        let first = &probes[0];
        // The device of the token has it, and that is another one.
        let locks =
            ["/fetch", "/synchronise", "/restore", "POST /lock"].iter().any(|part| operation.contains(part));
        let (path, body) = (first.path.clone(), first.body.clone());
        let store = format!("{owner}.{owner}"); // a user who shares with nobody is its own owner
        probes
            .push(Probe { body: body.clone(), ..probe_of("Sync-For", path.clone()) }.with("sync-for", store));
        // A client behind its own counter gets another name.
        let name = format!("{}.0", of.installation);
        let probe = Probe { body, ..probe_of("Sync-Device", path) }.with("sync-device", name);
        let is_refused = operation == "POST /invitations/accept";
        probes.push(match () {
            () if locks => probe.alike("the lock is another device's"),
            () if is_refused => probe.alike("the code is refused in any case"),
            () => probe,
        });
    }
    Some(probes)
}

async fn ask(server: &Server, who: &Device, operation: &str, probe: &Probe) -> Answer {
    let mut ask = server.ask(operation.split(' ').next().unwrap(), &probe.path);
    ask = if WITHOUT_TOKEN.contains(&operation) { ask } else { ask.of(who) };
    for (name, value) in &probe.headers {
        ask = ask.header(name, value);
    }
    if let Some(body) = &probe.body {
        ask = ask.json(body);
    }
    ask.send().await
}

/// The bytes of a response on the wire, without what the layers add: date, request id and timing.
fn bytes_of(answer: &Answer) -> String {
    let headers: BTreeSet<String> =
        answer.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    format!("{} {headers:#?}\n{}", answer.status, String::from_utf8_lossy(&answer.bytes))
}

/// All that an owner can see of its data.
async fn view(server: &Server, who: &Device) -> Vec<String> {
    let mut seen = Vec::new();
    for path in ["/changes", "/conflicts", "/devices", "/lock", "/digests"] {
        seen.push(bytes_of(&server.get(path).of(who).send().await));
    }
    seen
}

#[tokio::test]
async fn another_owners_names_are_answered_as_unknown_ones() {
    let base = Server::with(change);
    let anna = furnish(&base, "anna", 0x100, "mine", 1).await;
    let empty = base.copied(change);
    let full = base.copied(change);
    let ben = furnish(&full, &format!("ben{MARKER}"), 0x200, MARKER, 9).await;

    let mut probe_of = 0;
    let mut faults = Vec::new();
    let list: Vec<String> =
        operations(&document()).into_iter().map(|(method, path)| format!("{method} {path}")).collect();
    for operation in &list {
        let count = probes(operation, &ben.names).map_or(0, |probes| probes.len());
        for at in 0..count {
            let [with, without, own] = [&full, &empty, &full].map(|world| {
                let copy = world.copied(change);
                copy.turn(60_000);
                copy
            });
            // Anna's hold of her lock, and then Ben's of his.
            let mut fences = Vec::new();
            for world in [&with, &without, &own] {
                fences.push(world.ask("POST", "/lock").of(&anna.phone).send().await.fence());
            }
            assert_eq!(fences[0], fences[1], "the twins are none");
            let bens = with.ask("POST", "/lock").of(&ben.phone).send().await.fence();

            let of_ben = Names { fence: bens, ..ben.names.clone() };
            let of_anna = Names { fence: fences[2], ..anna.names.clone() };
            let probe = probes(operation, &of_ben).unwrap().remove(at);
            let own_probe = probes(operation, &of_anna).unwrap().remove(at);
            let place = format!("{operation}, {}", probe.what);

            let before = view(&with, &ben.tablet).await;
            let others = ask(&with, &anna.phone, operation, &probe).await;
            let unknown = ask(&without, &anna.phone, operation, &probe).await;
            let mine = ask(&own, &anna.phone, operation, &own_probe).await;
            probe_of += 3;
            if bytes_of(&others) != bytes_of(&unknown) {
                faults.push(format!("{place}: {}\n--- unknown: {}", bytes_of(&others), bytes_of(&unknown)));
            }
            // The names differ, and so may the responses: the names are made equal first.
            let result = |answer: &Answer, names: &Names| {
                let mut text = bytes_of(answer);
                for name in [
                    &names.conflicts_next,
                    &names.list,
                    &names.item,
                    &names.node,
                    &names.conflict,
                    &names.device,
                ] {
                    text = text.replace(name, "NAME");
                }
                text
            };
            let differs = match probe.text() == own_probe.text() {
                true => bytes_of(&mine) != bytes_of(&others),
                false => result(&mine, &of_anna) != result(&others, &of_ben),
            };
            match probe.alike {
                None if !differs => {
                    faults.push(format!("{place}: one's own is answered alike, so it proves nothing"))
                }
                Some(why) if differs => {
                    faults.push(format!("{place}: one's own is answered otherwise ({why})"))
                }
                _ => {}
            }
            if view(&with, &ben.tablet).await != before {
                faults.push(format!("{place}: the other owner sees a change"));
            }
            let text = bytes_of(&others);
            let sent = probe.text();
            let ids = [&ben.phone.id, &ben.tablet.id, &ben.names.owner, &ben.names.conflict, &ben.names.item];
            for secret in ids.into_iter().map(String::as_str).chain([MARKER]) {
                if text.contains(secret) && !sent.contains(secret) {
                    faults.push(format!("{place}: tells {secret}: {text}"));
                }
            }
        }
    }
    println!("{probe_of} answers of {} operations compared", list.len());
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n\n"));
}

/// Goal: no new operation, parameter or member is forgotten. Method: the contract lists them.
#[test]
fn every_operation_has_its_place_in_the_matrix() {
    let names = Names {
        list: key(1),
        item: key(2),
        node: key(3),
        conflict: key(4),
        device: key(5),
        owner: key(6),
        email: "a@example.org".into(),
        idempotency: "i".into(),
        fence: 1,
        version: 1,
        base: "2020-01-01T00:00:00Z".into(),
        etag: "W/\"1\"".into(),
        page: "p".into(),
        next: "n".into(),
        conflicts_page: "c".into(),
        conflicts_next: key(7),
        installation: key(8),
        shape_handle: "h".into(),
        shape_page: "p".into(),
        bucket: "b".into(),
        after: "1".into(),
    };
    let doc = document();
    let mut faults = Vec::new();
    for ((method, path), operation) in operation_objects(&doc) {
        let name = format!("{method} {path}");
        let exempt = EXEMPT.iter().any(|(exempt, _)| *exempt == name);
        let Some(probes) = probes(&name, &names) else {
            if !exempt {
                faults.push(format!("{name} is new: place it in the matrix, or say why it needs none"));
            }
            continue;
        };
        assert!(!exempt, "{name} has a place: take it off the exempt");
        let shared = doc["paths"][&path].get("parameters").and_then(Value::as_array);
        let own = operation.get("parameters").and_then(Value::as_array);
        for parameter in shared.into_iter().chain(own).flatten().map(|parameter| follow(&doc, parameter)) {
            let parameter_name = parameter["name"].as_str().unwrap();
            let probe_of = probes.iter().any(|probe| match parameter["in"].as_str().unwrap() {
                "query" => probe.path.contains(&format!("{parameter_name}=")),
                "header" => probe.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(parameter_name)),
                _ => !probe.path.contains('{'),
            });
            if !probe_of && !PLAIN.contains(&parameter_name) {
                faults.push(format!("{name}: nothing is asked with {parameter_name}"));
            }
        }
        let Some(body) = operation.get("requestBody") else { continue };
        let schema = follow(&doc, &follow(&doc, body)["content"]["application/json"]["schema"]);
        for (member, _) in schema["properties"].as_object().unwrap() {
            let sent = |probe: &Probe| probe.body.as_ref().is_some_and(|body| body.get(member).is_some());
            if !probes.iter().any(sent) {
                faults.push(format!("{name}: nothing is sent with {member}"));
            }
        }
    }
    for (exempt, _) in EXEMPT {
        let known = operations(&doc).iter().any(|(method, path)| format!("{method} {path}") == *exempt);
        assert!(known, "there is no {exempt}: take it off the list");
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
