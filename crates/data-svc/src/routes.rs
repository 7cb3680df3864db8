//! The routes of `data-svc`.

use actix_web::http::Method;
use actix_web::http::header::{
    CACHE_CONTROL, CACHE_STATUS, CONTENT_TYPE, CacheControl, CacheDirective, ETAG, Header as _, HeaderValue,
};
use actix_web::web::{Data, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use common::access::{Needs, Scope};
use common::error::Error;
use common::http::{FastPath, Group, PlainHeaders, Problem, ResponseMap, health, readable, text_header};
use common::repository::{CacheStatus, Found, Freshness};
use common::users::{Conditions, PathName, UserName, Users, entity_tag, not_from_cache};
use utoipa::openapi::external_docs::ExternalDocsBuilder;
use utoipa::openapi::{OpenApi, RefOr};
use utoipa::{IntoResponses, OpenApi as _, ToSchema};

const USER: &str = "/user/{name}";
const USER_PREFIX: &str = "/user/";

/// Adds the routes.
pub fn routes(config: &mut ServiceConfig) {
    config.service(readable(USER, get_user));
}

/// What a request needs. A path that is not listed here needs a valid token, unless every service has it.
#[must_use]
pub fn needs(method: &Method, path: &str) -> Needs {
    match *method {
        Method::GET | Method::HEAD if path.starts_with(USER_PREFIX) => Needs::Scope(Scope::Read),
        _ => Needs::ValidToken,
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "data-svc", description = "Returns users: from the cache if it holds them, else from PostgreSQL."),
    tags((name = "users", description = "Read users, by their names.")),
    paths(get_user, health::livez, health::readyz, health::version),
    components(schemas(FoundUser, Problem))
)]
struct Api;

/// The API, described for clients that reach `user-svc` at `user_url`.
#[must_use]
pub fn api(user_url: &str) -> OpenApi {
    let mut api = Api::openapi();
    let docs = ExternalDocsBuilder::new().url(format!("{user_url}/docs/"));
    api.external_docs =
        Some(docs.description(Some("The other service: user-svc, which writes users")).build());
    api
}

/// The problems of [`get_user`].
struct GetProblems;

impl IntoResponses for GetProblems {
    fn responses() -> ResponseMap {
        let mut problems = Group::Read.problems("/user/john_doe");
        // The cache knows of absent users too.
        if let Some(RefOr::T(not_found)) = problems.get_mut("404") {
            let cache_status = text_header("How the cache took part (RFC 9211)");
            not_found.headers.insert("Cache-Status".into(), cache_status.into());
        }
        problems
    }
}

// Only for the description: the bytes are sent as they were stored.
/// A user, and whether it came from the cache.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read by utoipa alone")]
struct FoundUser {
    /// The name.
    #[schema(example = "john_doe")]
    name: String,
    /// The info.
    #[schema(example = "Likes long walks")]
    info: String,
    /// Whether this answer came from the cache.
    cache_hit: bool,
}

/// Get a user.
///
/// The first GET of a name reads PostgreSQL and fills the cache; the next ones are hits.
#[utoipa::path(get, path = "/user/{name}", tag = "users", params(
    ("name" = inline(UserName), Path, description = "The name, percent-encoded"),
    ("If-None-Match" = Option<String>, Header, nullable = false,
        description = "Entity tags of the client's copies: 304 if one is current"),
    ("If-Match" = Option<String>, Header, nullable = false,
        description = "Entity tags, one of which the user must have, else 412; compared weakly"),
    ("Cache-Control" = Option<String>, Header, nullable = false,
        description = "`no-cache` reads PostgreSQL, and fills the cache anew"),
), responses(
    (status = 200, body = FoundUser, description = "The user", headers(
        ("ETag" = String,
            description = "The version of the user; weak, since answers with the same version may differ in cache_hit"),
        ("Cache-Control" = String,
            description = "Always private, no-cache: a client may keep a copy, and checks it before each use"),
        ("Cache-Status" = String, description = "How the cache took part (RFC 9211)"),
    )),
    (status = 304, description = "The client's copy is current", headers(
        ("ETag" = String, description = "As with the 200"),
        ("Cache-Control" = String, description = "As with the 200"),
        ("Cache-Status" = String, description = "How the cache took part (RFC 9211)"),
    )),
    GetProblems,
))]
async fn get_user(users: Data<Users>, name: PathName, request: HttpRequest) -> Result<HttpResponse, Error> {
    let found = users.find(&name.0, freshness(&request)).await?;
    Ok(respond(&Conditions::of(request.headers()), found))
}

/// Answers near hits as their route does.
pub const NEAR_HITS: FastPath = FastPath { template: USER, answer: near_hit };

fn near_hit(request: &HttpRequest, PlainHeaders(plain_headers): PlainHeaders) -> Option<HttpResponse> {
    let segment = request.path().strip_prefix(USER_PREFIX)?;
    // The route reads everything that is not plain.
    let plain = request.method() == Method::GET && !segment.contains(['/', '%']);
    if !plain || !plain_headers && freshness(request) == Freshness::Fresh {
        return None;
    }
    let name = UserName::parse(segment).ok()?;
    let found = request.app_data::<Data<Users>>()?.find_near(&name)?;
    let conditions = if plain_headers { Conditions::default() } else { Conditions::of(request.headers()) };
    Some(respond(&conditions, found))
}

fn respond(conditions: &Conditions, found: Found) -> HttpResponse {
    let status = cache_status(&found);
    let refuse = |error| {
        let mut response = HttpResponse::from_error(error);
        response.headers_mut().insert(CACHE_STATUS, status.clone());
        response
    };
    let Some(answer) = found.answer else { return refuse(Error::NotFound) };
    if !conditions.allow_reading(&answer.etag) {
        return refuse(Error::PreconditionFailed);
    }
    let is_current = conditions.client_has(&answer.etag);
    let mut response = if is_current { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response.insert_header((CACHE_STATUS, status));
    response.insert_header((CACHE_CONTROL, HeaderValue::from_static("private, no-cache")));
    response.insert_header((ETAG, entity_tag(&answer.etag)));
    if is_current {
        return response.finish();
    }
    response.insert_header((CONTENT_TYPE, HeaderValue::from_static("application/json")));
    match found.status {
        CacheStatus::Hit(_) | CacheStatus::NearHit(_) => response.body(answer.body),
        _ => response.body(not_from_cache(&answer)),
    }
}

/// Returns what `Cache-Control` asks for (RFC 9111, section 5.2.1.4).
fn freshness(request: &HttpRequest) -> Freshness {
    let no_cache = request.headers().contains_key(CACHE_CONTROL)
        && CacheControl::parse(request).is_ok_and(|control| control.contains(&CacheDirective::NoCache));
    if no_cache { Freshness::Fresh } else { Freshness::Any }
}

/// `Cache-Status` (RFC 9211). Never with `key=`: a name is personal data, and headers are logged.
fn cache_status(found: &Found) -> HeaderValue {
    let fixed = HeaderValue::from_static;
    match (found.status, &found.answer) {
        (status @ (CacheStatus::Hit(ttl) | CacheStatus::NearHit(ttl)), answer) => {
            let detail = match (status, answer) {
                (CacheStatus::NearHit(_), _) => "; detail=near",
                (_, None) => "; detail=negative",
                _ => "",
            };
            let text = ["data-svc; hit; ttl=", &ttl.as_secs().to_string(), detail].concat();
            HeaderValue::try_from(text).unwrap_or_else(|_| fixed("data-svc; hit"))
        }
        (CacheStatus::Miss { stored: true }, _) => fixed("data-svc; fwd=uri-miss; stored"),
        (CacheStatus::Miss { stored: false }, _) => fixed("data-svc; fwd=uri-miss"),
        (CacheStatus::Collapsed, _) => fixed("data-svc; fwd=uri-miss; collapsed"),
        (CacheStatus::Fresh { stored: true }, _) => fixed("data-svc; fwd=request; stored"),
        (CacheStatus::Fresh { stored: false }, _) => fixed("data-svc; fwd=request"),
        (CacheStatus::Bypass, _) => fixed("data-svc; fwd=bypass; detail=write-in-progress"),
        (CacheStatus::Suspended, _) => fixed("data-svc; fwd=bypass; detail=suspended"),
        (CacheStatus::Timeout, _) => fixed("data-svc; fwd=miss; detail=redis-timeout"),
        (CacheStatus::Error, _) => fixed("data-svc; fwd=miss; detail=redis-error"),
        (CacheStatus::BreakerOpen, _) => fixed("data-svc; fwd=bypass; detail=breaker-open"),
    }
}
