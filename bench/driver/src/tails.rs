//! The slowest answers of ours beside those of another target, round by round, with the generator's part in them, and
//! with the times in which programs were ready to run and had no processor.
//!
//! The generator runs on the processors of the services. A target with more threads leaves it less time, and one that
//! answers many requests at once makes it a queue: both lengthen the latencies that it sees.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use crate::arrival::Arrival;
use crate::ratios::ratio;
use crate::row::{Plan, median, once};
use crate::stores::Stores;
use crate::targets::Kind;
use crate::workload::Workload;

/// One round of one target, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Tail {
    /// The latency that one answer in a hundred exceeds.
    p99: f64,
    /// The same until the answer arrived at the generator's socket.
    arrived_p99: f64,
    /// How long one answer in a hundred at least then waited for the generator.
    unread_p99: f64,
    /// How long the generator was ready to run and had no processor, for each answer.
    generator_waits: f64,
    /// The same of the target.
    service_waits: f64,
    /// The same of the stores.
    stores_waits: f64,
}

/// Measures workloads on ours and on the axum peer, in turn, and prints a table.
pub fn measure(stores: &Stores, workloads: &[Workload], plan: &Plan) {
    let plan = Plan { arrival: Arrival::Stamped, ..*plan };
    println!(
        "| workload | clients | rounds | | ours | axum | ours / axum (least to most) |\n|---|--:|--:|---|--:|--:|--:|"
    );
    for &workload in workloads {
        let mut ours = Vec::new();
        let mut axum = Vec::new();
        for _ in 0..plan.rounds {
            ours.push(tail(stores, workload, Kind::Ours, &plan));
            axum.push(tail(stores, workload, Kind::Axum, &plan));
        }
        println!("{}", lines(workload, &plan, &ours, &axum).trim_end());
    }
}

fn tail(stores: &Stores, workload: Workload, kind: Kind, plan: &Plan) -> Tail {
    let (figures, tally) = once(stores, workload, kind, plan);
    let p99 = |of: &Histogram<u32>| of.value_at_quantile(0.99) as f64;
    Tail {
        p99: p99(&tally.right),
        arrived_p99: p99(&tally.arrived),
        unread_p99: p99(&tally.unread),
        generator_waits: figures.generator_wait_us,
        service_waits: figures.service_wait_us,
        stores_waits: figures.stores_wait_us,
    }
}

/// One of a tail's figures.
type Figure = fn(&Tail) -> f64;

fn lines(workload: Workload, plan: &Plan, ours: &[Tail], axum: &[Tail]) -> String {
    let quantities: [(&str, Figure); 6] = [
        ("p99 ms", |it| it.p99 / 1e3),
        ("p99 ms until arrival", |it| it.arrived_p99 / 1e3),
        ("p99 ms from arrival until read", |it| it.unread_p99 / 1e3),
        ("generator's wait for a processor, µs an answer", |it| it.generator_waits),
        ("services' wait for a processor, µs an answer", |it| it.service_waits),
        ("stores' wait for a processor, µs an answer", |it| it.stores_waits),
    ];
    let mut text = String::new();
    for (what, of) in quantities {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {what} | {:.2} | {:.2} | {} |",
            workload.name(),
            plan.clients,
            plan.rounds,
            median(ours.iter().map(of)),
            median(axum.iter().map(of)),
            ratio(ours, axum, of),
        );
    }
    text
}
