//! Instructions that a hit, a miss and a register take, counted by callgrind: a guard that a noisy machine cannot fool.
//!
//! The service runs twice for as long, with many requests and with few. What differs is the cost of the requests
//! alone, without that of the start and of what goes on in the background.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use devstack::Signal;
use serde::{Deserialize, Serialize};

use crate::load::{Load, Once};
use crate::names::{Requests, Series};
use crate::stores::{INFO_BYTES, Stores};
use crate::targets::{Kind, Server, release, with_stores};
use crate::workload::new_names;

const FEW: u32 = 500;
const MANY: u32 = 2_500;
/// So much more than expected is too much.
const TOLERANCE: f64 = 1.1;
/// What is expected, as it was when it was last looked at.
const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../instructions.json");

/// Instructions of a request.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Instructions {
    /// A near hit in data-svc.
    pub hit: f64,
    /// A read of what is in no cache, in data-svc.
    pub miss: f64,
    /// A register in user-svc.
    pub register: f64,
}

impl Instructions {
    /// Counts them.
    pub fn count(stores: &Stores) -> Instructions {
        Instructions {
            hit: count(stores, "data-svc", |server, times| {
                let requests = Requests::get(server.address, Series::Seeded, INFO_BYTES);
                Load::once(requests, Once::same(0, times), 1);
            }),
            miss: count(stores, "data-svc", |server, times| {
                let requests = Requests::get(server.address, Series::Seeded, INFO_BYTES);
                Load::once(requests, Once::ordered(0, times), 1);
            }),
            register: count(stores, "user-svc", |server, times| {
                Load::once(Requests::register(server.address, INFO_BYTES), new_names().portion(times), 1);
            }),
        }
    }

    /// What the repository says that they should be.
    pub fn expected() -> Instructions {
        let text = fs::read_to_string(EXPECTED).unwrap_or_else(|error| panic!("{EXPECTED}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{EXPECTED}: {error}"))
    }

    /// Writes them to the repository, to be expected from now on.
    pub fn expect(&self) {
        let text = serde_json::to_string_pretty(self).expect("numbers are JSON");
        fs::write(EXPECTED, text + "\n").unwrap_or_else(|error| panic!("{EXPECTED}: {error}"));
    }

    /// What is more than 10 % above `expected`, in words.
    pub fn excess(&self, expected: &Instructions) -> Vec<String> {
        let all = [
            ("a hit", self.hit, expected.hit),
            ("a miss", self.miss, expected.miss),
            ("a register", self.register, expected.register),
        ];
        let grown = all.into_iter().filter(|(_, now, then)| *now > then * TOLERANCE);
        grown
            .map(|(what, now, then)| format!("{what} takes {now:.0} instructions, expected {then:.0}"))
            .collect()
    }
}

fn count(stores: &Stores, service: &str, send: impl Fn(&Server, u32)) -> f64 {
    let (many, time) = total(stores, service, Duration::ZERO, |server| send(server, MANY));
    let (few, _) = total(stores, service, time, |server| send(server, FEW));
    (many as f64 - few as f64) / f64::from(MANY - FEW)
}

/// All instructions of a service that is ready for so long at least, and how long it was.
fn total(stores: &Stores, service: &str, time: Duration, send: impl FnOnce(&Server)) -> (u64, Duration) {
    stores.settle();
    let file = std::env::temp_dir().join(format!("bench-{}.callgrind", std::process::id()));
    let output = format!("--callgrind-out-file={}", file.display());
    let program = release(service).display().to_string();
    let server = with_stores(Kind::Ours, stores, Path::new("valgrind"))
        .arguments(&["--tool=callgrind", &output, &program])
        .env("METRICS_PORT", "0")
        .start();
    let ready = Instant::now();
    send(&server);
    sleep(time.saturating_sub(ready.elapsed()));
    let time = ready.elapsed();
    server.guard.signal(Signal::TERM);
    let ended = server.guard.wait(Duration::from_secs(60));
    assert!(ended.is_some(), "{service} does not end under valgrind:\n{}", server.guard.log().text());
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    drop(fs::remove_file(&file));
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    (totals.and_then(|number| number.trim().parse().ok()).expect("callgrind writes totals"), time)
}
