//! HTTP requests as a client sends them, and bytes that no client would send. Each request has a connection of its own,
//! and paths are sent unchanged.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use serde_json::Value;
use ureq::Agent;
use ureq::http::Request;

/// How long any step of a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer whose body has been read to the end.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status, such as 200.
    pub status: u16,
    /// Names in lower case and their values, in the order of arrival.
    pub headers: Vec<(String, String)>,
    /// The body, without its transfer encoding.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of the first header with this name, in upper or lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text. Bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON. Panics with the answer if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }
}

/// Sends GET. Panics if no answer comes.
pub fn get(url: &str) -> Response {
    send("GET", url, &[], "")
}

/// Sends any request. An empty body is sent only with a method that expects one (POST, PUT, PATCH). Redirects are not
/// followed. Panics if no answer comes.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
    try_send(method, url, headers, body).unwrap_or_else(|error| panic!("{method} {url}: {error}"))
}

/// As [`send`], but returns an error if no answer comes: nothing listens, the connection is reset, or 10 s pass.
pub fn try_send(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Result<Response> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = body.as_ref();
    let bodiless = body.is_empty() && !matches!(method, "POST" | "PUT" | "PATCH");
    let answer = if bodiless {
        agent().run(request.body(()).map_err(Error::other)?)
    } else {
        agent().run(request.body(body).map_err(Error::other)?)
    };
    let (head, body) = answer.map_err(ureq::Error::into_io)?.into_parts();
    let text = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    let body = body.into_with_config().limit(u64::MAX).read_to_vec().map_err(ureq::Error::into_io)?;
    Ok(Response { status: head.status.as_u16(), headers, body })
}

fn agent() -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        // Ignore a proxy in the developer's environment.
        .proxy(None)
        .max_redirects(0)
        .max_idle_connections(0)
        .timeout_global(Some(TIMEOUT));
    config.build().new_agent()
}

/// Sends bytes on a new connection and reads one answer. Panics if none comes.
pub fn raw(address: impl ToSocketAddrs, bytes: impl AsRef<[u8]>) -> Response {
    let mut connection = Connection::open(address);
    connection.send(&bytes);
    connection
        .receive()
        .unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(bytes.as_ref())))
}

/// A connection to send any bytes on, in any portions, and to read answers from.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    head_only: bool,
}

impl Connection {
    /// Connects. Panics if nothing listens.
    pub fn open(address: impl ToSocketAddrs) -> Connection {
        let stream = TcpStream::connect(address).expect("a server listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("10 s is a valid time-out");
        stream.set_write_timeout(Some(TIMEOUT)).expect("10 s is a valid time-out");
        // Portions leave one by one, as they are sent.
        stream.set_nodelay(true).expect("the stream is open");
        Connection { stream: BufReader::new(stream), head_only: false }
    }

    /// Sends bytes. A closed connection is not an error yet, since the answer may have come before.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.head_only = bytes.as_ref().starts_with(b"HEAD ");
        let _ = self.stream.get_mut().write_all(bytes.as_ref());
    }

    /// Reads one answer. It has no body if the last bytes sent start with HEAD.
    /// Errors: the connection ends before or within the answer, or 10 s pass.
    pub fn receive(&mut self) -> Result<Response> {
        let start = self.line()?;
        let status = start.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status =
            status.ok_or_else(|| Error::new(ErrorKind::InvalidData, format!("no status line: {start:?}")))?;
        let headers = self.headers()?;
        let mut response = Response { status, headers, body: Vec::new() };
        response.body = self.body(&response)?;
        Ok(response)
    }

    /// Returns whether the other side closes or resets the connection before it sends anything more.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// Closes the connection by RST, as the kernel does when a client's process is killed.
    pub fn reset(self) {
        // Fails if the connection is closed already.
        let _ = set_socket_linger(self.stream.get_ref(), Some(Duration::ZERO));
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
    }

    fn headers(&mut self) -> Result<Vec<(String, String)>> {
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(headers);
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads the body, whose length follows RFC 9112, section 6.3.
    fn body(&mut self, head: &Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        if self.head_only || head.status < 200 || matches!(head.status, 204 | 304) {
            return Ok(body);
        }
        if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            loop {
                let line = self.line()?;
                let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
                let size =
                    size.map_err(|_| Error::new(ErrorKind::InvalidData, format!("no chunk size: {line:?}")))?;
                if size == 0 {
                    self.headers()?;
                    return Ok(body);
                }
                body.extend(self.exactly(size)?);
                self.line()?;
            }
        }
        match head.header("content-length").map(str::parse) {
            Some(Ok(size)) => self.exactly(size),
            Some(Err(_)) => Err(Error::new(ErrorKind::InvalidData, "no content length")),
            None => self.stream.read_to_end(&mut body).map(|_| body),
        }
    }

    fn exactly(&mut self, size: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
