//! What the log says of requests: a line for each that matters, and a count of those refused for overload.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::http::header::{CACHE_STATUS, HeaderMap, HeaderName};
use actix_web::http::{Method, StatusCode};
use log::Level;

use super::middleware::X_REQUEST_ID;

/// A request's line under the target `access`. It holds the route, never the path: a name is personal data.
pub struct AccessLine<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The template of its route.
    pub route: &'static str,
    /// The status of the response.
    pub status: StatusCode,
    /// How long the response took.
    pub took: Duration,
    /// The headers of the response.
    pub headers: &'a HeaderMap,
}

impl AccessLine<'_> {
    /// Writes the line, and one with `cause` if there is one.
    pub fn log(&self, cause: Option<&str>) {
        let (label, route, status) = (self.label(), self.route, self.status.as_u16());
        if let Some(cause) = cause {
            log::error!(request_id = self.header(X_REQUEST_ID); "{cause}");
        }
        // A read that finds a record, or finds none, is the hot path: a line for each would bury the others.
        let read = matches!(*self.method, Method::GET | Method::HEAD);
        let quiet =
            read && (!self.status.is_client_error() && !self.status.is_server_error() || status == 404);
        let level = if quiet { Level::Debug } else { Level::Info };
        if !log::log_enabled!(target: "access", level) {
            return;
        }
        let (id, cache) = (self.header(X_REQUEST_ID), self.header(CACHE_STATUS));
        let ms = (self.took.as_secs_f64() * 1e6).round() / 1e3;
        match cache {
            Some(cache) => {
                log::log!(target: "access", level, request_id = id, ms = ms, cache = cache; "{label} {route} {status}")
            }
            None => log::log!(target: "access", level, request_id = id, ms = ms; "{label} {route} {status}"),
        }
    }

    /// Writes a line under the target `audit`: what `client` has done.
    pub fn audit(&self, client: &str) {
        let (label, route, status) = (self.label(), self.route, self.status.as_u16());
        let id = self.header(X_REQUEST_ID);
        log::info!(target: "audit", client = client, request_id = id; "{label} {route} {status}");
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The method for metrics and logs. Clients may send any token as a method, so that labels would have no bound.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match *self.method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            Method::PATCH => "PATCH",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        }
    }
}

/// Requests that were refused. Their number is logged once a second, since neither an overload nor an attack must be
/// made worse by its log.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Those refused for overload.
    overload: AtomicU64,
    /// Those not let in.
    unwelcome: AtomicU64,
}

/// How many requests that are not let in get a line of their own in each second.
const AUDITED: u64 = 10;

impl Refusals {
    /// Counts one for overload.
    pub fn count(&self) {
        self.0.overload.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that was not let in, and writes its line under the target `audit` if it is one of the first.
    pub fn audit(&self, line: &AccessLine<'_>) {
        if self.0.unwelcome.fetch_add(1, Ordering::Relaxed) < AUDITED {
            line.audit("-");
        }
    }

    /// Logs once a second how many requests were refused in it. Never returns.
    pub async fn report(self) {
        loop {
            actix_web::rt::time::sleep(Duration::from_secs(1)).await;
            let count = self.0.overload.swap(0, Ordering::Relaxed);
            if count > 0 {
                log::warn!(target: "access", status = 503, count = count; "requests refused in the last second: too many were waiting");
            }
            let count = self.0.unwelcome.swap(0, Ordering::Relaxed).saturating_sub(AUDITED);
            if count > 0 {
                log::warn!(target: "audit", count = count; "more requests were not let in, in the last second");
            }
        }
    }
}
