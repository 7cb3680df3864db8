//! More clients than a service can serve: how many requests it still serves, how fast, and how fast it refuses others.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::row::{Plan, median, run};
use crate::stores::{INFO_BYTES, Stores};
use crate::targets::{Kind, Target};
use crate::workload::Workload;

/// How many times the plan's clients send at once.
const FACTOR: usize = 10;
/// A queue that ten times the clients fill. The default one is long enough for all of them.
const SHORT_QUEUE: &str = "128";

/// One load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Overload {
    /// The requests.
    pub workload: Workload,
    /// The program that answered them.
    pub target: Kind,
    /// Clients at once.
    pub clients: usize,
    /// The length of the service's queue.
    pub queue: Queue,
    /// Right answers a second.
    pub goodput: f64,
    /// The latency that one right answer in a hundred exceeds, in milliseconds.
    pub p99_ms: f64,
    /// Answers with 503 a second.
    pub refused: f64,
    /// The median latency of 503, in milliseconds.
    pub refused_p50_ms: f64,
    /// The latency that one 503 in a hundred exceeds, in milliseconds.
    pub refused_p99_ms: f64,
    /// Errors other than 503.
    pub errors: u64,
}

/// How many requests may wait for PostgreSQL in a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Queue {
    /// The default of `DATABASE_QUEUE`.
    Default,
    /// 128.
    Short,
}

impl Queue {
    /// An addition to the target's name in tables.
    pub fn suffix(self) -> &'static str {
        match self {
            Queue::Default => "",
            Queue::Short => ", queue of 128",
        }
    }
}

/// Loads ours and the axum peer with the plan's clients and ten times as many, in turn, over the plan's rounds.
pub fn overloads(stores: &Stores, plan: &Plan) -> Vec<Overload> {
    let mut loads = Vec::new();
    for workload in [Workload::Miss, Workload::Register] {
        for (kind, queue) in
            [(Kind::Ours, Queue::Default), (Kind::Ours, Queue::Short), (Kind::Axum, Queue::Default)]
        {
            loads.extend([1, FACTOR].map(|factor| (workload, kind, queue, plan.clients * factor)));
        }
    }
    let mut rounds = vec![Vec::new(); loads.len()];
    for _ in 0..plan.rounds {
        for (&(workload, kind, queue, clients), figures) in loads.iter().zip(&mut rounds) {
            figures.push(overload(stores, workload, kind, queue, &Plan { clients, ..*plan }));
        }
    }
    rounds.iter().map(|figures| median_of(figures)).collect()
}

fn median_of(rounds: &[Overload]) -> Overload {
    let of_refusals = |of: fn(&Overload) -> f64| median(rounds.iter().filter(|it| it.refused > 0.0).map(of));
    let median = |of: fn(&Overload) -> f64| median(rounds.iter().map(of));
    Overload {
        goodput: median(|it| it.goodput),
        p99_ms: median(|it| it.p99_ms),
        refused: median(|it| it.refused),
        refused_p50_ms: of_refusals(|it| it.refused_p50_ms),
        refused_p99_ms: of_refusals(|it| it.refused_p99_ms),
        errors: rounds.iter().map(|it| it.errors).sum(),
        ..rounds[0].clone()
    }
}

fn overload(stores: &Stores, workload: Workload, kind: Kind, queue: Queue, plan: &Plan) -> Overload {
    let target = match queue {
        Queue::Short => Target::ours_with(stores, "DATABASE_QUEUE", SHORT_QUEUE),
        Queue::Default => Target::start(kind, stores, INFO_BYTES),
    };
    let load = workload.load(&target, plan.users, plan.clients);
    let (figures, tally) = run(stores, &target, &load, workload.warm_up(), plan.time);
    let ms = |of: &Histogram<u32>, quantile| of.value_at_quantile(quantile) as f64 / 1e3;
    Overload {
        workload,
        target: kind,
        clients: plan.clients,
        queue,
        goodput: figures.requests_per_second,
        p99_ms: ms(&tally.right, 0.99),
        refused: tally.refused.len() as f64 / plan.time.as_secs_f64(),
        refused_p50_ms: ms(&tally.refused, 0.5),
        refused_p99_ms: ms(&tally.refused, 0.99),
        errors: tally.errors - tally.refused.len(),
    }
}
