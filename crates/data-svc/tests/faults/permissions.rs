//! What Redis allows: all that the operations page lists is enough, each part of it is needed, and what is missing is
//! named. And what Redis closes.

use devstack::http;
use devstack::testing::{get, get_with, register, wait_until};
use devstack::{ServiceBuilder, Stack};

use crate::{MISS, NO_CACHE, found, insert, is_hit, wait_for_a_hit, without_near};

const PASSWORD: &str = "a-password-of-the-test";

/// The words of the line that the operations page gives.
fn acl_line() -> Vec<String> {
    let page = include_str!("../../../../docs/operations.md");
    let line =
        page.lines().find(|line| line.starts_with("ACL SETUSER users ")).expect("the page has the line");
    line.replace("PASSWORD", PASSWORD).split(' ').map(str::to_owned).collect()
}

fn run(stack: &Stack, words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(stack.redis_cli(&words).trim(), "OK");
}

fn as_user(stack: &Stack, service: ServiceBuilder) -> ServiceBuilder {
    let url = stack.redis_url().replace("redis://", "redis://users@");
    service.env("REDIS_URL", url).env("REDIS_PASSWORD", PASSWORD)
}

fn write(service: &devstack::Service, method: &str, name: &str) -> u16 {
    let body = if method == "PUT" { r#"{"info": "new"}"# } else { "" };
    let json = [("Content-Type", "application/json")];
    http::send(method, &service.url_of(&format!("/user/{name}")), &json, body).status
}

#[test]
fn both_services_do_all_their_work_with_the_line_of_the_operations_page() {
    let stack = Stack::private();
    run(&stack, &acl_line());
    let user_svc = as_user(&stack, stack.user_svc()).start();
    let data_svc = as_user(&stack, stack.data_svc());
    let [near, far] = [data_svc.clone(), without_near(data_svc.clone())].map(|service| service.start());
    assert_eq!(register(&user_svc, "john").status, 201);
    for service in [&near, &far] {
        wait_for_a_hit(service, "john");
        assert_eq!(get(service, "nobody").status, 404);
        // It replaces a copy.
        get_with(service, "john", &[NO_CACHE]);
    }
    assert_eq!(write(&user_svc, "PUT", "john"), 200);
    for service in [&near, &far] {
        assert_eq!(get(service, "john").json()["info"], "new");
    }
    assert_eq!(write(&user_svc, "DELETE", "john"), 204);
    for service in [&near, &far] {
        assert_eq!(get(service, "john").status, 404);
    }
    // What is no string is removed.
    insert(&stack, "wrong");
    stack.redis_cli(&["HSET", "2:user:{wrong}", "a", "b"]);
    found(&get(&far, "wrong"), "wrong");
    wait_for_a_hit(&far, "wrong");
    assert!(data_svc.run(&["purge", "wrong"]).status.success());
    assert_eq!(stack.redis_cli(&["ACL", "LOG"]).trim(), "");
}

#[test]
fn each_right_of_the_line_is_needed_and_named_when_it_is_missing() {
    let stack = Stack::private();
    let line = acl_line();
    for right in &line {
        let named = match right.as_str() {
            "+select" => continue,
            "~2:*" => "GET 2:probe".to_owned(),
            "&2:*" => "SUBSCRIBE 2:acks".to_owned(),
            right => match right.strip_prefix('+') {
                // The error is of the script that looks.
                Some("evalsha" | "script|load") => right[1..].split('|').next().expect("a name").to_owned(),
                Some(command) => command.to_uppercase().replace('|', " "),
                None => continue,
            },
        };
        let rest: Vec<String> = line.iter().filter(|word| *word != right).cloned().collect();
        stack.redis_cli(&["SCRIPT", "FLUSH"]);
        run(&stack, &rest);
        for service in [stack.user_svc(), stack.data_svc()] {
            let service = as_user(&stack, service).start();
            let log = service.wait_for_log("Redis cannot be used");
            assert!(log.contains(&named), "without {right}: {log}");
        }
    }
}

#[test]
fn a_redis_that_allows_too_little_costs_no_request_its_time() {
    let stack = Stack::private();
    let mut line = acl_line();
    line.retain(|word| word != "+hincrby");
    run(&stack, &line);
    let user_svc = as_user(&stack, stack.user_svc()).env("DATABASE_DEADLINE", "500ms").start();
    let data_svc = as_user(&stack, stack.data_svc()).env("DATABASE_DEADLINE", "500ms").start();
    // A new database begins suspended, and readers may not know yet.
    wait_until("writes begin", || register(&user_svc, "first").status == 201);
    for number in 0..20 {
        let name = format!("john-{number}");
        assert_eq!(register(&user_svc, &name).status, 201, "{}", user_svc.log());
        let status = found(&get(&data_svc, &name), &name);
        assert!(status.starts_with("data-svc; fwd=bypass"), "{status}");
    }
    for service in [&user_svc, &data_svc] {
        assert_eq!(service.log().matches("may not: HINCRBY 2:members x 1").count(), 1);
    }
}

#[test]
fn a_right_that_is_taken_away_is_named_and_all_goes_on_without_redis_until_it_is_given_back() {
    let stack = Stack::private();
    run(&stack, &acl_line());
    let user_svc = as_user(&stack, stack.user_svc()).with_long_timeouts().start();
    let data_svc = as_user(&stack, stack.data_svc()).start();
    assert_eq!(register(&user_svc, "before").status, 201);
    wait_for_a_hit(&data_svc, "before");

    stack.redis_cli(&["ACL", "SETUSER", "users", "-hset", "-set", "-evalsha"]);
    assert_eq!(write(&user_svc, "PUT", "before"), 200);
    user_svc.wait_for_log("Redis cannot be used");
    assert_eq!(get(&data_svc, "before").json()["info"], "new");
    assert_eq!(register(&user_svc, "after").status, 201);
    assert!(!is_hit(&get(&data_svc, "after")));

    stack.redis_cli(&["ACL", "SETUSER", "users", "+hset", "+set", "+evalsha"]);
    wait_for_a_hit(&data_svc, "after");
}

#[test]
fn a_connection_that_redis_closes_while_it_is_idle_costs_no_request_a_miss() {
    let stack = Stack::private();
    stack.redis_cli(&["CONFIG", "SET", "timeout", "1"]);
    let service = without_near(stack.data_svc()).start();
    for name in ["john", "jane"] {
        insert(&stack, name);
        assert_eq!(found(&get(&service, name), name), MISS);
    }
    let uptime = || -> u64 {
        let info = stack.redis_cli(&["INFO", "server"]);
        let line = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
        line.and_then(|seconds| seconds.trim().parse().ok()).expect("Redis says it")
    };
    let start = uptime();
    wait_until("Redis has closed what is idle", || uptime() > start + 4);
    for _ in 0..20 {
        assert!(["john", "jane"].iter().all(|name| is_hit(&get(&service, name))), "{}", service.log());
    }
    assert!(!service.log().contains("Redis is lost"), "{}", service.log());
}
