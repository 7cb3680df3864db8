//! The threads that carry data between clients and upstream, and the faults that they apply.
//!
//! Two threads serve a connection, one for each direction. Every piece of data goes through [`Shared::pass`], which
//! holds or changes it according to the current faults; a new kind of fault belongs there.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::net::sockopt::set_socket_linger;

use super::hold::{Direction, Hold};

/// What a proxy's handle and its threads have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

/// The faults, and the open connections.
#[derive(Debug)]
pub(super) struct State {
    /// Where new connections go.
    pub(super) upstream: SocketAddr,
    pub(super) ended: bool,
    pub(super) cut: bool,
    pub(super) stalled: bool,
    pub(super) garbled: bool,
    pub(super) delay: Duration,
    pub(super) hold: Option<Hold>,
    pub(super) connections: HashMap<u64, Arc<Connection>>,
    pub(super) accepted: u64,
    pub(super) attempts: u64,
}

/// A client's connection and the one to upstream that belongs to it.
#[derive(Debug)]
pub(super) struct Connection {
    number: u64,
    client: TcpStream,
    upstream: TcpStream,
    // Set under the lock of the state, so that a thread that waits there sees it.
    reset: AtomicBool,
}

impl Shared {
    pub(super) fn new(upstream: SocketAddr) -> Shared {
        let state = State {
            upstream,
            ended: false,
            cut: false,
            stalled: false,
            garbled: false,
            delay: Duration::ZERO,
            hold: None,
            connections: HashMap::new(),
            accepted: 0,
            attempts: 0,
        };
        Shared { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Accepts connections until the proxy ends.
    pub(super) fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.state.lock().ended {
                return;
            }
            let Ok(client) = client else { continue };
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.serve(client));
        }
    }

    /// Serves one connection from its beginning to its end.
    fn serve(&self, client: TcpStream) {
        let Some(connection) = self.open(client) else { return };
        let number = connection.number;
        std::thread::scope(|scope| {
            scope.spawn(|| self.pump(&connection, Direction::FromUpstream));
            self.pump(&connection, Direction::ToUpstream);
        });
        drop(connection);
        // Removes the last handle, which closes both sockets: a thread that waits for that finds them closed.
        self.state.lock().connections.remove(&number);
        self.changed.notify_all();
    }

    /// Connects to upstream. Resets the client if that fails or the proxy is cut.
    fn open(&self, client: TcpStream) -> Option<Arc<Connection>> {
        close_by_reset(&client);
        let address = {
            let mut state = self.state.lock();
            state.attempts += 1;
            (!state.cut).then_some(state.upstream)?
        };
        let upstream = TcpStream::connect(address).ok()?;
        for stream in [&client, &upstream] {
            // A blocked write looks for a cut this often. Small messages leave at once, as they would without the proxy.
            stream.set_write_timeout(Some(Duration::from_millis(50))).ok()?;
            stream.set_nodelay(true).ok()?;
        }
        let mut state = self.state.lock();
        if state.cut {
            return None;
        }
        state.accepted += 1;
        let number = state.accepted;
        close_in_order(&client);
        let connection = Arc::new(Connection { number, client, upstream, reset: AtomicBool::new(false) });
        state.connections.insert(number, Arc::clone(&connection));
        Some(connection)
    }

    /// Carries one direction until its source ends.
    fn pump(&self, connection: &Connection, direction: Direction) {
        let (mut source, target) = match direction {
            Direction::ToUpstream => (&connection.client, &connection.upstream),
            Direction::FromUpstream => (&connection.upstream, &connection.client),
        };
        let mut buffer = [0; 16 * 1024];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => {
                    // After the proxy's own reset, the other side must see no orderly end.
                    if !connection.is_reset() {
                        // Fails if the other side has closed already.
                        let _ = target.shutdown(Shutdown::Write);
                    }
                    return;
                }
                Ok(read) => {
                    let data = &mut buffer[..read];
                    let delivered = self.pass(connection, direction, data) && write(connection, target, data);
                    self.let_go(connection, direction);
                    if !delivered {
                        return self.target_lost(connection, direction);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // One side was reset, so the other side is reset too.
                Err(_) => return self.reset(connection),
            }
        }
    }

    /// Holds or changes a piece of data. Returns whether it goes on; it does not if the connection is reset.
    fn pass(&self, connection: &Connection, direction: Direction, data: &mut [u8]) -> bool {
        let mut state = self.state.lock();
        let delay = state.delay;
        let is_delayed = |state: &mut State| !connection.is_reset() && !state.delay.is_zero();
        self.changed.wait_while_for(&mut state, is_delayed, delay);
        self.changed.wait_while(&mut state, |state| !connection.is_reset() && state.stalled);
        if state.garbled && direction == Direction::FromUpstream {
            for byte in data.iter_mut() {
                *byte ^= 0xA5;
            }
        }
        if state.hold.as_mut().is_some_and(|hold| hold.takes(connection.number, direction, data)) {
            self.changed.notify_all();
            let is_held =
                |state: &mut State| !connection.is_reset() && state.hold.as_ref().is_some_and(Hold::is_held);
            match state.hold.as_ref().and_then(Hold::limit) {
                Some(limit) => {
                    self.changed.wait_while_for(&mut state, is_held, limit);
                    if let Some(hold) = &mut state.hold {
                        hold.release();
                    }
                }
                None => self.changed.wait_while(&mut state, is_held),
            }
            if state.hold.as_ref().is_some_and(Hold::is_discarded) {
                connection.reset();
                self.changed.notify_all();
            }
        }
        !connection.is_reset()
    }

    /// Ends the hold on this direction of the connection: the message is delivered or lost.
    fn let_go(&self, connection: &Connection, direction: Direction) {
        let mut state = self.state.lock();
        if state.hold.take_if(|hold| hold.has(connection.number, direction)).is_some() {
            self.changed.notify_all();
        }
    }

    /// Resets a connection that has lost the target of `direction`. If a message from that side is held, the reset waits
    /// until the message has gone on.
    fn target_lost(&self, connection: &Connection, direction: Direction) {
        let number = connection.number;
        let holds_its_last =
            |state: &State| state.hold.as_ref().is_some_and(|hold| hold.has(number, direction.opposite()));
        self.changed
            .wait_while(&mut self.state.lock(), |state| !connection.is_reset() && holds_its_last(state));
        self.reset(connection);
    }

    fn reset(&self, connection: &Connection) {
        let _state = self.state.lock();
        connection.reset();
        self.changed.notify_all();
    }

    /// Resets the connections that are open now, and waits until they are closed.
    pub(super) fn reset_all(&self) {
        let mut state = self.state.lock();
        let open: Vec<u64> = state.connections.keys().copied().collect();
        for connection in state.connections.values() {
            connection.reset();
        }
        self.changed.notify_all();
        let any_left = |state: &mut State| open.iter().any(|number| state.connections.contains_key(number));
        self.changed.wait_while_for(&mut state, any_left, Duration::from_secs(5));
    }
}

impl Connection {
    /// Makes both sides see a reset as soon as both threads have let go: reading ends now, closing sends RST.
    fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        for stream in [&self.client, &self.upstream] {
            close_by_reset(stream);
            // Fails if the other side was faster.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }
}

/// Writes all of `data`. Returns false if the proxy or the other side resets the connection.
fn write(connection: &Connection, mut target: &TcpStream, mut data: &[u8]) -> bool {
    while !data.is_empty() {
        match target.write(data) {
            Ok(written) => data = &data[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if connection.is_reset() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Makes closing send RST instead of FIN: a linger time of zero.
fn close_by_reset(stream: &TcpStream) {
    // Fails if the socket is closed already.
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
}

fn close_in_order(stream: &TcpStream) {
    let _ = set_socket_linger(stream, None);
}
