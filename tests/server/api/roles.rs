//! What each role may do at an owner, for every operation of `openapi.yaml` that names one.

use rollcall::model::Role;
use rollcall_testkit::contract;

use super::*;

/// An operation, and the statuses that a member gets who manages the owner, who may write, and who may only read.
struct Case {
    operation: (&'static str, &'static str),
    body: fn(&Names) -> Option<Value>,
    statuses: [u16; 3],
}

/// What the paths and bodies of a case name.
struct Names {
    owner: String,
    /// A member, who is none of those who send requests.
    member: String,
    /// An open invitation.
    invitation: String,
}

fn case(operation: (&'static str, &'static str), statuses: [u16; 3]) -> Case {
    Case { operation, body: |_| None, statuses }
}

fn sending(
    operation: (&'static str, &'static str),
    statuses: [u16; 3],
    body: fn(&Names) -> Option<Value>,
) -> Case {
    Case { operation, body, statuses }
}

fn a_row(_: &Names) -> Option<Value> {
    Some(json!({ "add": { "lists": [{ "lid": key(77), "title": "new" }] } }))
}

/// Every operation that names an owner in its path or query.
fn cases() -> Vec<Case> {
    vec![
        case(("GET", "/fetch"), [200, 200, 200]),
        case(("GET", "/fetch.json"), [200, 200, 200]),
        sending(("POST", "/synchronise"), [200, 200, 200], a_row),
        sending(("POST", "/synchronise.json"), [200, 200, 200], a_row),
        case(("GET", "/changes"), [200, 200, 200]),
        case(("GET", "/digests"), [200, 200, 200]),
        case(("GET", "/events"), [200, 200, 200]),
        case(("GET", "/conflicts"), [200, 200, 200]),
        case(("POST", "/conflicts/{id}/restore"), [404, 404, 403]),
        case(("GET", "/lock"), [200, 200, 200]),
        case(("POST", "/lock"), [200, 200, 403]),
        case(("DELETE", "/lock"), [204, 204, 403]),
        sending(("PATCH", "/owners/{owner}"), [204, 403, 403], |_| Some(json!({ "name": "other" }))),
        case(("DELETE", "/owners/{owner}"), [204, 403, 403]),
        case(("GET", "/owners/{owner}/members"), [200, 200, 200]),
        sending(("PUT", "/owners/{owner}/members/{user}"), [204, 403, 403], |_| {
            Some(json!({ "role": "write" }))
        }),
        case(("DELETE", "/owners/{owner}/members/{user}"), [204, 403, 403]),
        case(("GET", "/owners/{owner}/invitations"), [200, 403, 403]),
        sending(("POST", "/owners/{owner}/invitations"), [201, 403, 403], |_| {
            Some(json!({ "role": "manage" }))
        }),
        case(("DELETE", "/owners/{owner}/invitations/{id}"), [204, 403, 403]),
    ]
}

/// Goal: a new operation about an owner is not forgotten here.
#[test]
fn every_operation_that_names_an_owner_has_its_row() {
    let doc = contract::document();
    let mut named = Vec::new();
    for ((method, path), operation) in contract::operation_objects(&doc) {
        if path.starts_with("/console/") {
            continue; // the operator's
        }
        let item = &doc["paths"][&path];
        let parameters = [operation.get("parameters"), item.get("parameters")];
        let parameters = parameters.into_iter().flatten().flat_map(|list| list.as_array().unwrap());
        if parameters.map(|one| contract::follow(&doc, one)).any(|one| one["name"] == "owner") {
            named.push((method, path));
        }
    }
    named.sort();
    let mut rows: Vec<_> = cases()
        .iter()
        .map(|Case { operation: (method, path), .. }| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    rows.sort();
    assert_eq!(rows, named);
}

/// The users of a test, each with a device.
struct People {
    manager: Device,
    writer: Device,
    reader: Device,
    /// A member whom others take out, or give another role.
    other: Device,
    former: Device,
    stranger: Device,
}

impl People {
    fn new(server: &Server) -> Self {
        let device = |name: &str| server.device(name, "phone");
        Self {
            manager: device("manager"),
            writer: device("writer"),
            reader: device("reader"),
            other: device("other"),
            former: device("former"),
            stranger: device("stranger"),
        }
    }
}

async fn made(server: &Server, device: &Device, path: &str, body: Value) -> Value {
    let answer = server.ask("POST", path).of(device).json(&body).send().await;
    assert_eq!(answer.status, 201, "{path}: {}", String::from_utf8_lossy(&answer.bytes));
    answer.json()
}

/// A new owner with a row, a member in each role, a former one, and an open invitation.
async fn owner(server: &Server, people: &People) -> Names {
    let owner = made(server, &people.manager, "/owners", json!({ "name": "Ours" })).await;
    let owner = owner["owner"].as_str().unwrap().to_owned();
    let invitations = format!("/owners/{owner}/invitations");
    for (device, role) in [
        (&people.writer, Role::Write),
        (&people.reader, Role::Read),
        (&people.other, Role::Read),
        (&people.former, Role::Write),
    ] {
        let code = made(server, &people.manager, &invitations, json!({ "role": role })).await["code"].clone();
        let accept = server.ask("POST", "/invitations/accept").of(device);
        accept.json(&json!({ "code": code, "name": "x" })).send().await.ok();
    }
    let path = format!("/synchronise?owner={owner}");
    let row = json!({ "add": { "lists": [{ "lid": key(1), "title": "Chores" }] } });
    server.ask("POST", &path).of(&people.manager).json(&row).send().await.ok();
    let former = server.user_id("former");
    let left = server.ask("DELETE", &format!("/owners/{owner}/members/{former}")).of(&people.former);
    assert_eq!(left.send().await.status, 204);
    let open = made(server, &people.manager, &invitations, json!({ "role": "read" })).await;
    let invitation = open["id"].as_str().unwrap().to_owned();
    Names { owner, member: server.user_id("other").to_string(), invitation }
}

/// The request of a case.
fn request(server: &Server, device: &Device, case: &Case, names: &Names) -> Ask {
    let (method, path) = case.operation;
    let id =
        if path.starts_with("/owners") { &names.invitation } else { "01901651-7d2e-7a3b-9c4d-5e6f708192a3" };
    let filled = path.replace("{owner}", &names.owner).replace("{user}", &names.member).replace("{id}", id);
    let filled = if path.contains("{owner}") { filled } else { format!("{filled}?owner={}", names.owner) };
    let ask = server.ask(method, &filled).of(device);
    match (case.body)(names) {
        Some(body) => ask.json(&body),
        None => ask,
    }
}

/// Goal: who is no member learns nothing, not even whether the owner exists. Method: each operation by a former member, by a
/// stranger, and about an owner that nobody has: the same bytes, and nothing is written.
#[tokio::test]
async fn who_is_no_member_learns_nothing_by_any_operation() {
    let server = Server::with(unlimited);
    let people = People::new(&server);
    let names = owner(&server, &people).await;
    let nowhere =
        Names { owner: key(0xdead), member: names.member.clone(), invitation: names.invitation.clone() };
    for case in cases() {
        let unknown = request(&server, &people.stranger, &case, &nowhere).send().await;
        assert_eq!(unknown.problem(), (403, "not_a_member".into()), "{:?}", case.operation);
        for device in [&people.former, &people.stranger] {
            let answer = refused(&server, request(&server, device, &case, &names), "no member").await;
            assert_eq!(bytes(&answer), bytes(&unknown), "{:?}", case.operation);
        }
    }
}

/// Goal: each role may do what it is for, and no more. Method: each operation at an owner of its own, first by those who may
/// do the least; what is refused changes nothing.
#[tokio::test]
async fn each_role_may_do_what_it_is_for() {
    let server = Server::with(unlimited);
    let people = People::new(&server);
    for case in cases() {
        let names = owner(&server, &people).await;
        let [manager, writer, reader] = case.statuses;
        for (device, status) in
            [(&people.reader, reader), (&people.writer, writer), (&people.manager, manager)]
        {
            let is_reader = std::ptr::eq(device, &people.reader);
            let before = (status == 403 || is_reader).then(|| server.dump());
            let answer = request(&server, device, &case, &names).send().await;
            let text = String::from_utf8_lossy(&answer.bytes);
            assert_eq!(answer.status, status, "{:?} by the {}: {text}", case.operation, device.name);
            if status == 403 {
                assert_eq!(answer.problem().1, "not_allowed", "{:?}", case.operation);
                assert_eq!(Some(server.dump()), before, "{:?}: something was written", case.operation);
            }
            if answer.status == 200 && is_reader {
                assert_eq!(answer.header("sync-lock"), None, "{:?}: a reader takes no lock", case.operation);
                if case.operation.0 == "POST" {
                    assert_eq!(verdicts(&answer.json(), "add", "lists"), ["rejected"]);
                    assert_eq!(Some(server.dump()), before, "{:?}: something was written", case.operation);
                }
            }
            // The next one finds the lock free.
            let free = format!("/lock?owner={}&break=true", names.owner);
            server.ask("DELETE", &free).of(&people.manager).send().await;
        }
    }
    server.check_whole();
}

fn unlimited(settings: &mut Settings) {
    settings.limits.invitation_attempts_per_hour = 0;
    settings.limits.invitations_per_hour = 0;
    settings.limits.logins_per_address_per_min = 0;
}
