//! The eight workloads.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::{Load, Numbers, Once, Part, zipf};
use crate::names::{Requests, Series};
use crate::stores::{BIG_INFO_BYTES, INFO_BYTES};
use crate::targets::{Kind, Target};

const WARM_NAMES: u32 = 10_000;
const ZIPF_NAMES: u32 = 100_000;
/// The share of reads in the mixed workload.
const READS: f64 = 0.95;

static ZIPF: LazyLock<Arc<[u32]>> = LazyLock::new(|| zipf(ZIPF_NAMES));

/// The requests that clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Workload {
    /// One cached name.
    Hot,
    /// Any of 10,000 cached names.
    Warm,
    /// One cached name with an info of 16 KiB.
    Big,
    /// 100,000 names by Zipf's law (s = 1), with empty caches at first.
    Zipf,
    /// 95 % zipf, 5 % register, with empty caches at first.
    Mixed,
    /// Each name once.
    Miss,
    /// Unknown names, each once.
    NotFound,
    /// New users.
    Register,
}

impl Workload {
    /// All of them, in the order of the table.
    pub const ALL: [Workload; 8] = [
        Workload::Hot,
        Workload::Warm,
        Workload::Big,
        Workload::Zipf,
        Workload::Mixed,
        Workload::Miss,
        Workload::NotFound,
        Workload::Register,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Hot => "hot",
            Workload::Warm => "warm",
            Workload::Big => "big",
            Workload::Zipf => "zipf",
            Workload::Mixed => "mixed",
            Workload::Miss => "miss",
            Workload::NotFound => "notfound",
            Workload::Register => "register",
        }
    }

    /// The `targets` that this workload is meaningful for. The ceiling sends a cached answer, so it stands only beside
    /// workloads that a cache answers.
    pub fn targets(self, targets: &[Kind]) -> Vec<Kind> {
        let applies = |kind| match kind {
            Kind::Ceiling => matches!(self, Workload::Hot | Workload::Warm | Workload::Big),
            Kind::Bare => self == Workload::Hot,
            _ => true,
        };
        targets.iter().copied().filter(|&kind| applies(kind)).collect()
    }

    /// The size of the infos that are read.
    pub fn info_bytes(self) -> usize {
        if self == Workload::Big { BIG_INFO_BYTES } else { INFO_BYTES }
    }

    /// How long requests are sent before answers count. Workloads that start with empty caches count from the first
    /// request on.
    pub fn warm_up(self) -> Duration {
        match self {
            Workload::Zipf | Workload::Mixed => Duration::ZERO,
            _ => Duration::from_millis(700),
        }
    }

    /// Fills the caches for the workloads that expect it.
    pub fn prepare(self, target: &Target) {
        if self == Workload::Warm && target.kind != Kind::Ceiling {
            // The first pass fills Redis, the second one the near cache.
            for _ in 0..2 {
                let requests = Requests::get(target.data, Series::Seeded, INFO_BYTES);
                Load::once(requests, Once::new(0, WARM_NAMES), 16);
            }
        }
    }

    /// The load on `target`, whose table has `users` users.
    pub fn load(self, target: &Target, users: u32, clients: usize) -> Load {
        let get = |series| Requests::get(target.data, series, self.info_bytes());
        let seeded = match target.kind {
            Kind::Bare => Requests::path(target.data, "/bare"),
            Kind::Ceiling => get(Series::Seeded).unchecked(),
            _ => get(Series::Seeded),
        };
        let register = || (Requests::register(target.user, INFO_BYTES), Numbers::Once(new_names()));
        let (requests, numbers) = match self {
            Workload::Big if target.kind != Kind::Ceiling => (get(Series::Big), Numbers::One(0)),
            Workload::Hot | Workload::Big => (seeded, Numbers::One(0)),
            Workload::Warm => (seeded, Numbers::Below(WARM_NAMES)),
            Workload::Zipf | Workload::Mixed => (seeded, Numbers::Drawn(Arc::clone(&ZIPF))),
            Workload::Miss => (seeded, Numbers::Once(Once::new(0, users))),
            Workload::NotFound => (get(Series::Unknown), Numbers::Once(Once::new(0, 100_000_000))),
            Workload::Register => register(),
        };
        let mut load = Load::of(requests, numbers, clients);
        if self == Workload::Mixed {
            load.parts[0].share = READS;
            let (requests, numbers) = register();
            load.parts.push(Part { requests, numbers, share: 1.0 - READS });
        }
        load
    }
}

/// Names that are not registered yet: each target continues where the last one stopped.
pub fn new_names() -> Once {
    static NAMES: LazyLock<Once> = LazyLock::new(|| Once::ordered(0, 900_000_000));
    NAMES.clone()
}
