//! The promise: a GET that starts after a 201 never returns 404, whatever misses race with the registration.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::scope;
use std::time::Duration;

use devstack::http::{self, Connection};
use devstack::testing::{StopAtEnd, wait_until};
use devstack::{Service, ServiceBuilder, Stack};

const NAMES: usize = 200;

/// What the readers and the writer share.
struct Race {
    /// The name that is read and registered at present.
    current: AtomicUsize,
    /// For each name, whether its registration was acknowledged.
    acknowledged: Vec<AtomicBool>,
    /// Answers about the current name before and after it was acknowledged.
    before: AtomicUsize,
    after: AtomicUsize,
    stop: AtomicBool,
}

impl Race {
    fn new() -> Race {
        Race {
            current: AtomicUsize::new(0),
            acknowledged: (0..NAMES).map(|_| AtomicBool::new(false)).collect(),
            before: AtomicUsize::new(0),
            after: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// Reads the current name through both replicas, a third of the times from Postgres.
    fn read(&self, replicas: &[Service; 2], reader: usize) {
        let mut connections = replicas.each_ref().map(|replica| Connection::open(replica.address()));
        let mut number = reader;
        while !self.stop.load(Ordering::SeqCst) {
            number = number.wrapping_mul(25_214_903_917).wrapping_add(11);
            let random = number >> 17;
            let name = self.current.load(Ordering::SeqCst);
            // Loaded before the request is sent: if it is true, the request starts after the 201.
            let acknowledged = self.acknowledged[name].load(Ordering::SeqCst);
            let connection = &mut connections[random % 2];
            let fresh = if random.is_multiple_of(3) { "Cache-Control: no-cache\r\n" } else { "" };
            connection.send(format!("GET /user/race-{name} HTTP/1.1\r\nHost: localhost\r\n{fresh}\r\n"));
            let answer = connection.receive().expect("an answer");
            let seen = answer.status == 200;
            assert!(seen || answer.status == 404, "{}", answer.text());
            let status = answer.header("cache-status").unwrap_or_default();
            assert!(seen || !acknowledged, "race-{name} was acknowledged, and then not found: {status}");
            let counter = if acknowledged { &self.after } else { &self.before };
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn write(&self, users: &Service) {
        for name in 0..NAMES {
            self.current.store(name, Ordering::SeqCst);
            self.before.store(0, Ordering::SeqCst);
            let wait = |counter: &AtomicUsize, count| {
                wait_until("it is read", || {
                    counter.load(Ordering::SeqCst) >= count || self.stop.load(Ordering::SeqCst)
                });
            };
            // A different number each time, so that the registration meets the readers at different moments.
            wait(&self.before, 2 + name % 7);
            let body = format!(r#"{{"name":"race-{name}","info":"some info"}}"#);
            let json = [("Content-Type", "application/json")];
            let answer = http::send("POST", &users.url_of("/register"), &json, body);
            assert_eq!(answer.status, 201, "{}", answer.text());
            self.after.store(0, Ordering::SeqCst);
            self.acknowledged[name].store(true, Ordering::SeqCst);
            wait(&self.after, 8);
        }
    }
}

#[test]
fn a_get_that_starts_after_a_201_never_returns_404() {
    let stack = Stack::shared();
    // One replica fills late, so that more registrations happen while its fills are on their way.
    let slow = stack.redis_proxy();
    slow.delay(Duration::from_millis(1));
    // A time-out with Redis is another fault, with a promise of its own. A busy machine must not cause one here.
    let start = |builder: ServiceBuilder| builder.with_long_timeouts().start();
    let replicas = [start(stack.data_svc()), start(stack.data_svc().redis_through(&slow))];
    let users = start(stack.user_svc());
    for service in [&replicas[0], &replicas[1], &users] {
        service.wait_for_log("Redis is there");
    }
    let race = Race::new();
    scope(|scope| {
        for reader in 0..4 {
            let (race, replicas) = (&race, &replicas);
            scope.spawn(move || {
                let _stop = StopAtEnd(&race.stop);
                race.read(replicas, reader);
            });
        }
        let _stop = StopAtEnd(&race.stop);
        race.write(&users);
    });
}
