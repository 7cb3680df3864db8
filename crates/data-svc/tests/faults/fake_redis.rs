//! Servers that only look like Redis: too old, late with replies, or hostile. The test plays the server, so that it
//! decides when each reply is sent.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{scope, spawn};
use std::time::Duration;

use devstack::testing::{get, wait_until};
use devstack::{ServiceBuilder, Stack};

use crate::{BREAKER_OPEN, BYPASS, ERROR, MISS_NOT_STORED, TIMEOUT, found, insert, without_near};

/// A reply with an entry of a newer version of the service: no further command about it follows.
const OTHER_FORMAT: &[u8] = b"$4\r\nV\x03xx\r\n";

struct FakeRedis(TcpListener);

/// A connection from the service.
struct Link {
    stream: BufReader<TcpStream>,
    /// The commands that have no reply yet, in their order.
    unanswered: VecDeque<Unanswered>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unanswered {
    Read,
    /// The service asks again and again which server this is.
    Info,
}

impl FakeRedis {
    fn start() -> FakeRedis {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("some port is free");
        // So that a test whose service never connects fails, and does not hang.
        listener.set_nonblocking(true).expect("it is open");
        FakeRedis(listener)
    }

    fn url(&self) -> String {
        format!("redis://{}/0", self.0.local_addr().expect("it is bound"))
    }

    /// Waits for a connection that the service has not closed again, and answers its first commands.
    fn accept(&self, version: &str) -> Link {
        loop {
            let mut accepted = None;
            wait_until("the service connects", || {
                accepted = self.0.accept().ok();
                accepted.is_some()
            });
            let (stream, _) = accepted.expect("waited for");
            stream.set_nonblocking(false).expect("it is open");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("10 s is a valid time-out");
            let mut link = Link { stream: BufReader::new(stream), unanswered: VecDeque::new() };
            if link.greet(version) {
                return link;
            }
        }
    }
}

impl Link {
    /// Replies to the commands that come before those about users, up to INFO. Returns whether INFO came.
    fn greet(&mut self, version: &str) -> bool {
        loop {
            let Some(command) = self.command() else { return false };
            match command[0].to_ascii_uppercase().as_str() {
                "INFO" => {
                    self.reply_to_info(version);
                    return true;
                }
                "PING" => {
                    self.reply(format!("+{}\r\n", command.get(1).map_or("PONG", String::as_str)).as_bytes())
                }
                "CLIENT" | "SELECT" | "UNWATCH" => self.reply(b"+OK\r\n"),
                // It asks what is refused to it: nothing.
                "EVALSHA" => self.reply(b"*0\r\n"),
                other => panic!("{other} comes too early"),
            }
        }
    }

    /// Reads a command about `name`, without a reply.
    fn expect_read_of(&mut self, name: &str) {
        let mut command = self.command().expect("a command");
        while command[0] == "INFO" {
            self.unanswered.push_back(Unanswered::Info);
            self.answer_infos();
            command = self.command().expect("a command");
        }
        self.unanswered.push_back(Unanswered::Read);
        assert_eq!(command[..2], ["SET".to_owned(), format!("2:user:{{{name}}}")], "{command:?}");
    }

    /// The words of the next command; none when the service has closed the connection.
    fn command(&mut self) -> Option<Vec<String>> {
        let count = self.number()?;
        (0..count).map(|_| self.word()).collect()
    }

    fn word(&mut self) -> Option<String> {
        let mut bytes = vec![0; self.number()? + 2];
        self.stream.read_exact(&mut bytes).ok()?;
        bytes.truncate(bytes.len() - 2);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The number in `*3` or `$5`.
    fn number(&mut self) -> Option<usize> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        line.trim().get(1..)?.parse().ok()
    }

    /// Replies to the first command about a user that has no reply yet.
    fn reply_to_read(&mut self, bytes: &[u8]) {
        assert_eq!(self.unanswered.pop_front(), Some(Unanswered::Read));
        self.reply(bytes);
        self.answer_infos();
    }

    /// Replies to each INFO before which no command waits for its reply.
    fn answer_infos(&mut self) {
        while self.unanswered.front() == Some(&Unanswered::Info) {
            self.unanswered.pop_front();
            self.reply_to_info("7.0.15");
        }
    }

    fn reply_to_info(&mut self, version: &str) {
        let info = format!(
            "# Server\r\nredis_version:{version}\r\nrole:master\r\nloading:0\r\nrun_id:fake\r\nmaster_replid:fake\r\n"
        );
        self.reply(format!("${}\r\n{info}\r\n", info.len()).as_bytes());
    }

    fn reply(&mut self, bytes: &[u8]) {
        // The service may be gone by now.
        let _ = self.stream.get_mut().write_all(bytes);
    }
}

fn with(stack: &Stack, redis: &FakeRedis) -> ServiceBuilder {
    stack.grant_process("fake fake");
    without_near(stack.data_svc()).env("REDIS_URL", redis.url())
}

#[test]
fn a_redis_older_than_7_is_not_used_and_the_log_says_why() {
    let stack = Stack::shared();
    insert(&stack, "john");
    let redis = FakeRedis::start();
    let service = with(&stack, &redis).env("CACHE_TIMEOUT", "1s").spawn();
    redis.accept("6.2.14");
    let line = service.wait_for_log("Redis cannot be used");
    assert!(line.contains("7.0") && line.contains("6.2.14"), "{line}");
    service.wait_for_readiness(200);
    assert_eq!(found(&get(&service, "john"), "john"), BREAKER_OPEN);
    // It asks for the version again, in case the server was replaced, and for nothing else.
    for _ in 0..2 {
        redis.accept("6.2.14");
    }
}

#[test]
fn a_late_reply_among_others_does_not_open_the_breaker() {
    let stack = Stack::shared();
    for name in ["one", "two", "three"] {
        insert(&stack, name);
    }
    let redis = FakeRedis::start();
    let service = with(&stack, &redis).env("CACHE_TIMEOUT", "1s").spawn();
    let mut link = redis.accept("7.0.15");
    service.wait_for_readiness(200);
    scope(|scope| {
        let read = |name: &'static str| {
            let service = &service;
            scope.spawn(move || found(&get(service, name), name))
        };
        let one = read("one");
        link.expect_read_of("one");
        let two = read("two");
        link.expect_read_of("two");
        // The first reply arrives after the second command was sent. So the connection is alive, and the second reply
        // is only late.
        link.reply_to_read(OTHER_FORMAT);
        assert_eq!(one.join().expect("answered"), BYPASS);
        assert_eq!(two.join().expect("answered"), TIMEOUT);
        link.reply_to_read(OTHER_FORMAT);
        let three = read("three");
        link.expect_read_of("three");
        link.reply_to_read(OTHER_FORMAT);
        assert_eq!(three.join().expect("answered"), BYPASS);
    });
}

#[test]
fn no_reply_for_a_whole_time_out_opens_the_breaker_until_a_probe_succeeds() {
    let stack = Stack::shared();
    insert(&stack, "john");
    let redis = FakeRedis::start();
    let service = with(&stack, &redis).env("CACHE_TIMEOUT", "200ms").spawn();
    let silent = redis.accept("7.0.15");
    service.wait_for_readiness(200);
    service.wait_for_log("Redis is there");
    assert_eq!(found(&get(&service, "john"), "john"), TIMEOUT);
    for _ in 0..5 {
        assert_eq!(found(&get(&service, "john"), "john"), BREAKER_OPEN);
    }
    drop(silent);
    spawn(move || {
        loop {
            let mut link = redis.accept("7.0.15");
            spawn(move || {
                while link.command().is_some() {
                    link.reply(OTHER_FORMAT);
                }
            });
        }
    });
    wait_until("Redis is used again", || found(&get(&service, "john"), "john") == BYPASS);
}

#[test]
fn hostile_replies_neither_fail_a_request_nor_end_the_service() {
    let stack = Stack::shared();
    insert(&stack, "john");
    let replies: Vec<Vec<u8>> = vec![
        b"\0\0\0\0".to_vec(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"$-2\r\n".to_vec(),
        b"$99999999999999999999\r\n".to_vec(),
        b"$9223372036854775807\r\nx".to_vec(),
        b"*2147483647\r\n".to_vec(),
        b"*1\r\n".repeat(100_000),
        b":12\r\n".to_vec(),
        b"*2\r\n$1\r\na\r\n$1\r\nb\r\n".to_vec(),
        b"+OK\r\n".to_vec(),
        b"-WRONGTYPE forged\r\n".to_vec(),
        b"-ERR\r\n".to_vec(),
        b"-LOADING Redis is loading\r\n".to_vec(),
        b"-MOVED 1 127.0.0.1:1\r\n".to_vec(),
        b"$4\r\nV\x03xx\r\n$4\r\nV\x03xx\r\n".to_vec(),
        Vec::new(),
    ];
    let redis = FakeRedis::start();
    let service = with(&stack, &redis).spawn();
    let server = spawn(move || {
        for reply in replies {
            // One reply, whatever the command is, and then the end of the connection.
            let mut link = redis.accept("7.4.0");
            while link.command().is_none() {
                link = redis.accept("7.4.0");
            }
            link.reply(&reply);
        }
    });
    service.wait_for_readiness(200);
    wait_until("all were tried", || {
        let status = found(&get(&service, "john"), "john");
        assert!(
            [ERROR, TIMEOUT, BREAKER_OPEN, BYPASS, MISS_NOT_STORED].contains(&status.as_str()),
            "{status}"
        );
        server.is_finished()
    });
    server.join().expect("each reply was sent");
    assert!(!service.log().contains("panicked"), "{}", service.log());
}
