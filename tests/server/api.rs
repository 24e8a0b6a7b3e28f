//! The calls of the API, one by one, on the real routes. Every response is checked against `openapi.yaml`.

use rollcall_testkit::app;

mod accounts;
mod anything;
mod export;
mod faults;
mod fetch;
mod installations;
mod lock;
mod me;
mod memory;
mod owners;
mod past;
mod people;
mod public;
mod roles;
mod synchronise;
mod table_readers;
mod token_owners;
mod unwanted;
mod values;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use app::engine::is_sqlite;
use app::{Answer, Ask, Device, PASSWORD, Server, key, verdicts};
use proptest::prelude::*;
use rollcall::config::{AuthMode, Registration, Settings, Verification};
use rollcall::mail::MailKind;
use rollcall::storage::StorageError;
use serde_json::{Value, json};

/// A server with rows of two owners, a device of each, and what is committed.
async fn furnished() -> (Server, Device, Device) {
    let server = Server::new();
    let (anna, ben) = (server.device("anna", "Anna's phone"), server.device("ben", "Ben's phone"));
    let rows = json!({ "add": {
        "lists": [{ "lid": key(1), "title": "Shopping" }, { "lid": key(2), "title": "Chores" }],
        "items": [{ "iid": key(1), "title": "Milk", "list": key(1) }, { "iid": key(2), "title": "Bread" }],
        "nodes": [{ "id": key(1) }, { "id": key(2), "parent": key(1) }],
    }, "delete": { "items": [key(9)] } });
    server.sync(&anna, rows).await.ok();
    server.sync(&anna, json!({ "delete": { "items": [key(2)] } })).await.ok();
    let rows =
        json!({ "add": { "lists": [{ "lid": key(1), "title": "Ben's" }, { "lid": key(7), "title": "x" }] } });
    server.sync(&ben, rows).await.ok();
    (server, anna, ben)
}

/// Sends what must be refused, and sees that nothing was written.
async fn refused(server: &Server, ask: Ask, place: &str) -> Answer {
    let before = (server.dump(), server.commits());
    let answer = ask.send().await;
    assert!(answer.status >= 400, "{place}: {}", String::from_utf8_lossy(&answer.bytes));
    assert_eq!((server.dump(), server.commits()), before, "{place}: something was written");
    answer
}

/// A response, without the headers that differ from request to request.
fn bytes(answer: &Answer) -> String {
    let differs = ["date", "x-request-id", "server-timing"];
    let headers = answer.headers.iter().filter(|(name, _)| !differs.contains(&name.as_str()));
    format!("{} {:?} {}", answer.status, headers.collect::<Vec<_>>(), String::from_utf8_lossy(&answer.bytes))
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    app::engine::run_again_on_postgres(module_path!());
}
