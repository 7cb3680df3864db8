//! What the stores can do at best, by their own tools: no service in between.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::info;
use crate::row::{Plan, median};
use crate::stores::{INFO_BYTES, Stores};

/// Connections of one of our services to Postgres, as they come.
pub const POOL: usize = 10;

/// One figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ceiling {
    /// The tool and what it did.
    pub what: String,
    /// How many connections it had.
    pub connections: usize,
    /// How often it did that in a second.
    pub per_second: f64,
}

/// What pgbench calls a statement of one row, of the kinds that the services run.
pub const INSERT: &str = "pgbench, INSERT of one row";
const SELECT: &str = "pgbench, SELECT of one row by name";

/// Runs the tools with as many connections as a service has, and as the plan has clients, each over the plan's rounds.
pub fn measure(stores: &Stores, plan: &Plan) -> Vec<Ceiling> {
    let mut ceilings = Vec::new();
    for connections in [POOL, plan.clients] {
        for (what, script) in [(INSERT, insert()), (SELECT, select(plan.users))] {
            let runs = (0..plan.rounds).map(|_| pgbench(stores, &script, connections, plan.time));
            let runs: Vec<f64> = runs.collect();
            ceilings.push(Ceiling { what: what.into(), connections, per_second: median(runs.into_iter()) });
        }
    }
    let runs: Vec<f64> = (0..plan.rounds).map(|_| redis_benchmark(stores, plan.clients)).collect();
    let per_second = median(runs.into_iter());
    ceilings.push(Ceiling { what: "redis-benchmark, GET".into(), connections: plan.clients, per_second });
    ceilings
}

/// A name made of the client's number and a random one, so that runs do not meet.
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
    // It connects within its time, which for many connections takes a while.
    let seconds = time.as_secs() + 2;
    let file = std::env::temp_dir().join(format!("bench-{}.sql", std::process::id()));
    fs::write(&file, script).expect("the folder for temporary files can be written to");
    let mut command = Command::new(stores.programs().join("pgbench"));
    command.args(["-n", "-M", "prepared", "-h", "127.0.0.1", "-U", "postgres", "-j", "1"]);
    command.args(["-p", &stores.postgres_port().to_string(), "-c", &connections.to_string()]);
    command.args(["-T", &seconds.to_string(), "-f"]).arg(&file).arg("pgbench");
    let text = output(&mut command);
    drop(fs::remove_file(&file));
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
    fn a_figure_is_found_in_what_a_tool_prints() {
        assert_eq!(number_after("x\ntps = 1234.5 (without)", "tps = "), 1234.5);
    }
}
