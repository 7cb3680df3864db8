//! The recordings: which promise holds under which faults. All services have their default settings.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::postgres::Timeline;

use crate::cluster::Cluster;
use crate::faults::{
    self, Fault, Log, MEMBERS, POSTGRES, REDIS_BRIEF, REDIS_LOSES_BARRIERS, REDIS_LOST, SERVICES,
};
use crate::one_at_a_time;
use crate::recorder::{Load, record, users};
use crate::report::{Promise, Report};

/// How long an absence stays cached at most.
const ABSENT_TTL: Duration = Duration::from_secs(10);
/// How far a measured age may exceed a TTL: the time from the SELECT to the SET in Redis, on a machine with more threads
/// than cores.
pub const SLACK: Duration = Duration::from_millis(500);
/// For how long a look at the grant is valid.
pub const GRANT: Duration = Duration::from_secs(3);
/// The ways in which a read is answered while Redis is there.
const TIERS: [&str; 6] = ["near hit", "hit", "negative hit", "miss, stored", "forced, stored", "bypass"];
/// The number of the first write of a second recording.
const MORE_INFOS: u32 = u32::MAX / 2;

/// Asserts that reads were answered in all of these ways.
pub fn saw(report: &Report, tiers: &[&str]) {
    for source in tiers {
        assert!(report.source(source) >= 3, "few or none of {source:?}: {:?}", report.sources);
    }
    assert!(report.reads >= 500 && report.writes >= 40, "{} reads, {} writes", report.reads, report.writes);
}

/// Half the clients, for two recordings at once.
pub fn half(load: &Load) -> Load {
    Load { readers: load.readers / 2, writers: load.writers / 2, ..*load }
}

/// The same clients, with names that are in use for long enough to be written while old copies of them are left: when
/// Redis is lost, writes stop for longer than a grant lives.
pub fn patient(load: &Load) -> Load {
    Load { rotation: 3 * GRANT, ..*load }
}

/// A recording under single faults of these kinds, each at least once; of none: nothing fails.
pub fn single_faults(test: &str, promise: Promise, kinds: &[Fault], time: Duration, load: &Load) -> Report {
    let cluster = Cluster::start([&[], &[]]);
    let log = Log::default();
    let recording = record(&cluster, load, || faults::inject(&cluster, kinds, time, &log));
    Report::of(test, promise, &cluster, &recording, &log).good(&cluster, &recording)
}

/// A recording under two faults at a time, one of each list.
pub fn double_faults(
    cluster: &Cluster,
    test: &str,
    kinds: [&[Fault]; 2],
    time: Duration,
    load: &Load,
) -> Report {
    let log = Log::default();
    let recording = record(cluster, load, || {
        scope(|scope| {
            scope.spawn(|| faults::inject(cluster, kinds[0], time, &log));
            faults::inject(cluster, kinds[1], time, &log);
        });
    });
    Report::of(test, Promise::Linearizable, cluster, &recording, &log).good(cluster, &recording)
}

/// How long a standby is disturbed before it is promoted.
const STANDBY_TIME: Duration = Duration::from_secs(4);

/// A recording in which the synchronous standby is slow or away for a time, and is then promoted; again with a new one
/// until `time` is over.
pub fn standby(cluster: &Cluster, time: Duration, load: &Load) -> Report {
    let log = Log::default();
    cluster.stores.standby();
    let recording = record(cluster, load, || {
        let end = Instant::now() + time;
        loop {
            faults::inject(cluster, &[Fault::FreezeStandby, Fault::DetachStandby], STANDBY_TIME, &log);
            faults::inject(cluster, &[Fault::Promote], Duration::ZERO, &log);
            sleep(Duration::from_secs(2));
            if Instant::now() >= end {
                return;
            }
        }
    });
    let report = Report::of("standby promoted", Promise::Linearizable, cluster, &recording, &log);
    report.good(cluster, &recording)
}

/// Two recordings, and between them PostgreSQL goes back to a time within the first.
pub fn restore(timeline: Timeline, time: Duration, load: &Load) -> [Report; 2] {
    let cluster = Cluster::start([&[], &[]]);
    let mut backup = None;
    let recording = record(&cluster, load, || {
        sleep(time / 2);
        backup = Some(cluster.stores.postgres().backup());
        sleep(time / 2);
    });
    let report = |test, recording| {
        let report = Report::of(test, Promise::Linearizable, &cluster, recording, &Log::default());
        report.good(&cluster, recording)
    };
    let before = report("before a restore", &recording);
    cluster.stores.postgres().restore(&backup.expect("it was made"), timeline);
    // What a look at PostgreSQL has shown is used for so long.
    sleep(GRANT);
    let there = users(&cluster);
    let mut recording = record(&cluster, &Load { first_info: MORE_INFOS, ..*load }, || sleep(time));
    recording.begin_with(there);
    [before, report("after a restore", &recording)]
}

/// Recordings of two installations at the same time.
pub fn two_installations(time: Duration, load: &Load) -> [Report; 2] {
    let one = Cluster::start([&[], &[]]);
    let other = Cluster::beside(&one);
    // No info of one is ever written in the other: an answer that shows it is a violation.
    let others = Load { first_info: MORE_INFOS, ..*load };
    let report = |cluster: &Cluster, load: &Load| {
        let recording = record(cluster, load, || sleep(time));
        // Each takes the place of the other's barriers, which are lost then.
        let promise = Promise::VisibleWithLostBarriers;
        let report = Report::of("two installations", promise, cluster, &recording, &Log::default());
        report.good(cluster, &recording)
    };
    at_once(|| report(&one, load), || report(&other, &others))
}

/// Runs both at the same time.
fn at_once<T: Send>(first: impl FnOnce() -> T, second: impl FnOnce() -> T + Send) -> [T; 2] {
    scope(|scope| {
        let second = scope.spawn(second);
        let first = first();
        [first, second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))]
    })
}

#[test]
fn reads_are_linearizable_when_nothing_fails_and_after_postgresql_went_back_in_time() {
    let _turn = one_at_a_time();
    let time = Duration::from_secs(3);
    for report in restore(Timeline::Same, time, &Load::default()) {
        report.is_good();
        saw(&report, &TIERS);
        assert_eq!(report.unknown, 0, "every write was answered");
    }
}

#[test]
fn reads_are_linearizable_under_two_brief_faults_that_keep_barriers() {
    let _turn = one_at_a_time();
    let others = [POSTGRES, SERVICES].concat();
    let time = Duration::from_secs(10);
    let cluster = Cluster::start([&[], &[]]);
    let report = double_faults(&cluster, "brief faults", [REDIS_BRIEF, &others], time, &Load::default());
    report.is_good();
    saw(&report, &TIERS);
    assert!(
        report.source("breaker open") > 0 && report.unknown > 0,
        "{:?}, {}",
        report.sources,
        report.unknown
    );
}

/// By themselves: other faults stop writes, or keep near copies out of use.
#[test]
fn reads_are_linearizable_when_messages_to_near_caches_and_their_acks_are_late_or_lost() {
    let _turn = one_at_a_time();
    let time = Duration::from_secs(6);
    let report = single_faults("near members", Promise::Linearizable, MEMBERS, time, &Load::default());
    report.is_good();
    saw(&report, &TIERS);
    assert_eq!(report.unknown, 0, "every write was answered");
}

#[test]
fn reads_are_linearizable_when_redis_is_lost_comes_back_with_the_past_or_fails_over() {
    let _turn = one_at_a_time();
    // At the same time, since most of each fault is waiting until Redis is granted again.
    let load = patient(&half(&Load::default()));
    let (some, others) = REDIS_LOST.split_at(REDIS_LOST.len() / 2);
    let record = |kinds| single_faults("Redis lost", Promise::Linearizable, kinds, Duration::ZERO, &load);
    for report in at_once(|| record(some), || record(others)) {
        report.is_good();
        saw(&report, &[&TIERS[..], &["suspended"]].concat());
    }
}

#[test]
fn reads_are_linearizable_when_a_synchronous_standby_is_slow_away_or_promoted() {
    let _turn = one_at_a_time();
    let report = standby(&Cluster::start([&[], &[]]), Duration::ZERO, &Load::default());
    report.is_good();
    saw(&report, &TIERS);
}

#[test]
fn acknowledged_writes_are_visible_when_barriers_are_lost_and_an_absence_stays_for_its_ttl_at_most() {
    let _turn = one_at_a_time();
    let kinds = [REDIS_LOSES_BARRIERS, REDIS_LOSES_BARRIERS, SERVICES].concat();
    let time = Duration::from_secs(7);
    let promise = Promise::VisibleWithLostBarriers;
    let report = single_faults("barriers lost", promise, &kinds, time, &Load::default());
    report.is_good();
    saw(&report, &TIERS);
    assert!(report.lingering_absence <= ABSENT_TTL + SLACK, "{:?}", report.lingering_absence);
}

#[test]
fn two_installations_on_one_redis_never_see_each_others_users() {
    let _turn = one_at_a_time();
    let reports = two_installations(Duration::from_secs(4), &half(&Load::default()));
    for report in &reports {
        report.is_good();
    }
    for source in ["hit", "miss, stored", "bypass"] {
        assert!(reports.iter().any(|report| report.source(source) > 0), "no {source:?}");
    }
}
