//! What a browser learns when a page of another origin calls a service.

use devstack::{Service, ServiceBuilder, http};

use crate::{register, running};

const PAGE: (&str, &str) = ("Origin", "http://127.0.0.1:8080");
const ASKS: (&str, &str) = ("Access-Control-Request-Method", "GET");

fn preflight(service: &Service, origin: &str) -> http::Response {
    http::send("OPTIONS", &service.url_of("/user/x"), &[("Origin", origin), ASKS], "")
}

fn allowed(response: &http::Response) -> Option<&str> {
    response.header("access-control-allow-origin")
}

fn with(settings: &[(&str, &str)]) -> Service {
    let start = |builder: ServiceBuilder, (name, value): &(&str, &str)| builder.env(name, *value);
    settings.iter().fold(running().stack.data_svc(), start).start()
}

#[test]
fn a_page_on_this_machine_may_call_a_service_that_listens_there() {
    register("cors", "i");
    let url = running().data_svc.url_of("/user/cors");
    for _ in ["a miss", "a hit"] {
        let answer = http::send("GET", &url, &[PAGE], "");
        assert_eq!((answer.status, allowed(&answer)), (200, Some(PAGE.1)));
        assert_eq!(answer.header("vary"), Some("Origin"));
        let exposed = answer.header("access-control-expose-headers").unwrap_or_default();
        for header in ["etag", "location", "cache-status", "retry-after", "x-request-id"] {
            assert!(exposed.split(", ").any(|it| it == header), "{exposed}");
        }
    }
    let refused = http::send("GET", &running().data_svc.url_of("/user/%ff"), &[PAGE], "");
    assert_eq!((refused.status, allowed(&refused)), (400, Some(PAGE.1)), "a page sees what is wrong");
}

#[test]
fn a_preflight_is_answered_at_every_path_before_anything_else() {
    for service in [&running().user_svc, &running().data_svc] {
        for path in ["/register", "/user/x", "/user/%ff", "/nope", "/livez"] {
            let answer = http::send("OPTIONS", &service.url_of(path), &[PAGE, ASKS], "");
            assert_eq!(
                (answer.status, allowed(&answer), answer.body.len()),
                (204, Some(PAGE.1), 0),
                "{path}"
            );
            assert_eq!(answer.header("access-control-allow-methods"), Some("GET, HEAD, POST, PUT, DELETE"));
            assert_eq!(answer.header("access-control-max-age"), Some("600"));
            assert_eq!(answer.header("vary"), Some("Origin"));
            let headers = answer.header("access-control-allow-headers").unwrap_or_default();
            for header in [
                "authorization",
                "content-type",
                "if-match",
                "if-none-match",
                "cache-control",
                "x-request-id",
            ] {
                assert!(headers.split(", ").any(|it| it == header), "{headers}");
            }
            assert!(answer.header("x-request-id").is_some(), "it is logged as any other request");
        }
    }
    // OPTIONS without the question is no preflight.
    let options = http::send("OPTIONS", &running().data_svc.url_of("/user/x"), &[PAGE], "");
    assert_eq!((options.status, allowed(&options)), (405, Some(PAGE.1)));
}

#[test]
fn a_page_of_another_machine_may_not_call_and_no_answer_allows_credentials() {
    for origin in
        ["http://evil.test", "null", "http://localhost.evil.test", "file://", "http://127.0.0.1:8080/x"]
    {
        let asked = preflight(&running().data_svc, origin);
        assert_eq!((asked.status, allowed(&asked)), (405, None), "{origin}");
        let read = http::send("GET", &running().data_svc.url_of("/livez"), &[("Origin", origin)], "");
        assert_eq!(
            (read.status, allowed(&read), read.header("vary")),
            (200, None, Some("Origin")),
            "{origin}"
        );
    }
    for answer in [preflight(&running().data_svc, PAGE.1), preflight(&with(&[("CORS_ORIGINS", "*")]), PAGE.1)]
    {
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
}

#[test]
fn nothing_is_added_to_a_request_without_origin() {
    register("cors-none", "i");
    for path in ["/user/cors-none", "/user/cors-none", "/nope", "/livez", "/openapi.json"] {
        let answer = http::get(&running().data_svc.url_of(path));
        let added =
            answer.headers.iter().find(|(name, _)| name.starts_with("access-control") || name == "vary");
        assert_eq!(added, None, "{path}");
    }
}

#[test]
fn origins_are_those_of_the_setting() {
    let exact = with(&[("CORS_ORIGINS", "https://a.test, http://b.test:8080")]);
    assert_eq!(allowed(&preflight(&exact, "https://a.test")), Some("https://a.test"));
    assert_eq!(allowed(&preflight(&exact, "http://b.test:8080")), Some("http://b.test:8080"));
    for other in ["http://a.test", "https://b.test:8080", "http://b.test", PAGE.1] {
        assert_eq!(preflight(&exact, other).status, 405, "{other}");
    }

    let any = with(&[("CORS_ORIGINS", "*")]);
    let answer = preflight(&any, "null");
    assert_eq!((answer.status, allowed(&answer), answer.header("vary")), (204, Some("*"), None));

    // Bound to all addresses, the service may be reached from other machines.
    let open = with(&[("HOST", "0.0.0.0"), ("AUTH", "none")]);
    let url = open.url_of("/user/x").replace("0.0.0.0", "127.0.0.1");
    let answer = http::send("OPTIONS", &url, &[PAGE, ASKS], "");
    assert_eq!((answer.status, allowed(&answer), answer.header("vary")), (405, None, None));

    for wrong in ["a.test", "https://a.test/", "none", "https://a.test;https://b.test"] {
        let run = running().stack.data_svc().env("CORS_ORIGINS", wrong).run(&[]);
        assert_eq!(run.status.code(), Some(2), "{wrong}");
        assert!(
            String::from_utf8_lossy(&run.stderr).contains("CORS_ORIGINS must be auto, *, or origins"),
            "{wrong}"
        );
    }
}
