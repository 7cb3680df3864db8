//! The recordings: which promise holds under which faults.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::faults::{self, Fault, Log, POSTGRES, REDIS_KEEPS_BARRIERS, REDIS_LOSES_BARRIERS, SERVICES};
use crate::one_at_a_time;
use crate::recorder::{Load, record};
use crate::report::{Promise, Report};

/// The TTLs of the test of stale reads, short so that entries reach them.
const TTL: Duration = Duration::from_secs(2);
const ABSENT_TTL: Duration = Duration::from_secs(1);
/// How far a measured age may exceed them: the time from the SELECT to the SET in Redis, on a machine with more threads
/// than cores.
const SLACK: Duration = Duration::from_millis(500);

/// More connections than by default, and so more near waits at once. No write without its barrier.
const STRICT: [(&str, &str); 2] = [("DATABASE_CONNECTIONS", "24"), ("CACHE_STRICT", "true")];

/// How long the faults of one recording go on in a soak.
fn soak_seconds() -> Option<u64> {
    std::env::var("SOAK_SECONDS").ok()?.parse().ok()
}

/// How long the faults of one recording go on: `default` seconds, or `SOAK_SECONDS` if it is set.
fn time(default: u64) -> Duration {
    Duration::from_secs(soak_seconds().unwrap_or(default))
}

/// The clients of a recording. A soak has more of them.
fn load() -> Load {
    let usual = Load::default();
    Load { readers: if soak_seconds().is_some() { 4 * usual.readers } else { usual.readers }, ..usual }
}

/// Asserts that reads were answered in every way.
fn saw_every_tier(report: &Report) {
    for source in ["near hit", "hit", "negative hit", "miss, stored", "forced, stored", "bypass"] {
        assert!(report.source(source) >= 5, "few or none of {source:?}: {:?}", report.sources);
    }
    assert!(report.reads >= 3_000 && report.writes >= 60, "{} reads, {} writes", report.reads, report.writes);
}

#[test]
fn reads_are_linearizable_when_nothing_fails() {
    let _turn = one_at_a_time();
    let cluster = Cluster::start(&[], &STRICT);
    let recording = record(&cluster, &load(), || sleep(time(4)));
    let report = Report::of("nothing fails", Promise::Linearizable, &cluster, &recording, &Log::default());
    report.is_good(&cluster, &recording);
    saw_every_tier(&report);
    assert_eq!(report.unknown, 0, "every write was answered");
}

#[test]
fn reads_are_linearizable_under_every_fault_that_keeps_barriers() {
    let _turn = one_at_a_time();
    let cluster = Cluster::start(&[], &STRICT);
    let log = Log::default();
    let recording = record(&cluster, &load(), || {
        scope(|scope| {
            // Two faults at a time, one of each list.
            scope.spawn(|| faults::inject(&cluster, REDIS_KEEPS_BARRIERS, time(18), &log));
            faults::inject(&cluster, &[POSTGRES, SERVICES].concat(), time(18), &log);
        });
    });
    let report = Report::of("barriers kept", Promise::Linearizable, &cluster, &recording, &log);
    report.is_good(&cluster, &recording);
    saw_every_tier(&report);
    assert!(
        report.source("breaker open") > 0 && report.unknown > 0,
        "{:?}, {}",
        report.sources,
        report.unknown
    );
}

#[test]
fn acknowledged_writes_are_visible_under_every_fault() {
    let _turn = one_at_a_time();
    // A barrier may be lost here, and then only its writer can remove what was stored meanwhile. So no writer is
    // killed, and each has the time to reach Redis again.
    let writers = [&STRICT[..], &[("DATABASE_DEADLINE", "5s")]].concat();
    let cluster = Cluster::start(&[], &writers);
    let log = Log::default();
    let lossy = [REDIS_LOSES_BARRIERS, REDIS_LOSES_BARRIERS, REDIS_KEEPS_BARRIERS, POSTGRES].concat();
    let recording = record(&cluster, &load(), || {
        faults::inject(&cluster, &[&lossy[..], &[Fault::KillReader]].concat(), time(20), &log);
    });
    let report = Report::of("barriers lost", Promise::Visible, &cluster, &recording, &log);
    report.is_good(&cluster, &recording);
    saw_every_tier(&report);
}

#[test]
fn a_writer_without_redis_or_strict_leaves_reads_stale_for_the_ttl_at_most() {
    let _turn = one_at_a_time();
    let ttl = format!("{}ms", TTL.as_millis());
    let absent_ttl = format!("{}ms", ABSENT_TTL.as_millis());
    let readers = [("CACHE_TTL", ttl.as_str()), ("CACHE_ABSENT_TTL", absent_ttl.as_str())];
    let cluster = Cluster::start(&readers, &[("DATABASE_CONNECTIONS", "24")]);
    // Only the writer behind the proxy writes, and names are in use long enough to be read when they are stale. Few
    // readers, since each read may refresh its entry early: with many of them no entry becomes old.
    let load = Load { readers: 2, rotation: Duration::from_secs(4), use_writers: &[1], ..Load::default() };
    let recording = record(&cluster, &load, || {
        let end = Instant::now() + time(9);
        while Instant::now() < end {
            cluster.redis_proxies[1].cut();
            sleep(TTL + SLACK);
            cluster.redis_proxies[1].restore();
            sleep(Duration::from_millis(500));
        }
    });
    let report = Report::of("writer cut off", Promise::Bounded, &cluster, &recording, &Log::default());
    report.is_good(&cluster, &recording);
    let [user, absence] = report.oldest;
    assert!(user <= TTL + SLACK, "a user was read {user:?} after it was overwritten");
    assert!(absence <= ABSENT_TTL + SLACK, "an absence was read {absence:?} after a user was acknowledged");
    assert!(user > TTL / 10, "hardly anything was stale: the fault did not hit");
}
