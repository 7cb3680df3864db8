//! The metrics of a service, in the Prometheus text format.

use actix_web::http::StatusCode;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::logging;

/// The metrics of one service.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    requests: HistogramVec,
    /// Worker threads of the database, and what waits for them.
    pub database: DatabaseMetrics,
    /// What became of reads and writes in the cache.
    pub cache: CacheMetrics,
    /// Who was let in.
    pub access: AccessMetrics,
}

/// How busy the database pool is.
#[derive(Clone, Debug)]
pub struct DatabaseMetrics {
    /// Connections that are working.
    pub in_use: IntGauge,
    /// Requests that wait for a connection, or for a grant of the cache.
    pub waiting: IntGauge,
    /// Queries that took, or would have taken, longer than their deadline.
    pub timeouts: IntCounter,
    /// Queries refused because the queue was full.
    pub refused: IntCounter,
    /// What the monitor knows of the grant.
    pub grant: GrantMetrics,
}

/// The grant of the cache, as this process knows it.
#[derive(Clone, Debug)]
pub struct GrantMetrics {
    /// 1 while no Redis may be used.
    pub suspended: IntGauge,
    /// When the epoch became known here, in seconds since 1970.
    pub since: IntGauge,
    /// Changes that this process has made, by reason.
    pub changes: IntCounterVec,
    /// Looks that met a standby.
    pub standbys: IntCounter,
}

/// Requests by what asking for a token came to, and the state of the token list.
#[derive(Clone, Debug)]
pub struct AccessMetrics {
    /// Let in by what their connection remembers.
    pub memo: IntCounter,
    /// Let in by the token list.
    pub verified: IntCounter,
    /// Refused: nothing presented.
    pub none: IntCounter,
    /// Refused: no token that is valid.
    pub invalid: IntCounter,
    /// Refused: a token that does not allow it.
    pub scope: IntCounter,
    /// Requests that were limited.
    pub limited: IntCounter,
    /// 1 while the token list is wrong, and the last good one is in use.
    pub stale: IntGauge,
}

/// How the cache is used, and whether it keeps its promise.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    /// Reads by result.
    pub requests: IntCounterVec,
    /// Entries of another epoch, installation or past of the database, which were not used.
    pub refused: IntCounter,
    /// Loaded rows that a transaction under way had locked or changed, which were not stored.
    pub not_clear: IntCounter,
    /// Entries that were replaced by a refresh though no write had come in between, and yet differed.
    pub incoherent: IntCounter,
    /// Barriers by what became of them.
    pub barriers: IntCounterVec,
    /// Writes of which COMMIT did not say the outcome, by how it was found.
    pub outcomes: IntCounterVec,
    /// Writes that were answered with outcome-unknown, and have not ended.
    pub unfinished: IntGauge,
    /// When the newest proof of the near cache began, in seconds since 1970.
    pub near_proof: Gauge,
    /// Near members that a write has waited for, at the last one.
    pub members: IntGauge,
    /// Near members that were dropped since they were silent.
    pub members_dropped: IntCounter,
    /// Acks that did not come in time.
    pub acks_missed: IntCounter,
    /// How long transactions have waited for acks.
    pub ack_wait: Histogram,
}

impl Metrics {
    /// Makes the metrics of the service `name`.
    ///
    /// # Errors
    /// A metric's name that is not valid, or taken: a bug.
    pub fn new(name: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };

        let requests =
            HistogramOpts::new("http_request_duration_seconds", "Time to answer, by route and status.")
                .buckets(vec![
                    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                ]);
        let requests = HistogramVec::new(requests, &["method", "route", "status"])?;
        registry.register(Box::new(requests.clone()))?;

        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let cache = CacheMetrics {
            requests: counters("cache_requests_total", "What asking the cache came to.", "result")?,
            refused: counter(
                "cache_entries_refused_total",
                "Entries of another epoch, installation or past of the database, which were not used.",
            )?,
            not_clear: counter(
                "cache_rows_not_clear_total",
                "Loaded rows that a transaction under way had locked or changed, which were not stored.",
            )?,
            incoherent: counter(
                "cache_incoherent_total",
                "Entries that were wrong: refreshed without a write in between, and changed. 0, except after changes by SQL.",
            )?,
            barriers: counters(
                "cache_barriers_total",
                "Barriers of writes, by what became of them.",
                "event",
            )?,
            unfinished: gauge(
                "writes_unfinished",
                "Writes that were answered with outcome-unknown, and have not ended.",
            )?,
            near_proof: {
                let gauge = Gauge::new(
                    "near_proof_timestamp_seconds",
                    "When the newest proof of the near cache began, in seconds since 1970; 0 if there is none.",
                )?;
                registry.register(Box::new(gauge.clone()))?;
                gauge
            },
            members: gauge("near_members", "Near caches that the newest replace or delete has waited for.")?,
            members_dropped: counter(
                "near_members_dropped_total",
                "Near caches that writes no longer wait for, since they did not acknowledge one.",
            )?,
            acks_missed: counter(
                "acks_missed_total",
                "Acknowledgements of near caches that did not come in time.",
            )?,
            ack_wait: {
                let waits = HistogramOpts::new(
                    "ack_wait_seconds",
                    "How long transactions have waited until no near cache had a copy of what they change.",
                )
                .buckets(vec![0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.06]);
                let histogram = Histogram::with_opts(waits)?;
                registry.register(Box::new(histogram.clone()))?;
                histogram
            },
            outcomes: counters(
                "writes_in_doubt_total",
                "Writes of which COMMIT did not say the outcome, by how it was found.",
                "resolution",
            )?,
        };
        let grant = GrantMetrics {
            suspended: gauge("cache_suspended", "1 while no Redis may be used.")?,
            since: gauge(
                "cache_epoch_known_since_seconds",
                "When the epoch of the cache became known here, in seconds since 1970.",
            )?,
            changes: counters(
                "cache_grant_changes_total",
                "Changes of the grant by this process.",
                "reason",
            )?,
            standbys: counter("database_standbys_refused_total", "Looks at PostgreSQL that met a standby.")?,
        };

        let checked = counters(
            "auth_requests_total",
            "Requests that needed a token, by what asking for it came to.",
            "result",
        )?;
        let checked = |result| checked.with_label_values(&[result]);
        let access = AccessMetrics {
            memo: checked("memo"),
            verified: checked("verified"),
            none: checked("none"),
            invalid: checked("invalid"),
            scope: checked("scope"),
            limited: counter("rate_limited_total", "Requests of clients that had used up their budget.")?,
            stale: gauge(
                "auth_token_list_stale",
                "1 while the token list is wrong, and the last good one is in use.",
            )?,
        };

        let build =
            IntGaugeVec::new(Opts::new("build_info", "Always 1."), &["service", "version", "revision"])?;
        build.with_label_values(&[name, env!("CARGO_PKG_VERSION"), REVISION]).set(1);
        registry.register(Box::new(build))?;
        registry.register(Box::new(logging::DROPPED.clone()))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;

        let database = DatabaseMetrics {
            in_use: gauge("database_connections_in_use", "Database connections that are working.")?,
            waiting: gauge(
                "database_queries_waiting",
                "Requests that wait for a connection, or for a grant of the cache.",
            )?,
            timeouts: counter(
                "database_timeouts_total",
                "Queries that took, or would have taken, longer than their deadline.",
            )?,
            refused: counter("database_refused_total", "Queries refused because as many waited as may.")?,
            grant,
        };
        Ok(Self { registry, requests, database, cache, access })
    }

    /// The histogram of requests with these labels. `route` is the template, never the path, so that labels stay few.
    #[must_use]
    pub fn requests(&self, method: &str, route: &str, status: StatusCode) -> Histogram {
        self.requests.with_label_values(&[method, route, status.as_str()])
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// A metric that cannot be written: a bug.
    pub fn text(&self) -> prometheus::Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The commit that was built, if the build had `GIT_REVISION`.
pub const REVISION: &str = match option_env!("GIT_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
