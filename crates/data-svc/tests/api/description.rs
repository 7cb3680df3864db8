//! `/openapi.json` of both services, compared with the answers that they send.

use std::collections::{BTreeMap, BTreeSet};

use common::http::KINDS;
use devstack::{Service, http};
use serde_json::Value;

use crate::{get, register, running};

const SERVICES: [&str; 2] = ["user-svc", "data-svc"];

fn description_of(service: &Service) -> Value {
    http::get(&service.url_of("/openapi.json")).json()
}

/// Of user-svc, and of data-svc.
fn descriptions() -> [Value; 2] {
    [description_of(&running().user_svc), description_of(&running().data_svc)]
}

fn members(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

/// An operation's id, its path, and its description.
fn operations(api: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    members(&api["paths"]).flat_map(|(path, methods)| {
        members(methods).map(|(_, operation)| {
            let id = operation["operationId"].as_str().expect("an id");
            (id, path.as_str(), operation)
        })
    })
}

/// An example of a problem, and where it is.
struct Example<'a> {
    /// The operation's path.
    path: &'a str,
    status: &'a str,
    slug: &'a str,
    problem: &'a Value,
}

fn examples(api: &Value) -> Vec<Example<'_>> {
    let mut examples = Vec::new();
    for (_, path, operation) in operations(api) {
        for (status, response) in members(&operation["responses"]) {
            let content = &response["content"]["application/problem+json"];
            for (slug, example) in members(&content["examples"]) {
                examples.push(Example { path, status, slug, problem: &example["value"] });
            }
        }
    }
    examples
}

#[test]
fn every_example_of_a_problem_shows_its_own_kind() {
    for api in descriptions() {
        for Example { path, status, slug, problem } in examples(&api) {
            let kind = KINDS.iter().find(|kind| kind.slug == slug);
            let kind = kind.unwrap_or_else(|| panic!("{slug} is no kind of problem"));
            assert_eq!(status, kind.status.as_str(), "{slug}");
            assert_eq!(problem["type"], format!("/problems/{slug}"));
            assert_eq!(problem["title"], kind.title);
            assert_eq!(problem["status"], kind.status.as_u16());
            assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
            assert_eq!(problem["instance"], path.replace("{name}", "john_doe"), "{problem}");
            assert_eq!(problem["errors"].is_array(), slug == "invalid-members", "{problem}");
        }
    }
}

#[test]
fn every_error_response_is_a_problem_with_examples() {
    for api in descriptions() {
        for (id, _, operation) in operations(&api) {
            for (status, response) in members(&operation["responses"]) {
                let content = &response["content"]["application/problem+json"];
                let is_error = status.starts_with(['4', '5']);
                assert_eq!(content["schema"]["$ref"] == "#/components/schemas/Problem", is_error, "{id}");
                assert_eq!(members(&content["examples"]).next().is_some(), is_error, "{id} {status}");
            }
        }
        assert!(api["components"]["schemas"]["Problem"].is_object());
    }
}

#[test]
fn every_kind_of_problem_that_an_operation_can_answer_with_is_shown() {
    let apis = descriptions();
    let shown: BTreeSet<_> = apis.iter().flat_map(examples).map(|example| example.slug).collect();
    let kinds = KINDS.iter().filter(|kind| !kind.groups.is_empty()).map(|kind| kind.slug);
    // Of an open service; tests/access has those of one with tokens.
    let kinds: BTreeSet<_> = kinds.chain(["foreign-host"]).collect();
    assert_eq!(shown, kinds);
}

#[test]
fn an_operation_lists_the_statuses_that_a_request_to_it_can_meet() {
    let apis = descriptions();
    let listed: BTreeMap<_, Vec<_>> = apis
        .iter()
        .flat_map(operations)
        .map(|(id, _, operation)| (id, members(&operation["responses"]).map(|(s, _)| s.as_str()).collect()))
        .collect();
    let expected = BTreeMap::from([
        ("register", vec!["201", "400", "408", "409", "412", "413", "415", "421", "500", "503"]),
        ("replace", vec!["200", "400", "404", "408", "412", "413", "415", "421", "500", "503"]),
        ("delete", vec!["204", "400", "404", "412", "421", "500", "503"]),
        ("get_user", vec!["200", "304", "400", "404", "412", "421", "500", "503"]),
        ("livez", vec!["200"]),
        ("readyz", vec!["200", "503"]),
        ("version", vec!["200", "421"]),
    ]);
    assert_eq!(listed, expected);
}

/// Compares the headers of `answer` with those that `service` describes for its status at `path`.
fn has_the_headers_described(service: &Service, method: &str, path: &str, answer: &http::Response) {
    let api = description_of(service);
    let response = &api["paths"][path][method]["responses"][answer.status.to_string()];
    assert!(response.is_object(), "{method} {path} does not describe {}", answer.status);
    let described: BTreeSet<_> = members(&response["headers"]).map(|(name, _)| name.to_lowercase()).collect();
    // Of the message, not of the answer; and what the description says by `content`.
    let others = ["connection", "content-length", "content-type", "date"];
    let sent = answer.headers.iter().map(|(name, _)| name.clone());
    let sent: BTreeSet<_> = sent.filter(|name| !others.contains(&name.as_str())).collect();
    assert_eq!(sent, described, "{method} {path} {}", answer.status);
    if answer.status >= 400 {
        let slug = answer.json()["type"].to_string().trim_matches('"').replace("/problems/", "");
        let examples = &response["content"]["application/problem+json"]["examples"];
        assert!(examples[&slug].is_object(), "{method} {path} does not describe {slug}");
    }
    assert_eq!(
        answer.header("content-type"),
        members(&response["content"]).next().map(|(content_type, _)| content_type.as_str())
    );
}

#[test]
fn answers_have_the_headers_that_are_described() {
    let json = ("Content-Type", "application/json");
    let (user_svc, data_svc) = (&running().user_svc, &running().data_svc);
    let send = |method: &str, headers: &[(&str, &str)], body: &str| {
        http::send(method, &user_svc.url_of("/user/described"), headers, body)
    };

    let registered = register("described", "i");
    let tag = registered.header("etag").expect("an ETag").to_owned();
    has_the_headers_described(user_svc, "post", "/register", &registered);
    has_the_headers_described(user_svc, "post", "/register", &register("described", "i"));
    has_the_headers_described(user_svc, "post", "/register", &register("", "i"));

    for answer in [
        get("described", &[]),
        get("described", &[]),
        get("described", &[("If-None-Match", &tag)]),
        get("described-by-nobody", &[]),
        get("%ff", &[]),
    ] {
        has_the_headers_described(data_svc, "get", "/user/{name}", &answer);
    }

    for answer in [
        send("PUT", &[json, ("If-Match", "\"x\"")], r#"{"info":"j"}"#),
        send("PUT", &[json], r#"{"info":"j"}"#),
        send("PUT", &[], "x"),
    ] {
        has_the_headers_described(user_svc, "put", "/user/{name}", &answer);
    }
    for answer in [send("DELETE", &[], ""), send("DELETE", &[], "")] {
        has_the_headers_described(user_svc, "delete", "/user/{name}", &answer);
    }

    for path in ["/livez", "/readyz", "/version"] {
        has_the_headers_described(user_svc, "get", path, &http::get(&user_svc.url_of(path)));
    }
}

#[test]
fn a_503_has_the_headers_that_are_described() {
    let service = running().stack.user_svc().env("DATABASE_URL", "postgres://127.0.0.1:1/nowhere").spawn();
    let not_ready = http::get(&service.url_of("/readyz"));
    assert_eq!(not_ready.status, 503);
    has_the_headers_described(&service, "get", "/readyz", &not_ready);
    let unavailable = devstack::testing::register(&service, "nowhere");
    assert_eq!(unavailable.status, 503);
    has_the_headers_described(&service, "post", "/register", &unavailable);
}

#[test]
fn a_registration_links_to_the_operations_on_its_user() {
    let [user_svc, _] = descriptions();
    let links = &user_svc["paths"]["/register"]["post"]["responses"]["201"]["links"];
    for id in ["replace", "delete"] {
        assert_eq!(links[id]["operationId"], id);
        assert!(operations(&user_svc).any(|(known, ..)| known == id), "{id}");
    }

    let reference = links["get_user"]["operationRef"].as_str().expect("an address");
    let (address, pointer) = reference.split_once('#').expect("a fragment");
    let pointer = pointer.replace("%7B", "{").replace("%7D", "}");
    let data_svc = http::get(address).json();
    assert_eq!(data_svc.pointer(&pointer).expect("an operation")["operationId"], "get_user");

    for (link, _) in members(links) {
        assert_eq!(links[link]["parameters"]["name"], "$response.body#/name", "{link}");
    }
}

#[test]
fn the_page_of_each_service_leads_to_that_of_the_other() {
    let [user_svc, data_svc] = descriptions();
    let data_url = format!("{}/docs/", running().data_svc.url());
    assert_eq!(user_svc["externalDocs"]["url"], data_url);
    // Where the tests' data-svc supposes user-svc.
    assert_eq!(data_svc["externalDocs"]["url"], "http://users.test/docs/");
}

#[test]
fn tags_come_in_order_and_each_says_what_it_is_about() {
    for (api, service) in descriptions().iter().zip(SERVICES) {
        assert_eq!(api["info"]["title"], service);
        let tags = api["tags"].as_array().expect("tags");
        let names: Vec<_> = tags.iter().map(|tag| tag["name"].as_str()).collect();
        assert_eq!(names, [Some("users"), Some("operations")]);
        for tag in tags {
            assert!(tag["description"].as_str().is_some_and(|text| text.ends_with('.')), "{tag}");
        }
        for (id, _, operation) in operations(api) {
            let tag = operation["tags"][0].as_str();
            assert!(names.contains(&tag), "{id}: {tag:?}");
        }
    }
}

#[test]
fn the_service_is_found_where_its_description_is() {
    for api in descriptions() {
        assert_eq!(api["servers"].as_array().map(Vec::len), Some(1));
        assert_eq!(api["servers"][0]["url"], "./");
    }
}

#[test]
fn the_licence_is_named_and_linked_to_nowhere() {
    for api in descriptions() {
        let licence: Vec<_> = members(&api["info"]["license"]).collect();
        assert_eq!(licence, [(&"name".to_owned(), &Value::from("MIT OR Apache-2.0"))]);
    }
}

#[test]
fn a_wrong_address_of_the_other_service_is_refused() {
    let wrong = running().stack.data_svc().env("PUBLIC_USER_URL", "ftp://users").run(&[]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("PUBLIC_USER_URL"));
}
