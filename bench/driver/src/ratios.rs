//! How ours compares with the other targets in each round. Both take turns, so what disturbs the machine for longer than
//! a round disturbs both, and the median of the rounds' ratios varies less than the ratio of two medians.

use std::fmt::Write as _;

use crate::row::{Figures, Row, median};
use crate::targets::Kind;

/// For each row of another target the figures of ours divided by its own: the median of the rounds, and in parentheses
/// the smallest and the largest.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| ours divided by | workload | clients | rounds | requests/s | p50 | p99 |\n|---|---|--:|--:|--:|--:|--:|\n",
    );
    for other in rows.iter().filter(|row| row.target != Kind::Ours) {
        let same = |row: &&Row| (row.workload, row.clients) == (other.workload, other.clients);
        let Some(ours) = rows.iter().filter(same).find(|row| row.target == Kind::Ours) else { continue };
        let ratio = |of: fn(&Figures) -> f64| ratio(&ours.rounds, &other.rounds, of);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            other.target.name(),
            other.workload.name(),
            other.clients,
            other.rounds.len(),
            ratio(|it| it.requests_per_second),
            ratio(|it| it.p50_us),
            ratio(|it| it.p99_us),
        );
    }
    text
}

/// The median of the rounds' ratios, and in parentheses the smallest and the largest.
pub fn ratio<T>(ours: &[T], other: &[T], of: fn(&T) -> f64) -> String {
    let ratios = ours.iter().zip(other).map(|(ours, other)| of(ours) / of(other));
    let least = ratios.clone().fold(f64::INFINITY, f64::min);
    let most = ratios.clone().fold(0.0, f64::max);
    format!("{:.2} ({least:.2} to {most:.2})", median(ratios))
}
