//! A PostgreSQL for the tests of one process: a cluster in a temporary folder that ends with the process,
//! however that ends, and a database for each test.
//!
//! - `ROLLCALL_TEST_PG_URL`: a server to use instead, where the tests may create databases.
//! - `ROLLCALL_TEST_CITUS`: a database on the coordinator of a Citus cluster, as its superuser, whose workers were
//!   added. The tests create theirs beside it, on every node, and spread the tables of each over the workers.
//! - `ROLLCALL_TEST_PG_BIN`: the folder of `initdb` and `postgres`, if neither PATH nor Debian's folder has
//!   them.
//! - `ROLLCALL_TEST_PG=required`: a missing PostgreSQL is a failure. Otherwise one line reports it, and how
//!   to install it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

pub use postgres::Client;
use postgres::NoTls;

/// Settings of a cluster whose data is disposable.
const UNSAFE: &[&str] = &["fsync=off", "synchronous_commit=off", "full_page_writes=off"];

/// A clock that tests can set: the result of `now()` once this schema precedes PostgreSQL's own.
const CLOCK: &str =
    "CREATE SCHEMA clock; CREATE TABLE clock.hands (ms bigint); INSERT INTO clock.hands VALUES (NULL);
    CREATE FUNCTION clock.now() RETURNS timestamptz STABLE LANGUAGE sql
    AS 'SELECT coalesce(to_timestamp(ms / 1000.0), pg_catalog.now()) FROM clock.hands';";

/// Databases whose tests are over, on a cluster that ends with the process.
static FREE: Mutex<Vec<String>> = Mutex::new(Vec::new());

const EMPTY: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    DROP SCHEMA public CASCADE; CREATE SCHEMA public; UPDATE clock.hands SET ms = NULL;";

/// The same on Citus, whose extension would go with the schema.
const EMPTY_CITUS: &str = "DO $$ DECLARE tables text; BEGIN
        SELECT string_agg(format('%I', tablename), ', ') INTO tables FROM pg_tables
            WHERE schemaname = 'public' AND tablename !~ '_[0-9]{6,}$';
        IF tables IS NOT NULL THEN EXECUTE 'DROP TABLE ' || tables || ' CASCADE'; END IF;
    END $$; UPDATE clock.hands SET ms = NULL;";

/// The cluster of this process; `None` if there is no PostgreSQL to be had.
pub fn cluster() -> Option<&'static Cluster> {
    static CLUSTER: LazyLock<Option<Cluster>> = LazyLock::new(|| {
        if let Some(url) = citus_url() {
            let nodes = apart(|| nodes_of(&url));
            let cluster = Cluster { url, nodes, _process: None };
            apart(|| cluster.places().iter().for_each(|place| drop_left(place)));
            return Some(cluster);
        }
        if let Ok(url) = std::env::var("ROLLCALL_TEST_PG_URL") {
            return Some(Cluster { url, nodes: Vec::new(), _process: None });
        }
        let Some(binaries) = binaries() else {
            let absent = "PostgreSQL is not here, so its half of the tests did not run: install it (Debian: \
                          apt-get install postgresql), or set ROLLCALL_TEST_PG_URL or ROLLCALL_TEST_PG_BIN";
            assert!(std::env::var("ROLLCALL_TEST_PG").as_deref() != Ok("required"), "{absent}");
            eprintln!("{absent}");
            return None;
        };
        let process = Process::start(&binaries, UNSAFE);
        Some(Cluster { url: process.url(), nodes: Vec::new(), _process: Some(process) })
    });
    CLUSTER.as_ref()
}

/// A server that databases are made on.
pub struct Cluster {
    /// With `{}` in place of a database's name, or the URL of an existing database.
    url: String,
    /// The workers of a Citus cluster, whose coordinator `url` is.
    nodes: Vec<Node>,
    _process: Option<Process>,
}

/// A node of a Citus cluster.
#[derive(Clone)]
struct Node {
    host: String,
    port: i32,
}

/// The Citus cluster that tests are to use.
pub fn citus_url() -> Option<String> {
    std::env::var("ROLLCALL_TEST_CITUS").ok().filter(|url| !url.is_empty())
}

/// The nodes of a cluster, its coordinator first.
fn nodes_of(url: &str) -> Vec<Node> {
    let mut client = Client::connect(url, NoTls).expect("ROLLCALL_TEST_CITUS cannot be reached");
    let nodes = "SELECT nodename, nodeport FROM pg_dist_node ORDER BY groupid";
    let nodes = client.query(nodes, &[]).expect("ROLLCALL_TEST_CITUS is not a database with Citus");
    assert!(
        nodes.len() > 1,
        "ROLLCALL_TEST_CITUS has no workers: citus_set_coordinator_host, citus_add_node"
    );
    nodes.iter().map(|row| Node { host: row.get(0), port: row.get(1) }).collect()
}

impl Cluster {
    /// An empty database: one that another test is done with, if there is one, since to make one takes long.
    pub fn database(&self) -> Database {
        let free = FREE.lock().unwrap().pop();
        if let Some(name) = free {
            apart(|| {
                let mut client = Client::connect(&with_name(&self.url, &name), NoTls).unwrap();
                client.batch_execute(if self.nodes.is_empty() { EMPTY } else { EMPTY_CITUS }).unwrap();
            });
            return Database { url: with_name(&self.url, &name), name, others: Vec::new() };
        }
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let name = format!("rollcall_test_{}_{number}", std::process::id());
        let places = self.places();
        apart(|| {
            for place in &places {
                let mut client = Client::connect(place, NoTls).unwrap();
                client.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
            }
            self.spread(&name, &places);
            let mut client = Client::connect(&with_name(&self.url, &name), NoTls).unwrap();
            client
                .batch_execute(&format!(
                    "{CLOCK} ALTER DATABASE {name} SET search_path = public, clock, pg_catalog"
                ))
                .unwrap();
        });
        // To make a cluster's takes seconds, so they stay for the next test, and for the next run to drop.
        let is_kept = self._process.is_some() || !self.nodes.is_empty();
        let others = if is_kept { Vec::new() } else { places };
        Database { url: with_name(&self.url, &name), name, others }
    }

    /// Where databases are made: on the server, or on each node of a cluster, its coordinator first.
    fn places(&self) -> Vec<String> {
        let first = with_name(&self.url, "postgres");
        let workers = self.nodes.iter().skip(1).map(|node| at_node(&first, node));
        std::iter::once(first.clone()).chain(workers).collect()
    }

    /// Makes a Citus cluster of databases of that name.
    fn spread(&self, name: &str, places: &[String]) {
        let Some((coordinator, workers)) = self.nodes.split_first() else { return };
        for place in places {
            let mut client = Client::connect(&with_name(place, name), NoTls).unwrap();
            client.batch_execute("CREATE EXTENSION citus").unwrap();
        }
        let mut client = Client::connect(&with_name(&self.url, name), NoTls).unwrap();
        let Node { host, port } = coordinator;
        client.execute("SELECT citus_set_coordinator_host($1, $2)", &[host, port]).unwrap();
        for Node { host, port } in workers {
            client.execute("SELECT citus_add_node($1, $2)", &[host, port]).unwrap();
        }
        // Few, since each test makes them anew.
        client.batch_execute(&format!("ALTER DATABASE {name} SET citus.shard_count = 6")).unwrap();
    }
}

/// Drops the databases of processes that have ended.
fn drop_left(place: &str) {
    let mut client = Client::connect(place, NoTls).unwrap();
    let left = client
        .query("SELECT datname FROM pg_database WHERE datname LIKE 'rollcall!_test!_%' ESCAPE '!'", &[]);
    for name in left.unwrap().iter().map(|row| row.get::<_, String>(0)) {
        let process = name.split('_').nth(2).unwrap_or_default();
        if !Path::new("/proc").join(process).exists() {
            let _ = client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}

/// The same address at another node.
fn at_node(url: &str, node: &Node) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (place, path) = rest.split_once('/').unwrap();
    let user = place.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
    format!("{scheme}://{user}{}:{}/{path}", node.host, node.port)
}

fn with_name(url: &str, name: &str) -> String {
    let (place, query) =
        url.split_once('?').map_or((url, String::new()), |(place, query)| (place, format!("?{query}")));
    let host = place.find("://").map_or(0, |at| at + 3);
    let end = place[host..].find('/').map_or(place.len(), |at| host + at);
    format!("{}/{name}{query}", &place[..end])
}

/// A database of one test.
pub struct Database {
    pub url: String,
    name: String,
    /// Where to drop it, if its server outlives the test: the coordinator of a cluster first.
    others: Vec<String>,
}

impl Database {
    /// Sets the clock that the database goes by.
    pub fn set_now(&self, ms: i64) {
        apart(|| self.client().execute("UPDATE clock.hands SET ms = $1", &[&ms]).unwrap());
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.url, NoTls).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // PgBouncer would hand out connections to it that have ended.
        let is_pooled = std::env::var("ROLLCALL_TEST_POOLER").as_deref() == Ok("pgbouncer");
        if self.others.is_empty() && !is_pooled {
            FREE.lock().unwrap().push(std::mem::take(&mut self.name));
        }
        apart(|| {
            for url in &self.others {
                let dropped = Client::connect(url, NoTls).and_then(|mut client| {
                    client.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name))
                });
                if let Err(error) = dropped {
                    eprintln!("{} stays: {error}", self.name);
                }
            }
        });
    }
}

/// Runs work on a thread of its own: the client waits, which asynchronous tests must not.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The folder with the programs of the newest PostgreSQL.
pub fn binaries() -> Option<PathBuf> {
    let named = std::env::var_os("ROLLCALL_TEST_PG_BIN").map(PathBuf::from).into_iter();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut debian: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    debian.sort();
    let debian = debian.into_iter().rev().map(|(_, folder)| folder);
    named
        .chain(std::env::split_paths(&path))
        .chain(debian)
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

/// A cluster of its own, with a process to end it.
pub struct Process {
    folder: PathBuf,
    binaries: PathBuf,
    settings: Vec<String>,
    user: Option<(u32, u32)>,
    keeper: Option<Child>,
    /// Whether the folder goes when the process does.
    temporary: bool,
}

impl Process {
    pub fn start(binaries: &Path, settings: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("rcpg").tempdir().unwrap().keep();
        let user = unprivileged(&folder);
        give(&folder, user);
        let mut initdb = Command::new(binaries.join("initdb"));
        initdb.arg("-D").arg(folder.join("data"));
        initdb.args(["--no-sync", "--auth=trust", "--username=rollcall", "--encoding=UTF8", "--locale=C"]);
        initdb.current_dir(&folder).stdin(Stdio::null());
        as_user(&mut initdb, user);
        let made = initdb.output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let settings = settings.iter().map(|setting| setting.to_string()).collect();
        let mut process =
            Self { folder, binaries: binaries.into(), settings, user, keeper: None, temporary: true };
        process.run();
        process
    }

    /// Starts the server, and waits until it responds.
    pub fn run(&mut self) {
        let mut keeper = kept(&self.binaries.join("postgres"), &self.folder);
        keeper.arg("-D").arg(self.folder.join("data")).arg("-k").arg(&self.folder);
        keeper.args(["-c", "listen_addresses=", "-c", "max_connections=400"]);
        for setting in &self.settings {
            keeper.args(["-c", setting]);
        }
        let removed = if self.temporary { self.folder.clone() } else { PathBuf::new() };
        keeper.env("REMOVED", removed);
        keeper.stderr(std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap());
        as_user(&mut keeper, self.user);
        self.keeper = Some(keeper.spawn().unwrap());
        let begun = Instant::now();
        let url = with_name(&self.url(), "postgres");
        while let Err(error) = apart(|| Client::connect(&url, NoTls).map(drop)) {
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(60), "{error}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The address, without a database.
    pub fn url(&self) -> String {
        let folder = self.folder.display().to_string().replace('/', "%2F");
        let port = self.settings.iter().find_map(|setting| setting.strip_prefix("port="));
        format!("postgres://rollcall@{folder}:{}/", port.unwrap_or("5432"))
    }

    /// Writes a file that only the server may read, in its folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        give(&path, self.user);
        path
    }

    pub fn database_url(&self, name: &str) -> String {
        with_name(&self.url(), name)
    }

    /// The process id of the server, not of its parent.
    fn server(&self) -> String {
        let text = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().to_owned()
    }

    /// Ends the server as a crash would, without a word to its clients, and starts it again.
    pub fn crash_and_restart(&mut self) {
        let status = Command::new("kill").args(["-QUIT", &self.server()]).status().unwrap();
        assert!(status.success());
        let mut keeper = self.keeper.take().unwrap();
        self.temporary = false;
        // Without its server it has nothing left to end; the folder must outlive it.
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        let pid = self.folder.join("data/postmaster.pid");
        let begun = Instant::now();
        while pid.exists() && begun.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.temporary = true;
        self.run();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}

/// A program that ends with us, and the folder `REMOVED` with it; its arguments are still to come.
pub fn kept(program: &Path, folder: &Path) -> Command {
    // The shell reads from this process until it ends, in whatever way; then the shell ends the program by
    // its id.
    let script = "\"$@\" & server=$!; trap : INT TERM; cat >/dev/null; kill -QUIT $server 2>/dev/null; \
                  wait $server 2>/dev/null; rm -rf -- \"$REMOVED\"";
    let mut keeper = Command::new("sh");
    keeper.args(["-c", script, "sh"]).arg(program);
    keeper.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null());
    // Not with the signals that a terminal sends to the tests.
    keeper.process_group(0);
    keeper
}

/// Makes a file or folder that user's.
pub fn give(path: &Path, user: Option<(u32, u32)>) {
    if let Some((user, group)) = user {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// PostgreSQL does not run as root, as which CI does: then a user who may do little.
pub fn unprivileged(folder: &Path) -> Option<(u32, u32)> {
    if std::fs::metadata(folder).unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("no user to run PostgreSQL as"))
}

pub fn as_user(command: &mut Command, user: Option<(u32, u32)>) {
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
}
