//! The instructions of a hit, a miss and a register, counted by callgrind: a regression test that a noisy machine
//! cannot fool.
//!
//! The service runs twice, equally long, with many requests and with few. The difference is the cost of the requests
//! alone, without that of the start and of background work.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use devstack::Signal;
use serde::{Deserialize, Serialize};

use crate::load::Load;
use crate::names::{Requests, Series};
use crate::numbers::Once;
use crate::stores::{INFO_BYTES, Stores};
use crate::targets::{Kind, Server, release, token, with_stores};
use crate::workload::new_names;

/// Requests of the two runs. 8,000 more of them make a difference of a hundred million instructions, far more than the
/// runs differ otherwise, and valgrind is done within seconds.
const FEW: u32 = 500;
const MANY: u32 = 8_500;
/// How much more than expected fails a run: compilers and dependencies move the counts by a few percent.
const TOLERANCE: f64 = 1.1;
/// The expected counts; `scripts/bench instructions --expect` writes them.
const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../instructions.json");

/// Instructions of one request.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Instructions {
    /// A near hit in data-svc.
    pub hit: f64,
    /// The same with a token, which the service asks for.
    #[serde(default)]
    pub hit_with_token: f64,
    /// A read of a user in no cache, in data-svc.
    pub miss: f64,
    /// A register in user-svc.
    pub register: f64,
}

impl Instructions {
    /// Counts them.
    pub fn count(stores: &Stores) -> Instructions {
        Instructions {
            hit: count(stores, "data-svc", None, |server, times| {
                let requests = Requests::get(server.address, Series::Seeded, INFO_BYTES);
                Load::once(requests, Once::same(0, times), 1);
            }),
            hit_with_token: count(stores, "data-svc", Some(&token().1), |server, times| {
                let requests = Requests::get(server.address, Series::Seeded, INFO_BYTES);
                Load::once(requests.with_token(&token().0), Once::same(0, times), 1);
            }),
            miss: count(stores, "data-svc", None, |server, times| {
                let requests = Requests::get(server.address, Series::Seeded, INFO_BYTES);
                Load::once(requests, Once::ordered(0, times), 1);
            }),
            register: count(stores, "user-svc", None, |server, times| {
                let requests = Requests::register(server.address, Series::Registered, INFO_BYTES);
                Load::once(requests, new_names().portion(times), 1);
            }),
        }
    }

    /// The expected counts.
    pub fn expected() -> Instructions {
        let text = fs::read_to_string(EXPECTED).unwrap_or_else(|error| panic!("{EXPECTED}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{EXPECTED}: {error}"))
    }

    /// Makes these counts the expected ones.
    pub fn expect(&self) {
        let text = serde_json::to_string_pretty(self).expect("numbers are JSON");
        fs::write(EXPECTED, text + "\n").unwrap_or_else(|error| panic!("{EXPECTED}: {error}"));
    }

    /// A sentence for each count that exceeds the expected one by more than 10 %.
    pub fn excess(&self, expected: &Instructions) -> Vec<String> {
        let all = [
            ("a hit", self.hit, expected.hit),
            ("a hit with a token", self.hit_with_token, expected.hit_with_token),
            ("a miss", self.miss, expected.miss),
            ("a register", self.register, expected.register),
        ];
        let grown = all.into_iter().filter(|(_, now, then)| *now > then * TOLERANCE);
        grown
            .map(|(what, now, then)| format!("{what} takes {now:.0} instructions, expected {then:.0}"))
            .collect()
    }
}

fn count(stores: &Stores, service: &str, tokens: Option<&str>, send: impl Fn(&Server, u32)) -> f64 {
    let (many, time) = total(stores, service, tokens, Duration::ZERO, |server| send(server, MANY));
    let (few, _) = total(stores, service, tokens, time, |server| send(server, FEW));
    (many as f64 - few as f64) / f64::from(MANY - FEW)
}

/// All instructions of a service that runs for at least `time` after it is ready, and how long it ran.
fn total(
    stores: &Stores,
    service: &str,
    tokens: Option<&str>,
    time: Duration,
    send: impl FnOnce(&Server),
) -> (u64, Duration) {
    stores.settle();
    let file = std::env::temp_dir().join(format!("bench-{}.callgrind", std::process::id()));
    let output = format!("--callgrind-out-file={}", file.display());
    let program = release(service).display().to_string();
    let server = with_stores(Kind::Ours, stores, Path::new("valgrind"))
        .arguments(&["--tool=callgrind", &output, &program])
        .env("METRICS_PORT", "0")
        .env("API_TOKENS", tokens.unwrap_or_default())
        .start();
    let ready = Instant::now();
    send(&server);
    sleep(time.saturating_sub(ready.elapsed()));
    let time = ready.elapsed();
    server.guard.signal(Signal::TERM);
    let ended = server.guard.wait(Duration::from_secs(60));
    assert!(ended.is_some(), "{service} does not end under valgrind:\n{}", server.guard.log().text());
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    // A leftover file in the temporary folder does no harm.
    let _ = fs::remove_file(&file);
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    (totals.and_then(|number| number.trim().parse().ok()).expect("callgrind writes totals"), time)
}
