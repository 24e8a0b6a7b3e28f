//! Every setting and limit of a running server: unit, default and reason.
//!
//! The same struct is the command line (`--body-bytes-max`) and the environment
//! (`ROLLCALL_BODY_BYTES_MAX`); a test builds it with [`Settings::default`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, ValueEnum};
use sha2::{Digest as _, Sha256};

use crate::dialects::Dialect;

/// Settings of `rollcall serve` in addition to the schema.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Listen on this address; port 0 picks a free port
    ///
    /// The default accepts calls from this machine alone.
    #[arg(
        long,
        env = "ROLLCALL_LISTEN",
        value_name = "IP:PORT",
        value_parser = address,
        default_value = "127.0.0.1:7878"
    )]
    pub listen: SocketAddr,

    /// Let these users read and write the SQLite file and the files beside it
    ///
    /// 0600 is the server's own user. 0660 is another program of its group as well.
    #[arg(long, env = "ROLLCALL_DATABASE_MODE", value_name = "MODE", default_value = "0600")]
    pub database_mode: FileMode,

    /// Write log lines in this format
    #[arg(long, env = "ROLLCALL_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Write these log lines, such as `info` or `rollcall=debug`
    #[arg(long, env = "ROLLCALL_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub sync: SyncSettings,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub limits: Limits,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub memory: MemorySettings,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub postgres: PostgresSettings,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub http: HttpSettings,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub dialects: DialectSettings,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub auth: AuthSettings,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub operator: OperatorSettings,
}

impl Default for Settings {
    /// The defaults only: neither the command line nor the environment is read.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7878)),
            database_mode: FileMode::default(),
            log_format: LogFormat::Text,
            log: "info".into(),
            sync: SyncSettings::default(),
            limits: Limits::default(),
            memory: MemorySettings::default(),
            postgres: PostgresSettings::default(),
            http: HttpSettings::default(),
            dialects: DialectSettings::default(),
            auth: AuthSettings::default(),
            operator: OperatorSettings::default(),
        }
    }
}

/// The permissions of a file, as octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl Default for FileMode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let is_octal = !digits.is_empty() && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
        let mode = mode.ok_or("expected octal digits, such as 0600 or 0660")?;
        if mode & 0o111 != 0 || mode & 0o600 != 0o600 {
            return Err("the server must be able to read and write the file, and nobody to run it: 0600, 0640 or 0660".into());
        }
        if mode & 0o007 != 0 {
            return Err("every user of the machine could read what passwords and tokens are checked by: 0600, 0640 or 0660".into());
        }
        Ok(Self(mode))
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object for each line.
    Json,
}

/// Declares a struct of numeric settings once: field, flag, variable, default and help.
macro_rules! numeric_settings {
    ($(#[$about:meta])* $name:ident, $heading:literal {
        $($(#[doc = $help:literal])+ $field:ident: $kind:ty = $default:literal, env $env:literal
            $(, formerly $former:literal)?;)+
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, Args, serde::Serialize)]
        #[command(next_help_heading = $heading)]
        pub struct $name {
            $($(#[doc = $help])+
            #[arg(long, env = $env, value_name = "N", default_value_t = $default $(, alias = $former)?)]
            pub $field: $kind,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }
    };
}

numeric_settings! {
    /// How a sync goes.
    SyncSettings, "Syncing" {
        /// Give a device the sync lock for N ms
        ///
        /// A slow phone needs this time between its two calls. A device that vanishes keeps the others out
        /// for as long.
        lease_ms: u64 = 15_000, env "ROLLCALL_LEASE_MS";
        /// End a hold of the sync lock after N s, however often the device renews it
        ///
        /// Then other devices can take the lock for the time of one lease. If none takes it, the holder goes
        /// on. The manifest of 1,000,000 rows arrives within the default time at 1 Mbit/s.
        lock_hold_max_s: u64 = 900, env "ROLLCALL_LOCK_HOLD_MAX_S";
        /// Let a request with `Prefer: wait` wait for at most N s
        ///
        /// Keep it below the idle limits of common proxies.
        lock_wait_max_s: u64 = 20, env "ROLLCALL_LOCK_WAIT_MAX_S";
        /// Put at most N rows on a page of `GET /fetch`
        ///
        /// The default is some 4 MB of JSON.
        fetch_rows_max: usize = 50_000, env "ROLLCALL_FETCH_ROWS_MAX";
        /// Let a device delete N rows of a table before the guard against mass deletion checks
        ///
        /// The guard counts the rows of one request, and those of one device within `mass_delete_window_s`. A
        /// user does not delete so many by hand. (422)
        mass_delete_rows: usize = 50, env "ROLLCALL_MASS_DELETE_ROWS";
        /// Count the deletes of one device together for N s
        ///
        /// A device that takes its own loss of data for its user's wish sends its requests within minutes. A
        /// user who tidies up takes longer.
        mass_delete_window_s: u32 = 3_600, env "ROLLCALL_MASS_DELETE_WINDOW_S";
        /// Put at most N rows on a page of `GET /changes` and of `pull`
        ///
        /// The default is some 2 MB of JSON.
        changes_rows_max: usize = 5_000, env "ROLLCALL_CHANGES_ROWS_MAX";
        /// End a page of `GET /changes` and of `pull` after N bytes in memory
        ///
        /// A page of large rows ends with the row that passes this limit.
        changes_bytes_max: usize = 8_388_608, env "ROLLCALL_CHANGES_BYTES_MAX";
        /// Read at most N entries for a page of `GET /changes`, `pull` or `GET /conflicts`
        ///
        /// A page of `GET /fetch` reads `fetch_rows_max` entries and N more.
        /// Entries that are read and not returned count too. Then the page ends, perhaps empty, and has a
        /// `next`. The default takes some 25 ms; for `pull` the writer spends them.
        page_entries_max: usize = 10_000, env "ROLLCALL_PAGE_ENTRIES_MAX";
        /// Put at most N conflicts on a page of `GET /conflicts`
        ///
        /// The default is a screen or a few.
        conflicts_rows_max: usize = 100, env "ROLLCALL_CONFLICTS_ROWS_MAX";
        /// Keep a response under its `Idempotency-Key` for N hours
        ///
        /// A phone may be off overnight. With fewer than 24, a response may stay for up to a day.
        idempotency_hours: u32 = 24, env "ROLLCALL_IDEMPOTENCY_HOURS";
        /// Keep at most N responses for one device
        ///
        /// A device has one request under way, or a few.
        idempotency_keys_max: usize = 32, env "ROLLCALL_IDEMPOTENCY_KEYS_MAX";
        /// Keep at most N bytes of responses for one device
        ///
        /// A device repeats its last request, so the newest response stays however long it is.
        idempotency_bytes_max: usize = 8_388_608, env "ROLLCALL_IDEMPOTENCY_BYTES_MAX";
        /// Remember a deletion for N days
        ///
        /// A device that was away for longer fetches everything again.
        tombstone_days: u32 = 90, env "ROLLCALL_TOMBSTONE_DAYS";
        /// Let a silent device hold deletions back for N days
        ///
        /// After that the device may be lost for good, and the server forgets deletions that it has not seen.
        device_days: u32 = 180, env "ROLLCALL_DEVICE_DAYS";
        /// List a conflict in `GET /conflicts` for N days
        ///
        /// People notice late.
        conflict_days: u32 = 90, env "ROLLCALL_CONFLICT_DAYS";
        /// Let caches answer for N s for owners that are public
        ///
        /// Readers then hear of a change up to so much later. 0 makes every cache ask whether its copy is current.
        public_max_age_s: u32 = 10, env "ROLLCALL_PUBLIC_MAX_AGE_S";
        /// Purge what is old every N s
        ///
        /// The first purge runs a minute after the start. 0 leaves it to `rollcall purge`. Where many servers
        /// share a database, set it to 0 on all but one.
        purge_s: u64 = 3_600, env "ROLLCALL_PURGE_S";
    }
}

/// How a server uses PostgreSQL; SQLite needs none of it.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "PostgreSQL")]
pub struct PostgresSettings {
    /// Open at most N connections to PostgreSQL
    ///
    /// Those of all servers together must stay below PostgreSQL's `max_connections`.
    #[arg(long, env = "ROLLCALL_DATABASE_CONNECTIONS_MAX", value_name = "N", default_value_t = 16)]
    pub database_connections_max: u32,

    /// Let one statement take at most N ms
    ///
    /// The slowest statement that a request needs takes far less.
    #[arg(long, env = "ROLLCALL_DATABASE_STATEMENT_MS", value_name = "N", default_value_t = 30_000)]
    pub database_statement_ms: u64,

    /// Let PostgreSQL roll back a transaction after N ms of silence
    ///
    /// A server that is frozen then lets its owners go. Keep it below `request_s`.
    #[arg(long, env = "ROLLCALL_DATABASE_IDLE_MS", value_name = "N", default_value_t = 10_000)]
    pub database_idle_ms: u64,

    /// Use prepared statements
    ///
    /// Set it to `false` behind a pooler that gives each transaction another connection.
    #[arg(
        long,
        env = "ROLLCALL_DATABASE_PREPARE",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub database_prepare: bool,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            database_connections_max: 16,
            database_statement_ms: 30_000,
            database_idle_ms: 10_000,
            database_prepare: true,
        }
    }
}

numeric_settings! {
    /// What one request and one owner may cost. `GET /limits` publishes them.
    Limits, "Limits" {
        /// Accept request bodies of at most N bytes (413)
        ///
        /// The default is about 25,000 small rows.
        body_bytes_max: usize = 8_388_608, env "ROLLCALL_BODY_BYTES_MAX";
        /// Accept at most N rows to add, update and delete in one request (422)
        ///
        /// The default is one transaction of some 100 ms.
        rows_max: usize = 5_000, env "ROLLCALL_ROWS_MAX";
        /// Accept at most N keys under `get` in one request (422)
        ///
        /// The response must fit a phone.
        get_keys_max: usize = 5_000, env "ROLLCALL_GET_KEYS_MAX";
        /// Accept rows of at most N bytes (verdict `rejected`)
        ///
        /// A sync server is no file store.
        row_bytes_max: usize = 262_144, env "ROLLCALL_ROW_BYTES_MAX";
        /// Let one request hold at most N bytes of each kind (422)
        ///
        /// The kinds are: the rows that it sends; the rows that it touches, with their copies and the lists
        /// that are joined; what is kept of its conflicts; the rows in its response; the length of its
        /// response. A small body may name much. The default is many times what `rows_max` small rows take.
        batch_bytes_max: usize = 33_554_432, env "ROLLCALL_BATCH_BYTES_MAX";
        /// Accept at most N levels of nesting in a `json` column (verdict `rejected`)
        ///
        /// Deeper JSON is an accident or an attack.
        json_depth_max: usize = 16, env "ROLLCALL_JSON_DEPTH_MAX";
        /// Keep at most N live rows for one owner (507)
        ///
        /// One owner must not fill the disk.
        owner_rows_max: u64 = 1_000_000, env "ROLLCALL_OWNER_ROWS_MAX";
        /// Keep at most N bytes of live rows for one owner (507)
        ///
        /// The default is 1 GiB. One owner must not fill the disk.
        owner_bytes_max: u64 = 1_073_741_824, env "ROLLCALL_OWNER_BYTES_MAX";
        /// Keep at most N bytes of the past of one owner: remembered deletions, earlier states, conflicts, kept responses
        ///
        /// The default is 1 GiB. What an owner no longer sees must not fill the disk either. Beyond it the oldest
        /// earlier states go first, then kept responses. Conflicts go by age alone, so a write that must note one is
        /// refused (507). Deleting is always possible. 0 is no bound.
        owner_past_bytes_max: u64 = 1_073_741_824, env "ROLLCALL_OWNER_PAST_BYTES_MAX";
        /// End a request after N s, counted from when its body has arrived (503)
        ///
        /// No client waits longer.
        request_s: u64 = 30, env "ROLLCALL_REQUEST_S";
        /// Give the body of one request N s to arrive (408)
        ///
        /// The default is what `body_bytes_max` takes at `body_bytes_per_s_min`, and some more, so that a
        /// slow line loses no upload. A body that is still arriving holds neither the lock nor a thread, only
        /// its connection and the bytes that have arrived.
        body_s: u64 = 9_000, env "ROLLCALL_BODY_S";
        /// Accept at most N bytes of header lines in one request (431)
        ///
        /// A JWT with many groups fits. Raise it if yours are larger.
        header_bytes_max: usize = 16_384, env "ROLLCALL_HEADER_BYTES_MAX";
        /// Accept at most N header lines in one request (431)
        headers_max: usize = 64, env "ROLLCALL_HEADERS_MAX";
        /// Wait N s for the header of a request, and for the next request on a kept connection
        ///
        /// Behind a proxy set it above the proxy's own idle time.
        header_read_s: u64 = 15, env "ROLLCALL_HEADER_READ_S";
        /// Refuse bodies that arrive at fewer than N bytes a second after the first 5 s (408)
        ///
        /// This is an average. A slower body only holds a connection. A body that pauses for `request_s` is
        /// too slow as well.
        body_bytes_per_s_min: usize = 1_024, env "ROLLCALL_BODY_BYTES_PER_S_MIN";
        /// Serve at most N connections at once
        ///
        /// More connections wait to be accepted.
        connections_max: usize = 4_096, env "ROLLCALL_CONNECTIONS_MAX";
        /// Serve at most N connections at once from one address
        ///
        /// More connections are closed.
        connections_per_address_max: usize = 64, env "ROLLCALL_CONNECTIONS_PER_ADDRESS_MAX";
        /// Serve at most N event streams at once (503)
        ///
        /// Each is a connection. By default half of the connections stay free for everything else.
        event_streams_max: usize = 2_048, env "ROLLCALL_EVENT_STREAMS_MAX";
        /// Serve at most N event streams of one user
        ///
        /// The oldest makes room: it may be of a phone that lost its network. A stream of all owners of its user takes
        /// some 150 bytes for each of them.
        event_streams_per_user_max: usize = 32, env "ROLLCALL_EVENT_STREAMS_PER_USER_MAX",
            formerly "event-streams-per-owner-max";
        /// Send a heartbeat on an event stream every N s
        ///
        /// Keep it below the idle limits of proxies and phone networks.
        event_heartbeat_s: u64 = 15, env "ROLLCALL_EVENT_HEARTBEAT_S";
        /// Give running requests N s to end after SIGTERM
        ///
        /// Keep it below the 30 s that supervisors give.
        drain_s: u64 = 25, env "ROLLCALL_DRAIN_S";
        /// Allow N failed log-ins a minute for one account from one address (429)
        ///
        /// The limit also holds for one device that shows a token. It makes guessing slow. 0 sets no limit.
        logins_per_account_per_min: u32 = 5, env "ROLLCALL_LOGINS_PER_ACCOUNT_PER_MIN";
        /// Allow N failed log-ins an hour for one account from all unknown addresses together (429)
        ///
        /// A device with a token of its own passes, and so does an address that logged in during the last 30
        /// days. 0 sets no limit.
        logins_per_account_per_hour: u32 = 20, env "ROLLCALL_LOGINS_PER_ACCOUNT_PER_HOUR";
        /// Allow N log-in and registration attempts a minute from one address (429)
        ///
        /// 0 sets no limit.
        logins_per_address_per_min: u32 = 20, env "ROLLCALL_LOGINS_PER_ADDRESS_PER_MIN";
        /// Allow N mails an hour to one address, whether it has an account or not (429)
        ///
        /// A stranger must not fill somebody's mailbox. 0 sets no limit.
        mails_per_account_per_hour: u32 = 5, env "ROLLCALL_MAILS_PER_ACCOUNT_PER_HOUR";
        /// Allow N requests a minute of one address that reads public owners without a token (429)
        ///
        /// A cache in front of the server sends far fewer. 0 sets no limit.
        public_requests_per_min: u32 = 600, env "ROLLCALL_PUBLIC_REQUESTS_PER_MIN";
        /// Allow N mails an hour to all addresses together (429)
        ///
        /// Mail services refuse senders of more than their plan. 0 sets no limit.
        mails_per_hour: u32 = 1_000, env "ROLLCALL_MAILS_PER_HOUR";
        /// Keep at most N devices of one user
        ///
        /// This counts the devices with a token, and, of each owner, the installations that name themselves.
        /// The device that was silent longest makes room.
        devices_per_user_max: usize = 100, env "ROLLCALL_DEVICES_PER_USER_MAX";
        /// Let a user be a member of at most N owners (507)
        ///
        /// One list names them all, with the version of each.
        owners_per_user_max: usize = 2_000, env "ROLLCALL_OWNERS_PER_USER_MAX";
        /// Let an owner have at most N members (507)
        members_per_owner_max: usize = 10_000, env "ROLLCALL_MEMBERS_PER_OWNER_MAX";
        /// Let an owner have at most N open invitations (507)
        ///
        /// One invitation with many uses invites many people.
        invitations_per_owner_max: usize = 100, env "ROLLCALL_INVITATIONS_PER_OWNER_MAX";
        /// Let an invitation be open for at most N hours (422)
        invitation_hours_max: u32 = 720, env "ROLLCALL_INVITATION_HOURS_MAX";
        /// Let a user make at most N invitations an hour (429)
        ///
        /// One invitation with many uses invites many people, so nobody needs more. Each costs two writes. 0 sets no limit.
        invitations_per_hour: u32 = 100, env "ROLLCALL_INVITATIONS_PER_HOUR";
        /// Allow N attempts an hour of one user to accept an invitation (429)
        ///
        /// A code has 128 random bits and cannot be guessed: the limit keeps the attempts from costing much. 0 sets no limit.
        invitation_attempts_per_hour: u32 = 60, env "ROLLCALL_INVITATION_ATTEMPTS_PER_HOUR";
        /// Wait N ms for the database's one writer (503)
        ///
        /// After that the client had better come back. With PostgreSQL it is the wait for a connection or for
        /// another writer of the same owner.
        busy_wait_ms: u64 = 5_000, env "ROLLCALL_BUSY_WAIT_MS";
        /// Let at most N writers wait for the database at once (503)
        ///
        /// The default is some 50 ms of small syncs, and half of the threads there are. One owner has half of
        /// the places at most.
        write_queue_max: usize = 256, env "ROLLCALL_WRITE_QUEUE_MAX";
        /// Open N connections for reading the database
        ///
        /// Readers never wait for the writer. Pages and long responses have at most half of them at once, and
        /// each owner has one. With PostgreSQL it only limits how many long responses are sent at once.
        readers_max: u32 = 8, env "ROLLCALL_READERS_MAX";
        /// Keep N connections for accounts and tokens alone
        ///
        /// So nobody who reads for long keeps others from logging in. With PostgreSQL they are some of
        /// `database_connections_max`.
        account_connections_max: u32 = 2, env "ROLLCALL_ACCOUNT_CONNECTIONS_MAX";
    }
}

numeric_settings! {
    /// What the server keeps in memory so as not to work twice.
    MemorySettings, "Memory" {
        /// Let all requests together hold at most N bytes of memory (503)
        ///
        /// This counts bodies that are arriving, rows, responses until they have left, the responses kept
        /// ready, and the memory for passwords. A request that finds no room gets 503 `busy`. Requests with
        /// bodies up to 64 KiB keep a quarter for themselves, and one owner never has more than half of the
        /// rest. Set it to several times what the largest request may need (120 MiB by default). The process
        /// needs some 100 MB beyond it.
        memory_bytes_max: usize = 536_870_912, env "ROLLCALL_MEMORY_BYTES_MAX";
        /// Keep at most N bytes of responses ready in memory
        ///
        /// These are manifests by owner and version, of owners who need less than half of it. 0 keeps none.
        /// It is part of `memory_bytes_max`.
        ready_bytes_max: usize = 33_554_432, env "ROLLCALL_READY_BYTES_MAX";
        /// Warn when SQLite's write-ahead log grows beyond N bytes
        ///
        /// It stays near 16 MB unless another program reads for long. 0 never warns.
        wal_bytes_warn: u64 = 134_217_728, env "ROLLCALL_WAL_BYTES_WARN";
        /// Let at most N log lines wait to be written
        ///
        /// A line takes some 200 bytes. More lines are dropped, and counted at the stop: a slow disk or
        /// terminal must not hold requests up.
        log_lines_max: usize = 16_384, env "ROLLCALL_LOG_LINES_MAX";
    }
}

/// Other sync protocols that the server speaks, and what they may cost.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Dialects")]
pub struct DialectSettings {
    /// Serve clients of this other sync protocol too
    ///
    /// The server refuses to start where a table or column has a name that the dialect needs. Repeat the flag, or
    /// separate by commas.
    #[arg(long = "dialect", env = "ROLLCALL_DIALECTS", value_name = "NAME", value_delimiter = ',')]
    pub dialects: Vec<Dialect>,

    /// Let a live request of an Electric client wait for at most N s
    ///
    /// Keep it below `request_s` and the idle limits of common proxies.
    #[arg(long, env = "ROLLCALL_ELECTRIC_WAIT_S", value_name = "N", default_value_t = 20)]
    pub electric_wait_s: u64,

    /// Send a sign of life to a PowerSync client every N s
    ///
    /// Keep it below the idle limits of proxies and phone networks.
    #[arg(long, env = "ROLLCALL_POWERSYNC_KEEPALIVE_S", value_name = "N", default_value_t = 20)]
    pub powersync_keepalive_s: u64,

    /// Accept at most N buckets in a request of a PowerSync client (422)
    ///
    /// A client has one, and others for a moment after a restore.
    #[arg(long, env = "ROLLCALL_POWERSYNC_BUCKETS_MAX", value_name = "N", default_value_t = 1_000)]
    pub powersync_buckets_max: usize,
}

impl Default for DialectSettings {
    fn default() -> Self {
        Self {
            dialects: Vec::new(),
            electric_wait_s: 20,
            powersync_keepalive_s: 20,
            powersync_buckets_max: 1_000,
        }
    }
}

/// Headers that tracing tools add to every request of a page.
const TRACING_HEADERS: [&str; 4] = ["baggage", "sentry-trace", "traceparent", "tracestate"];

/// What the server says to browsers and proxies.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpSettings {
    /// Let pages of these web origins call the API, such as `https://app.example`, `null` or `*`
    ///
    /// `null` is for pages from files or sandboxes. Repeat the flag, or separate by commas.
    #[arg(long = "cors-origin", env = "ROLLCALL_CORS_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<String>,

    /// Let pages of these origins send these headers beside those of the API, or `*`
    ///
    /// Tracing tools add their own headers to every request. Repeat the flag, or separate by commas.
    #[arg(
        long = "cors-headers",
        env = "ROLLCALL_CORS_HEADERS",
        value_name = "NAME",
        value_delimiter = ',',
        default_values_t = TRACING_HEADERS.map(str::to_owned)
    )]
    pub cors_headers: Vec<String>,

    /// Believe `X-Forwarded-For` of proxies with these addresses or networks
    ///
    /// A network is written `10.0.0.0/8`. Repeat the flag, or separate by commas.
    #[arg(
        long = "trusted-proxy",
        env = "ROLLCALL_TRUSTED_PROXIES",
        value_name = "IP|CIDR",
        value_delimiter = ','
    )]
    pub trusted_proxies: Vec<Network>,
}

/// The addresses with the same leading bits: `10.0.0.0/8`, or `10.0.0.1` for a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address is in the network. An IPv4 address is the same on a dual-stack socket.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let differing = u128::from(first.to_bits() ^ address.to_bits());
                differing.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let differing = first.to_bits() ^ address.to_bits();
                differing.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || "expected an address, such as 10.0.0.1, or a network, such as 10.0.0.0/8".to_owned();
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| refused())?;
        let bits_max: u8 = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => bits_max,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= bits_max).ok_or_else(refused)?
            }
            Some(_) => return Err(refused()),
        };
        let first = address.to_canonical();
        // An IPv4 network in the form of IPv6.
        let bits = match (address, first) {
            (IpAddr::V6(_), IpAddr::V4(_)) => bits.checked_sub(96).ok_or_else(refused)?,
            _ => bits,
        };
        Ok(Self { first, bits })
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            cors_origins: Vec::new(),
            cors_headers: TRACING_HEADERS.map(str::to_owned).to_vec(),
            trusted_proxies: Vec::new(),
        }
    }
}

/// Who may come in, and how tokens are read.
#[derive(Clone, Args)]
#[command(next_help_heading = "Accounts and tokens")]
pub struct AuthSettings {
    /// Take tokens of this kind: `local` (register and log in here) or `jwt` (your identity provider's)
    #[arg(long, env = "ROLLCALL_AUTH", value_name = "MODE", default_value = "local")]
    pub auth: AuthMode,

    /// Let anyone register over HTTP, or nobody: `closed` leaves it to `rollcall account add`
    #[arg(long, env = "ROLLCALL_REGISTRATION", value_name = "MODE", default_value = "open")]
    pub registration: Registration,

    /// Accept a device's token for N days
    ///
    /// An app that was offline for long should not need its user.
    #[arg(long, env = "ROLLCALL_TOKEN_DAYS", value_name = "N", default_value_t = 365)]
    pub token_days: u32,

    /// Hash at most N passwords at once, and at most one a core
    ///
    /// Each needs 19 MiB, which are kept for the next one.
    #[arg(long, env = "ROLLCALL_PASSWORD_HASHES_MAX", value_name = "N", default_value_t = 4)]
    pub password_hashes_max: usize,

    /// Let at most N log-ins and registrations wait for a password to be hashed (429)
    ///
    /// Each takes some 100 ms.
    #[arg(long, env = "ROLLCALL_PASSWORD_QUEUE_MAX", value_name = "N", default_value_t = 16)]
    pub password_queue_max: usize,

    /// Keep the callers of at most N tokens in memory
    ///
    /// One takes some 300 bytes, and saves a look into the database or the check of a signature. 0 looks
    /// every time.
    #[arg(long, env = "ROLLCALL_TOKENS_KNOWN_MAX", value_name = "N", default_value_t = 10_000)]
    pub tokens_known_max: usize,

    /// Accept a token for N s without looking it up again
    ///
    /// A token that this server revokes ends at once. One that another server or `rollcall account` revokes
    /// ends within this time, and on PostgreSQL usually within a moment.
    #[arg(long, env = "ROLLCALL_TOKEN_KNOWN_S", value_name = "N", default_value_t = 5)]
    pub token_known_s: u32,

    /// Read the HS256 secret of `jwt` tokens from this file; it needs at least 32 bytes
    #[arg(long, env = "ROLLCALL_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<PathBuf>,

    /// Read the RSA, EC or Ed25519 keys of `jwt` tokens from this JWKS: a file, or an http(s) URL
    ///
    /// A URL is requested again when no key fits a token, every 10 s at most. While the server cannot
    /// check a token, because it cannot fetch the keys or they may have changed since, the status is 503 with
    /// `Retry-After`, never 401. Redirects are followed from https to https, and on this machine.
    #[arg(long, env = "ROLLCALL_JWT_KEYS", value_name = "FILE|URL")]
    pub jwt_keys: Option<String>,

    /// Accept only `jwt` tokens of this issuer (`iss`)
    ///
    /// It is required with `--jwt-keys`.
    #[arg(long, env = "ROLLCALL_JWT_ISSUER", value_name = "ISS")]
    pub jwt_issuer: Option<String>,

    /// Accept only `jwt` tokens for this audience (`aud`)
    ///
    /// Without it, tokens that name an audience are refused.
    #[arg(long, env = "ROLLCALL_JWT_AUDIENCE", value_name = "AUD")]
    pub jwt_audience: Option<String>,

    /// Take the user's id from this claim
    #[arg(long, env = "ROLLCALL_JWT_USER_CLAIM", value_name = "CLAIM", default_value = "sub")]
    pub jwt_user_claim: String,

    /// Take the owner's id from this claim, for users who share rows
    ///
    /// Without it the user is the owner.
    #[arg(long, env = "ROLLCALL_JWT_OWNER_CLAIM", value_name = "CLAIM")]
    pub jwt_owner_claim: Option<String>,

    /// Take the owners that a user has from this claim, with the user's role at each
    ///
    /// It is an object of roles by owner, or a list of owners. A token with the claim has these owners and its home, and no
    /// others. A token without it has the owners of which the user is a member here.
    #[arg(long, env = "ROLLCALL_JWT_OWNERS_CLAIM", value_name = "CLAIM")]
    pub jwt_owners_claim: Option<String>,

    /// Let those who manage an owner make it public: then anyone may read it, without a token
    ///
    /// Without it no owner is public, whatever it was before.
    #[arg(
        long,
        env = "ROLLCALL_PUBLIC_OWNERS",
        value_name = "BOOL",
        default_value_t = false,
        action = clap::ArgAction::Set
    )]
    pub public_owners: bool,

    /// Take the device's id from this claim
    #[arg(long, env = "ROLLCALL_JWT_DEVICE_CLAIM", value_name = "CLAIM", default_value = "device_id")]
    pub jwt_device_claim: String,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub mail: MailSettings,
}

/// Mails to users of accounts that are kept here. What sends them is the operator's own.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Mail")]
pub struct MailSettings {
    /// Run this program for each mail, and give it the mail as JSON on its standard input
    ///
    /// Its arguments follow, with blanks between; no shell reads them. Without a program or a webhook nobody can reset a
    /// password but the operator.
    #[arg(long, env = "ROLLCALL_MAIL_COMMAND", value_name = "PROGRAM", value_delimiter = ' ')]
    pub mail_command: Vec<String>,

    /// Send each mail as JSON to this URL, in a POST
    ///
    /// A status other than 200 to 299 counts as a failure, and a redirect is one.
    #[arg(long, env = "ROLLCALL_MAIL_WEBHOOK", value_name = "URL", hide_env_values = true)]
    pub mail_webhook: Option<String>,

    /// Read from this file the token that the webhook gets as `Authorization: Bearer`
    #[arg(long, env = "ROLLCALL_MAIL_WEBHOOK_TOKEN_FILE", value_name = "FILE")]
    pub mail_webhook_token_file: Option<PathBuf>,

    /// Begin the links in mails with this URL, such as `https://app.example`
    ///
    /// They lead to the pages `/reset` and `/verify` of the app, with the token behind `#`. Without it a mail has the
    /// token alone.
    #[arg(long, env = "ROLLCALL_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,

    /// Give the program or the webhook N s for one mail
    ///
    /// Mails are sent one after the other. One that failed is not sent again: its user asks again.
    #[arg(long, env = "ROLLCALL_MAIL_S", value_name = "N", default_value_t = 10)]
    pub mail_s: u64,

    /// Let at most N mails wait to be sent (429)
    ///
    /// At 10 s each the default takes ten minutes.
    #[arg(long, env = "ROLLCALL_MAIL_QUEUE_MAX", value_name = "N", default_value_t = 64)]
    pub mail_queue_max: usize,

    /// Accept the token of a password reset for N minutes
    ///
    /// A mail takes minutes, and a mailbox that is read by others later must not open the account.
    #[arg(long, env = "ROLLCALL_RESET_MINUTES", value_name = "N", default_value_t = 30)]
    pub reset_minutes: u32,

    /// Accept the token that verifies an address for N hours
    ///
    /// People read mail at the weekend.
    #[arg(long, env = "ROLLCALL_VERIFICATION_HOURS", value_name = "N", default_value_t = 72)]
    pub verification_hours: u32,

    /// Have users prove their address: `off`, `offered` at registration, or `required` before they log in
    ///
    /// `offered` and `required` need a program or a webhook. With `required` a log-in without proof is 403
    /// `email_not_verified`, and has the mail sent once more.
    #[arg(long, env = "ROLLCALL_EMAIL_VERIFICATION", value_name = "MODE", default_value = "off")]
    pub email_verification: Verification,
}

impl Default for MailSettings {
    fn default() -> Self {
        Self {
            mail_command: Vec::new(),
            mail_webhook: None,
            mail_webhook_token_file: None,
            public_url: None,
            mail_s: 10,
            mail_queue_max: 64,
            reset_minutes: 30,
            verification_hours: 72,
            email_verification: Verification::Off,
        }
    }
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            auth: AuthMode::Local,
            registration: Registration::Open,
            token_days: 365,
            password_hashes_max: 4,
            password_queue_max: 16,
            tokens_known_max: 10_000,
            token_known_s: 5,
            jwt_secret_file: None,
            jwt_keys: None,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_user_claim: "sub".into(),
            jwt_owner_claim: None,
            jwt_owners_claim: None,
            public_owners: false,
            jwt_device_claim: "device_id".into(),
            mail: MailSettings::default(),
        }
    }
}

impl std::fmt::Debug for AuthSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A JWKS URL may contain a key in its query.
        f.debug_struct("AuthSettings")
            .field("auth", &self.auth)
            .field("registration", &self.registration)
            .finish_non_exhaustive()
    }
}

/// Settings for the operator of the server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Operating")]
pub struct OperatorSettings {
    /// Allow the system's clock to be N s behind the newest time that is stored, or behind itself
    ///
    /// Beyond it the server warns, and goes on from the newer time at half the pace until the clock has
    /// caught up. A machine without a battery starts in 1970 or 2001, and edits with such a time would lose
    /// against everything older. 0 trusts the system's clock.
    #[arg(long, env = "ROLLCALL_CLOCK_BEHIND_S", value_name = "N", default_value_t = 300)]
    pub clock_behind_s: u64,

    /// Require this token for `GET /metrics`; it needs at least 16 characters
    ///
    /// Without it anyone may read the counts.
    #[arg(long, env = "ROLLCALL_METRICS_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub metrics_token: Option<Secret>,

    /// Serve the console at `/console` to callers with this token; it needs at least 16 characters
    ///
    /// Without it there is no console.
    #[arg(long, env = "ROLLCALL_CONSOLE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub console_token: Option<Secret>,
}

impl Default for OperatorSettings {
    fn default() -> Self {
        Self { clock_behind_s: 300, metrics_token: None, console_token: None }
    }
}

/// A secret that a caller must send. Only its hash is stored, so that nothing can log it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    hash: [u8; 32],
    chars: usize,
}

impl Secret {
    /// A shorter secret could be guessed.
    pub const CHARS_MIN: usize = 16;

    /// Whether it is too long to be guessed.
    pub fn is_long_enough(&self) -> bool {
        self.chars >= Self::CHARS_MIN
    }

    /// Whether this is the secret, compared in constant time.
    pub fn is(&self, given: &str) -> bool {
        let given = Self::from(given);
        self.hash.iter().zip(given.hash).fold(0, |differ, (ours, theirs)| differ | (ours ^ theirs)) == 0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self { hash: Sha256::digest(text).into(), chars: text.chars().count() }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Parses an address to listen on.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected IP:PORT, such as 127.0.0.1:7878, or 0.0.0.0:7878 for every network".to_owned())
}

/// Who issues tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// This server, by `POST /register` and `POST /login`.
    Local,
    /// The app's own identity provider.
    Jwt,
}

/// Whether anyone may register over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Registration {
    /// Anyone.
    Open,
    /// Nobody: the command line creates accounts.
    Closed,
}

/// Whether users prove that their address is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verification {
    /// No mail is sent for it.
    Off,
    /// A mail is sent at registration; nothing depends on it.
    Offered,
    /// Nobody logs in before.
    Required,
}

/// Reads settings from the environment and flags only, for commands and tests.
#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    settings: Settings,
}

impl Settings {
    /// The settings of flags and the environment.
    pub fn from_flags<I: IntoIterator<Item = String>>(flags: I) -> Result<Self, clap::Error> {
        let named = std::iter::once("rollcall".to_owned()).chain(flags);
        Alone::try_parse_from(named).map(|alone| alone.settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The defaults of the flags and of the structs must be equal.
    #[test]
    fn the_defaults_of_flags_and_structs_are_the_same() {
        let settings = Settings::from_flags([]).unwrap();
        assert_eq!(format!("{settings:?}"), format!("{:?}", Settings::default()));
    }

    #[test]
    fn a_flag_of_an_earlier_release_still_works() {
        let settings = Settings::from_flags(["--event-streams-per-owner-max".into(), "7".into()]).unwrap();
        assert_eq!(settings.limits.event_streams_per_user_max, 7);
    }

    #[test]
    fn a_database_is_never_everybodys() {
        for (text, mode) in [("0600", 0o600), ("600", 0o600), ("0660", 0o660), ("0o640", 0o640)] {
            assert_eq!(text.parse(), Ok(FileMode(mode)), "{text}");
        }
        for bad in ["", "rw", "0644", "0666", "0700", "0400", "0060", "01600", "0680", "+600"] {
            assert!(bad.parse::<FileMode>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_network_has_the_addresses_that_begin_like_it() {
        for (network, inside, outside) in [
            ("10.0.0.1", &["10.0.0.1", "::ffff:10.0.0.1"][..], &["10.0.0.2", "::1"][..]),
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255"], &["11.0.0.0", "9.255.255.255", "::a00:1"]),
            ("10.1.2.3/24", &["10.1.2.0", "10.1.2.255"], &["10.1.3.0"]),
            ("192.0.2.6/31", &["192.0.2.6", "192.0.2.7"], &["192.0.2.5", "192.0.2.8"]),
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], &["::1"]),
            ("fd00::1", &["fd00::1"], &["fd00::2"]),
            ("fd00::/8", &["fd00::", "fdff::1"], &["fe00::", "10.0.0.1"]),
            ("::/0", &["::1", "ffff::"], &["10.0.0.1"]),
            ("::ffff:10.0.0.0/104", &["10.9.9.9"], &["11.0.0.0"]),
        ] {
            let read: Network = network.parse().unwrap();
            for address in inside {
                assert!(read.contains(address.parse().unwrap()), "{network} has {address}");
            }
            for address in outside {
                assert!(!read.contains(address.parse().unwrap()), "{network} has not {address}");
            }
        }
        for bad in [
            "",
            "10.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "/8",
            "fd00::/129",
            "a/b",
            "::ffff:10.0.0.0/90",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?}");
        }
    }
}
