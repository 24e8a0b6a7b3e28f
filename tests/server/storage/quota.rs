//! What an owner's past takes: the sums that each write updates, compared with a full count.

use rollcall::model::Role;
use rollcall::purge;
use rollcall::reconcile::{Incoming, Resolution};
use rollcall::schema::Policy;
use rollcall::storage::quota::{RECORD_BYTES, TOMBSTONE_BYTES};
use rollcall::storage::{Conflict, PastBytes, PurgeTerms, ResponsesMax, Side, StoredResponse};
use rollcall::synchronise::{self, Batch, Refusal, Report, Terms};

use super::*;

use rollcall_testkit::rng::Rng;

/// 2026-09-01, and a day.
const NOON_MS: i64 = 1_788_264_000_000;
const DAY_MS: i64 = 86_400_000;

/// Runs a case on each engine, of which the test sees the tables.
pub fn on_every_engine_seen(case: impl Fn(&Ground)) {
    for engine in Engine::all() {
        eprintln!("on the engine {}", engine.name());
        let mut store = Store::of(engine);
        let storage = start(&store).unwrap();
        store.look();
        case(&Ground { store, storage, schema: Schema::parse(SCHEMA).unwrap() });
    }
}

fn past(ground: &Ground, owner: Owner) -> PastBytes {
    ground.state(owner).past
}

fn counted(ground: &Ground, owner: Owner) -> PastBytes {
    ground.storage.read(owner, |txn| txn.count_past()).unwrap()
}

/// What the past of all owners takes, in the test's own words.
fn recounted(ground: &Ground) -> PastBytes {
    let sum = |sql: &str| ground.store.number(sql);
    let bytes = |texts: &[&str], table: &str| {
        let texts: Vec<_> = texts.iter().map(|text| format!("coalesce(octet_length({text}), 0)")).collect();
        format!(
            "SELECT CAST(coalesce(sum({} + {RECORD_BYTES}), 0) AS bigint) FROM {table}",
            texts.join(" + ")
        )
    };
    let dead = if ground.store.engine == Engine::Sqlite { "deleted = 1" } else { "deleted" };
    PastBytes {
        is_counted: true,
        tombstones: sum(&format!("SELECT count(*) FROM rollcall_ledger WHERE {dead}")),
        history: sum(&bytes(&["columns"], "rollcall_history")),
        conflicts: sum(&bytes(&["base", "stored", "incoming"], "rollcall_conflict")),
        responses: sum(&bytes(&["body", "key"], "rollcall_answer")),
    }
}

/// What a server of an earlier release would have left: nothing is counted.
fn forget_sums(ground: &Ground) {
    ground.store.sql(
        "UPDATE rollcall_owner SET past_tombstones = 0, past_history = 0, past_conflicts = 0, past_answers = 0, \
         past_version = NULL, due_at = 0",
    );
}

fn terms(by: u128, now: Timestamp, past_bytes_max: u64) -> Terms {
    Terms {
        device: device(by),
        role: Role::Write,
        since: Version(0),
        received: now,
        now,
        row_bytes_max: 1 << 18,
        owner_rows_max: 1 << 20,
        owner_bytes_max: 1 << 30,
        owner_past_bytes_max: past_bytes_max,
        mass_delete_rows: usize::MAX,
        mass_delete_window_ms: 0,
        pull_rows_max: 100,
        pull_entries_max: 1_000,
        pull_bytes_max: 1 << 20,
        batch_bytes_max: 1 << 25,
    }
}

/// Data older than a day is old, or none.
fn purging(now: Timestamp, days: i64, past_bytes_max: u64) -> PurgeTerms {
    let before = now.shifted(-days * DAY_MS);
    PurgeTerms {
        now,
        tombstones_before: before,
        devices_before: before,
        conflicts_before: before,
        responses_before: before,
        past_bytes_max,
    }
}

fn conflict(ground: &Ground, id: u128, text: &str, at: Timestamp) -> Conflict {
    let side = |title: &str| Side {
        values: Some(vec![Some(Value::Text(title.into()))]),
        last_update: at,
        device: device(1),
    };
    Conflict {
        id: Uuid::from_u128(id),
        at,
        table: ground.table("parents"),
        key: key(1),
        policy: Policy::Newest,
        resolution: Resolution::Kept,
        base: None,
        stored: side(text),
        stored_made_at: None,
        incoming: side("theirs"),
        restored_at: None,
    }
}

fn answer(bytes: usize, at: Timestamp) -> StoredResponse {
    StoredResponse { body_hash: [1; 32], body: vec![b'x'; bytes], version: Version(1), at }
}

fn edit(n: u128, title: &str, at: Option<Timestamp>) -> Incoming {
    Incoming {
        key: key(n),
        values: vec![Some(Value::Text(title.into()))],
        last_update: at,
        claimed_at: at,
        base: None,
    }
}

/// A world of one owner that things happen to at random.
pub struct Play<'a> {
    pub ground: &'a Ground,
    pub owner: Owner,
    pub rng: Rng,
    pub now: Timestamp,
}

impl Play<'_> {
    fn batch(&mut self) -> Batch {
        let parents = self.ground.table("parents");
        let version = self.ground.state(self.owner).version;
        // Mostly what a device knew a while ago: so there are conflicts.
        let base = match self.rng.below(4) {
            0 => None,
            1 => Some(version),
            _ => Some(Version(1 + self.rng.below(version.0))),
        };
        let mut batch = Batch { base, ..Batch::default() };
        for _ in 0..self.rng.below(4) {
            let title = "\"ä".repeat(self.rng.below(40) as usize);
            let at = self.now.shifted(-(self.rng.below(20_000) as i64));
            let one = edit(u128::from(1 + self.rng.below(5)), &title, Some(at));
            let deleted = Incoming { values: Vec::new(), ..one.clone() };
            match self.rng.below(3) {
                0 => batch.add.push((parents, vec![one])),
                1 => batch.update.push((parents, vec![one])),
                _ => batch.delete.push((parents, vec![deleted])),
            }
        }
        batch
    }

    /// Something happens; it may end in a refusal, which leaves nothing.
    pub fn step(&mut self) {
        self.now = self.now.shifted(1 + self.rng.below(10_000) as i64);
        let (ground, owner, now) = (self.ground, self.owner, self.now);
        let max = *self.rng.among(&[0, 2_000, 6_000, 1 << 30]);
        let by = u128::from(1 + self.rng.below(3));
        let write = |work: &mut (dyn FnMut(&mut dyn WriteTxn) -> Result<(), StorageError> + Send)| {
            ground.storage.write(owner, |txn| work(txn)).unwrap();
        };
        match self.rng.below(12) {
            0..=5 => {
                let batch = self.batch();
                let sent: Result<Report, Refusal> = ground
                    .storage
                    .write(owner, |txn| synchronise::run(txn, &ground.schema, &batch, &terms(by, now, max)));
                let is_expected = matches!(sent, Ok(_) | Err(Refusal::PastFull(_) | Refusal::BaseExpired(_)));
                assert!(is_expected, "{sent:?}");
            }
            6 | 7 => {
                let (name, bytes) = (self.rng.below(4).to_string(), self.rng.below(400) as usize);
                let most = ResponsesMax { responses: 3, bytes: 500 };
                write(&mut |txn| txn.store_response(device(by), &name, &answer(bytes, now), most));
            }
            8 => {
                let one = conflict(ground, u128::from(self.rng.below(4)), &"z".repeat(by as usize * 50), now);
                write(&mut |txn| txn.note_conflict(&one));
            }
            9 => write(&mut |txn| txn.forget_installation(device(by))),
            10 => {
                let rows_max = 1 + self.rng.below(5) as usize;
                let purging = purging(now, self.rng.below(2) as i64, max);
                write(&mut |txn| txn.purge(&purging, rows_max).map(drop));
            }
            _ => {
                let undone: Result<(), StorageError> = ground.storage.write(owner, |txn| {
                    txn.note_conflict(&conflict(ground, 77, "undone", now))?;
                    Err(StorageError::Busy)
                });
                assert!(undone.is_err());
            }
        }
        if self.rng.often(50) {
            self.now = self.now.shifted(DAY_MS);
        }
    }
}

/// Goal: the sums are right, whatever happens. Method: random edits with conflicts, deletions, responses,
/// purges and refusals; after each the sums of the owner are compared with a count by the engine, and those
/// of all owners with SQL.
#[test]
fn the_sums_are_what_a_count_finds() {
    on_every_engine_seen(|ground| {
        let mut seen = PastBytes::default();
        for seed in 1..=12 {
            let now = Timestamp::from_ms(NOON_MS);
            let mut play = Play { ground, owner: owner(seed), rng: Rng(seed as u64), now };
            for step in 0..50 {
                play.step();
                let sums = past(ground, play.owner);
                assert_eq!(sums, counted(ground, play.owner), "seed {seed} step {step}");
                for (seen, sum) in [
                    (&mut seen.tombstones, sums.tombstones),
                    (&mut seen.history, sums.history),
                    (&mut seen.conflicts, sums.conflicts),
                    (&mut seen.responses, sums.responses),
                ] {
                    *seen = (*seen).max(sum);
                }
            }
            let all = ground.storage.census().states(None, 100).unwrap();
            let sum = |of: fn(&PastBytes) -> i64| all.iter().map(|(_, state)| of(&state.past)).sum();
            let sums = PastBytes {
                is_counted: all.iter().all(|(_, state)| state.past.is_counted),
                tombstones: sum(|past| past.tombstones),
                history: sum(|past| past.history),
                conflicts: sum(|past| past.conflicts),
                responses: sum(|past| past.responses),
            };
            assert_eq!(sums, recounted(ground), "seed {seed}");
        }
        assert!(seen.tombstones > 2 && seen.history > 500, "{seen:?}");
        assert!(seen.conflicts > 500 && seen.responses > 500, "{seen:?}");
    });
}

/// Goal: an owner of an earlier release is counted beside its writers. Method: the sums are lost; things happen between
/// that, the count, and when the count is written down.
#[test]
fn what_happens_while_an_owner_is_counted_is_counted() {
    on_every_engine_seen(|ground| {
        for seed in 1..=8 {
            let now = Timestamp::from_ms(NOON_MS);
            let mut play = Play { ground, owner: owner(seed), rng: Rng(seed as u64 * 1_000), now };
            let mut steps = |count: usize| (0..count).for_each(|_| play.step());
            steps(15);
            forget_sums(ground);
            steps(5);
            assert_eq!(past(ground, owner(seed)).bytes(), None);
            let (before, found) = ground
                .storage
                .read(owner(seed), |txn| Ok::<_, StorageError>((txn.state().past, txn.count_past()?)))
                .unwrap();
            steps(10);
            let now = past(ground, owner(seed));
            assert!(!now.is_counted);
            let set = now.corrected(&before, &found);
            ground.storage.write(owner(seed), |txn| txn.set_past(set)).unwrap();
            assert_eq!(past(ground, owner(seed)), counted(ground, owner(seed)), "seed {seed}");
            steps(10);
            assert_eq!(past(ground, owner(seed)), counted(ground, owner(seed)), "seed {seed}");
        }
    });
}

/// Goal: what a purge does for owners of an earlier release: it counts them, once, and then holds them to the bound; by
/// both ways to a purge.
#[test]
fn a_purge_counts_owners_and_then_holds_them_to_the_bound() {
    on_every_engine_seen(|ground| {
        let now = Timestamp::from_ms(NOON_MS);
        let beside = ground.store.forgetful(BUSY_WAIT);
        for n in [1, 2] {
            for edit_no in 0..6 {
                let batch = Batch {
                    add: vec![(ground.table("parents"), vec![edit(1, &format!("{edit_no:0100}"), None)])],
                    ..Batch::default()
                };
                let now = now.shifted(edit_no);
                let sent: Result<Report, Refusal> = ground
                    .storage
                    .write(owner(n), |txn| synchronise::run(txn, &ground.schema, &batch, &terms(1, now, 0)));
                sent.unwrap();
            }
            ground
                .storage
                .write(owner(n), |txn| {
                    txn.note_conflict(&conflict(ground, 5, "mine", now))?;
                    let most = ResponsesMax { responses: 9, bytes: 10_000 };
                    txn.store_response(device(1), "once", &answer(300, now), most)
                })
                .unwrap();
        }
        let held = counted(ground, owner(1));
        assert!(held.history > 1_000 && held.responses > 500 && held.conflicts > 200, "{held:?}");

        forget_sums(ground);
        let states_left = 2;
        let max = held.bytes().unwrap() - held.history.unsigned_abs() * (4 - states_left) / 4;
        let terms = purging(now, 1, max);
        purge::run(&*ground.storage, &terms, &mut |_, _| true).unwrap();
        for n in [1, 2] {
            let after = past(ground, owner(n));
            assert_eq!(after, counted(ground, owner(n)));
            assert_eq!(after.history * 2, held.history, "the oldest went, and no more");
            assert_eq!((after.responses, after.conflicts), (held.responses, held.conflicts));
        }
        let table = ground.table("parents");
        let left = ground.storage.read(owner(1), |txn| txn.earlier(table, key(1), None)).unwrap();
        let titles: Vec<_> = left.iter().map(|state| format!("{:?}", state.values)).collect();
        assert!(titles[0].contains("04\"") && titles[1].contains("03\""), "{titles:?}");

        // A purge that is run as a command counts too; what goes by age alone stays beyond the bound.
        forget_sums(ground);
        purge::run(&*beside, &purging(now, 1, 1), &mut |_, _| true).unwrap();
        for n in [1, 2] {
            let after = past(ground, owner(n));
            assert_eq!(after, counted(ground, owner(n)));
            assert_eq!((after.history, after.responses, after.conflicts), (0, 0, held.conflicts));
        }
    });
}

/// Goal: a write that finds the past full makes room for its own, and only a write that records a conflict
/// may be refused. Method: the bound is the present size; then an edit, a deletion, a conflict.
#[test]
fn a_write_makes_room_in_a_full_past() {
    on_every_engine_seen(|ground| {
        let parents = ground.table("parents");
        let mut now = Timestamp::from_ms(NOON_MS);
        let mut send = |by: u128, base: Option<Version>, n: u128, deletes: bool, max: u64| {
            now = now.shifted(1_000);
            let one = edit(n, &format!("{:0100}", now.ms()), Some(now));
            let set = |one| vec![(parents, vec![one])];
            let batch = match deletes {
                true => {
                    Batch { delete: set(Incoming { values: Vec::new(), ..one }), base, ..Batch::default() }
                }
                false => Batch { add: set(one), base, ..Batch::default() },
            };
            let sent: Result<Report, Refusal> = ground
                .storage
                .write(owner(1), |txn| synchronise::run(txn, &ground.schema, &batch, &terms(by, now, max)));
            sent
        };
        let seen = ground.state(owner(1)).version;
        for n in [1, 1, 1, 2, 2, 2, 3, 4, 5, 6] {
            let base = Some(ground.state(owner(1)).version);
            send(1, base, n, false, 0).unwrap();
        }
        let full = past(ground, owner(1));
        let max = full.bytes().unwrap();
        let of_one = full.history / 4;
        let base = |ground: &Ground| Some(ground.state(owner(1)).version);
        // An edit: its old state is stored, and the oldest one is forgotten.
        send(1, base(ground), 3, false, max).unwrap();
        let after = past(ground, owner(1));
        assert_eq!(after, counted(ground, owner(1)));
        assert_eq!(after.history, full.history);
        let of_first = ground.storage.read(owner(1), |txn| txn.earlier(parents, key(1), None)).unwrap();
        assert_eq!(of_first.len(), 1, "of the row that was changed first");
        // A stale edit of another device overwrites: a conflict is recorded, and history makes room for it.
        send(2, Some(seen), 4, false, max).unwrap();
        let after = past(ground, owner(1));
        assert_eq!(after, counted(ground, owner(1)));
        assert!(
            after.conflicts > 0 && after.history < full.history && after.bytes().unwrap() <= max,
            "{after:?}"
        );
        // Where there is no room for the conflict, nothing is written.
        let max = after.lasting() + 1;
        let before = ground.state(owner(1));
        assert!(
            matches!(send(2, Some(seen), 5, false, max), Err(Refusal::PastFull(result)) if result == max)
        );
        assert_eq!(ground.state(owner(1)), before);
        // An edit without a conflict is taken, and there is no room for its old state.
        send(1, base(ground), 5, false, max).unwrap();
        let after = past(ground, owner(1));
        assert!(after.history < of_one, "{after:?}");
        // Deleting still works, even beyond the bound.
        send(1, base(ground), 1, true, max).unwrap();
        send(1, base(ground), 2, true, max).unwrap();
        assert_eq!(past(ground, owner(1)).tombstones, 2);
        assert!(past(ground, owner(1)).bytes().unwrap() > max + TOMBSTONE_BYTES);
        // So does one that must note a conflict, up to twice the bound.
        let max = past(ground, owner(1)).lasting();
        assert!(matches!(send(2, Some(seen), 6, false, max), Err(Refusal::PastFull(_))));
        send(2, Some(seen), 6, true, max).unwrap();
        assert_eq!(past(ground, owner(1)).tombstones, 3);
        assert_eq!(past(ground, owner(1)), counted(ground, owner(1)));
        assert!(matches!(send(2, Some(seen), 3, true, 10), Err(Refusal::PastFull(10))));
    });
}
