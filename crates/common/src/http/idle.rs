//! Closes connections on which a request was begun and not finished.
//!
//! actix-web bounds the first head on a connection, and how long one may be idle between requests; but with the first
//! byte of a later head that time ends, and nothing bounds the rest of the head. So each worker looks through its
//! connections now and then, and closes those on which no request has come for longer than an idle one is kept.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use actix_web::dev::Extensions;
use actix_web::rt;
use actix_web::rt::net::TcpStream;
use rustix::net::{Shutdown, shutdown};

/// How often a worker looks.
const INTERVAL: Duration = Duration::from_secs(5);

thread_local! {
    /// The worker's connections; none before it had one.
    static OPEN: RefCell<Option<Vec<Weak<Connection>>>> = const { RefCell::new(None) };
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// Since when no request is being answered.
    idle_since: Cell<Option<Instant>>,
}

impl Connection {
    /// A request has come.
    pub fn request_begins(&self) {
        self.idle_since.set(None);
    }

    /// It was answered, at `now`.
    pub fn request_ends(&self, now: Instant) {
        self.idle_since.set(Some(now));
    }
}

/// Puts a [`Connection`] beside `stream`, to be found by its requests, and closes it once it was idle for `patience`.
pub fn watch(stream: &dyn Any, patience: Duration, data: &mut Extensions) {
    let Some(stream) = stream.downcast_ref::<TcpStream>() else { return };
    // Without a file left for it, accepting connections fails as well.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let connection = Rc::new(Connection { socket, idle_since: Cell::new(Some(Instant::now())) });
    OPEN.with_borrow_mut(|open| {
        let open = open.get_or_insert_with(|| {
            rt::spawn(keep_closing(patience));
            Vec::new()
        });
        open.push(Rc::downgrade(&connection));
    });
    data.insert(connection);
}

async fn keep_closing(patience: Duration) {
    loop {
        rt::time::sleep(INTERVAL).await;
        close_idle(patience);
    }
}

/// Closes the thread's connections that have been idle for `patience`, and forgets those that have ended.
fn close_idle(patience: Duration) {
    OPEN.with_borrow_mut(|open| {
        open.get_or_insert_default().retain(|connection| {
            let Some(connection) = connection.upgrade() else { return false };
            if connection.idle_since.get().is_some_and(|since| since.elapsed() >= patience) {
                // The worker sees its end, and drops it.
                let _as_good_if_it_has_ended = shutdown(&connection.socket, Shutdown::Both);
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

    #[actix_web::test]
    async fn a_connection_is_closed_once_no_request_has_come_on_it_for_so_long() {
        let (client, data) = pair().await;
        close_idle(LONG);
        assert!(is_open(&client));
        let connection = data.get::<Rc<Connection>>().expect("it is watched");
        connection.request_begins();
        close_idle(Duration::ZERO);
        assert!(is_open(&client), "its request is being answered");
        connection.request_ends(Instant::now());
        close_idle(Duration::ZERO);
        assert!(!is_open(&client));
    }

    #[actix_web::test]
    async fn connections_that_have_ended_are_forgotten() {
        let (_client, data) = pair().await;
        drop(data);
        close_idle(LONG);
        OPEN.with_borrow(|open| assert!(open.as_ref().is_some_and(Vec::is_empty)));
    }
}
