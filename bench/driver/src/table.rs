//! Rows as Markdown, for the terminal and for bench/results/full.md.

use crate::row::Row;

/// The table's head.
pub const HEAD: &str = "\
| workload | target | clients | requests/s | p50 ms | p99 ms | service CPU µs | Postgres CPU µs | Redis CPU µs | peak MiB | errors | checked, wrong |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

/// A row of the table.
pub fn line(row: &Row) -> String {
    let it = &row.figures;
    let [p50, p99] = [it.p50_us, it.p99_us].map(|us| format!("{:.2}", us / 1e3));
    let [service, postgres, redis] =
        [it.service_us, it.postgres_us, it.redis_us].map(|us| format!("{us:.1}"));
    format!(
        "| {} | {} | {} | {} | {p50} | {p99} | {service} | {postgres} | {redis} | {:.1} | {} | {}, {} |",
        row.workload.name(),
        row.target.name(),
        row.clients,
        thousands(it.requests_per_second),
        it.peak_mib,
        it.errors,
        it.checked,
        it.wrong,
    )
}

/// A number without its fraction, with a comma between thousands.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
