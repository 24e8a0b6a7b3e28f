use std::sync::mpsc;

use rollcall::model::Owner;
use uuid::Uuid;

use super::*;

/// Goal: what nobody waits for is undone. Method: the writer is busy until the time of the request is over, for a batch
/// that waits in its queue and for one that has a thread of its own; then the next request sees what was kept.
#[tokio::test]
async fn work_that_nobody_waits_for_is_undone() {
    if !is_sqlite() {
        return; // an owner's writes do not wait for those of another
    }
    for rows in [3, 300] {
        let server = Server::with(|settings| settings.limits.request_s = 1);
        let phone = server.device("anna", "phone");
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
        let list = |n: u64| json!({ "lid": key(n), "title": "a" });
        let lists: Vec<_> = (1..=rows).map(list).collect();
        let sending = server.sync(&phone, json!({ "add": { "lists": lists } }));
        let gave_up = tokio::time::timeout(Duration::from_millis(1_100), sending).await;
        assert!(gave_up.is_err(), "{rows} rows: the writer was to be busy");
        end.send(()).unwrap();
        writing.join().unwrap().unwrap();

        let later = json!({ "add": { "lists": [list(1_000)] } });
        let later = server.ask("POST", "/synchronise").of(&phone).header("prefer", "wait=20").json(&later);
        later.send().await.ok();
        let held = server.manifest(&phone).await;
        assert_eq!(held["lists"].as_array().unwrap().len(), 1, "{rows} rows: {held}");
        server.check_whole();
    }
}
