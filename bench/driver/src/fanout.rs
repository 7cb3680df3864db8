//! What near caches cost Redis' one thread: for each, its renewals, and its part of the message of a write.
//!
//! Each listener is a connection as data-svc's: it subscribes to the messages of writers, renews its proof by HSETNX on
//! the same connection, and acknowledges a message by another one.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use devstack::Redis;
use memchr::memmem;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::row::{Plan, median};

/// How many near caches there are.
const LISTENERS: [u32; 4] = [1, 24, 100, 400];
/// How often each renews its proof while there are few: `RENEWAL_INTERVAL` of listener.rs.
const INTERVAL: Duration = Duration::from_millis(10);
/// By how much the interval grows with each: `RENEWAL_COST` times `RENEWAL_SHARE` of listener.rs.
const INTERVAL_STEP: Duration = Duration::from_micros(250);
/// How many messages writers publish a second. More at once would share their way to a listener.
const MESSAGES: f64 = 100.0;
/// How many services hear acks.
const WRITERS: usize = 2;

const MESSAGE: &str = "0123456789abcdef 1234567 [\"2:user:{n000000001}\"]";
const ACK: &str = "0123456789abcdef 1234567 0123456789abcdef";

/// What one listener costs, in microseconds of Redis' time, and all renewals, in percent of it.
#[derive(Clone, Copy, Debug)]
struct Cost {
    renewal: f64,
    share_at_the_interval: f64,
    share: f64,
    message: f64,
    message_and_ack: f64,
}

/// Measures each number of listeners over the plan's rounds, in turn, and prints the medians.
pub fn measure(plan: &Plan) {
    let mut rounds = vec![Vec::new(); LISTENERS.len()];
    for _ in 0..plan.rounds {
        for (&count, costs) in LISTENERS.iter().zip(&mut rounds) {
            costs.push(cost(count, plan.time));
        }
    }
    println!(
        "| near caches | a renewal | renewals every 10 ms | as data-svc renews | a message, for each | with its ack |"
    );
    println!("|--:|--:|--:|--:|--:|--:|");
    for (count, costs) in LISTENERS.iter().zip(&rounds) {
        let of = |field: fn(&Cost) -> f64| median(costs.iter().map(field));
        println!(
            "| {count} | {:.1} µs | {:.1} % | {:.1} % | {:.1} µs | {:.1} µs |",
            of(|cost| cost.renewal),
            of(|cost| cost.share_at_the_interval),
            of(|cost| cost.share),
            of(|cost| cost.message),
            of(|cost| cost.message_and_ack),
        );
    }
}

fn cost(count: u32, time: Duration) -> Cost {
    let redis = Redis::start();
    let mut listeners = Listeners::connect(&redis, count);
    let every_ten = listeners.renew(&redis, INTERVAL, time);
    let as_shipped = listeners.renew(&redis, INTERVAL.max(INTERVAL_STEP * count), time);
    let message = listeners.publish(&redis, Answer::Nothing, time);
    let message_and_ack = listeners.publish(&redis, Answer::Ack, time);
    Cost {
        renewal: every_ten.each,
        share_at_the_interval: every_ten.percent,
        share: as_shipped.percent,
        message: message.each / f64::from(count),
        message_and_ack: message_and_ack.each / f64::from(count),
    }
}

/// What Redis has spent on commands that were sent one by one.
struct Spent {
    /// Microseconds for each.
    each: f64,
    /// Percent of the time.
    percent: f64,
}

/// Whether listeners acknowledge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Nothing,
    Ack,
}

/// Connections that have subscribed, and those that hear acks.
struct Listeners {
    epoll: OwnedFd,
    connections: Vec<TcpStream>,
    count: usize,
    publisher: TcpStream,
}

impl Listeners {
    fn connect(redis: &Redis, count: u32) -> Listeners {
        let count = count as usize;
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("an epoll instance");
        let connect = |channel: &str| {
            let mut connection = TcpStream::connect(("127.0.0.1", redis.port())).expect("Redis listens");
            connection.set_nodelay(true).expect("a socket");
            let subscribe = [command(&["HELLO", "3"]), command(&["SUBSCRIBE", channel])].concat();
            connection.write_all(subscribe.as_bytes()).expect("Redis reads");
            connection
        };
        let mut connections: Vec<TcpStream> = (0..count).map(|_| connect("2:invalidate")).collect();
        connections.extend((0..WRITERS).map(|_| connect("2:acks")));
        for (at, connection) in connections.iter().enumerate() {
            connection.set_nonblocking(true).expect("a socket");
            let data = EventData::new_u64(at as u64);
            epoll::add(&epoll, connection, data, EventFlags::IN).expect("a socket can be watched");
        }
        let publisher = TcpStream::connect(("127.0.0.1", redis.port())).expect("Redis listens");
        publisher.set_nodelay(true).expect("a socket");
        let mut listeners = Listeners { epoll, connections, count, publisher };
        // Redis confirms each subscription.
        listeners.hear_until(Instant::now() + Duration::from_millis(300), Answer::Nothing);
        listeners
    }

    /// Each renews once an interval; no two at the same time.
    fn renew(&mut self, redis: &Redis, interval: Duration, time: Duration) -> Spent {
        let renewals: Vec<String> =
            (0..self.count).map(|at| command(&["HSETNX", "2:members", &format!("{at:016x}"), "1"])).collect();
        let step = interval / u32::try_from(self.count).expect("few");
        self.spend(redis, step, time, Answer::Nothing, |listeners, number| {
            let at = number % listeners.count;
            listeners.connections[at].write_all(renewals[at].as_bytes()).expect("a socket takes few bytes");
        })
    }

    /// Messages come one by one.
    fn publish(&mut self, redis: &Redis, answer: Answer, time: Duration) -> Spent {
        let message = command(&["PUBLISH", "2:invalidate", MESSAGE]);
        // How many have been sent the message.
        let mut reply = vec![0; format!(":{}\r\n", self.count).len()];
        self.spend(redis, Duration::from_secs_f64(1.0 / MESSAGES), time, answer, move |listeners, _| {
            listeners.publisher.write_all(message.as_bytes()).expect("a socket takes few bytes");
            listeners.publisher.read_exact(&mut reply).expect("Redis answers");
        })
    }

    /// Sends once a `step`, and hears meanwhile.
    fn spend(
        &mut self,
        redis: &Redis,
        step: Duration,
        time: Duration,
        answer: Answer,
        mut send: impl FnMut(&mut Listeners, usize),
    ) -> Spent {
        let (start, before) = (Instant::now(), cpu(redis));
        let mut sent = 0;
        while start.elapsed() < time {
            send(self, sent);
            sent += 1;
            self.hear_until(start + step * u32::try_from(sent).expect("few"), answer);
        }
        let cpu = cpu(redis) - before;
        Spent { each: cpu * 1e6 / sent as f64, percent: cpu * 100.0 / start.elapsed().as_secs_f64() }
    }

    /// Reads what comes until `end`, at least once, and acknowledges messages.
    fn hear_until(&mut self, end: Instant, answer: Answer) {
        let ack = command(&["PUBLISH", "2:acks", ACK]);
        let mut events: Vec<Event> = Vec::with_capacity(256);
        let mut buffer = [0; 1 << 14];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            events.clear();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))
                .expect("epoll waits");
            for event in &events {
                let at = usize::try_from(event.data.u64()).expect("a place");
                let heard = match self.connections[at].read(&mut buffer) {
                    Ok(0) => panic!("Redis has closed a connection"),
                    Ok(bytes) => memmem::find_iter(&buffer[..bytes], MESSAGE.as_bytes()).count(),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    Err(error) => panic!("Redis: {error}"),
                };
                if heard > 0 && answer == Answer::Ack {
                    self.connections[at].write_all(ack.as_bytes()).expect("a socket takes few bytes");
                }
            }
            if Instant::now() >= end {
                return;
            }
        }
    }
}

/// Redis' processor time so far, in seconds.
fn cpu(redis: &Redis) -> f64 {
    let info = redis.cli(0, &["INFO", "cpu"]);
    let field = |name: &str| -> f64 {
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{info}"))
    };
    field("used_cpu_sys_main_thread") + field("used_cpu_user_main_thread")
}

/// A command as Redis reads it.
fn command(words: &[&str]) -> String {
    let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    words.clone().fold(format!("*{}\r\n", words.len()), |text, word| text + &word)
}
