//! The benchmark's driver. It starts everything itself, on servers of its own, and stops it again.

mod answer;
mod load;
mod names;
mod row;
mod stores;
mod table;
mod targets;
mod usage;
mod workload;

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::row::{Plan, measure};
use crate::stores::Stores;
use crate::targets::Kind;
use crate::workload::Workload;

#[derive(Debug, Parser)]
#[command(about = "Measures the services against their peers and the ceiling")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Some rows, to try something out; nothing is written.
    Rows(Rows),
}

#[derive(Debug, Args)]
struct Rows {
    /// Workloads, such as hot,miss
    #[arg(value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// Who answers
    #[arg(long, value_delimiter = ',', default_value = "ours,axum,ceiling")]
    targets: Vec<Kind>,
    #[arg(long, default_value_t = 64)]
    clients: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Seeded users
    #[arg(long, default_value_t = 1_000_000)]
    users: u32,
}

fn main() {
    match Arguments::parse().command {
        Command::Rows(rows) => try_out(&rows),
    }
}

fn try_out(rows: &Rows) {
    let stores = Stores::start(rows.users);
    let plan = Plan {
        clients: rows.clients,
        time: Duration::from_secs_f64(rows.seconds),
        rounds: rows.rounds,
        users: rows.users,
    };
    println!("{}", table::HEAD);
    for &workload in &rows.workloads {
        for row in measure(&stores, workload, &workload.targets(&rows.targets), &plan) {
            println!("{}", table::line(&row));
        }
    }
}
