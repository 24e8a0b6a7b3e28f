//! Every setting and limit of a running server: unit, default and reason.
//!
//! The same struct is the command line (`--body-bytes-max`) and the environment
//! (`ROLLCALL_BODY_BYTES_MAX`); a test builds it with [`Settings::default`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, ValueEnum};
use sha2::{Digest as _, Sha256};

/// Settings of `rollcall serve` beside the schema.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where to listen; port 0 picks a free one
    #[arg(
        long,
        env = "ROLLCALL_LISTEN",
        value_name = "IP:PORT",
        value_parser = address,
        default_value = "127.0.0.1:7878"
    )]
    pub listen: SocketAddr,

    /// Who may read and write the SQLite database and the files beside it: 0600 is the server's own user, 0660
    /// another program of its group as well
    #[arg(long, env = "ROLLCALL_DATABASE_MODE", value_name = "MODE", default_value = "0600")]
    pub database_mode: FileMode,

    /// How log lines are written
    #[arg(long, env = "ROLLCALL_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Which log lines are written, such as `info` or `rollcall=debug`
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
    pub auth: AuthSettings,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would print it as help of the first flag
    pub operator: OperatorSettings,
}

impl Default for Settings {
    /// The defaults alone: neither the command line nor the environment is read.
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
            auth: AuthSettings::default(),
            operator: OperatorSettings::default(),
        }
    }
}

/// Who may read and write a file, as octal digits.
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

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Declares a struct of numeric settings once: field, flag, variable, default and help together.
macro_rules! numeric_settings {
    ($(#[$about:meta])* $name:ident, $heading:literal {
        $($(#[doc = $help:literal])+ $field:ident: $kind:ty = $default:literal, env $env:literal;)+
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, Args, serde::Serialize)]
        #[command(next_help_heading = $heading)]
        pub struct $name {
            $($(#[doc = $help])+
            #[arg(long, env = $env, value_name = "N", default_value_t = $default)]
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
        /// Lease of the sync lock, ms; long enough for a slow phone between its two calls
        lease_ms: u64 = 15_000, env "ROLLCALL_LEASE_MS";
        /// Longest hold of the sync lock, s, however often its lease is renewed; then the lock is others' for the time of one lease, and if none takes it the holder goes on; the roll call of 1,000,000 rows comes within it at 1 Mbit/s
        lock_hold_max_s: u64 = 900, env "ROLLCALL_LOCK_HOLD_MAX_S";
        /// Longest `Prefer: wait`, s; below common proxies' idle limits
        lock_wait_max_s: u64 = 20, env "ROLLCALL_LOCK_WAIT_MAX_S";
        /// Rows on a page of `/fetch`; some 4 MB of JSON
        fetch_rows_max: usize = 50_000, env "ROLLCALL_FETCH_ROWS_MAX";
        /// Deletes of one table, in one request or by one device within `mass_delete_window_s`, before the guard against mass deletion looks
        mass_delete_rows: usize = 50, env "ROLLCALL_MASS_DELETE_ROWS";
        /// How long the deletes of one device count together for that guard, s; one that takes its own loss for the user's will sends its requests within minutes, a user who tidies up takes longer
        mass_delete_window_s: u32 = 3_600, env "ROLLCALL_MASS_DELETE_WINDOW_S";
        /// Rows on a page of `/changes` and of `pull`; some 2 MB of JSON
        changes_rows_max: usize = 5_000, env "ROLLCALL_CHANGES_ROWS_MAX";
        /// Rows on a page of `/changes` and of `pull`, bytes in memory; the page ends with the row that passes it
        changes_bytes_max: usize = 8_388_608, env "ROLLCALL_CHANGES_BYTES_MAX";
        /// Entries that are looked at for a page of `/changes`, `pull` or `/conflicts`, those included that are not on it; then it ends, perhaps empty, and names the next one; some 25 ms, in the writer for `pull`
        page_entries_max: usize = 10_000, env "ROLLCALL_PAGE_ENTRIES_MAX";
        /// Conflicts on a page of `/conflicts`
        conflicts_rows_max: usize = 100, env "ROLLCALL_CONFLICTS_ROWS_MAX";
        /// Life of an answer kept under an `Idempotency-Key`, hours; a phone may be off overnight
        idempotency_hours: u32 = 24, env "ROLLCALL_IDEMPOTENCY_HOURS";
        /// Answers kept for one device; a device has one request under way, or a few
        idempotency_keys_max: usize = 32, env "ROLLCALL_IDEMPOTENCY_KEYS_MAX";
        /// Answers kept for one device, bytes; the newest stays however long it is
        idempotency_bytes_max: usize = 8_388_608, env "ROLLCALL_IDEMPOTENCY_BYTES_MAX";
        /// Life of a tombstone, days; a device that was away for longer fetches everything
        tombstone_days: u32 = 90, env "ROLLCALL_TOMBSTONE_DAYS";
        /// Silence after which a device no longer holds tombstones back, days
        device_days: u32 = 180, env "ROLLCALL_DEVICE_DAYS";
        /// Life of a conflict in `/conflicts`, days
        conflict_days: u32 = 90, env "ROLLCALL_CONFLICT_DAYS";
        /// Time between two purges of what is old, s; 0 leaves it to `rollcall purge`
        purge_s: u64 = 3_600, env "ROLLCALL_PURGE_S";
    }
}

/// How a server uses PostgreSQL; SQLite needs none of it.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "PostgreSQL")]
pub struct PostgresSettings {
    /// Connections at once; those of all servers together stay below PostgreSQL's `max_connections`
    #[arg(long, env = "ROLLCALL_DATABASE_CONNECTIONS_MAX", value_name = "N", default_value_t = 16)]
    pub database_connections_max: u32,

    /// One statement, ms; the slowest that a request needs takes far less
    #[arg(long, env = "ROLLCALL_DATABASE_STATEMENT_MS", value_name = "N", default_value_t = 30_000)]
    pub database_statement_ms: u64,

    /// Silence inside a transaction before PostgreSQL undoes it, ms; a server that is frozen lets its owners go then
    #[arg(long, env = "ROLLCALL_DATABASE_IDLE_MS", value_name = "N", default_value_t = 10_000)]
    pub database_idle_ms: u64,

    /// Whether statements are prepared; `false` behind a pooler that gives each transaction another connection
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
        /// Request body, bytes; about 25,000 small rows (413)
        body_bytes_max: usize = 8_388_608, env "ROLLCALL_BODY_BYTES_MAX";
        /// Rows to add, update and delete in one request; one transaction of some 100 ms (422)
        rows_max: usize = 5_000, env "ROLLCALL_ROWS_MAX";
        /// Keys under `get` in one request (422)
        get_keys_max: usize = 5_000, env "ROLLCALL_GET_KEYS_MAX";
        /// One row, bytes; a sync server is no file store (verdict `rejected`)
        row_bytes_max: usize = 262_144, env "ROLLCALL_ROW_BYTES_MAX";
        /// Rows that one request sends, or touches, what is kept of its conflicts, or the rows in its answer, bytes each; what `rows_max` small rows take many times over (422)
        batch_bytes_max: usize = 33_554_432, env "ROLLCALL_BATCH_BYTES_MAX";
        /// Nesting inside a `json` column (422)
        json_depth_max: usize = 16, env "ROLLCALL_JSON_DEPTH_MAX";
        /// Live rows of one owner (507)
        owner_rows_max: u64 = 1_000_000, env "ROLLCALL_OWNER_ROWS_MAX";
        /// Live rows of one owner, bytes; 1 GiB (507)
        owner_bytes_max: u64 = 1_073_741_824, env "ROLLCALL_OWNER_BYTES_MAX";
        /// One request, s, from when its body has come to the answer (503)
        request_s: u64 = 30, env "ROLLCALL_REQUEST_S";
        /// The body of one request, s; what `body_bytes_max` takes at the pace of `body_bytes_per_s_min`, and some more (408)
        body_s: u64 = 9_000, env "ROLLCALL_BODY_S";
        /// All header lines of one request, bytes (431)
        header_bytes_max: usize = 16_384, env "ROLLCALL_HEADER_BYTES_MAX";
        /// Header lines of one request (431)
        headers_max: usize = 64, env "ROLLCALL_HEADERS_MAX";
        /// Wait for a request's header, and the idle time of a kept connection, s; behind a proxy set it above the proxy's own
        header_read_s: u64 = 15, env "ROLLCALL_HEADER_READ_S";
        /// Slowest body after its first 5 s, bytes a second; one that pauses for `request_s` is too slow, too (408)
        body_bytes_per_s_min: usize = 1_024, env "ROLLCALL_BODY_BYTES_PER_S_MIN";
        /// Connections at once; more wait to be accepted
        connections_max: usize = 4_096, env "ROLLCALL_CONNECTIONS_MAX";
        /// Connections at once from one address; more are closed
        connections_per_address_max: usize = 64, env "ROLLCALL_CONNECTIONS_PER_ADDRESS_MAX";
        /// Event streams at once; each is a connection, and half of those are for everything else (503)
        event_streams_max: usize = 2_048, env "ROLLCALL_EVENT_STREAMS_MAX";
        /// Event streams of one owner; the oldest makes room
        event_streams_per_owner_max: usize = 32, env "ROLLCALL_EVENT_STREAMS_PER_OWNER_MAX";
        /// Time between two heartbeats of an event stream, s; below the idle limits of proxies and phone networks
        event_heartbeat_s: u64 = 15, env "ROLLCALL_EVENT_HEARTBEAT_S";
        /// Time that running requests get to end after SIGTERM, s
        drain_s: u64 = 25, env "ROLLCALL_DRAIN_S";
        /// Failed log-ins for one account from one address, a minute (429)
        logins_per_account_per_min: u32 = 5, env "ROLLCALL_LOGINS_PER_ACCOUNT_PER_MIN";
        /// Failed log-ins for one account from all addresses that are strange to it, an hour (429)
        logins_per_account_per_hour: u32 = 20, env "ROLLCALL_LOGINS_PER_ACCOUNT_PER_HOUR";
        /// Log-in and registration attempts from one address, a minute (429)
        logins_per_address_per_min: u32 = 20, env "ROLLCALL_LOGINS_PER_ADDRESS_PER_MIN";
        /// Devices of one user: those with a token, and of each owner the installations that name themselves; the longest silent make room
        devices_per_user_max: usize = 100, env "ROLLCALL_DEVICES_PER_USER_MAX";
        /// Waiting time for the database's one writer, ms (503)
        busy_wait_ms: u64 = 5_000, env "ROLLCALL_BUSY_WAIT_MS";
        /// Writers that may wait for the database at once; some 50 ms of small syncs, and half of the threads there are; one owner has half of them at most (503)
        write_queue_max: usize = 256, env "ROLLCALL_WRITE_QUEUE_MAX";
        /// Connections for reading the database; readers never wait for the writer
        readers_max: u32 = 8, env "ROLLCALL_READERS_MAX";
        /// Connections for accounts and tokens alone, so that nobody who reads for long keeps others from logging in; with PostgreSQL they are some of `database_connections_max`
        account_connections_max: u32 = 2, env "ROLLCALL_ACCOUNT_CONNECTIONS_MAX";
    }
}

numeric_settings! {
    /// What the server keeps in memory so as not to work twice.
    MemorySettings, "Memory" {
        /// Memory that requests draw from, bytes: bodies, rows and answers of all of them together, the answers kept ready, and passwords being hashed; beyond it the process needs some 100 MB. Where it is used up a request is refused (503)
        memory_bytes_max: usize = 536_870_912, env "ROLLCALL_MEMORY_BYTES_MAX";
        /// Answers kept ready, bytes: roll calls by owner and version, of owners with less than half of it; 0 keeps none
        ready_bytes_max: usize = 33_554_432, env "ROLLCALL_READY_BYTES_MAX";
        /// Size of SQLite's write-ahead log that is warned of, bytes; it stays near 16 MB unless another program reads for long; 0 warns of none
        wal_bytes_warn: u64 = 134_217_728, env "ROLLCALL_WAL_BYTES_WARN";
        /// Log lines that wait to be written, some 200 bytes each; more are dropped and counted, as a slow disk or terminal must not hold requests up
        log_lines_max: usize = 16_384, env "ROLLCALL_LOG_LINES_MAX";
    }
}

/// Names of headers that tracing tools add to every request of a page.
const TRACING_HEADERS: [&str; 4] = ["baggage", "sentry-trace", "traceparent", "tracestate"];

/// What the server says to browsers and proxies.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpSettings {
    /// Web origins that may call the API, such as `https://app.example`, `null` or `*`; repeat or separate by commas
    #[arg(long = "cors-origin", env = "ROLLCALL_CORS_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<String>,

    /// Headers that pages of these origins may send beside those of the API, or `*`; repeat or separate by commas
    #[arg(
        long = "cors-headers",
        env = "ROLLCALL_CORS_HEADERS",
        value_name = "NAME",
        value_delimiter = ',',
        default_values_t = TRACING_HEADERS.map(str::to_owned)
    )]
    pub cors_headers: Vec<String>,

    /// Addresses or networks of proxies whose `X-Forwarded-For` is believed; repeat or separate by commas
    #[arg(
        long = "trusted-proxy",
        env = "ROLLCALL_TRUSTED_PROXIES",
        value_name = "IP|CIDR",
        value_delimiter = ','
    )]
    pub trusted_proxies: Vec<Network>,
}

/// The addresses that begin with the same bits: `10.0.0.0/8`, or `10.0.0.1` for one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address is in the network. An IPv4 address is the same on a socket that speaks both.
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
        // An IPv4 network in the spelling of IPv6.
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
    /// Where tokens come from: `local` (register and log in here) or `jwt` (the app's own identity provider)
    #[arg(long, env = "ROLLCALL_AUTH", value_name = "MODE", default_value = "local")]
    pub auth: AuthMode,

    /// Whether anyone may register over HTTP; `closed` leaves it to `rollcall account add`
    #[arg(long, env = "ROLLCALL_REGISTRATION", value_name = "MODE", default_value = "open")]
    pub registration: Registration,

    /// How long a device's token is good, days; an app that was offline for long should not need its user
    #[arg(long, env = "ROLLCALL_TOKEN_DAYS", value_name = "N", default_value_t = 365)]
    pub token_days: u32,

    /// Passwords hashed at once, at most one a core; each needs 19 MiB, which are kept for the next one
    #[arg(long, env = "ROLLCALL_PASSWORD_HASHES_MAX", value_name = "N", default_value_t = 4)]
    pub password_hashes_max: usize,

    /// Log-ins and registrations that wait for a password to be hashed, some 100 ms each; more get 429
    #[arg(long, env = "ROLLCALL_PASSWORD_QUEUE_MAX", value_name = "N", default_value_t = 16)]
    pub password_queue_max: usize,

    /// Tokens whose callers are kept in memory; one takes some 300 bytes, and spares a look into the database
    #[arg(long, env = "ROLLCALL_TOKENS_KNOWN_MAX", value_name = "N", default_value_t = 10_000)]
    pub tokens_known_max: usize,

    /// How long a token is good without another look, s: that long one may live on that `rollcall account`
    /// took back beside the running server
    #[arg(long, env = "ROLLCALL_TOKEN_KNOWN_S", value_name = "N", default_value_t = 5)]
    pub token_known_s: u32,

    /// File with the HS256 secret of `jwt` tokens, at least 32 bytes
    #[arg(long, env = "ROLLCALL_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<PathBuf>,

    /// JWKS with the RSA, EC or Ed25519 keys of `jwt` tokens: a file, or an http(s) URL
    #[arg(long, env = "ROLLCALL_JWT_KEYS", value_name = "FILE|URL")]
    pub jwt_keys: Option<String>,

    /// Issuer that `jwt` tokens must name
    #[arg(long, env = "ROLLCALL_JWT_ISSUER", value_name = "ISS")]
    pub jwt_issuer: Option<String>,

    /// Audience that `jwt` tokens must name
    #[arg(long, env = "ROLLCALL_JWT_AUDIENCE", value_name = "AUD")]
    pub jwt_audience: Option<String>,

    /// Claim with the user's id
    #[arg(long, env = "ROLLCALL_JWT_USER_CLAIM", value_name = "CLAIM", default_value = "sub")]
    pub jwt_user_claim: String,

    /// Claim with the owner's id, for users who share rows; absent, the user is the owner
    #[arg(long, env = "ROLLCALL_JWT_OWNER_CLAIM", value_name = "CLAIM")]
    pub jwt_owner_claim: Option<String>,

    /// Claim with the device's id
    #[arg(long, env = "ROLLCALL_JWT_DEVICE_CLAIM", value_name = "CLAIM", default_value = "device_id")]
    pub jwt_device_claim: String,
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
            jwt_device_claim: "device_id".into(),
        }
    }
}

impl std::fmt::Debug for AuthSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A JWKS URL may carry a key of its own in its query.
        f.debug_struct("AuthSettings")
            .field("auth", &self.auth)
            .field("registration", &self.registration)
            .finish_non_exhaustive()
    }
}

/// What whoever runs the server may ask of it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Operating")]
pub struct OperatorSettings {
    /// How far the system's clock may be behind the newest time that is stored, or behind itself, s; beyond it the server
    /// warns and goes on from the newer time at half the pace; 0 goes by the system's clock whatever it says
    #[arg(long, env = "ROLLCALL_CLOCK_BEHIND_S", value_name = "N", default_value_t = 300)]
    pub clock_behind_s: u64,

    /// Token for `GET /metrics`, at least 16 characters; without it anyone may read the counts
    #[arg(long, env = "ROLLCALL_METRICS_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub metrics_token: Option<Secret>,

    /// Token for `/console`, at least 16 characters; without it there is no console
    #[arg(long, env = "ROLLCALL_CONSOLE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub console_token: Option<Secret>,
}

impl Default for OperatorSettings {
    fn default() -> Self {
        Self { clock_behind_s: 300, metrics_token: None, console_token: None }
    }
}

/// A secret that a caller must show. Kept as its hash, so that nothing can log it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    hash: [u8; 32],
    chars: usize,
}

impl Secret {
    /// Fewer characters could be guessed.
    pub const CHARS_MIN: usize = 16;

    /// Whether it cannot be guessed.
    pub fn is_long_enough(&self) -> bool {
        self.chars >= Self::CHARS_MIN
    }

    /// Whether this is the secret; how long it takes says nothing about how much of it is right.
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

/// Reads an address to listen on.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected IP:PORT, such as 127.0.0.1:7878, or 0.0.0.0:7878 for every network".to_owned())
}

/// Where tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// `POST /register` and `POST /login` here.
    Local,
    /// The app's own identity provider.
    Jwt,
}

/// Whether anyone may register over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Registration {
    /// Anyone.
    Open,
    /// Nobody: accounts come from the command line.
    Closed,
}

/// Reads settings from the environment and `flags` alone, for commands and tests that have no others.
#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    settings: Settings,
}

impl Settings {
    /// The settings that `flags` and the environment give.
    pub fn from_flags<I: IntoIterator<Item = String>>(flags: I) -> Result<Self, clap::Error> {
        let named = std::iter::once("rollcall".to_owned()).chain(flags);
        Alone::try_parse_from(named).map(|alone| alone.settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags' defaults and the structs' must not drift apart.
    #[test]
    fn the_defaults_of_flags_and_structs_are_the_same() {
        let told = Settings::from_flags([]).unwrap();
        assert_eq!(format!("{told:?}"), format!("{:?}", Settings::default()));
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
