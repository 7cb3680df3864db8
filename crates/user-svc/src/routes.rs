//! The routes of `user-svc`.

use actix_web::HttpResponse;
use actix_web::http::header::{ETAG, LOCATION};
use actix_web::web::{self, Data, ServiceConfig};
use common::error::{Error, Problem};
use common::extract::Body;
use common::health;
use common::models::NewUser;
use common::users::{self, Users, entity_tag};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use utoipa::OpenApi;

/// Adds the routes.
pub fn routes(config: &mut ServiceConfig) {
    config.service(web::resource("/register").route(web::post().to(register)));
}

/// The API, described.
#[derive(OpenApi)]
#[openapi(
    info(title = "user-svc", description = "Registers users."),
    paths(register, health::livez, health::readyz, health::version)
)]
pub struct Api;

/// What links are made from.
#[derive(Debug)]
pub struct Links {
    /// Where clients reach `data-svc`.
    pub data_url: String,
}

/// What RFC 3986 (section 2.3) leaves as it is within a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Links {
    fn user(&self, name: &str) -> String {
        format!("{}/user/{}", self.data_url, utf8_percent_encode(name, SEGMENT))
    }
}

/// Register a user.
///
/// Answered only after COMMIT: a GET that starts after the 201 finds the user.
#[utoipa::path(post, path = "/register", tag = "users", request_body = NewUser, responses(
    (status = 201, body = NewUser, description = "Registered", headers(
        ("Location" = String, description = "Where data-svc serves the user"),
        ("ETag" = String, description = "As GET gives it"),
    )),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "A member is missing or wrong, or the body is no JSON object"),
    (status = 408, body = Problem, content_type = "application/problem+json", description = "The body took too long to arrive"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "The name is taken"),
    (status = 413, body = Problem, content_type = "application/problem+json", description = "The body is too large"),
    (status = 415, body = Problem, content_type = "application/problem+json", description = "The body is not application/json, or compressed"),
    (status = 503, body = Problem, content_type = "application/problem+json", description = "Try again later"),
))]
async fn register(
    users: Data<Users>,
    links: Data<Links>,
    body: Body<NewUser>,
) -> Result<HttpResponse, Error> {
    let Body(user) = body;
    let new = user.clone();
    users.write(vec![user.name.clone()], move |connection| users::insert(connection, &new)).await?;
    Ok(HttpResponse::Created()
        .insert_header((LOCATION, links.user(user.name.as_str())))
        .insert_header((ETAG, entity_tag(&users::etag(user.name.as_str(), user.info.as_str()))))
        .json(user))
}
