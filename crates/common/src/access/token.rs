//! A token, the digest that is kept of it, and what it allows.

use std::fmt::{self, Display};
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rand::TryRng as _;
use rand::rngs::{SysError, SysRng};
use sha2::{Digest as _, Sha256};

use crate::error::Invalid;

/// What every token begins with, so that scanners for secrets find one that has leaked.
const PREFIX: &str = "ut_";
/// The random part: nobody can guess 256 bits, so a fast hash is enough to keep them by.
const RANDOM_BYTES: usize = 32;

/// An API token: `ut_` and 256 random bits as 43 characters of base64url.
///
/// It has neither `Debug` nor `Display`, so that no log can hold it by accident.
pub struct Token(String);

impl Token {
    /// Makes a token from the operating system's random bits.
    ///
    /// # Errors
    /// The operating system has none to give.
    pub fn generate() -> Result<Self, SysError> {
        let mut random = [0; RANDOM_BYTES];
        SysRng.try_fill_bytes(&mut random)?;
        Ok(Self(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random))))
    }

    /// Takes a text that [`generate`](Self::generate) could have returned, and nothing else: a token that a person made
    /// up could be guessed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // A byte more than a token has, since the decoder asks for room for whole groups of characters.
        let mut random = [0; RANDOM_BYTES + 1];
        let decoded = BASE64_URL_SAFE_NO_PAD.decode_slice(text.strip_prefix(PREFIX)?, &mut random);
        (decoded == Ok(RANDOM_BYTES)).then(|| Self(text.to_owned()))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is kept of it: the SHA-256 of its text.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

/// The SHA-256 of a token. `Debug` does not show it, since a log could then be compared with the list.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// Takes 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(digits: &str) -> Option<Self> {
        // The decoder would also take a leading 0x.
        if digits.len() != 64 {
            return None;
        }
        const_hex::decode_to_array(digits).ok().map(Self)
    }

    /// 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        const_hex::encode(self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(digest)")
    }
}

/// What a token may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To read users.
    Read,
    /// To register, replace and delete users.
    Write,
    /// All.
    Admin,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// Its name in the list and in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The scopes of a token: at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Returns whether they allow what `scope` allows. `admin` includes all.
    #[must_use]
    pub const fn allow(self, scope: Scope) -> bool {
        self.0 & (scope.bit() | Scope::Admin.bit()) != 0
    }
}

impl FromStr for Scopes {
    type Err = Invalid;

    /// Reads `read,write`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let scope = |name| Scope::ALL.into_iter().find(|scope| scope.name() == name);
        let mut bits = 0;
        for name in text.split(',') {
            bits |= scope(name).ok_or(Invalid("must be read, write or admin, separated by commas"))?.bit();
        }
        Ok(Self(bits))
    }
}

impl Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = Scope::ALL.into_iter().filter(|scope| self.0 & scope.bit() != 0);
        f.write_str(&held.map(Scope::name).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_is_one_that_is_read_back_and_differs_from_the_last() {
        let token = Token::generate().expect("random bits");
        let again = Token::parse(token.expose()).expect("a token");
        assert_eq!(again.digest(), token.digest());
        assert_eq!(token.expose().len(), 46);
        assert_ne!(Token::generate().expect("random bits").expose(), token.expose());
    }

    #[test]
    fn nothing_but_a_token_is_read_as_one() {
        let good = format!("ut_{}", "A".repeat(43));
        assert!(Token::parse(&good).is_some());
        let bad = [
            String::new(),
            "ut_".to_owned(),
            format!("ut_{}", "A".repeat(42)),
            format!("ut_{}", "A".repeat(44)),
            format!("ut_{}=", "A".repeat(43)),
            format!("UT_{}", "A".repeat(43)),
            format!("ux_{}", "A".repeat(43)),
            "A".repeat(46),
            format!("ut_{}+", "A".repeat(42)),
            format!("ut_{}/", "A".repeat(42)),
            // The last character holds four bits of the token, and two that are 0.
            format!("ut_{}B", "A".repeat(42)),
            format!("ut_{}_", "A".repeat(42)),
            format!("ut_{}\0", "A".repeat(42)),
            format!("ut_{}\u{661}", "A".repeat(41)),
            format!(" {good}"),
            format!("{good} "),
            format!("{good}\n"),
            format!("ut_{}", "A".repeat(100_000)),
        ];
        for text in bad {
            assert!(Token::parse(&text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_digest_is_the_one_that_sha256sum_prints() {
        let digest = Token::parse(&format!("ut_{}", "A".repeat(43))).expect("a token").digest();
        // printf ut_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA | sha256sum
        assert_eq!(digest.to_hex(), "29ffa17042f71da80beb77aacb04cbd5144aa6207084f3d7126e1843fd3f8db4");
        assert_eq!(Digest::from_hex(&digest.to_hex()), Some(digest));
        assert_eq!(format!("{digest:?}"), "(digest)");
    }

    #[test]
    fn a_digest_is_64_hexadecimal_digits() {
        assert!(Digest::from_hex(&"0aF".repeat(64)[..64]).is_some());
        let long = "0".repeat(65);
        for wrong in
            ["", "00", &long[..63], &long, &format!("0x{}", &long[..64]), &format!("0x{}", &long[..62])]
        {
            assert!(Digest::from_hex(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn admin_allows_all_and_the_other_scopes_allow_themselves() {
        let allowed = |text: &str| {
            let scopes: Scopes = text.parse().expect("scopes");
            Scope::ALL.map(|scope| scopes.allow(scope))
        };
        assert_eq!(allowed("read"), [true, false, false]);
        assert_eq!(allowed("write"), [false, true, false]);
        assert_eq!(allowed("write,read"), [true, true, false]);
        assert_eq!(allowed("admin"), [true, true, true]);
        for wrong in ["", "reads", "read,", ",read", "read, write", "READ", "read;write"] {
            assert!(wrong.parse::<Scopes>().is_err(), "{wrong}");
        }
        let shown = "write,read".parse::<Scopes>().map(|scopes| scopes.to_string());
        assert_eq!(shown, Ok("read,write".to_owned()));
    }
}
