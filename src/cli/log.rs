//! Log lines on their way to standard error. They gather for a moment and are written by a thread of their own: a
//! disk or a terminal that is slow holds no request up, and a line costs a request neither a wake-up nor a write.

use std::io::{self, IsTerminal as _, Write};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, Settings};

/// The name of the thread that writes.
const LOG_THREAD: &str = "log";

/// How long lines gather: too short for anybody who reads along, long enough for many requests.
const GATHER: Duration = Duration::from_millis(10);

/// How long the end of the process waits for lines that nobody takes.
const END_MAX: Duration = Duration::from_secs(1);

/// Room that is kept for the next lines, bytes.
const ROOM_MAX: usize = 1024 * 1024;

/// Dropped, it has written all lines.
pub struct Log(Arc<Lines>);

/// The lines that wait.
struct Lines {
    waiting: Mutex<Waiting>,
    lines_max: usize,
    /// A line came, or the last one has.
    came: Condvar,
    /// All lines are written, and there will be no more.
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

/// Writes log lines to standard error from here on.
pub fn log_to_stderr(settings: &Settings) -> Result<Log, Box<dyn std::error::Error>> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log)
        .map_err(|error| format!("--log {:?}: {error}", settings.log))?;
    let lines = Lines::to(io::stderr(), settings.memory.log_lines_max.max(1))?;
    let log = Log(Arc::clone(&lines));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    match settings.log_format {
        // For people, who know no module of ours; colours only where one looks.
        LogFormat::Text => lines.with_target(false).with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    log_panics();
    Ok(log)
}

/// A panic becomes a log line like any other, in the format that was asked for.
fn log_panics() {
    let raw = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The thread that writes the log could only wait for itself.
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

    /// Writes what comes, until no more will.
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
            // Where nobody takes it, there is nobody to tell.
            let _ = out.write_all(&text).and_then(|()| out.flush());
            text.clear();
            text.shrink_to(ROOM_MAX);
            waiting = self.waiting.lock();
        }
        waiting.stage = Stage::Ended;
        self.written.notify_all();
    }

    /// Whether there is no time left for gathering: more lines would soon be too many.
    fn is_filling(&self, waiting: &Waiting) -> bool {
        waiting.lines * 2 >= self.lines_max
    }
}

/// Takes one line, which the formatter hands over in one piece.
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
            lines => eprintln!(
                "{lines} log lines were dropped, since they could not be written as fast as they came"
            ),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Says what it is asked to write, and writes once it may.
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

    /// Goal: lines come whole and in order, wait without holding anybody up, and are bounded. Method: a place to
    /// write to that takes nothing while more lines come than may wait.
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
        drop(may); // from now on nothing waits
        drop(log);
        assert_eq!(received.try_recv().unwrap(), "b\nc\nd\n");
        assert!(received.try_recv().is_err());
    }

    /// A place for lines that a test reads.
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

    /// Goal: a panic is one line of the log, with its words and its place. Method: a thread that panics where lines
    /// go to memory. The hook is the process's: it looks at this thread alone.
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
