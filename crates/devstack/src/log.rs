//! What a server writes, kept in memory, and waiting for a text to appear in it.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Everything a server wrote to standard output and error so far.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    written: Mutex<Written>,
    grew: Condvar,
}

#[derive(Debug, Default)]
struct Written {
    bytes: Vec<u8>,
    closed: bool,
}

impl Log {
    /// Collects all that comes from `source`, in a thread of its own that ends with the source.
    pub(crate) fn of(mut source: impl Read + Send + 'static) -> Log {
        let log = Log::default();
        let copy = log.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let read = match source.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                copy.lock().bytes.extend_from_slice(&buffer[..read]);
                copy.0.grew.notify_all();
            }
            copy.lock().closed = true;
            copy.0.grew.notify_all();
        });
        log
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All text so far; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// Waits for `needle`, which may have come before, and returns its whole line.
    /// `None` when the time is over, or the server has ended without it.
    pub fn wait_for(&self, needle: &str, bound: Duration) -> Option<String> {
        let deadline = Instant::now() + bound;
        let mut searched = 0;
        let mut written = self.lock();
        loop {
            if let Some(line) = full_line(&written.bytes, needle, searched) {
                return Some(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if written.closed || left.is_zero() {
                return None;
            }
            // A part of the needle may be at the end already, in a line that is not whole yet.
            searched = written.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            written = self.0.grew.wait_timeout(written, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the server and all its children have ended, which closes the log. False when the time is over.
    pub fn wait_for_end(&self, bound: Duration) -> bool {
        let unended = |written: &mut Written| !written.closed;
        let waited = self.0.grew.wait_timeout_while(self.lock(), bound, unended);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }
}

/// The first line from byte `from` on that holds `needle` and has its newline.
fn full_line(bytes: &[u8], needle: &str, from: usize) -> Option<String> {
    let whole = bytes[from..].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    whole
        .map(String::from_utf8_lossy)
        .find(|line| line.contains(needle))
        .map(|line| line.trim_end().to_owned())
}
