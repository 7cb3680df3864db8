//! The clients: threads that read and write a few names as fast as they can, and record the answers.
//!
//! All clients use the same few names, so that they collide. Every second there are new names, which keeps the history
//! of a name short. Now and then a client returns to an older name, to find errors that last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::testing::StopAtEnd;

use crate::client::{Answer, Client, Reply};
use crate::cluster::{Cluster, Replica};
use crate::operation::{Action, OPEN, Operation, Outcome, Via};

/// How many clients there are, and how they work.
pub struct Load {
    pub readers: usize,
    pub writers: usize,
    /// How many names are in use at once.
    pub names: u32,
    /// How long they are in use.
    pub rotation: Duration,
    /// How long a writer rests at most, after one write or a few.
    pub pause: Duration,
    /// The number of the first write. Two recordings at once have different numbers.
    pub first_info: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            readers: 8,
            writers: 6,
            names: 4,
            rotation: Duration::from_secs(1),
            pause: Duration::from_millis(250),
            first_info: 1,
        }
    }
}

/// How many rounds back a client goes for a name at most: with rounds of one second, longer than a barrier stands.
const MEMORY: u32 = 14;

/// What the clients recorded.
#[derive(Default)]
pub struct Recording {
    /// The operations of each name, in no order.
    pub histories: Vec<Vec<Operation>>,
    /// Writes that were answered with 503, and did not happen.
    pub refused: u64,
    /// Reads without an answer, or answered with 503.
    pub unanswered: u64,
    /// Answers that are not in the contract.
    pub unexpected: Vec<String>,
}

impl Recording {
    fn add(&mut self, name: u32, operation: Operation) {
        let name = name as usize;
        if self.histories.len() <= name {
            self.histories.resize_with(name + 1, Vec::new);
        }
        self.histories[name].push(operation);
    }

    /// Adds what there was when the recording began: the info of each name that had a user.
    pub fn begin_with(&mut self, users: impl IntoIterator<Item = (u32, u32)>) {
        for (name, info) in users {
            let via = Via { replica: "before", source: "the row" };
            let action = Action::Register(info);
            self.add(name, Operation { start: 0, end: 0, action, outcome: Outcome::Done, via });
        }
    }

    fn merge(mut self, other: Self) -> Self {
        for (name, operations) in (0..).zip(other.histories) {
            for operation in operations {
                self.add(name, operation);
            }
        }
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.unexpected.extend(other.unexpected);
        self
    }
}

/// What the clients share.
struct Shared<'a> {
    cluster: &'a Cluster,
    load: &'a Load,
    stop: AtomicBool,
    rotations: AtomicU32,
    /// The number of the next write: one series for the replaces and registers of all clients.
    infos: AtomicU32,
}

/// Lets clients work while `meanwhile` runs, and then reads every name once more, through both replicas and from
/// PostgreSQL itself.
pub fn record(cluster: &Cluster, load: &Load, meanwhile: impl FnOnce()) -> Recording {
    let shared = Shared {
        cluster,
        load,
        stop: AtomicBool::new(false),
        rotations: AtomicU32::new(0),
        infos: AtomicU32::new(load.first_info),
    };
    let recording = scope(|scope| {
        let reader = || shared.run(|client, recording| shared.read(client, recording));
        let writer = || shared.run(|client, recording| shared.write(client, recording));
        let mut clients: Vec<_> = (0..load.readers).map(|_| scope.spawn(reader)).collect();
        clients.extend((0..load.writers).map(|_| scope.spawn(writer)));
        scope.spawn(|| shared.rotate());
        {
            let _stop = StopAtEnd(&shared.stop);
            meanwhile();
        }
        let done = clients.into_iter().map(|client| client.join().expect("a client does not panic"));
        done.fold(Recording::default(), Recording::merge)
    });
    shared.sweep(recording)
}

/// A thread's connections, and the last user that it saw.
#[derive(Default)]
struct Connections {
    clients: [Client; 2],
    seen: Option<(u32, String, u32)>,
}

impl Shared<'_> {
    fn run(&self, act: impl Fn(&mut Connections, &mut Recording)) -> Recording {
        let mut connections = Connections::default();
        let mut recording = Recording::default();
        while !self.stop.load(Ordering::SeqCst) {
            act(&mut connections, &mut recording);
        }
        recording
    }

    fn rotate(&self) {
        let mut next = Instant::now() + self.load.rotation;
        while !self.stop.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(10));
            if Instant::now() > next {
                self.rotations.fetch_add(1, Ordering::SeqCst);
                next += self.load.rotation;
            }
        }
    }

    fn names(&self) -> u32 {
        (self.rotations.load(Ordering::SeqCst) + 1) * self.load.names
    }

    /// A name that is in use now, or with the probability `older` one of an earlier round.
    fn choose(&self, older: f64) -> u32 {
        let names = self.names();
        let now = names - self.load.names;
        if rand::random_bool(older) {
            rand::random_range(now.saturating_sub(MEMORY * self.load.names)..names)
        } else {
            rand::random_range(now..names)
        }
    }

    /// The name that half of all writes use at this moment, so that they collide.
    fn focus(&self) -> u32 {
        let moment = self.cluster.beginning.elapsed().as_millis() / 150;
        let number = u32::try_from(moment).unwrap_or(0) % self.load.names;
        self.names() - self.load.names + number
    }

    fn read(&self, connections: &mut Connections, recording: &mut Recording) {
        let name = self.choose(0.1);
        let at = rand::random_range(0..self.cluster.readers.len());
        let mut header = String::new();
        let mut known = None;
        match (rand::random_range(0..100), &connections.seen) {
            (0..10, _) => header.push_str("Cache-Control: no-cache\r\n"),
            (10..30, Some((same, etag, info))) if *same == name => {
                known = Some(*info);
                header = format!("If-None-Match: {etag}\r\n");
            }
            _ => {}
        }
        let replica = &self.cluster.readers[at];
        let seen = self.get(&mut connections.clients[at], replica, name, &header, known, recording);
        if let Some((etag, info)) = seen {
            connections.seen = Some((name, etag, info));
        }
    }

    /// Reads `name` once, and records it. Returns the entity tag and the info if the answer has a user.
    fn get(
        &self,
        client: &mut Client,
        replica: &Replica,
        name: u32,
        header: &str,
        known: Option<u32>,
        recording: &mut Recording,
    ) -> Option<(String, u32)> {
        let request = format!("GET /user/h{name} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n");
        let start = self.cluster.now();
        let reply = client.send(replica.address(), &request);
        let end = self.cluster.now();
        let (state, answer) = match reply {
            Reply::Answer(answer) => match (answer.status, info(&answer.body)) {
                (200, Some(info)) => (Some(info), answer),
                (304, _) if known.is_some() => (known, answer),
                (404, _) => (None, answer),
                // All but 503 are HAProxy's.
                (502..=504, _) => {
                    recording.unanswered += 1;
                    sleep(Duration::from_millis(1));
                    return None;
                }
                _ => {
                    recording.unexpected.push(show("GET", &answer));
                    return None;
                }
            },
            Reply::Lost | Reply::Unsent => {
                recording.unanswered += 1;
                // The service is being started again.
                sleep(Duration::from_millis(2));
                return None;
            }
        };
        let via = Via { replica: replica.answers_as(), source: source(&answer.cache_status) };
        if via.source == "suspended" {
            // Without this, reads of a suspended cache would be most of a history, and the cache would be granted late.
            sleep(Duration::from_millis(2));
        }
        let action = Action::Read(state);
        recording.add(name, Operation { start, end, action, outcome: Outcome::Done, via });
        (answer.status == 200).then_some((answer.etag, state?))
    }

    /// A few writes to one name, and a rest. A barrier stands for most of a write, and without rests the keys would
    /// hold nothing but barriers.
    fn write(&self, connections: &mut Connections, recording: &mut Recording) {
        let name = if rand::random_bool(0.5) { self.focus() } else { self.choose(0.05) };
        let mut missing = rand::random_bool(0.3);
        for _ in 0..rand::random_range(1..4) {
            let info = self.infos.fetch_add(1, Ordering::Relaxed);
            let action = match rand::random_range(0..100) {
                _ if missing => Action::Register(info),
                0..20 => Action::Register(info),
                20..80 => Action::Replace(info),
                _ => Action::Delete,
            };
            let outcome = self.change(connections, name, action, recording);
            missing = outcome == Some(Outcome::Refused) && !matches!(action, Action::Register(_));
        }
        sleep(self.load.pause.mul_f64(rand::random()));
    }

    /// Writes once, and records it. Returns none if it certainly did not happen.
    fn change(
        &self,
        connections: &mut Connections,
        name: u32,
        action: Action,
        recording: &mut Recording,
    ) -> Option<Outcome> {
        let at = rand::random_range(0..self.cluster.writers.len());
        let replica = &self.cluster.writers[at];
        let (method, request) = request(name, action);
        let start = self.cluster.now();
        let reply = connections.clients[at].send(replica.address(), &request);
        let end = self.cluster.now();
        let outcome = match reply {
            Reply::Unsent => None,
            Reply::Lost => Some(Outcome::Unknown),
            Reply::Answer(answer) => match (answer.status, action) {
                (201, Action::Register(_)) | (200, Action::Replace(_)) | (204, Action::Delete) => {
                    Some(Outcome::Done)
                }
                (409, Action::Register(_)) | (404, Action::Replace(_) | Action::Delete) => {
                    Some(Outcome::Refused)
                }
                (502..=504, _) if has(&answer, "/problems/outcome-unknown") => Some(Outcome::Unknown),
                (503, _) if has(&answer, "/problems/unavailable") || has(&answer, "/problems/overloaded") => {
                    None
                }
                _ => {
                    recording.unexpected.push(show(method, &answer));
                    Some(Outcome::Unknown)
                }
            },
        };
        let Some(outcome) = outcome else {
            recording.refused += 1;
            sleep(Duration::from_millis(5));
            return None;
        };
        let end = if outcome == Outcome::Unknown { OPEN } else { end };
        let via = Via { replica: replica.answers_as(), source: method };
        recording.add(name, Operation { start, end, action, outcome, via });
        Some(outcome)
    }

    /// Reads every name: from both replicas, from PostgreSQL, and from both replicas again. This decides every unknown
    /// outcome, and finds stale entries that are still in a cache.
    fn sweep(&self, mut recording: Recording) -> Recording {
        let mut connections = Connections::default();
        for round in 0..2 {
            for name in 0..self.names() {
                for (client, replica) in connections.clients.iter_mut().zip(&self.cluster.readers) {
                    self.get(client, replica, name, "", None, &mut recording);
                }
            }
            if round == 0 {
                self.read_postgres(&mut recording);
            }
        }
        recording
    }

    fn read_postgres(&self, recording: &mut Recording) {
        let start = self.cluster.now();
        let rows = users(self.cluster);
        let end = self.cluster.now();
        for name in 0..self.names() {
            let action = Action::Read(rows.get(&name).copied());
            let via = Via { replica: "postgres", source: "the row" };
            recording.add(name, Operation { start, end, action, outcome: Outcome::Done, via });
        }
    }
}

/// The info of each name that has a user now.
pub fn users(cluster: &Cluster) -> HashMap<u32, u32> {
    let rows = cluster.stores.sql("SELECT substr(name, 2), substr(info, 2) FROM users");
    let number = |text: &str| text.parse::<u32>().expect("names and infos are letters and numbers");
    let rows = rows.lines().filter_map(|row| row.split_once('|'));
    rows.map(|(name, info)| (number(name), number(info))).collect()
}

/// The method and the whole request of a write.
fn request(name: u32, action: Action) -> (&'static str, String) {
    let (method, path, body) = match action {
        Action::Register(info) => {
            ("POST", "/register".to_owned(), format!(r#"{{"name":"h{name}","info":"w{info}"}}"#))
        }
        Action::Replace(info) => ("PUT", format!("/user/h{name}"), format!(r#"{{"info":"w{info}"}}"#)),
        Action::Delete | Action::Read(_) => ("DELETE", format!("/user/h{name}"), String::new()),
    };
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    (method, format!("{method} {path} HTTP/1.1\r\n{head}\r\n\r\n{body}"))
}

/// The number of the write whose info is in the body.
fn info(body: &[u8]) -> Option<u32> {
    let (_, rest) = std::str::from_utf8(body).ok()?.split_once(r#""info":"w"#)?;
    rest.split_once('"')?.0.parse().ok()
}

fn has(answer: &Answer, problem: &str) -> bool {
    String::from_utf8_lossy(&answer.body).contains(problem)
}

fn show(method: &str, answer: &Answer) -> String {
    format!("{method}: {} {}", answer.status, String::from_utf8_lossy(&answer.body))
}

/// `Cache-Status` in a word.
fn source(cache_status: &str) -> &'static str {
    let rest = cache_status.strip_prefix("data-svc; ").unwrap_or_default();
    match rest {
        "fwd=uri-miss; stored" => "miss, stored",
        "fwd=uri-miss" => "miss",
        "fwd=uri-miss; collapsed" => "collapsed",
        "fwd=request; stored" => "forced, stored",
        "fwd=request" => "forced",
        "fwd=bypass; detail=write-in-progress" => "bypass",
        "fwd=bypass; detail=suspended" => "suspended",
        "fwd=bypass; detail=breaker-open" => "breaker open",
        "fwd=miss; detail=redis-timeout" => "redis timeout",
        "fwd=miss; detail=redis-error" => "redis error",
        _ if rest.ends_with("detail=near") => "near hit",
        _ if rest.ends_with("detail=negative") => "negative hit",
        _ if rest.starts_with("hit; ttl=") => "hit",
        _ => "something else",
    }
}
