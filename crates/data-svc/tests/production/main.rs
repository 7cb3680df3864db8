//! The promise in production: stores that save snapshots, fail over, wait for a standby or are restored, and services with
//! their default settings. After an acknowledged write no GET that starts later returns the older user.
//!
//! Each test is named after what is promised. The holes that they close, H1 to H7, are those of the second edition of the
//! protocol.

mod commit;
mod failover;
mod redis;
mod standby;

use std::thread::sleep;
use std::time::{Duration, Instant};

use devstack::http::{self, Response};
use devstack::testing::{get, wait_until_within};
use devstack::{Proxy, Redis, Service, ServiceBuilder, Stack};
use serde_json::json;

const NO_CACHE: (&str, &str) = ("Cache-Control", "no-cache");
const HIT: &str = "data-svc; hit; ttl=";

/// How long a write is tried again: when Redis is lost, writes are refused for up to `CACHE_GRANT` and half a second.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a cache may stay unused after a fault of Redis: one that has failed often is granted again after 30 s.
const RECOVERY: Duration = Duration::from_secs(40);
/// How long reads are checked. An old copy lives for up to five minutes, so it is seen early.
const WATCH: Duration = Duration::from_secs(2);

/// All that may move to another Redis, by their places among the links.
const READERS_AND_WRITER: [usize; 3] = [0, 1, WRITER];
/// The writer's place among the links.
const WRITER: usize = 2;

/// Two replicas of data-svc, a user-svc, and a link of its own from each to Redis.
struct Fleet {
    readers: [Service; 2],
    writer: Service,
    /// Those of the readers, then the writer's.
    links: [Proxy; 3],
    redis: Redis,
    stack: Stack,
}

impl Fleet {
    /// Starts them on this Redis, for a test that does nothing to PostgreSQL.
    fn start(redis: Redis) -> Fleet {
        Fleet::on(Stack::shared(), redis)
    }

    /// Starts them on a PostgreSQL of their own and a Redis.
    fn with_own_postgres() -> Fleet {
        Fleet::on(Stack::private(), Redis::start())
    }

    fn on(stack: Stack, redis: Redis) -> Fleet {
        let links = [(); 3].map(|()| Proxy::start(("127.0.0.1", redis.port())));
        let through = |service: ServiceBuilder, at: usize| {
            service.env("REDIS_URL", redis.url(0)).redis_through(&links[at]).start()
        };
        let writer = through(stack.user_svc(), WRITER);
        let readers = [through(stack.data_svc(), 0), through(stack.data_svc(), 1)];
        Fleet { readers, writer, links, redis, stack }
    }

    /// A further service on the same stores.
    fn more(&self, service: ServiceBuilder) -> ServiceBuilder {
        service.env("REDIS_URL", self.redis.url(0))
    }

    /// Makes services use another Redis, as a failover does: their connections end, and new ones go there.
    fn move_to(&self, redis: &Redis, services: &[usize]) {
        for &at in services {
            self.links[at].retarget(("127.0.0.1", redis.port()));
            self.links[at].reset();
        }
    }

    fn register(&self, name: &str, info: &str) {
        let body = json!({ "name": name, "info": info });
        assert_eq!(write_until_acknowledged(&self.writer, "POST", "/register", &body), 201);
    }

    /// Replaces the user's info. Returns when that is acknowledged.
    fn replace(&self, name: &str, info: &str) {
        let path = format!("/user/{name}");
        assert_eq!(write_until_acknowledged(&self.writer, "PUT", &path, &json!({ "info": info })), 200);
    }

    /// Reads until both replicas answer with a copy that they keep near, which comes from Redis.
    fn warm(&self, name: &str) {
        for reader in &self.readers {
            let has_a_copy = || cache_status(&get(reader, name)).ends_with("; detail=near");
            wait_until_within(RECOVERY, "it has a near copy", has_a_copy);
        }
    }

    /// Registers a user, and makes both replicas have copies.
    fn register_and_warm(&self, name: &str, info: &str) {
        self.register(name, info);
        self.warm(name);
    }

    /// Reads again and again through both replicas for `time`: each answer must be the user with this info. To be called
    /// at once after the acknowledgement of the write.
    #[track_caller]
    fn must_be(&self, name: &str, info: &str, time: Duration) {
        let acknowledged = Instant::now();
        while acknowledged.elapsed() < time {
            for (number, reader) in self.readers.iter().enumerate() {
                let after = acknowledged.elapsed();
                let answer = get(reader, name);
                let expected = answer.status == 200 && answer.json()["info"] == info;
                assert!(
                    expected,
                    "data-svc {number}, {after:?} after {info:?} was acknowledged: {} {}, {}",
                    answer.status,
                    answer.text(),
                    cache_status(&answer)
                );
            }
            sleep(Duration::from_millis(2));
        }
    }

    /// Replaces the user's info, and reads it through both replicas for some seconds.
    #[track_caller]
    fn replace_and_watch(&self, name: &str, info: &str) {
        self.replace(name, info);
        self.must_be(name, info, WATCH);
    }
}

/// Sends a write, again while it is refused with 503. Returns the status of the answer. Panics if it is refused for too
/// long.
fn write_until_acknowledged(writer: &Service, method: &str, path: &str, body: &serde_json::Value) -> u16 {
    let mut status = 503;
    wait_until_within(PATIENCE, "the write is acknowledged", || {
        let json = [("Content-Type", "application/json")];
        status = http::send(method, &writer.url_of(path), &json, body.to_string()).status;
        status != 503
    });
    status
}

fn cache_status(answer: &Response) -> String {
    answer.header("cache-status").unwrap_or_default().to_owned()
}
