//! One device of an owner at a time.

use super::*;

#[tokio::test]
async fn one_device_at_a_time() {
    let (server, anna, ben) = furnished().await;
    let tablet = server.device("anna", "Anna's tablet");
    let lock = |device: &Device| server.get("/lock").of(device).send();
    assert_eq!(lock(&anna).await.ok(), json!({ "held": false }));

    let fetched = server.fetch(&anna, "").await;
    let fence = fetched.fence();
    assert_eq!(fetched.header("sync-lock-expires"), Some(server.time(15_000).as_str()));
    let (since, until) = (server.time(0), server.time(15_000));
    let holder = json!({ "device_id": anna.id, "device": "Anna's phone" });
    assert_eq!(
        lock(&anna).await.ok(),
        json!({ "held": true, "mine": true, "holder": holder, "since": since, "until": until, "fence": fence })
    );
    assert_eq!(
        lock(&tablet).await.ok(),
        json!({ "held": true, "mine": false, "holder": holder, "since": since, "until": until })
    );
    assert_eq!(lock(&ben).await.ok(), json!({ "held": false }));

    server.turn(500);
    let body = json!({ "add": { "lists": [{ "lid": key(50), "title": "x" }] } });
    for ask in
        [server.get("/fetch"), server.ask("POST", "/synchronise").json(&body), server.ask("POST", "/lock")]
    {
        let answer = refused(&server, ask.of(&tablet), "busy").await;
        assert_eq!(answer.problem(), (423, "sync_in_progress".into()));
        let result = answer.json();
        assert_eq!(
            (&result["holder"], &result["since"], &result["until"]),
            (&json!("Anna's phone"), &json!(since), &json!(until))
        );
        assert_eq!((&result["retry_after_s"], answer.header("retry-after")), (&json!(15), Some("15")));
    }
    server.fetch(&tablet, "?lock=false").await.ok();
    server.fetch(&ben, "").await.ok();

    // The holder continues, under the same fence, and any request of it renews the lease.
    let taken = server.ask("POST", "/lock").of(&anna).header("sync-lock", fence).send().await;
    assert_eq!(taken.ok(), json!({ "fence": fence, "expires_at": server.time(15_000), "lease_ms": 15_000 }));
    assert_eq!(taken.fence(), fence);
    server.turn(14_000);
    server.get("/devices").of(&anna).send().await.ok();
    server.turn(14_000);
    assert_eq!(server.fetch(&tablet, "").await.status, 423);

    let kept = server
        .ask("POST", "/synchronise")
        .of(&anna)
        .header("sync-lock", fence)
        .json(&json!({ "keep_lock": true }));
    kept.send().await.ok();
    assert_eq!(server.fetch(&tablet, "").await.status, 423);
    let ended = server.ask("POST", "/synchronise").of(&anna).header("sync-lock", fence).json(&json!({}));
    ended.clone().send().await.ok();
    let theirs = server.fetch(&tablet, "").await;
    assert!(theirs.fence() > fence);
    assert_eq!(ended.send().await.problem(), (409, "lock_lost".into()));
}

/// Goal: a device that fetches changes every few seconds does not block the others for ever. Method: it does
/// so after a manifest, and another one tries each time.
#[tokio::test]
async fn a_device_that_only_polls_lets_the_others_in() {
    let server = Server::with(|settings| settings.sync.lock_hold_max_s = 60);
    let (phone, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let fence = server.fetch(&phone, "").await.fence();
    for _ in 0..11 {
        server.turn(5_000);
        server.get("/changes").of(&phone).send().await.ok();
        let refused = server.fetch(&tablet, "").await;
        assert_eq!(refused.problem(), (423, "sync_in_progress".into()));
    }
    assert_eq!(server.fetch(&tablet, "").await.header("retry-after"), Some("5"));
    server.turn(5_000);
    server.get("/changes").of(&phone).send().await.ok();
    let rests = server.fetch(&phone, "").await;
    assert_eq!(rests.problem(), (423, "sync_in_progress".into()));
    assert_eq!((rests.header("retry-after"), &rests.json()["holder"]), (Some("15"), &json!("phone")));
    assert!(server.fetch(&tablet, "").await.fence() > fence);
    let ended = server.ask("POST", "/synchronise").of(&phone).header("sync-lock", fence).json(&json!({}));
    assert_eq!(ended.send().await.problem(), (409, "lock_lost".into()));
}

#[tokio::test]
async fn a_lease_that_ran_out_is_anyones() {
    let (server, anna, _) = furnished().await;
    let tablet = server.device("anna", "tablet");
    let fence = server.fetch(&anna, "").await.fence();
    server.turn(15_000);
    // Reading alone does not revive an old lease.
    server.get("/lock").of(&anna).send().await.ok();
    server.fetch(&anna, "?lock=false").await.ok();
    server.get("/devices").of(&anna).send().await.ok();
    assert_eq!(server.get("/lock").of(&anna).send().await.ok(), json!({ "held": false }));

    // No device took the lock in between: the holder continues under its fence.
    let again = server.ask("POST", "/lock").of(&anna).header("sync-lock", fence).send().await;
    assert_eq!(again.ok()["fence"], fence);
    server.turn(20_000);
    let theirs = server.fetch(&tablet, "").await.fence();
    assert!(theirs > fence);
    let body = json!({ "add": { "lists": [{ "lid": key(50), "title": "x" }] } });
    let stale = server.ask("POST", "/synchronise").of(&anna).header("sync-lock", fence).json(&body);
    assert_eq!(refused(&server, stale, "stale").await.problem(), (409, "lock_lost".into()));
    assert_eq!(
        server.get("/lock").of(&tablet).send().await.ok()["fence"],
        theirs,
        "the stale one changed nothing"
    );
    // A device that fetches anew begins anew, whatever old fence it still sends along.
    server.turn(20_000);
    let fresh = server.get("/fetch").of(&anna).header("sync-lock", fence).send().await;
    assert!(fresh.fence() > theirs);
}

#[tokio::test]
async fn the_lock_ends_with_the_sync_and_by_word() {
    let (server, anna, _) = furnished().await;
    let tablet = server.device("anna", "tablet");
    let is_free = async || server.get("/lock").of(&tablet).send().await.ok()["held"] == false;
    let post = |body: &str| server.ask("POST", "/synchronise").of(&anna).body(body).send();
    for (body, status) in [("{}", 200), ("{", 400), (r#"{"x":1}"#, 422), (r#"{"base":99}"#, 410)] {
        server.fetch(&anna, "").await.ok();
        assert!(!is_free().await);
        assert_eq!(post(body).await.status, status);
        assert!(is_free().await, "{body}");
    }
    for (body, status) in [(r#"{"keep_lock":true}"#, 200), (r#"{"keep_lock":true,"base":99}"#, 410)] {
        assert_eq!(post(body).await.status, status);
        assert!(!is_free().await, "{body}");
    }
    let end = |device: &Device, query: &str| server.ask("DELETE", &format!("/lock{query}")).of(device).send();
    for query in ["", "?break=false"] {
        assert_eq!(end(&tablet, query).await.status, 204);
        assert!(!is_free().await, "it is not the tablet's to give back");
    }
    assert_eq!(end(&anna, "").await.status, 204);
    assert!(is_free().await);
    assert_eq!(end(&anna, "").await.status, 204);

    let fence = server.fetch(&anna, "").await.fence();
    assert_eq!(end(&tablet, "?break=true").await.status, 204);
    assert!(is_free().await);
    let stale = server.ask("POST", "/synchronise").of(&anna).header("sync-lock", fence).body("{}");
    assert_eq!(refused(&server, stale, "broken").await.problem(), (409, "lock_lost".into()));

    for out in ["logout", "revoke"] {
        let phone = server.device("anna", out);
        server.fetch(&phone, "").await.ok();
        let ask = match out {
            "logout" => server.ask("POST", "/logout").of(&phone),
            _ => server.ask("DELETE", &format!("/devices/{}", phone.id)).of(&anna),
        };
        assert_eq!(ask.send().await.status, 204);
        assert!(is_free().await, "{out}");
    }
    let fence = server.fetch(&anna, "").await.fence();
    let token = anna.token.clone();
    let server = server.restarted();
    let stale = server
        .ask("POST", "/synchronise")
        .of(&Device { token, ..anna })
        .header("sync-lock", fence)
        .body("{}");
    if is_sqlite() {
        assert_eq!(refused(&server, stale, "restart").await.problem(), (409, "lock_lost".into()));
    } else {
        stale.send().await.ok(); // the database has outlived the server, and the lease with it
    }
    assert!(server.fetch(&tablet, "").await.fence() > fence);
}

/// Real concurrency: a request that waits while the holder works, and one that waits in vain.
#[tokio::test(flavor = "multi_thread")]
async fn who_prefers_to_wait_waits() {
    let server = Server::with(|settings| settings.sync.lock_wait_max_s = 1);
    let (anna, tablet) = (server.device("anna", "phone"), server.device("anna", "tablet"));
    let body = json!({ "add": { "lists": [{ "lid": key(1), "title": "x" }] } });
    for prefer in ["wait=1", "wait=600", "Wait=1", "respond-async, wait=1", "wait = \"1\""] {
        for ask in [
            server.get("/fetch"),
            server.ask("POST", "/lock"),
            server.ask("POST", "/synchronise").json(&body),
        ] {
            server.fetch(&anna, "").await.ok();
            let mut waiting = tokio::spawn(ask.of(&tablet).header("prefer", prefer).send());
            let early = tokio::time::timeout(Duration::from_millis(60), &mut waiting).await;
            assert!(early.is_err(), "{prefer}: it did not wait: {early:?}");
            server.ask("DELETE", "/lock").of(&anna).send().await;
            assert_eq!(waiting.await.unwrap().status, 200, "{prefer}");
            server.ask("DELETE", "/lock").of(&tablet).send().await;
        }
    }
    server.fetch(&anna, "").await.ok();
    for (prefer, waits) in
        [("wait=600", true), ("wait=0", false), ("wait=soon", false), ("wait=-1", false), ("", false)]
    {
        let started = Instant::now();
        let answer = server.get("/fetch").of(&tablet).header("prefer", prefer).send().await;
        assert_eq!(answer.problem(), (423, "sync_in_progress".into()), "{prefer}");
        assert_eq!(
            started.elapsed() >= Duration::from_millis(990),
            waits,
            "{prefer}: {:?}",
            started.elapsed()
        );
    }
}

/// Keeps all others from writing for Anna until the returned sender is dropped; in SQLite, for anyone.
fn hold_the_writer(server: &Server) -> std::sync::mpsc::Sender<()> {
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (end, may_end) = std::sync::mpsc::channel::<()>();
    let storage = std::sync::Arc::clone(&server.app.storage);
    let someone = server.owner("anna");
    std::thread::spawn(move || {
        storage.write(someone, move |_| {
            begun.send(()).unwrap();
            let _ = may_end.recv();
            Err::<(), _>(StorageError::Busy)
        })
    });
    has_begun.recv().unwrap();
    end
}

/// Goal: if a lock is broken while its holder writes, that write is rolled back, and no device enters before.
/// Method: the holder's request waits for the database's writer. (In PostgreSQL the lock is in the row that
/// it waits for: see `tests/program/replicas.rs`.)
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_broken_at_work_undoes_the_work() {
    if !is_sqlite() {
        return;
    }
    let (server, anna, ben) = furnished().await;
    let tablet = server.device("anna", "tablet");
    let before = server.dump();
    let end = hold_the_writer(&server);
    let body = json!({ "add": { "lists": [{ "lid": key(50), "title": "x" }] } });
    let mut writing = tokio::spawn(server.ask("POST", "/synchronise").of(&anna).json(&body).send());
    let early = tokio::time::timeout(Duration::from_millis(100), &mut writing).await;
    assert!(early.is_err(), "it did not wait: {early:?}");
    server.turn(60_000);
    assert_eq!(server.fetch(&tablet, "").await.status, 423, "work goes on, long after the lease");
    assert_eq!(server.fetch(&ben, "").await.status, 200, "readers of other owners wait for nobody");
    assert_eq!(server.ask("DELETE", "/lock?break=true").of(&tablet).send().await.status, 204);
    assert_eq!(server.fetch(&tablet, "").await.status, 423, "until the work has been undone");
    drop(end);
    assert_eq!(writing.await.unwrap().problem(), (409, "lock_lost".into()));
    assert_eq!(server.dump(), before);
    assert_eq!(server.fetch(&tablet, "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stays_busy_is_told() {
    let server = Server::with(|settings| settings.limits.busy_wait_ms = 50);
    let (anna, _ben) = (server.device("anna", "phone"), server.device("ben", "phone"));
    let end = hold_the_writer(&server);
    let body = json!({ "add": { "lists": [{ "lid": key(1), "title": "x" }] } });
    let ask = server.ask("POST", "/synchronise").of(&anna).json(&body);
    let answer = refused(&server, ask.clone(), "busy").await;
    assert_eq!(answer.problem(), (503, "busy".into()));
    assert_eq!(answer.header("retry-after"), Some("1"));
    server.fetch(&anna, "?lock=false").await.ok();
    drop(end);
    let result = ask.send().await;
    assert!(result.status == 200 || result.status == 503, "{result:?}");
}

/// Goal: no write of two devices at once is lost or torn. Method: real threads, each raising its own rows.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_write_at_once_lose_nothing() {
    let server = Server::new();
    let devices: Vec<_> = (0..4).map(|n| server.device("anna", &format!("{n}"))).collect();
    let mut tasks = Vec::new();
    for (n, device) in devices.iter().enumerate() {
        for round in 0..8 {
            let rows: Vec<_> = (0..5)
                .map(|i| json!({ "lid": key((n * 100 + round * 10 + i) as u64), "title": "x" }))
                .collect();
            let ask = server.ask("POST", "/synchronise").of(device).header("prefer", "wait=20");
            tasks.push(tokio::spawn(ask.json(&json!({ "add": { "lists": rows } })).send()));
        }
    }
    let mut versions = Vec::new();
    for task in tasks {
        let answer = task.await.unwrap();
        assert_eq!(verdicts(&answer.ok(), "add", "lists"), ["added"; 5]);
        versions.push(answer.version());
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 32, "each write has a version of its own");
    assert_eq!(server.manifest(&devices[0]).await["lists"].as_array().unwrap().len(), 160);
}
