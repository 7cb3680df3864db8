//! Closes connections on which a request was begun and not finished.
//!
//! actix-web bounds the first head on a connection, and how long a connection may be idle between requests. With the
//! first byte of a later head that time ends, and nothing bounds the rest of the head. So each worker checks its
//! connections at intervals, and closes those on which no request has come for longer than an idle one is kept.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use actix_web::rt;

use super::connection::ClientConnection;

/// How often a worker checks its connections: seldom beside the 80 s that one may be idle.
const INTERVAL: Duration = Duration::from_secs(5);

thread_local! {
    /// The worker's connections; none before the first one.
    static OPEN: RefCell<Option<Vec<Weak<ClientConnection>>>> = const { RefCell::new(None) };
}

/// Has `connection` closed once it was idle for `timeout`.
pub fn watch(connection: &Rc<ClientConnection>, timeout: Duration) {
    OPEN.with_borrow_mut(|open| {
        let open = open.get_or_insert_with(|| {
            rt::spawn(keep_closing(timeout));
            Vec::new()
        });
        open.push(Rc::downgrade(connection));
    });
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
            if connection.idle_since().is_some_and(|since| since.elapsed() >= timeout) {
                connection.close();
            }
            true
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::connection::ClientStream;
    use std::time::Instant;
    use tokio::io::AsyncReadExt as _;

    const LONG: Duration = Duration::from_secs(600);

    /// A client, and its connection as the server has it.
    async fn pair() -> (std::net::TcpStream, ClientStream) {
        let listener = rt::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (stream, _) = listener.accept().await.expect("it has connected");
        let stream = ClientStream::from(stream);
        watch(&stream.connection, LONG);
        (client, stream)
    }

    /// Whether more may come from the client, as actix-http sees it.
    async fn is_open(stream: &mut ClientStream) -> bool {
        let read = stream.read_u8();
        rt::time::timeout(Duration::ZERO, read).await.is_err()
    }

    #[tokio::test(flavor = "local")]
    async fn a_connection_is_closed_once_no_request_has_come_on_it_for_so_long() {
        let (_client, mut stream) = pair().await;
        close_idle(LONG);
        assert!(is_open(&mut stream).await);
        stream.connection.request_begins();
        close_idle(Duration::ZERO);
        assert!(is_open(&mut stream).await, "its request is being answered");
        stream.connection.request_ends(Instant::now());
        close_idle(Duration::ZERO);
        assert!(!is_open(&mut stream).await);
    }

    #[tokio::test(flavor = "local")]
    async fn connections_that_have_ended_are_forgotten() {
        let (_client, stream) = pair().await;
        drop(stream);
        close_idle(LONG);
        OPEN.with_borrow(|open| assert!(open.as_ref().is_some_and(Vec::is_empty)));
    }
}
