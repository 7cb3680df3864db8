//! The system that is recorded: two replicas of each service on stores of their own. The second replica of each reaches
//! the stores through proxies. They can disturb it alone, and make it a little slower than the first at all times.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use devstack::{Postgres, Proxy, Redis, Service, ServiceBuilder, Stack, Stores};
use parking_lot::Mutex;

/// By how much a proxy delays each message at all times: steps that would follow one another race then.
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
    /// The logs of the processes that were killed.
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

    /// Where it listens, or where it listened when it was killed.
    pub fn address(&self) -> SocketAddr {
        self.running.lock().address
    }

    /// Ends it by SIGKILL.
    pub fn kill(&self) {
        let mut running = self.running.lock();
        if let Some(service) = running.service.take() {
            service.kill();
            running.logs += &service.log();
        }
    }

    /// Starts it again, at another port, and waits until it listens.
    pub fn restart(&self) {
        // Not under the lock: meanwhile clients must find no service, and must not wait for one.
        let service = self.builder.spawn();
        let mut running = self.running.lock();
        running.address = address(&service);
        running.service = Some(service);
    }

    /// Its whole log, also from before it was killed.
    pub fn log(&self) -> String {
        let running = self.running.lock();
        let now = running.service.as_ref().map(Service::log).unwrap_or_default();
        format!("{}{now}", running.logs)
    }
}

fn address(service: &Service) -> SocketAddr {
    service.address().parse().expect("it listens at an IP address")
}

/// Both services, twice, and their stores.
pub struct Cluster {
    pub readers: [Replica; 2],
    pub writers: [Replica; 2],
    /// Between `data-1` and Redis, and between `user-1` and Redis.
    pub redis_proxies: [Proxy; 2],
    /// The same for Postgres.
    pub postgres_proxies: [Proxy; 2],
    pub stack: Stack,
    /// When the recording began.
    pub beginning: Instant,
}

impl Cluster {
    /// Starts all of it, with the settings `readers` for data-svc and `writers` for user-svc.
    pub fn start(readers: &[(&str, &str)], writers: &[(&str, &str)]) -> Self {
        // Fast rather than safe on a power cut. But a COMMIT takes a while, so that faults hit it.
        let slow_commit = [("commit_delay", "5000"), ("commit_siblings", "0")];
        let postgres = [&[("full_page_writes", "off")][..], &slow_commit].concat();
        let stack = Stack::on(Stores::of(Postgres::start_with(&postgres), Redis::start()));
        let redis_proxies = [stack.redis_proxy(), stack.redis_proxy()];
        let postgres_proxies = [stack.postgres_proxy(), stack.postgres_proxy()];
        for proxy in redis_proxies.iter().chain(&postgres_proxies) {
            proxy.delay(SLOWNESS);
        }
        let with = |builder: ServiceBuilder, settings: &[(&str, &str)]| {
            settings.iter().fold(builder, |builder, (name, value)| builder.env(name, *value))
        };
        let through = |builder: ServiceBuilder, at: usize| {
            builder.redis_through(&redis_proxies[at]).postgres_through(&postgres_proxies[at])
        };
        let reader = || with(stack.data_svc(), readers);
        let writer = || with(stack.user_svc(), writers);
        // Its entries live so briefly that some are always being refreshed early.
        let brief = through(reader(), 0).env("CACHE_TTL", "2s");
        let readers = [Replica::start("data-0", reader()), Replica::start("data-1", brief)];
        let writers = [Replica::start("user-0", writer()), Replica::start("user-1", through(writer(), 1))];
        Self { readers, writers, redis_proxies, postgres_proxies, stack, beginning: Instant::now() }
    }

    /// Nanoseconds since the recording began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.beginning.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// All four replicas.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.readers.iter().chain(&self.writers)
    }
}
