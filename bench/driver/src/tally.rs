//! The answers that a load got, and the writes that it sent.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::answer::Answer;
use crate::names::{Requests, Verdict};

/// One body in a hundred is compared with the expected one, since parsing all of them would slow the load. The status
/// of every answer is checked.
const CHECK_EVERY: u64 = 100;

/// The counted answers.
#[derive(Debug)]
pub struct Tally {
    /// Latencies of right answers, in microseconds, until the generator had read them.
    pub right: Histogram<u32>,
    /// The same until the kernel had received them. Only if it stamps them.
    pub arrived: Histogram<u32>,
    /// The difference of both: how long the answers waited for the generator.
    pub unread: Histogram<u32>,
    /// Latencies of answers with 503, in microseconds.
    pub refused: Histogram<u32>,
    /// Answers with another status than expected, 503 included; lost connections; bytes that are no HTTP.
    pub errors: u64,
    /// Answers whose body was compared with the expected one.
    pub checked: u64,
    /// Those of them that were wrong.
    pub wrong: u64,
    /// All writes that were sent, also before answers counted.
    pub writes: Vec<Write>,
    /// Those of the compared answers that replaces could change, with the version that was read.
    pub reads: Vec<Sent>,
    answers: u64,
}

/// A write that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// The index of its part within the load.
    pub part: usize,
    /// The number of the user.
    pub number: u32,
    /// The version that a replace wrote.
    pub version: u32,
    /// When it was sent.
    pub sent: Instant,
    /// When the right answer was there. Without one it may have happened or not.
    pub acknowledged: Option<Instant>,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// The number of the user.
    pub number: u32,
    /// The version that a replace wrote, or that was read.
    pub version: u32,
    /// When it was sent.
    pub at: Instant,
}

impl Tally {
    /// Of nothing.
    pub fn new() -> Tally {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid");
        Tally {
            right: histogram(),
            arrived: histogram(),
            unread: histogram(),
            refused: histogram(),
            errors: 0,
            checked: 0,
            wrong: 0,
            writes: Vec::new(),
            reads: Vec::new(),
            answers: 0,
        }
    }

    /// Of the answers to both.
    pub fn plus(mut self, other: Tally) -> Tally {
        self.right += other.right;
        self.arrived += other.arrived;
        self.unread += other.unread;
        self.refused += other.refused;
        self.errors += other.errors;
        self.checked += other.checked;
        self.wrong += other.wrong;
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
        self
    }

    /// Counts an answer, which has been read just now. `unread` is how long it waited for that, if that is known.
    pub fn count(&mut self, requests: &Requests, sent: Sent, unread: Option<Duration>, answer: &Answer<'_>) {
        let took = sent.at.elapsed();
        let micros = |time: Duration| time.as_micros() as u64;
        if answer.status == requests.status {
            self.right.saturating_record(micros(took));
            if let Some(unread) = unread {
                self.arrived.saturating_record(micros(took.saturating_sub(unread)));
                self.unread.saturating_record(micros(unread));
            }
        } else {
            self.errors += 1;
            if answer.status == 503 {
                self.refused.saturating_record(micros(took));
            }
        }
        if self.answers.is_multiple_of(CHECK_EVERY) && answer.status == requests.status {
            self.check(requests, sent, answer.body);
        }
        self.answers += 1;
    }

    fn check(&mut self, requests: &Requests, sent: Sent, body: &[u8]) {
        let verdict = requests.verdict(sent.number, sent.version, body);
        self.checked += u64::from(verdict != Verdict::Unchecked);
        self.wrong += u64::from(verdict == Verdict::Wrong);
        if let Verdict::Right(version) = verdict
            && requests.are_beside_replaces()
        {
            self.reads.push(Sent { version, ..sent });
        }
    }
}
