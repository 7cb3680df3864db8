//! Everything that one run measured, and its file.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::growth::Growth;
use crate::instructions::Instructions;
use crate::machine::Machine;
use crate::overload::Overload;
use crate::queries::{Herd, Statements};
use crate::row::Row;
use crate::start::Start;
use crate::stores_alone::StoreAlone;
use crate::targets::Kind;
use crate::workload::Workload;

/// One run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// The machine and the commit.
    pub machine: Machine,
    /// How many seconds answers counted, in each round.
    pub seconds: f64,
    /// How many rounds.
    pub rounds: usize,
    /// Users in the table.
    pub users: u32,
    /// The table.
    pub rows: Vec<Row>,
    /// The stores without a service.
    pub stores_alone: Vec<StoreAlone>,
    /// The statements behind loads.
    pub statements: Vec<Statements>,
    /// Many clients that request one name.
    pub herds: Vec<Herd>,
    /// Starts and idle memory.
    pub starts: Vec<Start>,
    /// More clients than a service can serve.
    pub overloads: Vec<Overload>,
    /// Instructions of a request.
    pub instructions: Instructions,
    /// How cost grows. Only a full run measures it.
    pub growth: Vec<Growth>,
}

impl Results {
    /// The row of a workload on a target with this number of clients.
    pub fn row(&self, workload: Workload, target: Kind, clients: usize) -> Option<&Row> {
        let found = |row: &&Row| (row.workload, row.target, row.clients) == (workload, target, clients);
        self.rows.iter().find(found)
    }

    /// Whether this workload was measured.
    pub fn has(&self, workload: Workload) -> bool {
        self.rows.iter().any(|row| row.workload == workload)
    }

    /// The numbers of clients of all rows, ascending.
    pub fn clients(&self) -> Vec<usize> {
        let mut clients: Vec<usize> = self.rows.iter().map(|row| row.clients).collect();
        clients.sort_unstable();
        clients.dedup();
        clients
    }

    /// The same without a single client, which shares nothing with others.
    pub fn crowds(&self) -> Vec<usize> {
        self.clients().into_iter().filter(|&clients| clients > 1).collect()
    }

    /// Writes them to bench/results, and returns the file's path.
    pub fn save(&self, name: &str) -> PathBuf {
        let path = file(name);
        fs::create_dir_all(path.parent().unwrap_or(&path)).expect("bench/ can be written to");
        let text = serde_json::to_string_pretty(self).expect("results are JSON");
        fs::write(&path, text + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Reads the results of an earlier run.
    pub fn load(name: &str) -> Results {
        read_json(&file(name))
    }
}

/// Reads a JSON file. Panics with its path.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The folder of results.
pub fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../results"))
}

fn file(name: &str) -> PathBuf {
    folder().join(format!("{name}.json"))
}
