//! data-svc returns what user-svc has written, at once: docs/cache-protocol.md, shown by single requests. The histories
//! in tests/history check it for many.

mod left_copies;

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::testing::{
    get, get_with, kind, metric, metric_with, place_lease, register_with, wait_until, wait_until_within,
};
use devstack::{Service, Stack, http};
use serde_json::json;

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// Two replicas that read, and one that writes.
struct Fleet {
    user_svc: Service,
    data_svc: [Service; 2],
    stack: Stack,
}

impl Fleet {
    fn start() -> Self {
        let stack = Stack::shared();
        // A test may hold a COMMIT for longer than the default time-outs.
        let user_svc = stack.user_svc().with_long_timeouts().start();
        let data_svc = [stack.data_svc().start(), stack.data_svc().start()];
        user_svc.wait_for_log("Redis is there");
        Self { user_svc, data_svc, stack }
    }

    fn write(&self, method: &str, path: &str, body: serde_json::Value) -> u16 {
        http::send(method, &self.user_svc.url_of(path), &[JSON], body.to_string()).status
    }

    fn register(&self, name: &str, info: &str) {
        assert_eq!(register_with(&self.user_svc, name, info).status, 201);
    }

    fn replace(&self, name: &str, info: &str) {
        assert_eq!(self.write("PUT", &format!("/user/{name}"), json!({"info": info})), 200);
    }

    fn get(&self, replica: usize, name: &str) -> http::Response {
        get(&self.data_svc[replica], name)
    }

    fn cache_status(&self, replica: usize, name: &str) -> String {
        self.get(replica, name).header("cache-status").unwrap_or_default().to_owned()
    }

    /// Makes every COMMIT of a register or a replace wait for [`Fleet::release_commits`]: a deferred trigger waits for a row to
    /// change.
    fn hold_commits(&self) {
        self.stack.sql(
            "CREATE TABLE gate (open bool NOT NULL);
             INSERT INTO gate VALUES (false);
             CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 WHILE NOT (SELECT open FROM gate) LOOP PERFORM pg_sleep(0.005); END LOOP;
                 RETURN NULL;
             END $$;
             CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON users DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate()",
        );
    }

    fn wait_for_commit(&self) {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND state = 'active' AND query ILIKE 'commit%'";
        wait_until("a COMMIT waits", || self.stack.sql(waiting) == "1");
    }

    fn release_commits(&self) {
        self.stack.sql("UPDATE gate SET open = true");
    }

    /// Reads until the answer is a near hit.
    fn warm_near(&self, replica: usize, name: &str) {
        let near = (0..3000).any(|_| self.cache_status(replica, name).ends_with("; detail=near"));
        assert!(near, "the near cache is never used");
    }

    /// The same through both replicas.
    fn warm_both(&self, name: &str) {
        for replica in 0..2 {
            self.warm_near(replica, name);
        }
    }
}

#[test]
fn a_replaced_user_is_seen_at_once_through_every_replica_and_tier() {
    let fleet = Fleet::start();
    fleet.register("ann", "0");
    for round in 1..=20 {
        fleet.warm_both("ann");
        fleet.replace("ann", &round.to_string());
        for replica in 0..2 {
            assert_eq!(fleet.get(replica, "ann").json()["info"], round.to_string());
        }
    }
}

#[test]
fn a_deleted_user_is_gone_at_once_through_every_replica_and_tier() {
    let fleet = Fleet::start();
    for round in 0..10 {
        fleet.register("ann", &round.to_string());
        fleet.warm_both("ann");
        assert_eq!(fleet.write("DELETE", "/user/ann", json!(null)), 204);
        for replica in 0..2 {
            assert_eq!(fleet.get(replica, "ann").status, 404);
        }
    }
}

#[test]
fn while_a_barrier_stands_reads_use_postgres_and_store_nothing() {
    let fleet = Fleet::start();
    fleet.register("ann", "i");
    fleet.stack.redis_cli(&["SET", "2:user:{ann}", "B0123456789abcdef"]);
    for _ in 0..3 {
        let answer = fleet.get(0, "ann");
        assert_eq!(answer.json(), json!({"name": "ann", "info": "i", "cache_hit": false}));
        assert_eq!(answer.header("cache-status"), Some("data-svc; fwd=bypass; detail=write-in-progress"));
    }
    assert_eq!(fleet.stack.redis_cli(&["GET", "2:user:{ann}"]).trim(), "B0123456789abcdef");
}

#[test]
fn a_barrier_stands_from_before_commit_until_the_outcome_is_known() {
    let fleet = Fleet::start();
    fleet.register("ann", "old");
    fleet.warm_near(0, "ann");
    fleet.hold_commits();
    scope(|scope| {
        let writer = scope.spawn(|| fleet.replace("ann", "new"));
        fleet.wait_for_commit();
        assert_eq!(kind(&fleet.stack, "ann"), "B");
        assert_eq!(fleet.cache_status(0, "ann"), "data-svc; fwd=bypass; detail=write-in-progress");
        fleet.release_commits();
        writer.join().expect("replaced");
    });
    // It would expire by itself after 10 s.
    let is_lowered = || kind(&fleet.stack, "ann") == "V";
    wait_until_within(Duration::from_secs(5), "the new copy is in its place", is_lowered);
}

#[test]
fn while_a_replace_is_not_committed_its_old_user_is_stored_nowhere_even_if_its_barrier_was_lost() {
    let fleet = Fleet::start();
    fleet.register("ann", "old");
    fleet.hold_commits();
    scope(|scope| {
        let writer = scope.spawn(|| fleet.replace("ann", "new"));
        fleet.wait_for_commit();
        fleet.stack.redis_cli(&["DEL", "2:user:{ann}"]);
        // The replace is not acknowledged yet, so the old user may be read. But its row is locked.
        for replica in [0, 1, 0, 1] {
            let answer = fleet.get(replica, "ann");
            assert_eq!(answer.json()["info"], "old");
            assert_eq!(answer.header("cache-status"), Some("data-svc; fwd=bypass; detail=write-in-progress"));
        }
        fleet.release_commits();
        writer.join().expect("replaced");
    });
    for replica in 0..2 {
        assert_eq!(fleet.get(replica, "ann").json()["info"], "new");
    }
}

#[test]
fn a_register_whose_barrier_was_lost_is_made_up_for_before_the_acknowledgement() {
    let fleet = Fleet::start();
    fleet.hold_commits();
    scope(|scope| {
        let writer = scope.spawn(|| fleet.register("ann", "new"));
        fleet.wait_for_commit();
        fleet.stack.redis_cli(&["DEL", "2:user:{ann}"]);
        // No row is locked that could keep the absence out of Redis.
        wait_until("the absence is stored", || {
            assert_eq!(fleet.get(0, "ann").status, 404);
            kind(&fleet.stack, "ann") == "A"
        });
        fleet.release_commits();
        writer.join().expect("registered");
    });
    for replica in 0..2 {
        assert_eq!(fleet.get(replica, "ann").json()["info"], "new");
    }
    assert_eq!(metric_with(&fleet.user_svc, "cache_barriers_total", "lost"), 1);
}

#[test]
fn a_replica_that_receives_nothing_uses_no_copy_after_an_acknowledged_write() {
    let fleet = Fleet::start();
    let proxy = fleet.stack.redis_proxy();
    let isolated = fleet.stack.data_svc().redis_through(&proxy).start();
    let get = || http::get(&isolated.url_of("/user/ann"));
    fleet.register("ann", "0");
    for round in 1..=10 {
        let near =
            |answer: http::Response| answer.header("cache-status").is_some_and(|s| s.ends_with("near"));
        let deadline = Instant::now() + Duration::from_secs(30);
        while !near(get()) {
            assert!(Instant::now() < deadline, "the near cache is not used");
        }
        proxy.stall();
        fleet.replace("ann", &round.to_string());
        assert_eq!(get().json()["info"], round.to_string());
        proxy.restore();
    }
}

/// Three at once, and reads at several moments: a proof that counted from its answer would be valid for a quarter of the
/// time.
#[test]
fn a_replica_that_receives_late_does_not_use_its_copies() {
    let fleet = Fleet::start();
    fleet.register("ann", "0");
    let late = [(), (), ()].map(|()| {
        let proxy = fleet.stack.redis_proxy();
        let service = fleet.stack.data_svc().redis_through(&proxy).env("CACHE_TIMEOUT", "2s").start();
        service.wait_for_log("Redis is there");
        proxy.delay(Duration::from_millis(100));
        (service, proxy)
    });
    for round in 1..=4 {
        scope(|scope| {
            for (service, _) in &late {
                scope.spawn(|| (0..3).for_each(|_| drop(get(service, "ann"))));
            }
        });
        fleet.replace("ann", &round.to_string());
        scope(|scope| {
            for (service, _) in &late {
                for moment in 0..5 {
                    scope.spawn(move || {
                        sleep(Duration::from_millis(8 * moment));
                        assert_eq!(get(service, "ann").json()["info"], round.to_string());
                    });
                }
            }
        });
    }
}

#[test]
fn purge_leaves_a_barrier_where_a_writers_is() {
    let fleet = Fleet::start();
    fleet.stack.redis_cli(&["SET", "2:user:{ann}", "B0123456789abcdef", "EX", "1000"]);
    assert!(fleet.stack.data_svc().run(&["purge", "ann"]).status.success());
    assert_eq!(kind(&fleet.stack, "ann"), "B");
    let ttl: u32 = fleet.stack.redis_cli(&["TTL", "2:user:{ann}"]).trim().parse().expect("a number");
    assert!(ttl > 900, "for as long as the writer's would have stood");
}

#[test]
fn a_lease_of_another_replica_is_waited_for_and_then_bypassed() {
    let fleet = Fleet::start();
    fleet.register("ann", "i");
    fleet.register("bob", "i");
    fleet.warm_near(0, "bob");
    place_lease(&fleet.stack, "ann", "bob");
    let there = || {
        fleet.stack.redis_cli(&[
            "EVAL",
            "return redis.sha1hex(redis.call('GET', KEYS[1]))",
            "1",
            "2:user:{ann}",
        ])
    };
    let lease = there();
    assert_eq!(fleet.cache_status(0, "ann"), "data-svc; fwd=bypass; detail=write-in-progress");
    assert_eq!(there(), lease);
}

#[test]
fn purge_removes_a_user_that_was_changed_in_sql_from_every_tier() {
    let fleet = Fleet::start();
    fleet.register("ann", "before");
    fleet.warm_both("ann");
    fleet.stack.sql("UPDATE users SET info = 'by hand' WHERE name = 'ann'");
    assert_eq!(fleet.get(0, "ann").json()["info"], "before");
    let purge = fleet.stack.data_svc().run(&["purge", "ann", "somebody else"]);
    assert!(purge.status.success(), "{}", String::from_utf8_lossy(&purge.stderr));
    // A near copy is used until its proof ends, or until the message arrives.
    let seen = |replica| (0..1000).any(|_| fleet.get(replica, "ann").json()["info"] == "by hand");
    assert!(seen(0) && seen(1));
}

#[test]
fn purge_refuses_a_name_that_no_user_can_have() {
    let purge = Stack::shared().data_svc().run(&["purge", "a\nb"]);
    assert!(!purge.status.success());
    assert!(String::from_utf8_lossy(&purge.stderr).contains("must not hold control"));
}

#[test]
fn a_lease_of_another_grant_is_replaced_by_the_first_reader() {
    let fleet = Fleet::start();
    fleet.register("ann", "i");
    fleet.stack.redis_cli(&["SET", "2:user:{ann}", "Lthis tag0123456789abcdef"]);
    assert_eq!(fleet.cache_status(0, "ann"), "data-svc; fwd=uri-miss; stored");
    assert_eq!(metric(&fleet.data_svc[0], "cache_entries_refused_total"), 1);
}

#[test]
fn rows_that_were_changed_in_sql_are_read_everywhere_after_purge_all_and_hits_come_again() {
    let fleet = Fleet::start();
    for name in ["ann", "bob"] {
        fleet.register(name, "before");
        fleet.warm_both(name);
    }
    let epoch = || fleet.stack.sql("SELECT epoch FROM cache_grant");
    let before = epoch();
    fleet.stack.sql("UPDATE users SET info = 'by hand'");
    let purge = fleet.stack.user_svc().run(&["purge", "--all"]);
    assert!(purge.status.success(), "{}", String::from_utf8_lossy(&purge.stderr));
    for (replica, name) in [(0, "ann"), (1, "ann"), (0, "bob"), (1, "bob")] {
        assert_eq!(fleet.get(replica, name).json()["info"], "by hand");
    }
    for replica in 0..2 {
        wait_until("hits come again", || fleet.cache_status(replica, "ann").starts_with("data-svc; hit"));
        assert_eq!(fleet.get(replica, "ann").json()["info"], "by hand");
    }
    assert_ne!(epoch(), before);
}

#[test]
fn an_entry_that_was_wrong_is_counted_when_a_forced_read_replaces_it_and_no_other_is() {
    let fleet = Fleet::start();
    let force = || {
        let answer = get_with(&fleet.data_svc[0], "ann", &[("Cache-Control", "no-cache")]);
        assert_eq!(answer.header("cache-status"), Some("data-svc; fwd=request; stored"));
        metric(&fleet.data_svc[0], "cache_incoherent_total")
    };
    fleet.register("ann", "0");
    for round in 1..=3 {
        fleet.warm_near(0, "ann");
        assert_eq!(force(), 0);
        fleet.replace("ann", &round.to_string());
        fleet.get(0, "ann");
        assert_eq!(force(), 0);
    }
    fleet.stack.sql("UPDATE users SET info = 'by hand'");
    assert_eq!(force(), 1);
    assert_eq!(force(), 1, "it is right now");
    fleet.data_svc[0].wait_for_log("changed by SQL, without a purge");
}

#[test]
fn a_key_that_is_read_often_never_misses_at_the_end_of_its_ttl() {
    let stack = Stack::shared();
    let data_svc = stack.data_svc().env("CACHE_TTL", "2s").env("NEAR_CACHE_MIB", "0").start();
    let user_svc = stack.user_svc().with_long_timeouts().start();
    let body = json!({"name": "hot", "info": "i"}).to_string();
    assert_eq!(http::send("POST", &user_svc.url_of("/register"), &[JSON], body).status, 201);
    let key = data_svc.url_of("/user/hot");
    assert_eq!(http::get(&key).json()["cache_hit"], false);
    let fill = || stack.redis_cli(&["GETRANGE", "2:user:{hot}", "10", "25"]);
    let first = fill();
    let start = Instant::now();
    // For twice the TTL every read is a hit, though the entry is another one by then.
    while start.elapsed() < Duration::from_secs(4) {
        assert_eq!(http::get(&key).json()["cache_hit"], true);
    }
    assert_ne!(fill(), first);
}
