//! How the cost of a request grows with the number of users, the size of an info, and the number of clients.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::Load;
use crate::names::{Requests, Series};
use crate::numbers::{Numbers, Once};
use crate::row::{Figures, Plan, measure, run};
use crate::stores::{BIG_INFO_BYTES, INFO_BYTES, KIB, Stores};
use crate::targets::{Kind, Target};
use crate::workload::Workload;

/// One figure of a series.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Growth {
    /// The quantity that grows.
    pub axis: Axis,
    /// Its value.
    pub value: u64,
    /// The requests.
    pub workload: Workload,
    /// The program that answered them.
    pub target: Kind,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// The quantity that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Users in the table.
    Rows,
    /// Bytes of an info.
    Info,
    /// Clients at once.
    Clients,
}

const RIVALS: [Kind; 2] = [Kind::Ours, Kind::Axum];

/// The series of clients and infos. Those of table sizes need stores of their own: see [`rows`].
pub fn growth(stores: &Stores, plan: &Plan) -> Vec<Growth> {
    let mut growth = clients(stores, plan);
    growth.extend(infos(stores, plan));
    growth
}

fn clients(stores: &Stores, plan: &Plan) -> Vec<Growth> {
    let mut growth = Vec::new();
    for workload in [Workload::Hot, Workload::Miss, Workload::Register] {
        for clients in [8, 32, 128, 512] {
            for row in measure(stores, workload, &RIVALS, &Plan { clients, ..*plan }) {
                growth.push(Growth {
                    axis: Axis::Clients,
                    value: clients as u64,
                    workload,
                    target: row.target,
                    figures: row.figures,
                });
            }
        }
    }
    growth
}

/// Hits of one name, with an info of each size.
fn infos(stores: &Stores, plan: &Plan) -> Vec<Growth> {
    let sizes = [(INFO_BYTES, Series::Seeded, 0), (KIB, Series::Big, 1), (BIG_INFO_BYTES, Series::Big, 0)];
    let mut growth = Vec::new();
    for (bytes, series, number) in sizes {
        for target in [Kind::Ours, Kind::Axum, Kind::Ceiling] {
            let figures = rounds(plan, || {
                let running = Target::start(target, stores, bytes);
                let requests = Requests::get(running.data, series, bytes);
                let requests = if target == Kind::Ceiling { requests.unchecked() } else { requests };
                let load = Load::of(requests, Numbers::One(number), plan.clients);
                run(stores, &running, &load, Workload::Hot.warm_up(), plan.time).0
            });
            growth.push(Growth {
                axis: Axis::Info,
                value: bytes as u64,
                workload: Workload::Hot,
                target,
                figures,
            });
        }
    }
    growth
}

/// Misses and warm hits on a table of this size, in stores that are started for it.
pub fn rows(users: u32, plan: &Plan) -> Vec<Growth> {
    let stores = Stores::start(users);
    let mut growth = Vec::new();
    for target in RIVALS {
        // No warm-up: it would read all of a small table.
        let miss = rounds(plan, || {
            let running = Target::start(target, &stores, INFO_BYTES);
            let requests = Requests::get(running.data, Series::Seeded, INFO_BYTES);
            let load = Load::of(requests, Numbers::Once(Once::new(0, users)), plan.clients);
            run(&stores, &running, &load, Duration::ZERO, plan.time).0
        });
        let plan = Plan { users, ..*plan };
        let warm = measure(&stores, Workload::Warm, &[target], &plan).remove(0).figures;
        for (workload, figures) in [(Workload::Miss, miss), (Workload::Warm, warm)] {
            growth.push(Growth { axis: Axis::Rows, value: users.into(), workload, target, figures });
        }
    }
    growth
}

fn rounds(plan: &Plan, once: impl Fn() -> Figures) -> Figures {
    let figures: Vec<Figures> = (0..plan.rounds).map(|_| once()).collect();
    Figures::median(&figures)
}
