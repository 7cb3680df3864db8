//! How many statements the database sees. Counted in runs of their own, so that counting costs no row of the table.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::{Load, Numbers, Once, Part};
use crate::names::{Requests, Series};
use crate::stores::{INFO_BYTES, Stores};
use crate::targets::{Kind, Launch, Server, Target, axum, ours};
use crate::workload::Workload;

/// Clients that ask for one name at once.
const HERD: u32 = 500;
/// How many herds, each after another name.
const HERDS: u32 = 5;

/// What loading rows cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Statements {
    /// What was asked for.
    pub workload: Workload,
    /// Who answered.
    pub target: Kind,
    /// Clients at once.
    pub clients: usize,
    /// Statements on users.
    pub statements: u64,
    /// Rows that they returned or wrote.
    pub rows: u64,
}

impl Statements {
    /// Statements for each row.
    pub fn per_row(&self) -> f64 {
        self.statements as f64 / self.rows.max(1) as f64
    }
}

/// Counts what the miss and register workloads cost ours and the axum peer.
pub fn statements(stores: &Stores, users: u32, clients: usize) -> Vec<Statements> {
    let mut counts = Vec::new();
    for (workload, verb) in [(Workload::Miss, "select"), (Workload::Register, "insert")] {
        for kind in [Kind::Ours, Kind::Axum] {
            stores.count(kind.name());
            let target = Target::start(kind, stores, INFO_BYTES);
            workload.load(&target, users, clients).start().stop_after(Duration::from_millis(1500));
            let (statements, rows) = stores.counted(kind.name(), verb);
            stores.do_not_count(kind.name());
            counts.push(Statements { workload, target: kind, clients, statements, rows });
        }
    }
    counts
}

/// What a herd came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Herd {
    /// Who answered.
    pub target: Kind,
    /// How many processes.
    pub replicas: usize,
    /// SELECTs that the database saw for each name.
    pub selects: Vec<u64>,
}

impl Herd {
    /// The most that it saw for one name.
    pub fn most(&self) -> u64 {
        self.selects.iter().copied().max().unwrap_or_default()
    }
}

/// Sends herds of clients after cold names.
pub fn herds(stores: &Stores) -> Vec<Herd> {
    let mut herds = Vec::new();
    for target in [Kind::Ours, Kind::Axum] {
        for replicas in [1, 2] {
            herds.push(Herd { target, replicas, selects: herd(stores, target, replicas) });
        }
    }
    herds
}

fn herd(stores: &Stores, kind: Kind, replicas: usize) -> Vec<u64> {
    stores.count(kind.name());
    stores.settle();
    let launch = || if kind == Kind::Ours { ours("data-svc", stores) } else { axum(stores) };
    let servers: Vec<Server> = (0..replicas).map(|_| Launch::start(launch())).collect();
    let get = |to: SocketAddr| Requests::get(to, Series::Seeded, INFO_BYTES);
    for (server, first) in servers.iter().zip([1_000, 2_000]) {
        // Connections to the stores are there when the herd comes.
        Load::once(get(server.address), Once::ordered(first, 1_000), 64);
    }
    let selects = (0..HERDS).map(|name| {
        let before = stores.counted(kind.name(), "select").0;
        let numbers = Numbers::Once(Once::same(name, HERD));
        let share = 1.0 / replicas as f64;
        let part = |server: &Server| Part { requests: get(server.address), numbers: numbers.clone(), share };
        let load = Load { parts: servers.iter().map(part).collect(), clients: HERD as usize };
        let running = load.start();
        running.measure();
        let tally = running.stop_after(Duration::from_secs(20));
        assert_eq!((tally.errors, tally.wrong), (0, 0), "a herd gets wrong answers");
        stores.counted(kind.name(), "select").0 - before
    });
    let selects = selects.collect();
    stores.do_not_count(kind.name());
    selects
}
