//! The load generator: a closed loop, as wrk's. Each client sends a request, waits for its answer and sends the next.
//! It is our own, since wrk can neither load two services at once nor measure latencies by status.
//! `scripts/bench generator` compares the two.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;

use crate::answer;
use crate::arrival::{self, Arrival};
use crate::names::{Requests, Writes, next_version};
use crate::numbers::{Numbers, Once};
use crate::tally::{Sent, Tally, Write};

/// How long a thread waits for answers before it looks whether to stop, and which pauses are over.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// How long a client pauses after a 503, a tenth of our services' `Retry-After`. A client that retries at once mostly
/// measures its own retries.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the generator waits for answers under way when it stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Two saturate two cores together with the target. With one, a row would measure the generator.
const THREADS: usize = 2;
/// Larger than any answer: 16 KiB of info and a head.
const BUFFER: usize = 32 * 1024;

/// One kind of request within a load.
#[derive(Clone, Debug)]
pub struct Part {
    /// The requests.
    pub requests: Requests,
    /// The numbers of their users.
    pub numbers: Numbers,
    /// The share of each client's requests.
    pub share: f64,
}

/// The requests of several clients. A client has a connection for each part, and one request under way.
#[derive(Clone, Debug)]
pub struct Load {
    /// The kinds of requests.
    pub parts: Vec<Part>,
    /// Clients at once.
    pub clients: usize,
    /// Whether the kernel stamps answers.
    pub arrival: Arrival,
}

impl Load {
    /// A load of one kind of request.
    pub fn of(requests: Requests, numbers: Numbers, clients: usize) -> Load {
        let parts = vec![Part { requests, numbers, share: 1.0 }];
        Load { parts, clients, arrival: Arrival::Ignored }
    }

    /// Sends each number's request, and returns when all are answered. Panics if an answer is wrong.
    pub fn once(requests: Requests, numbers: Once, clients: usize) {
        let running = Load::of(requests, Numbers::Once(numbers), clients).start();
        running.measure();
        let tally = running.stop_after(Duration::from_secs(120));
        assert_eq!((tally.errors, tally.wrong), (0, 0), "wrong answers");
    }

    /// Connects and begins to send. Answers do not count before [`Running::measure`].
    pub fn start(&self) -> Running {
        let phase = Arc::new(AtomicU8::new(WARM_UP));
        let clients = |thread| (thread..self.clients).step_by(THREADS);
        let generators: Vec<Generator> =
            (0..THREADS).map(|thread| Generator::new(self, clients(thread))).collect();
        let spawn = |generator: Generator| {
            let phase = Arc::clone(&phase);
            thread::spawn(move || generator.run(&phase))
        };
        let threads = generators.into_iter().map(spawn).collect();
        Running { phase, threads }
    }
}

const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

/// A load that is being sent.
#[derive(Debug)]
pub struct Running {
    phase: Arc<AtomicU8>,
    threads: Vec<thread::JoinHandle<Tally>>,
}

impl Running {
    /// Counts answers from now on.
    pub fn measure(&self) {
        self.phase.store(MEASURE, Ordering::Relaxed);
    }

    /// Waits this long, or until all numbers are used.
    pub fn wait(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.threads.iter().all(thread::JoinHandle::is_finished) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1).min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// Stops sending, waits for the answers under way, and returns the counted answers and all writes.
    pub fn stop(self) -> Tally {
        self.phase.store(STOP, Ordering::Relaxed);
        let tallies =
            self.threads.into_iter().map(|thread| thread.join().expect("a generator does not panic"));
        tallies.reduce(Tally::plus).unwrap_or_else(Tally::new)
    }

    /// [`Running::wait`], then [`Running::stop`].
    pub fn stop_after(self, time: Duration) -> Tally {
        self.wait(time);
        self.stop()
    }
}

struct Client {
    sockets: Vec<TcpStream>,
    /// Begins alike for each target, so that all get the same mix of requests from each client.
    random: Rng,
    /// The part of the request under way, if there is one.
    part: Option<usize>,
    number: u32,
    version: u32,
    /// Part and number of a refused request, which is sent again.
    refused: Option<(usize, u32)>,
    /// The index of a write under way.
    write: Option<usize>,
    sent: Instant,
    buffer: Box<[u8]>,
    filled: usize,
}

/// One thread's loop.
struct Generator {
    epoll: OwnedFd,
    parts: Vec<Part>,
    arrival: Arrival,
    clients: Vec<Client>,
    /// Clients with a request under way or still to send; the others have used all numbers.
    busy: usize,
    /// The end of each client's pause; the first to end is in front.
    paused: VecDeque<(Instant, usize)>,
    /// Whether answers count now.
    counting: bool,
    /// Whether nothing is sent any more.
    stopping: bool,
    tally: Tally,
}

impl Generator {
    /// Connects the clients with these numbers.
    fn new(load: &Load, clients: impl Iterator<Item = usize>) -> Generator {
        let mut generator = Generator {
            epoll: epoll::create(CreateFlags::CLOEXEC).expect("an epoll instance"),
            parts: load.parts.clone(),
            arrival: load.arrival,
            clients: Vec::new(),
            busy: 0,
            paused: VecDeque::new(),
            counting: false,
            stopping: false,
            tally: Tally::new(),
        };
        for (index, client) in clients.enumerate() {
            let parts = 0..generator.parts.len();
            let sockets = parts.map(|part| generator.connect(index, part)).collect();
            generator.clients.push(Client::new(sockets, client));
        }
        generator
    }

    fn connect(&self, client: usize, part: usize) -> TcpStream {
        let socket = open(self.parts[part].requests.to);
        if self.arrival == Arrival::Stamped {
            arrival::stamp(&socket);
        }
        let data = EventData::new_u64((client * self.parts.len() + part) as u64);
        epoll::add(&self.epoll, &socket, data, EventFlags::IN).expect("a socket can be watched");
        socket
    }

    fn run(mut self, phase: &AtomicU8) -> Tally {
        self.busy = self.clients.len();
        for client in 0..self.clients.len() {
            self.send(client);
        }
        let mut events: Vec<Event> = Vec::with_capacity(256);
        let mut stopped = None;
        while self.busy > 0 {
            if phase.load(Ordering::Relaxed) == STOP {
                self.stopping = true;
                if stopped.get_or_insert_with(Instant::now).elapsed() > DRAIN {
                    break;
                }
            }
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&TICK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("epoll: {error}"),
            }
            self.counting = phase.load(Ordering::Relaxed) == MEASURE;
            for event in events.drain(..) {
                let data = event.data.u64() as usize;
                self.receive(data / self.parts.len(), data % self.parts.len());
            }
            self.wake();
        }
        self.tally
    }

    /// Sends the next requests of the clients whose pause is over.
    fn wake(&mut self) {
        while let Some((_, client)) = self.paused.pop_front_if(|(end, _)| *end <= Instant::now()) {
            self.send(client);
        }
    }

    /// Sends the client's next request, if there is one.
    fn send(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.write = None;
        let next = if self.stopping { None } else { client.next(&self.parts) };
        let Some((part, number)) = next else {
            client.part = None;
            self.busy -= 1;
            return;
        };
        let requests = &mut self.parts[part].requests;
        let version = if requests.writes == Writes::Info { next_version() } else { 0 };
        let sent = Instant::now();
        if requests.writes != Writes::Nothing {
            client.write = Some(self.tally.writes.len());
            self.tally.writes.push(Write { part, number, version, sent, acknowledged: None });
        }
        client.part = Some(part);
        client.number = number;
        client.version = version;
        client.filled = 0;
        client.sent = sent;
        let bytes = requests.bytes(number, version);
        if client.sockets[part].write_all(bytes).is_err() {
            self.lost(index, part);
        }
    }

    /// Reads the received bytes of a client, and sends its next request if the answer is complete.
    fn receive(&mut self, index: usize, part: usize) {
        let client = &mut self.clients[index];
        let socket = &mut client.sockets[part];
        let free = &mut client.buffer[client.filled..];
        let mut late = None;
        let read = match self.arrival {
            Arrival::Ignored => socket.read(free),
            Arrival::Stamped => arrival::read(socket, free).map(|(read, after)| {
                late = after;
                read
            }),
        };
        match read {
            Ok(0) => return self.lost(index, part),
            Ok(read) => client.filled += read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Err(_) => return self.lost(index, part),
        }
        let answer = match answer::parse(&client.buffer[..client.filled]) {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(answer::Strange) => return self.lost(index, part),
        };
        let Part { requests, numbers, .. } = &self.parts[part];
        if self.counting {
            let sent = Sent { number: client.number, version: client.version, at: client.sent };
            self.tally.count(requests, sent, late, &answer);
        }
        if let Some(write) = client.write
            && answer.status == requests.status
        {
            self.tally.writes[write].acknowledged = Some(Instant::now());
            numbers.acknowledge(client.number);
        }
        if answer.status == 503 {
            client.part = None;
            client.refused = Some((part, client.number));
            self.paused.push_back((Instant::now() + PAUSE, index));
        } else {
            self.send(index);
        }
    }

    /// Replaces a lost connection, and sends the client's next request there.
    fn lost(&mut self, index: usize, part: usize) {
        self.tally.errors += 1;
        self.clients[index].sockets[part] = self.connect(index, part);
        if self.clients[index].part == Some(part) {
            self.send(index);
        }
    }
}

impl Client {
    fn new(sockets: Vec<TcpStream>, number: usize) -> Client {
        Client {
            sockets,
            random: Rng::with_seed(number as u64),
            part: None,
            number: 0,
            version: 0,
            refused: None,
            write: None,
            sent: Instant::now(),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            filled: 0,
        }
    }

    /// The part and number of the next request: of the refused one, if there is one, so that a target that refuses
    /// some kind of request gets no smaller share of it.
    fn next(&mut self, parts: &[Part]) -> Option<(usize, u32)> {
        if self.refused.is_some() {
            return self.refused.take();
        }
        let part = usize::from(parts.len() > 1 && self.random.f64() >= parts[0].share);
        Some((part, parts[part].numbers.next(&mut self.random)?))
    }
}

fn open(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    socket.set_nodelay(true).expect("a socket takes its options");
    socket.set_nonblocking(true).expect("a socket takes its options");
    socket
}
