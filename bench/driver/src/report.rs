//! Results as Markdown: for the terminal, and between the markers of docs/benchmarks.md.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::chart;
use crate::goals::{TIMES_AXUM, goals, pair};
use crate::growth::{Axis, Growth};
use crate::overload::Overload;
use crate::results::Results;
use crate::row::Row;
use crate::table::{HEAD, line, thousands};
use crate::targets::Kind;

/// The table of all rows.
pub fn rows(results: &Results) -> String {
    let lines: Vec<String> = results.rows.iter().map(line).collect();
    format!("{HEAD}\n{}\n", lines.join("\n"))
}

/// Every goal, and whether it is met.
pub fn verdicts(results: &Results) -> String {
    let mut text = String::from("| what | goal | measured | |\n|---|---|--:|---|\n");
    for goal in goals(results) {
        let met = if goal.met { "met" } else { "**not met**" };
        let _ = writeln!(text, "| {} | {} | {} | {met} |", goal.what, goal.wanted.trim(), goal.measured);
    }
    text
}

/// The processor time that goes into each answer, and how much of it a goal leaves.
fn budget(results: &Results) -> String {
    let mut text = String::from(
        "| workload | clients | services | Postgres | Redis | generator | together | idle | the goal allows |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let processors_us = results.machine.cores as f64 * 1e6;
    for clients in results.clients() {
        for (workload, times) in TIMES_AXUM {
            let Some((ours, axum)) = pair(results, workload, Kind::Axum, clients) else { continue };
            let parts = [ours.service_us, ours.postgres_us, ours.redis_us, ours.generator_us];
            let together: f64 = parts.iter().sum();
            let idle = processors_us / ours.requests_per_second - together;
            let allowed = processors_us / (times * axum.requests_per_second);
            let parts = parts.map(|part| format!("{part:.1}")).join(" | ");
            let _ = writeln!(
                text,
                "| {} | {clients} | {parts} | {together:.1} | {idle:.1} | {allowed:.1} |",
                workload.name()
            );
        }
    }
    text
}

/// What stands beside the table.
pub fn beside(results: &Results) -> String {
    [
        ceilings(results),
        statements(results),
        starts(results),
        overloads(&results.overloads),
        instructions(results),
    ]
    .join("\n")
}

fn ceilings(results: &Results) -> String {
    let mut text = String::from("| store alone | connections | a second |\n|---|--:|--:|\n");
    for it in &results.ceilings {
        let _ = writeln!(text, "| {} | {} | {} |", it.what, it.connections, thousands(it.per_second));
    }
    text
}

fn statements(results: &Results) -> String {
    let mut text = String::from(
        "| statements | target | clients | statements | rows | per row |\n|---|---|--:|--:|--:|--:|\n",
    );
    for it in &results.statements {
        let (what, who, per_row) = (it.workload.name(), it.target.name(), it.per_row());
        let (statements, rows) = (thousands(it.statements as f64), thousands(it.rows as f64));
        let _ = writeln!(text, "| {what} | {who} | {} | {statements} | {rows} | {per_row:.3} |", it.clients);
    }
    text.push_str(
        "\n| herd of 500 after one cold name | replicas | SELECTs, each of five times |\n|---|--:|---|\n",
    );
    for it in &results.herds {
        let selects: Vec<String> = it.selects.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "| {} | {} | {} |", it.target.name(), it.replicas, selects.join(", "));
    }
    text
}

fn starts(results: &Results) -> String {
    let mut text = String::from("| program | ready after ms | idle MiB |\n|---|--:|--:|\n");
    for it in &results.starts {
        let _ = writeln!(text, "| {} | {:.0} | {:.1} |", it.program, it.ready_ms, it.idle_mib);
    }
    text
}

/// More clients than can be served.
pub fn overloads(overloads: &[Overload]) -> String {
    let mut text = String::from(
        "| overload | target | clients | right/s | their p99 ms | 503/s | their p50 ms | their p99 ms | other errors |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for it in overloads {
        let queue = if it.short_queue { ", queue of 128" } else { "" };
        let (what, who) = (it.workload.name(), it.target.name());
        let (right, refused) = (thousands(it.goodput), thousands(it.refused));
        let times =
            format!("{:.2} | {refused} | {:.2} | {:.2}", it.p99_ms, it.refused_p50_ms, it.refused_p99_ms);
        let _ =
            writeln!(text, "| {what} | {who}{queue} | {} | {right} | {times} | {} |", it.clients, it.errors);
    }
    text
}

fn instructions(results: &Results) -> String {
    let it = &results.instructions;
    format!(
        "| request | instructions |\n|---|--:|\n| near hit in data-svc | {} |\n| miss in data-svc | {} |\n| register in user-svc | {} |\n",
        thousands(it.hit),
        thousands(it.miss),
        thousands(it.register)
    )
}

/// How cost grows, a table for each axis.
pub fn growth(results: &Results) -> String {
    let axes =
        [(Axis::Rows, "users in the table"), (Axis::Info, "bytes of info"), (Axis::Clients, "clients")];
    let tables = axes.map(|(axis, title)| {
        let mut text = format!(
            "| workload | target | {title} | requests/s | p50 ms | p99 ms | service CPU µs | Postgres CPU µs | peak MiB |\n\
             |---|---|--:|--:|--:|--:|--:|--:|--:|\n"
        );
        for it in results.growth.iter().filter(|it| it.axis == axis) {
            text.push_str(&growth_line(it));
        }
        text
    });
    tables.join("\n")
}

fn growth_line(it: &Growth) -> String {
    let figures = &it.figures;
    format!(
        "| {} | {} | {} | {} | {:.2} | {:.2} | {:.1} | {:.1} | {:.1} |\n",
        it.workload.name(),
        it.target.name(),
        thousands(it.value as f64),
        thousands(figures.requests_per_second),
        figures.p50_us / 1e3,
        figures.p99_us / 1e3,
        figures.service_us,
        figures.postgres_us,
        figures.peak_mib,
    )
}

fn machine(results: &Results) -> String {
    let it = &results.machine;
    format!(
        "Measured on {} at commit `{}`: {} cores of {}, {:.0} GiB of memory, {}, {}. {} rounds of {} s, {} users. \
         While the rows were measured, other machines took {:.1} % of its busy time.\n",
        it.date,
        it.revision,
        it.cores,
        it.cpu,
        it.memory_gib,
        it.kernel,
        it.stores,
        results.rounds,
        results.seconds,
        thousands(results.users.into()),
        it.stolen_percent,
    )
}

/// Writes docs/benchmarks.md and its chart anew, but for what people wrote there.
pub fn write_docs(results: &Results) {
    let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs"));
    let most = results.clients().last().copied().unwrap_or_default();
    write(docs.join("benchmarks.svg"), &chart::svg(results, most));
    let path = docs.join("benchmarks.md");
    let mut text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (name, new) in [
        ("machine", machine(results)),
        ("goals", verdicts(results)),
        ("rows", rows(results)),
        ("beside", beside(results)),
        ("budget", budget(results)),
        ("growth", growth(results)),
    ] {
        text = between(&text, name, &new);
    }
    write(path, &text);
}

fn write(path: PathBuf, text: &str) {
    fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Puts `new` between the markers of this name.
fn between(text: &str, name: &str, new: &str) -> String {
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), format!("<!-- end: {name} -->"));
    let parts = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.unwrap_or_else(|| panic!("docs/benchmarks.md has no {begin:?} and {end:?}"));
    format!("{before}{begin}{new}{end}{after}")
}

/// Rows with wrong answers, and those of ours with errors.
pub fn failures(results: &Results) -> Vec<&Row> {
    let failed = |row: &&Row| row.figures.wrong > 0 || row.target == Kind::Ours && row.figures.errors > 0;
    results.rows.iter().filter(failed).collect()
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let text = "a\n<!-- generated: x -->\nold\n<!-- end: x -->\nb";
        assert_eq!(between(text, "x", "new\n"), "a\n<!-- generated: x -->\nnew\n<!-- end: x -->\nb");
    }
}
