//! The benchmark's driver. It starts everything itself, on servers of its own, and stops it again.
//!
//! A **target** is a running program that answers ([`targets`]); a **workload** is what is asked of it
//! ([`workload`]), by the load generator ([`load`]); together they make a **row** ([`row`]). Beside the rows stand
//! other measures, a module each. [`mod@results`] holds them all, [`goals`] judges them, [`report`] and [`chart`] show
//! them.

mod answer;
mod ceilings;
mod chart;
mod goals;
mod growth;
mod instructions;
mod load;
mod machine;
mod names;
mod overload;
mod report;
mod results;
mod row;
mod selects;
mod start;
mod stores;
mod table;
mod targets;
mod usage;
mod workload;
mod wrk;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::instructions::Instructions;
use crate::machine::Machine;
use crate::results::Results;
use crate::row::{Plan, Row};
use crate::stores::Stores;
use crate::targets::Kind;
use crate::usage::Ticks;
use crate::workload::Workload;

const USERS: u32 = 1_000_000;
const TARGETS: [Kind; 5] = [Kind::Ours, Kind::Axum, Kind::Flask, Kind::Ceiling, Kind::Bare];

#[derive(Debug, Parser)]
#[command(about = "Measures the services against their peers and the ceiling")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main rows at 64 clients, and what stands beside them
    Main(Length),
    /// Everything, at 32 and 128 clients; writes docs/benchmarks.md
    Full(Length),
    /// Write docs/benchmarks.md from the last full run
    Report,
    /// Some rows, to try something out
    Rows(Rows),
    /// What stands beside the rows
    Beside(Length),
    /// Ten times the clients
    Overload(Length),
    /// Count instructions and compare them with bench/instructions.json
    Instructions {
        /// Write that file instead
        #[arg(long)]
        expect: bool,
    },
    /// Compare the load generator with wrk
    Generator(Length),
}

#[derive(Clone, Copy, Debug, Args)]
struct Length {
    /// How long answers count, in each round
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often, each target in turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

impl Length {
    fn plan(self, clients: usize) -> Plan {
        Plan { clients, time: Duration::from_secs_f64(self.seconds), rounds: self.rounds, users: USERS }
    }
}

#[derive(Debug, Args)]
struct Rows {
    /// Workloads, such as hot,miss
    #[arg(value_delimiter = ',', required = true)]
    workloads: Vec<Workload>,
    /// Who answers
    #[arg(long, value_delimiter = ',', default_value = "ours,axum,ceiling")]
    targets: Vec<Kind>,
    /// Clients at once
    #[arg(long, default_value_t = 64)]
    clients: usize,
    #[command(flatten)]
    length: Length,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Main(length) => return judge(&everything("main", &[64], length)),
        Command::Full(length) => {
            let results = everything("full", &[32, 128], length);
            report::write_docs(&results);
            return judge(&results);
        }
        Command::Report => report::write_docs(&Results::load("full")),
        Command::Rows(rows) => try_out(&rows),
        Command::Beside(length) => {
            let results = results(&Stores::start(USERS), Ticks::now(), &length.plan(64), Vec::new(), &[64]);
            println!("{}", report::beside(&results));
        }
        Command::Overload(length) => {
            let overloads = overload::overloads(&Stores::start(USERS), &length.plan(128));
            println!("{}", report::overloads(&overloads));
        }
        Command::Instructions { expect } => return count_instructions(expect),
        Command::Generator(length) => wrk::compare(&Stores::start(1), &length.plan(64)),
    }
    ExitCode::SUCCESS
}

/// A whole run. A full one, with several numbers of clients, has the growth tables as well.
fn everything(name: &str, clients: &[usize], length: Length) -> Results {
    let stores = Stores::start(USERS);
    let start = Ticks::now();
    println!("{}", table::HEAD);
    let table = |&clients: &usize| table(&stores, &Workload::ALL, &TARGETS, &length.plan(clients));
    let rows = clients.iter().flat_map(table).collect();
    let most = clients.last().copied().unwrap_or_default();
    let mut results = results(&stores, start, &length.plan(most), rows, clients);
    if clients.len() > 1 {
        let plan = length.plan(64);
        results.growth = growth::growth(&stores, &plan);
        drop(stores);
        results
            .growth
            .extend([10_000, 1_000_000, 10_000_000].iter().flat_map(|&users| growth::rows(users, &plan)));
    }
    println!("\n{}\n{}", report::beside(&results), report::verdicts(&results));
    println!("Written to {}", results.save(name).display());
    results
}

/// Measures workloads on targets, and prints each row as it comes.
fn table(stores: &Stores, workloads: &[Workload], targets: &[Kind], plan: &Plan) -> Vec<Row> {
    let mut rows = Vec::new();
    for workload in workloads {
        for row in row::measure(stores, *workload, &workload.targets(targets), plan) {
            println!("{}", table::line(&row));
            rows.push(row);
        }
    }
    rows
}

/// Rows, and all that stands beside them.
fn results(stores: &Stores, start: Ticks, plan: &Plan, rows: Vec<Row>, clients: &[usize]) -> Results {
    Results {
        machine: Machine::here(stores, start),
        seconds: plan.time.as_secs_f64(),
        rounds: plan.rounds,
        users: plan.users,
        rows,
        ceilings: ceilings::measure(stores, plan),
        statements: clients.iter().flat_map(|&it| selects::statements(stores, plan.users, it)).collect(),
        herds: selects::herds(stores),
        starts: start::starts(stores),
        overloads: overload::overloads(stores, plan),
        instructions: Instructions::count(stores),
        growth: Vec::new(),
    }
}

/// Fails if answers were wrong or a request takes more instructions than it did. That a goal is not met is no
/// failure: machines differ.
fn judge(results: &Results) -> ExitCode {
    let mut failures = results.instructions.excess(&Instructions::expected());
    failures.extend(report::failures(results).iter().map(|row| format!("errors: {}", table::line(row))));
    failures.iter().for_each(|failure| eprintln!("{failure}"));
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn count_instructions(expect: bool) -> ExitCode {
    let counted = Instructions::count(&Stores::start(10_000));
    println!("a hit: {:.0}, a miss: {:.0}, a register: {:.0}", counted.hit, counted.miss, counted.register);
    if expect {
        counted.expect();
        return ExitCode::SUCCESS;
    }
    let excess = counted.excess(&Instructions::expected());
    excess.iter().for_each(|line| eprintln!("{line}"));
    if excess.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn try_out(rows: &Rows) {
    println!("{}", table::HEAD);
    table(&Stores::start(USERS), &rows.workloads, &rows.targets, &rows.length.plan(rows.clients));
}
