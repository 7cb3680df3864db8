//! The faults that are injected into the services and their stores while clients work.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::cluster::{Cluster, Replica, SLOWNESS};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of a data-svc, started again later.
    KillReader,
    /// `kill -9` of a user-svc, started again later: its barriers stay, and its transactions end without it.
    KillWriter,
    /// SIGSTOP of Redis, and SIGCONT.
    FreezeRedis,
    /// `CLIENT PAUSE ... ALL`.
    PauseRedis,
    /// `CLIENT PAUSE ... WRITE`: PINGs go on, and so do near hits. Nothing can be stored or published.
    PauseRedisWrites,
    /// Keys are deleted at random, but no barriers: eviction.
    EvictCopies,
    /// Keys are deleted at random, barriers too.
    EvictAnything,
    /// FLUSHALL.
    FlushRedis,
    /// Redis is killed and starts again empty.
    RestartRedis,
    /// A replica cannot reach Redis, and its connections are reset.
    CutRedis,
    /// Messages between a replica and Redis are delayed.
    DelayRedis,
    /// A replica's connections to Redis are reset, again and again.
    ResetRedis,
    /// A replica cannot reach Postgres, and its connections are reset.
    CutPostgres,
    /// Messages between a replica and Postgres are delayed.
    DelayPostgres,
    /// A replica's connections to Postgres are reset, again and again.
    ResetPostgres,
    /// `pg_terminate_backend` of the sessions that are in COMMIT.
    TerminateCommits,
    /// `pg_terminate_backend` of sessions at random.
    TerminateAnything,
    /// SIGSTOP of Postgres, and SIGCONT.
    FreezePostgres,
    /// SIGKILL of all of Postgres, started again.
    KillPostgres,
    /// An orderly restart of Postgres.
    RestartPostgres,
}

use Fault::{
    CutPostgres, CutRedis, DelayPostgres, DelayRedis, EvictAnything, EvictCopies, FlushRedis, FreezePostgres,
    FreezeRedis, KillPostgres, KillReader, KillWriter, PauseRedis, PauseRedisWrites, ResetPostgres,
    ResetRedis, RestartPostgres, RestartRedis, TerminateAnything, TerminateCommits,
};

/// Faults of Redis and of the connections to it, under which no barrier is lost.
pub const REDIS_KEEPS_BARRIERS: &[Fault] =
    &[FreezeRedis, PauseRedis, PauseRedisWrites, EvictCopies, CutRedis, DelayRedis, ResetRedis];
/// Faults of Redis under which barriers are lost.
pub const REDIS_LOSES_BARRIERS: &[Fault] = &[EvictAnything, FlushRedis, RestartRedis];
/// Faults of Postgres and of the connections to it.
pub const POSTGRES: &[Fault] = &[
    CutPostgres,
    DelayPostgres,
    ResetPostgres,
    TerminateCommits,
    TerminateAnything,
    FreezePostgres,
    KillPostgres,
    RestartPostgres,
];
/// Faults of the services.
pub const SERVICES: &[Fault] = &[KillReader, KillWriter];

/// Deletes each key with probability ARGV[2], but with ARGV[1] = 1 no barriers. One script, so that a key cannot change
/// between the look and the DEL.
const EVICT: &str = "\
local evicted = 0
for _, key in ipairs(redis.call('KEYS', 'user:*')) do
  if math.random() < tonumber(ARGV[2]) and (ARGV[1] == '0' or redis.call('GETRANGE', key, 0, 0) ~= 'B') then
    evicted = evicted + redis.call('DEL', key)
  end
end
return evicted";

/// Ends the backends for which CONDITION holds, again and again for half a second.
const TERMINATE: &str = "\
DO $$ BEGIN FOR round IN 1..100 LOOP
  PERFORM pg_stat_clear_snapshot();
  PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND (CONDITION);
  PERFORM pg_sleep(0.005);
END LOOP; END $$";

/// A fault that was injected.
#[derive(Debug, Clone)]
pub struct Entry {
    pub start: u64,
    pub end: u64,
    pub fault: Fault,
    pub what: String,
}

/// The faults that were injected.
#[derive(Default)]
pub struct Log(Mutex<Vec<Entry>>);

impl Log {
    /// All of them.
    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().clone()
    }

    /// How many of each kind.
    pub fn counts(&self) -> BTreeMap<Fault, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.entries() {
            *counts.entry(entry.fault).or_insert(0) += 1;
        }
        counts
    }

    fn add(&self, entry: Entry) {
        self.0.lock().push(entry);
    }
}

/// Injects faults of these kinds, one after the other and in random order, until `time` is over and each kind was
/// injected.
pub fn inject(cluster: &Cluster, kinds: &[Fault], time: Duration, log: &Log) {
    let end = Instant::now() + time;
    let mut missing: BTreeSet<Fault> = kinds.iter().copied().collect();
    while Instant::now() < end || !missing.is_empty() {
        let mut kinds = kinds.to_vec();
        kinds.shuffle(&mut rand::rng());
        for fault in kinds {
            if Instant::now() > end && !missing.contains(&fault) {
                continue;
            }
            sleep(random_ms(50, 300));
            let start = cluster.now();
            let what = fault.inject(cluster);
            log.add(Entry { start, end: cluster.now(), fault, what: format!("{fault:?} {what}") });
            missing.remove(&fault);
        }
    }
}

fn random_ms(from: u64, to: u64) -> Duration {
    Duration::from_millis(rand::random_range(from..to))
}

fn any_of<T>(all: &[T]) -> &T {
    all.choose(&mut rand::rng()).expect("it is not empty")
}

impl Fault {
    /// Injects the fault and ends it. Returns its details, for a trace.
    fn inject(self, cluster: &Cluster) -> String {
        let Cluster { stack, redis_proxies, postgres_proxies, readers, writers, .. } = cluster;
        let redis = stack.redis();
        let postgres = stack.postgres();
        let victim = rand::random_range(0..2);
        let name = ["data-1", "user-1"][victim];
        match self {
            KillReader => kill(any_of(readers)),
            KillWriter => kill(any_of(writers)),
            FreezeRedis => {
                redis.freeze();
                sleep(random_ms(20, 700));
                redis.thaw();
                String::new()
            }
            PauseRedis | PauseRedisWrites => {
                let time = random_ms(20, 500);
                let kind = if self == PauseRedis { "ALL" } else { "WRITE" };
                stack.redis_cli(&["CLIENT", "PAUSE", &time.as_millis().to_string(), kind]);
                sleep(time);
                format!("for {time:?}")
            }
            EvictCopies | EvictAnything => {
                let spares_barriers = if self == EvictCopies { "1" } else { "0" };
                let mut evicted = 0;
                for _ in 0..20 {
                    sleep(random_ms(5, 30));
                    let count = stack.redis_cli(&["EVAL", EVICT, "0", spares_barriers, "0.5"]);
                    evicted += count.parse::<u64>().unwrap_or(0);
                }
                format!("of {evicted} keys")
            }
            FlushRedis => {
                for _ in 0..5 {
                    sleep(random_ms(5, 100));
                    stack.redis_cli(&["FLUSHALL"]);
                }
                "five times".into()
            }
            RestartRedis => {
                redis.kill();
                sleep(random_ms(0, 100));
                redis.restart();
                String::new()
            }
            CutRedis | DelayRedis | ResetRedis => disturb(self, &redis_proxies[victim], name),
            CutPostgres | DelayPostgres | ResetPostgres => disturb(self, &postgres_proxies[victim], name),
            TerminateCommits => terminate(cluster, "state = 'active' AND query = 'COMMIT'"),
            TerminateAnything => terminate(cluster, "random() < 0.02"),
            FreezePostgres => {
                postgres.freeze();
                sleep(random_ms(50, 1500));
                postgres.thaw();
                String::new()
            }
            KillPostgres => {
                postgres.kill();
                sleep(random_ms(0, 300));
                postgres.restart();
                String::new()
            }
            RestartPostgres => {
                postgres.restart();
                String::new()
            }
        }
    }
}

fn kill(replica: &Replica) -> String {
    replica.kill();
    sleep(random_ms(0, 300));
    replica.restart();
    format!("of {}", replica.name)
}

fn disturb(fault: Fault, proxy: &devstack::Proxy, name: &str) -> String {
    match fault {
        CutRedis | CutPostgres => {
            proxy.cut();
            sleep(random_ms(50, 800));
            proxy.restore();
            proxy.delay(SLOWNESS);
        }
        ResetRedis | ResetPostgres => {
            for _ in 0..10 {
                proxy.reset();
                sleep(random_ms(5, 100));
            }
        }
        _ => {
            proxy.delay(*any_of(&[5, 15, 30, 60].map(Duration::from_millis)));
            sleep(random_ms(200, 800));
            proxy.delay(SLOWNESS);
        }
    }
    format!("of {name}")
}

fn terminate(cluster: &Cluster, condition: &str) -> String {
    let statement = TERMINATE.replace("CONDITION", condition);
    // Another fault may have stopped Postgres.
    match cluster.stack.postgres().try_sql(cluster.stack.database(), &statement) {
        Ok(_) => String::new(),
        Err(error) => error.lines().next().unwrap_or_default().to_owned(),
    }
}
