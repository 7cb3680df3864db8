//! The shared connections to Redis, their time-out and their breaker.
//!
//! A task keeps the shared connection. While there is none the breaker is open: readers do not try, and lose no time.
//! The breaker opens on an error of any connection, or when *no* reply at all came on one for a whole time-out: a few
//! late replies under load are no outage. The task then tries to connect again and again, on its own time. That is the
//! half-open state, and no request pays for it.
//!
//! Each worker opens its own connection. Waking another worker's thread costs more than Redis' whole reply.
//!
//! Each connection asks once which Redis process it leads to. A call names the process that is granted, and is not sent
//! to any other. The task asks again four times a second, since a server may become another one's replica, and primary
//! once more, under connections that stay open.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix_web::rt::System;
use deadpool_redis::{Connection, Manager, Pool, Runtime, Timeouts};
use futures_util::future::join_all;
use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{ConnectionInfo, ErrorKind, InfoDict, IntoConnectionInfo, RedisError, ServerErrorKind, cmd};
use thread_local::ThreadLocal;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::permissions;
use crate::config::CacheSettings;

/// How often an open breaker tries to connect: within a second of Redis' return, and not in a loop.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// How often the task asks whether Redis is still what it was.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// How long that answer may take at least: longer than a packet that is lost and sent again.
const WATCH_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a writer waits on the connection that is there, at least. A lost packet takes longer.
const FIRST_ATTEMPT: Duration = Duration::from_millis(150);
/// How long a writer's two attempts take together, at least; the second is on a new connection.
const BOTH_ATTEMPTS: Duration = Duration::from_millis(450);
/// A time-out that fires so much too late says nothing about Redis: this process was paused.
const PAUSED: Duration = Duration::from_millis(50);
/// How often a writer tries at most while its process is paused again and again.
const ATTEMPTS_WHEN_PAUSED: u32 = 3;
/// How long an attempt to connect may take, TLS included. No request waits for it.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How many connections may be opened at once, beside those that are kept: a few for writers while the breaker is open.
const CONNECTIONS: usize = 4;

/// Why a call to Redis has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheError {
    /// No reply within the time-out.
    Timeout,
    /// An error, or the end of the connection.
    Failed(String),
    /// Redis was not asked.
    BreakerOpen,
    /// Another Redis process than the granted one answers. It was not asked.
    NotGranted,
}

/// The connections to Redis, kept by [`Redis::keep_connected`].
pub struct Redis {
    pool: Pool,
    /// What must be allowed.
    commands: Vec<String>,
    timeout: Duration,
    /// A writer's time-outs: for its first attempt, and for both.
    attempts: (Duration, Duration),
    /// None while the breaker is open.
    connections: RwLock<Option<Arc<Connections>>>,
    lost: Notify,
    start: Instant,
}

/// The shared connection, and those of workers, to one Redis that could be connected to.
struct Connections {
    /// Which Redis process they lead to: its `run_id` and `master_replid`. The first alone does not name a state of
    /// data: a server that was demoted, resynchronised and promoted again keeps it.
    process: Arc<str>,
    shared: Tracked,
    per_worker: ThreadLocal<OnceLock<Tracked>>,
}

/// A connection, and when it last replied, in microseconds since the start.
struct Tracked {
    connection: MultiplexedConnection,
    last_reply: AtomicU64,
}

impl Redis {
    /// Prepares to connect. A Redis where not all of `commands` are allowed is not used.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use.
    pub fn new(settings: &CacheSettings, commands: Vec<String>) -> Result<Self, Box<dyn std::error::Error>> {
        if settings.url.expose().starts_with("rediss:") {
            #[cfg(not(feature = "tls"))]
            return Err("REDIS_URL asks for TLS, which this build does not have".into());
            // The error says that a provider is installed already.
            #[cfg(feature = "tls")]
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let manager = Manager::new(connection_info(settings)?)?;
        let timeout = Some(CONNECT_TIMEOUT);
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: timeout, create: timeout, recycle: timeout })
            .build()?;
        Ok(Self {
            pool,
            commands,
            timeout: settings.timeout,
            attempts: (FIRST_ATTEMPT.max(settings.timeout), BOTH_ATTEMPTS.max(settings.timeout * 3)),
            connections: RwLock::new(None),
            lost: Notify::new(),
            start: Instant::now(),
        })
    }

    /// Which Redis process is connected now.
    pub fn process(&self) -> Option<Arc<str>> {
        self.connections().map(|connections| connections.process.clone())
    }

    /// Makes one call to the process `granted` within the time-out, for a reader: none while the breaker is open.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn call<T, F: Future<Output = Result<T, RedisError>>>(
        self: &Arc<Self>,
        granted: &str,
        ask: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, CacheError> {
        let Some(connections) = self.connections() else { return Err(CacheError::BreakerOpen) };
        if *connections.process != *granted {
            return Err(CacheError::NotGranted);
        }
        self.call_within(self.timeout, &connections, self.tracked(&connections), ask).await
    }

    async fn call_within<T, F: Future<Output = Result<T, RedisError>>>(
        &self,
        limit: Duration,
        connections: &Arc<Connections>,
        tracked: &Tracked,
        ask: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, CacheError> {
        let sent = self.now();
        match timeout(limit, ask(tracked.connection.clone())).await {
            Ok(Ok(reply)) => {
                tracked.last_reply.store(self.now(), Ordering::Relaxed);
                Ok(reply)
            }
            Ok(Err(error)) if is_reply(&error) => {
                tracked.last_reply.store(self.now(), Ordering::Relaxed);
                Err(CacheError::Failed(error.to_string()))
            }
            Ok(Err(error)) => {
                self.open_breaker(connections, &error);
                Err(CacheError::Failed(error.to_string()))
            }
            Err(late) => {
                if tracked.last_reply.load(Ordering::Relaxed) < sent {
                    self.open_breaker(connections, &late);
                }
                Err(CacheError::Timeout)
            }
        }
    }

    /// Makes one call for a writer, to whatever process answers: on the connection that is there, or else on a new one.
    /// Returns which process has answered.
    ///
    /// # Errors
    /// [`CacheError`], never [`CacheError::BreakerOpen`].
    pub async fn call_or_connect<T, F: Future<Output = Result<T, RedisError>>>(
        self: &Arc<Self>,
        ask: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<(T, Arc<str>), CacheError> {
        let (first_attempt, both_attempts) = self.attempts;
        let mut result = Err(CacheError::Timeout);
        for _ in 0..ATTEMPTS_WHEN_PAUSED {
            let start = Instant::now();
            if let Some(connections) = self.connections()
                && let tracked = self.tracked(&connections)
                && let Ok(reply) = self.call_within(first_attempt, &connections, tracked, &ask).await
            {
                return Ok((reply, connections.process.clone()));
            }
            let failed = |error: &dyn Display| CacheError::Failed(error.to_string());
            let second = async {
                let (connection, process) =
                    self.connect(both_attempts).await.map_err(|error| failed(&error))?;
                let reply = ask(connection).await.map_err(|error| failed(&error))?;
                Ok((reply, process))
            };
            let left = both_attempts.saturating_sub(start.elapsed());
            result = timeout(left, second).await.unwrap_or(Err(CacheError::Timeout));
            if result.is_ok() || start.elapsed() < both_attempts + PAUSED {
                break;
            }
        }
        result
    }

    /// Connects whenever there is no connection, and watches the one there is. Never returns.
    pub async fn keep_connected(self: Arc<Self>) {
        let mut last_reason = String::new();
        loop {
            // A Redis that is too slow for this is too slow for requests: the breaker would close only to open again.
            match self.connect(self.timeout).await {
                Ok((connection, process)) => {
                    let shared = self.track(connection);
                    let connections =
                        Arc::new(Connections { process, shared, per_worker: ThreadLocal::new() });
                    *self.connections.write() = Some(connections.clone());
                    last_reason.clear();
                    log::info!("Redis is there");
                    self.watch(&connections).await;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if reason != last_reason {
                        log::warn!("Redis cannot be used, going on without: {reason}");
                        last_reason = reason;
                    }
                    sleep(PROBE_INTERVAL).await;
                }
            }
        }
    }

    /// Asks again and again whether Redis is still the same process, until it is lost.
    async fn watch(&self, connections: &Arc<Connections>) {
        let limit = WATCH_TIMEOUT.max(self.timeout * 2);
        loop {
            tokio::select! {
                () = self.lost.notified() => return,
                () = sleep(WATCH_INTERVAL) => {}
            }
            let ask = |mut connection: MultiplexedConnection| async move {
                // Not all of INFO, which takes Redis longer.
                let info: InfoDict =
                    cmd("INFO").arg("server").arg("replication").query_async(&mut connection).await?;
                Ok(info)
            };
            // If it does not come, the breaker is open.
            if let Ok(info) = self.call_within(limit, connections, &connections.shared, ask).await
                && process(&info).ok().as_deref() != Some(&*connections.process)
            {
                self.open_breaker(connections, &"it has become another");
            }
            self.keep_alive(connections, limit).await;
        }
    }

    /// Uses each worker's connection, so that neither Redis (`timeout`) nor anything between closes one as idle. A busy
    /// worker may take long for that, which says nothing about Redis.
    async fn keep_alive(&self, connections: &Arc<Connections>, limit: Duration) {
        let workers = connections.per_worker.iter().filter_map(OnceLock::get);
        let pings = workers.map(|tracked| {
            let mut connection = tracked.connection.clone();
            timeout(limit, async move { cmd("PING").exec_async(&mut connection).await })
        });
        if let Some(Ok(Err(error))) =
            join_all(pings).await.into_iter().find(|ping| matches!(ping, Ok(Err(_))))
        {
            self.open_breaker(connections, &error);
        }
    }

    /// Takes a connection out of the pool for good: the pool validates at each checkout, which a hit need not pay, and
    /// by commands that the user need not be allowed. Returns which process it leads to, if it says so within `limit`.
    async fn connect(&self, limit: Duration) -> Result<(MultiplexedConnection, Arc<str>), Failure> {
        let mut connection = Connection::take(self.pool.get().await?);
        let identify = async {
            let refused = permissions::refused(&mut connection, &self.commands).await?;
            if !refused.is_empty() {
                return Err(format!("the user of REDIS_URL may not: {}", refused.join(", ")).into());
            }
            process(&cmd("INFO").query_async(&mut connection).await?)
        };
        let process = timeout(limit, identify).await??;
        // The client has a time-out of its own (500 ms), which looks like a broken connection: ours must come first.
        connection.set_response_timeout(self.attempts.1 * 2);
        Ok((connection, process.into()))
    }

    /// This worker's own connection, once there is one; until then the shared one.
    fn tracked<'a>(self: &Arc<Self>, connections: &'a Arc<Connections>) -> &'a Tracked {
        let own = connections.per_worker.get_or(|| {
            // Threads without a runtime drive no connection.
            if System::try_current().is_some() {
                tokio::spawn(self.clone().connect_worker(connections.clone()));
            }
            OnceLock::new()
        });
        own.get().unwrap_or(&connections.shared)
    }

    async fn connect_worker(self: Arc<Self>, connections: Arc<Connections>) {
        match self.connect(self.timeout).await {
            // Set once a worker: there is none yet. A proxy may have led this connection to another server.
            Ok((connection, process)) if process == connections.process => {
                let _ = connections.per_worker.get_or_default().set(self.track(connection));
            }
            Ok(_) => log::warn!("REDIS_URL leads to several servers, of which only one can be used"),
            Err(error) => log::debug!("a worker goes on with the first connection to Redis: {error}"),
        }
    }

    fn track(&self, connection: MultiplexedConnection) -> Tracked {
        Tracked { connection, last_reply: AtomicU64::new(self.now()) }
    }

    fn connections(&self) -> Option<Arc<Connections>> {
        self.connections.read().clone()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Gives `broken` up, unless newer connections have taken its place already.
    fn open_breaker(&self, broken: &Arc<Connections>, why: &dyn Display) {
        let mut connections = self.connections.write();
        if connections.as_ref().is_some_and(|current| Arc::ptr_eq(current, broken)) {
            *connections = None;
            self.lost.notify_one();
            log::warn!("Redis is lost, going on without: {why}");
        }
    }
}

/// Where Redis is, and as whom to connect.
///
/// # Errors
/// A URL that Redis' client cannot use.
pub fn connection_info(settings: &CacheSettings) -> Result<ConnectionInfo, &'static str> {
    // The client's error may quote a bad URL, password included.
    let info = settings.url.expose().into_connection_info().map_err(|_| "REDIS_URL cannot be used")?;
    // The library's name, by CLIENT SETINFO, would need a right that older servers do not know.
    let redis = info.redis_settings().clone().set_skip_set_lib_name();
    Ok(info.set_redis_settings(redis))
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Which Redis process has sent `info`, if it can be used.
///
/// # Errors
/// Why it cannot.
pub fn process(info: &InfoDict) -> Result<String, Failure> {
    let version: String = info.get("redis_version").unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < 7) {
        return Err(format!("Redis 7.0 or newer is needed, this is {version}").into());
    }
    // A replica, or a server that loads, answers reads with old data or errors, and takes no lease.
    if info.get("role").is_some_and(|role: String| role == "slave") {
        return Err("this Redis is a replica".into());
    }
    if info.get("loading").is_some_and(|loading: String| loading == "1") {
        return Err("this Redis is loading its data".into());
    }
    let name = |field| info.get::<String>(field).filter(|name| !name.is_empty());
    match (name("run_id"), name("master_replid")) {
        (Some(run), Some(history)) => Ok(format!("{run} {history}")),
        _ => Err("this Redis does not say which process it is".into()),
    }
}

/// Whether `error` is a reply of Redis after which the connection can still be used.
fn is_reply(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, MasterDown, NoPerm, ReadOnly};
    match error.kind() {
        // This server is no longer the one to ask, or its administrator has taken a right away.
        ErrorKind::Server(BusyLoading | MasterDown | NoPerm | ReadOnly) => false,
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType => true,
        _ => false,
    }
}
