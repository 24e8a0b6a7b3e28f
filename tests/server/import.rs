//! An export is put into a server. On the real engines, in this process.

use rollcall_testkit::app;

use std::io::Cursor;

use app::engine::pg::apart;
use app::{Server, key};
use rollcall::clock::Clock;
use rollcall::config::Limits;
use rollcall::import::file::ExportFile;
use rollcall::import::{Import, ImportError, Imported, Others, Recipient, Step, Watch};
use rollcall::model::{Owner, Role};
use serde_json::{Value, json};
use uuid::Uuid;

/// What an import reports, and when it is interrupted.
#[derive(Default)]
struct Seen {
    rejected: Vec<Value>,
    steps: usize,
    steps_max: Option<usize>,
}

impl Watch for Seen {
    fn step(&mut self, _: Step) -> bool {
        self.steps += 1;
        self.steps_max.is_none_or(|max| self.steps < max)
    }

    fn rejected(&mut self, row: &Value) -> std::io::Result<()> {
        self.rejected.push(row.clone());
        Ok(())
    }
}

/// An import into a server, for the user `anna`.
struct Case<'a> {
    server: &'a Server,
    text: String,
    others: Others,
    limits: Limits,
    is_dry_run: bool,
    seen: Seen,
}

impl<'a> Case<'a> {
    fn new(server: &'a Server, lines: &[Value]) -> Self {
        let text = lines.iter().map(|line| format!("{line}\n")).collect();
        let (others, limits) = (Others::Managed, Limits::default());
        Self { server, text, others, limits, is_dry_run: false, seen: Seen::default() }
    }

    fn run(&mut self) -> Result<Vec<Imported>, ImportError> {
        let email = "anna@example.org";
        let Self { server, text, others, limits, is_dry_run, seen } = self;
        apart(move || {
            let user = server.app.storage.accounts().user(email).unwrap().unwrap();
            let clock = server.app.clock.clone();
            run(server, text, &Recipient::User(user), *others, (limits, &clock, *is_dry_run), seen)
        })
    }

    /// The counts of the first owner.
    #[track_caller]
    fn counts(&mut self) -> Value {
        json!(self.run().unwrap()[0].result.clone().unwrap().1)
    }
}

fn run(
    server: &Server,
    text: &str,
    recipient: &Recipient,
    others: Others,
    (limits, clock, is_dry_run): (&Limits, &Clock, bool),
    seen: &mut Seen,
) -> Result<Vec<Imported>, ImportError> {
    let mut file = ExportFile::open(Cursor::new(text.as_bytes().to_vec()))?;
    let import =
        Import { storage: &*server.app.storage, schema: &server.app.schema, limits, clock, is_dry_run };
    import.run(&mut file, recipient, others, seen)
}

fn account(server: &Server, owners: usize) -> Value {
    let tables = rollcall::export::tables_of(&server.app.schema);
    json!({ "op": "account", "user": key(1), "owner": key(2), "name": "", "role": "manage", "owners": owners, "tables": tables })
}

fn row(table: &str, row: Value) -> Value {
    json!({ "op": "add", "table": table, "row": row })
}

fn end() -> Value {
    json!({ "op": "end", "type": "full", "version": 1 })
}

fn node(n: u64, parent: Option<u64>) -> Value {
    row(
        "nodes",
        json!({ "id": key(n), "parent": parent.map(key), "twin": null, "name": "x", "last_update": "2013-05-01T08:00:00.000Z" }),
    )
}

/// Goal: rows come in that refer to rows of their own table, in whatever order and however far apart. Method: a chain of
/// which the export has the children first, over several batches; a ring; a row that refers to nothing; each once more.
#[test]
fn a_row_comes_after_those_that_it_refers_to() {
    let server = Server::new();
    server.device("anna", "phone");
    let mut lines = vec![account(&server, 1)];
    lines.extend((1..=1_200).rev().map(|n| node(n, (n > 1).then(|| n - 1))));
    lines.extend([node(5_001, Some(5_003)), node(5_002, Some(5_001))]);
    lines.extend((6_000..6_600).map(|n| node(n, None)));
    lines.extend([node(5_003, Some(5_002)), node(7_000, Some(7_001)), end()]);
    let mut case = Case::new(&server, &lines);
    let before = server.dump();
    case.is_dry_run = true;
    assert_eq!(case.counts(), json!({ "added": 1_804 }));
    assert_eq!(server.dump(), before);

    case.is_dry_run = false;
    assert_eq!(case.counts(), json!({ "added": 1_803, "rejected": 1 }));
    let rejected = &case.seen.rejected[0];
    assert_eq!((&rejected["key"], &rejected["code"]), (&json!(key(7_000)), &json!("reference_missing")));
    assert_eq!((&rejected["owner"], &rejected["column"]), (&json!(key(2)), &json!("parent")));
    assert_eq!(rejected["row"]["id"], json!(key(7_000)));
    let whole = server.dump();
    assert_eq!(case.counts(), json!({ "rejected": 1, "same": 1_803 }));
    assert_eq!(server.dump(), whole, "an import that is repeated changes nothing");
}

/// Goal: an interrupted import goes on. Method: it is stopped after one batch; then the rest.
#[test]
fn an_interrupted_import_goes_on() {
    let server = Server::new();
    server.device("anna", "phone");
    let mut lines = vec![account(&server, 1)];
    lines.extend((1..=1_100).map(|n| node(n, None)));
    lines.push(end());
    let mut case = Case::new(&server, &lines);
    case.seen.steps_max = Some(1);
    let stopped = case.run();
    assert!(matches!(stopped, Err(ImportError::Interrupted)), "{stopped:?}");
    assert_eq!(server.number("SELECT count(*) FROM nodes"), 500);
    case.seen = Seen::default();
    assert_eq!(case.counts(), json!({ "added": 600, "same": 500 }));
}

/// Goal: the rules of an upload hold, and nobody's later edit is lost. Method: rows that the user has deleted and changed
/// since, a value that is too long, one of another type, and a full owner.
#[tokio::test]
async fn the_rules_of_an_upload_hold() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let list = |n: u64, title: Value, at: &str| {
        row("lists", json!({ "lid": key(n), "title": title, "colour": null, "last_update": at }))
    };
    let then = "2013-05-01T08:00:00.000Z";
    let lines = [
        account(&server, 1),
        list(1, json!("deleted"), then),
        list(2, json!("changed"), then),
        list(3, json!("x".repeat(21)), then),
        list(4, json!(7), then),
        list(5, json!("good"), then),
        row("items", json!({ "iid": key(1), "title": "of a list that is rejected", "list": key(3) })),
        end(),
    ];
    let both = json!({ "lists": [{ "lid": key(1), "title": "a" }, { "lid": key(2), "title": "b" }] });
    server.sync(&anna, json!({ "add": both })).await.ok();
    server.sync(&anna, json!({ "delete": { "lists": [key(1)] } })).await.ok();
    let conflicts = server.get("/conflicts").of(&anna).send().await.ok();
    let mut case = Case::new(&server, &lines);
    case.limits.owner_rows_max = 1;
    let full = case.run();
    assert!(matches!(&full, Err(ImportError::Quota { reason, .. }) if reason.contains("1 rows")), "{full:?}");
    case.limits = Limits::default();
    assert_eq!(case.counts(), json!({ "added": 1, "gone": 1, "kept": 1, "rejected": 3 }));
    let codes: Vec<_> = case.seen.rejected.iter().map(|one| one["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["too_long", "wrong_type", "reference_missing"]);
    let good = server.row(&anna, "lists", &key(5)).await.unwrap();
    assert_eq!((&good["title"], &good["last_update"]), (&json!("good"), &json!(then)));
    assert_eq!(server.row(&anna, "lists", &key(2)).await.unwrap()["title"], "b");
    assert_eq!(server.get("/conflicts").of(&anna).send().await.ok(), conflicts);
}

/// Goal: the later line of a row holds. Method: a row that was changed, one that was deleted, and one that was deleted and added
/// again, while the export was under way; and a later export over an earlier one.
#[tokio::test]
async fn the_later_line_of_a_row_holds() {
    let server = Server::new();
    let anna = server.device("anna", "phone");
    let list = |op: &str, n: u64, title: &str, second: u64| {
        let at = format!("2013-05-01T08:00:{second:02}.000Z");
        json!({ "op": op, "table": "lists", "row": { "lid": key(n), "title": title, "colour": null, "last_update": at } })
    };
    let delete = |n: u64| json!({ "op": "delete", "table": "lists", "key": key(n) });
    let lines = [
        account(&server, 1),
        list("add", 1, "a", 1),
        list("add", 2, "b", 1),
        list("add", 3, "c", 1),
        list("update", 1, "changed", 2),
        delete(2),
        delete(3),
        list("add", 3, "again", 3),
        end(),
    ];
    assert_eq!(Case::new(&server, &lines).counts(), json!({ "added": 2, "updated": 2 }));
    let titles = async || {
        let mut titles = Vec::new();
        for n in 1..=3 {
            titles.push(server.row(&anna, "lists", &key(n)).await.map(|row| row["title"].clone()));
        }
        json!(titles)
    };
    assert_eq!(titles().await, json!(["changed", null, "again"]));
    let later = [account(&server, 1), list("add", 1, "later", 9), list("add", 3, "again", 3), end()];
    assert_eq!(Case::new(&server, &later).counts(), json!({ "same": 1, "updated": 1 }));
    assert_eq!(titles().await, json!(["later", null, "again"]));
    assert_eq!(server.get("/conflicts").of(&anna).send().await.ok()["conflicts"], json!([]));
}

/// Goal: each owner has its place, and nobody gets rights by an import. Method: owners that the user managed, read, and has
/// here; each choice; and a second import.
#[test]
fn each_owner_has_its_place() {
    let server = Server::new();
    for user in ["anna", "ben", "carl"] {
        server.device(user, "phone");
    }
    server.admit("ben", "anna", Role::Write);
    server.admit("carl", "anna", Role::Read);
    let (bens, carls) = (server.owner("ben"), server.owner("carl"));
    let owner = |owner: Value, name: &str, role: Value| json!({ "op": "owner", "owner": owner, "name": name, "role": role });
    let lines = [
        account(&server, 5),
        node(1, None),
        end(),
        owner(json!(key(21)), "Our wedding", json!("manage")),
        node(1, None),
        end(),
        owner(json!(key(22)), "Our team", json!("read")),
        node(1, None),
        end(),
        owner(json!(bens), "", json!("write")),
        node(1, None),
        end(),
        owner(json!(carls), "", json!("read")),
        node(1, None),
        end(),
    ];
    let mut case = Case::new(&server, &lines);
    let targets = |imported: &[Imported]| -> Vec<Option<Owner>> {
        imported.iter().map(|one| one.result.as_ref().ok().map(|(owner, _)| *owner)).collect()
    };
    case.others = Others::None;
    assert_eq!(targets(&case.run().unwrap()), [Some(server.owner("anna")), None, None, None, None]);

    case.others = Others::Managed;
    let managed = targets(&case.run().unwrap());
    let wedding = managed[1].unwrap();
    assert_eq!(managed, [Some(server.owner("anna")), Some(wedding), None, Some(bens), None]);
    assert_ne!(wedding, Owner(key(21).parse().unwrap()), "an id of a stranger's server is not taken");
    let anna = server.user_id("anna");
    let owners = apart(|| server.app.storage.accounts().owners_of(anna).unwrap());
    let one = owners.iter().find(|one| one.owner == wedding).unwrap();
    assert_eq!((one.name.as_str(), one.role), ("Our wedding", Role::Manage));

    case.others = Others::All;
    let all = targets(&case.run().unwrap());
    assert!(all.iter().all(Option::is_some) && all[1] == Some(wedding) && all[4] != Some(carls), "{all:?}");
    let whole = server.dump();
    assert_eq!(targets(&case.run().unwrap()), all);
    assert_eq!(server.dump(), whole);

    // Who may only read gets nothing in, and the operator names an owner that is there.
    server.admit("anna", "anna", Role::Read);
    let refused = case.run();
    assert!(matches!(refused, Err(ImportError::NotAllowed(_))), "{refused:?}");
    let clock = server.app.clock.clone();
    let limits = Limits::default();
    let text = case.text.clone();
    let operators = |owner: Owner| {
        let mut seen = Seen::default();
        apart(|| {
            run(&server, &text, &Recipient::Owner(owner), Others::All, (&limits, &clock, false), &mut seen)
        })
    };
    assert_eq!(targets(&operators(carls).unwrap()), [Some(carls), None, None, None, None]);
    let unknown = operators(Owner(Uuid::nil()));
    assert!(matches!(unknown, Err(ImportError::NoOwner(_))), "{unknown:?}");
}

/// Goal: nothing is written from a file that is no whole export, or of other tables. Method: such files.
#[test]
fn a_file_that_is_no_whole_export_is_refused() {
    let server = Server::new();
    server.device("anna", "phone");
    let (account, good) = (account(&server, 2), node(1, None));
    let mut other = account.clone();
    other["owners"] = json!(1);
    other["tables"][0]["columns"][0]["type"] = json!("blob");
    let table = other["tables"][0]["name"].as_str().unwrap().to_owned();
    let row_of_it = row(&table, json!({}));
    let cases: [(&[Value], &str); 7] = [
        (&[], "the file is empty"),
        (&[end()], "line 1 is no line of an export"),
        (&[json!({ "op": "account", "owner": key(1) })], "it has no `tables`"),
        (&[account.clone(), good.clone(), end()], "1 of its 2 owners are whole"),
        (&[account.clone(), json!({ "op": "add", "table": "nodes" })], "line 2 is no line of an export"),
        (&[account.clone(), json!({ "op": "strange" })], "strange"),
        (&[other.clone(), row_of_it, end()], "the type is blob in the export"),
    ];
    let before = server.dump();
    for (lines, reason) in cases {
        let refused = Case::new(&server, lines).run().unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    let mut cut = Case::new(&server, &[account, good]);
    cut.text.truncate(cut.text.len() - 10);
    assert!(cut.run().unwrap_err().to_string().contains("line 2"));
    assert_eq!(server.dump(), before);
    // A table without rows keeps nothing out.
    assert_eq!(Case::new(&server, &[other, end()]).counts(), json!({}));
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    app::engine::run_again_on_postgres(module_path!());
}
