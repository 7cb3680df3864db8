//! What an error answer says: problem details to the client, the cause to the log.

use actix_web::dev::ServiceResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{
    ALLOW, CACHE_CONTROL, CACHE_STATUS, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use actix_web::{HttpResponse, HttpResponseBuilder};

use super::problem::Kind;
use crate::access::{RATE_LIMIT, RATE_LIMIT_POLICY};
use crate::error::Error;

/// Seconds after which a client may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");
/// An error answer is nothing that a browser runs or frames.
const NOTHING_RUNS: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// What an error answer says to the client, and to the log.
#[derive(Default)]
pub struct Failure {
    /// The kind of problem.
    pub kind: Option<&'static Kind>,
    /// The problem details.
    pub body: Option<Vec<u8>>,
    /// What happened, for the log.
    pub cause: Option<String>,
}

impl Failure {
    /// What `response` says, if it is an error; paths are named with `path_prefix`, as clients do.
    pub fn of<B>(response: &ServiceResponse<B>, path_prefix: &str) -> Self {
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
        let problem = problem.map(|problem| problem.behind(path_prefix));
        let cause = match error {
            Some(error) => error.cause().map(str::to_owned),
            // An error of another type comes from actix-web or a library.
            None => carried.filter(|_| status.is_server_error()).map(ToString::to_string),
        };
        Self { kind, body: problem.and_then(|problem| serde_json::to_vec(&problem).ok()), cause }
    }
}

/// The answer with this `body` in place of `failed`, of which it keeps the headers that belong to the error.
pub fn problem_response<B>(failed: &HttpResponse<B>, body: Vec<u8>) -> HttpResponse {
    let mut response = HttpResponseBuilder::new(failed.status());
    response.insert_header((CONTENT_TYPE, "application/problem+json"));
    response.insert_header((CACHE_CONTROL, "no-store"));
    response.insert_header((CONTENT_SECURITY_POLICY, NOTHING_RUNS));
    if failed.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.insert_header((RETRY_AFTER, RETRY_AFTER_SECONDS));
    }
    for kept in [ALLOW, CACHE_STATUS, RATE_LIMIT, RATE_LIMIT_POLICY, RETRY_AFTER, WWW_AUTHENTICATE] {
        if let Some(value) = failed.headers().get(&kept) {
            response.insert_header((kept, value.clone()));
        }
    }
    response.body(body)
}
