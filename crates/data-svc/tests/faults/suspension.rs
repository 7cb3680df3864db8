//! Redis killed, frozen, slow, or refusing writes, under load: reads are served throughout, writes are acknowledged again
//! while it stays so, and hits come again when it is back. No read returns an older user than one that was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::{scope, sleep};
use std::time::Duration;

use devstack::http::{self, Response};
use devstack::testing::{
    StopAtEnd, get, get_with, metric, metric_with, register_with, wait_until, wait_until_within,
};
use devstack::{Direction, Postgres, Proxy, Redis, Service, ServiceBuilder, Stack, Stores};
use serde_json::json;

use crate::{MISS, NO_CACHE, is_hit, without_near};

/// How long the cache may stay suspended at most: one that has failed often is granted again after 30 s, and twice as long
/// as slack.
const RECOVERY: Duration = Duration::from_secs(60);
const CLIENTS: usize = 16;
const READERS: usize = 2;
/// How long a reader pauses: the machine must have time for the writers, which the tests wait for.
const PAUSE: Duration = Duration::from_millis(5);

/// A PostgreSQL that writes every statement with its parameters to its log.
fn talkative() -> Arc<Stores> {
    static SHARED: OnceLock<Arc<Stores>> = OnceLock::new();
    let start = || {
        let settings = [("fsync", "off"), ("log_statement", "all"), ("log_line_prefix", "%a|")];
        Stores::of(Postgres::start_with(&settings), Redis::start())
    };
    SHARED.get_or_init(start).clone()
}

struct Fleet {
    users: Service,
    replicas: [Service; 2],
    /// Between all of them and Redis.
    link: Proxy,
    redis: Redis,
    stack: Stack,
}

impl Fleet {
    fn start() -> Self {
        let stack = Stack::on(talkative());
        let redis = Redis::start();
        let link = Proxy::start(("127.0.0.1", redis.port()));
        // A busy machine answers within this time, and no fault of these tests does.
        let patient = |service: ServiceBuilder| service.with_long_timeouts().env("CACHE_TIMEOUT", "250ms");
        let through =
            |service: ServiceBuilder| patient(service).env("REDIS_URL", redis.url(0)).redis_through(&link);
        let users = through(stack.user_svc()).start();
        let replica = |number: usize| {
            let url = format!("{}?application_name=data-{number}", stack.database_url());
            through(stack.data_svc()).env("DATABASE_URL", url).start()
        };
        let replicas = [replica(0), replica(1)];
        Self { users, replicas, link, redis, stack }
    }

    fn replace(&self, info: &str) -> Response {
        let json = [("Content-Type", "application/json")];
        let body = json!({ "info": info }).to_string();
        http::send("PUT", &self.users.url_of("/user/ann"), &json, body)
    }

    fn has_hits(&self) -> bool {
        self.replicas.iter().all(|replica| is_hit(&get(replica, "ann")))
    }

    /// How many SELECTs each replica has sent about the user `name`.
    fn loads_of(&self, name: &str) -> [usize; 2] {
        let log = self.stack.postgres().log();
        ["data-0|", "data-1|"].map(|session| {
            let about =
                |line: &&str| line.starts_with(session) && line.contains("parameters") && line.contains(name);
            log.lines().filter(about).count()
        })
    }
}

/// What clients have seen.
#[derive(Default)]
struct Load {
    acknowledged: AtomicUsize,
    reads: AtomicUsize,
    stop: AtomicBool,
}

impl Load {
    /// Replaces ann's info by one number after the other.
    fn write(&self, fleet: &Fleet) {
        let _stop = StopAtEnd(&self.stop);
        let mut number = 1;
        while !self.stop.load(Ordering::SeqCst) {
            let answer = fleet.replace(&number.to_string());
            if answer.status == 503 {
                assert!(answer.header("retry-after").is_some());
                let problem = answer.json()["type"].clone();
                assert_ne!(problem, "/problems/outcome-unknown", "PostgreSQL is well");
                sleep(Duration::from_millis(20));
            } else {
                assert_eq!(answer.status, 200, "{}", answer.text());
                self.acknowledged.store(number, Ordering::SeqCst);
                number += 1;
            }
        }
    }

    /// Reads ann, a tenth of the times with no-cache.
    fn read(&self, replica: &Service) {
        let _stop = StopAtEnd(&self.stop);
        for turn in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let acknowledged = self.acknowledged.load(Ordering::SeqCst);
            let answer = get_with(replica, "ann", if turn % 10 == 0 { &[NO_CACHE] } else { &[] });
            assert_eq!(answer.status, 200, "{}", answer.text());
            let read: usize =
                answer.json()["info"].as_str().and_then(|info| info.parse().ok()).expect("a number");
            let status = answer.header("cache-status");
            assert!(
                read >= acknowledged,
                "{read} was read after {acknowledged} was acknowledged: {status:?}"
            );
            self.reads.fetch_add(1, Ordering::SeqCst);
            sleep(PAUSE);
        }
    }

    fn wait_for_more(&self, what: &str, counter: &AtomicUsize, more: usize) {
        let goal = counter.load(Ordering::SeqCst) + more;
        wait_until_within(RECOVERY, what, || {
            counter.load(Ordering::SeqCst) >= goal || self.stop.load(Ordering::SeqCst)
        });
    }
}

/// Lets clients read and write while `fault` lasts, until `end`.
fn under_load(fault: impl FnOnce(&Fleet), end: impl FnOnce(&Fleet)) {
    let fleet = Fleet::start();
    wait_until("it is registered", || register_with(&fleet.users, "ann", "0").status == 201);
    wait_until("both use the cache", || fleet.has_hits());
    let load = Load::default();
    scope(|scope| {
        let _stop = StopAtEnd(&load.stop);
        for reader in 0..READERS {
            let (load, replica) = (&load, &fleet.replicas[reader % 2]);
            scope.spawn(move || load.read(replica));
        }
        scope.spawn(|| load.write(&fleet));
        load.wait_for_more("it is replaced before", &load.acknowledged, 5);
        fault(&fleet);
        wait_until_within(RECOVERY, "the cache is suspended", || {
            metric(&fleet.users, "cache_suspended") == 1
        });
        load.wait_for_more("it is replaced during the fault", &load.acknowledged, 10);
        load.wait_for_more("it is read during the fault", &load.reads, 50);
        end(&fleet);
        wait_until_within(RECOVERY, "hits come again", || {
            load.stop.load(Ordering::SeqCst) || fleet.has_hits()
        });
        load.wait_for_more("it is replaced afterwards", &load.acknowledged, 5);
    });
    a_herd_loads_once(&fleet);
}

/// Many clients read one cold name at once.
fn a_herd_loads_once(fleet: &Fleet) {
    // A busy machine may cause a time-out with Redis, which is another fault.
    // Tests that run at the same time share the server's log, so the names are this test's own.
    let own = fleet.stack.database();
    let mut names = (0..30).map(|round| format!("cold-{own}-{round}-"));
    let undisturbed = names.find(|name| read_together(fleet, name));
    let loads = fleet.loads_of(&undisturbed.expect("a herd without a time-out"));
    assert!(loads.iter().sum::<usize>() >= 1 && loads.iter().all(|loads| *loads <= 1), "{loads:?}");
}

/// Returns whether Redis has answered and stored in time, and no replica has waited in vain for the other's load.
fn read_together(fleet: &Fleet, name: &str) -> bool {
    fleet.stack.sql(&format!("INSERT INTO users (name, info) VALUES ('{name}', 'i')"));
    let together = Barrier::new(CLIENTS);
    let in_time = AtomicBool::new(true);
    scope(|scope| {
        for client in 0..CLIENTS {
            let (together, in_time, replica) = (&together, &in_time, &fleet.replicas[client % 2]);
            scope.spawn(move || {
                together.wait();
                let answer = get(replica, name);
                assert_eq!(answer.status, 200);
                let status = answer.header("cache-status").unwrap_or_default();
                let is_undisturbed = is_hit(&answer) || status == MISS || status.ends_with("; collapsed");
                if !is_undisturbed {
                    in_time.store(false, Ordering::SeqCst);
                }
            });
        }
    });
    in_time.into_inner()
}

#[test]
fn while_redis_is_killed_reads_and_writes_go_on_and_hits_come_again_when_it_is_back() {
    under_load(|fleet| fleet.redis.kill(), |fleet| fleet.redis.restart());
}

#[test]
fn while_redis_is_frozen_reads_and_writes_go_on_and_hits_come_again_when_it_is_back() {
    under_load(|fleet| fleet.redis.freeze(), |fleet| fleet.redis.thaw());
}

#[test]
fn while_redis_is_slow_reads_and_writes_go_on_and_hits_come_again_when_it_is_fast() {
    under_load(|fleet| fleet.link.delay(Duration::from_millis(150)), |fleet| fleet.link.restore());
}

#[test]
fn while_redis_refuses_writes_reads_and_writes_go_on_and_hits_come_again_when_it_takes_them() {
    let set = |fleet: &Fleet, count: &str| {
        fleet.redis.cli(0, &["CONFIG", "SET", "min-replicas-to-write", count]);
    };
    under_load(|fleet| set(fleet, "1"), |fleet| set(fleet, "0"));
}

#[test]
fn writes_go_on_without_redis_after_the_grant_and_no_older_user_is_read_then_or_once_redis_is_back() {
    let stack = Stack::shared();
    let link = stack.redis_proxy();
    let users = stack.user_svc().with_long_timeouts().redis_through(&link).start();
    // Only the writer loses Redis. The replicas could go on with their copies.
    let replicas =
        [stack.data_svc(), without_near(stack.data_svc())].map(|it| it.with_long_timeouts().start());
    let must_be = |info: &str| {
        for replica in &replicas {
            let answer = get(replica, "ann");
            assert_eq!(answer.json()["info"], info, "{:?}", answer.header("cache-status"));
        }
    };
    let have_hits = || replicas.iter().all(|replica| is_hit(&get(replica, "ann")));
    assert_eq!(register_with(&users, "ann", "before").status, 201);
    wait_until("both use the cache", have_hits);
    link.cut();
    let put = |info: &str| {
        let json = [("Content-Type", "application/json")];
        let body = json!({ "info": info }).to_string();
        http::send("PUT", &users.url_of("/user/ann"), &json, body).status
    };
    assert_eq!(put("during"), 200, "it waits until no replica uses the cache");
    must_be("during");
    assert_eq!(put("still"), 200);
    must_be("still");
    link.restore();
    wait_until_within(RECOVERY, "hits come again", || {
        must_be("still");
        have_hits()
    });
    must_be("still");
    assert_eq!(metric_with(&users, "cache_grant_changes_total", "unreachable"), 1);
}

#[test]
fn a_packet_of_one_writer_that_is_lost_does_not_suspend_the_cache() {
    let stack = Stack::shared();
    let link = stack.redis_proxy();
    let users = stack.user_svc().with_long_timeouts().redis_through(&link).start();
    let replica = stack.data_svc().start();
    assert_eq!(register_with(&users, "ann", "0").status, 201);
    wait_until("it uses the cache", || is_hit(&get(&replica, "ann")));
    let json = [("Content-Type", "application/json")];
    for round in 1..=3 {
        let held = link.hold(Direction::ToUpstream, "2:user:{ann}", 1).at_most(Duration::from_millis(250));
        let body = json!({ "info": round.to_string() }).to_string();
        assert_eq!(http::send("PUT", &users.url_of("/user/ann"), &json, body).status, 200);
        drop(held);
        assert_eq!(get(&replica, "ann").json()["info"], round.to_string());
    }
    assert_eq!(metric(&users, "cache_suspended"), 0);
    assert_eq!(metric_with(&users, "cache_grant_changes_total", ""), 0);
}
