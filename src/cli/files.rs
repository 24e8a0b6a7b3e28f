//! How many files the process may have open: connections are files, and so are those of the database.

use crate::config::Settings;

/// What the program has open beside connections and the database: its log, timers, a listener, a folder now and then.
const OTHERS: u64 = 64;

/// Files that one SQLite connection has open: the database, its log, and room for one that is just opened.
const A_READER: u64 = 3;

/// Raises the soft limit of open files, which is 1,024 on most systems for programs that know no better, to the hard
/// limit; warns where that is not enough for what the settings allow.
pub(super) fn raise_file_limit(settings: &Settings, is_sqlite: bool) {
    let needed = needed(settings, is_sqlite);
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(may) if may < needed => tracing::warn!(
            may,
            needed,
            "the process may open fewer files than its settings need, so connections will wait: raise the limit \
             (LimitNOFILE, ulimit -n), or lower --connections-max"
        ),
        Ok(may) => tracing::debug!(may, needed, "files that the process may open"),
        Err(error) => tracing::warn!(%error, needed, "the limit of open files cannot be raised"),
    }
}

fn needed(settings: &Settings, is_sqlite: bool) -> u64 {
    let limits = &settings.limits;
    let database = if is_sqlite {
        (u64::from(limits.readers_max) + u64::from(limits.account_connections_max) + 1) * A_READER
    } else {
        u64::from(settings.postgres.database_connections_max)
    };
    u64::try_from(limits.connections_max).unwrap_or(u64::MAX).saturating_add(database + OTHERS)
}
