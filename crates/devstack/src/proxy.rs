//! A TCP proxy that cuts, delays, stalls and garbles what passes between a service and a store, or holds one message.
//!
//! A connection has two threads, one for each direction. Every piece of data goes through `Shared::pass`, which holds or
//! changes it as the faults of the moment say; a new kind of fault belongs there.

mod hold;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use self::hold::Hold;

pub use self::hold::Held;

/// A proxy on a port of its own on 127.0.0.1. Dropping it resets its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// The two ways through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the service to the store.
    ToUpstream,
    /// From the store to the service.
    FromUpstream,
}

impl Direction {
    fn opposite(self) -> Direction {
        match self {
            Direction::ToUpstream => Direction::FromUpstream,
            Direction::FromUpstream => Direction::ToUpstream,
        }
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ended: bool,
    cut: bool,
    stalled: bool,
    garbled: bool,
    delay: Duration,
    hold: Option<Hold>,
    connections: HashMap<u64, Arc<Connection>>,
    accepted: u64,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    client: TcpStream,
    upstream: TcpStream,
    // Set under the lock of the state, so that whoever waits there sees it.
    reset: AtomicBool,
}

impl Proxy {
    /// Starts a proxy in front of `upstream`, which need not be there yet.
    pub fn start(upstream: impl ToSocketAddrs) -> Proxy {
        let upstream =
            upstream.to_socket_addrs().ok().and_then(|mut found| found.next()).expect("an address");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared { upstream, state: Mutex::default(), changed: Condvar::new() });
        let copy = Arc::clone(&shared);
        std::thread::spawn(move || copy.accept(&listener));
        Proxy { address, shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections are open now.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }

    /// How many connections were accepted so far, those of a cut proxy not counted.
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// Resets all connections, and new ones as they come. Returns when the old ones are gone.
    pub fn cut(&self) {
        self.change(|state| state.cut = true);
        self.shared.reset_all();
    }

    /// Resets all connections once; new ones pass.
    pub fn reset(&self) {
        self.shared.reset_all();
    }

    /// Holds each piece of data this long, in both directions, so that a round trip takes twice as long.
    /// Data that come meanwhile wait for their turn, so one may be late by two delays.
    pub fn delay(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// Replaces every byte from upstream by another.
    pub fn garble(&self) {
        self.change(|state| state.garbled = true);
    }

    /// Accepts connections and data, and forwards nothing. What is held goes on after [`Proxy::restore`].
    pub fn stall(&self) {
        self.change(|state| state.stalled = true);
    }

    /// Holds the `nth` message that has `needle` in it, from now on and counted from 1, and what comes after it on its
    /// connection in the same direction. All else passes: earlier messages, other connections, the other direction.
    ///
    /// A message is what was read at once: what a client sends in one go comes in one piece if it is short, perhaps
    /// with more of the same connection before or after it. Panics if something is held already.
    pub fn hold(&self, direction: Direction, needle: impl AsRef<[u8]>, nth: usize) -> Held {
        self.set_hold(Hold::new(direction, needle.as_ref(), false, nth))
    }

    /// Lets the `nth` message to upstream that has `needle` in it pass, and holds what is sent back next on its connection.
    pub fn hold_reply(&self, needle: impl AsRef<[u8]>, nth: usize) -> Held {
        self.set_hold(Hold::new(Direction::ToUpstream, needle.as_ref(), true, nth))
    }

    fn set_hold(&self, hold: Hold) -> Held {
        let before = self.shared.lock().hold.replace(hold);
        assert!(before.is_none(), "one at a time: {before:?}");
        Held { shared: Arc::clone(&self.shared) }
    }

    /// Ends all faults. Connections that were cut stay so, and a message that is held.
    pub fn restore(&self) {
        self.change(|state| {
            (state.cut, state.stalled, state.garbled, state.delay) = (false, false, false, Duration::ZERO);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|state| (state.ended, state.cut) = (true, true));
        self.shared.reset_all();
        // Wakes the thread that accepts, so that it sees the end and closes the port.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.lock().ended {
                return;
            }
            let Ok(client) = client else { continue };
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.serve(client));
        }
    }

    /// One connection, from its begin to its end.
    fn serve(&self, client: TcpStream) {
        let Some(connection) = self.open(client) else { return };
        let number = connection.number;
        std::thread::scope(|scope| {
            scope.spawn(|| self.pump(&connection, Direction::FromUpstream));
            self.pump(&connection, Direction::ToUpstream);
        });
        drop(connection);
        // The last handle goes here, which closes both sockets: whoever waits for that finds it done.
        self.lock().connections.remove(&number);
        self.changed.notify_all();
    }

    /// Connects to upstream; if that fails, or the proxy is cut, the client is reset.
    fn open(&self, client: TcpStream) -> Option<Arc<Connection>> {
        close_by_reset(&client);
        if self.lock().cut {
            return None;
        }
        let upstream = TcpStream::connect(self.upstream).ok()?;
        for stream in [&client, &upstream] {
            // A blocked write must notice a cut. Small messages go at once, as they would without us.
            stream.set_write_timeout(Some(Duration::from_millis(50))).ok()?;
            stream.set_nodelay(true).ok()?;
        }
        let mut state = self.lock();
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
                    // If it was our own reset that ended it, the other side must see no end in good order.
                    if !connection.is_reset() {
                        drop(target.shutdown(Shutdown::Write));
                    }
                    return;
                }
                Ok(read) => {
                    let data = &mut buffer[..read];
                    let gone = self.pass(connection, direction, data) && write(connection, target, data);
                    self.let_go(connection, direction);
                    if !gone {
                        return self.target_lost(connection, direction);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // One side was reset, so the other one is.
                Err(_) => return self.reset(connection),
            }
        }
    }

    /// Holds or changes a piece of data; returns false if it must not go on, because the connection is reset.
    fn pass(&self, connection: &Connection, direction: Direction, data: &mut [u8]) -> bool {
        let state = self.lock();
        let delay = state.delay;
        let (state, _) = self
            .changed
            .wait_timeout_while(state, delay, |state| !connection.is_reset() && !state.delay.is_zero())
            .unwrap_or_else(PoisonError::into_inner);
        let state = self
            .changed
            .wait_while(state, |state| !connection.is_reset() && state.stalled)
            .unwrap_or_else(PoisonError::into_inner);
        if state.garbled && direction == Direction::FromUpstream {
            data.iter_mut().for_each(|byte| *byte ^= 0xA5);
        }
        let (mut state, number) = (state, connection.number);
        if state.hold.as_mut().is_some_and(|hold| hold.takes(number, direction, data)) {
            self.changed.notify_all();
            let is_held = |state: &mut State| state.hold.as_ref().is_some_and(Hold::is_held);
            state = self
                .changed
                .wait_while(state, |state| !connection.is_reset() && is_held(state))
                .unwrap_or_else(PoisonError::into_inner);
            if state.hold.as_ref().is_some_and(Hold::is_discarded) {
                connection.reset();
                self.changed.notify_all();
            }
        }
        !connection.is_reset()
    }

    /// What was held on this way is delivered, or lost.
    fn let_go(&self, connection: &Connection, direction: Direction) {
        let mut state = self.lock();
        if state.hold.take_if(|hold| hold.has(connection.number, direction)).is_some() {
            self.changed.notify_all();
        }
    }

    /// Resets a connection one side of which has gone, but not before what that side had sent, and is held, has gone on.
    fn target_lost(&self, connection: &Connection, direction: Direction) {
        let number = connection.number;
        let holds_its_last = |state: &mut State| {
            state.hold.as_ref().is_some_and(|hold| hold.has(number, direction.opposite()))
        };
        let waiting = |state: &mut State| !connection.is_reset() && holds_its_last(state);
        drop(self.changed.wait_while(self.lock(), waiting));
        self.reset(connection);
    }

    fn reset(&self, connection: &Connection) {
        let _state = self.lock();
        connection.reset();
        self.changed.notify_all();
    }

    /// Resets what is open now, and waits until it is closed.
    fn reset_all(&self) {
        let state = self.lock();
        let open: Vec<u64> = state.connections.keys().copied().collect();
        state.connections.values().for_each(|connection| connection.reset());
        self.changed.notify_all();
        let any_left = |state: &mut State| open.iter().any(|number| state.connections.contains_key(number));
        drop(self.changed.wait_timeout_while(state, Duration::from_secs(5), any_left));
    }
}

impl Connection {
    /// Lets both sides see a reset once both threads have let go: reading ends now, closing sends RST.
    fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        for stream in [&self.client, &self.upstream] {
            close_by_reset(stream);
            // Fails if the other side was faster.
            drop(stream.shutdown(Shutdown::Read));
        }
    }

    fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }
}

/// Writes all; returns false if the connection is reset by us or by the other side.
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

/// Closing without lingering sends RST rather than FIN.
fn close_by_reset(stream: &TcpStream) {
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
}

fn close_in_order(stream: &TcpStream) {
    let _ = set_socket_linger(stream, None);
}
