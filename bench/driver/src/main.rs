//! The benchmark's driver. It starts stores, services and peers by itself, on free ports, and stops them.
//!
//! A **target** is a running program that answers ([`targets`]). A **workload** is what clients request of it
//! ([`workload`]); the load generator sends it ([`load`]). A workload on a target is a **row** ([`row`]). The extras
//! are all other measures, a module each. [`mod@results`] holds everything that a run measured, [`goals`] judges it,
//! [`report`], [`chart`] and [`mod@docs`] show it.

mod answer;
mod arrival;
mod chart;
mod comparison;
mod docs;
mod fanout;
mod goals;
mod growth;
mod instructions;
mod ledger;
mod load;
mod machine;
mod names;
mod numbers;
mod overload;
mod queries;
mod ratios;
mod report;
mod results;
mod row;
mod start;
mod stores;
mod stores_alone;
mod table;
mod tails;
mod tally;
mod targets;
mod usage;
mod workload;
mod wrk;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::arrival::Arrival;
use crate::instructions::Instructions;
use crate::machine::Machine;
use crate::results::Results;
use crate::row::{Plan, Row};
use crate::stores::Stores;
use crate::targets::Kind;
use crate::usage::Ticks;
use crate::workload::Workload;

/// Enough that a miss is read from an index of some depth, and that no row uses them up.
const USERS: u32 = 1_000_000;
/// In growth, one size below and one above [`USERS`], both by orders of magnitude.
const TABLE_SIZES: [u32; 3] = [10_000, USERS, 10_000_000];
const TARGETS: [Kind; 5] = [Kind::Ours, Kind::Axum, Kind::Flask, Kind::Ceiling, Kind::Bare];

#[derive(Debug, Parser)]
#[command(about = "Measures the services against their peers and the ceiling")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the main rows at 64 clients, and the extras
    Main(Length),
    /// Measure everything, at 32 and 128 clients, and writes at one; write bench/results/full.md and docs/benchmarks.md
    Full(Length),
    /// Write bench/results/full.md and docs/benchmarks.md from the last full run
    Report,
    /// Measure some rows, and show the ratios of ours to the other targets, and the goals that they decide
    Rows(Rows),
    /// Compare the p99 of ours with the axum peer's in each round, and show the generator's part in both
    Tails(Tails),
    /// Measure the extras: the stores alone, statements, herds, starts, overload, instructions
    Extras(Length),
    /// Measure ten times the clients
    Overload(Length),
    /// Measure what near caches cost Redis, up to 400 of them (Redis 7.0 or newer)
    Fanout(Length),
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
    /// How many seconds answers count, in each round
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How many rounds, in each of which all targets take turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

impl Length {
    fn plan(self, clients: usize) -> Plan {
        Plan {
            clients,
            time: Duration::from_secs_f64(self.seconds),
            rounds: self.rounds,
            users: USERS,
            arrival: Arrival::Ignored,
        }
    }
}

#[derive(Debug, Args)]
struct Rows {
    /// Workloads, such as hot,miss
    #[arg(value_delimiter = ',', required = true)]
    workloads: Vec<Workload>,
    /// Targets, such as ours,axum; before is another build of ours, in the folder that BENCH_BEFORE names
    #[arg(long, value_delimiter = ',', default_value = "ours,axum,ceiling")]
    targets: Vec<Kind>,
    /// Clients at once, such as 1,32,128
    #[arg(long, value_delimiter = ',', default_value = "64")]
    clients: Vec<usize>,
    #[command(flatten)]
    length: Length,
}

#[derive(Debug, Args)]
struct Tails {
    /// Workloads, such as zipf,miss
    #[arg(value_delimiter = ',', required = true)]
    workloads: Vec<Workload>,
    /// Clients at once
    #[arg(long, default_value_t = 128)]
    clients: usize,
    #[command(flatten)]
    length: Length,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Main(length) => return judge(&everything("main", &[64], length)),
        Command::Full(length) => {
            let results = everything("full", &[32, 128], length);
            docs::write(&results);
            return judge(&results);
        }
        Command::Report => docs::write(&Results::load("full")),
        Command::Rows(rows) => try_out(&rows),
        Command::Tails(Tails { workloads, clients, length }) => {
            tails::measure(&Stores::start(USERS), &workloads, &length.plan(clients));
        }
        Command::Extras(length) => {
            let results = results(&Stores::start(USERS), Ticks::now(), &length.plan(64), Vec::new(), &[64]);
            println!("{}", report::extras(&results));
        }
        Command::Overload(length) => {
            let overloads = overload::overloads(&Stores::start(USERS), &length.plan(128));
            println!("{}", report::overloads(&overloads));
        }
        Command::Fanout(length) => fanout::measure(&length.plan(0)),
        Command::Instructions { expect } => {
            let counted = count_instructions();
            if !expect {
                return exit_code(&counted.excess(&Instructions::expected()));
            }
            counted.expect();
        }
        Command::Generator(length) => wrk::compare(&Stores::start(1), &length.plan(64)),
    }
    ExitCode::SUCCESS
}

/// A whole run. A full one, with several numbers of clients, measures growth as well.
fn everything(name: &str, clients: &[usize], length: Length) -> Results {
    let stores = Stores::start(USERS);
    let start = Ticks::now();
    println!("{}", table::HEAD);
    let mut rows = Vec::new();
    for &clients in clients {
        rows.extend(table(&stores, &Workload::ALL, &TARGETS, &length.plan(clients)));
    }
    if clients.len() > 1 {
        rows.extend(table(&stores, &Workload::ALONE, &TARGETS, &length.plan(1)));
    }
    let most = clients.last().copied().unwrap_or_default();
    let mut results = results(&stores, start, &length.plan(most), rows, clients);
    if clients.len() > 1 {
        let plan = length.plan(64);
        results.growth = growth::growth(&stores, &plan);
        // The series of table sizes starts stores of its own.
        drop(stores);
        for users in TABLE_SIZES {
            results.growth.extend(growth::rows(users, &plan));
        }
    }
    println!("\n{}\n{}", report::extras(&results), report::verdicts(&results));
    println!("Written to {}", results.save(name).display());
    results
}

/// Measures workloads on targets, and prints each row as soon as it is measured.
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

/// `rows`, with all extras measured.
fn results(stores: &Stores, start: Ticks, plan: &Plan, rows: Vec<Row>, clients: &[usize]) -> Results {
    Results {
        machine: Machine::here(stores, start),
        seconds: plan.time.as_secs_f64(),
        rounds: plan.rounds,
        users: plan.users,
        rows,
        stores_alone: stores_alone::measure(stores, plan),
        statements: clients.iter().flat_map(|&it| queries::statements(stores, plan.users, it)).collect(),
        herds: queries::herds(stores),
        starts: start::starts(stores),
        overloads: overload::overloads(stores, plan),
        instructions: Instructions::count(stores),
        growth: Vec::new(),
    }
}

/// Fails if answers were wrong or a request takes more instructions than expected. A goal that is not met is no
/// failure: machines differ.
fn judge(results: &Results) -> ExitCode {
    let mut failures = results.instructions.excess(&Instructions::expected());
    failures.extend(report::failures(results).iter().map(|row| format!("errors: {}", table::line(row))));
    exit_code(&failures)
}

fn count_instructions() -> Instructions {
    let counted = Instructions::count(&Stores::start(10_000));
    let Instructions { hit, hit_with_token, miss, register } = counted;
    println!(
        "a hit: {hit:.0}, with a token: {hit_with_token:.0}, a miss: {miss:.0}, a register: {register:.0}"
    );
    counted
}

fn exit_code(failures: &[String]) -> ExitCode {
    for failure in failures {
        eprintln!("{failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn try_out(rows: &Rows) {
    println!("{}", table::HEAD);
    let stores = Stores::start(USERS);
    let measure =
        |&clients: &usize| table(&stores, &rows.workloads, &rows.targets, &rows.length.plan(clients));
    let rows: Vec<Row> = rows.clients.iter().flat_map(measure).collect();
    println!("\n{}", ratios::table(&rows));
    println!("{}", report::verdicts(&Results { rows, ..Results::default() }));
}
