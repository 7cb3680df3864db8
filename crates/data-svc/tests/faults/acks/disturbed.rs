//! Clients write and read while the list of near members is lost again and again, and while Redis is.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use devstack::testing::{StopAtEnd, get, wait_until};
use devstack::{Redis, Service, http};
use serde_json::json;

use super::{Reader, Writer, replace};

const NAMES: [&str; 3] = ["ann", "bob", "eve"];
/// How often a fault is repeated.
const TIMES: usize = 15;

/// The infos of a user are the numbers of its writes, by one client.
#[derive(Default)]
struct User {
    acknowledged: AtomicU32,
}

/// Lets clients work until `faults` is over, and a moment longer. No read returns an older user than the one that was
/// acknowledged before it began.
fn disturb(writer: &Writer, faults: impl FnOnce(&dyn Fn(), &[Reader])) {
    let readers = [Reader::start(writer), Reader::start(writer)];
    let users: [User; NAMES.len()] = Default::default();
    for name in NAMES {
        writer.register(name, "0");
    }
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for (name, user) in NAMES.into_iter().zip(&users) {
            let stop = &stop;
            scope.spawn(move || {
                let _stop = StopAtEnd(stop);
                write(&writer.service, name, user, stop);
            });
            for reader in &readers {
                scope.spawn(move || {
                    let _stop = StopAtEnd(stop);
                    read(&reader.service, name, user, stop);
                });
            }
        }
        // Each fault meets writes.
        let more = || {
            let goals = users.each_ref().map(|user| user.acknowledged.load(Ordering::SeqCst) + 2);
            wait_until("each user is replaced", || {
                let reached = |(user, goal): (&User, &u32)| user.acknowledged.load(Ordering::SeqCst) >= *goal;
                stop.load(Ordering::SeqCst) || users.iter().zip(&goals).all(reached)
            });
        };
        more();
        faults(&more, &readers);
        more();
    });
}

fn write(service: &Service, name: &str, user: &User, stop: &AtomicBool) {
    let json = [("Content-Type", "application/json")];
    let url = service.url_of(&format!("/user/{name}"));
    let mut number = 1;
    while !stop.load(Ordering::SeqCst) {
        let answer = http::send("PUT", &url, &json, json!({ "info": number.to_string() }).to_string());
        match answer.status {
            200 => {
                user.acknowledged.store(number, Ordering::SeqCst);
                number += 1;
                // So that copies are stored.
                sleep(Duration::from_millis(10));
            }
            503 => sleep(Duration::from_millis(10)),
            status => panic!("{status}: {}", answer.text()),
        }
    }
}

fn read(service: &Service, name: &str, user: &User, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let acknowledged = user.acknowledged.load(Ordering::SeqCst);
        let answer = get(service, name);
        let info = answer.json()["info"].as_str().and_then(|info| info.parse::<u32>().ok());
        let status = answer.header("cache-status");
        assert!(info >= Some(acknowledged), "{name} was {acknowledged}, and then {info:?}: {status:?}");
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_old_user_is_read_while_the_list_is_deleted_flushed_and_put_back_under_load() {
    let writer = Writer::start();
    let redis = &writer.redis;
    disturb(&writer, |more, _| {
        for time in 0..TIMES {
            more();
            match time % 3 {
                0 => drop(redis.cli(0, &["DEL", "2:members"])),
                1 => drop(redis.cli(0, &["FLUSHALL"])),
                _ => {
                    redis.cli(0, &["COPY", "2:members", "2:saved", "REPLACE"]);
                    more();
                    redis.cli(0, &["COPY", "2:saved", "2:members", "REPLACE"]);
                }
            }
        }
    });
}

#[test]
fn no_old_user_is_read_while_redis_evicts_everything_it_has() {
    let redis = Redis::start_with(&["--maxmemory-policy", "allkeys-random"]);
    let writer = Writer::with_redis(redis);
    let redis = &writer.redis;
    disturb(&writer, |more, _| {
        for time in 0..TIMES {
            // As much as it uses at this moment: each further key takes the place of others.
            let used = redis.info("used_memory");
            redis.cli(0, &["CONFIG", "SET", "maxmemory", &used]);
            sleep(Duration::from_millis(if time % 2 == 0 { 20 } else { 200 }));
            redis.cli(0, &["CONFIG", "SET", "maxmemory", "0"]);
            more();
        }
        assert_ne!(redis.info("evicted_keys"), "0");
    });
}

#[test]
fn no_old_user_is_read_while_redis_is_restarted_under_writers_that_wait() {
    let writer = Writer::start();
    let silent = Reader::start(&writer);
    disturb(&writer, |more, _| {
        // This one's acks do not come, so writers wait.
        silent.link.stall();
        writer.redis.restart();
        more();
        silent.link.restore();
    });
}

#[test]
fn no_old_user_is_read_while_redis_fails_over_to_one_that_missed_writes_under_writers_that_wait() {
    let primary = Redis::start();
    let replica = Redis::replica_of(&primary);
    let writer = Writer::with_redis(primary);
    let silent = Reader::start(&writer);
    disturb(&writer, |more, readers| {
        replica.detach();
        more();
        silent.link.stall();
        writer.redis.kill();
        replica.promote();
        let links = readers.iter().chain([&silent]).map(|reader| &reader.link).chain([&writer.link]);
        for link in links {
            link.retarget(("127.0.0.1", replica.port()));
            link.reset();
        }
        more();
        silent.link.restore();
    });
}

#[test]
fn two_user_svc_that_write_the_same_and_other_users_at_once_wait_for_the_same_members() {
    let writer = Writer::start();
    let other = writer.stack.user_svc().with_long_timeouts().env("REDIS_URL", writer.redis.url(0)).start();
    let readers = [Reader::start(&writer), Reader::start(&writer)];
    for name in ["ann", "bob", "both"] {
        writer.register(name, "0");
    }
    for round in 1..=15 {
        for reader in &readers {
            for name in ["ann", "bob", "both"] {
                reader.warm(name);
            }
        }
        let info = round.to_string();
        scope(|scope| {
            for (service, own) in [(&writer.service, "ann"), (&other, "bob")] {
                let (info, readers) = (&info, &readers);
                scope.spawn(move || {
                    replace(service, own, info);
                    for reader in readers {
                        reader.must_read(own, info);
                    }
                });
                scope.spawn(move || replace(service, "both", &format!("{info} of {own}")));
            }
        });
        let last = writer.stack.sql("SELECT info FROM users WHERE name = 'both'");
        for reader in &readers {
            reader.must_read("both", &last);
        }
    }
    assert_eq!(writer.members().len(), 2);
}
