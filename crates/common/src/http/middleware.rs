//! What every request gets: an id, a line in the log, its place in the metrics and, if it failed, problem details.
//!
//! One middleware does it all, since each one that is wrapped around a service costs every request. A [`FastPath`]
//! answers within it.

use std::cell::RefCell;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName,
    HeaderValue, TRANSFER_ENCODING, USER_AGENT, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::future::{Either, LocalBoxFuture};
use prometheus::Histogram;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::access_log::{AccessLine, Refusals};
use super::connection::ClientConnection;
use super::cors::Sharing;
use super::drain::{Draining, InFlight};
use super::failure::{Failure, problem_response};
use super::guard::{Guard, LetIn};
use super::route::Route;
use crate::config::Origins;
use crate::error::Error;
use crate::metrics::Metrics;

/// The route of what is not routed, in logs and metrics.
const NO_ROUTE: &str = "(none)";
/// The route of what is not let in.
const REFUSED: &str = "(refused)";
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest `X-Request-Id` of a client that is kept: longer ones would make log lines hard to read.
const REQUEST_ID_MAX_BYTES: usize = 128;
/// The longest target of a request, in bytes: what every server should accept (RFC 9110, section 4.1), and twenty times
/// what any of ours needs.
const TARGET_MAX_BYTES: usize = 8_000;

/// Answers some requests without routing them: for the most frequent ones routing would take longer than the answer.
#[derive(Clone, Copy)]
pub struct FastPath {
    /// The template of the route that would answer them.
    pub template: &'static str,
    /// Answers as that route would, or leaves the request to it. It need not look for other headers if the request has
    /// [`PlainHeaders`].
    pub answer: fn(&HttpRequest, PlainHeaders) -> Option<HttpResponse>,
}

/// Whether a request has no headers but those that every client sends and no answer depends on: to look at each once
/// takes a fraction of looking for each that it could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainHeaders(pub bool);

impl PlainHeaders {
    fn of(headers: &HeaderMap) -> Self {
        // Not a constant, which would be built and dropped for each request.
        static PLAIN: [HeaderName; 6] =
            [HOST, AUTHORIZATION, USER_AGENT, ACCEPT, ACCEPT_ENCODING, CONNECTION];
        Self(headers.keys().all(|name| PLAIN.contains(name)))
    }
}

/// The middleware of a worker.
#[derive(Clone)]
pub struct Telemetry(Rc<WorkerState>);

/// What a worker's requests share.
struct WorkerState {
    guard: Guard,
    fast_path: Option<FastPath>,
    origins: Origins,
    path_prefix: String,
    /// Makes request ids, which are no secrets: a generator of the worker's own takes a tenth of the instructions that
    /// a secure one takes.
    ids: RefCell<SmallRng>,
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
    /// Asks `guard` first, then tries `fast_path`, shares answers with the pages of `origins`, names paths as clients do, with
    /// `path_prefix`, counts requests in `metrics` and those refused for overload in `refusals`, and closes connections
    /// once `draining` has begun.
    #[must_use]
    pub fn new(
        guard: Guard,
        fast_path: Option<FastPath>,
        origins: Origins,
        path_prefix: String,
        metrics: Metrics,
        draining: Draining,
        refusals: Refusals,
    ) -> Self {
        let in_flight = draining.worker();
        let ids = RefCell::new(rand::make_rng());
        let histograms = RefCell::default();
        let state = WorkerState {
            guard,
            fast_path,
            origins,
            path_prefix,
            ids,
            metrics,
            histograms,
            draining,
            in_flight,
            refusals,
        };
        Self(Rc::new(state))
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
        let mut begun = InFlightRequest::begin(&request, &self.state);
        let sharing = begun.sharing.as_ref();
        if let Some(response) = sharing.and_then(|it| it.preflight(&begun.method, request.headers())) {
            return self.answer(request, begun, "(preflight)", response);
        }
        match self.state.let_in(request.request(), begun.connection.as_deref()) {
            Ok(let_in) => begun.let_in = let_in,
            Err(error) => return self.answer(request, begun, REFUSED, HttpResponse::from_error(error)),
        }
        if let Some(FastPath { template, answer }) = self.state.fast_path
            && let Some(response) = answer(request.request(), begun.plain)
        {
            return self.answer(request, begun, template, response);
        }
        if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > TARGET_MAX_BYTES) {
            return self.answer(request, begun, NO_ROUTE, HttpResponse::UriTooLong().finish());
        }
        if let Some(connection) = &begun.connection {
            connection.request_begins();
        }
        let state = self.state.clone();
        let response = self.routes.call(request);
        Either::Right(Box::pin(async move {
            let _until_it_is_answered = state.in_flight.request();
            let response = response.await?;
            let template = response.request().app_data().map_or(NO_ROUTE, |&Route(template)| template);
            Ok(state.finish(begun, template, response))
        }))
    }
}

impl<S> TelemetryService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse, Error = actix_web::Error>,
    S::Future: 'static,
{
    /// Answers a request that is not routed, as one of `route` in logs and metrics.
    fn answer(
        &self,
        request: ServiceRequest,
        begun: InFlightRequest,
        route: &'static str,
        response: HttpResponse,
    ) -> <Self as Service<ServiceRequest>>::Future {
        // Not `request.into_response`, which drops the error that the response was made from.
        let response = ServiceResponse::new(request.into_parts().0, response);
        Either::Left(ready(Ok(self.state.finish(begun, route, response))))
    }
}

/// What is kept of a request until it is answered.
struct InFlightRequest {
    start: Instant,
    method: Method,
    id: HeaderValue,
    plain: PlainHeaders,
    /// None in tests of the middleware alone.
    connection: Option<Rc<ClientConnection>>,
    sharing: Option<Sharing>,
    let_in: LetIn,
}

impl InFlightRequest {
    fn begin(request: &ServiceRequest, state: &WorkerState) -> Self {
        let headers = request.headers();
        let plain = PlainHeaders::of(headers);
        // Neither X-Request-Id nor Origin is a plain header.
        let (given, sharing) = match plain {
            PlainHeaders(true) => (None, None),
            PlainHeaders(false) => (request_id(headers), Sharing::of(headers, &state.origins)),
        };
        Self {
            start: Instant::now(),
            method: request.method().clone(),
            id: given.unwrap_or_else(|| new_request_id(&state.ids)),
            plain,
            connection: request.request().conn_data::<Rc<ClientConnection>>().cloned(),
            sharing,
            let_in: LetIn::default(),
        }
    }
}

impl WorkerState {
    fn let_in(&self, request: &HttpRequest, connection: Option<&ClientConnection>) -> Result<LetIn, Error> {
        let let_in = self.guard.check(request, connection);
        // The body of one that is refused is not read: no request may follow it.
        if let (Err(_), Some(connection)) = (&let_in, connection)
            && has_body(request.headers())
        {
            connection.awaits_body.set(true);
        }
        let_in
    }

    /// Completes the response to `request`, observes it and logs it.
    fn finish(
        &self,
        request: InFlightRequest,
        route: &'static str,
        response: ServiceResponse,
    ) -> ServiceResponse {
        let failure = Failure::of(&response, &self.path_prefix);
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
        if let Some(sharing) = request.sharing {
            sharing.complete(headers);
        }
        if let Some(rate) = request.let_in.rate {
            rate.write(headers);
        }
        let connection = request.connection;
        // The rest of a body that was refused or came too slowly may still arrive: no request may follow it.
        let abandoned = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE)
            || connection.as_ref().is_some_and(|connection| connection.awaits_body.get());
        if let Some(connection) = connection.as_ref().filter(|_| abandoned) {
            connection.is_drained.set(true);
        }
        if abandoned || self.draining.has_begun() || asks_for_upgrade(response.request()) {
            close_after(&mut response);
        }

        let now = Instant::now();
        if let Some(connection) = connection {
            connection.request_ends(now);
        }
        let took = now.duration_since(request.start);
        let line = AccessLine { method: &request.method, route, status, took, headers: response.headers() };
        self.observe(line.label(), route, status, took);
        match failure.kind {
            Some(kind) if kind == Error::Overloaded.kind() => self.refusals.count(),
            Some(_) if route == REFUSED => self.refusals.audit(&line),
            _ => line.log(failure.cause.as_deref()),
        }
        if let Some(client) = request.let_in.client.filter(|_| !request.method.is_safe()) {
            line.audit(&client.name);
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

/// Whether a request with these headers has a body (RFC 9112, section 6.3).
fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

/// Whether the request asks to go on in another protocol. Ours does not: that changes nothing (RFC 9110, section 7.8),
/// but actix-http closes the connection, and the answer must say so.
pub fn asks_for_upgrade(request: &HttpRequest) -> bool {
    request.head().upgrade()
}

/// Says that the connection ends with this answer. actix-http writes the header from this, and drops one that is
/// inserted by hand.
pub fn close_after<B>(response: &mut ServiceResponse<B>) {
    response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
}

/// The client's `X-Request-Id`, if it is fit for a log line.
fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let sane = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let given = headers.get(X_REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=REQUEST_ID_MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(sane)
    });
    given.cloned()
}

fn new_request_id(ids: &RefCell<SmallRng>) -> HeaderValue {
    let id = random_id(&mut ids.borrow_mut());
    HeaderValue::from_bytes(&id).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// 128 random bits as hexadecimal digits, without the formatting machinery.
fn random_id(ids: &mut SmallRng) -> [u8; 32] {
    let mut digits = [b'0'; 32];
    const_hex::encode_to_slice(ids.random::<u128>().to_be_bytes(), &mut digits).unwrap_or_default();
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::dev::fn_service;
    use actix_web::test::TestRequest;

    const FAST_PATH: FastPath = FastPath {
        template: "/thing/{name}",
        answer: |request, _| match request.path() {
            "/thing/here" => Some(HttpResponse::Ok().body("here")),
            "/thing/gone" => Some(HttpResponse::from_error(Error::NotFound)),
            _ => None,
        },
    };

    #[tokio::test]
    async fn a_fast_paths_answer_is_not_routed_and_is_completed_like_the_rest() {
        let (metrics, draining) = (Metrics::new("test").expect("metrics"), Draining::default());
        let state = Telemetry::new(
            Guard::open(&metrics.access),
            Some(FAST_PATH),
            Origins::Own,
            String::new(),
            metrics.clone(),
            draining,
            Refusals::default(),
        );
        let routes = fn_service(|request: ServiceRequest| async {
            assert_eq!(request.path(), "/thing/elsewhere", "it is routed");
            Ok(request.into_response(HttpResponse::NoContent().finish()))
        });
        let service = state.new_transform(routes).await.expect("a middleware");
        let call = async |path: &str| {
            let request = TestRequest::with_uri(path).insert_header((HOST, "localhost"));
            let request = request.insert_header((X_REQUEST_ID, "mine"));
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
