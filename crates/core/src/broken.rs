//! Deliberate faults. They show that the tests can fail.
//!
//! Only a build with the feature `broken` contains them. In any other build [`is`] is `false` at compile
//! time, and the compiler removes every fault. `ROLLCALL_BROKEN` selects the fault; `.ci/broken` lists which
//! test finds it.

/// Whether the build has this fault switched on.
#[cfg(feature = "broken")]
#[expect(clippy::disallowed_methods, reason = "only builds for tests have it")]
pub fn is(fault: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("ROLLCALL_BROKEN").unwrap_or_default()) == fault
}

/// Without the feature no fault exists.
#[cfg(not(feature = "broken"))]
#[inline(always)]
pub const fn is(_: &str) -> bool {
    false
}
