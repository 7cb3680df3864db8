//! The users in the table, and requests for them. They differ only in a number, so that a request is made by writing
//! nine digits into prepared bytes, and in a replace also in the version of the new info.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

/// Digits of the number in a name such as `n000001234`.
const DIGITS: usize = 9;
/// The placeholder for the digits.
const BLANK: &str = "#########";
/// The placeholder for the digits of a version.
const VERSION: &str = "@@@@@@@@@";

/// The kinds of names, by their first letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// `n`: in the table from the start.
    Seeded,
    /// `b`: in the table from the start, with infos of 16 KiB and 1 KiB.
    Big,
    /// `u`: never in the table.
    Unknown,
    /// `r`: registered while the benchmark runs.
    Registered,
}

impl Series {
    fn letter(self) -> char {
        match self {
            Series::Seeded => 'n',
            Series::Big => 'b',
            Series::Unknown => 'u',
            Series::Registered => 'r',
        }
    }

    fn blank(self) -> String {
        format!("{}{BLANK}", self.letter())
    }

    /// The name with this number.
    pub fn name(self, number: u32) -> String {
        format!("{}{number:0DIGITS$}", self.letter())
    }
}

/// The info of a user: the name, padded with `x` to this many bytes.
pub fn info(name: &str, bytes: usize) -> String {
    format!("{name}{}", "x".repeat(bytes.saturating_sub(name.len())))
}

/// The info that a replace writes: the name and the version, padded as [`info`].
fn replaced(name: &str, version: u32, bytes: usize) -> String {
    info(&format!("{name}{version:0DIGITS$}"), bytes)
}

/// The version of a user's info: 0 as it was inserted, or what the replace that wrote it was given. `None` if it is
/// neither of this user.
pub fn version(name: &str, found: &str, bytes: usize) -> Option<u32> {
    if found == info(name, bytes) {
        return Some(0);
    }
    let version = found.get(name.len()..name.len() + DIGITS)?.parse().ok()?;
    (found == replaced(name, version, bytes)).then_some(version)
}

/// A version that no other replace of this process is given.
pub fn next_version() -> u32 {
    static VERSIONS: AtomicU32 = AtomicU32::new(1);
    VERSIONS.fetch_add(1, Ordering::Relaxed)
}

/// The statement that inserts users `numbers` of a series with infos of this size.
pub fn seed(series: Series, numbers: std::ops::Range<u32>, info_bytes: usize) -> String {
    let first = numbers.start;
    let last = i64::from(numbers.end) - 1;
    let letter = series.letter();
    format!(
        "INSERT INTO users (name, info) SELECT name, rpad(name, {info_bytes}, 'x') FROM \
         (SELECT '{letter}' || lpad(i::text, {DIGITS}, '0') AS name FROM generate_series({first}, {last}) i) names"
    )
}

/// A text with placeholders for a number and a version.
#[derive(Clone, Debug)]
struct Template {
    bytes: Vec<u8>,
    numbers: Vec<usize>,
    versions: Vec<usize>,
}

impl Template {
    fn new(text: &str) -> Template {
        let places = |blank| text.match_indices(blank).map(|(place, _)| place).collect();
        Template { bytes: text.into(), numbers: places(BLANK), versions: places(VERSION) }
    }

    /// The same with another header, after the first line.
    fn with_header(mut self, header: &str) -> Template {
        let at = self.bytes.windows(2).position(|pair| pair == b"\r\n").expect("a request has lines");
        let line = format!("\r\n{header}");
        self.bytes.splice(at..at, line.bytes());
        for place in self.numbers.iter_mut().chain(&mut self.versions).filter(|place| **place > at) {
            *place += line.len();
        }
        self
    }

    fn fill(&mut self, number: u32, version: u32) -> &[u8] {
        for (value, places) in [(number, &self.numbers), (version, &self.versions)] {
            let digits = digits(value);
            for &place in places {
                self.bytes[place..place + DIGITS].copy_from_slice(&digits);
            }
        }
        &self.bytes
    }
}

fn digits(number: u32) -> [u8; DIGITS] {
    let mut digits = [b'0'; DIGITS];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

/// What a right answer has for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// Anything.
    Any,
    /// The user with its first info.
    First,
    /// The user with its first info, or with one of the versions from this on.
    Since(u32),
    /// The user with the version that was sent.
    Sent,
}

/// What was found in the body of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Bodies of these requests are not checked.
    Unchecked,
    /// Not the user, or with an info that was never its own.
    Wrong,
    /// The user with this version.
    Right(u32),
}

/// What a request writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Nothing.
    Nothing,
    /// A new user.
    User,
    /// A new info of a user.
    Info,
}

/// Requests of one kind: the service, the bytes, and the expected answer.
#[derive(Clone, Debug)]
pub struct Requests {
    /// The service.
    pub to: SocketAddr,
    /// The status of a right answer.
    pub status: u16,
    /// What they write.
    pub writes: Writes,
    /// The names.
    pub series: Series,
    /// The size of the infos.
    pub info_bytes: usize,
    body: Body,
    template: Template,
}

impl Requests {
    /// `GET /user/{name}` of a series; unknown names expect 404.
    pub fn get(to: SocketAddr, series: Series, info_bytes: usize) -> Requests {
        let head = format!("GET /user/{} HTTP/1.1\r\nHost: {to}\r\n\r\n", series.blank());
        let (status, body) = if series == Series::Unknown { (404, Body::Any) } else { (200, Body::First) };
        let template = Template::new(&head);
        Requests { to, status, writes: Writes::Nothing, series, info_bytes, body, template }
    }

    /// `GET` of any path, whose answer's body is not checked.
    pub fn path(to: SocketAddr, path: &str) -> Requests {
        let template = Template::new(&format!("GET {path} HTTP/1.1\r\nHost: {to}\r\n\r\n"));
        Requests { template, ..Requests::get(to, Series::Seeded, 0).unchecked() }
    }

    /// `POST /register` of new names.
    pub fn register(to: SocketAddr, series: Series, info_bytes: usize) -> Requests {
        let name = series.blank();
        let body = format!(r#"{{"name":"{name}","info":"{}"}}"#, info(&name, info_bytes));
        let template = with_body(to, "POST /register", &body);
        Requests { to, status: 201, writes: Writes::User, series, info_bytes, body: Body::First, template }
    }

    /// `PUT /user/{name}` of seeded names, each with a version of its own.
    pub fn replace(to: SocketAddr, info_bytes: usize) -> Requests {
        let series = Series::Seeded;
        let name = series.blank();
        let body = format!(r#"{{"info":"{}"}}"#, info(&format!("{name}{VERSION}"), info_bytes));
        let template = with_body(to, &format!("PUT /user/{name}"), &body);
        Requests { to, status: 200, writes: Writes::Info, series, info_bytes, body: Body::Sent, template }
    }

    /// The same without checks of bodies: the ceiling returns the same body for all names.
    pub fn unchecked(self) -> Requests {
        Requests { body: Body::Any, ..self }
    }

    /// The same with a token.
    pub fn with_token(self, token: &str) -> Requests {
        Requests { template: self.template.with_header(&format!("Authorization: Bearer {token}")), ..self }
    }

    /// The same for users that replaces change from now on.
    pub fn beside_replaces(self) -> Requests {
        Requests { body: Body::Since(next_version()), ..self }
    }

    /// The bytes of the request for this number; a replace writes this version.
    pub fn bytes(&mut self, number: u32, version: u32) -> &[u8] {
        self.template.fill(number, version)
    }

    /// Whether they read users that replaces change meanwhile.
    pub fn are_beside_replaces(&self) -> bool {
        matches!(self.body, Body::Since(_))
    }

    /// Judges the body of the answer to the request with this number and version.
    pub fn verdict(&self, number: u32, sent: u32, body: &[u8]) -> Verdict {
        if self.body == Body::Any {
            return Verdict::Unchecked;
        }
        let name = self.series.name(number);
        let Ok(user) = serde_json::from_slice::<serde_json::Value>(body) else { return Verdict::Wrong };
        let found = user["info"].as_str().and_then(|info| version(&name, info, self.info_bytes));
        let fits = |version: &u32| match self.body {
            Body::Any => true,
            Body::First => *version == 0,
            Body::Since(first) => *version == 0 || *version >= first,
            Body::Sent => *version == sent,
        };
        match found.filter(fits) {
            Some(version) if user["name"] == name => Verdict::Right(version),
            _ => Verdict::Wrong,
        }
    }
}

/// A request with a JSON body.
fn with_body(to: SocketAddr, line: &str, body: &str) -> Template {
    let head = format!("{line} HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/json");
    Template::new(&format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_user_and_a_wrong_answer_is_noticed() {
        let mut requests = Requests::register(([127, 0, 0, 1], 1).into(), Series::Registered, 12);
        let text = String::from_utf8(requests.bytes(42, 0).to_vec()).expect("text");
        let body = r#"{"name":"r000000042","info":"r000000042xx"}"#;
        assert!(text.ends_with(&format!("Content-Length: {}\r\n\r\n{body}", body.len())), "{text}");
        assert_eq!(requests.verdict(42, 0, body.as_bytes()), Verdict::Right(0));
        assert_eq!(requests.verdict(43, 0, body.as_bytes()), Verdict::Wrong);
    }

    #[test]
    fn a_token_stands_among_the_headers_and_changes_nothing_else() {
        let to = ([127, 0, 0, 1], 1).into();
        let text = |mut requests: Requests| String::from_utf8(requests.bytes(42, 7).to_vec()).expect("text");
        let plain = text(Requests::replace(to, 22));
        let with = text(Requests::replace(to, 22).with_token("t"));
        assert_eq!(with.replace("Authorization: Bearer t\r\n", ""), plain);
        assert_ne!(with, plain);
    }

    #[test]
    fn a_replace_sends_a_version_and_another_one_is_noticed() {
        let to = ([127, 0, 0, 1], 1).into();
        let mut requests = Requests::replace(to, 22);
        let text = String::from_utf8(requests.bytes(42, 7).to_vec()).expect("text");
        let body = r#"{"info":"n000000042000000007xxx"}"#;
        assert!(text.starts_with("PUT /user/n000000042 HTTP/1.1\r\n"), "{text}");
        assert!(text.ends_with(&format!("Content-Length: {}\r\n\r\n{body}", body.len())), "{text}");
        let answer = br#"{"name":"n000000042","info":"n000000042000000007xxx"}"#;
        assert_eq!(requests.verdict(42, 7, answer), Verdict::Right(7));
        assert_eq!(requests.verdict(42, 8, answer), Verdict::Wrong);
        let get = Requests::get(to, Series::Seeded, 22);
        assert_eq!(get.verdict(42, 0, answer), Verdict::Wrong, "nobody replaces");
        let since = |version| Requests { body: Body::Since(version), ..get.clone() };
        assert_eq!(since(7).verdict(42, 0, answer), Verdict::Right(7));
        assert_eq!(since(8).verdict(42, 0, answer), Verdict::Wrong, "written in another round");
        assert_eq!(since(7).verdict(43, 0, answer), Verdict::Wrong, "of another user");
    }
}
