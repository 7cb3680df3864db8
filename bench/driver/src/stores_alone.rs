//! What the stores do at best, measured by their own tools without a service in between.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::info;
use crate::row::{Plan, median};
use crate::stores::{INFO_BYTES, Stores};

/// The connections to PostgreSQL of one of our services, by default.
const POOL: usize = 10;

/// One figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreAlone {
    /// The tool and its operation.
    pub what: String,
    /// How many connections the tool opened.
    pub connections: usize,
    /// Operations a second.
    pub per_second: f64,
}

/// An INSERT of one row, as a service without batches would send it.
pub const INSERT: &str = "pgbench, INSERT of one row";
const SELECT: &str = "pgbench, SELECT of one row by name";

/// Runs the tools over the plan's rounds, with as many connections as a service has and as the plan has clients.
pub fn measure(stores: &Stores, plan: &Plan) -> Vec<StoreAlone> {
    let mut figures = Vec::new();
    for connections in [POOL, plan.clients] {
        for (what, script) in [(INSERT, insert()), (SELECT, select(plan.users))] {
            let per_second = over_rounds(plan, || pgbench(stores, &script, connections, plan.time));
            figures.push(StoreAlone { what: what.into(), connections, per_second });
        }
    }
    let per_second = over_rounds(plan, || redis_benchmark(stores, plan.clients));
    figures.push(StoreAlone { what: "redis-benchmark, GET".into(), connections: plan.clients, per_second });
    figures
}

fn over_rounds(plan: &Plan, once: impl Fn() -> f64) -> f64 {
    median((0..plan.rounds).map(|_| once()))
}

/// Inserts names made of the client's number and a random one, so that no two runs insert the same name.
fn insert() -> String {
    let rest = info("", INFO_BYTES - 10);
    format!(
        "\\set number random(1, 9000000000000000)\n\
         INSERT INTO users (name, info) VALUES ('p' || :client_id || '-' || :number, '{rest}');\n"
    )
}

fn select(users: u32) -> String {
    format!(
        "\\set number random(0, {})\n\
         SELECT name, info FROM users WHERE name = 'n' || lpad((:number)::text, 9, '0');\n",
        users - 1
    )
}

fn pgbench(stores: &Stores, script: &str, connections: usize, time: Duration) -> f64 {
    stores.database("pgbench");
    stores.settle();
    // pgbench connects within its time; many connections take a while.
    let seconds = time.as_secs() + 2;
    let file = std::env::temp_dir().join(format!("bench-{}.sql", std::process::id()));
    fs::write(&file, script).expect("the folder for temporary files can be written to");
    let mut command = Command::new(stores.programs().join("pgbench"));
    command.args(["-n", "-M", "prepared", "-h", "127.0.0.1", "-U", "postgres", "-j", "1"]);
    command.args(["-p", &stores.postgres_port().to_string(), "-c", &connections.to_string()]);
    command.args(["-T", &seconds.to_string(), "-f"]).arg(&file).arg("pgbench");
    let text = output(&mut command);
    // A leftover file in the temporary folder does no harm.
    let _ = fs::remove_file(&file);
    number_after(&text, "tps = ")
}

fn redis_benchmark(stores: &Stores, connections: usize) -> f64 {
    let mut command = Command::new("redis-benchmark");
    command.args(["-h", "127.0.0.1", "-p", &stores.redis_port().to_string(), "-c", &connections.to_string()]);
    command.args(["-n", "200000", "-d", &INFO_BYTES.to_string(), "-t", "set,get", "--csv"]);
    // "GET","71428.57","0.351",...
    number_after(&output(&mut command), "\"GET\",\"")
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn number_after(text: &str, before: &str) -> f64 {
    let rest = text.split_once(before).map_or("", |(_, rest)| rest);
    let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|_| panic!("no number after {before:?} in\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_in_the_output_of_a_tool() {
        assert_eq!(number_after("x\ntps = 1234.5 (without)", "tps = "), 1234.5);
    }
}
