//! Logs through `env_logger`: for people by default, one JSON object a line with `LOG_FORMAT=json`.
//!
//! A thread writes the lines: the first at once, those of the next 10 ms in one piece. So a busy service pays for few
//! writes, and no request waits for a slow terminal. When too many lines wait, perhaps since nobody reads them, new ones
//! are dropped and counted.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};
use std::{mem, thread};

use env_logger::Target;
use log::Record;
use log::kv::{Key, Value, VisitSource};
use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

/// How many bytes of lines may wait: a second of a very busy log. Lines beyond that are dropped.
const WAITING_MAX: usize = 1 << 20;
/// How long the end of the process waits for the writer, whose reader may not read.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How long the writer rests after a write, so that under load it is not woken for each line.
const REST: Duration = Duration::from_millis(10);

/// The HTTP library has an ERROR line for each malformed request of a stranger. `RUST_LOG` may turn it on again.
const HTTP_LIBRARY: &str = "actix_http=off";

/// How many lines were dropped.
pub static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    let counter = IntCounter::new("log_lines_dropped_total", "Lines of the log that were dropped.");
    counter.expect("the name is valid")
});

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `2026-01-31T12:00:00.000Z INFO access: GET /user/{name} 200 ms=0.4`
    Human,
    /// `{"timestamp":"...","level":"INFO","target":"access","message":"...","ms":0.4}`
    Json,
}

/// Installs the logger, with `filter` as `RUST_LOG` has it. A second call changes nothing.
///
/// # Errors
/// A thread that cannot be started.
pub fn start(filter: &str, format: Format) -> io::Result<Logging> {
    let lines = Arc::new(Lines::default());
    let writer = lines.clone();
    thread::Builder::new().name("log-writer".into()).spawn(move || writer.keep_writing(io::stderr()))?;
    let mut builder = env_logger::Builder::new();
    builder
        .parse_filters(&[HTTP_LIBRARY, filter].join(","))
        .target(Target::Pipe(Box::new(Queue(lines.clone()))));
    match format {
        Format::Human => builder.format(|out, record| writeln!(out, "{}", human(record))),
        Format::Json => builder.format(|out, record| writeln!(out, "{}", json(record))),
    };
    // The error says that a logger is installed already, which only a test that starts twice in one process meets.
    let _ = builder.try_init();
    Ok(Logging(lines))
}

/// The logger. When this is dropped, everything that was logged has been written, if its reader reads within a second.
#[must_use = "dropping it waits until all is written"]
pub struct Logging(Arc<Lines>);

impl Drop for Logging {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        let unwritten = |state: &mut State| state.writing || !state.waiting.is_empty();
        self.0.changed.wait_while_for(&mut state, unwritten, LAST_LINES);
    }
}

/// Lines on their way to standard error.
#[derive(Default)]
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    writing: bool,
    /// How many lines were dropped since the writer last looked.
    dropped: u64,
}

impl Lines {
    fn keep_writing(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        loop {
            let mut state = self.state.lock();
            self.changed.wait_while(&mut state, |state| state.waiting.is_empty());
            state.writing = true;
            mem::swap(&mut state.waiting, &mut lines);
            let dropped = mem::take(&mut state.dropped);
            drop(state);
            if dropped > 0 {
                log::warn!("{dropped} lines of the log were dropped: nobody read them in time");
            }
            // The log's reader may be gone, and there is no other place to report that.
            let _ = out.write_all(&lines);
            lines.clear();
            self.state.lock().writing = false;
            self.changed.notify_all();
            thread::sleep(REST);
        }
    }
}

/// The end of the lines' queue that `env_logger` writes to.
struct Queue(Arc<Lines>);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        if state.waiting.len() + line.len() > WAITING_MAX {
            state.dropped += 1;
            DROPPED.inc();
            return Ok(line.len());
        }
        let idle = state.waiting.is_empty() && !state.writing;
        state.waiting.extend_from_slice(line);
        drop(state);
        if idle {
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(SystemTime::now())
}

fn human(record: &Record) -> String {
    let mut line = String::with_capacity(200);
    let _infallible = write!(line, "{} {:<5} {}: {}", now(), record.level(), record.target(), record.args());
    // A line break in a message must not look like a second line.
    if line.contains(['\n', '\r']) {
        line = line.replace(['\n', '\r'], " ");
    }
    each_field(record, |key, value| {
        let _infallible = write!(line, " {key}=");
        let start = line.len();
        let _infallible = write!(line, "{value}");
        if line[start..].contains([' ', '"', '\n', '\r']) {
            let quoted = format!("{:?}", &line[start..]);
            line.replace_range(start.., &quoted);
        }
    });
    line
}

fn json(record: &Record) -> String {
    let mut object = serde_json::Map::new();
    object.insert("timestamp".into(), now().to_string().into());
    object.insert("level".into(), record.level().as_str().into());
    object.insert("target".into(), record.target().into());
    object.insert("message".into(), record.args().to_string().into());
    each_field(record, |key, value| {
        let value = value.to_f64().map_or_else(|| value.to_string().into(), serde_json::Value::from);
        object.insert(key.into(), value);
    });
    serde_json::Value::Object(object).to_string()
}

fn each_field(record: &Record, visit: impl FnMut(&str, Value)) {
    struct Visitor<F>(F);
    impl<'kvs, F: FnMut(&str, Value)> VisitSource<'kvs> for Visitor<F> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
            (self.0)(key.as_str(), value);
            Ok(())
        }
    }
    // The visitor never fails.
    let _ = record.key_values().visit(&mut Visitor(visit));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that the test can read.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines_of(number: usize) -> Vec<String> {
        (0..number).map(|number| format!("line {number}\n")).collect()
    }

    /// A logger that writes to `paper`, and the queue to it.
    fn logger(paper: &Paper) -> (Logging, Queue) {
        let lines = Arc::new(Lines::default());
        let (writer, out) = (lines.clone(), paper.clone());
        thread::spawn(move || writer.keep_writing(out));
        (Logging(lines.clone()), Queue(lines))
    }

    #[test]
    fn all_lines_are_written_in_their_order_when_the_logger_is_dropped() {
        let paper = Paper::default();
        let (logging, mut queue) = logger(&paper);
        let expected = lines_of(50_000);
        for line in &expected {
            queue.write_all(line.as_bytes()).expect("it is taken");
        }
        drop(logging);
        assert!(*paper.0.lock() == expected.concat().into_bytes());
    }

    #[test]
    fn lines_that_nobody_reads_are_bounded_and_neither_a_thread_that_logs_nor_the_end_waits_for_them() {
        let paper = Paper::default();
        let (logging, mut queue) = logger(&paper);
        let unread = paper.0.lock();
        let before = DROPPED.get();
        // Twice as much as may wait and be written, so that the rest is dropped.
        let lines = lines_of(400_000);
        for line in &lines {
            queue.write_all(line.as_bytes()).expect("it is taken or dropped");
        }
        assert!(DROPPED.get() > before);
        drop(logging);
        drop(unread);
        let written = |paper: &Paper| paper.0.lock().len();
        while written(&paper) < WAITING_MAX / 2 {
            thread::yield_now();
        }
        assert!(written(&paper) <= 2 * WAITING_MAX);
    }
}
