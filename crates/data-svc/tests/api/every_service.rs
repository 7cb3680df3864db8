//! What both services answer alike.

use devstack::{Service, http};

use crate::{get, is_problem, running};

fn services() -> [&'static Service; 2] {
    [&running().user_svc, &running().data_svc]
}

#[test]
fn a_path_that_is_not_there_is_404_for_every_method() {
    for service in services() {
        for path in
            ["/nope", "/user", "/user/", "/livez/x", "/metrics", "/problems/nope", "/docs/nope.js", "//"]
        {
            is_problem(&http::get(&service.url_of(path)), 404, "no-such-path");
        }
        is_problem(&http::send("POST", &service.url_of("/nope"), &[], "x"), 404, "no-such-path");
    }
}

#[test]
fn a_target_of_over_8000_bytes_is_414_and_a_longer_one_than_the_parser_takes_is_400() {
    for service in services() {
        let path = |length: usize| format!("/user/{}", "n".repeat(length - "/user/".len()));
        for too_long in [path(8001), path(60_000), format!("/livez?{}", "q".repeat(8000))] {
            is_problem(&http::get(&service.url_of(&too_long)), 414, "target-too-long");
        }
        assert_eq!(http::get(&service.url_of(&format!("/livez?{}", "q".repeat(7993)))).status, 200);
        let head = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path(70_000));
        assert_eq!(http::raw(service.address(), head).status, 400);
    }
    is_problem(&get(&"n".repeat(7994), &[]), 400, "invalid-name");
}

#[test]
fn a_wrong_method_is_405_and_allow_names_the_right_ones() {
    for service in services() {
        for path in
            ["/", "/livez", "/readyz", "/version", "/openapi.json", "/docs", "/docs/", "/problems/internal"]
        {
            let response = http::send("POST", &service.url_of(path), &[], "");
            is_problem(&response, 405, "method-not-allowed");
            assert_eq!(response.header("allow"), Some("GET, HEAD"), "{path}");
        }
    }
    let response = http::send("PATCH", &running().data_svc.url_of("/user/x"), &[], "");
    assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn head_works_on_every_get_route() {
    for service in services() {
        for path in
            ["/", "/livez", "/readyz", "/version", "/openapi.json", "/docs", "/docs/", "/problems/internal"]
        {
            let (get, head) =
                (http::get(&service.url_of(path)), http::send("HEAD", &service.url_of(path), &[], ""));
            assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
            assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        }
    }
}

#[test]
fn livez_readyz_and_version_answer() {
    for (service, name) in services().into_iter().zip(["user-svc", "data-svc"]) {
        assert_eq!(http::get(&service.url_of("/livez")).json()["status"], "ok");
        assert_eq!(http::get(&service.url_of("/readyz")).json()["status"], "ok");
        let version = http::get(&service.url_of("/version")).json();
        assert_eq!(
            (&version["service"], &version["version"]),
            (&name.into(), &env!("CARGO_PKG_VERSION").into())
        );
    }
}

#[test]
fn the_description_is_openapi_3_1_and_names_every_route_of_the_contract() {
    let paths = ["/register", "/user/{name}"];
    for (service, path) in services().into_iter().zip(paths) {
        let api = http::get(&service.url_of("/openapi.json")).json();
        assert!(
            api["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")),
            "{}",
            api["openapi"]
        );
        for path in [path, "/livez", "/readyz", "/version"] {
            assert!(api["paths"][path].is_object(), "{path}");
        }
        assert_eq!(api["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn the_root_and_docs_without_its_slash_redirect_to_the_page_by_a_relative_address() {
    for service in services() {
        let root = http::get(&service.url_of("/"));
        assert_eq!((root.status, root.header("location")), (307, Some("docs/")));
        assert_eq!(root.header("cache-control"), Some("no-store"));
        let docs = http::get(&service.url_of("/docs"));
        assert_eq!((docs.status, docs.header("location")), (308, Some("docs/")));
    }
}

#[test]
fn the_documentation_is_served_from_the_binary_and_calls_nobody() {
    for service in services() {
        let page = http::get(&service.url_of("/docs/"));
        assert_eq!(page.status, 200);
        assert!(!page.text().contains("http://") && !page.text().contains("https://"), "{}", page.text());
        let script = http::get(&service.url_of("/docs/swagger-initializer.js")).text();
        assert!(
            script.contains(r#""url": "../openapi.json""#) && script.contains(r#""validatorUrl": "none""#),
            "{script}"
        );
        assert_eq!(http::get(&service.url_of("/docs/swagger-ui-bundle.js")).status, 200);
    }
}

#[test]
fn every_type_of_problem_leads_to_its_explanation() {
    for service in services() {
        for kind in common::http::KINDS {
            let page = http::get(&service.url_of(&format!("/problems/{}", kind.slug)));
            assert_eq!(page.status, 200);
            assert!(page.text().contains(kind.title));
        }
    }
}

#[test]
fn a_sane_request_id_is_taken_over_and_any_other_replaced() {
    let id = |given: &str| {
        let answer = get("nobody-ids", &[("X-Request-Id", given)]);
        answer.header("x-request-id").expect("always there").to_owned()
    };
    let longest = "a".repeat(128);
    for sane in ["x", "A-b_c.9", &longest] {
        assert_eq!(id(sane), sane);
    }
    let too_long = "a".repeat(129);
    for other in ["", "a b", "a\"b", "a;b", "a/b", &too_long] {
        let made = id(other);
        assert!(made != other && made.len() == 32 && made.bytes().all(|b| b.is_ascii_hexdigit()), "{made}");
    }
    assert_ne!(id(""), id(""));
}

#[test]
fn every_answer_forbids_sniffing_and_carries_a_request_id() {
    for service in services() {
        for path in ["/livez", "/nope", "/docs/", "/openapi.json", "/user/x", "/user/%ff", "/register"] {
            let answer = http::get(&service.url_of(path));
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
            assert!(answer.header("x-request-id").is_some(), "{path}");
        }
    }
}

#[test]
fn a_request_is_logged_with_its_id_and_route_but_never_with_its_name() {
    let service = &running().data_svc;
    get("secret%20name%ff", &[("X-Request-Id", "logged-1")]);
    let log = service.wait_for_log("logged-1");
    let line = log.lines().find(|line| line.contains("logged-1")).expect("waited for");
    assert!(line.contains("access: GET /user/{name} 400"), "{line}");
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn metrics_are_on_a_port_of_their_own_and_count_by_route_template() {
    get("metrics-name", &[]);
    let text = http::get(&format!("{}/metrics", running().data_svc.metrics_url())).text();
    for name in [
        r#"http_request_duration_seconds_count{method="GET",route="/user/{name}",status="404"}"#,
        "database_connections_in_use ",
        "database_queries_waiting ",
        "database_timeouts_total ",
        "database_refused_total ",
        r#"cache_requests_total{result="miss"}"#,
        r#"build_info{revision="#,
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
    assert!(!text.contains("metrics-name"));
}
