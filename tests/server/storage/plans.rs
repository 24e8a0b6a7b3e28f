//! How PostgreSQL carries statements out: by an index each, whatever other owners have. (SQLite: the plans are held by the
//! unit tests of its engine.)

use postgres::{Client, NoTls, SimpleQueryMessage};
use rollcall_postgres::{planned, statements};

use super::*;

/// Much of everything, of 500 owners and 200 users.
const MUCH: [&str; 11] = [
    "INSERT INTO rollcall_owner (owner, version, horizon, live_rows, live_bytes, seed, due_at)
       SELECT md5('o' || n)::uuid, 1, 1, 0, 0, 'x', CASE WHEN n % 100 = 0 THEN n END FROM generate_series(0, 20000) n",
    "INSERT INTO rollcall_ack (owner, device, version, at)
       SELECT md5('o' || n % 500)::uuid, md5('d' || n)::uuid, 1, n FROM generate_series(1, 20000) n",
    "INSERT INTO rollcall_day (owner, day, version)
       SELECT md5('o' || n % 500)::uuid, n, 1 FROM generate_series(1, 20000) n",
    "INSERT INTO rollcall_installation (owner, device, user_id, token_device, counter, seen_at)
       SELECT md5('o' || n % 500)::uuid, md5('d' || n)::uuid, md5('u')::uuid, md5('t')::uuid, 1, n
       FROM generate_series(1, 20000) n",
    "INSERT INTO rollcall_delete_window (owner, device, tbl, began, version, live_rows, deletes)
       SELECT md5('o' || n % 500)::uuid, md5('d' || n)::uuid, 1, n, 1, 1, 1 FROM generate_series(1, 20000) n",
    "INSERT INTO rollcall_user (id, email, password_hash, owner, created_at)
       SELECT md5('u' || n)::uuid, 'u' || n, 'hash', md5('o' || n)::uuid, 1 FROM generate_series(1, 200) n",
    "INSERT INTO rollcall_device (id, user_id, name, token_hash, created_at, expires_at, seen_at, seen_from)
       SELECT md5('d' || n)::uuid, md5('u' || 1 + n % 200)::uuid, 'phone', decode(md5('t' || n), 'hex'), n, 1, n, '::1'
       FROM generate_series(1, 20000) n",
    "INSERT INTO rollcall_history (owner, tbl, key, version, last_update, changed_by, columns)
       SELECT md5('o' || n % 500)::uuid, 1, md5('k' || n)::uuid, n, 1, md5('d' || n)::uuid, '{}'
       FROM generate_series(1, 20000) n",
    "INSERT INTO rollcall_ledger (owner, tbl, key, version, created, last_update, deleted, made_by, changed_by)
       SELECT md5('o' || n % 500)::uuid, 1, md5('k' || n)::uuid, n, n, 1, n % 3 = 0, md5('d' || n)::uuid, md5('d' || n)::uuid
       FROM generate_series(1, 40000) n",
    "INSERT INTO rollcall_conflict (owner, id, at, tbl, key, policy, resolution, stored_at, stored_by, incoming_at, incoming_by)
       SELECT md5('o' || n % 500)::uuid, md5('c' || n)::uuid, n, 1, md5('k' || n)::uuid, 'newest', 'kept', 1,
         md5('d' || n)::uuid, 1, md5('d' || n)::uuid
       FROM generate_series(1, 20000) n",
    "INSERT INTO rollcall_answer (owner, device, key, at, version, body_hash, body)
       SELECT md5('o' || n % 500)::uuid, md5('d' || n % 5000)::uuid, 'key' || n, n, 1, 'x', 'y'
       FROM generate_series(1, 20000) n",
];

/// The plan that the statement has for any parameters.
fn plan(client: &mut Client, sql: &str) -> Vec<String> {
    let parameters = (1..=99).take_while(|n| sql.contains(&format!("${n}"))).count();
    let given = vec!["NULL"; parameters].join(", ");
    client
        .batch_execute(&format!("PREPARE looked AS {sql}"))
        .unwrap_or_else(|error| panic!("{error}: {sql}"));
    let lines = client.simple_query(&format!("EXPLAIN (COSTS OFF) EXECUTE looked({given})")).unwrap();
    client.batch_execute("DEALLOCATE looked").unwrap();
    let line = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    lines.iter().filter_map(line).collect()
}

/// Goal: no request, and no purge, reads more of the database than it is about. Method: the plans of statements, over tables
/// that other owners have filled.
#[test]
fn no_statement_reads_a_whole_table_or_sorts_on_postgres() {
    if !Engine::has_plans() {
        return;
    }
    let mut store = Store::of(Engine::Postgres);
    let _storage = start(&store).unwrap();
    store.look();
    MUCH.iter().for_each(|sql| store.sql(sql));
    store.sql("ANALYZE");
    let mut client = Client::connect(&store.url(), NoTls).unwrap();
    client.batch_execute("SET plan_cache_mode = force_generic_plan").unwrap();
    let walked = [
        planned::OLDEST_STATES,
        statements::WALK,
        statements::MANIFEST,
        statements::OLD_TOMBSTONES,
        statements::DUE_OWNERS,
    ];
    let found = [
        planned::WINDOWS,
        planned::FORGET_WINDOWS,
        planned::FORGET_OLD_WINDOWS,
        planned::SIGHTINGS,
        planned::NOTE_SIGHTING,
        planned::FORGET_STATES,
        planned::FORGET_OLDEST_RESPONSES,
        planned::OLDEST_RESPONSES,
        statements::SURPLUS_STATES,
        statements::OLDEST,
        statements::FORGET_RESPONSES,
        statements::FORGET_LONG_RESPONSES,
    ];
    let all = walked.iter().chain(&found).chain(&planned::COUNTS);
    for sql in all {
        let plan = plan(&mut client, sql);
        assert!(plan.iter().any(|step| step.contains("Index")), "{plan:#?}\n{sql}");
        assert!(!plan.iter().any(|step| step.contains("Seq Scan")), "{plan:#?}\n{sql}");
        // Those that have an order walk along an index, from where they begin.
        let sorts = plan.iter().any(|step| step.contains("Sort"));
        assert!(!sorts || !walked.contains(sql), "{plan:#?}\n{sql}");
    }
    let put = plan(&mut client, planned::PUT_WINDOW);
    assert!(put.iter().any(|step| step.contains("Conflict Arbiter Indexes")), "{put:#?}");
    // A test that finds nothing wrong must be able to: without its index, a statement reads the whole table.
    client.batch_execute("DROP INDEX rollcall_history_version").unwrap();
    let sorted = plan(&mut client, planned::OLDEST_STATES);
    assert!(sorted.iter().any(|step| step.contains("Sort")), "{sorted:#?}");
}
