use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

/// Shows a command's progress on standard error: one changing line on a terminal, otherwise a line from time
/// to time.
pub(super) struct Progress {
    on_terminal: bool,
    last: Option<Instant>,
    shown: bool,
}

impl Progress {
    pub fn new() -> Self {
        Self { on_terminal: std::io::stderr().is_terminal(), last: None, shown: false }
    }

    pub fn show(&mut self, line: impl FnOnce() -> String) {
        let pause = if self.on_terminal { Duration::from_millis(100) } else { Duration::from_secs(5) };
        let now = Instant::now();
        // Nothing is shown during the first pause: most work is finished before it ends.
        let last = *self.last.get_or_insert(now);
        if now.duration_since(last) < pause {
            return;
        }
        self.last = Some(now);
        if self.on_terminal {
            eprint!("\r\x1b[K{}", line());
            let _ = std::io::stderr().flush(); // a closed terminal needs no output
            self.shown = true;
        } else {
            eprintln!("{}", line());
        }
    }

    /// Clears the changing line.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// A number of bytes for people.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}
