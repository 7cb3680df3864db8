//! A TCP proxy that cuts, delays, stalls and garbles what passes between a service and a store, holds one message, or
//! moves to another server.

mod hold;
mod pump;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use self::hold::{Hold, Target};
use self::pump::{Shared, State};

pub use self::hold::Direction;

/// How long a held message may take to come or to go on. A service connects and sends within a fraction of that.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A proxy on a port of its own on 127.0.0.1. Dropping it resets its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a proxy in front of `upstream`, which need not be there yet.
    pub fn start(upstream: impl ToSocketAddrs) -> Proxy {
        let upstream = resolve(upstream);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::new(upstream));
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

    /// The number of connections that are open now.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().connections.len()
    }

    /// The number of connections accepted so far, without those that a cut proxy reset.
    pub fn accepted(&self) -> u64 {
        self.shared.state.lock().accepted
    }

    /// The number of connections that clients have opened so far, with those that were reset at once because the proxy is
    /// cut or cannot reach upstream.
    pub fn attempts(&self) -> u64 {
        self.shared.state.lock().attempts
    }

    /// Resets all connections, and new ones as they come. Returns when the old ones are gone.
    pub fn cut(&self) {
        self.change(|state| state.cut = true);
        self.shared.reset_all();
    }

    /// Sends new connections to `upstream` from now on, as a failover does. Those that are open stay where they are until
    /// [`Proxy::reset`].
    pub fn retarget(&self, upstream: impl ToSocketAddrs) {
        let upstream = resolve(upstream);
        self.change(|state| state.upstream = upstream);
    }

    /// Resets all connections once; new ones pass.
    pub fn reset(&self) {
        self.shared.reset_all();
    }

    /// Holds each piece of data this long in both directions, so that a round trip takes twice as long. Data that arrive
    /// during a delay wait for it to end, so one piece may be late by two delays.
    pub fn delay(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// Replaces every byte from upstream by another.
    pub fn garble(&self) {
        self.change(|state| state.garbled = true);
    }

    /// Accepts connections and data, and forwards nothing until [`Proxy::restore`].
    pub fn stall(&self) {
        self.change(|state| state.stalled = true);
    }

    /// Holds the `nth` message that contains `needle`, counted from 1 and from now on, and what follows it on its
    /// connection in the same direction. All else passes: earlier messages, other connections, the other direction.
    ///
    /// A message is what one read returns. A short message that a client sends with one write comes in one piece,
    /// perhaps with more of the same connection before or after it. Every message contains the empty needle. Panics if
    /// another message is held already.
    pub fn hold(&self, direction: Direction, needle: impl AsRef<[u8]>, nth: usize) -> Held {
        self.set_hold(Hold::new(direction, needle.as_ref(), Target::Message, nth))
    }

    /// Lets the `nth` message to upstream that contains `needle` pass, and holds what is sent back next on its connection.
    /// Panics if another message is held already.
    pub fn hold_reply(&self, needle: impl AsRef<[u8]>, nth: usize) -> Held {
        self.set_hold(Hold::new(Direction::ToUpstream, needle.as_ref(), Target::Reply, nth))
    }

    fn set_hold(&self, hold: Hold) -> Held {
        let before = self.shared.state.lock().hold.replace(hold);
        assert!(before.is_none(), "one at a time: {before:?}");
        Held { shared: Arc::clone(&self.shared) }
    }

    /// Ends all faults. Connections that were cut stay cut, and a message that is held stays held.
    pub fn restore(&self) {
        self.change(|state| {
            state.cut = false;
            state.stalled = false;
            state.garbled = false;
            state.delay = Duration::ZERO;
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock());
        self.shared.changed.notify_all();
    }
}

fn resolve(address: impl ToSocketAddrs) -> SocketAddr {
    address.to_socket_addrs().ok().and_then(|mut found| found.next()).expect("an address")
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|state| {
            state.ended = true;
            state.cut = true;
        });
        self.shared.reset_all();
        // Wakes the thread that accepts, so that it sees the end and closes the port.
        let _ = TcpStream::connect(self.address);
    }
}

/// A message that the proxy holds, or will hold when it comes. Dropping it lets the message go on.
#[derive(Debug)]
#[must_use = "dropping it lets the message go on"]
pub struct Held {
    shared: Arc<Shared>,
}

impl Held {
    /// Lets the message go on by itself when it has been held for `limit`, as a packet does that is lost and sent again.
    pub fn at_most(self, limit: Duration) -> Held {
        if let Some(hold) = &mut self.shared.state.lock().hold {
            hold.set_limit(limit);
        }
        self
    }

    /// Waits until the proxy has the message. Panics if it does not come within 10 s.
    pub fn wait(&self) {
        assert!(self.wait_for(Hold::has_come), "no message to hold: {:?}", self.shared.state.lock().hold);
    }

    /// Waits until the proxy has the message, for `limit` at most. Returns whether it has.
    pub fn has_come_within(&self, limit: Duration) -> bool {
        self.wait_for_within(limit, Hold::has_come)
    }

    /// Lets the message go on, and returns when it has been delivered, even if its sender has died. If its receiver has
    /// died, the message is lost. Panics if it never came.
    pub fn release(self) {
        self.end(Hold::release);
    }

    /// Throws the message away and resets its connection; returns when that is done. Panics if it never came.
    pub fn discard(self) {
        self.end(Hold::discard);
    }

    /// Lets the message go on if it has come, and holds none any more. Returns when another one may be held.
    pub fn cancel(self) {
        self.shared.state.lock().hold.take_if(|hold| !hold.has_come());
        self.end(Hold::release);
    }

    fn end(&self, end: fn(&mut Hold)) {
        self.wait();
        if let Some(hold) = &mut self.shared.state.lock().hold {
            end(hold);
        }
        self.shared.changed.notify_all();
        let gone = self.wait_for(|_| false);
        assert!(gone, "what was held does not go on: {:?}", self.shared.state.lock().hold);
    }

    /// Waits until `enough` is true of the hold, or the hold has ended. Returns false if neither happens in time.
    fn wait_for(&self, enough: impl Fn(&Hold) -> bool) -> bool {
        self.wait_for_within(TIMEOUT, enough)
    }

    fn wait_for_within(&self, limit: Duration, enough: impl Fn(&Hold) -> bool) -> bool {
        let unmet = |state: &mut State| state.hold.as_ref().is_some_and(|hold| !enough(hold));
        let mut state = self.shared.state.lock();
        self.shared.changed.wait_while_for(&mut state, unmet, limit);
        !unmet(&mut state)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.hold.take_if(|hold| !hold.has_come());
        if let Some(hold) = &mut state.hold {
            hold.release();
        }
        self.shared.changed.notify_all();
    }
}
