//! One row of the table: a workload on a target, measured over rounds.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::arrival::Arrival;
use crate::ledger;
use crate::load::Load;
use crate::stores::Stores;
use crate::tally::Tally;
use crate::targets::{Kind, Target};
use crate::usage;
use crate::workload::Workload;

/// How a row is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clients at once.
    pub clients: usize,
    /// How long answers count, in each round.
    pub time: Duration,
    /// How many rounds, in each of which all targets take turns.
    pub rounds: usize,
    /// How many users are seeded.
    pub users: u32,
    /// Whether the kernel stamps answers.
    pub arrival: Arrival,
}

/// One row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The requests.
    pub workload: Workload,
    /// The program that answered them.
    pub target: Kind,
    /// Clients at once.
    pub clients: usize,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// The figures of each round.
    #[serde(skip)]
    pub rounds: Vec<Figures>,
}

/// The figures of a load on one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Right answers a second.
    pub requests_per_second: f64,
    /// The median latency of right answers, in microseconds.
    pub p50_us: f64,
    /// The latency that one right answer in a hundred exceeds, in microseconds.
    pub p99_us: f64,
    /// Processor time of the services for each answer, in microseconds.
    pub service_us: f64,
    /// The same of PostgreSQL.
    pub postgres_us: f64,
    /// The same of Redis.
    pub redis_us: f64,
    /// The same of the load generator.
    pub generator_us: f64,
    /// How long the load generator was ready to run and had no processor, for each answer, in microseconds.
    #[serde(default)]
    pub generator_wait_us: f64,
    /// The same of the target.
    #[serde(default)]
    pub service_wait_us: f64,
    /// The same of PostgreSQL and Redis.
    #[serde(default)]
    pub stores_wait_us: f64,
    /// The peak memory of the larger of its services, in MiB.
    pub peak_mib: f64,
    /// Answers with another status than expected and lost connections, in all rounds.
    pub errors: u64,
    /// Answers whose body was compared with the expected one, and written users that were then compared with
    /// PostgreSQL, in all rounds.
    pub checked: u64,
    /// Those of them that were wrong.
    pub wrong: u64,
}

impl Figures {
    /// The median of each figure; errors are added up.
    pub fn median(all: &[Figures]) -> Figures {
        let median = |of: fn(&Figures) -> f64| median(all.iter().map(of));
        let sum = |of: fn(&Figures) -> u64| all.iter().map(of).sum();
        Figures {
            requests_per_second: median(|it| it.requests_per_second),
            p50_us: median(|it| it.p50_us),
            p99_us: median(|it| it.p99_us),
            service_us: median(|it| it.service_us),
            postgres_us: median(|it| it.postgres_us),
            redis_us: median(|it| it.redis_us),
            generator_us: median(|it| it.generator_us),
            generator_wait_us: median(|it| it.generator_wait_us),
            service_wait_us: median(|it| it.service_wait_us),
            stores_wait_us: median(|it| it.stores_wait_us),
            peak_mib: median(|it| it.peak_mib),
            errors: sum(|it| it.errors),
            checked: sum(|it| it.checked),
            wrong: sum(|it| it.wrong),
        }
    }
}

/// The median; of an even number of values the mean of the middle two. Zero of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        (_, middle) => values[middle],
    }
}

/// Measures a workload on each of `targets`, in turn, over the plan's rounds.
pub fn measure(stores: &Stores, workload: Workload, targets: &[Kind], plan: &Plan) -> Vec<Row> {
    let mut rounds = vec![Vec::new(); targets.len()];
    for _ in 0..plan.rounds {
        for (&kind, figures) in targets.iter().zip(&mut rounds) {
            figures.push(once(stores, workload, kind, plan).0);
        }
    }
    let row = |(&target, rounds): (&Kind, Vec<Figures>)| Row {
        workload,
        target,
        clients: plan.clients,
        figures: Figures::median(&rounds),
        rounds,
    };
    targets.iter().zip(rounds).map(row).collect()
}

/// Measures one round of one target, and returns the figures and the counted answers.
pub fn once(stores: &Stores, workload: Workload, kind: Kind, plan: &Plan) -> (Figures, Tally) {
    let target = Target::start(kind, stores, workload.info_bytes());
    workload.prepare(&target, plan.users);
    let mut load = workload.load(&target, plan.users, plan.clients);
    load.arrival = plan.arrival;
    let (figures, tally) = run(stores, &target, &load, workload.warm_up(), plan.time);
    drop(target);
    let written = ledger::settle(stores, kind, &load, &tally, plan.users);
    let (checked, wrong) = (figures.checked + written.checked, figures.wrong + written.wrong);
    (Figures { checked, wrong, ..figures }, tally)
}

/// Loads a target, and returns the figures and the counted answers.
pub fn run(
    stores: &Stores,
    target: &Target,
    load: &Load,
    warm_up: Duration,
    time: Duration,
) -> (Figures, Tally) {
    let running = load.start();
    running.wait(warm_up);
    running.measure();
    let began = Instant::now();
    let before = Spent::now(stores, target);
    running.wait(time);
    let time = began.elapsed();
    let spent = Spent::now(stores, target).since(&before);
    let tally = running.stop();
    (figures(target, time, &spent, &tally), tally)
}

/// What all programs that take part have used of the processors, and how long they waited for one.
struct Spent {
    service: Duration,
    postgres: Duration,
    redis: Duration,
    generator: Duration,
    generator_wait: Duration,
    service_wait: Duration,
    stores_wait: Duration,
}

impl Spent {
    /// Up to now.
    fn now(stores: &Stores, target: &Target) -> Spent {
        let (postgres, redis) = stores.cpu();
        Spent {
            service: target.cpu(),
            postgres,
            redis,
            generator: usage::generator_cpu(),
            generator_wait: usage::wait(rustix::process::getpid()),
            service_wait: target.wait(),
            stores_wait: stores.wait(),
        }
    }

    fn since(&self, before: &Spent) -> Spent {
        Spent {
            service: self.service.saturating_sub(before.service),
            postgres: self.postgres.saturating_sub(before.postgres),
            redis: self.redis.saturating_sub(before.redis),
            generator: self.generator.saturating_sub(before.generator),
            generator_wait: self.generator_wait.saturating_sub(before.generator_wait),
            service_wait: self.service_wait.saturating_sub(before.service_wait),
            stores_wait: self.stores_wait.saturating_sub(before.stores_wait),
        }
    }
}

fn figures(target: &Target, time: Duration, spent: &Spent, tally: &Tally) -> Figures {
    let answers = (tally.right.len() + tally.errors).max(1) as f64;
    let per_answer = |time: Duration| time.as_secs_f64() * 1e6 / answers;
    Figures {
        requests_per_second: tally.right.len() as f64 / time.as_secs_f64(),
        p50_us: tally.right.value_at_quantile(0.5) as f64,
        p99_us: tally.right.value_at_quantile(0.99) as f64,
        service_us: per_answer(spent.service),
        postgres_us: per_answer(spent.postgres),
        redis_us: per_answer(spent.redis),
        generator_us: per_answer(spent.generator),
        generator_wait_us: per_answer(spent.generator_wait),
        service_wait_us: per_answer(spent.service_wait),
        stores_wait_us: per_answer(spent.stores_wait),
        peak_mib: target.peak_mib(),
        errors: tally.errors,
        checked: tally.checked,
        wrong: tally.wrong,
    }
}
