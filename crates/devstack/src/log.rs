//! A server's output, kept in memory, and waiting for a text to appear in it.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Everything that a server has written to standard output and error so far.
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
    /// Collects all output of `source` in a thread of its own, which ends with the source.
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
                copy.0.written.lock().bytes.extend_from_slice(&buffer[..read]);
                copy.0.grew.notify_all();
            }
            copy.0.written.lock().closed = true;
            copy.0.grew.notify_all();
        });
        log
    }

    /// All output so far. Bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.written.lock().bytes).into_owned()
    }

    /// Waits for `needle`, which may be in the log already, and returns its whole line.
    /// Returns `None` after `timeout`, or if the server has ended without writing it.
    pub fn wait_for(&self, needle: &str, timeout: Duration) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut searched = 0;
        let mut written = self.0.written.lock();
        loop {
            if let Some(line) = full_line(&written.bytes, needle, searched) {
                return Some(line);
            }
            if written.closed || Instant::now() >= deadline {
                return None;
            }
            // The last line may lack its end, and may already contain a part of the needle: search it again.
            searched = written.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            self.0.grew.wait_until(&mut written, deadline);
        }
    }

    /// Waits until the server and all its children have ended, which closes the log. Returns false after `timeout`.
    pub fn wait_for_end(&self, timeout: Duration) -> bool {
        let mut written = self.0.written.lock();
        self.0.grew.wait_while_for(&mut written, |written| !written.closed, timeout);
        written.closed
    }
}

/// The first complete line from byte `from` on that contains `needle`.
fn full_line(bytes: &[u8], needle: &str, from: usize) -> Option<String> {
    let complete = bytes[from..].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    complete
        .map(String::from_utf8_lossy)
        .find(|line| line.contains(needle))
        .map(|line| line.trim_end().to_owned())
}
