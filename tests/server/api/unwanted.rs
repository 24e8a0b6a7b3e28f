use std::sync::mpsc;

use rollcall::model::Owner;
use uuid::Uuid;

use super::*;

/// Keeps the writer busy while a client waits for a response, until the request's deadline is over.
async fn given_up(server: &Server, sending: impl Future<Output = Answer>) {
    let storage = Arc::clone(&server.app.storage);
    let ((busy, is_busy), (end, ends)) = (mpsc::channel(), mpsc::channel());
    let other = Owner(Uuid::now_v7());
    let writing = std::thread::spawn(move || {
        storage.write(other, move |_| {
            busy.send(()).unwrap();
            ends.recv().unwrap();
            Ok::<_, StorageError>(())
        })
    });
    is_busy.recv().unwrap();
    let gave_up = tokio::time::timeout(Duration::from_millis(1_100), sending).await;
    assert!(gave_up.is_err(), "the writer was to be busy");
    end.send(()).unwrap();
    writing.join().unwrap().unwrap();
}

fn hasty() -> Server {
    Server::with(|settings| settings.limits.request_s = 1)
}

/// Goal: work is rolled back if no client waits for it. Method: the writer is busy until the request's
/// deadline is over, for a batch in its queue and for one with its own thread; then the next request reads
/// what was committed.
#[tokio::test]
async fn work_that_nobody_waits_for_is_undone() {
    if !is_sqlite() {
        return; // an owner's writes do not wait for those of another
    }
    for rows in [3, 300] {
        let server = hasty();
        let phone = server.device("anna", "phone");
        let list = |n: u64| json!({ "lid": key(n), "title": "a" });
        let lists: Vec<_> = (1..=rows).map(list).collect();
        given_up(&server, server.sync(&phone, json!({ "add": { "lists": lists } }))).await;

        let later = json!({ "add": { "lists": [list(1_000)] } });
        let later = server.ask("POST", "/synchronise").of(&phone).header("prefer", "wait=20").json(&later);
        later.send().await.ok();
        let held = server.manifest(&phone).await;
        assert_eq!(held["lists"].as_array().unwrap().len(), 1, "{rows} rows: {held}");
        server.check_whole();
    }
}

/// Goal: the same for a loser that is to be brought back.
#[tokio::test]
async fn a_restore_that_nobody_waits_for_is_undone() {
    if !is_sqlite() {
        return; // as above
    }
    let server = hasty();
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let title = |title: &str| json!({ "ours": [{ "id": key(1), "title": title }] });
    let base = server.sync(&phone, json!({ "add": title("first") })).await.ok()["version"].clone();
    server.sync(&phone, json!({ "base": base, "update": title("second") })).await.ok();
    let result = server.sync(&tablet, json!({ "base": base, "update": title("mine") })).await.ok();
    let id = result["update"]["ours"][0]["conflict"].as_str().unwrap();
    let restore = || server.ask("POST", &format!("/conflicts/{id}/restore")).of(&tablet);
    given_up(&server, restore().send()).await;

    let result = restore().header("prefer", "wait=20").send().await.ok();
    assert_eq!(result["verdict"], "updated", "it was not brought back before: {result}");
    server.check_whole();
}
