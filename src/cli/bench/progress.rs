//! How far the benchmark is: a bar where one looks, plain lines elsewhere. On standard error, since standard
//! output may be JSON.

use std::io::{IsTerminal as _, Write as _};

/// A bar, or lines.
pub struct Progress {
    is_terminal: bool,
    done: u64,
    total: u64,
    label: String,
}

const WIDTH: usize = 24;

impl Progress {
    /// `total` steps are to come.
    pub fn new(total: u64) -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), done: 0, total, label: String::new() }
    }

    /// Says what is done now.
    pub fn begin(&mut self, label: &str) {
        if self.is_terminal {
            self.label = label.to_owned();
            self.draw(0, 1);
        } else if self.label != label {
            self.label = label.to_owned();
            eprintln!("{label}");
        }
    }

    /// Says that a part of the step is done.
    pub fn within(&self, done: u64, of: u64) {
        if self.is_terminal {
            self.draw(done, of);
        }
    }

    /// The step is done.
    pub fn step(&mut self) {
        self.done += 1;
        self.within(0, 1);
    }

    fn draw(&self, done: u64, of: u64) {
        let share = (self.done as f64 + done as f64 / of.max(1) as f64) / self.total.max(1) as f64;
        let full = ((share * WIDTH as f64) as usize).min(WIDTH);
        let (bar, rest) = ("#".repeat(full), "-".repeat(WIDTH - full));
        let mut out = std::io::stderr();
        let _ = write!(out, "\r\x1b[K[{bar}{rest}] {:3.0}%  {}", share * 100.0, self.label);
        let _ = out.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
