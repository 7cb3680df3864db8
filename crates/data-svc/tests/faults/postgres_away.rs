//! For how long hits go on without PostgreSQL: throughout while it refuses, and for the grant's life while it is silent,
//! or may be up elsewhere.

use std::thread::sleep;
use std::time::{Duration, Instant};

use devstack::http::Response;
use devstack::testing::{get, metric, wait_until};
use devstack::{Proxy, Service, ServiceBuilder, Stack, free_port};

use crate::{insert, is_hit, is_unavailable, wait_for_a_hit, without_near};

/// For how long a look at the grant of [`Stack::grant`] is valid.
const LIFE: Duration = Duration::from_secs(3);
/// How old a look may be when PostgreSQL goes: looks are 250 ms apart.
const LOOK_AGE: Duration = Duration::from_millis(500);

/// A replica with a near cache and one without: both have a copy of john.
fn replicas(stack: &Stack, set: impl Fn(ServiceBuilder) -> ServiceBuilder) -> [Service; 2] {
    insert(stack, "john");
    // A time-out with Redis is another fault, which a busy machine must not cause here.
    let reader = || set(stack.data_svc().env("CACHE_TIMEOUT", "2s"));
    let replicas = [reader().start(), without_near(reader()).start()];
    for replica in &replicas {
        wait_for_a_hit(replica, "john");
    }
    wait_until("it has a near copy", || {
        get(&replicas[0], "john").header("cache-status").is_some_and(|status| status.ends_with("near"))
    });
    replicas
}

/// Reads again and again, from before `fault` until `time` after its begin. Each answer must be a hit.
#[track_caller]
fn are_hits_throughout(replicas: &[Service; 2], time: Duration, fault: impl FnOnce() + Send) {
    let all_hit = |when: &dyn std::fmt::Debug| {
        for (number, replica) in replicas.iter().enumerate() {
            let answer = get(replica, "john");
            let status = answer.header("cache-status").unwrap_or_default();
            assert!(is_hit(&answer), "replica {number}, {when:?}: {} {status}", answer.status);
        }
    };
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let fault = scope.spawn(fault);
        while begin.elapsed() < time {
            all_hit(&begin.elapsed());
            sleep(Duration::from_millis(2));
        }
        fault.join().expect("no panic");
    });
}

#[test]
fn while_postgres_refuses_hits_go_on_for_longer_than_the_grant_lives() {
    let stack = Stack::private();
    let replicas = replicas(&stack, |service| service);
    are_hits_throughout(&replicas, LIFE + LIFE, || stack.postgres().kill());
    stack.postgres().restart();
    // The restarted server may have served writers meanwhile: its cache is another.
    insert(&stack, "jane");
    for replica in &replicas {
        wait_until("misses are served again", || get(replica, "jane").status == 200);
        wait_for_a_hit(replica, "john");
    }
}

#[test]
fn while_postgres_is_silent_hits_go_on_without_a_gap_and_end_with_the_grant() {
    let stack = Stack::private();
    let replicas = replicas(&stack, |service| service.env("DATABASE_DEADLINE", "500ms"));
    are_hits_throughout(&replicas, LIFE - LOOK_AGE, || stack.postgres().freeze());
    for replica in &replicas {
        let mut last: Option<Response> = None;
        wait_until("the grant has ended", || {
            let answer = get(replica, "john");
            let ended = answer.status != 200;
            last = Some(answer);
            ended
        });
        is_unavailable(&last.expect("an answer"));
        is_unavailable(&get(replica, "john"));
    }
    stack.postgres().thaw();
    for replica in &replicas {
        wait_for_a_hit(replica, "john");
        assert_eq!(metric(replica, "cache_suspended"), 0);
    }
}

/// A service that knows two servers, of which the first is down.
fn beside_one_that_is_down(stack: &Stack, service: ServiceBuilder, port: u16) -> ServiceBuilder {
    let hosts = format!("127.0.0.1:{},127.0.0.1:{port}", free_port());
    service.env("DATABASE_URL", format!("postgres://postgres@{hosts}/{}", stack.database()))
}

#[test]
fn while_each_of_several_postgres_servers_refuses_hits_go_on() {
    let stack = Stack::private();
    let port = stack.postgres().port();
    let replicas = replicas(&stack, |service| beside_one_that_is_down(&stack, service, port));
    are_hits_throughout(&replicas, LIFE + LIFE, || stack.postgres().kill());
}

#[test]
fn while_one_of_several_postgres_servers_refuses_and_another_does_not_hits_end_with_the_grant() {
    let stack = Stack::private();
    let link = stack.postgres_proxy();
    let replicas = replicas(&stack, |service| beside_one_that_is_down(&stack, service, link.port()));
    // It closes each connection: the server may take those of others.
    link.cut();
    hits_end(&replicas);
}

#[test]
fn a_pooler_that_refuses_may_be_down_alone_so_hits_end_with_the_grant() {
    let stack = Stack::private();
    let replicas = replicas(&stack, |service| service.env("DATABASE_PREPARED", "false"));
    stack.postgres().kill();
    hits_end(&replicas);
}

fn hits_end(replicas: &[Service; 2]) {
    for replica in replicas {
        wait_until("the grant has ended", || get(replica, "john").status != 200);
        is_unavailable(&get(replica, "john"));
    }
}

#[test]
fn with_cache_without_postgres_hits_go_on_while_postgres_is_silent() {
    let stack = Stack::private();
    let replicas = replicas(&stack, |service| service.env("CACHE_WITHOUT_POSTGRES", "true"));
    are_hits_throughout(&replicas, LIFE + LIFE, || stack.postgres().freeze());
    stack.postgres().thaw();
}

/// How many connections a service may open within three seconds while each attempt fails, for each that it keeps: the pool
/// tries after 0, 0.2, 0.4, 0.8 and 1.6 s, with some chance in it, and the monitor four times a second.
const ATTEMPTS: u64 = 6;
/// `DATABASE_CONNECTIONS`, by default, and the monitor's.
const CONNECTIONS: u64 = 10 + 1;

/// How many connections `service` opens through `link` within three seconds while clients ask for what only PostgreSQL has.
fn opened_in_vain(service: &Service, link: &Proxy) -> u64 {
    let before = link.attempts();
    let begin = Instant::now();
    for number in 0.. {
        if begin.elapsed() > Duration::from_secs(3) {
            break;
        }
        is_unavailable(&get(service, &format!("cold-{number}")));
    }
    link.attempts() - before
}

#[test]
fn a_postgres_that_closes_or_refuses_each_connection_is_not_stormed() {
    let stack = Stack::private();
    let link = stack.postgres_proxy();
    let service = stack.data_svc().postgres_through(&link).start();
    wait_for_a_hit(&service, "nobody");
    link.cut();
    let cut = opened_in_vain(&service, &link);
    link.restore();
    wait_until("it is used again", || get(&service, "somebody").status == 404);
    stack.postgres().kill();
    let refused = opened_in_vain(&service, &link);
    println!("{cut} and {refused} connections");
    assert!(cut <= ATTEMPTS * CONNECTIONS && refused <= ATTEMPTS * CONNECTIONS, "{cut}, {refused}");
}
