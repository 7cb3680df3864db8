//! The load generator: a closed loop, as wrk's. Each client sends a request, waits for its answer and sends the next.
//! It is our own, since wrk can neither load two services at once nor measure latencies by status.
//! `scripts/bench generator` compares the two.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use hdrhistogram::Histogram;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;

use crate::answer;
use crate::names::Requests;

/// One body in a hundred is compared with the expected one, since parsing all of them would slow the load. The status
/// of every answer is checked.
const CHECK_EVERY: u64 = 100;
/// How long a thread waits for answers before it looks whether to stop, and which pauses are over.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// How long a client pauses after a 503, a tenth of our services' `Retry-After`. A client that retries at once mostly
/// measures its own retries.
const PAUSE: Duration = Duration::from_millis(100);
/// Two saturate two cores together with the target. With one, a row would measure the generator.
const THREADS: usize = 2;
/// Larger than any answer: 16 KiB of info and a head.
const BUFFER: usize = 32 * 1024;

/// The numbers whose users are requested.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// Always this one.
    One(u32),
    /// Any below this, all equally likely.
    Below(u32),
    /// Any of a prepared sample, such as [`zipf`]'s.
    Drawn(Arc<[u32]>),
    /// Each once, until all are used.
    Once(Once),
}

/// Numbers from a range, each returned once, in an order that jumps around.
#[derive(Clone, Debug)]
pub struct Once {
    first: u32,
    count: u32,
    step: u32,
    used: Arc<AtomicU32>,
}

impl Once {
    /// The numbers from `first` on.
    pub fn new(first: u32, count: u32) -> Once {
        // A prime larger than any count has no factor in common with it, so that the steps visit every number.
        const PRIME: u32 = 2_147_483_647;
        Once { first, count, step: PRIME % count.max(1), used: Arc::default() }
    }

    /// The same in ascending order.
    pub fn ordered(first: u32, count: u32) -> Once {
        Once { step: 1, ..Once::new(first, count) }
    }

    /// The same number `times` times.
    pub fn same(number: u32, times: u32) -> Once {
        Once { step: 0, ..Once::new(number, times) }
    }

    /// Takes the next `count` numbers. Only for an ascending order.
    pub fn portion(&self, count: u32) -> Once {
        Once::ordered(self.first + self.used.fetch_add(count, Ordering::Relaxed), count)
    }

    fn next(&self) -> Option<u32> {
        let used = self.used.fetch_add(1, Ordering::Relaxed);
        let jumped = u64::from(used) * u64::from(self.step) % u64::from(self.count.max(1));
        (used < self.count).then(|| self.first + jumped as u32)
    }
}

/// A million draws from `0..count`, where the k-th number's share is proportional to 1/k.
pub fn zipf(count: u32) -> Arc<[u32]> {
    let mut sum = 0.0;
    let mut cumulated = Vec::new();
    for rank in 1..=count {
        sum += 1.0 / f64::from(rank);
        cumulated.push(sum);
    }
    let mut random = Rng::with_seed(1);
    let mut draw = || {
        let point = random.f64() * sum;
        (cumulated.partition_point(|below| *below <= point) as u32).min(count - 1)
    };
    (0..1 << 20).map(|_| draw()).collect()
}

/// One kind of request within a load.
#[derive(Clone, Debug)]
pub struct Part {
    /// The requests.
    pub requests: Requests,
    /// The numbers of their users.
    pub numbers: Numbers,
    /// The share of all requests.
    pub share: f64,
}

/// The requests of several clients. A client has a connection for each part, and one request under way.
#[derive(Clone, Debug)]
pub struct Load {
    /// The kinds of requests.
    pub parts: Vec<Part>,
    /// Clients at once.
    pub clients: usize,
}

impl Load {
    /// A load of one kind of request.
    pub fn of(requests: Requests, numbers: Numbers, clients: usize) -> Load {
        Load { parts: vec![Part { requests, numbers, share: 1.0 }], clients }
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
        let shares = (0..THREADS).map(|thread| (self.clients + thread) / THREADS);
        let generators: Vec<Generator> = shares.map(|clients| Generator::new(&self.parts, clients)).collect();
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

    /// Stops, and returns the counted answers.
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

/// The counted answers.
#[derive(Debug)]
pub struct Tally {
    /// Latencies of right answers, in microseconds.
    pub right: Histogram<u32>,
    /// Latencies of answers with 503, in microseconds.
    pub refused: Histogram<u32>,
    /// Answers with another status than expected, 503 included; lost connections; bytes that are no HTTP.
    pub errors: u64,
    /// Answers whose body was compared with the expected one.
    pub checked: u64,
    /// Those of them that were wrong.
    pub wrong: u64,
    answers: u64,
}

impl Tally {
    fn new() -> Tally {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid");
        Tally { right: histogram(), refused: histogram(), errors: 0, checked: 0, wrong: 0, answers: 0 }
    }

    fn plus(mut self, other: Tally) -> Tally {
        self.right += other.right;
        self.refused += other.refused;
        self.errors += other.errors;
        self.checked += other.checked;
        self.wrong += other.wrong;
        self
    }
}

struct Client {
    sockets: Vec<TcpStream>,
    /// The part of the request under way, if there is one.
    part: Option<usize>,
    number: u32,
    sent: Instant,
    buffer: Box<[u8]>,
    filled: usize,
}

/// One thread's loop.
struct Generator {
    epoll: OwnedFd,
    parts: Vec<Part>,
    clients: Vec<Client>,
    /// Clients with a request under way or still to send; the others have used all numbers.
    busy: usize,
    /// The end of each client's pause; the first to end is in front.
    paused: VecDeque<(Instant, usize)>,
    random: Rng,
    /// Whether answers count now.
    counting: bool,
    tally: Tally,
}

impl Generator {
    fn new(parts: &[Part], clients: usize) -> Generator {
        let mut generator = Generator {
            epoll: epoll::create(CreateFlags::CLOEXEC).expect("an epoll instance"),
            parts: parts.to_vec(),
            clients: Vec::new(),
            busy: 0,
            paused: VecDeque::new(),
            random: Rng::new(),
            counting: false,
            tally: Tally::new(),
        };
        for client in 0..clients {
            let parts = 0..generator.parts.len();
            let sockets = parts.map(|part| generator.connect(client, part)).collect();
            let buffer = vec![0; BUFFER].into_boxed_slice();
            let client = Client { sockets, part: None, number: 0, sent: Instant::now(), buffer, filled: 0 };
            generator.clients.push(client);
        }
        generator
    }

    fn connect(&self, client: usize, part: usize) -> TcpStream {
        let socket = open(self.parts[part].requests.to);
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
        while self.busy > 0 && phase.load(Ordering::Relaxed) != STOP {
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
        let part = self.choose();
        let Some(number) = self.number(part) else {
            self.clients[index].part = None;
            self.busy -= 1;
            return;
        };
        let client = &mut self.clients[index];
        client.part = Some(part);
        client.number = number;
        client.filled = 0;
        client.sent = Instant::now();
        let bytes = self.parts[part].requests.bytes(number);
        if client.sockets[part].write_all(bytes).is_err() {
            self.lost(index, part);
        }
    }

    fn choose(&mut self) -> usize {
        let [first, ..] = &self.parts[..] else { return 0 };
        usize::from(self.parts.len() > 1 && self.random.f64() >= first.share)
    }

    fn number(&mut self, part: usize) -> Option<u32> {
        match &self.parts[part].numbers {
            Numbers::One(number) => Some(*number),
            Numbers::Below(end) => Some(self.random.u32(..end)),
            Numbers::Drawn(drawn) => Some(drawn[self.random.usize(..drawn.len())]),
            Numbers::Once(once) => once.next(),
        }
    }

    /// Reads the received bytes of a client, and sends its next request if the answer is complete.
    fn receive(&mut self, index: usize, part: usize) {
        let client = &mut self.clients[index];
        let read = client.sockets[part].read(&mut client.buffer[client.filled..]);
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
        if self.counting {
            self.tally.count(&self.parts[part].requests, client.number, client.sent, &answer);
        }
        if answer.status == 503 {
            client.part = None;
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

impl Tally {
    fn count(&mut self, requests: &Requests, number: u32, sent: Instant, answer: &answer::Answer<'_>) {
        let took = sent.elapsed().as_micros() as u64;
        if answer.status == requests.status {
            self.right.saturating_record(took);
        } else {
            self.errors += 1;
            if answer.status == 503 {
                self.refused.saturating_record(took);
            }
        }
        if self.answers.is_multiple_of(CHECK_EVERY)
            && answer.status == requests.status
            && let Some(right) = requests.is_right(number, answer.body)
        {
            self.checked += 1;
            self.wrong += u64::from(!right);
        }
        self.answers += 1;
    }
}

fn open(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    socket.set_nodelay(true).expect("a socket takes its options");
    socket.set_nonblocking(true).expect("a socket takes its options");
    socket
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_returned_once_and_not_in_order() {
        let once = Once::new(1_000, 10_000);
        let mut returned: Vec<u32> = std::iter::from_fn(|| once.next()).collect();
        assert!(!returned.is_sorted());
        returned.sort_unstable();
        assert_eq!(returned, (1_000..11_000).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_of_a_thousand_is_drawn_as_often_as_zipfs_law_says() {
        let drawn = zipf(1_000);
        let first = drawn.iter().filter(|number| **number == 0).count() as f64 / drawn.len() as f64;
        assert!((first - 1.0 / 7.485).abs() < 0.002, "{first}");
    }
}
