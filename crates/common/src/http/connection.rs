//! A client's connection: since when it is idle, and how much of what it sends may wait in memory.
//!
//! actix-http takes from a connection all that has arrived: of a head 128 KiB, of a body as much, and as much again of
//! what follows the request that is being answered. Ten thousand clients who do not finish what they begin would take
//! more than a gigabyte. So a connection is read a little at a time, what is beyond a usual head takes from a budget
//! that all connections share (`body.rs` has one for bodies), and little is read ahead.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use actix_web::rt::net::{ActixStream, Ready, TcpStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::access::Memo;

/// How many bytes are read until actix-http looks at them.
const TURN: usize = 8 * 1024;
/// How many bytes may follow a request that is being answered; the rest waits in the kernel.
const AHEAD: usize = 8 * 1024;
/// How many bytes a head has without taking from the budget. Most are smaller.
const SMALL_HEAD: usize = 4 * 1024;
/// How many bytes the heads of all connections may have beyond that.
pub const HEADS_MAX_BYTES: usize = 16 << 20;

/// A permit for each byte.
static HEADS: Semaphore = Semaphore::const_new(HEADS_MAX_BYTES);

/// What is known of a connection. Its requests find it in their connection's data.
pub struct ClientConnection {
    /// Since when no request is being answered.
    idle_since: Cell<Option<Instant>>,
    /// Whether the request that is being answered waits for its body, or has given up waiting.
    pub awaits_body: Cell<bool>,
    /// Whether what is read is dropped: the rest of a body that was refused.
    pub is_drained: Cell<bool>,
    /// How many bytes have been read since the newest request began, or was answered.
    read: Cell<usize>,
    /// What the head that is arriving has of the budget.
    memory: RefCell<Option<SemaphorePermit<'static>>>,
    /// What it remembers of its client's token.
    pub memo: Memo,
    is_closed: Cell<bool>,
    /// Whom to wake when there is something to read again, or an end.
    waker: RefCell<Option<Waker>>,
}

impl ClientConnection {
    fn new() -> Self {
        Self {
            idle_since: Cell::new(Some(Instant::now())),
            awaits_body: Cell::new(false),
            is_drained: Cell::new(false),
            read: Cell::new(0),
            memory: RefCell::new(None),
            memo: Memo::default(),
            is_closed: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// A request has arrived.
    pub fn request_begins(&self) {
        self.idle_since.set(None);
        self.begin_anew();
    }

    /// The request was answered, at `now`.
    pub fn request_ends(&self, now: Instant) {
        self.idle_since.set(Some(now));
        self.awaits_body.set(false);
        // What was not read ahead is read now.
        if self.read.get() >= AHEAD {
            self.wake();
        }
        self.begin_anew();
    }

    /// Since when no request is being answered; none while one is.
    pub fn idle_since(&self) -> Option<Instant> {
        self.idle_since.get()
    }

    /// Reads nothing any more: to actix-http it is as if the client had closed the connection.
    pub fn close(&self) {
        self.is_closed.set(true);
        self.wake();
    }

    fn begin_anew(&self) {
        if self.read.replace(0) > SMALL_HEAD {
            self.memory.take();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Has `context` woken by [`ClientConnection::wake`].
    fn wait(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    /// Whether no more may be read before the request is answered.
    fn is_ahead(&self) -> bool {
        self.read.get() >= AHEAD && self.idle_since.get().is_none() && !self.awaits_body.get()
    }

    /// Counts `more` bytes. Returns whether there is memory for them.
    fn take_memory(&self, more: usize) -> bool {
        let before = self.read.get();
        let now = before + more;
        self.read.set(now);
        if now <= SMALL_HEAD || self.idle_since.get().is_none() || self.is_drained.get() {
            return true;
        }
        let bytes = u32::try_from(now - before.max(SMALL_HEAD)).unwrap_or(u32::MAX);
        let Ok(permit) = HEADS.try_acquire_many(bytes) else { return false };
        match &mut *self.memory.borrow_mut() {
            Some(memory) => memory.merge(permit),
            none => *none = Some(permit),
        }
        true
    }
}

/// What actix-http reads from, and writes to.
pub struct ClientStream {
    stream: TcpStream,
    /// What is known of the connection.
    pub connection: Rc<ClientConnection>,
    /// How many bytes have been read in this turn.
    turn: usize,
}

impl From<TcpStream> for ClientStream {
    fn from(stream: TcpStream) -> Self {
        Self { stream, connection: Rc::new(ClientConnection::new()), turn: 0 }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let connection = &this.connection;
        connection.wait(context);
        if connection.is_closed.get() {
            return Poll::Ready(Ok(()));
        }
        if this.turn >= TURN {
            this.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if connection.is_ahead() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(context, buffer) else {
            this.turn = 0;
            return Poll::Pending;
        };
        let read = buffer.filled().len() - before;
        this.turn += read;
        if result.is_err() {
            Poll::Ready(result)
        } else if connection.take_memory(read) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()))
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl ActixStream for ClientStream {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_read_ready(&self.stream, context)
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_write_ready(&self.stream, context)
    }
}
