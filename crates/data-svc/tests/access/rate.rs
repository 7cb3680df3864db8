//! How much a client may ask for.

use devstack::http::{self, Response};
use devstack::testing::{metric, register, wait_until};
use devstack::{Service, Stack};

use crate::{Client, ListFile, problem, send};

/// A rate so small that no request more is allowed while a test runs.
const THREE: &str = "1/m,burst=3";

fn limited(answer: &Response) {
    assert_eq!((answer.status, problem(answer).as_str()), (429, "rate-limited"), "{}", answer.text());
    let after: u64 = answer.header("retry-after").and_then(|it| it.parse().ok()).expect("whole seconds");
    assert!((1..=60).contains(&after), "{after}");
    assert_eq!(answer.header("ratelimit-policy"), Some("\"default\";q=3;w=180"));
    assert!(answer.header("ratelimit").is_some_and(|it| it.starts_with("\"default\";r=0;t=")));
}

fn get(service: &Service, path: &str, headers: &[(&str, &str)]) -> Response {
    http::send("GET", &service.url_of(path), headers, "")
}

#[test]
fn a_client_without_a_token_has_the_budget_of_its_address_and_health_is_free() {
    let stack = Stack::shared();
    let service = stack.data_svc().env("RATE_LIMIT", THREE).start();
    for left in [None, None, Some("r=0")] {
        let answer = get(&service, "/user/nobody", &[]);
        assert_eq!(answer.status, 404);
        let said = answer.header("ratelimit").map(|it| it.contains(left.unwrap_or("?")));
        assert_eq!(said, left.map(|_| true), "{:?}", answer.headers);
    }
    for _ in 0..5 {
        limited(&get(&service, "/user/nobody", &[]));
        assert_eq!(get(&service, "/livez", &[]).status, 200);
        assert_eq!(get(&service, "/readyz", &[]).status, 200);
    }
    // Nobody else's header makes it another client.
    for header in ["X-Forwarded-For", "Forwarded"] {
        limited(&get(
            &service,
            "/user/nobody",
            &[(header, "for=192.0.2.7"), ("X-Forwarded-For", "192.0.2.7")],
        ));
    }
    assert_eq!(metric(&service, "rate_limited_total"), 7);
}

#[test]
fn behind_a_trusted_proxy_each_client_has_a_budget_of_its_own() {
    let stack = Stack::shared();
    let service =
        stack.data_svc().env("RATE_LIMIT", THREE).env("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8").start();
    let ask = |client: &str| get(&service, "/user/nobody", &[("X-Forwarded-For", client)]);
    for _ in 0..3 {
        assert_eq!(ask("192.0.2.1").status, 404);
    }
    limited(&ask("192.0.2.1"));
    // What the client itself has sent stands on the left.
    limited(&ask("192.0.2.99, 192.0.2.1, 10.0.0.1"));
    assert_eq!(ask("192.0.2.2").status, 404);
    assert_eq!(ask("2001:db8::1").status, 404);
}

#[test]
fn near_hits_are_limited_as_all_others() {
    let stack = Stack::shared();
    let user_svc = stack.user_svc().start();
    register(&user_svc, "john");
    let service = stack.data_svc().env("RATE_LIMIT", "1/m,burst=1000").start();
    let mut answers = 0;
    wait_until("it is limited", || {
        let answer = get(&service, "/user/john", &[]);
        answers += 1;
        assert!(answer.status == 200 || answers > 1000, "{answers}: {}", answer.text());
        answer.status == 429
    });
    assert!(answers <= 1001, "{answers}");
}

#[test]
fn a_client_has_its_own_budget_whatever_others_send_from_its_address() {
    let [fast, slow] = ["fast", "slow"].map(|name| Client::new(name, "read"));
    let list = ListFile::of(&[&fast, &slow]);
    list.write(&format!("{} rate=off\n{} rate={THREE}\n", fast.line, slow.line));
    let stack = Stack::shared();
    let service = stack.data_svc().env("API_TOKENS_FILE", list.path().display().to_string());
    let service = service.env("AUTH_FAILURES", THREE).start();
    let ask = |authorization: &str| send(&service, "GET", "/user/nobody", Some(authorization));
    for _ in 0..3 {
        assert_eq!(ask("Bearer ut_wrong").status, 401);
        assert_eq!(ask(&slow.authorization()).status, 404);
    }
    limited(&ask("Bearer ut_wrong"));
    limited(&ask(&slow.authorization()));
    for _ in 0..20 {
        assert_eq!(ask(&fast.authorization()).status, 404);
    }
    // To be asked for a token is no attempt.
    assert_eq!(send(&service, "GET", "/user/nobody", None).status, 401);
}
