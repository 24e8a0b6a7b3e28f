//! The time of day, and elapsed time. Only this crate reads the system's clocks for the protocol.
//!
//! - [`Clock::now`] is the time of day: it is displayed, stored and compared with times of other machines.
//!   People and programs set it, sometimes back.
//! - [`Clock::tick`] only moves forward: every duration (a lease, a limit of attempts, the age of a key set)
//!   is measured by it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use rollcall_core::model::Timestamp;

/// A source of time; tests provide their own.
#[derive(Clone)]
pub struct Clock {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    tick: Arc<dyn Fn() -> Tick + Send + Sync>,
}

/// A moment by the monotonic clock, in milliseconds since an arbitrary start. Ticks of different clocks
/// cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(i64);

impl Tick {
    /// Later than every other tick.
    pub const NEVER: Self = Self(i64::MAX);

    /// The tick this many milliseconds after the start of its clock.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// How long after `earlier` this is, ms; negative if it is before.
    pub const fn ms_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The tick `ms` later.
    #[must_use]
    pub const fn shifted(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl Clock {
    /// The system's clocks.
    pub fn system() -> Self {
        let start = Instant::now();
        Self::of(
            || {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            },
            move || Tick(i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// A clock that uses `now_fn` for the time of day and for its ticks.
    pub fn from_fn(now_fn: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let now: Arc<dyn Fn() -> Timestamp + Send + Sync> = Arc::new(now_fn);
        let ticks = Arc::clone(&now);
        Self { now, tick: Arc::new(move || Tick(ticks().ms())) }
    }

    /// A clock whose time of day may be set independently of its ticks.
    pub fn of(
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        tick: impl Fn() -> Tick + Send + Sync + 'static,
    ) -> Self {
        Self { now: Arc::new(now), tick: Arc::new(tick) }
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// The monotonic clock: it never goes back.
    pub fn tick(&self) -> Tick {
        (self.tick)()
    }

    /// This clock, corrected so that it does not fall behind the data.
    ///
    /// - `newest`: the newest stored time.
    /// - If the time of day is more than `behind_max` before `newest`, or before the last time that this
    ///   clock returned, it must be wrong: a machine without a battery starts in 1970 or 2001. The clock then
    ///   continues from the newer time at half the speed, until the time of day has caught up. So it never
    ///   goes back, and a clock that was wrong by an hour is right again after two. `warn` is called each
    ///   time that this begins.
    pub fn not_behind(
        self,
        newest: Option<Timestamp>,
        behind_max: Duration,
        warn: impl Fn(Behind) + Send + Sync + 'static,
    ) -> Self {
        let behind_max_ms = i64::try_from(behind_max.as_millis()).unwrap_or(i64::MAX);
        let guard = Mutex::new(Guard { newest: newest.map(|at| (at, self.tick())), is_behind: false });
        let tick = Arc::clone(&self.tick);
        let now = move || {
            let (given, at) = (self.now(), self.tick());
            let (time, begins) = guard.lock().judge(given, at, behind_max_ms);
            if begins {
                warn(Behind { given, newest: time });
            }
            time
        };
        Self { now: Arc::new(now), tick }
    }
}

/// A time of day that must be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The system's time of day.
    pub given: Timestamp,
    /// The time that is used instead.
    pub newest: Timestamp,
}

struct Guard {
    /// The newest known time, and when it was observed.
    newest: Option<(Timestamp, Tick)>,
    is_behind: bool,
}

impl Guard {
    /// The time to use, and whether the clock has just fallen behind.
    fn judge(&mut self, given: Timestamp, at: Tick, behind_max_ms: i64) -> (Timestamp, bool) {
        if let Some((newest, since)) = self.newest {
            let least = newest.shifted(at.ms_since(since).max(0) / 2);
            let tolerated_ms = if self.is_behind { 0 } else { behind_max_ms };
            if given.ms().saturating_add(tolerated_ms) < least.ms() {
                return (least, !std::mem::replace(&mut self.is_behind, true));
            }
        }
        self.is_behind = false;
        if self.newest.is_none_or(|(newest, _)| newest <= given) {
            self.newest = Some((given, at));
        }
        (given, false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use super::*;

    const MINUTE_MS: i64 = 60_000;
    const NOON: i64 = 1_750_000_000_000;

    struct Two {
        now_ms: Arc<AtomicI64>,
        tick_ms: Arc<AtomicI64>,
        warnings: Arc<AtomicUsize>,
        clock: Clock,
    }

    impl Two {
        fn new(now_ms: i64, newest: Option<i64>) -> Self {
            let (now_ms, tick_ms) = (Arc::new(AtomicI64::new(now_ms)), Arc::new(AtomicI64::new(7)));
            let warnings = Arc::new(AtomicUsize::new(0));
            let (now, tick, warned) = (Arc::clone(&now_ms), Arc::clone(&tick_ms), Arc::clone(&warnings));
            let clock = Clock::of(
                move || Timestamp::from_ms(now.load(Ordering::SeqCst)),
                move || Tick::from_ms(tick.load(Ordering::SeqCst)),
            );
            let clock =
                clock.not_behind(newest.map(Timestamp::from_ms), Duration::from_secs(300), move |_| {
                    warned.fetch_add(1, Ordering::SeqCst);
                });
            Self { now_ms, tick_ms, warnings, clock }
        }

        fn pass(&self, ms: i64) {
            self.now_ms.fetch_add(ms, Ordering::SeqCst);
            self.tick_ms.fetch_add(ms, Ordering::SeqCst);
        }

        fn set(&self, ms: i64) {
            self.now_ms.fetch_add(ms, Ordering::SeqCst);
        }

        #[track_caller]
        fn shows(&self, ms: i64) {
            assert_eq!(self.clock.now().ms(), ms);
        }
    }

    #[test]
    fn a_right_clock_is_left_alone() {
        let two = Two::new(NOON, Some(NOON + 2 * MINUTE_MS));
        two.shows(NOON);
        two.pass(MINUTE_MS);
        two.shows(NOON + MINUTE_MS);
        two.set(-2 * MINUTE_MS); // a small correction
        two.shows(NOON - MINUTE_MS);
        two.set(600 * MINUTE_MS);
        two.shows(NOON + 599 * MINUTE_MS);
        assert_eq!(two.warnings.load(Ordering::SeqCst), 0);
        Two::new(0, None).shows(0); // no time is known that it could be behind
    }

    #[test]
    fn a_clock_of_2001_goes_on_from_the_data_until_it_is_set() {
        let in_2001 = 1_000_000_000_000;
        let two = Two::new(in_2001, Some(NOON));
        two.shows(NOON);
        two.pass(10 * MINUTE_MS);
        two.shows(NOON + 5 * MINUTE_MS);
        two.pass(10 * MINUTE_MS);
        two.shows(NOON + 10 * MINUTE_MS);
        assert_eq!(two.warnings.load(Ordering::SeqCst), 1);
        two.set(NOON + 60 * MINUTE_MS - in_2001);
        two.shows(NOON + 80 * MINUTE_MS);
        assert_eq!(two.warnings.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_by_an_hour_is_right_after_two() {
        let two = Two::new(NOON, None);
        two.shows(NOON);
        two.set(-60 * MINUTE_MS);
        let mut before = NOON;
        for minute in 0..180 {
            let now = two.clock.now().ms();
            assert!(now >= before, "{minute}: it went back");
            before = now;
            two.pass(MINUTE_MS);
        }
        two.shows(NOON + 120 * MINUTE_MS);
        assert_eq!(two.warnings.load(Ordering::SeqCst), 1);
    }
}
