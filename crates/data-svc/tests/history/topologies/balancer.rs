//! HAProxy before the services, and before a Redis that fails over.

use std::thread::scope;
use std::time::Duration;

use devstack::Installed;

use crate::cluster::Cluster;
use crate::faults::{self, Fault, Log, REDIS_PAIR, SERVICES};
use crate::one_at_a_time;
use crate::recorder::{Load, record};
use crate::report::{Promise, Report};
use crate::runs::patient;

/// How long a long recording is.
const LONG: Duration = Duration::from_secs(300);

/// Clients reach two replicas of each service through HAProxy, and these a Redis that fails over. Replicas are killed
/// meanwhile.
fn behind_haproxy(program: &Installed, time: Duration, load: &Load) -> Report {
    let cluster = Cluster::behind_haproxy(program);
    let log = Log::default();
    let recording = record(&cluster, load, || {
        scope(|scope| {
            scope.spawn(|| faults::inject(&cluster, SERVICES, time, &log));
            faults::inject(&cluster, REDIS_PAIR, time, &log);
        });
    });
    let lost: Vec<_> =
        log.entries().into_iter().filter(|entry| entry.what.contains("no Redis was granted")).collect();
    assert!(lost.is_empty(), "HAProxy leads to no primary: {lost:?}");
    let report = Report::of("behind HAProxy", Promise::Linearizable, &cluster, &recording, &log);
    report.good(&cluster, &recording)
}

fn saw(report: &Report, failovers: usize) {
    report.is_good();
    for source in ["near hit", "hit", "miss, stored", "bypass", "suspended"] {
        assert!(report.source(source) >= 3, "few or none of {source:?}: {:?}", report.sources);
    }
    assert!(report.faults[&Fault::FailOverBehindHaproxy] >= failovers, "{:?}", report.faults);
}

#[test]
fn reads_are_linearizable_behind_haproxy_while_a_redis_behind_it_fails_over() {
    let Some(program) = Installed::find("haproxy") else { return };
    let _turn = one_at_a_time();
    saw(&behind_haproxy(&program, Duration::ZERO, &patient(&Load::default())), 1);
}

#[test]
#[ignore = "five minutes, by `make topologies`"]
fn reads_are_linearizable_for_long_behind_haproxy_while_a_redis_behind_it_fails_over() {
    let Some(program) = Installed::find("haproxy") else { return };
    let _turn = one_at_a_time();
    saw(&behind_haproxy(&program, LONG, &patient(&Load::default())), 5);
}
