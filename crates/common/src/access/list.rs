//! The token list: one line a token, `NAME sha256:HEX SCOPES [until=RFC3339] [rate=200/s]`.
//!
//! Several lines may have one name: a client's new token stands beside its old one until the client uses the new one.
//! No mistake quotes what is wrong, since that may be a token.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::rate::RateLimit;
use super::token::{Digest, Scopes};
use crate::error::Invalid;

/// The longest name of a client: it is part of log lines.
const NAME_MAX_BYTES: usize = 64;
/// The largest list that is read: room for a hundred thousand tokens.
const LIST_MAX_BYTES: u64 = 16 << 20;

/// What the list says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The client's name.
    pub name: Arc<str>,
    /// What the token allows.
    pub scopes: Scopes,
    /// From when on the token is not valid.
    pub until: Option<SystemTime>,
    /// The client's limit, if it is not the one of all.
    pub rate: Option<RateLimit>,
}

impl Entry {
    /// The line of the list for a token of this digest.
    #[must_use]
    pub fn line(&self, digest: Digest) -> String {
        let until = self.until.map(|until| format!(" until={}", humantime::format_rfc3339_seconds(until)));
        let until = until.unwrap_or_default();
        let rate = self.rate.map(|rate| format!(" rate={rate}")).unwrap_or_default();
        format!("{} sha256:{} {}{until}{rate}", self.name, digest.to_hex(), self.scopes)
    }
}

/// Takes the name of a client.
///
/// # Errors
/// Anything but 1 to 64 of `a-z0-9-_.`.
pub fn client_name(text: &str) -> Result<Arc<str>, Invalid> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    if (1..=NAME_MAX_BYTES).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.into())
    } else {
        Err(Invalid("must be 1 to 64 of a-z, 0-9, -, _ and ."))
    }
}

/// Every mistake in a list, each with the number of its line.
#[derive(Debug, PartialEq, Eq)]
pub struct ListError(pub Vec<String>);

impl Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// The tokens that are valid, by digest: at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenList(HashMap<Digest, Entry>);

impl TokenList {
    /// Reads all lines of `text`.
    ///
    /// # Errors
    /// Every mistake, not only the first. A list without a token is one too: more likely it was cut off than meant.
    pub fn parse(text: &str) -> Result<Self, ListError> {
        let mut entries = HashMap::new();
        let mut lines = HashMap::new();
        let mut rates = HashMap::new();
        let mut mistakes = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim_ascii();
            if line.is_empty() {
                continue;
            }
            let (digest, entry) = match read_line(line) {
                Ok(read) => read,
                Err(mistake) => {
                    mistakes.push(format!("line {number}: {mistake}"));
                    continue;
                }
            };
            // Its tokens share one budget.
            let (first, rate) = *rates.entry(entry.name.clone()).or_insert((number, entry.rate));
            if rate != entry.rate {
                mistakes.push(format!(
                    "line {number}: another rate= than in line {first}, which has the same name"
                ));
                continue;
            }
            match lines.entry(digest) {
                Place::Occupied(first) => {
                    mistakes.push(format!("line {number}: the same token as in line {}", first.get()));
                }
                Place::Vacant(place) => {
                    place.insert(number);
                    entries.insert(digest, entry);
                }
            }
        }
        if entries.is_empty() && mistakes.is_empty() {
            mistakes.push("holds no token".to_owned());
        }
        if mistakes.is_empty() { Ok(Self(entries)) } else { Err(ListError(mistakes)) }
    }

    /// The entry of the token with this digest.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Option<&Entry> {
        self.0.get(digest)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.values()
    }

    /// How many tokens there are.
    #[expect(clippy::len_without_is_empty, reason = "a list is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for TokenList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} tokens)", self.len())
    }
}

/// The text of the file at `path`.
///
/// # Errors
/// The file cannot be read, is too large or not UTF-8.
pub fn read_file(path: &Path) -> Result<String, String> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(LIST_MAX_BYTES + 1).read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    };
    let text = read().map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if text.len() as u64 > LIST_MAX_BYTES {
        return Err(format!("{} is larger than {} MiB", path.display(), LIST_MAX_BYTES >> 20));
    }
    Ok(text)
}

fn read_line(line: &str) -> Result<(Digest, Entry), String> {
    let mut fields = line.split_ascii_whitespace();
    let mut field = || fields.next().unwrap_or_default();
    let name = client_name(field()).map_err(|Invalid(what)| format!("the name {what}"))?;
    let digest = field().strip_prefix("sha256:").and_then(Digest::from_hex);
    let digest = digest.ok_or("the second field must be sha256: and 64 hexadecimal digits")?;
    let scopes = field().parse().map_err(|Invalid(what)| format!("the third field {what}"))?;
    let mut options = Options::default();
    for option in fields {
        options.read(option)?;
    }
    let Options { until, rate } = options;
    Ok((digest, Entry { name, scopes, until, rate }))
}

/// What may follow the scopes.
#[derive(Default)]
struct Options {
    until: Option<SystemTime>,
    rate: Option<RateLimit>,
}

impl Options {
    fn read(&mut self, option: &str) -> Result<(), String> {
        match option.split_once('=') {
            Some(("until", _)) if self.until.is_some() => Err("until= is given twice".to_owned()),
            Some(("until", time)) => {
                let time = humantime::parse_rfc3339(time);
                self.until = Some(time.map_err(|_| "until= must be a time such as 2027-01-31T00:00:00Z")?);
                Ok(())
            }
            Some(("rate", _)) if self.rate.is_some() => Err("rate= is given twice".to_owned()),
            Some(("rate", rate)) => {
                self.rate = Some(rate.parse().map_err(|Invalid(what)| format!("rate= {what}"))?);
                Ok(())
            }
            _ => Err("an option that is not known follows the scopes; there are until= and rate=".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::token::Scope;
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222222222222222222222222222";

    fn digest(hex: &str) -> Digest {
        Digest::from_hex(hex).expect("64 digits")
    }

    fn mistakes(text: &str) -> Vec<String> {
        TokenList::parse(text).expect_err("a mistake").0
    }

    #[test]
    fn a_list_holds_comments_blank_lines_and_tokens_with_their_options() {
        let text = format!(
            "# clients\r\n\r\n  billing  sha256:{ONE}\tread,write until=2027-01-31T00:00:00Z # old\r\n\
             billing sha256:{TWO} admin"
        );
        let list = TokenList::parse(&text).expect("a list");
        assert_eq!(list.len(), 2);
        let old = list.find(&digest(ONE)).expect("the first");
        assert_eq!((&*old.name, old.scopes.allow(Scope::Admin)), ("billing", false));
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_801_353_600);
        assert_eq!(old.until, Some(until));
        let new = list.find(&digest(TWO)).expect("the second");
        assert_eq!((&*new.name, new.scopes.allow(Scope::Read), new.until), ("billing", true, None));
        assert_eq!(list.find(&digest(&"3".repeat(64))), None);
    }

    #[test]
    fn the_line_of_an_entry_is_read_as_that_entry() {
        for line in [
            format!("a-b_c.9 sha256:{ONE} read,write"),
            format!("a sha256:{ONE} admin until=2027-01-31T00:00:00Z"),
            format!("a sha256:{ONE} admin until=2027-01-31T00:00:00Z rate=200/s,burst=400"),
            format!("a sha256:{ONE} admin rate=off"),
        ] {
            let list = TokenList::parse(&line).expect("a list");
            assert_eq!(list.find(&digest(ONE)).expect("it").line(digest(ONE)), line);
        }
    }

    #[test]
    fn every_mistake_is_named_with_its_line_and_none_is_quoted() {
        let secret = "ut_hunter2";
        let text = format!(
            "# comment\n\
             {secret}! sha256:{ONE} read\n\
             billing {secret} read\n\
             billing sha256:{} read\n\
             billing sha256:{ONE}\n\
             billing sha256:{ONE} {secret}\n\
             billing sha256:{ONE} read {secret}\n\
             billing sha256:{ONE} read rate={secret}\n\
             billing sha256:{ONE} read until={secret}\n\
             billing sha256:{ONE} read until=2027-01-31T00:00:00Z until=2027-01-31T00:00:00Z\n\
             billing sha256:{ONE} read rate=1/s rate=1/s\n\
             fine sha256:{TWO} read\n\
             billing",
            &ONE[1..]
        );
        let mistakes = mistakes(&text);
        let numbers: Vec<_> = mistakes.iter().filter_map(|text| text.split(':').next()).collect();
        let expected: Vec<_> = (2..=11).chain([13]).map(|number| format!("line {number}")).collect();
        assert_eq!(numbers, expected, "{mistakes:?}");
        let all = mistakes.join("\n");
        assert!(!all.contains("hunter2") && !all.contains("1111"), "{all}");
    }

    #[test]
    fn a_token_that_is_listed_twice_is_a_mistake_that_names_both_lines() {
        let text = format!("\na sha256:{} read\nb sha256:{} admin", "ab".repeat(32), "AB".repeat(32));
        assert_eq!(mistakes(&text), ["line 3: the same token as in line 2"]);
    }

    #[test]
    fn lines_of_one_name_have_one_rate() {
        let three = "3".repeat(64);
        for (first, second) in [("", " rate=1/s"), (" rate=1/s", ""), (" rate=1/s", " rate=off")] {
            let text =
                format!("a sha256:{ONE} read{first}\nb sha256:{TWO} read\na sha256:{three} read{second}");
            assert_eq!(mistakes(&text), ["line 3: another rate= than in line 1, which has the same name"]);
        }
        let text = format!("a sha256:{ONE} read rate=1/s\na sha256:{TWO} read rate=1/s,burst=10");
        assert!(TokenList::parse(&text).is_ok());
    }

    #[test]
    fn a_list_without_tokens_is_a_mistake() {
        for text in ["", "\n\n", "# all gone\n"] {
            assert_eq!(mistakes(text), ["holds no token"]);
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        let longest = "a".repeat(64);
        for name in ["a", "billing-2", "a.b_c", &longest] {
            assert_eq!(client_name(name).as_deref(), Ok(name));
        }
        let too_long = "a".repeat(65);
        for name in ["", "Billing", "a b", "é", "a/b", "a\n", "\u{661}", &too_long] {
            assert!(client_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_list_is_shown_without_its_digests() {
        let list = TokenList::parse(&format!("a sha256:{ONE} read")).expect("a list");
        assert_eq!(format!("{list:?}"), "(1 tokens)");
        assert!(!format!("{:?}", list.find(&digest(ONE))).contains("1111"));
    }

    #[test]
    fn a_file_that_is_too_large_or_not_text_is_not_read() {
        let error = read_file(Path::new("/dev/zero")).expect_err("endless");
        assert!(error.contains("larger than 16 MiB"), "{error}");
        let error = read_file(Path::new("/nowhere/tokens")).expect_err("not there");
        assert!(error.starts_with("cannot read /nowhere/tokens: "), "{error}");
    }
}
