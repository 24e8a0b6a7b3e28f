//! Sets the limit of open files: connections are files, and so are those of the database.

use crate::config::Settings;

/// Open files apart from connections and the database: the log, timers, a listener, sometimes a folder.
const OTHERS: u64 = 64;

/// Open files of one SQLite connection: the database, its log, and one that is being opened.
const A_READER: u64 = 3;

/// Raises the soft limit of open files, by default 1,024 on most systems, to the hard limit. Warns if that is
/// not enough for the settings.
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
