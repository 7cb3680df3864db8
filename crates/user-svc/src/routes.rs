//! The routes of `user-svc`.

use actix_web::HttpResponse;
use actix_web::http::Method;
use actix_web::http::header::{ETAG, LOCATION};
use actix_web::web::{self, Data, ServiceConfig};
use common::access::{Needs, Scope};
use common::error::Error;
use common::http::{Body, Group, Problem, ResponseMap, health, resource};
use common::users::{self, Conditions, NewInfo, NewUser, NoIfMatch, PathName, UserName, Users, entity_tag};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use utoipa::openapi::external_docs::ExternalDocsBuilder;
use utoipa::openapi::link::{Link, LinkBuilder};
use utoipa::openapi::{ExternalDocs, OpenApi, RefOr, Response};
use utoipa::{IntoResponses, OpenApi as _};

/// Adds the routes.
pub fn routes(config: &mut ServiceConfig) {
    config.service(resource("/register").route(web::post().to(register)));
    config.service(resource("/user/{name}").route(web::put().to(replace)).route(web::delete().to(delete)));
}

/// What a request needs. A path that is not listed here needs a valid token, unless every service has it.
#[must_use]
pub fn needs(method: &Method, path: &str) -> Needs {
    let is_user = path.starts_with("/user/");
    match *method {
        Method::POST if path == "/register" => Needs::Scope(Scope::Write),
        Method::PUT | Method::DELETE if is_user => Needs::Scope(Scope::Write),
        _ => Needs::ValidToken,
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "user-svc", description = "Registers, replaces and deletes users."),
    tags((name = "users", description = "Write users: register, replace, delete.")),
    paths(register, replace, delete, health::livez, health::readyz, health::version),
    components(schemas(Problem))
)]
struct Api;

/// The problems of [`register`].
struct RegisterProblems;

impl IntoResponses for RegisterProblems {
    fn responses() -> ResponseMap {
        Group::Create.problems("/register")
    }
}

/// The problems of [`replace`].
struct ReplaceProblems;

impl IntoResponses for ReplaceProblems {
    fn responses() -> ResponseMap {
        Group::Replace.problems("/user/john_doe")
    }
}

/// The problems of [`delete`].
struct DeleteProblems;

impl IntoResponses for DeleteProblems {
    fn responses() -> ResponseMap {
        Group::Delete.problems("/user/john_doe")
    }
}

/// What links to `data-svc` are made of.
#[derive(Debug)]
pub struct Links {
    /// Where clients reach `data-svc`.
    pub data_url: String,
}

/// The characters that are percent-encoded in a path segment: all but the unreserved ones (RFC 3986, section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Links {
    fn user(&self, name: &str) -> String {
        format!("{}/user/{}", self.data_url, utf8_percent_encode(name, SEGMENT))
    }

    /// The link from a registered user to the operation of `data-svc` that returns it.
    fn get_user(&self) -> Link {
        LinkBuilder::new()
            .operation_ref(format!("{}/openapi.json#/paths/~1user~1%7Bname%7D/get", self.data_url))
            .parameter("name", "$response.body#/name")
            .description("Returns the user, from data-svc")
            .build()
    }

    /// The page of `data-svc`.
    fn docs(&self) -> ExternalDocs {
        let docs = ExternalDocsBuilder::new().url(format!("{}/docs/", self.data_url));
        docs.description(Some("The other service: data-svc, which reads users")).build()
    }
}

/// The API, described for clients that follow `links`.
#[must_use]
pub fn api(links: &Links) -> OpenApi {
    let mut api = Api::openapi();
    api.external_docs = Some(links.docs());
    if let Some(registered) = registered(&mut api) {
        registered.links.insert("get_user".into(), links.get_user().into());
    }
    api
}

/// The answer to a registration, within the description.
fn registered(api: &mut OpenApi) -> Option<&mut Response> {
    let register = api.paths.paths.get_mut("/register")?.post.as_mut()?;
    match register.responses.responses.get_mut("201")? {
        RefOr::T(response) => Some(response),
        RefOr::Ref(_) => None,
    }
}

/// Register a user.
///
/// The answer is sent after COMMIT: a GET that starts after the 201 finds the user.
#[utoipa::path(post, path = "/register", tag = "users", request_body = NewUser, responses(
    (status = 201, body = NewUser, description = "Registered", headers(
        ("Location" = String, description = "The address of the user at data-svc"),
        ("ETag" = String, description = "The version of the user, as GET returns it"),
    ), links(
        ("replace" = (
            operation_id = "replace",
            parameters(("name" = "$response.body#/name"), ("If-Match" = "$response.header.ETag")),
            description = "Replaces the info, unless the user has changed since",
        )),
        ("delete" = (
            operation_id = "delete",
            parameters(("name" = "$response.body#/name"), ("If-Match" = "$response.header.ETag")),
            description = "Deletes the user, unless it has changed since",
        )),
    )),
    RegisterProblems,
))]
async fn register(
    users: Data<Users>,
    links: Data<Links>,
    _: NoIfMatch,
    body: Body<NewUser>,
) -> Result<HttpResponse, Error> {
    let Body(user) = body;
    users.create(user.name.clone(), user.info.clone()).await?;
    Ok(HttpResponse::Created()
        .insert_header((LOCATION, links.user(user.name.as_str())))
        .insert_header((ETAG, entity_tag(&users::etag(user.name.as_str(), user.info.as_str()))))
        .json(user))
}

/// Replace a user's info.
///
/// The answer is sent after COMMIT, when no copy of the old info is left: no GET that starts after the 200 returns it.
/// With `If-Match`, the info is replaced only if the user has one of its entity tags; with `If-None-Match`, only if it
/// has none of them. No condition creates a user.
#[utoipa::path(put, path = "/user/{name}", tag = "users", request_body = NewInfo, params(
    ("name" = inline(UserName), Path, description = "The name, percent-encoded"),
    ("If-Match" = Option<String>, Header, nullable = false,
        description = "Entity tags, one of which the user must have, else 412; compared weakly"),
    ("If-None-Match" = Option<String>, Header, nullable = false,
        description = "Entity tags, none of which the user may have, else 412; `*` is any"),
), responses(
    (status = 200, body = NewUser, description = "Replaced", headers(
        ("ETag" = String, description = "The version of the user, as GET returns it"),
    )),
    ReplaceProblems,
))]
async fn replace(
    users: Data<Users>,
    name: PathName,
    conditions: Conditions,
    body: Body<NewInfo>,
) -> Result<HttpResponse, Error> {
    let PathName(name) = name;
    let Body(NewInfo { info }) = body;
    let user = NewUser { name, info };
    users.replace(user.name.clone(), user.info.clone(), conditions).await?;
    let tag = entity_tag(&users::etag(user.name.as_str(), user.info.as_str()));
    Ok(HttpResponse::Ok().insert_header((ETAG, tag)).json(user))
}

/// Delete a user.
///
/// The answer is sent after COMMIT, when no copy is left: no GET that starts after the 204 finds the user.
/// With `If-Match`, the user is deleted only if it has one of its entity tags; with `If-None-Match`, only if it has none
/// of them.
#[utoipa::path(delete, path = "/user/{name}", tag = "users", params(
    ("name" = inline(UserName), Path, description = "The name, percent-encoded"),
    ("If-Match" = Option<String>, Header, nullable = false,
        description = "Entity tags, one of which the user must have, else 412; compared weakly"),
    ("If-None-Match" = Option<String>, Header, nullable = false,
        description = "Entity tags, none of which the user may have, else 412; `*` is any"),
), responses(
    (status = 204, description = "Deleted"),
    DeleteProblems,
))]
async fn delete(users: Data<Users>, name: PathName, conditions: Conditions) -> Result<HttpResponse, Error> {
    users.delete(name.0, conditions).await?;
    Ok(HttpResponse::NoContent().finish())
}
