//! The system that is recorded: replicas of both services on stores of their own. Each replica reaches each store through
//! a proxy of its own, which can disturb it alone or lead it to another server.

pub mod stores;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devstack::http;
use devstack::testing::wait_until;
use devstack::{Haproxy, Installed, Proxy, Redis, Service, ServiceBuilder, free_port};
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
    /// Where HAProxy listens, if clients reach the service through it.
    front: Option<SocketAddr>,
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
        [redis, postgres]: [u16; 2],
        front: Option<SocketAddr>,
        slowness: Duration,
        settings: Settings,
    ) -> Self {
        let redis = Path::to(redis, slowness);
        let postgres = Path::to(postgres, slowness);
        let builder = builder.redis_through(&redis.proxy).postgres_through(&postgres.proxy);
        let builder = settings.iter().fold(builder, |builder, (name, value)| builder.env(name, *value));
        let service = builder.start();
        service.wait_for_log("Redis is there");
        let address = address(&service);
        let running = Mutex::new(Running { service: Some(service), address, logs: String::new() });
        Self { name, redis, postgres, front, builder, running }
    }

    /// Where clients reach it: where it listens, or listened when it was killed; or HAProxy, which may lead elsewhere.
    pub fn address(&self) -> SocketAddr {
        self.front.unwrap_or_else(|| self.running.lock().address)
    }

    /// Who answers there.
    pub fn answers_as(&self) -> &'static str {
        if self.front.is_some() { "haproxy" } else { self.name }
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

    /// Starts it again, at another port unless it is behind HAProxy, and waits until it listens.
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

/// HAProxy between the clients and the services, and between the services and two Redis servers.
pub struct Balancers {
    front: Haproxy,
    redis: Haproxy,
    /// The one that HAProxy prefers while it is a primary, and the other one.
    pub pair: [Arc<Redis>; 2],
}

/// An installation: both services, twice, on stores of their own unless [`Cluster::beside`] another one.
pub struct Cluster {
    pub readers: Vec<Replica>,
    pub writers: Vec<Replica>,
    pub balancers: Option<Balancers>,
    pub stores: Stores,
    /// When the recording began.
    pub beginning: Instant,
}

impl Cluster {
    /// Starts all of it, with the settings of each data-svc. The others are default settings.
    pub fn start(readers: [Settings; 2]) -> Self {
        Self::on(Stores::start(), readers, None)
    }

    /// Starts all of it, with a pooler before PostgreSQL.
    pub fn pooled(pooler: &Installed) -> Self {
        Self::on(Stores::pooled(pooler), [&[], &[]], None)
    }

    /// Starts another installation: another PostgreSQL, and the same Redis with the same database number.
    pub fn beside(other: &Self) -> Self {
        Self::on(Stores::beside(&other.stores), [&[], &[]], None)
    }

    /// Starts all of it behind HAProxy, with a replica of Redis.
    pub fn behind_haproxy(program: &Installed) -> Self {
        let stores = Stores::start();
        let primary = stores.redis();
        let replica = Arc::new(Redis::replica_of(&primary));
        let redis = Haproxy::redis(program, &primary, &replica);
        Self::on(stores, [&[], &[]], Some((program, redis, [primary, replica])))
    }

    fn on(
        stores: Stores,
        [first, second]: [Settings; 2],
        balanced: Option<(&Installed, Haproxy, [Arc<Redis>; 2])>,
    ) -> Self {
        let ports = [[free_port(), free_port()], [free_port(), free_port()]];
        let balancers = balanced.map(|(program, redis, pair)| {
            let [users, data] = &ports;
            Balancers { front: Haproxy::balance(program, users, data), redis, pair }
        });
        let redis = balancers.as_ref().map_or(stores.redis().port(), |balancers| balancers.redis.port());
        let start = |service, at: usize, name, settings: Settings| {
            let kind = usize::from(service == "data-svc");
            let mut builder = stores.service(service);
            let mut front = None;
            if let Some(Balancers { front: haproxy, .. }) = &balancers {
                builder = builder.env("PORT", ports[kind][at].to_string());
                let address = [haproxy.address(), haproxy.data_address()][kind].parse();
                front = Some(address.expect("an IP address"));
            }
            // The second of each is a little slower.
            let slowness = [Duration::ZERO, SLOWNESS][at];
            Replica::start(name, builder, [redis, stores.database_port()], front, slowness, settings)
        };
        // The writers first: they grant Redis.
        let writers = [start("user-svc", 0, "user-0", &[]), start("user-svc", 1, "user-1", &[])];
        // The second one's entries live so briefly that some are always being refreshed early.
        let second = [&[("CACHE_TTL", "2s")], second].concat();
        let readers = [start("data-svc", 0, "data-0", first), start("data-svc", 1, "data-1", &second)];
        if let Some(Balancers { front, .. }) = &balancers {
            // It has looked while they were not there yet.
            for address in [front.address(), front.data_address()] {
                let is_ready = || http::get(&format!("http://{address}/readyz")).status == 200;
                wait_until("HAProxy knows that replicas are ready", is_ready);
            }
        }
        let [readers, writers] = [readers.into(), writers.into()];
        Self { readers, writers, balancers, stores, beginning: Instant::now() }
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
