//! The documents that show a full run: bench/results/full.md, written whole, and the generated parts of
//! docs/benchmarks.md with its chart.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::chart;
use crate::comparison::comparison;
use crate::report;
use crate::results::{Results, folder};

/// The width at which prose wraps.
const COLUMNS: usize = 100;

/// Writes full.md and the chart, and replaces the generated parts of docs/benchmarks.md.
pub fn write(results: &Results) {
    for (path, text) in documents(results) {
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// The paths and texts of all documents.
fn documents(results: &Results) -> [(PathBuf, String); 3] {
    let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs"));
    let most = results.clients().last().copied().unwrap_or_default();
    let benchmarks = docs.join("benchmarks.md");
    let text = read(&benchmarks);
    let text = between(&text, "machine", &wrapped(&report::machine(results)));
    let score = format!("{} ([all of them](../bench/results/full.md#goals)).", report::score(results));
    let rows = format!("{}\n{}", report::summary(results), wrapped(&score));
    let text = between(&text, "rows", &rows);
    [
        (folder().join("full.md"), full(results)),
        (docs.join("benchmarks.svg"), chart::svg(results, most)),
        (benchmarks, text),
    ]
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A section of full.md.
struct Section {
    title: &'static str,
    /// What the tables show, and the command that measures them.
    explanation: &'static str,
    tables: fn(&Results) -> String,
}

const SECTIONS: [Section; 11] = [
    Section {
        title: "Goals",
        explanation: "Ratios within one run, or bounds. A goal that is not met fails no run: machines differ.",
        tables: |results| format!("{}\n{}.\n", report::verdicts(results), report::score(results)),
    },
    Section {
        title: "Rows",
        explanation: "CPU is the processor time for each answer; peak MiB is the memory of the larger of a target's \
                      services. `scripts/bench rows WORKLOADS --targets TARGETS --clients CLIENTS --seconds SECONDS` \
                      measures some rows again; it prints the rounds' ratios as well, and takes `before` for another \
                      build of ours. `scripts/bench tails WORKLOADS` compares p99s round by round. *Checked* are \
                      bodies, and written users that were compared with PostgreSQL.",
        tables: report::rows,
    },
    Section {
        title: "Processor time of an answer",
        explanation: "In µs, for ours, from the rows above. *Idle* is the rest of the cores' time for an answer at the \
                      measured rate. *The goal allows* is their whole time for an answer at the goal's rate: where \
                      *together* is larger, shorter waits do not reach the goal, only less work does.",
        tables: report::budget,
    },
    Section {
        title: "The stores alone",
        explanation: "Their own tools, without a service in between. `scripts/bench extras` measures these and the \
                      following sections up to the instructions, at 64 clients.",
        tables: report::stores_alone,
    },
    Section {
        title: "Statements",
        explanation: "Counted by pg_stat_statements in runs of their own; nothing is counted while rows are measured.",
        tables: report::statements,
    },
    Section {
        title: "Herds",
        explanation: "Clients that all request the same cold name at once.",
        tables: report::herds,
    },
    Section {
        title: "Start and idle memory",
        explanation: "From exec to the first 200 of `/readyz`, and the memory a second later.",
        tables: report::starts,
    },
    Section {
        title: "Overload",
        explanation: "Ten times the clients, with the default queue, which holds all of them, and with a queue of 128. \
                      A client that gets a 503 pauses for 100 ms. `scripts/bench overload` measures this section alone.",
        tables: |results| report::overloads(&results.overloads),
    },
    Section {
        title: "Instructions",
        explanation: "Counted by callgrind. `scripts/bench instructions` measures this section alone.",
        tables: report::instructions,
    },
    Section {
        title: "How cost grows",
        explanation: "Table sizes and infos are measured at 64 clients. The misses on 10,000 users last a fraction of a \
                      second, until each user was requested once. Only `scripts/bench full` measures this section.",
        tables: report::growth,
    },
    Section {
        title: "Runs compared",
        explanation: "The ratios that have goals. They differ from run to run and from machine to machine.",
        tables: comparison,
    },
];

/// All of full.md.
fn full(results: &Results) -> String {
    let introduction = "Written by `scripts/bench report` from [full.json](full.json); do not edit it by hand. \
                        [docs/benchmarks.md](../../docs/benchmarks.md) has the method, the chart and an analysis.";
    let mut text =
        format!("# A full run\n\n{}\n{}", wrapped(introduction), wrapped(&report::machine(results)));
    for section in SECTIONS {
        let explanation = wrapped(section.explanation);
        let tables = (section.tables)(results);
        let _ = write!(text, "\n## {}\n\n{explanation}\n{tables}", section.title);
    }
    text
}

/// Breaks prose into lines of at most [`COLUMNS`] characters.
fn wrapped(prose: &str) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in prose.split_whitespace() {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > COLUMNS {
            text.push('\n');
            column = 0;
        }
        if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text + "\n"
}

/// Puts `new` between the markers of this name.
fn between(text: &str, name: &str, new: &str) -> String {
    let begin = format!("<!-- generated: {name} -->\n");
    let end = format!("<!-- end: {name} -->");
    let parts = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.unwrap_or_else(|| panic!("docs/benchmarks.md has no {begin:?} and {end:?}"));
    format!("{before}{begin}{new}{end}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_between_the_markers_is_replaced() {
        let text = "a\n<!-- generated: x -->\nold\n<!-- end: x -->\nb";
        assert_eq!(between(text, "x", "new\n"), "a\n<!-- generated: x -->\nnew\n<!-- end: x -->\nb");
    }

    #[test]
    fn prose_wraps_at_the_last_word_that_fits() {
        let word = "x".repeat(49);
        assert_eq!(wrapped(&format!("{word} {word}é y")), format!("{word} {word}é\ny\n"));
    }

    #[test]
    fn the_documents_show_the_stored_run() {
        for (path, text) in documents(&Results::load("full")) {
            assert!(read(&path) == text, "{} is old: run `scripts/bench report`", path.display());
        }
    }
}
