//! Devices of users who share an owner's rows.

use rollcall::device::{Http, Remote, Request, SyncError, SyncMode};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::real::{PASSWORD, Server};
use crate::support::{Phone, assert_agree};

const WAYS: [SyncMode; 2] = [SyncMode::Cursor, SyncMode::Manifest];
const ANNA: &str = "anna@example.com";
const BEN: &str = "ben@example.com";

/// A user's calls beside those of a device.
struct Person {
    http: Http,
    token: String,
}

impl Person {
    fn new(server: &Server, email: &str) -> Self {
        let mut person = Self { http: Http::new(&server.url), token: String::new() };
        person.call("POST", "register", Some(json!({ "email": email, "password": PASSWORD })));
        let log_in = json!({ "email": email, "password": PASSWORD, "device": "desk" });
        person.token = person.call("POST", "login", Some(log_in))["token"].as_str().unwrap().to_owned();
        person
    }

    fn call(&mut self, method: &'static str, path: &str, body: Option<Json>) -> Json {
        let headers = vec![("authorization", format!("Bearer {}", self.token))];
        let body = body.map(|body| serde_json::to_vec(&body).unwrap());
        let request = Request { method, path: path.to_owned(), headers, body };
        let response = self.http.send(&request).unwrap();
        serde_json::from_slice(&response.body).unwrap_or_default()
    }
}

/// An owner that Anna makes, and of which Ben becomes a member; and Ben's id.
fn shared(anna: &mut Person, ben: &mut Person, role: &str) -> (Uuid, String) {
    let made = anna.call("POST", "owners", Some(json!({ "name": "Wedding" })));
    let owner = made["owner"].as_str().unwrap().to_owned();
    join(anna, ben, &owner, role);
    let user = ben.call("GET", "me", None)["user"].as_str().unwrap().to_owned();
    (owner.parse().unwrap(), user)
}

fn join(anna: &mut Person, ben: &mut Person, owner: &str, role: &str) {
    let made = anna.call("POST", &format!("owners/{owner}/invitations"), Some(json!({ "role": role })));
    let joined = ben.call("POST", "invitations/accept", Some(json!({ "code": made["code"], "name": "Ben" })));
    assert_eq!(joined["role"], role, "{joined}");
}

/// Goal: members of an owner sync its rows beside their own. When one is taken out, their device drops the rows and keeps
/// what no server has; when they come back, it begins anew.
#[test]
fn a_former_member_keeps_unsent_edits_alone() {
    for way in WAYS {
        let server = Server::start();
        let (mut anna, mut ben) = (Person::new(&server, ANNA), Person::new(&server, BEN));
        let (owner, user) = shared(&mut anna, &mut ben, "write");
        let mut hers = Phone::of_owner(&server, (ANNA, "phone"), way, Some(owner));
        let mut his = Phone::of_owner(&server, (BEN, "phone"), way, Some(owner));
        let mut his_own = Phone::of_owner(&server, (BEN, "tablet"), way, None);
        his_own.add("lists", json!({ "title": "Ben's own" }));
        his_own.sync();
        let list = hers.add("lists", json!({ "title": "Guests" }));
        hers.sync();
        his.sync();
        his.add("items", json!({ "title": "Cake", "list": list }));
        assert_agree(&mut his, &mut hers);
        assert_eq!(his.store.list("lists").unwrap().len(), 1, "{way:?}: his own list is elsewhere");

        let edited = his.store.list("items").unwrap()[0].key;
        his.put("items", edited, json!({ "done": true }));
        let added = his.add("items", json!({ "title": "Band" }));
        anna.call("DELETE", &format!("owners/{owner}/members/{user}"), None);
        hers.add("items", json!({ "title": "after he left" }));
        hers.sync();
        let error = his.try_sync(2).unwrap_err();
        assert!(matches!(error, SyncError::NotAMember { kept: 2 }), "{way:?}: {error}");
        assert_eq!(his.sees(), json!([[], []]), "{way:?}");
        let left = his.store.left().unwrap();
        let find = |key| left.iter().find(|edit| edit.key == key).unwrap();
        assert_eq!((left.len(), find(edited).operation.as_str()), (2, "edited"));
        assert_eq!(find(edited).columns.keys().collect::<Vec<_>>(), ["done"], "only what he set");
        assert_eq!((find(added).operation.as_str(), find(added).columns.len()), ("added", 5));
        his.restart();
        assert!(matches!(his.try_sync(2), Err(SyncError::NotAMember { kept: 0 })));
        assert_eq!(his.store.left().unwrap(), left, "{way:?}");

        join(&mut anna, &mut ben, &owner.to_string(), "write");
        assert_agree(&mut his, &mut hers);
        assert_eq!(his.store.list("items").unwrap().len(), 2);
        his.put("items", edited, json!({ "title": "Large cake" }));
        anna.call("DELETE", &format!("owners/{owner}/members/{user}"), None);
        assert!(matches!(his.try_sync(2), Err(SyncError::NotAMember { kept: 1 })));
        let again: Vec<_> = his.store.left().unwrap().into_iter().filter(|edit| edit.key == edited).collect();
        let columns: Vec<_> = again.iter().flat_map(|edit| edit.columns.keys()).collect();
        assert_eq!(columns, ["done", "title"], "{way:?}: the edit that was left first stays");
        his.store.forget_left().unwrap();
        assert!(his.store.left().unwrap().is_empty());
    }
}

/// Goal: what a reader changes is never stored by the server, never lost on the device, and the user sees why.
#[test]
fn what_a_reader_changes_waits_with_its_reason() {
    for way in WAYS {
        let server = Server::start();
        let (mut anna, mut ben) = (Person::new(&server, ANNA), Person::new(&server, BEN));
        let (owner, user) = shared(&mut anna, &mut ben, "read");
        let mut hers = Phone::of_owner(&server, (ANNA, "phone"), way, Some(owner));
        let mut his = Phone::of_owner(&server, (BEN, "phone"), way, Some(owner));
        let list = hers.add("lists", json!({ "title": "Guests" }));
        hers.sync();
        his.sync();
        his.put("lists", list, json!({ "title": "Mine" }));
        let added = his.add("items", json!({ "title": "Cake", "list": list }));
        for _ in 0..2 {
            let report = his.sync();
            assert_eq!(report.tally.taken, 0, "{way:?}");
            let rejected = his.store.rejected().unwrap();
            assert_eq!(rejected.len(), 2, "{way:?}");
            assert!(rejected.iter().all(|(.., why)| why.contains("role")), "{rejected:?}");
            assert_eq!(his.column("lists", list, "title"), Some(json!("Mine")), "{way:?}");
        }
        hers.sync();
        assert_eq!(hers.store.list("items").unwrap().len(), 0, "{way:?}");
        // Once the role includes writing, the edits go through.
        let role = json!({ "role": "write" });
        anna.call("PUT", &format!("owners/{owner}/members/{user}"), Some(role));
        his.sync();
        hers.sync();
        assert_agree(&mut his, &mut hers);
        assert!(hers.store.get("items", added).unwrap().is_some(), "{way:?}");
    }
}

/// Goal: a restore from a backup that is older than the membership costs a member nothing.
#[test]
fn a_restore_that_lacks_the_membership_drops_nothing() {
    for way in WAYS {
        let mut server = Server::start();
        let (mut anna, mut ben) = (Person::new(&server, ANNA), Person::new(&server, BEN));
        let made = anna.call("POST", "owners", Some(json!({ "name": "Wedding" })));
        let owner = made["owner"].as_str().unwrap().to_owned();
        let mut his = Phone::of_owner(&server, (BEN, "phone"), way, Some(owner.parse().unwrap()));
        let mut hers = Phone::of_owner(&server, (ANNA, "phone"), way, Some(owner.parse().unwrap()));
        let backup = server.backup();
        join(&mut anna, &mut ben, &owner, "write");
        his.add("lists", json!({ "title": "Guests" }));
        his.sync();
        his.add("lists", json!({ "title": "Unsent" }));
        let seen = his.sees();
        server.restore(&backup);
        his.follow(&server);
        hers.follow(&server);
        for _ in 0..2 {
            assert!(matches!(his.try_sync(2), Err(SyncError::NotAMemberAfterRestore)), "{way:?}");
            assert_eq!(his.sees(), seen, "{way:?}");
        }
        (anna.http, ben.http) = (Http::new(&server.url), Http::new(&server.url));
        join(&mut anna, &mut ben, &owner, "write");
        let report = his.sync();
        assert_eq!((report.tally.dropped, report.tally.lost.len()), (0, 0), "{way:?}");
        assert_eq!(his.store.list("lists").unwrap().len(), 2, "{way:?}");
        assert_agree(&mut his, &mut hers);
    }
}
