//! The faults that are injected into the services and their stores while clients work.

mod members;
mod network;
pub mod postgres;
mod redis;
mod redis_pair;

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::cluster::{Cluster, Replica};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of a data-svc, started again later.
    KillReader,
    /// `kill -9` of a user-svc, started again later: its barriers stay, and its transactions end without it.
    KillWriter,
    /// SIGSTOP of a data-svc, and SIGCONT.
    FreezeReader,

    /// A data-svc applies the messages of writers, and its acks are late or lost.
    HoldAcks,
    /// The messages of writers to a data-svc are late or lost.
    HoldInvalidations,
    /// What a user-svc hears of acks is late or lost.
    HoldAcksFromWriter,
    /// The list of those who acknowledge writes is deleted.
    LoseMembers,

    /// SIGSTOP of Redis, and SIGCONT before a writer gives up.
    FreezeRedis,
    /// `CLIENT PAUSE ... ALL`.
    PauseRedis,
    /// `CLIENT PAUSE ... WRITE`: PINGs go on, and so do near hits. Nothing can be stored or published.
    PauseRedisWrites,
    /// Keys are deleted at random, but no barriers: eviction.
    EvictCopies,
    /// Keys are deleted at random, barriers and the list of those who acknowledge writes too.
    EvictAnything,
    /// FLUSHALL.
    FlushRedis,
    /// SIGSTOP of Redis for longer than a writer waits, and SIGCONT.
    FreezeRedisLong,
    /// Redis is killed, and starts again with its newest snapshot, or empty.
    RestartRedis,
    /// The same with a snapshot that is a moment old.
    RestoreRedis,
    /// Redis dies, and its replica, which has missed writes, is promoted.
    FailOverRedis,
    /// The same while the old one lives on: some replicas still use it for a moment.
    SplitRedis,
    /// Redis behind HAProxy dies, and its replica is promoted. The dead one comes back, a primary with old data for a moment,
    /// and then follows the other one.
    FailOverBehindHaproxy,
    /// The replica is promoted while its primary lives on, so that HAProxy sees two.
    TwoPrimariesBehindHaproxy,
    /// A planned failover: Redis is demoted, and the connections that listen stay there.
    DemoteRedis,

    /// A data-svc cannot reach Redis, and its connections are reset.
    CutRedisFromReader,
    /// Messages between a data-svc and Redis are delayed.
    DelayRedis,
    /// A data-svc's connections to Redis are reset, again and again.
    ResetRedis,
    /// Single packets between any service and any store are lost, and sent again a quarter of a second later.
    LosePackets,
    /// A user-svc cannot reach Redis.
    CutRedisFromWriter,
    /// A data-svc reaches Redis, but neither PostgreSQL nor those who write; all others do not reach Redis.
    Isolate,

    /// A service cannot reach PostgreSQL, and its connections are reset.
    CutPostgres,
    /// Messages between a service and PostgreSQL are delayed.
    DelayPostgres,
    /// A service's connections to PostgreSQL are reset, again and again.
    ResetPostgres,
    /// `pg_terminate_backend` of the sessions that are in COMMIT.
    TerminateCommits,
    /// `pg_terminate_backend` of sessions at random.
    TerminateAnything,
    /// SIGSTOP of PostgreSQL, and SIGCONT.
    FreezePostgres,
    /// SIGKILL of all of PostgreSQL, started again.
    KillPostgres,
    /// An orderly restart of PostgreSQL.
    RestartPostgres,
    /// SIGSTOP of the synchronous standby, and SIGCONT: COMMITs take long.
    FreezeStandby,
    /// The synchronous standby is cut from its primary: COMMITs hang.
    DetachStandby,
    /// PostgreSQL is killed while it is written to, and its synchronous standby is promoted.
    Promote,

    /// None: the time that the grant takes to return after one.
    Recovery,
}

use Fault::{
    CutPostgres, CutRedisFromReader, CutRedisFromWriter, DelayPostgres, DelayRedis, DemoteRedis,
    DetachStandby, EvictAnything, EvictCopies, FailOverBehindHaproxy, FailOverRedis, FlushRedis,
    FreezePostgres, FreezeReader, FreezeRedis, FreezeRedisLong, FreezeStandby, HoldAcks, HoldAcksFromWriter,
    HoldInvalidations, Isolate, KillPostgres, KillReader, KillWriter, LoseMembers, LosePackets, PauseRedis,
    PauseRedisWrites, Promote, Recovery, ResetPostgres, ResetRedis, RestartPostgres, RestartRedis,
    RestoreRedis, SplitRedis, TerminateAnything, TerminateCommits, TwoPrimariesBehindHaproxy,
};

/// Brief faults of Redis and of the paths to it, under which no barrier is lost. The grant mostly stays.
pub const REDIS_BRIEF: &[Fault] = &[
    FreezeRedis,
    PauseRedis,
    PauseRedisWrites,
    EvictCopies,
    CutRedisFromReader,
    DelayRedis,
    ResetRedis,
    LosePackets,
];
/// Faults of near members: of their messages, of their acks, and of their list.
pub const MEMBERS: &[Fault] =
    &[FreezeReader, HoldAcks, HoldInvalidations, HoldInvalidations, HoldAcksFromWriter, LoseMembers];
/// Faults of Redis under which barriers are lost, and the grant stays.
pub const REDIS_LOSES_BARRIERS: &[Fault] = &[EvictAnything, FlushRedis];
/// Faults of Redis and of the paths to it that cost the grant.
pub const REDIS_LOST: &[Fault] = &[
    FreezeRedisLong,
    RestartRedis,
    RestoreRedis,
    FailOverRedis,
    SplitRedis,
    DemoteRedis,
    CutRedisFromWriter,
    Isolate,
];
/// Faults of a Redis and its replica behind HAProxy, which cost the grant.
pub const REDIS_PAIR: &[Fault] = &[FailOverBehindHaproxy, TwoPrimariesBehindHaproxy];
/// Faults of PostgreSQL and of the paths to it. Not of one with a synchronous standby: a COMMIT that is terminated, or whose
/// server is restarted, while it waits for the standby is shown without being there.
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
pub const SERVICES: &[Fault] = &[KillReader, KillWriter, FreezeReader];

/// A fault that was injected.
#[derive(Debug, Clone)]
pub struct Entry {
    pub start: u64,
    pub end: u64,
    pub fault: Fault,
    pub what: String,
}

/// How many faults of each kind.
pub type Counts = BTreeMap<Fault, usize>;

/// The faults that were injected.
#[derive(Default)]
pub struct Log(Mutex<Vec<Entry>>);

impl Log {
    /// All of them.
    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().clone()
    }

    /// How many of each kind.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for entry in self.entries() {
            *counts.entry(entry.fault).or_insert(0) += 1;
        }
        counts
    }

    fn inject(&self, fault: Fault, cluster: &Cluster) {
        let start = cluster.now();
        let what = format!("{fault:?} {}", fault.inject(cluster));
        self.0.lock().push(Entry { start, end: cluster.now(), fault, what });
    }
}

/// Injects faults of these kinds, one after the other and in random order, until `time` is over and each kind was
/// injected.
pub fn inject(cluster: &Cluster, kinds: &[Fault], time: Duration, log: &Log) {
    if kinds.is_empty() {
        return sleep(time);
    }
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
            log.inject(fault, cluster);
            if fault.costs_the_grant() {
                log.inject(Recovery, cluster);
            }
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
    fn costs_the_grant(self) -> bool {
        REDIS_LOST.contains(&self) || REDIS_PAIR.contains(&self)
    }

    /// Injects the fault and ends it. Returns its details, for a trace.
    fn inject(self, cluster: &Cluster) -> String {
        match self {
            KillReader => kill(any_of(&cluster.readers)),
            KillWriter => kill(any_of(&cluster.writers)),
            FreezeReader => freeze(any_of(&cluster.readers)),
            HoldAcks => members::hold_acks(cluster),
            HoldInvalidations => members::hold_invalidations(cluster),
            HoldAcksFromWriter => members::hold_acks_from_writer(cluster),
            LoseMembers => members::lose(cluster),
            FreezeRedis => redis::freeze(cluster, random_ms(20, 140)),
            FreezeRedisLong => redis::freeze(cluster, random_ms(500, 1500)),
            PauseRedis => redis::pause(cluster, "ALL"),
            PauseRedisWrites => redis::pause(cluster, "WRITE"),
            EvictCopies => redis::evict(cluster, redis::Barriers::Spared),
            EvictAnything => redis::evict(cluster, redis::Barriers::Evicted),
            FlushRedis => redis::flush(cluster),
            RestartRedis => redis::restart(cluster),
            RestoreRedis => redis::restore(cluster),
            FailOverRedis => redis::fail_over(cluster),
            SplitRedis => redis::split(cluster),
            FailOverBehindHaproxy => redis_pair::fail_over(cluster),
            TwoPrimariesBehindHaproxy => redis_pair::two_primaries(cluster),
            DemoteRedis => redis::demote(cluster),
            CutRedisFromReader => network::cut(any_of(&cluster.readers), |it| &it.redis, random_ms(50, 800)),
            CutRedisFromWriter => {
                network::cut(any_of(&cluster.writers), |it| &it.redis, random_ms(50, 4_500))
            }
            DelayRedis => network::delay(any_of(&cluster.readers), |it| &it.redis),
            ResetRedis => network::reset(any_of(&cluster.readers), |it| &it.redis),
            LosePackets => network::lose_packets(cluster),
            Isolate => network::isolate(cluster),
            CutPostgres => network::cut(network::any_replica(cluster), |it| &it.postgres, random_ms(50, 800)),
            DelayPostgres => network::delay(network::any_replica(cluster), |it| &it.postgres),
            ResetPostgres => network::reset(network::any_replica(cluster), |it| &it.postgres),
            TerminateCommits => postgres::terminate(cluster, "state = 'active' AND query = 'COMMIT'"),
            TerminateAnything => postgres::terminate(cluster, "random() < 0.02"),
            FreezePostgres => postgres::freeze(&cluster.stores.postgres(), random_ms(50, 1_500)),
            KillPostgres => postgres::kill(cluster),
            RestartPostgres => {
                cluster.stores.postgres().restart();
                String::new()
            }
            FreezeStandby => postgres::freeze(&cluster.stores.standby(), random_ms(50, 2_500)),
            DetachStandby => postgres::detach_standby(cluster),
            Promote => postgres::promote(cluster),
            Recovery => redis::recover(cluster),
        }
    }
}

fn kill(replica: &Replica) -> String {
    replica.kill();
    sleep(random_ms(0, 300));
    replica.restart();
    format!("of {}", replica.name)
}

/// For less than a proof holds, or for longer.
fn freeze(replica: &Replica) -> String {
    let time = random_ms(10, 300);
    replica.freeze();
    sleep(time);
    replica.thaw();
    format!("of {} for {time:?}", replica.name)
}
