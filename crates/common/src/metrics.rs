//! The metrics of a service, in the Prometheus text format.

use actix_web::http::StatusCode;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// The metrics of one service.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    requests: HistogramVec,
    /// Worker threads of the database, and what waits for them.
    pub database: DatabaseMetrics,
    /// Cache requests by result.
    pub cache: IntCounterVec,
}

/// How busy the database pool is.
#[derive(Clone, Debug)]
pub struct DatabaseMetrics {
    /// Connections that are working.
    pub in_use: IntGauge,
    /// Queries that wait for a connection, or for a turn to hold one for long.
    pub waiting: IntGauge,
    /// Queries that took, or would have taken, longer than their deadline.
    pub timeouts: IntCounter,
    /// Queries refused because the queue was full.
    pub refused: IntCounter,
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

        let cache = Opts::new("cache_requests_total", "What asking the cache came to.");
        let cache = IntCounterVec::new(cache, &["result"])?;
        registry.register(Box::new(cache.clone()))?;

        let build =
            IntGaugeVec::new(Opts::new("build_info", "Always 1."), &["service", "version", "revision"])?;
        build.with_label_values(&[name, env!("CARGO_PKG_VERSION"), REVISION]).set(1);
        registry.register(Box::new(build))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;

        let database = DatabaseMetrics {
            in_use: gauge("database_connections_in_use", "Database connections that are working.")?,
            waiting: gauge(
                "database_queries_waiting",
                "Queries that wait for a connection, or for leave to hold one for long.",
            )?,
            timeouts: counter(
                "database_timeouts_total",
                "Queries that took, or would have taken, longer than their deadline.",
            )?,
            refused: counter("database_refused_total", "Queries refused because as many waited as may.")?,
        };
        Ok(Self { registry, requests, database, cache })
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
