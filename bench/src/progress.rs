//! How far the benchmark is: a bar on a terminal, plain lines elsewhere. On standard error, since standard output
//! may be JSON.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar, or lines.
pub struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    label: String,
}

/// Positions of the bar in one step.
const STEP: u64 = 1_000;

impl Progress {
    /// `total` steps are to come.
    pub fn new(total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total * STEP), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("[{bar:24}] {percent:>3}%  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("#--"));
        Self { bar, is_terminal: std::io::stderr().is_terminal(), label: String::new() }
    }

    /// Shows the present step.
    pub fn begin(&mut self, label: &str) {
        self.bar.set_message(label.to_owned());
        if !self.is_terminal && self.label != label {
            eprintln!("{label}");
        }
        self.label = label.to_owned();
    }

    /// Shows that a part of the step is done.
    pub fn within(&self, done: u64, of: u64) {
        let whole_steps = self.bar.position() / STEP * STEP;
        self.bar.set_position(whole_steps + (done * STEP / of.max(1)).min(STEP - 1));
    }

    /// The step is done.
    pub fn step(&mut self) {
        self.bar.set_position((self.bar.position() / STEP + 1) * STEP);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
