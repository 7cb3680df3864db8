//! How many statements PostgreSQL executes for a load. They are counted in runs of their own, so that counting slows
//! no row of the table.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arrival::Arrival;
use crate::load::{Load, Part};
use crate::names::{Requests, Series};
use crate::numbers::{Numbers, Once};
use crate::stores::{INFO_BYTES, Stores};
use crate::targets::{Kind, Server, Target, axum, ours};
use crate::workload::Workload;

/// Clients that request one name at once.
pub const HERD: u32 = 500;
/// How many herds, each for another name: a single one may be lucky.
pub const HERDS: u32 = 5;

/// The statements behind a load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Statements {
    /// The requests.
    pub workload: Workload,
    /// The program that answered them.
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

/// Counts the statements of the miss and register workloads, for ours and the axum peer.
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

/// The SELECTs behind herds: clients that all request the same cold name at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Herd {
    /// The program that answered.
    pub target: Kind,
    /// How many processes of it.
    pub replicas: usize,
    /// The number of SELECTs for each name.
    pub selects: Vec<u64>,
}

impl Herd {
    /// The largest number for one name.
    pub fn most(&self) -> u64 {
        self.selects.iter().copied().max().unwrap_or_default()
    }
}

/// Sends herds to ours and to the axum peer, to one replica and to two.
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
    let servers: Vec<Server> = (0..replicas).map(|_| launch().start()).collect();
    let get = |to: SocketAddr| Requests::get(to, Series::Seeded, INFO_BYTES);
    for (server, first) in servers.iter().zip([1_000, 2_000]) {
        // Opens the connections to the stores before the herd arrives.
        Load::once(get(server.address), Once::ordered(first, 1_000), 64);
    }
    let mut selects = Vec::new();
    for name in 0..HERDS {
        let before = stores.counted(kind.name(), "select").0;
        let numbers = Numbers::Once(Once::same(name, HERD));
        let share = 1.0 / replicas as f64;
        let part = |server: &Server| Part { requests: get(server.address), numbers: numbers.clone(), share };
        let load = Load {
            parts: servers.iter().map(part).collect(),
            clients: HERD as usize,
            arrival: Arrival::Ignored,
        };
        let running = load.start();
        running.measure();
        let tally = running.stop_after(Duration::from_secs(20));
        assert_eq!((tally.errors, tally.wrong), (0, 0), "a herd gets wrong answers");
        selects.push(stores.counted(kind.name(), "select").0 - before);
    }
    stores.do_not_count(kind.name());
    selects
}
