//! The names that an open service answers to.

use devstack::http::{self, Connection, Response};
use devstack::testing::register;
use devstack::{Service, Stack};

use crate::{Client, ListFile, Services, problem};

fn get(service: &Service, path: &str, host: Option<&str>) -> Response {
    let (version, host) = match host {
        Some(host) => ("HTTP/1.1", format!("Host: {host}\r\n")),
        None => ("HTTP/1.0", String::new()),
    };
    http::raw(service.address(), format!("GET {path} {version}\r\n{host}Connection: close\r\n\r\n"))
}

#[test]
fn an_open_service_answers_to_its_own_names_and_to_those_that_are_allowed() {
    let stack = Stack::shared();
    let user_svc = stack.user_svc().start();
    let service = stack.data_svc().env("ALLOWED_HOSTS", "users.example, data-svc").start();
    register(&user_svc, "john");
    for host in [
        "127.0.0.1",
        "localhost:8081",
        "localhost.",
        "[::1]:8081",
        "10.1.2.3",
        "USERS.example:80",
        "data-svc",
    ] {
        assert_eq!(get(&service, "/user/john", Some(host)).status, 200, "{host}");
    }
    for host in [Some("evil.test"), Some("evil.test:8081"), Some(""), Some("users.example.evil.test"), None] {
        for path in ["/user/john", "/user/nobody", "/docs/", "/openapi.json", "/version", "/nowhere"] {
            let answer = get(&service, path, host);
            assert_eq!((answer.status, problem(&answer).as_str()), (421, "foreign-host"), "{host:?} {path}");
        }
        for path in ["/livez", "/readyz"] {
            assert_eq!(get(&service, path, host).status, 200, "{host:?} {path}");
        }
    }
    // The target's host goes first.
    let mut connection = Connection::open(service.address());
    connection.send("GET http://evil.test/user/john HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(connection.receive().expect("an answer").status, 421);
}

#[test]
fn a_write_under_a_foreign_name_changes_nothing() {
    let stack = Stack::shared();
    let service = stack.user_svc().start();
    let body = r#"{"name":"john","info":"i"}"#;
    let length = body.len();
    let answer = http::raw(
        service.address(),
        format!(
            "POST /register HTTP/1.1\r\nHost: evil.test\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    );
    assert_eq!(answer.status, 421);
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(stack.sql("SELECT count(*) FROM users"), "0");
}

#[test]
fn a_service_that_asks_for_tokens_answers_under_any_name() {
    let client = Client::new("reader", "read");
    let services = Services::start(&ListFile::of(&[&client]));
    let answer = http::raw(
        services.data_svc.address(),
        format!(
            "GET /user/nobody HTTP/1.1\r\nHost: any.test\r\nAuthorization: Bearer {}\r\n\r\n",
            client.token
        ),
    );
    assert_eq!(answer.status, 404);
}

#[test]
fn the_page_of_the_description_cannot_be_framed_and_errors_run_nothing() {
    let stack = Stack::shared();
    let service = stack.user_svc().start();
    let page = http::get(&service.url_of("/docs/"));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    let error = http::get(&service.url_of("/nowhere"));
    assert_eq!(error.header("content-security-policy"), Some("default-src 'none'; frame-ancestors 'none'"));
}
