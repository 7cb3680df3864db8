//! How the load generator compares with wrk on the fastest target: the ceiling's one prepared answer.

use std::process::Command;
use std::time::Duration;

use crate::load::Load;
use crate::names::{Requests, Series};
use crate::numbers::Numbers;
use crate::row::{Plan, median, run};
use crate::stores::{INFO_BYTES, Stores};
use crate::table::thousands;
use crate::targets::{Kind, Target};

/// Measures both in turn, and prints the medians.
pub fn compare(stores: &Stores, plan: &Plan) {
    let target = Target::start(Kind::Ceiling, stores, INFO_BYTES);
    let requests = Requests::get(target.data, Series::Seeded, INFO_BYTES).unchecked();
    let load = Load::of(requests, Numbers::One(0), plan.clients);
    let url = format!("http://{}/user/{}", target.data, Series::Seeded.name(0));
    let rounds: Vec<[f64; 3]> = (0..plan.rounds)
        .map(|_| {
            let ours = run(stores, &target, &load, Duration::ZERO, plan.time).0.requests_per_second;
            [ours, wrk(&url, plan, 1), wrk(&url, plan, 2)]
        })
        .collect();
    for (index, name) in ["bench", "wrk, 1 thread", "wrk, 2 threads"].iter().enumerate() {
        println!("{name}: {} requests/s", thousands(median(rounds.iter().map(|round| round[index]))));
    }
}

fn wrk(url: &str, plan: &Plan, threads: usize) -> f64 {
    let mut command = Command::new("wrk");
    let seconds = plan.time.as_secs().max(1);
    command.args([format!("-t{threads}"), format!("-c{}", plan.clients), format!("-d{seconds}")]).arg(url);
    let output = command.output().expect("wrk is installed (Debian: wrk)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let figure = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    figure
        .and_then(|figure| figure.trim().parse().ok())
        .unwrap_or_else(|| panic!("no Requests/sec in the output of wrk:\n{text}"))
}
