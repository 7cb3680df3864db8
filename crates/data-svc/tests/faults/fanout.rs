//! Many near caches on one Redis.

use std::io::Write;
use std::net::TcpStream;

use devstack::Stack;
use devstack::testing::{get, wait_until};

use crate::{insert, wait_for_a_hit};

/// How Redis calls the command that counts them.
const COUNT: &str = "pubsub|numsub";

/// How often Redis has run the command, since its counts were reset.
fn calls(stack: &Stack, command: &str) -> f64 {
    let stats = stack.redis_cli(&["INFO", "commandstats"]);
    let calls = stats.lines().find_map(|line| {
        let (count, _) = line.strip_prefix(&format!("cmdstat_{command}:calls="))?.split_once(',')?;
        count.parse().ok()
    });
    calls.unwrap_or(0.0)
}

/// How many renewals there are for each time that the near caches are counted.
fn renewals(stack: &Stack) -> f64 {
    const COUNTS: f64 = 3.0;
    // The next count begins a new interval.
    stack.redis_cli(&["CONFIG", "RESETSTAT"]);
    wait_until("the near caches are counted", || calls(stack, COUNT) >= 1.0);
    stack.redis_cli(&["CONFIG", "RESETSTAT"]);
    wait_until("they are counted again", || calls(stack, COUNT) >= COUNTS);
    calls(stack, "hsetnx") / COUNTS
}

/// A connection that listens, as that of a near cache does.
fn subscriber(stack: &Stack, channel: &str) -> TcpStream {
    let mut connection = TcpStream::connect(("127.0.0.1", stack.redis().port())).expect("Redis listens");
    connection.write_all(format!("SUBSCRIBE {channel}\r\n").as_bytes()).expect("Redis reads");
    connection
}

#[test]
fn renewals_become_rarer_with_the_number_of_near_caches_and_copies_are_used_all_the_same() {
    let stack = Stack::private();
    insert(&stack, "john");
    let reader = stack.data_svc().start();
    wait_for_a_hit(&reader, "john");
    let alone = renewals(&stack);
    let channels = stack.redis_cli(&["PUBSUB", "CHANNELS", "2:invalidations:*"]);
    let _others: Vec<TcpStream> = (0..400).map(|_| subscriber(&stack, channels.trim())).collect();
    let among_many = renewals(&stack);
    // Ten times, on a machine that does nothing else.
    assert!(among_many * 3.0 < alone, "{alone} and {among_many}");
    wait_until("a near copy is used", || {
        get(&reader, "john").header("cache-status").is_some_and(|status| status.ends_with("near"))
    });
}
