//! A process is killed, or held up, exactly between two steps of the protocol: the proxy has the message in its hands.
//! What the model says of every state, and the histories of many at random, is said here of each step by its name.

mod reader;
mod writer;

use std::fmt::Debug;
use std::ops::RangeInclusive;

use devstack::http;
use devstack::proxy::Held;
use devstack::testing::{get, get_with, kind, wait_until};
use devstack::{Direction, Proxy, Service, ServiceBuilder, Stack};
use serde_json::{Value, json};

use crate::{HIT, MISS, NO_CACHE, without_near};

/// The info of a user, or [`NOBODY`].
type State = &'static str;

/// There is no such user.
const NOBODY: State = "";

/// Nothing here is about time-outs: whoever is held is not to give up, nor is anybody on a busy machine.
fn patient(builder: ServiceBuilder) -> ServiceBuilder {
    builder.env("CACHE_TIMEOUT", "4s").env("DATABASE_DEADLINE", "9s").env("DATABASE_STATEMENT_TIMEOUT", "9s")
}

/// The services that nothing happens to: they must not notice what happens to another.
struct Fleet {
    stack: Stack,
    /// Two with a near cache, and one that shows what is in Redis.
    readers: [Service; 3],
    writer: Service,
}

impl Fleet {
    fn start() -> Self {
        let stack = Stack::shared();
        let reader = || patient(stack.data_svc());
        let readers = [reader().start(), reader().start(), without_near(reader()).start()];
        let writer = patient(stack.user_svc()).start();
        readers.iter().chain([&writer]).for_each(|service| drop(service.wait_for_log("Redis is there")));
        let fleet = Self { stack, readers, writer };
        // From now on Redis knows the script that fills: a fill is one message.
        assert_eq!(fleet.write(NOBODY, "first", "i"), 201);
        let status = get(&fleet.readers[0], "first").header("cache-status").map(str::to_owned);
        assert_eq!(status.as_deref(), Some(MISS));
        fleet
    }

    /// Makes a user of this name, or gives it another info; `before` tells which. Returns the status.
    fn write(&self, before: State, name: &str, info: State) -> u16 {
        let write = if before == NOBODY { Write::Register } else { Write::Replace };
        write.send(&self.writer, name, info).expect("answered").status
    }

    /// Reads until every reader has the copy that is nearest to it.
    fn warm(&self, name: &str) {
        for (number, reader) in self.readers.iter().enumerate() {
            wait_until("it has a copy", || {
                let answer = get(reader, name);
                let status = answer.header("cache-status").unwrap_or_default();
                // An absence is not kept near.
                status.starts_with(HIT) && (number == 2 || answer.status == 404 || status.ends_with("near"))
            });
        }
    }

    /// What Postgres has.
    fn truth(&self, name: &str) -> String {
        self.stack.sql(&format!("SELECT info FROM users WHERE name = '{name}'"))
    }

    /// Lets the time of a barrier or a lease pass whose owner is dead.
    ///
    /// That is to shorten it. What the protocol asks of a barrier is that it outlives the transaction, which has ended
    /// when this is called; of a lease it asks nothing: it may be lost at any time.
    fn let_pass(&self, name: &str, mark: &str) {
        if kind(&self.stack, name) == mark {
            self.stack.redis_cli(&["PEXPIRE", &format!("user:{{{name}}}"), "1"]);
            wait_until("its time has passed", || kind(&self.stack, name) != mark);
        }
    }
}

/// What a client can ask of user-svc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    Register,
    Replace,
    Delete,
}

impl Write {
    fn send(self, service: &Service, name: &str, info: State) -> std::io::Result<http::Response> {
        let path = format!("/user/{name}");
        let (method, path, body) = match self {
            Self::Register => ("POST", "/register", json!({ "name": name, "info": info })),
            Self::Replace => ("PUT", path.as_str(), json!({ "info": info })),
            Self::Delete => return http::try_send("DELETE", &service.url_of(&path), &[], ""),
        };
        let json = [("Content-Type", "application/json")];
        http::try_send(method, &service.url_of(path), &json, Value::to_string(&body))
    }
}

/// A service that something happens to: it reaches the stores through proxies of its own.
struct Victim {
    service: Service,
    postgres: Proxy,
    redis: Proxy,
    /// Counts its sessions in Postgres.
    sessions: String,
}

impl Victim {
    /// Starts it; its sessions in Postgres bear `name`.
    fn start(stack: &Stack, builder: ServiceBuilder, name: &str) -> Self {
        let (postgres, redis) = (stack.postgres_proxy(), stack.redis_proxy());
        let url = format!("{}?application_name={name}", stack.database_url());
        let builder = patient(builder).env("DATABASE_URL", url).env("DATABASE_CONNECTIONS", "2");
        let service = builder.postgres_through(&postgres).redis_through(&redis).start();
        service.wait_for_log("Redis is there");
        let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
        assert_ne!(stack.sql(&sessions), "0");
        Self { service, postgres, redis, sessions }
    }

    /// Holds the message of `step` about the user `name`, or the reply to it.
    fn hold(&self, step: &Step, name: &str) -> Held {
        let (proxy, needle, nth) = match step.message {
            Message::Redis(nth) => (&self.redis, format!("user:{{{name}}}"), nth),
            // The statement itself is prepared beforehand: what runs it has only the values.
            Message::Postgres(nth) => (&self.postgres, name.to_owned(), nth),
            Message::Commit => (&self.postgres, "COMMIT".to_owned(), 1),
        };
        match step.side {
            Side::Message => proxy.hold(Direction::ToUpstream, needle, nth),
            Side::Reply => proxy.hold_reply(needle, nth),
        }
    }

    /// Waits until both stores have seen the end of it, and done what came before; reads meanwhile.
    fn wait_until_forgotten(&self, stack: &Stack, mut meanwhile: impl FnMut()) {
        wait_until("the stores know that it is dead", || {
            meanwhile();
            let connections = self.postgres.connections() + self.redis.connections();
            // The session is there until its transaction has ended.
            connections == 0 && stack.sql(&self.sessions) == "0"
        });
    }
}

/// A message between a service and a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    /// The n-th about the user to Redis.
    Redis(usize),
    /// The n-th about the user to Postgres.
    Postgres(usize),
    Commit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The store has not heard.
    Message,
    /// The store has done it, and the service has not heard.
    Reply,
}

/// Where a process is stopped.
#[derive(Debug, Clone, Copy)]
struct Step {
    message: Message,
    side: Side,
}

/// A name of its own for a case, made of what tells it from the others; told if the test fails.
fn name_of(case: impl Debug) -> String {
    println!("{case:?}");
    let name = format!("{case:?}").to_lowercase();
    // Where it names sessions in Postgres, what is longer than 63 bytes is cut.
    name.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

/// One client's reads of one name, one after the other: none returns an older state than the one before.
struct Reads<'a> {
    readers: Vec<&'a Service>,
    name: &'a str,
    /// In the order in which they come to be.
    states: &'a [State],
    /// Which of them the next read may return.
    possible: RangeInclusive<usize>,
}

impl Reads<'_> {
    /// Reads through every replica.
    fn look(&mut self) {
        (0..self.readers.len()).for_each(|reader| self.read(reader, &[]));
    }

    /// The same, then with no-cache by one after the other, each time followed by what that has left in the caches.
    fn look_closely(&mut self) {
        self.look();
        for reader in 0..self.readers.len() {
            self.read(reader, &[NO_CACHE]);
            self.look();
        }
    }

    /// From now on every read must return this.
    fn must_be(&mut self, state: &str) {
        let at = self.place_of(state);
        self.possible = at..=at;
    }

    fn read(&mut self, reader: usize, headers: &[(&str, &str)]) {
        let answer = get_with(self.readers[reader], self.name, headers);
        let state = match answer.status {
            200 => answer.json()["info"].as_str().expect("a text").to_owned(),
            404 => NOBODY.to_owned(),
            status => panic!("{status}: {}", answer.text()),
        };
        let (at, how) = (self.place_of(&state), answer.header("cache-status"));
        let Self { possible, states, .. } = self;
        assert!(possible.contains(&at), "reader {reader}: {state:?} of {states:?}, {possible:?}: {how:?}");
        self.possible = at..=*self.possible.end();
    }

    fn place_of(&self, state: &str) -> usize {
        let found = self.states.iter().position(|known| *known == state);
        found.unwrap_or_else(|| panic!("{state:?} was never written: {:?}", self.states))
    }
}
