//! The workloads.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::{Load, Part};
use crate::names::{Requests, Series};
use crate::numbers::{Newest, Numbers, Once, scrambled, zipf};
use crate::stores::{BIG_INFO_BYTES, INFO_BYTES};
use crate::targets::{Kind, Target};

const WARM_NAMES: u32 = 10_000;
const ZIPF_NAMES: u32 = 100_000;
/// YCSB's constant.
const YCSB_EXPONENT: f64 = 0.99;
/// More than any load inserts.
const MAX_NEW: usize = 4_000_000;

static ZIPF: LazyLock<Arc<[u32]>> = LazyLock::new(|| zipf(ZIPF_NAMES, 1.0));
static YCSB_RANKS: LazyLock<Arc<[u32]>> = LazyLock::new(|| zipf(ZIPF_NAMES, YCSB_EXPONENT));
static YCSB_NAMES: LazyLock<Arc<[u32]>> = LazyLock::new(|| scrambled(&YCSB_RANKS, ZIPF_NAMES));

/// The requests that clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
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
    #[serde(rename = "notfound")]
    #[value(name = "notfound")]
    NotFound,
    /// New users.
    Register,
    /// New infos of any of 100,000 users.
    Replace,
    /// New infos of one user.
    ReplaceOne,
    /// 50 % reads, 50 % new infos: 100,000 names by Zipf's law (s = 0.99), the 10,000 most popular of them cached.
    YcsbA,
    /// 95 % reads, 5 % new infos of the same names.
    YcsbB,
    /// Reads of the same names.
    YcsbC,
    /// 95 % reads of the newest users by Zipf's law (s = 0.99), the 10,000 newest of them cached; 5 % new users.
    YcsbD,
}

impl Workload {
    /// All but [`Workload::ReplaceOne`], in the order of the table.
    pub const ALL: [Workload; 13] = [
        Workload::Hot,
        Workload::Warm,
        Workload::Big,
        Workload::Zipf,
        Workload::Mixed,
        Workload::Miss,
        Workload::NotFound,
        Workload::Register,
        Workload::Replace,
        Workload::YcsbA,
        Workload::YcsbB,
        Workload::YcsbC,
        Workload::YcsbD,
    ];
    /// Those that a full run also measures with one client.
    pub const ALONE: [Workload; 7] = [
        Workload::Register,
        Workload::Replace,
        Workload::ReplaceOne,
        Workload::YcsbA,
        Workload::YcsbB,
        Workload::YcsbC,
        Workload::YcsbD,
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
            Workload::Replace => "replace",
            Workload::ReplaceOne => "replace-one",
            Workload::YcsbA => "ycsb-a",
            Workload::YcsbB => "ycsb-b",
            Workload::YcsbC => "ycsb-c",
            Workload::YcsbD => "ycsb-d",
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

    /// Fills the caches for the workloads that expect it. `users` users are seeded.
    pub fn prepare(self, target: &Target, users: u32) {
        let names = match self {
            Workload::Warm => Once::new(0, WARM_NAMES),
            Workload::YcsbA | Workload::YcsbB | Workload::YcsbC => Once::new(0, ZIPF_NAMES).up_to(WARM_NAMES),
            Workload::YcsbD => Once::ordered(users - WARM_NAMES, WARM_NAMES),
            _ => return,
        };
        if target.kind == Kind::Ceiling {
            return;
        }
        // The first pass fills Redis, the second one the near cache.
        for names in [names.again(), names] {
            Load::once(target.admit(Requests::get(target.data, Series::Seeded, INFO_BYTES)), names, 16);
        }
    }

    /// The load on `target`, whose table has `users` users.
    pub fn load(self, target: &Target, users: u32, clients: usize) -> Load {
        let get = |series| target.admit(Requests::get(target.data, series, self.info_bytes()));
        let seeded = match target.kind {
            Kind::Bare => Requests::path(target.data, "/bare"),
            Kind::Ceiling => get(Series::Seeded).unchecked(),
            _ => get(Series::Seeded),
        };
        let register = |series| target.admit(Requests::register(target.user, series, INFO_BYTES));
        let replace = || target.admit(Requests::replace(target.user, INFO_BYTES));
        let drawn = |numbers: &Arc<[u32]>| Numbers::Drawn(Arc::clone(numbers));
        let load = |requests, numbers| Load::of(requests, numbers, clients);
        match self {
            Workload::Big if target.kind != Kind::Ceiling => load(get(Series::Big), Numbers::One(0)),
            Workload::Hot | Workload::Big => load(seeded, Numbers::One(0)),
            Workload::Warm => load(seeded, Numbers::Below(WARM_NAMES)),
            Workload::Zipf => load(seeded, drawn(&ZIPF)),
            Workload::Mixed => mixed(
                load(seeded, drawn(&ZIPF)),
                0.05,
                register(Series::Registered),
                Numbers::Once(new_names()),
            ),
            Workload::Miss => load(seeded, Numbers::Once(Once::new(0, users))),
            Workload::NotFound => load(get(Series::Unknown), Numbers::Once(Once::new(0, 100_000_000))),
            Workload::Register => load(register(Series::Registered), Numbers::Once(new_names())),
            Workload::Replace => load(replace(), Numbers::Below(ZIPF_NAMES)),
            Workload::ReplaceOne => load(replace(), Numbers::One(0)),
            Workload::YcsbA | Workload::YcsbB => mixed(
                load(seeded.beside_replaces(), drawn(&YCSB_NAMES)),
                if self == Workload::YcsbA { 0.5 } else { 0.05 },
                replace(),
                drawn(&YCSB_NAMES),
            ),
            Workload::YcsbC => load(seeded, drawn(&YCSB_NAMES)),
            Workload::YcsbD => {
                let newest = Newest::new(users, MAX_NEW);
                let latest = Numbers::Latest(newest.clone(), Arc::clone(&YCSB_RANKS));
                mixed(load(seeded, latest), 0.05, register(Series::Seeded), Numbers::New(newest))
            }
        }
    }
}

/// Reads, and a `share` of writes in each client's requests.
fn mixed(mut reads: Load, share: f64, requests: Requests, numbers: Numbers) -> Load {
    reads.parts[0].share = 1.0 - share;
    reads.parts.push(Part { requests, numbers, share });
    reads
}

/// Names that are not registered yet: each target continues where the last one stopped.
pub fn new_names() -> Once {
    static NAMES: LazyLock<Once> = LazyLock::new(|| Once::ordered(0, 900_000_000));
    NAMES.clone()
}
