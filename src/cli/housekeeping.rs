//! Background work of a server: writes devices' cursors, and forgets old data.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::http::App;
use crate::purge;
use crate::storage::StorageResult;

/// The first run after the start, so that a server that is restarted often purges too.
const FIRST: Duration = Duration::from_secs(60);

/// Invitations and look-ups that are forgotten in one transaction once they have expired.
const EXPIRED_AT_ONCE: usize = 1_000;

/// How often devices' cursors are written if purging is left to `rollcall purge`.
const ACKS_ALONE: Duration = Duration::from_secs(3_600);

/// How long a stop may take to write the last cursors. Losing some costs a device at most a full fetch.
const LAST_FLUSH: Duration = Duration::from_secs(5);

/// Purges every `purge_s` until the server stops; then it ends after the current transaction.
pub(super) async fn run(app: Arc<App>) {
    let period = match app.settings.sync.purge_s {
        0 => ACKS_ALONE,
        seconds => Duration::from_secs(seconds),
    };
    let mut pause = period.min(FIRST);
    loop {
        tokio::select! {
            biased;
            () = app.draining.begun() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = period;
        let at_work = Arc::clone(&app);
        // Awaited, so that two runs never overlap.
        match tokio::task::spawn_blocking(move || once(&at_work)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "could not purge old data; trying again later"),
            Err(panicked) => tracing::error!(%panicked, "a purge panicked"),
        }
    }
}

/// How often the size of the write-ahead log is checked.
const LOG_LOOK: Duration = Duration::from_secs(5);

/// Warns when the write-ahead log exceeds `wal_bytes_warn`, and each time that it has doubled since.
///
/// The server's own reads end in time. So a log that cannot be moved into the database has a reader in
/// another program.
pub(super) async fn watch_log(app: Arc<App>) {
    let bound = i64::try_from(app.settings.memory.wal_bytes_warn).unwrap_or(i64::MAX);
    let mut warned_at = None;
    loop {
        tokio::select! {
            biased;
            () = app.draining.begun() => return,
            () = tokio::time::sleep(LOG_LOOK) => {}
        }
        app.metrics.look();
        let bytes = app.metrics.wal_bytes.get();
        match warned_at {
            _ if bound == 0 || bytes <= bound => {
                if warned_at.take().is_some() {
                    tracing::info!(bytes, "the write-ahead log is short again");
                }
            }
            Some(before) if bytes < before * 2 => {}
            _ => {
                warned_at = Some(bytes);
                tracing::warn!(
                    bytes,
                    "the write-ahead log grows: another program keeps a read transaction open on the database, and \
                     until that ends nothing can be moved out of the log"
                );
            }
        }
    }
}

fn once(app: &App) -> StorageResult<()> {
    let begun = Instant::now();
    let mut go_on = || !app.draining.is_set();
    app.acks.flush(&*app.storage, &mut go_on)?;
    app.accounts.local().map_or(Ok(()), |local| local.sightings.flush(&mut go_on))?;
    app.erase()?;
    let accounts = app.storage.accounts();
    while go_on() && accounts.forget_expired(app.clock.now(), EXPIRED_AT_ONCE)? == EXPIRED_AT_ONCE {}
    if app.settings.sync.purge_s == 0 || !go_on() {
        return Ok(());
    }
    let terms = purge::terms(&app.settings.sync, app.settings.limits.owner_past_bytes_max, app.clock.now());
    let purged = purge::run(&*app.storage, &terms, &mut |_, _| go_on())?;
    let (tombstones, records) = (purged.tombstones, purged.records);
    let ms = begun.elapsed().as_millis();
    if purged.is_nothing() {
        tracing::debug!(ms, "nothing to purge");
    } else {
        tracing::info!(tombstones, records, ms, "purged old data");
    }
    if app.settings.operator.console_token.is_some() {
        app.console.count_tombstones(&*app.storage, app.clock.now(), &mut go_on)?;
    }
    Ok(())
}

/// Writes the devices' cursors, after the last request has ended.
pub(super) fn last(app: &App) {
    let until = Instant::now() + LAST_FLUSH;
    let mut go_on = || Instant::now() < until;
    if let Err(error) = app.acks.flush(&*app.storage, &mut go_on) {
        tracing::warn!(%error, "could not store the cursors of devices");
    }
    if let Some(Err(error)) = app.accounts.local().map(|local| local.sightings.flush(&mut go_on)) {
        tracing::warn!(%error, "could not store when devices were last seen");
    }
}
