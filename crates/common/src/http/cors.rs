//! Which pages of other origins may call a service from a browser: CORS, as the Fetch standard has it (section 3.3).
//!
//! Credentials are never allowed, and a request without `Origin` gets nothing added.

use actix_web::HttpResponse;
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap,
    HeaderValue, ORIGIN, VARY,
};
use actix_web::http::{Method, StatusCode};

use crate::config::Origins;

const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
const ALLOWED_HEADERS: &str =
    "authorization, content-type, if-match, if-none-match, cache-control, x-request-id";
const EXPOSED_HEADERS: &str =
    "etag, location, cache-status, retry-after, ratelimit, ratelimit-policy, www-authenticate, x-request-id";
/// Seconds for which a browser may keep the answer to a preflight.
const MAX_AGE: &str = "600";

/// Whether the page that has sent a request may see the answer.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// The value of `Access-Control-Allow-Origin`, if it may.
    allowed: Option<HeaderValue>,
    /// Whether the answer to another origin would be another one.
    varies: bool,
}

impl Sharing {
    /// What a request with `headers` gets beside its answer; none if it has no `Origin`, or if no other origin than the
    /// service's own may call.
    #[must_use]
    pub fn of(headers: &HeaderMap, origins: &Origins) -> Option<Self> {
        if *origins == Origins::Own {
            return None;
        }
        let origin = headers.get(ORIGIN)?;
        let allowed = match origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            _ => origin.to_str().is_ok_and(|origin| origins.hold(origin)).then(|| origin.clone()),
        };
        Some(Self { allowed, varies: *origins != Origins::Any })
    }

    /// The answer to a request that is a preflight of an allowed origin: the browser asks before it sends the request.
    #[must_use]
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<HttpResponse> {
        let asks = *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !asks || self.allowed.is_none() {
            return None;
        }
        let mut response = HttpResponse::new(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        Some(response)
    }

    /// Adds to the headers of an answer what the browser needs to show it to the page.
    pub fn complete(self, headers: &mut HeaderMap) {
        if self.varies {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(allowed) = self.allowed {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
        }
    }
}
