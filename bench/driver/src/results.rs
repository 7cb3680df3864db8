//! All that one run measured, and the file it is kept in.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ceilings::Ceiling;
use crate::growth::Growth;
use crate::instructions::Instructions;
use crate::machine::Machine;
use crate::overload::Overload;
use crate::row::Row;
use crate::selects::{Herd, Statements};
use crate::start::Start;
use crate::targets::Kind;
use crate::workload::Workload;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where.
    pub machine: Machine,
    /// For how many seconds each row was measured in each round.
    pub seconds: f64,
    /// How many rounds.
    pub rounds: usize,
    /// Users in the table.
    pub users: u32,
    /// The table.
    pub rows: Vec<Row>,
    /// The stores without services.
    pub ceilings: Vec<Ceiling>,
    /// Statements of loads.
    pub statements: Vec<Statements>,
    /// Many after one name.
    pub herds: Vec<Herd>,
    /// Starts and idle memory.
    pub starts: Vec<Start>,
    /// More clients than can be served.
    pub overloads: Vec<Overload>,
    /// Instructions of a request.
    pub instructions: Instructions,
    /// How cost grows; empty but in a full run.
    pub growth: Vec<Growth>,
}

impl Results {
    /// The row of a workload on a target.
    pub fn row(&self, workload: Workload, target: Kind, clients: usize) -> Option<&Row> {
        let found = |row: &&Row| (row.workload, row.target, row.clients) == (workload, target, clients);
        self.rows.iter().find(found)
    }

    /// The numbers of clients that rows were measured with.
    pub fn clients(&self) -> Vec<usize> {
        let mut clients: Vec<usize> = self.rows.iter().map(|row| row.clients).collect();
        clients.sort_unstable();
        clients.dedup();
        clients
    }

    /// Writes them to bench/results, and tells where.
    pub fn save(&self, name: &str) -> PathBuf {
        let path = file(name);
        fs::create_dir_all(path.parent().unwrap_or(&path)).expect("bench/ can be written to");
        let text = serde_json::to_string_pretty(self).expect("results are JSON");
        fs::write(&path, text + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Those of an earlier run.
    pub fn load(name: &str) -> Results {
        let path = file(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../results")).join(format!("{name}.json"))
}
