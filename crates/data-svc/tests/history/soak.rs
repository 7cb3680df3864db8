//! `make soak`: one recording after the other, until there are enough reads or the time is over.

use std::time::{Duration, Instant};

use devstack::postgres::Timeline;

use crate::cluster::Cluster;
use crate::faults::{Counts, MEMBERS, POSTGRES, REDIS_BRIEF, REDIS_LOSES_BARRIERS, REDIS_LOST, SERVICES};
use crate::one_at_a_time;
use crate::recorder::Load;
use crate::report::{Promise, Report};
use crate::runs::{double_faults, half, patient, restore, single_faults, standby, two_installations};

/// How long one recording goes on: long enough for every fault, and short enough to be kept in memory.
const ROUND: Duration = Duration::from_secs(60);
/// How many readers there are for each one of a usual recording.
const MORE_READERS: usize = 4;

/// The sum of all recordings.
#[derive(Default)]
struct Totals {
    reads: usize,
    writes: usize,
    unknown: usize,
    lingering_absence: Duration,
    faults: Counts,
    violations: usize,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.reads += report.reads;
        self.writes += report.writes;
        self.unknown += report.unknown;
        self.lingering_absence = self.lingering_absence.max(report.lingering_absence);
        for (fault, count) in &report.faults {
            *self.faults.entry(*fault).or_insert(0) += count;
        }
        self.violations += report.violations.len();
        for violation in &report.violations {
            println!("VIOLATION\n{violation}");
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

fn round(number: usize, time: Duration) -> Vec<Report> {
    let usual = Load::default();
    let load = Load { readers: MORE_READERS * usual.readers, ..usual };
    let linearizable =
        |test, kinds: &[_], load: &Load| vec![single_faults(test, Promise::Linearizable, kinds, time, load)];
    let plain = || Cluster::start([&[], &[]]);
    let brief = [REDIS_BRIEF, MEMBERS].concat();
    let others = [POSTGRES, SERVICES].concat();
    match number % 9 {
        0 => vec![double_faults(&plain(), "brief faults", [&brief, &others], time, &load)],
        1 => linearizable("Redis lost", REDIS_LOST, &patient(&load)),
        2 => vec![standby(&plain(), time, &load)],
        3 => {
            let kinds = [REDIS_LOSES_BARRIERS, SERVICES].concat();
            vec![single_faults("barriers lost", Promise::VisibleWithLostBarriers, &kinds, time, &load)]
        }
        4 => linearizable("single faults", &[&brief, REDIS_LOST, &others].concat(), &patient(&load)),
        5 => two_installations(time, &half(&load)).into(),
        6 => {
            let timeline = if rand::random() { Timeline::Same } else { Timeline::New };
            restore(timeline, time / 4, &load).into()
        }
        7 => linearizable("near members", MEMBERS, &load),
        _ => linearizable("nothing fails", &[], &load),
    }
}

#[test]
#[ignore = "an hour, by `make soak`"]
fn no_promise_is_broken_for_as_long_as_a_soak_goes_on() {
    let _turn = one_at_a_time();
    let start = Instant::now();
    let time = Duration::from_secs(setting("SOAK_SECONDS", 3_600));
    let reads = usize::try_from(setting("SOAK_READS", 10_000_000)).expect("a number of reads");
    let mut totals = Totals::default();
    let mut rounds = 0;
    while totals.reads < reads && start.elapsed() < time {
        let left = time.saturating_sub(start.elapsed());
        for report in round(rounds, ROUND.min(left)) {
            totals.add(&report);
        }
        rounds += 1;
        println!(
            "{} reads in {} s, {} violations\n",
            totals.reads,
            start.elapsed().as_secs(),
            totals.violations
        );
    }
    let Totals { reads, writes, unknown, lingering_absence, faults, violations } = totals;
    println!(
        "{reads} reads, {writes} writes ({unknown} unknown) in {:?}, {rounds} recordings",
        start.elapsed()
    );
    println!("faults: {faults:?}");
    println!("stalest absence after a user was read, where barriers are lost: {lingering_absence:?}");
    println!("violations: {violations}");
    assert_eq!(violations, 0);
}
