//! How long a service takes to be ready, and what it holds when it has nothing to do.

use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::row::median;
use crate::stores::Stores;
use crate::targets::{Launch, axum, flask, ours};
use crate::usage;

const STARTS: usize = 10;

/// A program's start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The program.
    pub program: String,
    /// Milliseconds from exec to the first 200 of `/readyz`, with Postgres up: the median.
    pub ready_ms: f64,
    /// Memory a second after that, in MiB: the median.
    pub idle_mib: f64,
}

/// Starts each program several times.
pub fn starts(stores: &Stores) -> Vec<Start> {
    vec![
        start("user-svc", || ours("user-svc", stores)),
        start("data-svc", || ours("data-svc", stores)),
        start("axum", || axum(stores)),
        start("flask", || flask(stores)),
    ]
}

fn start(program: &str, launch: impl Fn() -> Launch) -> Start {
    let runs: Vec<(f64, f64)> = (0..STARTS)
        .map(|_| {
            let server = launch().start();
            sleep(Duration::from_secs(1));
            (server.ready_after.as_secs_f64() * 1e3, usage::resident_mib(server.guard.pid()))
        })
        .collect();
    let ready_ms = median(runs.iter().map(|run| run.0));
    Start { program: program.to_owned(), ready_ms, idle_mib: median(runs.iter().map(|run| run.1)) }
}
