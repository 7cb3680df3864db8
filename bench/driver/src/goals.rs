//! The goals, and whether a run met them. They are ratios within one run, or bounds.

use crate::overload::{Overload, Queue};
use crate::queries::Herd;
use crate::results::Results;
use crate::row::{Figures, Row};
use crate::stores_alone::INSERT;
use crate::targets::Kind;
use crate::workload::Workload;

/// One goal, and its outcome in a run.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The quantity.
    pub what: String,
    /// Its bound, in words.
    pub wanted: String,
    /// Its value in the run.
    pub measured: String,
    /// Whether the value is within the bound.
    pub met: bool,
}

impl Goal {
    fn at_least(what: impl Into<String>, bound: f64, of: &str, measured: f64) -> Goal {
        Goal {
            what: what.into(),
            wanted: format!("at least {bound} {of}"),
            measured: format!("{measured:.2}"),
            met: measured >= bound,
        }
    }

    fn at_most(what: impl Into<String>, bound: f64, of: &str, measured: f64) -> Goal {
        Goal {
            what: what.into(),
            wanted: format!("at most {bound} {of}"),
            measured: format!("{measured:.2}"),
            met: measured <= bound,
        }
    }
}

/// The goals for requests a second, as a part of the ceiling's.
pub const OF_THE_CEILING: [(Workload, f64); 3] =
    [(Workload::Hot, 0.9), (Workload::Warm, 0.9), (Workload::Big, 0.85)];
/// The goals for requests a second, as a multiple of the axum peer's, where several clients share work.
pub const TIMES_AXUM: [(Workload, f64); 7] = [
    (Workload::Zipf, 1.6),
    (Workload::Mixed, 1.6),
    (Workload::Miss, 2.5),
    (Workload::NotFound, 2.5),
    (Workload::Register, 3.0),
    (Workload::YcsbA, 1.5),
    (Workload::YcsbB, 1.5),
];
/// The same for replaces, by the number of clients.
const REPLACES_TIMES_AXUM: [(usize, f64); 2] = [(32, 1.0), (128, 1.5)];
/// Registers as a multiple of the axum peer's before replaces shared their batches, by the number of clients: the least
/// of the full run of 2026-11-26 and of bench/results/other-runs.json.
const REGISTERS_BEFORE: [(usize, f64); 2] = [(32, 1.44), (128, 2.82)];
/// The number of clients at which no write may be refused.
const NONE_REFUSED: usize = 128;
/// The default bound of the near cache, in MiB.
const NEAR_MIB: f64 = 64.0;

/// All goals of a run.
pub fn goals(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    for clients in results.crowds() {
        goals.extend(throughput(results, clients));
        goals.extend(latency(results, clients));
    }
    goals.extend(replaces(results));
    goals.extend(memory_and_start(results));
    goals.extend(selects(results));
    goals.extend(overload(results));
    goals
}

fn throughput(results: &Results, clients: usize) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut ratio = |workload: Workload, to: Kind, bound: f64, of: &str| {
        let Some((ours, other)) = pair(results, workload, to, clients) else { return };
        let what = format!("{} requests/s, {clients} clients", workload.name());
        goals.push(Goal::at_least(what, bound, of, ours.requests_per_second / other.requests_per_second));
    };
    for (workload, bound) in OF_THE_CEILING {
        ratio(workload, Kind::Ceiling, bound, "of the ceiling");
    }
    for (workload, bound) in TIMES_AXUM {
        ratio(workload, Kind::Axum, bound, "times axum");
    }
    for workload in [Workload::Hot, Workload::Warm] {
        let Some((ours, ceiling)) = pair(results, workload, Kind::Ceiling, clients) else { continue };
        let what = format!("{} CPU, {clients} clients", workload.name());
        goals.push(Goal::at_most(what, 1.3, "times the ceiling's", ours.service_us / ceiling.service_us));
    }
    goals.extend(against_pgbench(results, clients));
    goals
}

/// The figures of ours and of another target.
pub fn pair(results: &Results, workload: Workload, to: Kind, clients: usize) -> Option<(&Figures, &Figures)> {
    let row = |kind| Some(&results.row(workload, kind, clients)?.figures);
    Some((row(Kind::Ours)?, row(to)?))
}

/// Compares with pgbench's best rate over all numbers of connections.
fn against_pgbench(results: &Results, clients: usize) -> Option<Goal> {
    let ours = results.row(Workload::Register, Kind::Ours, clients)?.figures.requests_per_second;
    let inserts = results.stores_alone.iter().filter(|alone| alone.what == INSERT);
    let best = inserts.map(|alone| alone.per_second).reduce(f64::max)?;
    let what = format!("register requests/s, {clients} clients");
    Some(Goal::at_least(what, 2.0, "times pgbench's best", ours / best))
}

fn latency(results: &Results, clients: usize) -> Vec<Goal> {
    let goal = |workload: &Workload| {
        let (ours, axum) = pair(results, *workload, Kind::Axum, clients)?;
        let what = format!("{} p99, {clients} clients", workload.name());
        Some(Goal::at_most(what, 1.0, "times axum's", ours.p99_us / axum.p99_us))
    };
    Workload::ALL.iter().filter_map(goal).collect()
}

/// The goals for replaces, and that registers do not pay for them.
fn replaces(results: &Results) -> Vec<Goal> {
    let ours = |workload, clients| Some(&results.row(workload, Kind::Ours, clients)?.figures);
    let mut goals = Vec::new();
    if !results.has(Workload::Replace) {
        return goals;
    }
    if let (Some(replace), Some(register)) = (ours(Workload::Replace, 1), ours(Workload::Register, 1)) {
        let ratio = replace.p50_us / register.p50_us;
        goals.push(Goal::at_most("replace p50, 1 client", 2.5, "times a register's", ratio));
    }
    if let Some(one) = ours(Workload::ReplaceOne, 1) {
        goals.push(Goal::at_least("replace-one, 1 client", 200.0, "requests/s", one.requests_per_second));
    }
    for (workload, bounds, of) in [
        (Workload::Replace, REPLACES_TIMES_AXUM, "times axum"),
        (Workload::Register, REGISTERS_BEFORE, "times axum, as before"),
    ] {
        for (clients, bound) in bounds {
            let Some((ours, axum)) = pair(results, workload, Kind::Axum, clients) else { continue };
            let what = format!("{} requests/s, {clients} clients", workload.name());
            let ratio = ours.requests_per_second / axum.requests_per_second;
            goals.push(Goal::at_least(what, bound, of, ratio));
        }
    }
    for workload in [Workload::Replace, Workload::YcsbA, Workload::YcsbB] {
        let Some(ours) = ours(workload, NONE_REFUSED) else { continue };
        let what = format!("{} errors, 503 included, {NONE_REFUSED} clients", workload.name());
        goals.push(Goal::at_most(what, 0.0, "", ours.errors as f64));
    }
    goals
}

fn memory_and_start(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    for start in results.starts.iter().filter(|start| start.program.ends_with("-svc")) {
        goals.push(Goal::at_most(format!("{} idle", start.program), 20.0, "MiB", start.idle_mib));
        goals.push(Goal::at_most(format!("{} ready", start.program), 250.0, "ms after exec", start.ready_ms));
    }
    let ours = results.rows.iter().filter(|row: &&Row| row.target == Kind::Ours);
    let peak = ours.map(|row| row.figures.peak_mib).fold(0.0, f64::max);
    if peak > 0.0 {
        goals.push(Goal::at_most("memory under load, the worst row", 48.0 + NEAR_MIB, "MiB", peak));
    }
    goals
}

fn selects(results: &Results) -> Vec<Goal> {
    let misses =
        results.statements.iter().filter(|it| it.target == Kind::Ours && it.workload == Workload::Miss);
    let mut goals: Vec<Goal> = misses
        .filter(|it| it.clients >= 128)
        .map(|it| {
            let what = format!("statements per row loaded, {} clients", it.clients);
            Goal::at_most(what, 0.2, "", it.per_row())
        })
        .collect();
    let ours = results.herds.iter().filter(|herd: &&Herd| herd.target == Kind::Ours);
    goals.extend(ours.map(|herd| {
        let what = format!("SELECTs for a herd, {} replica(s)", herd.replicas);
        Goal::at_most(what, herd.replicas as f64, "", herd.most() as f64)
    }));
    goals
}

fn overload(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    for it in results.overloads.iter().filter(|it| it.target == Kind::Ours) {
        let same = |other: &&Overload| (other.workload, other.target) == (it.workload, it.target);
        let peak = results.overloads.iter().filter(same).map(|other| other.goodput).fold(0.0, f64::max);
        let queue = if it.queue == Queue::Short { ", short queue" } else { "" };
        let what = format!("{} with {} clients{queue}", it.workload.name(), it.clients);
        goals.push(Goal::at_least(format!("{what}: goodput"), 0.9, "of the peak", it.goodput / peak));
        if it.refused > 0.0 {
            goals.push(Goal::at_most(format!("{what}: p99 of 503"), 10.0, "ms", it.refused_p99_ms));
        }
    }
    goals
}
