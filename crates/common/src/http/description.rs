//! The parts of an OpenAPI description that both services share: problems, the headers of every answer, the address.

use std::collections::BTreeMap;

use actix_web::http::{Method, StatusCode};
use utoipa::ToSchema;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ContentBuilder, Header, HeaderBuilder, Object, OpenApi, Ref, RefOr, Response, ResponseBuilder,
    ServerBuilder, Type,
};

use super::guard::Guard;
use super::problem::{Group, Kind, Problem};
use crate::error::{Error, MemberError};

/// The name of the security scheme.
const TOKEN: &str = "token";

/// Responses by status, as an operation's description takes them.
pub type ResponseMap = BTreeMap<String, RefOr<Response>>;

impl Group {
    /// Returns the problems that an operation of this group can answer with: one response per status, with an example
    /// of every kind. `instance` is the path that the examples name.
    #[must_use]
    pub fn problems(self, instance: &str) -> ResponseMap {
        let errors = example_errors();
        let mut by_status: BTreeMap<StatusCode, Vec<&Error>> = BTreeMap::new();
        for error in errors.iter().filter(|error| error.kind().groups.contains(&self)) {
            by_status.entry(error.kind().status).or_default().push(error);
        }
        let responses = by_status.into_iter().map(|(status, errors)| {
            let response = problem_response(status, &errors, instance);
            (status.as_str().to_owned(), response.into())
        });
        responses.collect()
    }
}

/// An error of each kind that an operation can answer with.
fn example_errors() -> [Error; 14] {
    let member = MemberError { detail: "must not be empty".into(), pointer: "#/info".into() };
    // Some hold their cause, which no client sees.
    let cause = String::new;
    [
        Error::InvalidMembers(vec![member]),
        Error::MalformedBody("The body must be a JSON object.".into()),
        Error::InvalidName("must not start or end with white space"),
        Error::NotFound,
        Error::AlreadyExists,
        Error::PreconditionFailed,
        Error::BodyTimeout,
        Error::BodyTooLarge,
        Error::UnsupportedMediaType("The Content-Type must be application/json."),
        Error::Unavailable(cause()),
        Error::NotReady("The service is stopping."),
        Error::Overloaded,
        Error::OutcomeUnknown(cause()),
        Error::Internal(cause()),
    ]
}

/// The response with this status: the answer to each of `errors`.
fn problem_response(status: StatusCode, errors: &[&Error], instance: &str) -> ResponseBuilder {
    let examples = errors.iter().map(|error| {
        let Kind { slug, title, explanation, .. } = *error.kind();
        let problem = serde_json::to_value(error.problem(instance)).ok();
        (slug, ExampleBuilder::new().summary(title).description(explanation).value(problem))
    });
    let schema = Ref::from_schema_name(Problem::name());
    let content = ContentBuilder::new().schema(Some(schema)).examples_from_iter(examples).build();
    let response = ResponseBuilder::new()
        .description(either(errors.iter().map(|error| error.kind().title)))
        .content("application/problem+json", content)
        .header("Cache-Control", text_header("Always no-store: no cache keeps an error"))
        .header(
            "Content-Security-Policy",
            text_header("A browser runs nothing of it, and frames it nowhere"),
        );
    if !matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        return response;
    }
    response.header("Retry-After", header(Type::Integer, "Seconds after which the request may be sent again"))
}

/// Joins `titles`, each of which begins with an ordinary word, to one sentence.
fn either(titles: impl Iterator<Item = &'static str>) -> String {
    let mut sentence = String::new();
    for title in titles {
        if sentence.is_empty() {
            sentence.push_str(title);
        } else {
            let (first, rest) = title.split_at(1);
            sentence.extend([", or ", &first.to_lowercase(), rest]);
        }
    }
    sentence
}

/// A header of a response, whose value is text.
#[must_use]
pub fn text_header(description: &str) -> Header {
    header(Type::String, description)
}

fn header(value: Type, description: &str) -> Header {
    HeaderBuilder::new().schema(Some(Object::with_type(value))).description(Some(description)).build()
}

/// Adds to the description of a service, whose requests `guard` lets in, what both services share.
#[must_use]
pub fn complete(mut api: OpenApi, guard: &Guard) -> OpenApi {
    describe_access(&mut api, guard);
    // Relative to the address of the description, so that requests from the page work behind a path prefix too.
    api.servers = Some(vec![ServerBuilder::new().url("./").description(Some("this service")).build()]);
    if let Some(license) = &mut api.info.license {
        // Swagger UI turns the identifier into a link to spdx.org, which has no page for a choice of two licences.
        license.identifier = None;
    }
    let operations = TagBuilder::new()
        .name("operations")
        .description(Some("Watch this service: health for monitors and load balancers, and its version."));
    api.tags.get_or_insert_default().push(operations.build());
    for response in responses(&mut api) {
        let headers = [
            (
                "X-Request-Id",
                "Identifies the request in the log; as sent by the client, if it sent a valid one",
            ),
            ("X-Content-Type-Options", "Always nosniff: no browser guesses the type of the body"),
        ];
        for (name, description) in headers {
            response.headers.insert(name.to_owned(), text_header(description).into());
        }
    }
    api
}

/// Adds what an operation needs, and how a request without it is answered.
fn describe_access(api: &mut OpenApi, guard: &Guard) {
    if guard.asks() {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A token: `ut_` and 43 characters. Whoever runs the service gives them out."));
        let components = api.components.get_or_insert_default();
        components.add_security_scheme(TOKEN, SecurityScheme::Http(scheme.build()));
    }
    for (path, item) in &mut api.paths.paths {
        let methods = [
            (Method::GET, &mut item.get),
            (Method::POST, &mut item.post),
            (Method::PUT, &mut item.put),
            (Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in methods {
            let Some(operation) = operation else { continue };
            let refusals = guard.refusals(&method, path);
            if guard.asks() {
                operation.security =
                    guard.scopes(&method, path).map(|scopes| vec![SecurityRequirement::new(TOKEN, scopes)]);
            }
            let instance = path.replace("{name}", "john_doe");
            for errors in refusals.chunk_by(|a, b| a.kind().status == b.kind().status) {
                let status = errors[0].kind().status;
                let errors: Vec<&Error> = errors.iter().collect();
                let mut response = problem_response(status, &errors, &instance);
                if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
                    let challenge = text_header("How to be let in (RFC 6750, section 3)");
                    response = response.header("WWW-Authenticate", challenge);
                }
                if status == StatusCode::TOO_MANY_REQUESTS {
                    let (rest, policy) = ("What is left of the client's budget", "The client's budget");
                    response = response.header("RateLimit", text_header(rest));
                    response = response.header("RateLimit-Policy", text_header(policy));
                }
                operation.responses.responses.insert(status.as_str().to_owned(), response.into());
            }
        }
    }
}

/// The responses of all operations.
fn responses(api: &mut OpenApi) -> impl Iterator<Item = &mut Response> {
    let paths = api.paths.paths.values_mut();
    let operations = paths.flat_map(|path| [&mut path.get, &mut path.post, &mut path.put, &mut path.delete]);
    let responses = operations.flatten().flat_map(|operation| operation.responses.responses.values_mut());
    responses.filter_map(|response| match response {
        RefOr::T(response) => Some(response),
        RefOr::Ref(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::KINDS;

    /// The names of the examples for `status` among the problems of `group`.
    fn examples(group: Group, status: StatusCode) -> Vec<String> {
        let problems = group.problems("/here");
        let Some(RefOr::T(response)) = problems.get(status.as_str()) else { return Vec::new() };
        let contents = response.content.values().filter_map(|content| match content {
            RefOr::T(content) => Some(content),
            RefOr::Ref(_) => None,
        });
        contents.flat_map(|content| content.examples.keys().cloned()).collect()
    }

    #[test]
    fn a_group_shows_an_example_of_each_of_its_kinds_and_of_no_other() {
        for group in [Group::Ready, Group::Read, Group::Create, Group::Replace, Group::Delete] {
            for kind in KINDS {
                let is_shown = examples(group, kind.status).iter().any(|slug| slug == kind.slug);
                assert_eq!(is_shown, kind.groups.contains(&group), "{group:?}: {}", kind.slug);
            }
        }
    }

    #[test]
    fn only_a_503_says_when_to_try_again() {
        for (status, response) in Group::Replace.problems("/here") {
            let RefOr::T(response) = response else { panic!("{status}: a reference") };
            assert_eq!(response.headers.contains_key("Retry-After"), status == "503", "{status}");
        }
    }

    #[test]
    fn titles_are_joined_to_one_sentence() {
        let titles = ["The name is taken", "There is no such user"];
        assert_eq!(either(titles.into_iter()), "The name is taken, or there is no such user");
    }
}
