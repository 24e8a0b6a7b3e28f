use crate::broken;
use crate::model::Timestamp;

/// Differences below this are the network's, not the clock's.
pub const TOLERATED_SKEW_MS: i64 = 2_000;

/// How far a device's clock is from the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    offset_ms: i64,
}

impl Skew {
    /// Measures by the time at which the device says that it sent the request, and at which it came.
    pub fn measure(sent_at: Timestamp, received: Timestamp) -> Self {
        Self { offset_ms: received.ms() - sent_at.ms() }
    }

    /// The server's time less the device's, as measured.
    pub fn offset_ms(self) -> i64 {
        self.offset_ms
    }

    /// A time that the device read off its clock, in the server's time.
    pub fn correct(self, at: Timestamp) -> Timestamp {
        if self.offset_ms.abs() < TOLERATED_SKEW_MS || broken::is("clock_not_corrected") {
            at
        } else {
            at.shifted(self.offset_ms)
        }
    }
}
