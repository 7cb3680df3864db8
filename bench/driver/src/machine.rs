//! A description of the machine that measures.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

use crate::stores::Stores;
use crate::usage::Ticks;

/// The circumstances that figures depend on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's model.
    pub cpu: String,
    /// Its cores.
    pub cores: usize,
    /// Memory, in GiB.
    pub memory_gib: f64,
    /// The operating system's kernel.
    pub kernel: String,
    /// The stores' versions.
    pub stores: String,
    /// The commit that was measured.
    pub revision: String,
    /// The day, in UTC.
    pub date: String,
    /// The share of its busy time that the hypervisor gave to other machines while rows were measured, in percent.
    pub stolen_percent: f64,
}

impl Machine {
    /// This machine, after rows that were measured from `start` on.
    pub fn here(stores: &Stores, start: Ticks) -> Machine {
        let postgres = output(Command::new(stores.programs().join("postgres")).arg("--version"));
        let redis = output(Command::new("redis-server").arg("--version"));
        let redis =
            redis.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("?").to_owned();
        Machine {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: available_parallelism().map_or(0, usize::from),
            memory_gib: field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0)
                / f64::from(1 << 20),
            // Without the distribution's suffix, which has nothing to do with speed.
            kernel: output(Command::new("uname").arg("-sr")).split('-').next().unwrap_or_default().to_owned(),
            stores: format!("{postgres}, Redis {redis}"),
            revision: output(Command::new("git").args([
                "-C",
                env!("CARGO_MANIFEST_DIR"),
                "describe",
                "--always",
                "--dirty",
            ])),
            date: output(Command::new("date").args(["-u", "+%Y-%m-%d"])),
            stolen_percent: start.stolen_percent_since(),
        }
    }
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    line.unwrap_or("?").trim().to_owned()
}

fn output(command: &mut Command) -> String {
    let output = command.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    output.unwrap_or_else(|_| "?".to_owned())
}
