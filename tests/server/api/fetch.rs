//! Phase 1: `GET /fetch`.

use super::*;

#[tokio::test]
async fn the_roll_call_lists_what_is_held() {
    let (server, anna, ben) = furnished().await;
    let answer = server.fetch(&anna, "?lock=false").await;
    let at = server.time(0);
    let result = answer.ok();
    assert_eq!(
        result,
        json!({
            "items": [{ "iid": key(1), "last_update": at }],
            "lists": [{ "lid": key(1), "last_update": at }, { "lid": key(2), "last_update": at }],
            "nodes": [{ "id": key(1), "last_update": at }, { "id": key(2), "last_update": at }],
            "things": [], "ours": [], "theirs": [],
        })
    );
    assert!(answer.header("sync-lock").is_none(), "?lock=false takes no lock");
    assert_eq!(
        server.fetch(&ben, "?lock=false&tables=lists").await.ok()["lists"].as_array().unwrap().len(),
        2
    );

    let order = |answer: &Answer| -> Vec<String> {
        let body = String::from_utf8(answer.bytes.clone()).unwrap();
        let mut names: Vec<_> = answer.json().as_object().unwrap().keys().cloned().collect();
        names.sort_by_key(|name| body.find(&format!("\"{name}\":[")).unwrap());
        names
    };
    for (query, expected) in [
        ("?tables=lists", &["lists"][..]),
        ("?tables=nodes,lists,items", &["nodes", "lists", "items"]),
        ("?tables=lists,lists", &["lists"]),
        ("?tables=lists%2Cnodes", &["lists", "nodes"]),
        ("", &["items", "lists", "nodes", "things", "ours", "theirs"]),
    ] {
        assert_eq!(order(&server.fetch(&anna, query).await), expected, "{query}");
    }
    let twin = server.get("/fetch.json?tables=lists").of(&anna).send().await;
    let first = server.get("/fetch?tables=lists").of(&anna).send().await;
    assert_eq!((twin.bytes, twin.headers), (first.bytes, first.headers));
}

#[tokio::test]
async fn an_unchanged_roll_call_is_304() {
    let (server, anna, ben) = furnished().await;
    let ask = |device: &Device, query: &str, tag: &str| {
        server.get(&format!("/fetch{query}")).of(device).header("if-none-match", tag)
    };
    let first = server.fetch(&anna, "").await;
    let tag = first.header("etag").unwrap().to_owned();
    assert!(tag.starts_with("W/\""), "{tag}");
    assert_eq!(first.header("cache-control"), Some("private, no-cache"));

    let strong = tag.trim_start_matches("W/").to_owned();
    for known in [tag.clone(), strong, "*".into(), format!("\"x\", {tag}"), format!("{tag},W/\"y\"")] {
        let answer = ask(&anna, "", &known).send().await;
        assert_eq!(answer.status, 304, "{known}");
        assert_eq!(answer.header("etag"), Some(tag.as_str()));
        assert_eq!(answer.version(), first.version());
        assert_eq!(answer.fence(), first.fence(), "a 304 takes the lock too");
    }
    let two_lines =
        server.get("/fetch").of(&anna).header("if-none-match", "\"x\"").header("if-none-match", &tag);
    assert_eq!(two_lines.send().await.status, 304);

    // The same question at the same version: all that differs is whose rows they are.
    let mut n = 100;
    while server.version_of("ben") < first.version() {
        n += 1;
        server.sync(&ben, json!({ "add": { "lists": [{ "lid": key(n), "title": "x" }] } })).await.ok();
    }
    let theirs = server.fetch(&ben, "").await;
    assert_eq!(theirs.version(), first.version(), "the version alone must not tell them apart");
    let bens = theirs.header("etag").unwrap().to_owned();
    let others = server.fetch(&anna, "?tables=lists").await.header("etag").unwrap().to_owned();
    for known in [bens.as_str(), others.as_str(), "W/\"0\"", "", "x", &tag[..tag.len() - 2]] {
        assert_eq!(ask(&anna, "", known).send().await.status, 200, "{known}");
    }
    assert_eq!(ask(&anna, "?tables=lists,items", &others).send().await.status, 200);

    // A write that changes nothing leaves the tag as it is; one that does ends it.
    server.sync(&anna, json!({ "delete": { "lists": [key(0xdead)] } })).await.ok();
    assert_eq!(ask(&anna, "?lock=false", &tag).send().await.status, 304);
    server.sync(&anna, json!({ "add": { "lists": [{ "lid": key(3), "title": "new" }] } })).await.ok();
    let answer = ask(&anna, "", &tag).send().await;
    assert_eq!(answer.status, 200);
    assert_ne!(answer.header("etag"), Some(tag.as_str()));
    assert_eq!(ask(&ben, "", &bens).send().await.status, 304, "another owner's write is none of ours");
}

/// The path and query of the next page.
fn next_of(path: &str, answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let query = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
    // Without a path: behind a proxy it would lead elsewhere.
    let query = query.filter(|query| query.starts_with('?')).unwrap_or_else(|| panic!("{link}"));
    Some(format!("{path}{query}"))
}

/// Goal: pages make the whole, for every page size and number of rows. Method: against one large page.
#[tokio::test]
async fn pages_agree_with_one_version() {
    for (items, lists, rows_max) in [
        (0, 0, 1),
        (3, 2, 1),
        (3, 2, 2),
        (3, 2, 3),
        (3, 2, 4),
        (3, 2, 5),
        (3, 2, 6),
        (0, 4, 2),
        (4, 0, 2),
        (4, 4, 4),
    ] {
        let server = Server::with(|settings| settings.sync.fetch_rows_max = rows_max);
        let anna = server.device("anna", "phone");
        let batch = json!({ "add": {
            "items": (0..items).map(|n| json!({ "iid": key(n), "title": "x" })).collect::<Vec<_>>(),
            "lists": (0..lists).map(|n| json!({ "lid": key(n), "title": "x" })).collect::<Vec<_>>(),
        } });
        server.sync(&anna, batch).await.ok();
        for query in
            ["", "?tables=lists,items", "?tables=lists&lock=false", "?tables=things,lists,ours,items,nodes"]
        {
            for path in ["/fetch", "/fetch.json"] {
                let mut joined = serde_json::Map::new();
                let mut pages = 0;
                let mut next = Some(format!("{path}{query}"));
                let mut versions = Vec::new();
                while let Some(target) = next {
                    assert!(target.starts_with(&format!("{path}?")) || pages == 0, "{target}");
                    let answer = server.get(&target).of(&anna).send().await;
                    versions.push(answer.version());
                    assert_eq!(
                        answer.header("sync-lock").is_none(),
                        query.contains("lock=false"),
                        "{target}"
                    );
                    let mut rows = 0;
                    for (table, entries) in answer.ok().as_object().unwrap() {
                        let entries = entries.as_array().unwrap();
                        rows += entries.len();
                        let all = joined.entry(table.clone()).or_insert_with(|| json!([]));
                        all.as_array_mut().unwrap().extend(entries.iter().cloned());
                    }
                    assert!(rows <= rows_max, "{target}: {rows} rows");
                    let tag = answer.header("etag").unwrap();
                    let again = server.get(&target).of(&anna).header("if-none-match", tag).send().await;
                    assert_eq!(again.status, 304, "{target}: a page has a tag of its own");
                    next = next_of(path, &answer);
                    assert!(next.is_none() || rows > 0, "{target}: an empty page before the last");
                    pages += 1;
                    assert!(pages <= 20);
                }
                let expected_rows =
                    if query.contains("items") || query.is_empty() { items + lists } else { lists };
                let expected_pages = (expected_rows as usize).div_ceil(rows_max).max(1);
                assert_eq!(pages, expected_pages, "{items} {lists} {rows_max} {query}");
                versions.dedup();
                assert_eq!(versions.len(), 1);
                for (table, number) in [("items", items), ("lists", lists)] {
                    let Some(rows) = joined.get(table) else { continue };
                    let name = if table == "items" { "iid" } else { "lid" };
                    let result: Vec<_> =
                        rows.as_array().unwrap().iter().map(|row| row[name].clone()).collect();
                    let expected: Vec<_> = (0..number).map(|n| json!(key(n))).collect();
                    assert_eq!(result, expected, "{table}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_page_of_another_version_is_refused() {
    let server = Server::with(|settings| settings.sync.fetch_rows_max = 1);
    let anna = server.device("anna", "phone");
    let rows =
        json!({ "add": { "lists": [{ "lid": key(1), "title": "x" }, { "lid": key(2), "title": "y" }] } });
    server.sync(&anna, rows).await.ok();
    let next = next_of("/fetch", &server.fetch(&anna, "").await).unwrap();
    server.get(&next).of(&anna).send().await.ok();
    server.sync(&anna, json!({ "update": { "lists": [{ "lid": key(1), "title": "z" }] } })).await.ok();
    for known in [None, Some("*"), Some("W/\"1\"")] {
        let mut ask = server.get(&next).of(&anna);
        if let Some(known) = known {
            ask = ask.header("if-none-match", known);
        }
        assert_eq!(ask.send().await.problem(), (409, "version_moved".into()), "{known:?}");
    }
    // Another owner's page token contains another's version at best, and reveals no rows.
    let ben = server.device("ben", "phone");
    let answer = server.get(&next).of(&ben).send().await;
    assert_eq!(answer.problem(), (409, "version_moved".into()));
}

/// Goal: no page walks along all that was deleted. Method: a table of which nearly all rows are deleted, in small pages; all
/// of them make the whole, and none lies across more entries than it may.
#[tokio::test]
async fn pages_among_deletions_are_bounded() {
    const ROWS: u64 = 200;
    let server = Server::with(|settings| {
        settings.sync.fetch_rows_max = 5;
        settings.sync.page_entries_max = 20;
    });
    let anna = server.device("anna", "phone");
    let rows: Vec<Value> = (0..ROWS).map(|n| json!({ "lid": key(n), "title": "x" })).collect();
    server.sync(&anna, json!({ "add": { "lists": rows } })).await.ok();
    let live = |n: u64| n.is_multiple_of(50) || n > 190;
    let deleted: Vec<String> = (0..ROWS).filter(|n| !live(*n)).map(key).collect();
    server
        .sync(&anna, json!({ "delete": { "lists": deleted }, "confirm_deletes": deleted.len() }))
        .await
        .ok();
    let (mut result, mut pages) = (Vec::new(), 0);
    let mut next = Some("/fetch?lock=false".to_owned());
    while let Some(target) = next {
        let answer = server.get(&target).of(&anna).send().await;
        let listed = answer.ok()["lists"].as_array().unwrap().clone();
        assert!(listed.len() <= 5);
        result.extend(listed.iter().map(|row| row["lid"].clone()));
        next = next_of("/fetch", &answer);
        pages += 1;
    }
    let expected: Vec<Value> = (0..ROWS).filter(|n| live(*n)).map(|n| json!(key(n))).collect();
    assert_eq!(result, expected);
    assert!((ROWS / 25..ROWS / 25 + 4).contains(&pages), "{pages} pages");
}
