//! A process is killed, or held up, exactly between two steps of the protocol: the proxy holds the message. The model
//! covers every state, and the histories many states at random. These tests cover each step by its name.

mod member;
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

/// With long time-outs: nothing here is about them, so neither a held message nor a busy machine may cause one.
fn with_long_timeouts(builder: ServiceBuilder) -> ServiceBuilder {
    builder.env("CACHE_TIMEOUT", "4s").env("DATABASE_DEADLINE", "9s").env("DATABASE_STATEMENT_TIMEOUT", "9s")
}

/// The services that are not disturbed: they must not notice what happens to another.
struct Fleet {
    stack: Stack,
    /// Two with a near cache, and one without, whose hits show what Redis holds.
    readers: [Service; 3],
    writer: Service,
}

impl Fleet {
    fn start() -> Self {
        let stack = Stack::shared();
        let reader = || with_long_timeouts(stack.data_svc());
        let readers = [reader().start(), reader().start(), without_near(reader()).start()];
        let writer = with_long_timeouts(stack.user_svc()).start();
        for service in readers.iter().chain([&writer]) {
            service.wait_for_log("Redis is there");
        }
        let fleet = Self { stack, readers, writer };
        // From now on Redis has the script of a fill, so that a fill is one message.
        assert_eq!(fleet.write(NOBODY, "first", "i"), 201);
        let status = get(&fleet.readers[0], "first").header("cache-status").map(str::to_owned);
        assert_eq!(status.as_deref(), Some(MISS));
        fleet
    }

    /// Registers a user of this name, or replaces its info if `before` is a user. Returns the status.
    fn write(&self, before: State, name: &str, info: State) -> u16 {
        let write = if before == NOBODY { Write::Register } else { Write::Replace };
        write.send(&self.writer, name, info).expect("answered").status
    }

    /// Reads until every reader hits: the readers with a near cache there, the other in Redis.
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

    /// The info of the row in Postgres, or [`NOBODY`].
    fn truth(&self, name: &str) -> String {
        self.stack.sql(&format!("SELECT info FROM users WHERE name = '{name}'"))
    }

    /// Lets the barrier or the lease of a dead process expire early.
    ///
    /// The protocol allows that. A barrier must outlive its transaction, which has ended when this is called. A lease
    /// may be lost at any time.
    fn expire(&self, name: &str, mark: &str) {
        if kind(&self.stack, name) == mark {
            self.stack.redis_cli(&["PEXPIRE", &format!("2:user:{{{name}}}"), "1"]);
            wait_until("it has expired", || kind(&self.stack, name) != mark);
        }
    }
}

/// A write of a client.
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

/// The service that is disturbed: it reaches the stores through proxies of its own.
struct Victim {
    service: Service,
    postgres: Proxy,
    redis: Proxy,
    /// The query that counts its sessions in Postgres.
    sessions: String,
}

impl Victim {
    /// Starts it. `name` is the application name of its sessions in Postgres.
    fn start(stack: &Stack, builder: ServiceBuilder, name: &str) -> Self {
        let postgres = stack.postgres_proxy();
        let redis = stack.redis_proxy();
        let url = format!("{}?application_name={name}", stack.database_url());
        let builder = with_long_timeouts(builder).env("DATABASE_URL", url).env("DATABASE_CONNECTIONS", "2");
        let service = builder.postgres_through(&postgres).redis_through(&redis).start();
        service.wait_for_log("Redis is there");
        let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
        assert_ne!(stack.sql(&sessions), "0");
        Self { service, postgres, redis, sessions }
    }

    /// Holds the message of `step` about the user `name`, or the reply to it.
    fn hold(&self, step: &Step, name: &str) -> Held {
        let (proxy, needle, nth) = match step.message {
            Message::Redis(nth) => (&self.redis, format!("2:user:{{{name}}}"), nth),
            // The statement was prepared before: the message that runs it has only the values.
            Message::Postgres(nth) => (&self.postgres, name.to_owned(), nth),
            // With the end of the text: BEGIN also contains "READ COMMITTED".
            Message::Commit => (&self.postgres, "COMMIT\0".to_owned(), 1),
            Message::Invalidation => {
                return self.redis.hold(Direction::FromUpstream, format!("2:user:{{{name}}}"), 1);
            }
            Message::Ack => (&self.redis, "2:acks:".to_owned(), 1),
            Message::Renewal => (&self.redis, "HSETNX".to_owned(), 1),
        };
        match step.side {
            Side::Message => proxy.hold(Direction::ToUpstream, needle, nth),
            Side::Reply => proxy.hold_reply(needle, nth),
        }
    }

    /// Waits until both stores have processed its last messages and the end of its connections. Calls `meanwhile` again
    /// and again.
    fn wait_until_forgotten(&self, stack: &Stack, mut meanwhile: impl FnMut()) {
        wait_until("the stores have noticed that it is dead", || {
            meanwhile();
            let connections = self.postgres.connections() + self.redis.connections();
            // A session exists until its transaction has ended.
            connections == 0 && stack.sql(&self.sessions) == "0"
        });
    }
}

/// A message between a service and a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    /// The n-th message about the user to Redis.
    Redis(usize),
    /// The n-th message about the user to Postgres.
    Postgres(usize),
    Commit,
    /// The message to a near cache about the user.
    Invalidation,
    /// A near cache's next ack.
    Ack,
    /// The next renewal of a near cache's proof.
    Renewal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The message is held: the store has not received it.
    Message,
    /// The reply is held: the store has done its work, and the service has no reply.
    Reply,
}

/// Where a process is stopped.
#[derive(Debug, Clone, Copy)]
struct Step {
    message: Message,
    side: Side,
}

/// A name for this case alone, made of its parameters. It is printed, so that a test that fails shows its case.
fn name_of(case: impl Debug) -> String {
    println!("{case:?}");
    let name = format!("{case:?}").to_lowercase();
    // Only words: it also names sessions in Postgres, which cuts a name after 63 bytes.
    name.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

/// One client's reads of one name, one after the other: no read returns an older state than the read before it.
struct Reads<'a> {
    readers: Vec<&'a Service>,
    name: &'a str,
    /// The states of the name, in the order of the writes.
    states: &'a [State],
    /// The places of the states that the next read may return.
    possible: RangeInclusive<usize>,
}

impl Reads<'_> {
    /// Reads through every replica.
    fn look(&mut self) {
        for reader in 0..self.readers.len() {
            self.read(reader, &[]);
        }
    }

    /// Reads through every replica. Then reads with no-cache through one replica after the other, and each time through
    /// every replica again, to see what that has left in the caches.
    fn look_closely(&mut self) {
        self.look();
        for reader in 0..self.readers.len() {
            self.read(reader, &[NO_CACHE]);
            self.look();
        }
    }

    /// From now on every read must return `state`.
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
        let at = self.place_of(&state);
        let status = answer.header("cache-status");
        let Self { possible, states, .. } = self;
        assert!(possible.contains(&at), "reader {reader}: {state:?} of {states:?}, {possible:?}: {status:?}");
        self.possible = at..=*self.possible.end();
    }

    fn place_of(&self, state: &str) -> usize {
        let found = self.states.iter().position(|known| *known == state);
        found.unwrap_or_else(|| panic!("{state:?} was never written: {:?}", self.states))
    }
}
