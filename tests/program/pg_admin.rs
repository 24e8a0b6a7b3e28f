//! What an operator does with a PostgreSQL database occasionally: a new epoch, distribution by Citus.

use rollcall_testkit::pg;
use rollcall_testkit::process;

use std::process::Output;

use postgres::NoTls;
use process::{Client, Process, bearer, call, log_in, rollcall};
use serde_json::json;

const SCHEMA: &str = "fixtures/wedding/schema.toml";
const PASSWORD: &str = "something borrowed";
const KEY: &str = "083dc833-4e73-4fb7-838e-efe1f379a1b1";

fn served(url: &str) -> Process {
    let mut command = rollcall();
    command.args(["serve", "--schema", SCHEMA, "--listen", "127.0.0.1:0", "--log", "warn"]);
    Process::start(command.args(["--database", url]))
}

fn ran(args: &[&str]) -> Output {
    rollcall().args(args).output().unwrap()
}

#[track_caller]
fn result(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Goal: after a database was put back to an earlier time, no device believes that it has seen everything.
/// Method: the epoch is raised, twice; cursors, stored responses and fences from before.
#[test]
fn a_new_epoch_ends_every_cursor_of_before() {
    let Some(database) = pg::cluster().map(pg::Cluster::database) else { return };
    let mut server = served(&database.url);
    let address = server.address();
    let anna = json!({ "email": "anna@example.com", "password": PASSWORD });
    assert_eq!(call(address, "POST /register", None, Some(&anna)).status, 201);
    let token = log_in(address, "anna@example.com", PASSWORD, "phone");
    let send = |address, title: &str| {
        let body = json!({ "add": { "todo": [{ "id": KEY, "title": title }] } }).to_string();
        let headers = [bearer(&token), "idempotency-key: once".to_owned()];
        Client::connect(address).unwrap().call("POST /synchronise", &headers, Some(&body)).unwrap()
    };
    let given = send(address, "x");
    assert_eq!(given.status, 200, "{}", given.text());
    let mut cursor = given.json()["version"].as_u64().unwrap();
    let mut fence = call(address, "GET /fetch", Some(&token), None).number("sync-lock");
    drop(server);

    let epochs = [0, 1].map(|_| {
        let line = result(&ran(&["epoch", "--database", &database.url]));
        let mut words = line.split_whitespace();
        assert!(line.starts_with("epoch ") && line.contains(" begins for 1 owners;"), "{line:?}");
        words.nth(1).unwrap().parse::<u64>().unwrap()
    });
    assert!(epochs[0] > 0 && epochs[1] == epochs[0] + 1, "{epochs:?}");

    let mut server = served(&database.url);
    let address = server.address();
    for old in [1, cursor, cursor + 1, epochs[0] << 40 | 1] {
        let answer = call(address, &format!("GET /changes?since={old}"), Some(&token), None);
        assert_eq!((answer.status, &answer.json()["code"]), (410, &json!("cursor_expired")), "{old}");
    }
    let all = call(address, "GET /changes", Some(&token), None).json();
    assert_eq!(all["add"]["todo"][0]["id"], KEY, "{all}");
    assert_eq!(all["version"].as_u64().unwrap(), epochs[1] << 40 | 1);
    let fetched = call(address, "GET /fetch", Some(&token), None);
    assert!(fetched.number("sync-lock") > fence, "a fence was given out twice");
    fence = fetched.number("sync-lock");
    // The stored response contained a version that no longer exists: the same request is a new one.
    let again = send(address, "x");
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, None), "{}", again.text());
    cursor = again.json()["version"].as_u64().unwrap();
    assert_eq!(call(address, &format!("GET /changes?since={cursor}"), Some(&token), None).status, 200);
    assert!(fence > 1 << 20);

    let file = ran(&["epoch", "--database", "sqlite:app.db"]);
    assert_eq!(file.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&file.stderr).contains("this is for PostgreSQL; rollcall restore"));
}

/// Goal: a database that was put back without notice gets a new epoch once a server starts on it; an
/// unchanged one keeps its own. Method: the stored signs are those of another cluster, timeline, database or
/// table.
#[test]
fn a_database_that_was_put_back_unsaid_is_noticed() {
    let Some(database) = pg::cluster().map(pg::Cluster::database) else { return };
    let epoch = || -> i64 {
        let mut client = postgres::Client::connect(&database.url, NoTls).unwrap();
        client.query_one("SELECT value FROM rollcall_meta WHERE name = 'epoch'", &[]).unwrap().get(0)
    };
    served(&database.url).address();
    served(&database.url).address();
    assert_eq!(epoch(), 0, "a server that starts again begins no epoch");
    let mut last = 0;
    for sign in ["past_system", "past_timeline", "past_database", "past_table"] {
        let mut client = postgres::Client::connect(&database.url, NoTls).unwrap();
        let spoil = "UPDATE rollcall_meta SET value = value - 1 WHERE name = $1";
        assert_eq!(client.execute(spoil, &[&sign]).unwrap(), 1, "{sign} is noted");
        drop(client);
        served(&database.url).address();
        assert!(epoch() > last, "{sign}");
        last = epoch();
        served(&database.url).address();
        assert_eq!(epoch(), last, "{sign}: once is enough");
    }
    result(&ran(&["epoch", "--database", &database.url]));
    last = epoch();
    served(&database.url).address();
    assert_eq!(epoch(), last, "whoever said so is not told again");
}

/// Functions with the names of Citus' that record their calls, and the table that lists distributed tables.
const STUBS: &str = "
    CREATE TABLE pg_dist_partition (logicalrelid regclass, partmethod \"char\" DEFAULT 'h');
    CREATE TABLE pg_dist_node (nodename text, isactive boolean, shouldhaveshards boolean);
    CREATE TABLE asked (at serial, what text);
    CREATE FUNCTION create_reference_table(name text) RETURNS void LANGUAGE sql AS $$
        INSERT INTO asked (what) VALUES (name || ' everywhere');
        INSERT INTO pg_dist_partition VALUES (name::regclass, 'n') $$;
    CREATE FUNCTION undistribute_table(name text) RETURNS void LANGUAGE sql AS $$
        INSERT INTO asked (what) VALUES (name || ' nowhere');
        DELETE FROM pg_dist_partition WHERE logicalrelid = name::regclass $$;
    CREATE FUNCTION create_distributed_table(name text, col text, colocate_with text) RETURNS void LANGUAGE sql AS $$
        INSERT INTO asked (what) VALUES (name || ' by ' || col || ' beside ' || colocate_with);
        INSERT INTO pg_dist_partition VALUES (name::regclass) $$;";

/// Goal: each table is distributed once, those that others refer to first, however often the command is run.
#[test]
fn each_table_is_distributed_once() {
    let Some(database) = pg::cluster().map(pg::Cluster::database) else { return };
    served(&database.url).address();
    let apply = ["distribute", "--schema", SCHEMA, "--database", &database.url, "--apply"];
    let refused = ran(&apply);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let line = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(line.contains("has no Citus: CREATE EXTENSION citus") && line.lines().count() == 1, "{line}");

    let mut client = postgres::Client::connect(&database.url, NoTls).unwrap();
    client.batch_execute(STUBS).unwrap();
    client.execute("INSERT INTO pg_dist_node VALUES ('coordinator', true, false)", &[]).unwrap();
    let refused = ran(&apply);
    let line = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && line.contains("no node for shards") && line.contains("citus_add_node"),
        "{line}"
    );
    client.execute("INSERT INTO pg_dist_node VALUES ('worker', true, true)", &[]).unwrap();
    let mut asked = || -> Vec<String> {
        let rows = client.query("SELECT what FROM asked ORDER BY at", &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let listed = result(&ran(&["distribute", "--schema", SCHEMA]));
    assert_eq!(asked(), Vec::<String>::new());
    assert_eq!(result(&ran(&apply)), listed);
    let all = asked();
    // What holds users apart over all shards cannot be held by a cluster, and goes first.
    let dropped = listed.lines().filter(|line| line.starts_with("ALTER TABLE rollcall_")).count();
    assert_eq!((dropped, all.len() + dropped), (4, listed.lines().count()), "{listed}");
    let place = |what: &str| {
        let places: Vec<_> = all.iter().enumerate().filter(|(_, asked)| *asked == what).collect();
        assert_eq!(places.len(), 1, "{what} in {all:?}");
        places[0].0
    };
    assert_eq!(place("rollcall_meta everywhere"), 0);
    assert!(
        place("rollcall_user by id beside none") < place("rollcall_device by user_id beside rollcall_user")
    );
    place("rollcall_membership by user_id beside rollcall_user");
    place("rollcall_lookup by name beside none");
    place("rollcall_gone by token_hash beside none");
    place("rollcall_member by owner beside rollcall_owner");
    let first = place("rollcall_owner by owner beside none");
    assert!(first < place("rollcall_ledger by owner beside rollcall_owner"));
    let parent = place("\"invitation_categories\" by _owner beside rollcall_owner");
    assert!(first < parent && parent < place("\"invitations\" by _owner beside rollcall_owner"));

    assert_eq!(result(&ran(&apply)), "");
    assert_eq!(asked(), all);
    // An interrupted distribution, or a table that was added later.
    let mut client = postgres::Client::connect(&database.url, NoTls).unwrap();
    client.batch_execute("DELETE FROM pg_dist_partition WHERE logicalrelid = 'todo'::regclass").unwrap();
    let again = result(&ran(&apply));
    assert_eq!(again.lines().count(), 1, "{again}");
    assert_eq!(asked().last().unwrap(), "\"todo\" by _owner beside rollcall_owner");
    // A release that had every node keep all users.
    let copied = "UPDATE pg_dist_partition SET partmethod = 'n'
        WHERE logicalrelid IN ('rollcall_user'::regclass, 'rollcall_device'::regclass, 'rollcall_gone'::regclass)";
    client.batch_execute(copied).unwrap();
    let again = result(&ran(&apply));
    let places: Vec<_> = [
        "undistribute_table('rollcall_user')",
        "create_distributed_table('rollcall_user'",
        "create_distributed_table('rollcall_device'",
        "undistribute_table('rollcall_gone')",
        "create_distributed_table('rollcall_gone'",
    ]
    .map(|part| again.find(part).unwrap())
    .to_vec();
    assert!(places.is_sorted(), "{again}");
    assert_eq!(again.lines().count(), 4 + 3 + 3, "{again}");
}
