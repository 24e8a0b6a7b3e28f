//! Deliberate faults, for the tests to find: a check that cannot fail is worth nothing.
//!
//! Only a build with the feature `broken` has them; in any other [`is`] is `false` at compile time, and nothing
//! of a fault is left. `ROLLCALL_BROKEN` says which one is at work; `.ci/broken` shows which test finds it.

/// Whether the build is broken in this way.
#[cfg(feature = "broken")]
#[expect(clippy::disallowed_methods, reason = "only builds for tests have it")]
pub fn is(fault: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("ROLLCALL_BROKEN").unwrap_or_default()) == fault
}

/// Whether the build is broken in this way: it is not.
#[cfg(not(feature = "broken"))]
#[inline(always)]
pub const fn is(_: &str) -> bool {
    false
}
