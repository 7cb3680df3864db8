//! The users in the table, and requests for them. They differ only in a number, so that a request is made by writing
//! nine digits into prepared bytes.

use std::net::SocketAddr;

/// Digits of the number in a name such as `n000001234`.
const DIGITS: usize = 9;
/// The placeholder for the digits.
const BLANK: &str = "#########";

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

/// A text with placeholders for a number.
#[derive(Clone, Debug)]
struct Template {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Template {
    fn new(text: &str) -> Template {
        Template { bytes: text.into(), places: text.match_indices(BLANK).map(|(place, _)| place).collect() }
    }

    fn fill(&mut self, number: u32) -> &[u8] {
        let mut digits = [b'0'; DIGITS];
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        for &place in &self.places {
            self.bytes[place..place + DIGITS].copy_from_slice(&digits);
        }
        &self.bytes
    }
}

/// Requests of one kind: the service, the bytes, and the expected answer.
#[derive(Clone, Debug)]
pub struct Requests {
    /// The service.
    pub to: SocketAddr,
    /// The status of a right answer.
    pub status: u16,
    series: Series,
    info_bytes: usize,
    checked: bool,
    template: Template,
}

impl Requests {
    /// `GET /user/{name}` of a series; unknown names expect 404.
    pub fn get(to: SocketAddr, series: Series, info_bytes: usize) -> Requests {
        let head = format!("GET /user/{} HTTP/1.1\r\nHost: {to}\r\n\r\n", series.blank());
        let status = if series == Series::Unknown { 404 } else { 200 };
        Requests { to, status, series, info_bytes, checked: status == 200, template: Template::new(&head) }
    }

    /// `GET` of any path, whose answer's body is not checked.
    pub fn path(to: SocketAddr, path: &str) -> Requests {
        let template = Template::new(&format!("GET {path} HTTP/1.1\r\nHost: {to}\r\n\r\n"));
        Requests { to, status: 200, series: Series::Seeded, info_bytes: 0, checked: false, template }
    }

    /// `POST /register` of new names.
    pub fn register(to: SocketAddr, info_bytes: usize) -> Requests {
        let series = Series::Registered;
        let name = series.blank();
        let body = format!(r#"{{"name":"{name}","info":"{}"}}"#, info(&name, info_bytes));
        let head = format!(
            "POST /register HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/json\r\nContent-Length: {}",
            body.len()
        );
        let template = Template::new(&format!("{head}\r\n\r\n{body}"));
        Requests { to, status: 201, series, info_bytes, checked: true, template }
    }

    /// The same without checks of bodies: the ceiling returns the same body for all names.
    pub fn unchecked(self) -> Requests {
        Requests { checked: false, ..self }
    }

    /// The bytes of the request for this number.
    pub fn bytes(&mut self, number: u32) -> &[u8] {
        self.template.fill(number)
    }

    /// Returns whether `body` is the right one for this number's request. `None` if bodies are not checked.
    pub fn is_right(&self, number: u32, body: &[u8]) -> Option<bool> {
        if !self.checked {
            return None;
        }
        let name = self.series.name(number);
        let Ok(user) = serde_json::from_slice::<serde_json::Value>(body) else { return Some(false) };
        Some(user["name"] == name && user["info"] == info(&name, self.info_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_user_and_a_wrong_answer_is_noticed() {
        let mut requests = Requests::register(([127, 0, 0, 1], 1).into(), 12);
        let text = String::from_utf8(requests.bytes(42).to_vec()).expect("text");
        let body = r#"{"name":"r000000042","info":"r000000042xx"}"#;
        assert!(text.ends_with(&format!("Content-Length: {}\r\n\r\n{body}", body.len())), "{text}");
        assert_eq!(requests.is_right(42, body.as_bytes()), Some(true));
        assert_eq!(requests.is_right(43, body.as_bytes()), Some(false));
    }
}
