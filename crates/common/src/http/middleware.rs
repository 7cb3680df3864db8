//! What every request gets: an id, a line in the log, its place in the metrics and, if it failed, problem details.
//!
//! One middleware does it all, since each one that is wrapped around a service costs every request. A [`FastPath`]
//! answers within it.

use std::cell::RefCell;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::header::{
    ALLOW, CACHE_CONTROL, CACHE_STATUS, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use futures_util::future::{Either, LocalBoxFuture};
use log::Level;
use prometheus::Histogram;

use super::drain::{Draining, InFlight};
use super::idle::ClientConnection;
use super::problem::Kind;
use super::route::Route;
use crate::error::Error;
use crate::metrics::Metrics;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest `X-Request-Id` of a client that is kept: longer ones would make log lines hard to read.
const REQUEST_ID_MAX_BYTES: usize = 128;
/// Seconds after which a client may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Answers some requests without routing them: for the most frequent ones routing would take longer than the answer.
#[derive(Clone, Copy)]
pub struct FastPath {
    /// The template of the route that would answer them.
    pub template: &'static str,
    /// Answers as that route would, or leaves the request to it.
    pub answer: fn(&HttpRequest) -> Option<HttpResponse>,
}

/// The middleware of a worker.
#[derive(Clone)]
pub struct Telemetry(Rc<WorkerState>);

/// What a worker's requests share.
struct WorkerState {
    fast_path: Option<FastPath>,
    metrics: Metrics,
    /// The histograms used so far, which are few: a lookup by labels costs more than the observation.
    histograms: RefCell<Vec<(Labels, Histogram)>>,
    draining: Draining,
    in_flight: InFlight,
    refusals: Refusals,
}

/// A method, a route and a status.
type Labels = (&'static str, &'static str, StatusCode);

impl Telemetry {
    /// Tries `fast_path` first, counts requests in `metrics` and those refused for overload in `refusals`, and closes
    /// connections once `draining` has begun.
    #[must_use]
    pub fn new(
        fast_path: Option<FastPath>,
        metrics: Metrics,
        draining: Draining,
        refusals: Refusals,
    ) -> Self {
        let in_flight = draining.worker();
        let histograms = RefCell::default();
        Self(Rc::new(WorkerState { fast_path, metrics, histograms, draining, in_flight, refusals }))
    }
}

impl<S> Transform<S, ServiceRequest> for Telemetry
where
    S: Service<ServiceRequest, Response = ServiceResponse, Error = actix_web::Error>,
    S::Future: 'static,
{
    type Response = ServiceResponse;
    type Error = actix_web::Error;
    type Transform = TelemetryService<S>;
    type InitError = ();
    type Future = Ready<Result<TelemetryService<S>, ()>>;

    fn new_transform(&self, routes: S) -> Self::Future {
        ready(Ok(TelemetryService { state: self.0.clone(), routes }))
    }
}

/// The middleware around the routes of a worker.
pub struct TelemetryService<S> {
    state: Rc<WorkerState>,
    routes: S,
}

impl<S> Service<ServiceRequest> for TelemetryService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse, Error = actix_web::Error>,
    S::Future: 'static,
{
    type Response = ServiceResponse;
    type Error = actix_web::Error;
    type Future = Either<
        Ready<Result<ServiceResponse, actix_web::Error>>,
        LocalBoxFuture<'static, Result<ServiceResponse, actix_web::Error>>,
    >;

    forward_ready!(routes);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let begun = InFlightRequest::begin(&request);
        if let Some(FastPath { template, answer }) = self.state.fast_path
            && let Some(response) = answer(request.request())
        {
            // Not `request.into_response`, which drops the error that the response was made from.
            let response = ServiceResponse::new(request.into_parts().0, response);
            return Either::Left(ready(Ok(self.state.finish(begun, template, response))));
        }
        if let Some(connection) = request.request().conn_data::<Rc<ClientConnection>>() {
            connection.request_begins();
        }
        let state = self.state.clone();
        let response = self.routes.call(request);
        Either::Right(Box::pin(async move {
            let _until_it_is_answered = state.in_flight.request();
            let response = response.await?;
            let template = response.request().app_data().map_or("(none)", |&Route(template)| template);
            Ok(state.finish(begun, template, response))
        }))
    }
}

/// What is kept of a request until it is answered.
struct InFlightRequest {
    start: Instant,
    method: Method,
    id: HeaderValue,
}

impl InFlightRequest {
    fn begin(request: &ServiceRequest) -> Self {
        Self { start: Instant::now(), method: request.method().clone(), id: request_id(request.headers()) }
    }
}

impl WorkerState {
    /// Completes the response to `request`, observes it and logs it.
    fn finish(
        &self,
        request: InFlightRequest,
        route: &'static str,
        response: ServiceResponse,
    ) -> ServiceResponse {
        let failure = Failure::of(&response);
        let mut response = match failure.body {
            Some(body) => {
                let (request, failed) = response.into_parts();
                ServiceResponse::new(request, problem_response(&failed, body))
            }
            None => response,
        };

        let status = response.status();
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(X_REQUEST_ID, request.id);
        // The rest of a body that was refused or came too slowly may still arrive: no request may follow it.
        let abandoned = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
        if abandoned || self.draining.has_begun() {
            // actix-http writes the header from this, and drops one that is inserted by hand.
            response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
        }

        let now = Instant::now();
        if let Some(connection) = response.request().conn_data::<Rc<ClientConnection>>() {
            connection.request_ends(now);
        }
        let took = now.duration_since(request.start);
        let line = AccessLine { method: &request.method, route, status, took, headers: response.headers() };
        self.observe(line.label(), route, status, took);
        match failure.kind {
            Some(kind) if kind == Error::Overloaded.kind() => self.refusals.count(),
            _ => line.log(failure.cause.as_deref()),
        }
        response
    }

    fn observe(&self, method: &'static str, route: &'static str, status: StatusCode, took: Duration) {
        let labels = (method, route, status);
        let seconds = took.as_secs_f64();
        let mut histograms = self.histograms.borrow_mut();
        if let Some((_, histogram)) = histograms.iter().find(|(known, _)| *known == labels) {
            return histogram.observe(seconds);
        }
        let histogram = self.metrics.requests(method, route, status);
        histogram.observe(seconds);
        histograms.push((labels, histogram));
    }
}

/// The client's `X-Request-Id` if it is fit for a log line, else 128 random bits.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let given = headers.get(X_REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=REQUEST_ID_MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(sane)
    });
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_bytes(&random_id()).unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

/// 128 random bits as hexadecimal digits, without the formatting machinery.
fn random_id() -> [u8; 32] {
    let mut digits = [b'0'; 32];
    const_hex::encode_to_slice(rand::random::<[u8; 16]>(), &mut digits).unwrap_or_default();
    digits
}

/// What an error answer says to the client, and to the log.
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
            // An error of another type comes from actix-web or a library.
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

/// A request's line under the target `access`. It holds the route, never the path: a name is personal data.
struct AccessLine<'a> {
    method: &'a Method,
    route: &'static str,
    status: StatusCode,
    took: Duration,
    /// The headers of the response.
    headers: &'a HeaderMap,
}

impl AccessLine<'_> {
    fn log(&self, cause: Option<&str>) {
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

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The method for metrics and logs. Clients may send any token as a method, so that labels would have no bound.
    fn label(&self) -> &'static str {
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

/// Refusals for overload. Their number is logged once a second, since an overload must not be made worse by its log.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<AtomicU64>);

impl Refusals {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Logs once a second how many requests were refused in it. Never returns.
    pub async fn report(self) {
        loop {
            actix_web::rt::time::sleep(Duration::from_secs(1)).await;
            let count = self.0.swap(0, Ordering::Relaxed);
            if count > 0 {
                log::warn!(target: "access", status = 503, count = count; "requests refused in the last second: too many were waiting");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::dev::fn_service;
    use actix_web::test::TestRequest;

    const FAST_PATH: FastPath = FastPath {
        template: "/thing/{name}",
        answer: |request| match request.path() {
            "/thing/here" => Some(HttpResponse::Ok().body("here")),
            "/thing/gone" => Some(HttpResponse::from_error(Error::NotFound)),
            _ => None,
        },
    };

    #[tokio::test]
    async fn a_fast_paths_answer_is_not_routed_and_is_completed_like_the_rest() {
        let (metrics, draining) = (Metrics::new("test").expect("metrics"), Draining::default());
        let state = Telemetry::new(Some(FAST_PATH), metrics.clone(), draining, Refusals::default());
        let routes = fn_service(|request: ServiceRequest| async {
            assert_eq!(request.path(), "/thing/elsewhere", "it is routed");
            Ok(request.into_response(HttpResponse::NoContent().finish()))
        });
        let service = state.new_transform(routes).await.expect("a middleware");
        let call = async |path: &str| {
            let request = TestRequest::with_uri(path).insert_header((X_REQUEST_ID, "mine"));
            service.call(request.to_srv_request()).await.expect("a response")
        };

        let (here, gone) = (call("/thing/here").await, call("/thing/gone").await);
        assert_eq!(here.status(), StatusCode::OK);
        assert_eq!(here.headers().get(X_REQUEST_ID), Some(&HeaderValue::from_static("mine")));
        let problem = actix_web::body::to_bytes(gone.into_body()).await.expect("a body");
        assert!(String::from_utf8_lossy(&problem).contains("/problems/unknown-user"), "{problem:?}");
        assert_eq!(call("/thing/elsewhere").await.status(), StatusCode::NO_CONTENT);

        let text = metrics.text().expect("metrics");
        for status in [200, 404] {
            let count = format!(
                "http_request_duration_seconds_count{{method=\"GET\",route=\"/thing/{{name}}\",status=\"{status}\"}} 1"
            );
            assert!(text.contains(&count), "{text}");
        }
    }
}
