//! The result of a recording: counts, and for each violation the operations around it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::checker::{self, Proof, Violation};
use crate::cluster::Cluster;
use crate::faults::{Counts, Log};
use crate::operation::{Action, OPEN, Operation, Outcome};
use crate::recorder::Recording;

/// How many operations of a name are shown before the one that is wrong. A quarter as many are shown after it.
const AROUND: usize = 40;

/// The promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// *Linearizable*, which includes *visible*.
    Linearizable,
    /// *Visible*, and *linearizable* but for absences from Redis: where a register's barrier is lost, an absence can be
    /// stored that a reader of the database knows to be over. It is removed before the register is acknowledged.
    VisibleWithLostBarriers,
    /// Neither: stale reads are measured.
    Bounded,
}

impl Promise {
    /// A violation of it, and the operations that are checked.
    fn check(self, operations: &[Operation]) -> Option<(Violation, Vec<Operation>)> {
        let visible = || Some((checker::visible(operations).into_iter().next()?, operations.to_vec()));
        let linearizable =
            |operations: Vec<Operation>| Some((checker::linearizable(&operations)?, operations));
        match self {
            Self::Linearizable => linearizable(operations.to_vec()),
            Self::VisibleWithLostBarriers => visible().or_else(|| {
                let others = operations.iter().filter(|it| it.via.source != "negative hit");
                linearizable(others.copied().collect())
            }),
            Self::Bounded => None,
        }
    }
}

/// The result of a recording.
pub struct Report {
    pub reads: usize,
    pub writes: usize,
    pub unknown: usize,
    /// Reads by how they were answered.
    pub sources: BTreeMap<&'static str, usize>,
    /// A trace of each violation.
    pub violations: Vec<String>,
    /// For how long a user had certainly been there, acknowledged or not, when an absence was read.
    pub lingering_absence: Duration,
    pub faults: Counts,
    text: String,
}

impl Report {
    /// Checks every history, and prints the counts.
    pub fn of(test: &str, promise: Promise, cluster: &Cluster, recording: &Recording, faults: &Log) -> Self {
        let all = || recording.histories.iter().flatten();
        let is_read = |it: &&Operation| matches!(it.action, Action::Read(_));
        let reads = all().filter(is_read).count();
        let unknown = all().filter(|it| it.outcome == Outcome::Unknown).count();
        let mut sources = BTreeMap::new();
        for read in all().filter(is_read) {
            *sources.entry(read.via.source).or_insert(0) += 1;
        }
        let started = Instant::now();
        let mut violations = Vec::new();
        let mut first = OPEN;
        for (name, operations) in recording.histories.iter().enumerate() {
            if let Some((found, checked)) = promise.check(operations) {
                first = first.min(checked[found.operation].start);
                violations.push(trace(name, &checked, &found, faults));
            }
        }
        let oldest = oldest(recording, Proof::Acknowledged, |_| true);
        let [_, lingering_absence] = self::oldest(recording, Proof::AcknowledgedOrRead, |_| true);
        let mut text = String::new();
        let names = recording.histories.len();
        let seconds = cluster.beginning.elapsed().as_secs();
        let writes = all().count() - reads;
        let counted = format!("{reads} reads, {writes} writes ({unknown} unknown) of {names} names");
        let lost = format!("{} writes refused, {} reads unanswered", recording.refused, recording.unanswered);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{test}: {promise:?}, {seconds} s: {counted}; {lost}");
        let _ = writeln!(text, "  answers: {sources:?}");
        let _ = writeln!(text, "  faults: {:?}", faults.counts());
        let _ =
            writeln!(text, "  {} names with a violation, {:?} to check", violations.len(), started.elapsed());
        if first != OPEN {
            let _ = writeln!(text, "  the first of them after {:.1} s", ms(first) / 1e3);
        }
        let [user, absence] = oldest;
        let _ = writeln!(
            text,
            "  stalest user {user:?}, absence {absence:?}, after a read {lingering_absence:?}"
        );
        println!("{text}");
        let faults = faults.counts();
        Self { reads, writes, unknown, sources, violations, lingering_absence, faults, text }
    }

    /// How many reads were answered in this way.
    pub fn source(&self, source: &str) -> usize {
        self.sources.get(source).copied().unwrap_or(0)
    }

    /// Adds as violations: an unexpected answer, a panic in a service.
    pub fn good(mut self, cluster: &Cluster, recording: &Recording) -> Self {
        if !recording.unexpected.is_empty() {
            self.violations.push(format!("unexpected answers: {:#?}", recording.unexpected));
        }
        for replica in cluster.replicas() {
            let log = replica.log();
            if log.contains("panicked") {
                self.violations.push(format!("{} panicked:\n{log}", replica.name));
            }
        }
        self
    }

    /// Panics with the traces if there is a violation.
    pub fn is_good(&self) {
        let shown: Vec<&str> = self.violations.iter().take(3).map(String::as_str).collect();
        assert!(self.violations.is_empty(), "{}\n{}", self.text, shown.join("\n"));
    }
}

/// For how long what this replica read had been overwritten at most.
pub fn stalest_of(replica: &str, recording: &Recording) -> Duration {
    let [user, absence] = oldest(recording, Proof::Acknowledged, |read| read.via.replica == replica);
    user.max(absence)
}

/// The greatest age of a stale user, and of a stale absence, as `proof` shows it.
fn oldest(recording: &Recording, proof: Proof, counts: impl Fn(&Operation) -> bool) -> [Duration; 2] {
    let mut oldest = [0; 2];
    for operations in &recording.histories {
        for stale in checker::stale_after(operations, proof) {
            let read = &operations[stale.operation];
            if counts(read) {
                let oldest = &mut oldest[usize::from(read.action == Action::Read(None))];
                *oldest = stale.age.max(*oldest);
            }
        }
    }
    oldest.map(Duration::from_nanos)
}

/// The operations around a violation by their start, with the faults between them, and the write whose info was read.
fn trace(name: usize, operations: &[Operation], violation: &Violation, faults: &Log) -> String {
    let wrong = &operations[violation.operation];
    let mut sorted: Vec<&Operation> = operations.iter().collect();
    sorted.sort_by_key(|it| it.start);
    let at = sorted.iter().position(|it| std::ptr::eq(*it, wrong)).unwrap_or(0);
    // More before the violation than after it, since a write before it is the likely cause.
    let is_near = |number: usize| number + AROUND > at && number < at + AROUND / 4;
    // A write under way may have taken effect, however long ago it began.
    let about = |it: &Operation| {
        let overlaps = it.start <= wrong.end && it.end >= wrong.start;
        !matches!(it.action, Action::Read(_)) && it.end != OPEN && overlaps
            || it.writes().is_some_and(|info| wrong.action == Action::Read(Some(info)))
    };
    let shown: Vec<&Operation> =
        (0..).zip(&sorted).filter(|(n, it)| is_near(*n) || about(it)).map(|(_, it)| *it).collect();
    let from = shown.first().map_or(0, |it| it.start);
    let mut lines: Vec<(u64, String)> = shown
        .iter()
        .map(|it| {
            let end = if it.end == OPEN { "          ?".into() } else { format!("{:11.3}", ms(it.end)) };
            let mark = if std::ptr::eq(*it, wrong) { " <== here" } else { "" };
            let Operation { action, outcome, via, .. } = it;
            let what = format!("{action:?} {outcome:?}, {} {}{mark}", via.replica, via.source);
            (it.start, format!("  {:11.3} - {end} ms  {what}", ms(it.start)))
        })
        .collect();
    let during = faults.entries().into_iter().filter(|it| it.end >= from && it.start <= wrong.end);
    lines.extend(during.map(|it| {
        (it.start, format!("  {:11.3} - {:11.3} ms  FAULT {}", ms(it.start), ms(it.end), it.what))
    }));
    lines.sort();
    let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    format!("h{name}: {} at {:.3} ms\n{}", violation.why, ms(wrong.start), lines.join("\n"))
}

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
