use crate::broken;
use crate::model::Timestamp;

/// Smaller differences are caused by the network, not by the clock.
pub const TOLERATED_SKEW_MS: i64 = 2_000;

/// How far a device's clock is from the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    offset_ms: i64,
}

impl Skew {
    /// Compares the time at which the device reports to have sent the request with the time of its arrival.
    pub fn measure(sent_at: Timestamp, received: Timestamp) -> Self {
        Self { offset_ms: received.ms() - sent_at.ms() }
    }

    /// The server's time less the device's, as measured.
    pub fn offset_ms(self) -> i64 {
        self.offset_ms
    }

    /// Converts a time of the device's clock to the server's time.
    pub fn correct(self, at: Timestamp) -> Timestamp {
        if self.offset_ms.abs() < TOLERATED_SKEW_MS || broken::is("clock_not_corrected") {
            at
        } else {
            at.shifted(self.offset_ms)
        }
    }
}
