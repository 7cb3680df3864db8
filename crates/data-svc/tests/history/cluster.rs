//! What is recorded: two replicas of each service on stores of their own. The second of each reaches the stores through
//! proxies, which can hurt it alone, and which make it a little slower than the first at all times.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devstack::{Postgres, Proxy, Redis, Service, ServiceBuilder, Stack, Stores};

/// How late everything is that passes a proxy: it makes races of what would be one step after the other.
pub const SLOWNESS: Duration = Duration::from_millis(1);

/// A replica of a service, which may be killed and started again.
pub struct Replica {
    pub name: &'static str,
    builder: ServiceBuilder,
    running: Mutex<Running>,
}

struct Running {
    service: Option<Service>,
    address: SocketAddr,
    /// What those wrote that were killed.
    logs: String,
}

impl Replica {
    fn start(name: &'static str, builder: ServiceBuilder) -> Self {
        let service = builder.start();
        service.wait_for_log("Redis is there");
        let address = address(&service);
        let running = Mutex::new(Running { service: Some(service), address, logs: String::new() });
        Self { name, builder, running }
    }

    /// Where it listens, or did when it was killed.
    pub fn address(&self) -> SocketAddr {
        self.lock().address
    }

    /// Ends it by SIGKILL.
    pub fn kill(&self) {
        let mut running = self.lock();
        if let Some(service) = running.service.take() {
            service.kill();
            running.logs += &service.log();
        }
    }

    /// Starts it again, at another port, and waits until it listens.
    pub fn restart(&self) {
        // Not under the lock: clients must find nobody there, rather than wait.
        let service = self.builder.spawn();
        let mut running = self.lock();
        running.address = address(&service);
        running.service = Some(service);
    }

    /// All that it wrote, also before it was killed.
    pub fn log(&self) -> String {
        let running = self.lock();
        let now = running.service.as_ref().map(Service::log).unwrap_or_default();
        format!("{}{now}", running.logs)
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn address(service: &Service) -> SocketAddr {
    service.address().parse().expect("it listens at an IP address")
}

/// Both services, twice, and their stores.
pub struct Cluster {
    pub readers: [Replica; 2],
    pub writers: [Replica; 2],
    /// The way of `data-1` and `user-1` to Redis.
    pub redis_proxies: [Proxy; 2],
    /// Their way to Postgres.
    pub postgres_proxies: [Proxy; 2],
    pub stack: Stack,
    /// When the recording began.
    pub beginning: Instant,
}

impl Cluster {
    /// Starts all, with `settings` for both kinds of service, readers' and writers'.
    pub fn start(readers: &[(&str, &str)], writers: &[(&str, &str)]) -> Self {
        // Fast rather than safe on a power cut, but with a COMMIT that takes its time: faults shall hit it.
        let slow_commit = [("commit_delay", "5000"), ("commit_siblings", "0")];
        let postgres = [&[("full_page_writes", "off")][..], &slow_commit].concat();
        let stack = Stack::on(Stores::of(Postgres::start_with(&postgres), Redis::start()));
        let redis_proxies = [stack.redis_proxy(), stack.redis_proxy()];
        let postgres_proxies = [stack.postgres_proxy(), stack.postgres_proxy()];
        redis_proxies.iter().chain(&postgres_proxies).for_each(|proxy| proxy.delay(SLOWNESS));
        let with = |builder: ServiceBuilder, settings: &[(&str, &str)]| {
            settings.iter().fold(builder, |builder, (name, value)| builder.env(name, *value))
        };
        let through = |builder: ServiceBuilder, at: usize| {
            builder.redis_through(&redis_proxies[at]).postgres_through(&postgres_proxies[at])
        };
        let reader = || with(stack.data_svc(), readers);
        let writer = || with(stack.user_svc(), writers);
        // Its copies live so short that early refresh is always at work.
        let brief = through(reader(), 0).env("CACHE_TTL", "2s");
        let readers = [Replica::start("data-0", reader()), Replica::start("data-1", brief)];
        let writers = [Replica::start("user-0", writer()), Replica::start("user-1", through(writer(), 1))];
        Self { readers, writers, redis_proxies, postgres_proxies, stack, beginning: Instant::now() }
    }

    /// Now, as histories count it.
    pub fn now(&self) -> u64 {
        u64::try_from(self.beginning.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// All four.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.readers.iter().chain(&self.writers)
    }
}
