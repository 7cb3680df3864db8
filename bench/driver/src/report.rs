//! Results as Markdown tables, for the terminal and for the documents.

use std::fmt::Write as _;

use crate::goals::{TIMES_AXUM, goals, pair};
use crate::growth::{Axis, Growth};
use crate::overload::Overload;
use crate::queries::{HERD, HERDS};
use crate::results::Results;
use crate::row::{Figures, Row};
use crate::table::{HEAD, line, thousands};
use crate::targets::Kind;
use crate::workload::Workload;

/// The rows in short, a line for each workload: requests a second of ours, axum and the ceiling, in parentheses the
/// ratio of ours to theirs, and the p99 of ours and axum.
pub fn summary(results: &Results) -> String {
    let mut titles = String::from("| |");
    let mut rule = String::from("|---|");
    for clients in results.crowds() {
        let _ = write!(titles, " {clients} clients: ours | axum | ceiling | p99 ms |");
        rule.push_str("--:|--:|--:|--:|");
    }
    let mut text = format!("{titles}\n{rule}\n");
    for workload in Workload::ALL.into_iter().filter(|&workload| results.has(workload)) {
        let _ = write!(text, "| {} |", workload.name());
        for clients in results.crowds() {
            text.push_str(&cells(results, workload, clients));
        }
        text.push('\n');
    }
    text + &alone(results)
}

/// The rows with one client in short, if there are any.
fn alone(results: &Results) -> String {
    let mut lines = String::new();
    for workload in Workload::ALONE {
        let Some((ours, axum)) = pair(results, workload, Kind::Axum, 1) else { continue };
        let _ = writeln!(
            lines,
            "| {} | {} | {} ({:.2}) | {:.2}, {:.2} | {:.2}, {:.2} |",
            workload.name(),
            thousands(ours.requests_per_second),
            thousands(axum.requests_per_second),
            ours.requests_per_second / axum.requests_per_second,
            ours.p50_us / 1e3,
            axum.p50_us / 1e3,
            ours.p99_us / 1e3,
            axum.p99_us / 1e3,
        );
    }
    if lines.is_empty() {
        return lines;
    }
    format!("\n| | 1 client: ours | axum | p50 ms | p99 ms |\n|---|--:|--:|--:|--:|\n{lines}")
}

fn cells(results: &Results, workload: Workload, clients: usize) -> String {
    let Some((ours, axum)) = pair(results, workload, Kind::Axum, clients) else { return "||||".to_owned() };
    let with_ratio = |it: &Figures| {
        let ratio = ours.requests_per_second / it.requests_per_second;
        format!("{} ({ratio:.2})", thousands(it.requests_per_second))
    };
    let ceiling = results.row(workload, Kind::Ceiling, clients).map(|row| with_ratio(&row.figures));
    format!(
        " {} | {} | {} | {:.2}, {:.2} |",
        thousands(ours.requests_per_second),
        with_ratio(axum),
        ceiling.unwrap_or_default(),
        ours.p99_us / 1e3,
        axum.p99_us / 1e3,
    )
}

/// The table of all rows.
pub fn rows(results: &Results) -> String {
    let lines: Vec<String> = results.rows.iter().map(line).collect();
    format!("{HEAD}\n{}\n", lines.join("\n"))
}

/// How many goals are met, as a sentence.
pub fn score(results: &Results) -> String {
    let goals = goals(results);
    let met = goals.iter().filter(|goal| goal.met).count();
    format!("This run met {met} of the project's {} goals", goals.len())
}

/// Every goal, and whether it is met.
pub fn verdicts(results: &Results) -> String {
    let mut text = String::from("| what | goal | measured | |\n|---|---|--:|---|\n");
    for goal in goals(results) {
        let met = if goal.met { "met" } else { "not met" };
        let _ = writeln!(text, "| {} | {} | {} | {met} |", goal.what, goal.wanted.trim(), goal.measured);
    }
    text
}

/// The processor time of each answer, and the time that there would be for one at the rate of the goal.
pub fn budget(results: &Results) -> String {
    let mut text = String::from(
        "| workload | clients | services | Postgres | Redis | generator | together | idle | the goal allows |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let processors_us = results.machine.cores as f64 * 1e6;
    for clients in results.crowds() {
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

/// The extras, a table each.
pub fn extras(results: &Results) -> String {
    [
        stores_alone(results),
        statements(results),
        herds(results),
        starts(results),
        overloads(&results.overloads),
        instructions(results),
    ]
    .join("\n")
}

/// The stores without a service.
pub fn stores_alone(results: &Results) -> String {
    let mut text = String::from("| store alone | connections | a second |\n|---|--:|--:|\n");
    for it in &results.stores_alone {
        let _ = writeln!(text, "| {} | {} | {} |", it.what, it.connections, thousands(it.per_second));
    }
    text
}

/// The statements behind loads.
pub fn statements(results: &Results) -> String {
    let mut text = String::from(
        "| statements | target | clients | statements | rows | per row |\n|---|---|--:|--:|--:|--:|\n",
    );
    for it in &results.statements {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.3} |",
            it.workload.name(),
            it.target.name(),
            it.clients,
            thousands(it.statements as f64),
            thousands(it.rows as f64),
            it.per_row(),
        );
    }
    text
}

/// The SELECTs behind herds.
pub fn herds(results: &Results) -> String {
    let mut text = format!(
        "| herd of {HERD} for one cold name | replicas | SELECTs for each of {HERDS} names |\n|---|--:|---|\n"
    );
    for it in &results.herds {
        let selects: Vec<String> = it.selects.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "| {} | {} | {} |", it.target.name(), it.replicas, selects.join(", "));
    }
    text
}

/// Starts and idle memory.
pub fn starts(results: &Results) -> String {
    let mut text = String::from("| program | ready after ms | idle MiB |\n|---|--:|--:|\n");
    for it in &results.starts {
        let _ = writeln!(text, "| {} | {:.0} | {:.1} |", it.program, it.ready_ms, it.idle_mib);
    }
    text
}

/// More clients than a service can serve.
pub fn overloads(overloads: &[Overload]) -> String {
    let mut text = String::from(
        "| overload | target | clients | right/s | p99 ms of right | 503/s | p50 ms of 503 | p99 ms of 503 | other errors |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for it in overloads {
        let _ = writeln!(
            text,
            "| {} | {}{} | {} | {} | {:.2} | {} | {:.2} | {:.2} | {} |",
            it.workload.name(),
            it.target.name(),
            it.queue.suffix(),
            it.clients,
            thousands(it.goodput),
            it.p99_ms,
            thousands(it.refused),
            it.refused_p50_ms,
            it.refused_p99_ms,
            it.errors,
        );
    }
    text
}

/// The instructions of a request.
pub fn instructions(results: &Results) -> String {
    let it = &results.instructions;
    let rows = [
        ("near hit in data-svc", it.hit),
        ("the same with a token", it.hit_with_token),
        ("miss in data-svc", it.miss),
        ("register in user-svc", it.register),
    ];
    let mut text = "| request | instructions |\n|---|--:|\n".to_owned();
    // A run from before tokens has not counted them.
    for (request, instructions) in rows.into_iter().filter(|(_, instructions)| *instructions > 0.0) {
        text.push_str(&format!("| {request} | {} |\n", thousands(instructions)));
    }
    text
}

/// How cost grows, a table for each quantity.
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

/// The machine, the commit and the length of the run, in a sentence each.
pub fn machine(results: &Results) -> String {
    let it = &results.machine;
    format!(
        "Measured on {} at commit `{}` by `{}`: {} cores of {}, {:.0} GiB of memory, {}, {}; {} users. While the rows were \
         measured, the hypervisor gave {:.1} % of the busy time to other machines.",
        it.date,
        it.revision,
        command(results),
        it.cores,
        it.cpu,
        it.memory_gib,
        it.kernel,
        it.stores,
        thousands(results.users.into()),
        it.stolen_percent,
    )
}

/// The command of a full run.
pub fn command(results: &Results) -> String {
    format!("scripts/bench full --seconds {} --rounds {}", results.seconds, results.rounds)
}

/// Rows with wrong answers, and those of ours with errors.
pub fn failures(results: &Results) -> Vec<&Row> {
    let failed = |row: &&Row| row.figures.wrong > 0 || row.target == Kind::Ours && row.figures.errors > 0;
    results.rows.iter().filter(failed).collect()
}
