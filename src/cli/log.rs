//! Writes log lines to standard error on a thread of its own, which collects them for a moment. A slow disk
//! or terminal delays no request, and a line costs a request neither a wake-up nor a write.

use std::io::{self, IsTerminal as _, Write};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, Settings};

/// The name of the writing thread.
const LOG_THREAD: &str = "log";

/// How long lines are collected: too short to be noticed by a reader, long enough for many requests.
const GATHER: Duration = Duration::from_millis(10);

/// How long the end of the process waits for lines that cannot be written.
const END_MAX: Duration = Duration::from_secs(1);

/// The capacity that is kept for further lines, bytes.
const ROOM_MAX: usize = 1024 * 1024;

/// Dropping it writes all remaining lines.
pub struct Log(Arc<Lines>);

/// The queue of lines.
struct Lines {
    waiting: Mutex<Waiting>,
    lines_max: usize,
    /// Signals a new line, or the end.
    came: Condvar,
    /// Signals that all lines are written after the end.
    written: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    lines: usize,
    dropped: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    Ending,
    Ended,
}

/// Starts to write log lines to standard error.
pub fn log_to_stderr(settings: &Settings) -> Result<Log, Box<dyn std::error::Error>> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log)
        .map_err(|error| format!("--log {:?}: {error}", settings.log))?;
    let lines = Lines::to(io::stderr(), settings.memory.log_lines_max.max(1))?;
    let log = Log(Arc::clone(&lines));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    match settings.log_format {
        // The text format is for people and shows no module names; colours only on a terminal.
        LogFormat::Text => lines.with_target(false).with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    log_panics();
    Ok(log)
}

/// Writes a panic as a log line, in the configured format.
fn log_panics() {
    let raw = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The writing thread could only wait for itself.
        if std::thread::current().name() == Some(LOG_THREAD) {
            return raw(panic);
        }
        log_panic(panic);
    }));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let said = panic.payload_as_str().unwrap_or("without words");
    let place = panic.location().map(tracing::field::display);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    tracing::error!(said, place, thread, "a bug: the program panicked");
}

impl Lines {
    fn to(mut out: impl Write + Send + 'static, lines_max: usize) -> io::Result<Arc<Self>> {
        let (waiting, came, written) = (Mutex::default(), Condvar::new(), Condvar::new());
        let lines = Arc::new(Self { waiting, lines_max, came, written });
        let shared = Arc::clone(&lines);
        std::thread::Builder::new().name(LOG_THREAD.into()).spawn(move || shared.empty_into(&mut out))?;
        Ok(lines)
    }

    /// Writes lines until the end.
    fn empty_into(&self, out: &mut impl Write) {
        let mut text = Vec::new();
        let mut waiting = self.waiting.lock();
        while waiting.stage == Stage::Open || waiting.lines > 0 {
            let gathers = |waiting: &mut Waiting| waiting.stage == Stage::Open && !self.is_filling(waiting);
            self.came.wait_while(&mut waiting, |waiting| waiting.stage == Stage::Open && waiting.lines == 0);
            self.came.wait_while_for(&mut waiting, gathers, GATHER);
            std::mem::swap(&mut text, &mut waiting.text);
            waiting.lines = 0;
            drop(waiting);
            // An error of standard error cannot be reported anywhere.
            let _ = out.write_all(&text).and_then(|()| out.flush());
            text.clear();
            text.shrink_to(ROOM_MAX);
            waiting = self.waiting.lock();
        }
        waiting.stage = Stage::Ended;
        self.written.notify_all();
    }

    /// Whether the queue is nearly full, so that there is no time to collect more.
    fn is_filling(&self, waiting: &Waiting) -> bool {
        waiting.lines * 2 >= self.lines_max
    }
}

/// Receives one line, which the formatter passes in one piece.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.waiting.lock();
        if waiting.lines >= self.lines_max {
            waiting.dropped += 1;
            return Ok(line.len());
        }
        waiting.text.extend_from_slice(line);
        waiting.lines += 1;
        if waiting.lines == 1 || self.is_filling(&waiting) {
            self.came.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let Lines { waiting, came, written, .. } = &*self.0;
        let mut waiting = waiting.lock();
        waiting.stage = Stage::Ending;
        came.notify_one();
        let until = Instant::now() + END_MAX;
        while waiting.stage != Stage::Ended && !written.wait_until(&mut waiting, until).timed_out() {}
        match waiting.dropped {
            0 => {}
            lines => eprintln!("{lines} log lines were dropped: they came faster than they could be written"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Reports what it should write, and writes once it is permitted.
    struct Slow(Sender<String>, Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8(text.to_vec()).unwrap()).unwrap();
            let _ = self.1.recv();
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Goal: lines arrive complete and in order, block nobody, and are bounded. Method: a writer that blocks
    /// while more lines arrive than may wait.
    #[test]
    fn lines_wait_in_order_and_no_more_than_may() {
        let (written, received) = channel();
        let (may, waits) = channel();
        let lines = Lines::to(Slow(written, waits), 3).unwrap();
        let log = Log(Arc::clone(&lines));
        let note = |line: &str| (&*lines).write_all(line.as_bytes()).unwrap();
        note("a\n");
        assert_eq!(received.recv().unwrap(), "a\n");
        ["b\n", "c\n", "d\n", "e\n", "f\n"].into_iter().for_each(note);
        assert_eq!(lines.waiting.lock().dropped, 2);
        drop(may); // from now on nothing blocks
        drop(log);
        assert_eq!(received.try_recv().unwrap(), "b\nc\nd\n");
        assert!(received.try_recv().is_err());
    }

    /// A writer whose lines a test reads.
    #[derive(Clone, Default)]
    struct Read(Arc<Mutex<Vec<u8>>>);

    impl Write for Read {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Goal: a panic is one line of the log, with its message and place. Method: a thread that panics while
    /// lines are written to memory. The hook is global to the process, so it considers only this thread.
    #[test]
    fn a_panic_is_one_line_of_the_log() {
        let read = Read::default();
        let raw = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match std::thread::current().name() {
            Some("panics") => log_panic(panic),
            _ => raw(panic),
        }));
        let made = read.clone();
        let lines =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || made.clone()).finish();
        let panics = std::thread::Builder::new().name("panics".into()).spawn(move || {
            tracing::subscriber::with_default(lines, || panic!("row {}", 7));
        });
        assert!(panics.unwrap().join().is_err());
        let text = String::from_utf8(read.0.lock().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line["said"], "row 7", "{text}");
        assert_eq!(line["thread"], "panics");
        assert_eq!(line["level"], "ERROR");
        assert!(line["place"].as_str().unwrap().contains("log.rs:"), "{text}");
    }
}
