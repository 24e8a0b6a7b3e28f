//! What the writer thread costs: small syncs of the SQLite engine by way of it, and on the thread of the caller.
//!
//! ```sh
//! cargo run --release -p rollcall-bench --example writer            # 10 runs of 1,000 syncs of one owner
//! cargo run --release -p rollcall-bench --example writer 6 1600 16  # 6 runs of 1,600 syncs of sixteen owners
//! ```
//!
//! The system counts processor time and context switches for each thread; other programs change how long a sync takes,
//! and hardly these.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::model::{DeviceId, Owner, Role, RowKey, Timestamp, Value, Version};
use rollcall_core::reconcile::Incoming;
use rollcall_core::schema::Schema;
use rollcall_core::storage::{Outcome, Storage, StorageError, StorageResult, WriteJob, WriteTxn};
use rollcall_core::synchronise::{self, Batch, Terms};
use rollcall_sqlite::{Connections, Sqlite};
use tokio::sync::oneshot;
use uuid::Uuid;

const SCHEMA: &str =
    "[table.notes]\nkey = \"id\"\n[table.notes.columns]\ntitle = \"text\"\nbody = \"text\"\n";

const NOW: Timestamp = Timestamp::from_ms(1_700_000_000_000);

/// One small sync, and the channel to its task.
struct Sync {
    schema: Arc<Schema>,
    batch: Batch,
    terms: Terms,
    reply: oneshot::Sender<StorageResult<()>>,
}

impl WriteJob for Sync {
    fn run(&mut self, txn: &mut dyn WriteTxn) -> StorageResult<Outcome> {
        let report = synchronise::run(txn, &self.schema, &self.batch, &self.terms);
        report.map_err(|refusal| StorageError::Engine(refusal.to_string().into()))?;
        Ok(Outcome::Commit)
    }

    fn finish(self: Box<Self>, result: StorageResult<()>) {
        let _ = self.reply.send(result);
    }
}

/// What the threads of this process have used: processor time in ns, voluntary and involuntary switches.
fn used() -> [u64; 3] {
    let mut sum = [0; 3];
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let text = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let (times, status) = (text("schedstat"), text("status"));
        let switches =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        let processor: Option<u64> = times.split(' ').next().and_then(|ns| ns.parse().ok());
        let found =
            [processor, switches("voluntary_ctxt_switches:"), switches("nonvoluntary_ctxt_switches:")];
        for (sum, found) in sum.iter_mut().zip(found) {
            *sum += found.unwrap_or(0);
        }
    }
    sum
}

fn terms(device: DeviceId) -> Terms {
    Terms {
        device,
        role: Role::Write,
        since: Version(0),
        received: NOW,
        now: NOW,
        row_bytes_max: 1 << 18,
        owner_rows_max: 1 << 20,
        owner_bytes_max: 1 << 30,
        owner_past_bytes_max: 1 << 30,
        mass_delete_rows: usize::MAX,
        mass_delete_window_ms: 0,
        pull_rows_max: 5_000,
        pull_entries_max: usize::MAX,
        pull_bytes_max: usize::MAX,
        batch_bytes_max: usize::MAX,
    }
}

/// Syncs of one owner, one after another, 5 new rows each.
async fn owner(storage: Arc<dyn Storage>, schema: Arc<Schema>, syncs: usize, by_thread: bool) {
    let (owner, terms) = (Owner(Uuid::now_v7()), terms(DeviceId(Uuid::now_v7())));
    let table = schema.table("notes").unwrap().id;
    for n in 0..syncs {
        let row = |_| Incoming {
            key: RowKey(Uuid::now_v7()),
            values: vec![Some(Value::Text(n.to_string())), Some(Value::Text("x".repeat(200)))],
            last_update: None,
            claimed_at: None,
            base: None,
        };
        let batch = Batch { add: vec![(table, (0..5).map(row).collect())], ..Batch::default() };
        let (reply, done) = oneshot::channel();
        let mut job = Box::new(Sync { schema: Arc::clone(&schema), batch, terms, reply });
        if by_thread {
            storage.enqueue_write(owner, job);
        } else {
            let result = storage.run_write(owner, &mut |txn| job.run(txn));
            job.finish(result);
        }
        done.await.unwrap().unwrap();
    }
}

fn open(folder: &Path, schema: &Arc<Schema>) -> Arc<dyn Storage> {
    let path = folder.join("app.db");
    let connections = Connections::open(&path, Duration::from_secs(60), 4).unwrap();
    Arc::new(Sqlite::serve(&path, connections, Arc::clone(schema), NOW, Arc::new(())).unwrap())
}

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).map(|text| text.parse().unwrap()).collect();
    let argument = |index: usize, default| arguments.get(index).copied().unwrap_or(default);
    let (runs, syncs, owners) = (argument(0, 10), argument(1, 1_000), argument(2, 1));
    let folder = tempfile::tempdir().unwrap();
    let schema = Arc::new(Schema::parse(SCHEMA).unwrap());
    let storage = open(folder.path(), &schema);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("| | time, µs | processor, µs | voluntary switches | involuntary |");
    for _ in 0..runs {
        for (by_thread, what) in [(true, "the writer thread"), (false, "the caller's thread")] {
            let (begun, before) = (Instant::now(), used());
            runtime.block_on(async {
                let tasks: Vec<_> = (0..owners)
                    .map(|_| owner(Arc::clone(&storage), Arc::clone(&schema), syncs / owners, by_thread))
                    .map(tokio::spawn)
                    .collect();
                for task in tasks {
                    task.await.unwrap();
                }
            });
            let (took, after) = (begun.elapsed(), used());
            let each = |index: usize| (after[index] - before[index]) as f64 / syncs as f64;
            println!(
                "| {what} | {:.0} | {:.0} | {:.2} | {:.2} |",
                took.as_secs_f64() * 1e6 / syncs as f64,
                each(0) / 1_000.0,
                each(1),
                each(2)
            );
        }
    }
}
