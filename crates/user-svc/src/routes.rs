//! The routes of `user-svc`.

use actix_web::HttpResponse;
use actix_web::http::header::{ETAG, LOCATION};
use actix_web::web::{self, Data, ServiceConfig};
use common::error::Error;
use common::http::{Body, Problem, health, resource};
use common::repository::Effect;
use common::users::{self, IfMatch, NewInfo, NewUser, PathName, Registrations, UserName, Users, entity_tag};
use diesel::PgConnection;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use utoipa::OpenApi;

/// Adds the routes.
pub fn routes(config: &mut ServiceConfig) {
    config.service(resource("/register").route(web::post().to(register)));
    config.service(resource("/user/{name}").route(web::put().to(replace)).route(web::delete().to(delete)));
}

/// The API, described.
#[derive(OpenApi)]
#[openapi(
    info(title = "user-svc", description = "Registers, replaces and deletes users."),
    paths(register, replace, delete, health::livez, health::readyz, health::version)
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
    registrations: Data<Registrations>,
    links: Data<Links>,
    body: Body<NewUser>,
) -> Result<HttpResponse, Error> {
    let Body(user) = body;
    registrations.create(user.name.clone(), user.info.clone()).await?;
    Ok(HttpResponse::Created()
        .insert_header((LOCATION, links.user(user.name.as_str())))
        .insert_header((ETAG, entity_tag(&users::etag(user.name.as_str(), user.info.as_str()))))
        .json(user))
}

/// Replace a user's info.
///
/// Answered only after COMMIT, and when no copy of what was before is left: no GET that starts after the 200 sees it.
/// With `If-Match`, only if nobody else has changed the user since.
#[utoipa::path(put, path = "/user/{name}", tag = "users", request_body = NewInfo, params(
    ("name" = inline(UserName), Path, description = "The name, percent-encoded"),
    ("If-Match" = Option<String>, Header, description = "Entity tags, one of which the user must have; compared weakly"),
), responses(
    (status = 200, body = NewUser, description = "Replaced", headers(("ETag" = String, description = "As GET gives it"))),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "The name or the info is wrong, or the body is no JSON object"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such user"),
    (status = 408, body = Problem, content_type = "application/problem+json", description = "The body took too long to arrive"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "The user is not as If-Match wants it"),
    (status = 413, body = Problem, content_type = "application/problem+json", description = "The body is too large"),
    (status = 415, body = Problem, content_type = "application/problem+json", description = "The body is not application/json, or compressed"),
    (status = 503, body = Problem, content_type = "application/problem+json", description = "Try again later"),
))]
async fn replace(
    users: Data<Users>,
    name: PathName,
    condition: IfMatch,
    body: Body<NewInfo>,
) -> Result<HttpResponse, Error> {
    let (PathName(name), Body(NewInfo { info })) = (name, body);
    let user = NewUser { name, info };
    let new = user.clone();
    let change =
        move |connection: &mut PgConnection| users::replace(connection, &new.name, &new.info, &condition);
    users.write(users.deadline(), Effect::Replace, change).await?;
    let tag = entity_tag(&users::etag(user.name.as_str(), user.info.as_str()));
    Ok(HttpResponse::Ok().insert_header((ETAG, tag)).json(user))
}

/// Delete a user.
///
/// Answered only after COMMIT, and when no copy is left: no GET that starts after the 204 finds the user.
#[utoipa::path(delete, path = "/user/{name}", tag = "users", params(
    ("name" = inline(UserName), Path, description = "The name, percent-encoded"),
    ("If-Match" = Option<String>, Header, description = "Entity tags, one of which the user must have; compared weakly"),
), responses(
    (status = 204, description = "Deleted"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "No user can have this name"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such user"),
    (status = 412, body = Problem, content_type = "application/problem+json", description = "The user is not as If-Match wants it"),
    (status = 503, body = Problem, content_type = "application/problem+json", description = "Try again later"),
))]
async fn delete(users: Data<Users>, name: PathName, condition: IfMatch) -> Result<HttpResponse, Error> {
    let change = move |connection: &mut PgConnection| users::delete(connection, &name.0, &condition);
    users.write(users.deadline(), Effect::Replace, change).await?;
    Ok(HttpResponse::NoContent().finish())
}
