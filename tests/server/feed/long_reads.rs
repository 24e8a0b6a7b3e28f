//! Reads that last: one for each owner, some connections kept for accounts, and clients that read slowly.

use super::*;

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rollcall::storage::{
    AccountStore, Census, Leases, OwnerState, Owners, ReadWork, StorageResult, VersionListener, WriteWork,
};

/// Calls a hook inside every read of an owner's rows, including those that the cache could answer.
struct Hooked {
    storage: Arc<dyn Storage>,
    in_read: Box<dyn Fn(Owner) + Send + Sync>,
}

impl Storage for Hooked {
    fn run_read(&self, owner: Owner, work: ReadWork<'_>) -> StorageResult<()> {
        self.storage.run_read(owner, &mut |txn| {
            (self.in_read)(owner);
            work(txn)
        })
    }

    fn run_write(&self, owner: Owner, work: WriteWork<'_>) -> StorageResult<()> {
        self.storage.run_write(owner, work)
    }

    fn known_state(&self, _: Owner) -> Option<OwnerState> {
        None
    }

    fn counter(&self, owner: Owner, device: DeviceId) -> StorageResult<Option<u64>> {
        self.storage.counter(owner, device)
    }

    fn on_moved(&self, listener: VersionListener) {
        self.storage.on_moved(listener);
    }

    fn ready(&self) -> StorageResult<()> {
        self.storage.ready()
    }

    fn owners(&self) -> &dyn Owners {
        self.storage.owners()
    }

    fn erase(&self, owner: Owner, rows_max: usize) -> StorageResult<bool> {
        self.storage.erase(owner, rows_max)
    }

    fn accounts(&self) -> Arc<dyn AccountStore> {
        self.storage.accounts()
    }

    fn census(&self) -> &dyn Census {
        self.storage.census()
    }

    fn leases(&self) -> Leases {
        self.storage.leases()
    }
}

/// Keeps everybody who reads for one owner until they are let go, and counts them.
#[derive(Default)]
struct Dam {
    owner: std::sync::OnceLock<Owner>,
    inside: AtomicUsize,
    most: AtomicUsize,
    is_open: AtomicBool,
}

impl Dam {
    fn hold_up(&self, owner: Owner) {
        if self.owner.get() != Some(&owner) {
            return;
        }
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        while !self.is_open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

fn dammed() -> (World, Arc<Dam>) {
    let dam = Arc::new(Dam::default());
    let holding = Arc::clone(&dam);
    let in_read = Box::new(move |owner| holding.hold_up(owner));
    let world = World::start_over(
        POLICIES,
        |settings| settings.limits.busy_wait_ms = 2_000,
        |storage| Arc::new(Hooked { storage, in_read }),
        512,
    );
    (world, dam)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < support::TOO_LONG, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Goal: an owner that reads without end keeps no other from reading, and nobody from logging in; requests of
/// its own devices that come too late learn when to retry. Method: 16 devices fetch pages, lines, conflicts
/// and manifests, none of which ends; the running reads are counted.
#[test]
fn an_owner_has_one_long_read_at_a_time() {
    let (world, dam) = dammed();
    let devices: Vec<Device> = (0..16).map(|n| world.device("anna", &format!("a{n}"))).collect();
    dam.owner.set(devices[0].owner).unwrap();
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let asked: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(n, device)| {
                let world = &world;
                scope.spawn(move || match n % 4 {
                    0 => world.get(device, "/changes"),
                    1 => world.get(device, "/conflicts"),
                    2 => world.get(device, "/fetch?lock=false"),
                    _ => world.call(
                        device,
                        Method::GET,
                        "/changes",
                        &[("accept", "application/x-ndjson")],
                        None,
                    ),
                })
            })
            .collect();
        until("nobody reads", || dam.inside.load(Ordering::SeqCst) > 0);
        let bob = world.device("bob", "b"); // made and logged in
        for path in ["/changes", "/conflicts", "/fetch?lock=false", "/digests"] {
            assert_eq!(world.get(&bob, path).status, 200, "{path}");
        }
        // Only the one that reads has no response yet.
        until("nobody is refused", || asked.iter().filter(|one| one.is_finished()).count() == 15);
        dam.is_open.store(true, Ordering::SeqCst);
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(dam.most.load(Ordering::SeqCst), 1);
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert_eq!(refused.len(), 15);
    for answer in refused {
        answer.problem(503, "busy");
        assert!(answer.header("retry-after").is_some());
    }
    // The turns are released.
    for device in &devices[..4] {
        assert_eq!(world.get(device, "/changes").status, 200);
    }
}

/// Goal: whatever reads an owner's rows, accounts and tokens are looked up. Method: twice as many as there are
/// connections read through the engine itself and do not end.
#[test]
fn readers_are_kept_free_for_accounts() {
    let world = World::start(POLICIES);
    let bob = world.device("bob", "b");
    let (storage, accounts) = (&world.app.storage, world.app.storage.accounts());
    let (inside, is_open) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                storage.read(bob.owner, |_| {
                    inside.fetch_add(1, Ordering::SeqCst);
                    while !is_open.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Ok::<_, StorageError>(())
                })
            });
        }
        let mut before = 0;
        until("the readers are never all taken", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = inside.load(Ordering::SeqCst);
            now > 1 && std::mem::replace(&mut before, now) == now
        });
        let begun = Instant::now();
        let found = accounts.user("bob@example.com");
        let counter = storage.counter(bob.owner, bob.id);
        let taken = begun.elapsed();
        is_open.store(true, Ordering::SeqCst);
        assert!(found.is_ok_and(|user| user.is_some()), "after {taken:?}");
        assert!(counter.is_ok_and(|counter| counter.is_none()), "after {taken:?}");
    });
}

/// A server whose owner has 30 lots of rows, 4 MB each, and which has few threads for blocking work.
fn large() -> (World, Arc<AtomicUsize>, Device, Device) {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let in_read = Box::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let world = World::start_over(POLICIES, |_| {}, |storage| Arc::new(Hooked { storage, in_read }), 4);
    let (a, b) = (world.device("anna", "a"), world.device("anna", "b"));
    let body = "x".repeat(60_000);
    for lot in 0..30 {
        for part in 0..5 {
            let first = lot * 500 + part * 100;
            let rows: Vec<_> = (first..first + 100)
                .map(|n| json!({ "id": key(n), "title": "t", "body": if n % 10 == 0 { &*body } else { "" } }))
                .collect();
            world.sync(&b, &json!({ "add": { "newest": rows } })).ok();
        }
    }
    (world, reads, a, b)
}

/// Requests a stream and reads only the beginning of it.
fn begin_stream(world: &World, device: &Device) -> BufReader<TcpStream> {
    let mut stream = small_socket(world);
    let request = format!(
        "GET /changes HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: application/x-ndjson\r\n\
         authorization: Bearer {}\r\n\r\n",
        device.token
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut stream = BufReader::with_capacity(1024, stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    stream
}

/// A connection whose reader's side takes little at a time.
fn small_socket(world: &World) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(world.address).await.unwrap()
    });
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(support::TOO_LONG)).unwrap();
    stream
}

/// Waits until the server has stopped reading for clients that do not read; returns how often it did.
fn settled(reads: &AtomicUsize) -> usize {
    let mut before = reads.load(Ordering::SeqCst);
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = reads.load(Ordering::SeqCst);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Goal: a feed costs the server a few lots of memory however large it is, and a reader that takes its time
/// holds neither a snapshot nor a thread that others need. Method: more readers that stop reading than the
/// server has threads for blocking work; then writes; then one of the readers reads on.
#[test]
fn a_slow_reader_costs_little_and_blocks_nobody() {
    let (world, reads, a, b) = large();
    let before = reads.load(Ordering::SeqCst);
    let mut slow: Vec<_> = (0..8).map(|_| begin_stream(&world, &a)).collect();
    let lots = settled(&reads) - before;
    // The kernel buffers a chunk or two; the server holds one more, and may have the next one ready.
    assert!(lots <= 8 * 6, "{lots} lots were read for 8 readers that read none");

    let started = Instant::now();
    world.sync(&b, &adds("newest", 1_000_000..1_000_001)).ok();
    assert!(started.elapsed() < support::TOO_LONG / 2, "a writer waited {:?}", started.elapsed());

    let mut rest = Vec::new();
    slow.pop().unwrap().read_to_end(&mut rest).unwrap();
    let text = String::from_utf8(rest).unwrap();
    assert_eq!(
        text.matches("{\"op\":\"add\"").count(),
        15_000,
        "the feed is of the version that it began at"
    );
    assert_eq!(text.matches("{\"op\":\"end\"").count(), 1);
}

#[test]
fn a_stream_whose_cursor_expires_on_the_way_ends_without_its_last_line() {
    let (world, reads, a, b) = large();
    let mut stream = begin_stream(&world, &a);
    settled(&reads);
    world.sync(&b, &deletes("newest", 3..4)).ok();
    assert_eq!(purge(&world, &b).tombstones, 1);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let text = String::from_utf8(rest).unwrap();
    let result = text.matches("{\"op\":\"add\"").count();
    assert!((500..15_000).contains(&result), "{result} rows");
    assert_eq!(text.matches("{\"op\":\"end\"").count(), 0);
}
