//! What a key holds in Redis, byte for byte.
//!
//! | kind | first byte | then |
//! |---|---|---|
//! | value | `V` | format (1), fill id (16), load time in µs (8), expiry in Unix ms (8), body length (4), ETag (16), body |
//! | absent | `A` | format (1), fill id (16), load time in µs (8), expiry in Unix ms (8) |
//! | lease | `L` | token (16) |
//! | barrier | `B` | token (16) |
//!
//! Numbers are big-endian. The format is in the value and not in the key: services are deployed one at a time, and
//! with a new key prefix writers would invalidate one key while readers fill another.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix_web::web::{Buf as _, Bytes};

const FORMAT: u8 = 1;
const TOKEN_BYTES: usize = 16;
const LOAD_TIME_AT: usize = 2 + TOKEN_BYTES;
const EXPIRY_AT: usize = LOAD_TIME_AT + 8;
const HEAD_BYTES: usize = EXPIRY_AT + 8;
const LENGTH_BYTES: usize = 4;
const ETAG_BYTES: usize = 16;
const VALUE_HEAD_BYTES: usize = HEAD_BYTES + LENGTH_BYTES + ETAG_BYTES;
const LOAD_TIME_FLOOR: Duration = Duration::from_millis(500);

/// 128 random bits that tell one fill, lease or barrier from every other.
pub type Token = [u8; TOKEN_BYTES];

/// A new token.
#[must_use]
pub fn token() -> Token {
    rand::random()
}

/// A user as it is answered: opaque bytes and what tells them from other versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The opaque part of the entity tag.
    pub etag: [u8; ETAG_BYTES],
    /// The body.
    pub body: Bytes,
}

/// What was found at a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Nothing.
    Empty,
    /// An answer, or that there is none, from a load.
    Filled(Filled),
    /// A reader is loading.
    Lease,
    /// A writer is writing.
    Barrier,
    /// Something that a newer or older version of ours wrote, and alone may change.
    OtherFormat,
    /// Nothing of ours; the bytes, if it is a string at all.
    Garbage(Bytes),
}

/// The result of a load, as its bytes, which were looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled(Bytes);

impl Filled {
    /// Whether it says that there is none.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        self.0[0] == b'A'
    }

    /// The answer, without copying its body; none for a cached absence.
    #[must_use]
    pub fn into_answer(self) -> Option<Answer> {
        if self.is_absence() {
            return None;
        }
        let (mut etag, mut body) = ([0; ETAG_BYTES], self.0);
        etag.copy_from_slice(&body[HEAD_BYTES + LENGTH_BYTES..VALUE_HEAD_BYTES]);
        body.advance(VALUE_HEAD_BYTES);
        Some(Answer { etag, body })
    }

    /// How much memory it takes, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// How long the entry will live. Only for `ttl=` and early refresh: correctness does not hang on a clock.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.number(EXPIRY_AT).saturating_sub(unix_ms()))
    }

    /// What tells the entry from every other: its head, with the id of its fill.
    #[must_use]
    pub fn head(&self) -> Bytes {
        self.0.slice(..HEAD_BYTES)
    }

    fn number(&self, at: usize) -> u64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.0[at..at + 8]);
        u64::from_be_bytes(number)
    }

    /// Whether this reader should load the entry anew before it ends: XFetch (Vattani, Chierichetti, Lowenstein,
    /// "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015) with beta = 1.
    ///
    /// The load time has a floor: it makes a key that is read ten times a second sure to be refreshed in time, at
    /// the cost of a refresh some seconds early.
    #[must_use]
    pub fn is_due(&self, ttl: Duration) -> bool {
        let load_time = (self.number(LOAD_TIME_AT) as f64 / 1e6).max(LOAD_TIME_FLOOR.as_secs_f64());
        // 1 - x is in (0, 1], of which there is a logarithm.
        let early = -load_time * (1.0 - rand::random::<f64>()).ln();
        !self.is_absence() && early >= ttl.as_secs_f64()
    }
}

/// The bytes of a lease.
#[must_use]
pub fn lease(token: &Token) -> Bytes {
    [b"L".as_slice(), token].concat().into()
}

/// The bytes of a barrier.
#[must_use]
pub fn barrier(token: &Token) -> Bytes {
    [b"B".as_slice(), token].concat().into()
}

/// The bytes of an entry with `answer`, or its absence, that took `load_time` to load and lives for `ttl`.
#[must_use]
pub fn encode(answer: Option<&Answer>, load_time: Duration, ttl: Duration) -> Bytes {
    let load_time = u64::try_from(load_time.as_micros()).unwrap_or(u64::MAX);
    let expiry = unix_ms() + u64::try_from(ttl.as_millis()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(VALUE_HEAD_BYTES + answer.map_or(0, |answer| answer.body.len()));
    bytes.extend_from_slice(&[if answer.is_some() { b'V' } else { b'A' }, FORMAT]);
    bytes.extend_from_slice(&token());
    bytes.extend_from_slice(&load_time.to_be_bytes());
    bytes.extend_from_slice(&expiry.to_be_bytes());
    if let Some(answer) = answer {
        bytes.extend_from_slice(&length(&answer.body));
        bytes.extend_from_slice(&answer.etag);
        bytes.extend_from_slice(&answer.body);
    }
    bytes.into()
}

/// Reads what a key holds. The body is not copied and not looked into.
#[must_use]
pub fn decode(bytes: Option<Bytes>) -> Slot {
    let Some(bytes) = bytes else { return Slot::Empty };
    match (bytes.first(), bytes.len()) {
        (Some(b'L'), len) if len == 1 + TOKEN_BYTES => Slot::Lease,
        (Some(b'B'), len) if len == 1 + TOKEN_BYTES => Slot::Barrier,
        (Some(b'V' | b'A'), 2..) if bytes[1] != FORMAT => Slot::OtherFormat,
        // The length tells a value that was cut or added to.
        (Some(b'V'), VALUE_HEAD_BYTES..)
            if bytes[HEAD_BYTES..HEAD_BYTES + LENGTH_BYTES] == length(&bytes[VALUE_HEAD_BYTES..]) =>
        {
            Slot::Filled(Filled(bytes))
        }
        (Some(b'A'), HEAD_BYTES) => Slot::Filled(Filled(bytes)),
        _ => Slot::Garbage(bytes),
    }
}

fn length(body: &[u8]) -> [u8; LENGTH_BYTES] {
    u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes()
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer() -> Answer {
        Answer { etag: [7; ETAG_BYTES], body: Bytes::from_static(b"{}") }
    }

    #[test]
    fn what_was_encoded_is_read_back() {
        for expected in [Some(answer()), None] {
            let bytes = encode(expected.as_ref(), Duration::from_micros(3), Duration::from_secs(60));
            let Slot::Filled(filled) = decode(Some(bytes.clone())) else { panic!("{bytes:?}") };
            assert!(filled.ttl() <= Duration::from_secs(60) && filled.ttl() > Duration::from_secs(50));
            assert!(bytes.starts_with(&filled.head()));
            assert_eq!(filled.into_answer(), expected);
        }
        assert_eq!(decode(Some(lease(&token()))), Slot::Lease);
        assert_eq!(decode(None), Slot::Empty);
    }

    #[test]
    fn two_fills_of_the_same_answer_differ() {
        let fill = || encode(Some(&answer()), Duration::ZERO, Duration::from_secs(60));
        assert_ne!(fill(), fill());
    }

    #[test]
    fn another_format_is_not_garbage() {
        let mut bytes = encode(Some(&answer()), Duration::ZERO, Duration::from_secs(60)).to_vec();
        bytes[1] = FORMAT + 1;
        assert_eq!(decode(Some(bytes.into())), Slot::OtherFormat);
    }

    #[test]
    fn a_value_that_was_cut_or_added_to_is_garbage() {
        let bytes = encode(Some(&answer()), Duration::ZERO, Duration::from_secs(60));
        let longer = [&bytes[..], b"x"].concat();
        for changed in (2..bytes.len()).map(|len| bytes.slice(..len)).chain([longer.into()]) {
            assert_eq!(decode(Some(changed.clone())), Slot::Garbage(changed));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _no_panic = decode(Some(bytes.into()));
        }
    }
}
