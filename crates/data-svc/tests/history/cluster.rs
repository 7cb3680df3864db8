//! The system that is recorded: replicas of both services on stores of their own. Each replica reaches each store through
//! a proxy of its own, which can disturb it alone or lead it to another server.

pub mod stores;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devstack::{Proxy, Redis, Service, ServiceBuilder};
use parking_lot::Mutex;

use self::stores::Stores;

/// By how much the proxies of some replicas delay each message at all times: steps that would follow one another race
/// then.
const SLOWNESS: Duration = Duration::from_millis(1);

/// Settings of a service: environment variables.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

/// The way of a replica to one of its stores.
pub struct Path {
    pub proxy: Proxy,
    slowness: Duration,
}

impl Path {
    fn to(port: u16, slowness: Duration) -> Self {
        let path = Self { proxy: Proxy::start(("127.0.0.1", port)), slowness };
        path.repair();
        path
    }

    /// Ends all faults.
    pub fn repair(&self) {
        self.proxy.restore();
        self.proxy.delay(self.slowness);
    }

    /// Leads to another server from now on.
    pub fn lead_to(&self, port: u16) {
        self.proxy.retarget(("127.0.0.1", port));
        self.proxy.reset();
    }
}

/// A replica of a service, which may be killed and started again.
pub struct Replica {
    pub name: &'static str,
    pub redis: Path,
    pub postgres: Path,
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
    fn start(
        name: &'static str,
        builder: ServiceBuilder,
        stores: &Stores,
        slowness: Duration,
        settings: Settings,
    ) -> Self {
        let redis = Path::to(stores.redis().port(), slowness);
        let postgres = Path::to(stores.database_port(), slowness);
        let builder = builder.redis_through(&redis.proxy).postgres_through(&postgres.proxy);
        let builder = settings.iter().fold(builder, |builder, (name, value)| builder.env(name, *value));
        let service = builder.start();
        service.wait_for_log("Redis is there");
        let address = address(&service);
        let running = Mutex::new(Running { service: Some(service), address, logs: String::new() });
        Self { name, redis, postgres, builder, running }
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

    /// Freezes it (SIGSTOP), if it runs.
    pub fn freeze(&self) {
        if let Some(service) = &self.running.lock().service {
            service.freeze();
        }
    }

    /// Lets it continue.
    pub fn thaw(&self) {
        if let Some(service) = &self.running.lock().service {
            service.thaw();
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

/// An installation: both services, twice, on stores of their own unless [`Cluster::beside`] another one.
pub struct Cluster {
    pub readers: Vec<Replica>,
    pub writers: Vec<Replica>,
    pub stores: Stores,
    /// When the recording began.
    pub beginning: Instant,
}

impl Cluster {
    /// Starts all of it, with the settings of each data-svc. The others are default settings.
    pub fn start(readers: [Settings; 2]) -> Self {
        Self::on(Stores::start(), readers)
    }

    /// Starts all of it, with a pooler before PostgreSQL.
    pub fn pooled() -> Self {
        Self::on(Stores::pooled(), [&[], &[]])
    }

    /// Starts another installation: another PostgreSQL, and the same Redis with the same database number.
    pub fn beside(other: &Self) -> Self {
        Self::on(Stores::beside(&other.stores), [&[], &[]])
    }

    fn on(stores: Stores, readers: [Settings; 2]) -> Self {
        // The writers first: they grant Redis. The second of each is a little slower.
        let writers = [("user-0", Duration::ZERO), ("user-1", SLOWNESS)]
            .map(|(name, slowness)| Replica::start(name, stores.service("user-svc"), &stores, slowness, &[]));
        let [first, second] = readers;
        // The second one's entries live so briefly that some are always being refreshed early.
        let second = [&[("CACHE_TTL", "2s")], second].concat();
        let reader = |name, slowness, settings: Settings| {
            Replica::start(name, stores.service("data-svc"), &stores, slowness, settings)
        };
        let readers = [reader("data-0", Duration::ZERO, first), reader("data-1", SLOWNESS, &second)];
        Self { readers: readers.into(), writers: writers.into(), stores, beginning: Instant::now() }
    }

    /// Nanoseconds since the recording began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.beginning.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// All replicas.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.readers.iter().chain(&self.writers)
    }

    /// Makes `redis` the one that all replicas use: some at once, others a little later.
    pub fn use_redis(&self, redis: Arc<Redis>, pause: impl Fn()) -> Arc<Redis> {
        let mut replicas: Vec<&Replica> = self.replicas().collect();
        rand::seq::SliceRandom::shuffle(&mut *replicas, &mut rand::rng());
        for replica in replicas {
            replica.redis.lead_to(redis.port());
            pause();
        }
        self.stores.set_redis(redis)
    }
}
