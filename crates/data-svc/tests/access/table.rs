//! The table of who may do what. It is generated from the descriptions, so that a new route cannot be forgotten.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use devstack::http::{self, Connection, Response};
use devstack::testing::wait_until;
use devstack::{Service, Signal};
use serde_json::Value;

use crate::{Client, ListFile, Services, lines, problem, send};

const SCOPES: [&str; 3] = ["read", "write", "admin"];

/// An operation: its method and path, and the scope that it needs; none if it needs no token.
#[derive(Debug)]
struct Operation {
    method: String,
    path: String,
    scope: Option<String>,
}

fn operations(service: &Service) -> Vec<Operation> {
    let api = http::get(&service.url_of("/openapi.json")).json();
    let paths = api["paths"].as_object().expect("paths");
    let mut operations = Vec::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            let scope = operation["security"][0]["token"][0].as_str().map(str::to_owned);
            let path = path.replace("{name}", "john");
            operations.push(Operation { method: method.to_uppercase(), path, scope });
        }
    }
    operations
}

/// The statuses of a request that is let in, whatever it then finds.
fn is_let_in(answer: &Response) -> bool {
    !matches!(answer.status, 401 | 403 | 421)
}

/// Checks that `answer` refuses with this status, problem and challenge, and says nothing else.
fn refuses(answer: &Response, status: u16, slug: &str, challenge: &str, what: &str) {
    assert_eq!((answer.status, problem(answer).as_str()), (status, slug), "{what}");
    let expected = format!(r#"Bearer realm="users"{challenge}"#);
    assert_eq!(answer.header("www-authenticate"), Some(expected.as_str()), "{what}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
    assert_eq!(answer.header("cache-status"), None, "{what}");
}

fn is_invalid(answer: &Response, what: &str) {
    refuses(answer, 401, "invalid-token", r#", error="invalid_token""#, what);
}

#[test]
fn each_operation_lets_in_who_may_and_nobody_else() {
    let clients = SCOPES.map(|scope| Client::new(scope, scope));
    let expired = Client::expired("expired", "admin");
    let unknown = Client::new("unknown", "admin");
    let list = ListFile::of(&[&clients[0], &clients[1], &clients[2], &expired]);
    let services = Services::start(&list);
    let mut scopes = Vec::new();
    for service in services.both() {
        for Operation { method, path, scope } in operations(service) {
            let what = format!("{method} {path}");
            let ask = |authorization: Option<&str>| send(service, &method, &path, authorization);
            let Some(scope) = scope else {
                for authorization in [None, Some("Bearer wrong"), Some("Basic eDp5")] {
                    assert!(is_let_in(&ask(authorization)), "{what}");
                }
                continue;
            };
            for authorization in [None, Some("Basic eDp5"), Some("Digest x")] {
                refuses(&ask(authorization), 401, "credentials-needed", "", &what);
            }
            let query = format!("{path}?access_token={}", clients[2].token);
            refuses(&send(service, &method, &query, None), 401, "credentials-needed", "", &what);
            let almost = &clients[2].authorization()[.."Bearer ut_".len() + 42];
            for wrong in [&unknown.authorization(), &expired.authorization(), "Bearer", "Bearer  ", almost] {
                is_invalid(&ask(Some(wrong)), &format!("{what}: {wrong}"));
            }
            for client in &clients {
                let answer = ask(Some(&client.authorization()));
                let client_scope = client.line.split(' ').nth(2).expect("scopes");
                if client_scope == scope || client_scope == "admin" {
                    assert!(is_let_in(&answer), "{what} with {client_scope}: {}", answer.text());
                    assert!(answer.status < 500, "{what}: {}", answer.text());
                } else {
                    let challenge = format!(r#", error="insufficient_scope", scope="{scope}""#);
                    refuses(&answer, 403, "insufficient-scope", &challenge, &what);
                }
            }
            scopes.push(scope);
        }
    }
    assert_eq!(scopes.len(), 4, "register, replace, delete, get_user");
}

#[test]
fn a_path_that_nobody_listed_needs_a_valid_token() {
    let client = Client::new("reader", "read");
    let services = Services::start(&ListFile::of(&[&client]));
    for service in services.both() {
        for (method, path) in [
            ("GET", "/nowhere"),
            ("POST", "/user/john"),
            ("PATCH", "/user/john"),
            ("GET", "/register"),
            ("GET", "/livezz"),
            ("GET", "/docsx"),
            ("OPTIONS", "/user/john"),
        ] {
            let needs_read =
                service.url() == services.data_svc.url() && path == "/user/john" && method == "GET";
            assert!(!needs_read);
            assert_eq!(send(service, method, path, None).status, 401, "{method} {path}");
            let status = send(service, method, path, Some(&client.authorization())).status;
            assert!(matches!(status, 404 | 405), "{method} {path}: {status}");
        }
    }
}

#[test]
fn a_path_that_is_encoded_otherwise_needs_the_scope_of_its_route() {
    let [reader, writer] = ["read", "write"].map(|scope| Client::new(scope, scope));
    let services = Services::start(&ListFile::of(&[&reader, &writer]));
    assert_eq!(send(&services.user_svc, "POST", "/register", Some(&writer.authorization())).status, 201);
    let wrong = |service: &Service, method: &str, client: &Client, paths: [&str; 3]| {
        for path in paths {
            let body = r#"{"name": "other", "info": "i"}"#;
            let authorization = client.authorization();
            let headers = [("Content-Type", "application/json"), ("Authorization", authorization.as_str())];
            let answer = http::send(method, &service.url_of(path), &headers, body);
            assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text());
        }
    };
    let users = ["/user/john", "/%75ser/john", "/use%72/%6Aohn"];
    wrong(&services.data_svc, "GET", &writer, users);
    wrong(&services.user_svc, "DELETE", &reader, users);
    wrong(&services.user_svc, "PUT", &reader, users);
    wrong(&services.user_svc, "POST", &reader, ["/register", "/%72egister", "/%72%65gister"]);
    for path in users {
        assert_eq!(
            send(&services.data_svc, "GET", path, Some(&reader.authorization())).status,
            200,
            "{path}"
        );
    }
}

/// Sends a GET of `path` on an open connection.
fn get_on(connection: &mut Connection, path: &str, authorization: Option<&str>) -> Response {
    let authorization = authorization.map(|it| format!("Authorization: {it}\r\n")).unwrap_or_default();
    connection.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n"));
    connection.receive().expect("an answer")
}

#[test]
fn a_near_hit_is_refused_as_any_other_on_the_connection_that_was_let_in_before() {
    let [reader, writer, revoked] = [("reader", "read"), ("writer", "write"), ("revoked", "read")]
        .map(|(name, scope)| Client::new(name, scope));
    let list = ListFile::of(&[&reader, &writer, &revoked]);
    let services = Services::start(&list);
    assert_eq!(send(&services.user_svc, "POST", "/register", Some(&writer.authorization())).status, 201);
    let mut connection = Connection::open(services.data_svc.address());
    let get = |connection: &mut Connection, client: &Client| {
        get_on(connection, "/user/john", Some(&client.authorization()))
    };
    let is_near = |answer: &Response| {
        answer.header("cache-status").is_some_and(|status| status.ends_with("detail=near"))
    };
    wait_until("john is near", || is_near(&get(&mut connection, &reader)));
    assert!(is_near(&get(&mut connection, &revoked)));

    refuses(&get_on(&mut connection, "/user/john", None), 401, "credentials-needed", "", "no token");
    let challenge = r#", error="insufficient_scope", scope="read""#;
    refuses(&get(&mut connection, &writer), 403, "insufficient-scope", challenge, "writer");
    is_invalid(&get_on(&mut connection, "/user/john", Some("Bearer ut_x")), "malformed");
    assert!(is_near(&get(&mut connection, &revoked)));

    list.write(&lines(&[&reader, &writer]));
    services.data_svc.signal(Signal::HUP);
    services.data_svc.wait_for_log("token list changed");
    is_invalid(&get(&mut connection, &revoked), "revoked, on the same connection");
    assert!(is_near(&get(&mut connection, &reader)));
}

#[test]
fn a_refusal_is_the_same_for_a_user_that_exists_and_one_that_does_not() {
    let writer = Client::new("writer", "write");
    let services = Services::start(&ListFile::of(&[&writer]));
    assert_eq!(send(&services.user_svc, "POST", "/register", Some(&writer.authorization())).status, 201);
    for authorization in [None, Some("Bearer ut_x"), Some(writer.authorization().as_str())] {
        let paths = ["/user/john", "/user/jane", "/user/%FF", "/user/%20"];
        let answers = paths.map(|path| {
            let mut answer = send(&services.data_svc, "GET", path, authorization);
            answer
                .headers
                .retain(|(name, _)| name != "x-request-id" && name != "date" && name != "content-length");
            answer.headers.sort();
            let mut body: Value = answer.json();
            assert_eq!(body["instance"].take(), path);
            (answer.status, answer.headers, body)
        });
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
}

#[test]
fn what_is_refused_is_refused_before_its_body_is_read_and_the_connection_closes() {
    let writer = Client::new("writer", "write");
    let services = Services::start(&ListFile::of(&[&writer]));
    let head = "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n";
    // One that may write, and whose body is waited for, for seconds.
    let mut waits = TcpStream::connect(services.user_svc.address()).expect("it listens");
    write!(waits, "{head}Authorization: {}\r\n\r\n{{", writer.authorization()).expect("it is open");
    // It begins to wait noticeably earlier than the other one would.
    assert!((0..50).all(|_| http::get(&services.user_svc.url_of("/livez")).status == 200));
    let mut connection = Connection::open(services.user_svc.address());
    connection.send(format!("{head}\r\n{{"));
    let answer = connection.receive().expect("an answer");
    refuses(&answer, 401, "credentials-needed", "", "a body");
    assert_eq!(answer.header("connection"), Some("close"));
    waits.set_nonblocking(true).expect("it is open");
    let still_waits = waits.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    assert!(still_waits, "the one that was refused has waited as long as the one that was let in");
    assert!(connection.is_closed());
}

#[test]
fn bad_credentials_are_400_or_401_and_never_more() {
    let client = Client::new("admin", "admin");
    let services = Services::start(&ListFile::of(&[&client]));
    let raw = |authorization: &str| {
        let mut connection = Connection::open(services.data_svc.address());
        connection.send(format!("GET /user/john HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n"));
        connection.receive().expect("an answer")
    };
    let token = &client.token;
    let two = raw(&format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"));
    refuses(&two, 400, "bad-request", r#", error="invalid_request""#, "two");
    for wrong in [
        "Bearer \u{663}\u{663}".to_owned(),
        format!("Bearer {token}, Bearer {token}"),
        format!("Bearer {token}="),
        format!("Bearer {}", "a".repeat(100_000)),
        format!("Bearer {token} {token}"),
        format!("Bearer \"{token}\""),
        String::new(),
    ] {
        is_invalid(&raw(&format!("Authorization: {wrong}\r\n")), &wrong);
    }
    let spaces = raw(&format!("Authorization: bEARER   {token}\r\n"));
    assert_eq!(spaces.status, 404);
}

#[test]
fn the_description_has_a_security_scheme_exactly_when_tokens_are_asked_for() {
    let services = Services::start(&ListFile::of(&[&Client::new("admin", "admin")]));
    let open = devstack::Stack::shared().user_svc().start();
    let api = |service: &Service| http::get(&service.url_of("/openapi.json")).json();
    for service in services.both() {
        assert_eq!(api(service)["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    }
    let api = api(&open);
    assert!(api["components"]["securitySchemes"].is_null());
    for methods in api["paths"].as_object().expect("paths").values() {
        assert!(
            methods.as_object().expect("methods").values().all(|operation| operation["security"].is_null())
        );
    }
}
