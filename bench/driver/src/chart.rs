//! The requests a second as a bar chart. Each workload has a scale of its own; with a common one most bars would be too
//! short to see.

use std::fmt::Write as _;

use crate::results::Results;
use crate::row::Row;
use crate::table::thousands;
use crate::targets::Kind;
use crate::workload::Workload;

const WIDTH: usize = 760;
/// The left end of bars; names are left of it.
const LEFT: usize = 150;
/// The length of the longest bar; its number is right of it.
const LONGEST: f64 = 500.0;
const BAR: usize = 18;
const TARGETS: [Kind; 4] = [Kind::Ours, Kind::Axum, Kind::Flask, Kind::Ceiling];

/// The chart of the rows with this number of clients, as SVG.
pub fn svg(results: &Results, clients: usize) -> String {
    let mut body = String::new();
    let mut top = 50;
    for workload in Workload::ALL.into_iter().filter(|&workload| results.has(workload)) {
        let row = |&target: &Kind| results.row(workload, target, clients);
        let rows: Vec<&Row> = TARGETS.iter().filter_map(row).collect();
        let most = rows.iter().map(|row| row.figures.requests_per_second).fold(1.0, f64::max);
        let middle = top + rows.len() * BAR / 2 + 5;
        let name = workload.name();
        let _ = writeln!(body, r#"<text x="10" y="{middle}" font-weight="bold">{name}</text>"#);
        for row in rows {
            body.push_str(&bar(row, most, top));
            top += BAR;
        }
        top += 14;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"25\" font-size=\"16\">Requests a second, {clients} clients (each workload to its own \
         scale)</text>\n{body}</svg>\n"
    )
}

fn bar(row: &Row, most: f64, top: usize) -> String {
    let length = (row.figures.requests_per_second / most * LONGEST).max(1.0);
    let baseline = top + BAR - 5;
    let height = BAR - 3;
    let before = LEFT - 8;
    let after = LEFT as f64 + length + 6.0;
    let name = row.target.name();
    let color = color(row.target);
    let number = thousands(row.figures.requests_per_second);
    format!(
        "<text x=\"{before}\" y=\"{baseline}\" text-anchor=\"end\">{name}</text>\
         <rect x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"{height}\" fill=\"{color}\"/>\
         <text x=\"{after:.1}\" y=\"{baseline}\">{number}</text>\n"
    )
}

fn color(target: Kind) -> &'static str {
    match target {
        Kind::Ours => "#c2410c",
        Kind::Axum => "#2563eb",
        Kind::Flask => "#64748b",
        Kind::Ceiling | Kind::Bare | Kind::Before | Kind::Token => "#d4d4d8",
    }
}
