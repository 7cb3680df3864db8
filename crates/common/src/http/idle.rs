//! Closes connections on which a request was begun and not finished.
//!
//! actix-web bounds the first head on a connection, and how long a connection may be idle between requests. With the
//! first byte of a later head that time ends, and nothing bounds the rest of the head. So each worker checks its
//! connections at intervals, and closes those on which no request has come for longer than an idle one is kept.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use actix_web::dev::Extensions;
use actix_web::rt;
use actix_web::rt::net::TcpStream;
use rustix::net::{Shutdown, shutdown};

/// How often a worker checks its connections: seldom beside the 80 s that one may be idle.
const INTERVAL: Duration = Duration::from_secs(5);

thread_local! {
    /// The worker's connections; none before the first one.
    static OPEN: RefCell<Option<Vec<Weak<ClientConnection>>>> = const { RefCell::new(None) };
}

/// A client's connection.
#[derive(Debug)]
pub struct ClientConnection {
    socket: OwnedFd,
    /// Since when no request is being answered.
    idle_since: Cell<Option<Instant>>,
}

impl ClientConnection {
    /// A request has arrived.
    pub fn request_begins(&self) {
        self.idle_since.set(None);
    }

    /// The request was answered, at `now`.
    pub fn request_ends(&self, now: Instant) {
        self.idle_since.set(Some(now));
    }
}

/// Puts a [`ClientConnection`] beside `stream`, where its requests find it. It is closed once it was idle for
/// `timeout`.
pub fn watch(stream: &dyn Any, timeout: Duration, data: &mut Extensions) {
    let Some(stream) = stream.downcast_ref::<TcpStream>() else { return };
    // This fails only if no more files can be opened, and then accepting fails as well.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let connection = Rc::new(ClientConnection { socket, idle_since: Cell::new(Some(Instant::now())) });
    OPEN.with_borrow_mut(|open| {
        let open = open.get_or_insert_with(|| {
            rt::spawn(keep_closing(timeout));
            Vec::new()
        });
        open.push(Rc::downgrade(&connection));
    });
    data.insert(connection);
}

async fn keep_closing(timeout: Duration) {
    loop {
        rt::time::sleep(INTERVAL).await;
        close_idle(timeout);
    }
}

/// Closes the thread's connections that have been idle for `timeout`, and removes those that have ended.
fn close_idle(timeout: Duration) {
    OPEN.with_borrow_mut(|open| {
        open.get_or_insert_default().retain(|connection| {
            let Some(connection) = connection.upgrade() else { return false };
            if connection.idle_since.get().is_some_and(|since| since.elapsed() >= timeout) {
                // The worker sees the end, and drops the connection. One that has ended cannot be shut down, and need
                // not.
                let _ = shutdown(&connection.socket, Shutdown::Both);
            }
            true
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read};

    const LONG: Duration = Duration::from_secs(600);

    /// A client, and its connection as the server has it.
    async fn pair() -> (std::net::TcpStream, Extensions) {
        let listener = rt::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        client.set_nonblocking(true).expect("open");
        let (stream, _) = listener.accept().await.expect("it has connected");
        let mut data = Extensions::new();
        watch(&stream, LONG, &mut data);
        data.insert(stream);
        (client, data)
    }

    fn is_open(mut client: &std::net::TcpStream) -> bool {
        client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    #[tokio::test(flavor = "local")]
    async fn a_connection_is_closed_once_no_request_has_come_on_it_for_so_long() {
        let (client, data) = pair().await;
        close_idle(LONG);
        assert!(is_open(&client));
        let connection = data.get::<Rc<ClientConnection>>().expect("it is watched");
        connection.request_begins();
        close_idle(Duration::ZERO);
        assert!(is_open(&client), "its request is being answered");
        connection.request_ends(Instant::now());
        close_idle(Duration::ZERO);
        assert!(!is_open(&client));
    }

    #[tokio::test(flavor = "local")]
    async fn connections_that_have_ended_are_forgotten() {
        let (_client, data) = pair().await;
        drop(data);
        close_idle(LONG);
        OPEN.with_borrow(|open| assert!(open.as_ref().is_some_and(Vec::is_empty)));
    }
}
