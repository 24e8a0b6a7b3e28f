//! Whatever anyone may send.

use super::*;

fn any_scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (0..6_u64).prop_map(|n| json!(key(n))),
        2 => "[a-zü]{0,3}".prop_map(Value::from),
        1 => any::<String>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        2 => Just(Value::Null),
        2 => (0..10_i64).prop_map(|s| json!(format!("2025-06-15 15:06:{:02}", s + 35))),
        1 => Just(json!("9999-12-31 23:59:59")),
        1 => Just(json!("12.5")),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    any_scalar().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z_~/]{0,3}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// One item of a list: mostly a row, or a key, that could be right.
fn any_item(operation: &'static str, table: &'static str) -> BoxedStrategy<Value> {
    let (name, columns): (&str, &[&str]) = match table {
        "items" => ("iid", &["title", "list"]),
        "lists" => ("lid", &["title", "colour"]),
        "nodes" => ("id", &["name", "parent", "twin"]),
        "things" => ("id", &["text", "whole", "flag", "other", "at", "extra"]),
        _ => ("id", &["title"]),
    };
    let value = |name: &str| -> BoxedStrategy<Value> {
        let likely = match name {
            "list" | "parent" | "twin" | "other" => (0..6_u64).prop_map(|n| json!(key(n))).boxed(),
            "whole" => any::<i32>().prop_map(Value::from).boxed(),
            "flag" => any::<bool>().prop_map(Value::from).boxed(),
            "extra" => any_json().boxed(),
            "last_update" | "_base" | "at" => {
                (0..60_i64).prop_map(|s| json!(format!("2025-06-15 15:{:02}:{s:02}", s % 25))).boxed()
            }
            _ => "[a-zü]{1,3}".prop_map(Value::from).boxed(),
        };
        prop_oneof![60 => likely, 1 => any_json()].boxed()
    };
    let member = prop::sample::select([columns, &["last_update", "_base"]].concat());
    let members = member.prop_flat_map(move |name| (Just(name), value(name)));
    let row = ((0..6_u64), prop::collection::vec(members, 0..3), any::<bool>()).prop_map(
        move |(n, members, title)| {
            let mut row = json!({ name: key(n) });
            if title && columns[0] == "title" {
                row["title"] = json!("x");
            }
            for (member, value) in members {
                row[member] = value;
            }
            row
        },
    );
    let likely = match operation {
        "add" | "update" => row.boxed(),
        _ => (0..6_u64).prop_map(|n| json!(key(n))).boxed(),
    };
    prop_oneof![60 => likely, 1 => any_json()].boxed()
}

fn any_batch() -> impl Strategy<Value = Value> {
    let table =
        prop::sample::select(vec!["items", "lists", "lists", "nodes", "nodes", "things", "ours", "theirs"]);
    let operation = prop::sample::select(vec!["add", "add", "update", "delete", "get"]);
    let set = (operation, table).prop_flat_map(|(operation, table)| {
        (Just(operation), Just(table), prop::collection::vec(any_item(operation, table), 0..5))
    });
    let switch = prop_oneof![
        3 => (0..300_u64).prop_map(|base| ("base", json!(base))),
        3 => any::<bool>().prop_map(|on| ("atomic", json!(on))),
        3 => Just(("sent_at", json!("2025-06-15 16:06:40"))),
        3 => any::<bool>().prop_map(|on| ("put_back", json!(on))),
        1 => any_json().prop_map(|value| ("confirm_deletes", value)),
        1 => any_json().prop_map(|value| ("update", value)),
    ];
    (prop::collection::vec(set, 0..5), prop::option::weighted(0.3, switch)).prop_map(|(sets, switch)| {
        let mut batch = json!({});
        for (operation, table, items) in sets {
            batch[operation][table] = json!(items);
        }
        if let Some((name, value)) = switch {
            batch[name] = value;
        }
        batch
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let cut = |text: String, at: prop::sample::Index, byte: Option<u8>| {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        match byte {
            Some(byte) => bytes[at] = byte,
            None => bytes.truncate(at),
        }
        bytes
    };
    prop_oneof![
        10 => any_batch().prop_map(|batch| batch.to_string().into_bytes()),
        2 => (any_batch(), any::<prop::sample::Index>(), any::<Option<u8>>())
            .prop_map(move |(batch, at, byte)| cut(batch.to_string(), at, byte)),
        1 => any_json().prop_map(|json| json.to_string().into_bytes()),
        1 => any::<Vec<u8>>(),
    ]
}

/// Goal: whatever is sent, the server neither fails nor writes half of it. Method: random bodies of two
/// devices on one database; after each, the committed data is checked.
#[test]
fn no_body_makes_the_server_fail() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = Server::new();
    let devices = [server.device("anna", "phone"), server.device("anna", "tablet")];
    let cases = if is_sqlite() { 1_000 } else { 200 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let (taken, written) = (Cell::new(0), Cell::new(0));
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&(any_body(), 0..2_usize), |(body, who)| {
        // A conflict is recorded even if nothing of the rows changes.
        let held = || {
            let mut tables = server.dump();
            // So is which device knows a row ahead of its cursor.
            tables.retain(|name, _| !["rollcall_conflict", "rollcall_ledger"].contains(&name.as_str()));
            // Also the versions up to which devices know rows, and the size of conflicts, in the last columns
            // but five.
            for owner in tables.get_mut("rollcall_owner").into_iter().flatten().filter(|_| is_sqlite()) {
                let columns: Vec<&str> = owner.rsplitn(12, ", ").collect();
                *owner = columns[11].to_owned();
            }
            tables
        };
        let (version, rows) = (server.version_of("anna"), held());
        let answer = runtime.block_on(server.ask("POST", "/synchronise").of(&devices[who]).body(body).send());
        runtime.block_on(server.ask("DELETE", "/lock").of(&devices[who]).send());
        let changed = held() != rows;
        prop_assert!(answer.status < 500, "{}", String::from_utf8_lossy(&answer.bytes));
        prop_assert!(answer.status == 200 || !changed, "{}: something was written", answer.status);
        if answer.status == 200 {
            taken.set(taken.get() + 1);
            let now = answer.version();
            // Without a new version nothing was written, except the owner itself by its first request.
            prop_assert!(now >= version && (now > version || !changed), "{} to {}", version, now);
            written.set(written.get() + u64::from(now > version.max(1)));
        }
        server.check_whole();
        server.turn(700);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (taken, written) = (taken.get(), written.get());
    assert!(
        taken * 4 > cases && written * 10 > u64::from(cases),
        "too little was right to say much: {taken} taken, {written} written"
    );
}
