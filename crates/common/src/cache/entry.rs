//! What a key holds in Redis, byte for byte.
//!
//! | kind | first byte | then |
//! |---|---|---|
//! | value | `V` | format (1), tag (8), fill id (16), load time in µs (8), expiry in Unix ms (8), body length (4), ETag (16), body |
//! | absent | `A` | format (1), tag (8), fill id (16), load time in µs (8), expiry in Unix ms (8) |
//! | lease | `L` | tag (8), token (16) |
//! | barrier | `B` | token (16) |
//!
//! Numbers are big-endian. The tag is that of the grant under which the entry or the lease was stored: what has another
//! tag is another installation's, or of another time, and may be replaced. A barrier has none: it stops all of them.
//! Formats of one edition differ in the value and not in the key. Services are deployed one at a time: with a new key
//! prefix, old writers would invalidate one key while new readers fill another.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix_web::web::{Buf as _, Bytes};

const FORMAT: u8 = 2;
const TOKEN_BYTES: usize = 16;
const TAG_BYTES: usize = 8;
const TAG_AT: usize = 2;
const LEASE_BYTES: usize = 1 + TAG_BYTES + TOKEN_BYTES;
const LOAD_TIME_AT: usize = TAG_AT + TAG_BYTES + TOKEN_BYTES;
const EXPIRY_AT: usize = LOAD_TIME_AT + 8;
pub const HEAD_BYTES: usize = EXPIRY_AT + 8;
const LENGTH_BYTES: usize = 4;
const ETAG_BYTES: usize = 16;
const VALUE_HEAD_BYTES: usize = HEAD_BYTES + LENGTH_BYTES + ETAG_BYTES;
/// The load time that [`Entry::is_due`] assumes at least.
const LOAD_TIME_FLOOR: Duration = Duration::from_millis(500);
/// How many load times an early refresh can come before the end at most: the logarithm of 2^53, the inverse of the least
/// number that is drawn.
const LONGEST_LEAD: f64 = 53.0 * std::f64::consts::LN_2;

/// 128 random bits that tell one fill, lease or barrier from every other.
pub type Token = [u8; TOKEN_BYTES];

/// What tells entries of one grant from those of others.
pub type Tag = u64;

/// A new token.
#[must_use]
pub fn token() -> Token {
    rand::random()
}

/// A record as it is sent to clients: opaque bytes, and the tag that tells them from other versions (RFC 9110,
/// section 3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Representation {
    /// The opaque part of the entity tag.
    pub etag: [u8; ETAG_BYTES],
    /// The body.
    pub body: Bytes,
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Empty,
    /// The cached result of a load.
    Entry(Entry),
    /// A reader is loading: the lease's bytes.
    Lease(Lease),
    /// A writer is writing.
    Barrier,
    /// An entry of a newer or older version of the service, which alone may change it.
    OtherFormat,
    /// Nothing of ours; its bytes, or none if it is no string.
    Garbage(Bytes),
}

impl Held {
    /// How the entry or lease begins that another grant than that of `tag` has left here. It may be replaced.
    #[must_use]
    pub fn left_behind(&self, tag: Tag) -> Option<Bytes> {
        match self {
            Self::Entry(entry) if entry.tag() != tag => Some(entry.head()),
            Self::Lease(lease) if lease.tag() != tag => Some(lease.bytes().clone()),
            _ => None,
        }
    }
}

/// A reader's lease as validated bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease(Bytes);

impl Lease {
    /// A new lease under the grant of `tag`.
    #[must_use]
    pub fn new(tag: Tag) -> Self {
        Self([b"L".as_slice(), &tag.to_be_bytes(), &token()].concat().into())
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The tag of the grant under which it was taken.
    #[must_use]
    pub fn tag(&self) -> Tag {
        number(&self.0, 1)
    }
}

/// A cached result as validated bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry(Bytes);

impl Entry {
    /// Whether it is a cached absence: there was no such record.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        self.0[0] == b'A'
    }

    /// The representation, without copying its body; none for a cached absence.
    #[must_use]
    pub fn into_representation(self) -> Option<Representation> {
        let etag = self.etag()?;
        let mut body = self.0;
        body.advance(VALUE_HEAD_BYTES);
        Some(Representation { etag, body })
    }

    /// How much memory its bytes take.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// How long the entry will live. Only `ttl=` and early refresh use it: correctness does not depend on a wall clock.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        ttl_of(&self.0)
    }

    /// The head of the entry, which tells it from every other: it holds the id of the fill.
    #[must_use]
    pub fn head(&self) -> Bytes {
        self.0.slice(..HEAD_BYTES)
    }

    /// The tag of the grant under which it was stored.
    #[must_use]
    pub fn tag(&self) -> Tag {
        number(&self.0, TAG_AT)
    }

    /// The tag of the representation; none for a cached absence.
    #[must_use]
    pub fn etag(&self) -> Option<[u8; ETAG_BYTES]> {
        let mut etag = [0; ETAG_BYTES];
        etag.copy_from_slice(self.0.get(HEAD_BYTES + LENGTH_BYTES..VALUE_HEAD_BYTES)?);
        Some(etag)
    }

    /// Whether this request should load the entry anew before it ends: XFetch (Vattani, Chierichetti, Lowenstein,
    /// "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015) with beta = 1.
    ///
    /// The load time has a floor. With it a key that is read ten times a second is sure to be refreshed in time, at the
    /// cost of a refresh some seconds early.
    #[must_use]
    pub fn is_due(&self, ttl: Duration) -> bool {
        let load_time = (number(&self.0, LOAD_TIME_AT) as f64 / 1e6).max(LOAD_TIME_FLOOR.as_secs_f64());
        let ttl = ttl.as_secs_f64();
        // Redis holds the entry. If it has ended by this clock, the clocks differ, and say nothing. Most hits are far from
        // the end, and are spared the random number.
        if self.is_absence() || ttl == 0.0 || ttl > load_time * LONGEST_LEAD {
            return false;
        }
        // 1 - x is in (0, 1], where the logarithm is finite.
        -load_time * (1.0 - rand::random::<f64>()).ln() >= ttl
    }
}

/// The bytes of a barrier.
#[must_use]
pub fn barrier(token: &Token) -> Bytes {
    [b"B".as_slice(), token].concat().into()
}

/// How the values begin that were stored under the grant of `tag`.
#[must_use]
pub fn head_of_values(tag: Tag) -> Bytes {
    [[b'V', FORMAT].as_slice(), &tag.to_be_bytes()].concat().into()
}

/// The bytes of an entry with `answer`, or with its absence, under the grant of `tag`. It took `load_time` to load, and
/// lives for `ttl`.
#[must_use]
pub fn encode(tag: Tag, answer: Option<&Representation>, load_time: Duration, ttl: Duration) -> Bytes {
    let load_time = u64::try_from(load_time.as_micros()).unwrap_or(u64::MAX);
    let expiry = unix_ms() + u64::try_from(ttl.as_millis()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(VALUE_HEAD_BYTES + answer.map_or(0, |answer| answer.body.len()));
    bytes.extend_from_slice(&[if answer.is_some() { b'V' } else { b'A' }, FORMAT]);
    bytes.extend_from_slice(&tag.to_be_bytes());
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

/// Reads what a key holds. The body is neither copied nor parsed.
#[must_use]
pub fn decode(bytes: Option<Bytes>) -> Held {
    let Some(bytes) = bytes else { return Held::Empty };
    match (bytes.first(), bytes.len()) {
        (Some(b'L'), LEASE_BYTES) => Held::Lease(Lease(bytes)),
        (Some(b'B'), len) if len == 1 + TOKEN_BYTES => Held::Barrier,
        (Some(b'V' | b'A'), 2..) if bytes[1] != FORMAT => Held::OtherFormat,
        // The length shows a value that was cut or added to.
        (Some(b'V'), VALUE_HEAD_BYTES..)
            if bytes[HEAD_BYTES..HEAD_BYTES + LENGTH_BYTES] == length(&bytes[VALUE_HEAD_BYTES..]) =>
        {
            Held::Entry(Entry(bytes))
        }
        (Some(b'A'), HEAD_BYTES) => Held::Entry(Entry(bytes)),
        _ => Held::Garbage(bytes),
    }
}

/// How long the entry will live that begins with `head`; zero if that is none.
#[must_use]
pub fn ttl_of(head: &[u8]) -> Duration {
    let expiry = if head.len() < HEAD_BYTES { 0 } else { number(head, EXPIRY_AT) };
    Duration::from_millis(expiry.saturating_sub(unix_ms()))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(number)
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

    fn representation() -> Representation {
        Representation { etag: [7; ETAG_BYTES], body: Bytes::from_static(b"{}") }
    }

    #[test]
    fn what_was_encoded_is_read_back() {
        for expected in [Some(representation()), None] {
            let bytes = encode(5, expected.as_ref(), Duration::from_micros(3), Duration::from_secs(60));
            let Held::Entry(entry) = decode(Some(bytes.clone())) else { panic!("{bytes:?}") };
            assert!(entry.ttl() <= Duration::from_secs(60) && entry.ttl() > Duration::from_secs(50));
            assert!(bytes.starts_with(&entry.head()));
            assert_eq!(entry.tag(), 5);
            assert_eq!(entry.into_representation(), expected);
        }
        let lease = Lease::new(5);
        assert_eq!(lease.tag(), 5);
        assert_eq!(decode(Some(lease.bytes().clone())), Held::Lease(lease));
        assert_eq!(decode(None), Held::Empty);
    }

    #[test]
    fn two_fills_of_the_same_representation_differ() {
        let fill = || encode(5, Some(&representation()), Duration::ZERO, Duration::from_secs(60));
        assert_ne!(fill(), fill());
    }

    #[test]
    fn another_format_is_not_garbage() {
        let mut bytes = encode(5, Some(&representation()), Duration::ZERO, Duration::from_secs(60)).to_vec();
        bytes[1] = FORMAT + 1;
        assert_eq!(decode(Some(bytes.into())), Held::OtherFormat);
    }

    #[test]
    fn a_value_that_was_cut_or_added_to_is_garbage() {
        let bytes = encode(5, Some(&representation()), Duration::ZERO, Duration::from_secs(60));
        let longer = [&bytes[..], b"x"].concat();
        for changed in (2..bytes.len()).map(|len| bytes.slice(..len)).chain([longer.into()]) {
            assert_eq!(decode(Some(changed.clone())), Held::Garbage(changed));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _no_panic = decode(Some(bytes.into()));
        }
    }
}
