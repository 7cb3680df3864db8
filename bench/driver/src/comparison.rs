//! How far ratios differ from run to run: those of the last full run beside those of other runs, which
//! `bench/results/other-runs.json` records.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use crate::goals::{OF_THE_CEILING, TIMES_AXUM, pair};
use crate::results::{Results, folder, read_json};
use crate::targets::Kind;
use crate::workload::Workload;

/// Ratios of another run.
#[derive(Debug, Deserialize)]
struct OtherRun {
    /// A short name.
    name: String,
    /// The command, and how it differs from the last full run.
    what: String,
    /// The ratios, by workload and number of clients.
    ratios: BTreeMap<String, BTreeMap<usize, f64>>,
}

impl OtherRun {
    fn ratio(&self, workload: Workload, clients: usize) -> Option<f64> {
        self.ratios.get(workload.name())?.get(&clients).copied()
    }
}

/// The ratios that have a goal, a column for each run and number of clients, and below it what each run was.
pub fn comparison(results: &Results) -> String {
    let others: Vec<OtherRun> = read_json(&folder().join("other-runs.json"));
    let mut text = head(results, &others);
    for (workload, bound) in OF_THE_CEILING {
        text.push_str(&line(results, &others, workload, Kind::Ceiling, &format!("{bound} of the ceiling")));
    }
    for (workload, bound) in TIMES_AXUM.into_iter().filter(|(workload, _)| results.has(*workload)) {
        text.push_str(&line(results, &others, workload, Kind::Axum, &format!("{bound} times axum")));
    }
    for run in others {
        let _ = write!(text, "\n- **{}**: {}", run.name, run.what);
    }
    text + "\n"
}

fn head(results: &Results, others: &[OtherRun]) -> String {
    let mut titles = String::from("| requests/s | goal |");
    let mut rule = String::from("|---|---|");
    for run in ["this run"].into_iter().chain(others.iter().map(|run| run.name.as_str())) {
        for clients in results.crowds() {
            let _ = write!(titles, " {run}, {clients} |");
            rule.push_str("--:|");
        }
    }
    format!("{titles}\n{rule}\n")
}

fn line(results: &Results, others: &[OtherRun], workload: Workload, to: Kind, goal: &str) -> String {
    let mut line = format!("| {} | {goal} |", workload.name());
    let this = |clients| {
        let (ours, other) = pair(results, workload, to, clients)?;
        Some(ours.requests_per_second / other.requests_per_second)
    };
    let mut cell = |ratio: Option<f64>| {
        let text = ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let _ = write!(line, " {text} |");
    };
    for clients in results.crowds() {
        cell(this(clients));
    }
    for run in others {
        for clients in results.crowds() {
            cell(run.ratio(workload, clients));
        }
    }
    line + "\n"
}
