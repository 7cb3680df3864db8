//! What every request gets: an id, a line in the log, its place in the metrics and, if it failed, problem details.
//!
//! One middleware does it all, since each one that is wrapped around a service costs every request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{
    ALLOW, CACHE_CONTROL, CACHE_STATUS, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{HttpResponse, HttpResponseBuilder, Resource, web};
use log::Level;
use prometheus::Histogram;

use crate::error::{Error, Kind};
use crate::metrics::Metrics;
use crate::server::Draining;

/// A resource's template, for logs and metrics: to ask the router would be to route a second time.
#[derive(Clone, Copy)]
struct Route(&'static str);

/// A resource at `template`.
pub fn resource(template: &'static str) -> Resource {
    web::resource(template).app_data(Route(template))
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_MAX_BYTES: usize = 128;
/// Seconds after which a client may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// What the middleware of a worker shares between requests.
pub struct Watch {
    metrics: Metrics,
    /// Those of them that were needed so far, which are few: to ask for one by its labels takes longer than to count.
    found: RefCell<Vec<(Labels, Histogram)>>,
    draining: Draining,
    refusals: Refusals,
}

/// A method, a route and a status.
type Labels = (&'static str, &'static str, StatusCode);

impl Watch {
    /// Counts requests in `metrics` and refusals for a full queue in `refusals`, and ends connections from `draining`
    /// on.
    #[must_use]
    pub fn new(metrics: Metrics, draining: Draining, refusals: Refusals) -> Self {
        Self { metrics, found: RefCell::default(), draining, refusals }
    }

    fn observe(&self, method: &'static str, route: &'static str, status: StatusCode, took: Duration) {
        let (labels, seconds) = ((method, route, status), took.as_secs_f64());
        let mut found = self.found.borrow_mut();
        if let Some((_, histogram)) = found.iter().find(|(known, _)| *known == labels) {
            return histogram.observe(seconds);
        }
        let histogram = self.metrics.requests(method, route, status);
        histogram.observe(seconds);
        found.push((labels, histogram));
    }
}

/// Serves `request` through `next`, and looks after what the module's head says.
///
/// # Errors
/// None of its own: errors of the services inside become responses.
pub async fn watch<B: MessageBody + 'static>(
    watch: Rc<Watch>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B, BoxBody>>, actix_web::Error> {
    let start = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();

    let response = next.call(request).await?;
    let failure = Failure::of(&response);
    let mut response = match failure.body {
        Some(body) => {
            let (request, response) = response.into_parts();
            let response = problem_response(&response, body);
            ServiceResponse::new(request, response).map_into_right_body()
        }
        None => response.map_into_left_body(),
    };

    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_REQUEST_ID, id.clone());
    // After a body that was refused or came too slowly the rest of it may still arrive: no request may follow it.
    let abandoned = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
    if abandoned || watch.draining.get() {
        // actix-http writes the header from this, and drops one that is inserted by hand.
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }

    let line = Line {
        id: id.to_str().unwrap_or_default(),
        method: method_label(&method),
        route: response.request().app_data().map_or("(none)", |&Route(template)| template),
        status,
        took: start.elapsed(),
        cache: response.headers().get(CACHE_STATUS).and_then(|value| value.to_str().ok()),
    };
    watch.observe(line.method, line.route, status, line.took);
    match failure.kind {
        Some(kind) if kind == Error::Overloaded.kind() => watch.refusals.count(),
        _ => line.log(&method, failure.cause.as_deref()),
    }
    Ok(response)
}

/// The client's `X-Request-Id` if it is fit for a log line, else 128 random bits.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let given = headers.get(X_REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=REQUEST_ID_MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(sane)
    });
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_bytes(&hex(&rand::random())).unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

/// 128 bits as hexadecimal digits, without the formatting machinery.
#[must_use]
pub fn hex(bits: &[u8; 16]) -> [u8; 32] {
    let mut digits = [b'0'; 32];
    const_hex::encode_to_slice(bits, &mut digits).unwrap_or_default();
    digits
}

/// What an error answer says, inside and outside.
#[derive(Default)]
struct Failure {
    kind: Option<&'static Kind>,
    body: Option<Vec<u8>>,
    cause: Option<String>,
}

impl Failure {
    fn of<B>(response: &ServiceResponse<B>) -> Self {
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            return Self::default();
        }
        let instance = response.request().uri().path();
        let carried = response.response().error();
        let error = carried.and_then(|carried| carried.as_error::<Error>());
        let problem = error.map(|error| error.problem(instance));
        let kind = error.map(Error::kind).or_else(|| Kind::of_status(status));
        let problem = problem.or_else(|| kind.map(|kind| kind.problem(instance)));
        let cause = match error {
            Some(error) => error.cause().map(str::to_owned),
            // An error that is not ours comes from actix-web or a library.
            None => carried.filter(|_| status.is_server_error()).map(ToString::to_string),
        };
        Self { kind, body: problem.and_then(|problem| serde_json::to_vec(&problem).ok()), cause }
    }
}

fn problem_response<B>(failed: &HttpResponse<B>, body: Vec<u8>) -> HttpResponse {
    let mut response = HttpResponseBuilder::new(failed.status());
    response.insert_header((CONTENT_TYPE, "application/problem+json"));
    response.insert_header((CACHE_CONTROL, "no-store"));
    if failed.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.insert_header((RETRY_AFTER, RETRY_AFTER_SECONDS));
    }
    for kept in [ALLOW, CACHE_STATUS] {
        if let Some(value) = failed.headers().get(&kept) {
            response.insert_header((kept, value.clone()));
        }
    }
    response.body(body)
}

/// Clients may send any token as a method: metrics and logs know only these.
fn method_label(method: &Method) -> &'static str {
    match *method {
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

/// A request's line under the target `access`. It tells the route, never the path: a name is personal data.
struct Line<'a> {
    id: &'a str,
    method: &'static str,
    route: &'static str,
    status: StatusCode,
    took: Duration,
    cache: Option<&'a str>,
}

impl Line<'_> {
    fn log(&self, method: &Method, cause: Option<&str>) {
        let Self { id, method: label, route, cache, .. } = *self;
        let status = self.status.as_u16();
        let ms = (self.took.as_secs_f64() * 1e6).round() / 1e3;
        if let Some(cause) = cause {
            log::error!(request_id = id; "{cause}");
        }
        // A read that finds a user, or finds none, is the hot path: nobody reads a line about it.
        let read = matches!(*method, Method::GET | Method::HEAD);
        let quiet =
            read && (!self.status.is_client_error() && !self.status.is_server_error() || status == 404);
        let level = if quiet { Level::Debug } else { Level::Info };
        match cache {
            Some(cache) => {
                log::log!(target: "access", level, request_id = id, ms = ms, cache = cache; "{label} {route} {status}")
            }
            None => log::log!(target: "access", level, request_id = id, ms = ms; "{label} {route} {status}"),
        }
    }
}

/// Refusals for a full queue: told once a second with their number, since an overload must not be made worse by
/// its own log.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<AtomicU64>);

impl Refusals {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Logs, once a second, how many there were. Never returns.
    pub async fn report(self) {
        loop {
            actix_web::rt::time::sleep(Duration::from_secs(1)).await;
            let count = self.0.swap(0, Ordering::Relaxed);
            if count > 0 {
                log::warn!(target: "access", status = 503, count = count; "requests refused in the last second: the database queue is full");
            }
        }
    }
}
