//! Redis: one shared connection, a short time-out on every step, and a breaker.
//!
//! A task keeps the connection. While there is none the breaker is open: readers do not try, and lose no time. It
//! opens on a connection error, or when *no* reply at all came for a whole time-out: a few late replies under load
//! are no outage.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use deadpool_redis::{Connection, Manager, Pool, Runtime, Timeouts};
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, InfoDict, RedisError, Script, ServerErrorKind, cmd};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::config::CacheSettings;
use crate::entry::{self, Slot};

/// How often an open breaker tries to connect.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// How long an attempt to connect may take, TLS included. No request waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections at most: one that is shared, and a few for writers while there is none.
const CONNECTIONS: usize = 4;
/// How long a lease holds: longer than a load may take.
const LEASE: Duration = Duration::from_secs(3);

/// Sets KEYS[1] to ARGV[2] for ARGV[3] ms, if it holds ARGV[1].
const REPLACE: &str = "\
if redis.pcall('GET', KEYS[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
return 0";

/// Deletes KEYS[1], if it holds ARGV[1] or no string at all.
const REMOVE: &str = "\
if redis.call('TYPE', KEYS[1]).ok ~= 'string' or redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0";

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

/// A handle to Redis; clones share one connection.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    pool: Pool,
    timeout: Duration,
    link: RwLock<Option<Arc<Link>>>,
    lost: Notify,
    start: Instant,
    replace: Script,
    remove: Script,
}

/// The shared connection, and when it last replied.
struct Link {
    connection: MultiplexedConnection,
    last_reply: AtomicU64,
}

impl Cache {
    /// Starts to connect. Does not wait for Redis, which need not be there. Must be called within a runtime.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use.
    pub fn start(settings: &CacheSettings) -> Result<Self, Box<dyn std::error::Error>> {
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
        let cache = Self(Arc::new(Inner {
            pool,
            timeout: settings.timeout,
            link: RwLock::new(None),
            lost: Notify::new(),
            start: Instant::now(),
            replace: Script::new(REPLACE),
            remove: Script::new(REMOVE),
        }));
        tokio::spawn(cache.clone().keep_connected());
        Ok(cache)
    }

    /// What `key` holds.
    ///
    /// # Errors
    /// [`CacheError`]; a value of the wrong type is none, but garbage.
    pub async fn get(&self, key: &str) -> Result<Slot, CacheError> {
        let bytes = self.step(async |mut link| cmd("GET").arg(key).query_async(&mut link).await).await;
        slot(bytes)
    }

    /// Puts `lease` at `key` if nothing is there. Returns what was.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn take_lease(&self, key: &str, lease: &Bytes) -> Result<Slot, CacheError> {
        let milliseconds = LEASE.as_millis() as u64;
        let mut command = cmd("SET");
        command.arg(key).arg(lease.as_ref()).arg("NX").arg("GET").arg("PX").arg(milliseconds);
        let bytes = self.step(async |mut link| command.query_async(&mut link).await).await;
        slot(bytes)
    }

    /// Puts `new` at `key` for `ttl` if exactly `expected` is there; tells whether it was.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn replace(
        &self,
        key: &str,
        expected: &[u8],
        new: &[u8],
        ttl: Duration,
    ) -> Result<bool, CacheError> {
        let mut call = self.0.replace.key(key);
        call.arg(expected).arg(new).arg(ttl.as_millis() as u64);
        self.step(async |mut link| call.invoke_async(&mut link).await).await
    }

    /// Removes `key` if exactly `expected` is there, or something that is no string.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn remove(&self, key: &str, expected: &[u8]) -> Result<bool, CacheError> {
        let mut call = self.0.remove.key(key);
        call.arg(expected);
        self.step(async |mut link| call.invoke_async(&mut link).await).await
    }

    /// Deletes `keys`, whatever they hold. A writer's step: it is tried even while the breaker is open, and once more
    /// on a new connection if the shared one is broken.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn delete(&self, keys: &[String]) -> Result<(), CacheError> {
        let mut command = cmd("DEL");
        command.arg(keys);
        let start = Instant::now();
        match self.step(async |mut link| command.query_async(&mut link).await).await {
            // That a connection is broken shows only when it is used, and says little about Redis.
            Err(CacheError::Failed(_) | CacheError::BreakerOpen) => {}
            result => return result,
        }
        let try_anyway = async {
            let mut connection =
                self.0.pool.get().await.map_err(|error| CacheError::Failed(error.to_string()))?;
            command.query_async(&mut connection).await.map_err(|error| CacheError::Failed(error.to_string()))
        };
        let left = self.0.timeout.saturating_sub(start.elapsed());
        timeout(left, try_anyway).await.unwrap_or(Err(CacheError::Timeout))
    }

    /// Does one step on the shared connection, within the time-out.
    async fn step<T>(
        &self,
        ask: impl AsyncFnOnce(MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, CacheError> {
        let Some(link) = self.link() else { return Err(CacheError::BreakerOpen) };
        let sent = self.now();
        match timeout(self.0.timeout, ask(link.connection.clone())).await {
            Ok(Ok(reply)) => {
                link.last_reply.store(self.now(), Ordering::Relaxed);
                Ok(reply)
            }
            Ok(Err(error)) if is_reply(&error) => {
                link.last_reply.store(self.now(), Ordering::Relaxed);
                Err(CacheError::Failed(error.to_string()))
            }
            Ok(Err(error)) => {
                self.open_breaker(&link, &error);
                Err(CacheError::Failed(error.to_string()))
            }
            Err(late) => {
                if link.last_reply.load(Ordering::Relaxed) < sent {
                    self.open_breaker(&link, &late);
                }
                Err(CacheError::Timeout)
            }
        }
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.0.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_link(&self, link: Option<Arc<Link>>) {
        *self.0.link.write().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// Microseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Gives `broken` up, unless another has taken its place already.
    fn open_breaker(&self, broken: &Arc<Link>, why: &dyn std::fmt::Display) {
        let mut link = self.0.link.write().unwrap_or_else(PoisonError::into_inner);
        if link.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
            *link = None;
            self.0.lost.notify_one();
            log::warn!("Redis is lost, going on without: {why}");
        }
    }

    /// Connects whenever there is no connection. Ends with the process.
    async fn keep_connected(self) {
        let mut told = String::new();
        loop {
            match self.connect().await {
                Ok(connection) => {
                    let link = Link { connection, last_reply: AtomicU64::new(self.now()) };
                    self.set_link(Some(Arc::new(link)));
                    told.clear();
                    log::info!("Redis is there");
                    self.0.lost.notified().await;
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
        let mut connection = self.0.pool.get().await?;
        // Whoever is too slow for this is too slow for requests: an open breaker would close only to open again.
        let info: InfoDict = timeout(self.0.timeout, cmd("INFO").query_async(&mut connection)).await??;
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
        connection.set_response_timeout(self.0.timeout * 2);
        Ok(connection)
    }
}

fn slot(bytes: Result<Option<Vec<u8>>, CacheError>) -> Result<Slot, CacheError> {
    match bytes {
        Ok(bytes) => Ok(entry::decode(bytes.map(Bytes::from))),
        // What Redis says when the key holds a list, a hash, ...
        Err(CacheError::Failed(error)) if error.contains("WRONGTYPE") => Ok(Slot::Garbage(Bytes::new())),
        Err(error) => Err(error),
    }
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
