//! Digests: a count and a sum that every device can check, and that nobody else can.

use rollcall_testkit::feed as support;

use http::Method;
use rollcall::model::Timestamp;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};
use support::{Copy, Device, Dice, POLICIES, Rows, TABLES, World, key};

/// A device's own computation: `fixtures/digests` and the contract describe these steps.
fn recomputed(world: &World, seed: &str, rows: &Rows) -> Json {
    let seed: Vec<u8> =
        (0..16).map(|at| u8::from_str_radix(&seed[2 * at..2 * at + 2], 16).unwrap()).collect();
    let mut tables = Map::new();
    for table in world.schema.tables() {
        let (mut count, mut root) = (0_u64, 0_u64);
        for ((_, key), row) in rows.iter().filter(|((of, _), _)| *of == table.name) {
            let at = Timestamp::parse(row["last_update"].as_str().unwrap()).unwrap();
            let mut hash = Sha256::new();
            hash.update(&seed);
            hash.update(uuid::Uuid::parse_str(key).unwrap().as_bytes());
            hash.update(at.ms().to_be_bytes());
            root = root.wrapping_add(u64::from_be_bytes(hash.finalize()[..8].try_into().unwrap()));
            count += 1;
        }
        tables.insert(table.name.clone(), json!({ "count": count, "root": format!("{root:016x}") }));
    }
    Json::Object(tables)
}

fn seed_of(world: &World, device: &Device) -> String {
    let result = world.get(device, "/digests").ok();
    let seed = result["seed"].as_str().unwrap().to_owned();
    assert!(seed.len() == 32 && seed.bytes().all(|byte| byte.is_ascii_hexdigit()));
    seed
}

/// Goal: whatever is done to the rows, every response at the end of a sync proves them. Method: random
/// histories over the API, with refusals, rejected rows, replays, restores and dry runs among them; the
/// digests of every response are compared with a computation from all rows.
#[test]
fn digests_are_what_the_rows_make_them() {
    for seed in 0..6 {
        let world = World::start(POLICIES);
        let mut dice = Dice::new(seed);
        let mut copies = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
        let secret = seed_of(&world, &copies[0].device);
        for step in 0..60 {
            world.hands.advance_ms(dice.below(1_000) as i64);
            let copy = &mut copies[dice.below(2) as usize];
            let table = TABLES[dice.below(5) as usize];
            let mut body = json!({});
            for _ in 0..=dice.below(4) {
                let id = key(dice.below(12));
                let row = json!({ "id": id, "title": dice.below(50).to_string(), "last_update": world.hands.at(0) });
                let (set, item) = match dice.below(5) {
                    0 => ("delete", json!(id)),
                    1 => ("update", row),
                    2 => ("add", json!({ "id": id, "title": null })), // rejected
                    _ => ("add", row),
                };
                match body[set][table].as_array_mut() {
                    Some(list) => list.push(item),
                    None => body[set][table] = json!([item]),
                }
            }
            match dice.below(8) {
                0 => body["atomic"] = json!(true),
                1 => body["dry_run"] = json!(true),
                2 => body["base"] = json!(u64::MAX),
                3 | 4 => copy.pull(&world),
                _ => {}
            }
            if body.get("base").is_none() && copy.cursor.is_some() {
                body["base"] = json!(copy.cursor);
            }
            let once = format!("k{step}");
            let answer = world.sync_once(&copy.device, &once, &body);
            if dice.below(4) == 0 && answer.status == 200 && body.get("dry_run").is_none() {
                assert_eq!(world.sync_once(&copy.device, &once, &body).text(), answer.text());
            }
            if dice.below(6) == 0 {
                let conflicts = world.get(&copy.device, "/conflicts").ok();
                if let Some(id) = conflicts["conflicts"][0]["id"].as_str() {
                    let restore = format!("/conflicts/{id}/restore");
                    world.call(&copy.device, Method::POST, &restore, &[], None);
                }
            }
            let (version, rows) = (world.version(&copy.device), world.rows(&copy.device));
            let wanted = json!({ "as_of": version, "tables": recomputed(&world, &secret, &rows) });
            let mut held = world.get(&copy.device, "/digests").ok();
            assert_eq!(held.as_object_mut().unwrap().remove("seed").unwrap(), secret.as_str());
            assert_eq!(held, wanted, "seed {seed}, step {step}");
            assert_eq!(world.sync(&copy.device, &json!({})).ok()["digests"], wanted);
            assert_eq!(world.get(&copy.device, "/changes").ok()["digests"], wanted);
            assert_eq!(world.get(&copy.device, &format!("/changes?since={version}")).ok()["digests"], wanted);
        }
    }
}

/// Goal: the digests of a response are those of the version that it names, whoever writes next.
#[test]
fn digests_say_which_version_they_are_of() {
    let world = World::start(POLICIES);
    let [mut a, mut b] = ["a", "b"].map(|name| Copy::new(world.device("anna", name)));
    let secret = seed_of(&world, &a.device);
    a.push(
        &world,
        &json!({ "add": { "newest": [{ "id": key(1), "title": "one" }, { "id": key(3), "title": "x" }] } }),
    );
    let answer = b.push(&world, &json!({ "add": { "newest": [{ "id": key(2), "title": "two" }] } }));
    assert_eq!(answer["digests"]["as_of"], world.version(&a.device));
    let rows = world.rows(&a.device);
    assert_eq!(answer["digests"]["tables"], recomputed(&world, &secret, &rows));
    // Between two pages another device writes: the last page's digests are of a later version than the
    // feed's, and name it.
    a.limit = 2;
    let first = world.get(&a.device, "/changes?limit=2").ok();
    assert_eq!(first.get("digests"), None);
    b.push(&world, &json!({ "add": { "newest": [{ "id": key(4), "title": "four" }] } }));
    let last = world.get(&a.device, &format!("/changes?next={}", first["next"].as_str().unwrap())).ok();
    assert_eq!(last["version"], first["version"]);
    assert_eq!(last["digests"]["as_of"], world.version(&a.device));
    assert_ne!(last["digests"]["as_of"], last["version"]);
    assert_eq!(last["digests"]["tables"], recomputed(&world, &secret, &world.rows(&a.device)));
}

#[test]
fn a_seed_is_its_owners_alone() {
    let world = World::start(POLICIES);
    let devices: Vec<_> = (0..8).map(|n| world.device(&format!("owner{n}"), "phone")).collect();
    let seeds: Vec<_> = devices.iter().map(|device| seed_of(&world, device)).collect();
    for (place, seed) in seeds.iter().enumerate() {
        assert_eq!(seeds.iter().filter(|other| *other == seed).count(), 1);
        assert_eq!(seed_of(&world, &devices[place]), *seed, "it stays");
        let second = world.device(&format!("owner{place}"), "tablet");
        assert_eq!(seed_of(&world, &second), *seed, "one owner, one seed");
    }
    // The same row under two owners has two hashes; and no other response contains a seed.
    let add = json!({ "add": { "newest": [{ "id": key(1), "title": "x", "last_update": world.hands.at(0) }] }, "pull": true });
    let answers: Vec<_> = devices.iter().map(|device| world.sync(device, &add)).collect();
    let roots: Vec<_> =
        answers.iter().map(|it| it.ok()["digests"]["tables"]["newest"]["root"].clone()).collect();
    assert_ne!(roots[0], roots[1]);
    for (device, answer) in devices.iter().zip(&answers) {
        let others = ["/changes", "/fetch", "/conflicts", "/lock", "/limits", "/devices"]
            .map(|path| world.get(device, path));
        for result in others.iter().chain([answer]) {
            let headers = format!("{:?}", result.headers);
            assert!(seeds.iter().all(|seed| !result.text().contains(seed) && !headers.contains(seed)));
        }
    }
    let nobody = Device { token: "rc_nobody".into(), ..devices[0].clone() };
    world.get(&nobody, "/digests").problem(401, "unauthorized");
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    support::engine::run_again_on_postgres(module_path!());
}
