//! The shared connections to Redis, their time-out and their breaker.
//!
//! A task keeps the first connection. While there is none the breaker is open: readers do not try, and lose no time. It
//! opens on an error of any connection, or when *no* reply at all came on one for a whole time-out: a few late replies
//! under load are no outage. The task then tries to connect again and again, on its own time: that is the half-open
//! state, and no request pays for it.
//!
//! Each worker soon has a connection of its own beside the first: to be served by another thread would cost more than
//! all that Redis does.

use std::cell::OnceCell;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use actix_web::rt::System;
use deadpool_redis::{Connection, Manager, Pool, Runtime, Timeouts};
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, InfoDict, IntoConnectionInfo, RedisError, ServerErrorKind, cmd};
use thread_local::ThreadLocal;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::config::CacheSettings;

/// How often an open breaker tries to connect.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// How long an attempt to connect may take, TLS included. No request waits for it.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections at once, beside those that are shared: a few for writers while there is none.
const CONNECTIONS: usize = 4;

/// Why a step with Redis came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheError {
    /// No reply within the time-out.
    Timeout,
    /// An error, or the end of the connection.
    Failed(String),
    /// Not tried.
    BreakerOpen,
}

/// The way to Redis.
pub struct Redis {
    pool: Pool,
    timeout: Duration,
    link: RwLock<Option<Arc<Link>>>,
    lost: Notify,
    start: Instant,
}

/// Redis, while it is there: the first connection, and those of workers.
struct Link {
    first: Line,
    own: ThreadLocal<OnceCell<Line>>,
}

/// A connection, and when it last replied, in microseconds since the start.
struct Line {
    connection: MultiplexedConnection,
    last_reply: AtomicU64,
}

impl Redis {
    /// Prepares to connect.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use.
    pub fn new(settings: &CacheSettings) -> Result<Self, Box<dyn std::error::Error>> {
        if settings.url.expose().starts_with("rediss:") {
            // An error says that a provider is installed already.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        // What the client says about a bad URL may quote it, password included.
        let manager = Manager::new(settings.url.expose()).map_err(|_| "REDIS_URL cannot be used")?;
        let patience = Some(CONNECT_TIMEOUT);
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: patience, create: patience, recycle: patience })
            .build()?;
        Ok(Self {
            pool,
            timeout: settings.timeout,
            link: RwLock::new(None),
            lost: Notify::new(),
            start: Instant::now(),
        })
    }

    /// Does one step within the time-out, for a reader: not at all while the breaker is open.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn step<T, F: Future<Output = Result<T, RedisError>>>(
        self: &Arc<Self>,
        ask: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, CacheError> {
        let Some(link) = self.link() else { return Err(CacheError::BreakerOpen) };
        let line = self.line(&link);
        let sent = self.now();
        match timeout(self.timeout, ask(line.connection.clone())).await {
            Ok(Ok(reply)) => {
                line.last_reply.store(self.now(), Ordering::Relaxed);
                Ok(reply)
            }
            Ok(Err(error)) if is_reply(&error) => {
                line.last_reply.store(self.now(), Ordering::Relaxed);
                Err(CacheError::Failed(error.to_string()))
            }
            Ok(Err(error)) => {
                self.open_breaker(&link, &error);
                Err(CacheError::Failed(error.to_string()))
            }
            Err(late) => {
                if line.last_reply.load(Ordering::Relaxed) < sent {
                    self.open_breaker(&link, &late);
                }
                Err(CacheError::Timeout)
            }
        }
    }

    /// Does one step within the time-out, for a writer: while the breaker is open, or if the shared connection turns
    /// out to be broken, on another one.
    ///
    /// # Errors
    /// [`CacheError`], never [`CacheError::BreakerOpen`].
    pub async fn insist<T, F: Future<Output = Result<T, RedisError>>>(
        self: &Arc<Self>,
        ask: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<T, CacheError> {
        let start = Instant::now();
        match self.step(&ask).await {
            // That a connection is broken shows only when it is used, and says little about Redis.
            Err(CacheError::Failed(_) | CacheError::BreakerOpen) => {}
            done => return done,
        }
        let failed = |error: &dyn Display| CacheError::Failed(error.to_string());
        let try_anyway = async {
            let connection = self.pool.get().await.map_err(|error| failed(&error))?;
            ask(connection.clone()).await.map_err(|error| failed(&error))
        };
        let left = self.timeout.saturating_sub(start.elapsed());
        timeout(left, try_anyway).await.unwrap_or(Err(CacheError::Timeout))
    }

    /// Connects whenever there is no connection, and notifies `connected` each time. Never returns.
    pub async fn keep_connected(&self, connected: &Notify) {
        let mut told = String::new();
        loop {
            match self.connect().await {
                Ok(connection) => {
                    let link = Link { first: self.new_line(connection), own: ThreadLocal::new() };
                    *self.link.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(link));
                    told.clear();
                    log::info!("Redis is there");
                    connected.notify_one();
                    self.lost.notified().await;
                }
                Err(error) => {
                    let why = error.to_string();
                    if why != told {
                        log::warn!("Redis cannot be used, going on without: {why}");
                        told = why;
                    }
                    sleep(PROBE_INTERVAL).await;
                }
            }
        }
    }

    /// Takes a connection out of the pool for good: the pool validates at each checkout, which a hit need not pay.
    async fn connect(&self) -> Result<MultiplexedConnection, Box<dyn std::error::Error + Send + Sync>> {
        let mut connection = self.pool.get().await?;
        // Whoever is too slow for this is too slow for requests: an open breaker would close only to open again.
        let info: InfoDict = timeout(self.timeout, cmd("INFO").query_async(&mut connection)).await??;
        let version: String = info.get("redis_version").unwrap_or_default();
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < 7) {
            return Err(format!("Redis 7.0 or newer is needed, this is {version}").into());
        }
        // These answer reads with old data or errors, and take no lease.
        if info.get("role").is_some_and(|role: String| role == "slave") {
            return Err("this Redis is a replica".into());
        }
        if info.get("loading").is_some_and(|loading: String| loading == "1") {
            return Err("this Redis is loading its data".into());
        }
        let mut connection = Connection::take(connection);
        // The client has a time-out of its own (500 ms), which looks like a broken connection: ours must come first.
        connection.set_response_timeout(self.timeout * 2);
        Ok(connection)
    }

    /// This worker's own connection to what `link` leads to, once there is one.
    fn line<'a>(self: &Arc<Self>, link: &'a Arc<Link>) -> &'a Line {
        let own = link.own.get_or(|| {
            // Other threads drive no connection.
            if System::try_current().is_some() {
                tokio::spawn(self.clone().connect_own(link.clone()));
            }
            OnceCell::new()
        });
        own.get().unwrap_or(&link.first)
    }

    async fn connect_own(self: Arc<Self>, link: Arc<Link>) {
        match self.connect().await {
            Ok(connection) => drop(link.own.get_or_default().set(self.new_line(connection))),
            Err(error) => log::debug!("a worker goes on with the first connection to Redis: {error}"),
        }
    }

    fn new_line(&self, connection: MultiplexedConnection) -> Line {
        Line { connection, last_reply: AtomicU64::new(self.now()) }
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Gives `broken` up, unless another has taken its place already.
    fn open_breaker(&self, broken: &Arc<Link>, why: &dyn Display) {
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        if link.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
            *link = None;
            self.lost.notify_one();
            log::warn!("Redis is lost, going on without: {why}");
        }
    }
}

/// Where invalidations are published. Pub/sub knows no database numbers: the name holds it.
///
/// # Errors
/// A URL that Redis' client cannot use.
pub fn channel(settings: &CacheSettings) -> Result<String, Box<dyn std::error::Error>> {
    let info = settings.url.expose().into_connection_info().map_err(|_| "REDIS_URL cannot be used")?;
    Ok(format!("invalidations:{}", info.redis_settings().db()))
}

/// Whether Redis answered, if only with an error, and the connection can be used on.
fn is_reply(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, MasterDown, ReadOnly};
    match error.kind() {
        // This server has stopped to be the one to ask.
        ErrorKind::Server(BusyLoading | MasterDown | ReadOnly) => false,
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType => true,
        _ => false,
    }
}
