//! How long a service takes to be ready, and how much memory it uses while idle.

use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::row::median;
use crate::stores::Stores;
use crate::targets::{Launch, axum, flask, ours};
use crate::usage;

/// Enough for a steady median; all programs together take about 45 s.
const STARTS: usize = 10;

/// A program's start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The program.
    pub program: String,
    /// Milliseconds from exec to the first 200 of `/readyz`, with PostgreSQL up: the median.
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
    let mut ready_ms = Vec::new();
    let mut idle_mib = Vec::new();
    for _ in 0..STARTS {
        let server = launch().start();
        sleep(Duration::from_secs(1));
        ready_ms.push(server.ready_after.as_secs_f64() * 1e3);
        idle_mib.push(usage::resident_mib(server.guard.pid()));
    }
    Start {
        program: program.to_owned(),
        ready_ms: median(ready_ms.into_iter()),
        idle_mib: median(idle_mib.into_iter()),
    }
}
