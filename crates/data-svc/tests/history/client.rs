//! A client that keeps its connection. It does only what a recorder needs, since it shares two cores with all services
//! and stores. Unlike devstack's client, it returns whether a request can have arrived, and does not panic if no
//! service listens.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a step may take: longer than any deadline of the services, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What happened to a request.
pub enum Reply {
    /// It was answered.
    Answer(Answer),
    /// It was sent at least in part, and no answer arrived.
    Lost,
    /// No service listened.
    Unsent,
}

/// An answer.
#[derive(Default)]
pub struct Answer {
    pub status: u16,
    pub etag: String,
    pub cache_status: String,
    pub body: Vec<u8>,
}

/// A connection to a service, at the address that it has at the moment.
#[derive(Default)]
pub struct Client {
    connection: Option<(SocketAddr, BufReader<TcpStream>)>,
    line: Vec<u8>,
}

impl Client {
    /// Sends a whole request to `address`, on the open connection or on a new one, and reads the answer.
    pub fn send(&mut self, address: SocketAddr, request: &str) -> Reply {
        let Ok(mut stream) = self.take_connection(address) else { return Reply::Unsent };
        if stream.get_mut().write_all(request.as_bytes()).is_err() {
            return Reply::Lost;
        }
        match self.receive(&mut stream) {
            Ok((answer, keeps)) => {
                if keeps {
                    self.connection = Some((address, stream));
                }
                Reply::Answer(answer)
            }
            Err(_) => Reply::Lost,
        }
    }

    /// Connects in advance, so that the next request is sent at once.
    pub fn open(&mut self, address: SocketAddr) {
        self.connection = self.take_connection(address).ok().map(|stream| (address, stream));
    }

    fn take_connection(&mut self, address: SocketAddr) -> Result<BufReader<TcpStream>> {
        if let Some((to, stream)) = self.connection.take()
            && to == address
        {
            return Ok(stream);
        }
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }

    /// Reads one answer. Returns it, and whether the connection stays open.
    fn receive(&mut self, stream: &mut BufReader<TcpStream>) -> Result<(Answer, bool)> {
        let mut answer = Answer::default();
        let mut length = 0;
        let mut keeps = true;
        let status = self.line(stream)?.get(9..12).and_then(|digits| digits.parse().ok());
        answer.status = status.ok_or(ErrorKind::InvalidData)?;
        loop {
            let line = self.line(stream)?;
            let Some((name, value)) = line.split_once(':') else { break };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().map_err(Error::other)?,
                "etag" => value.clone_into(&mut answer.etag),
                "cache-status" => value.clone_into(&mut answer.cache_status),
                "connection" => keeps = !value.eq_ignore_ascii_case("close"),
                "transfer-encoding" => return Err(ErrorKind::Unsupported.into()),
                _ => {}
            }
        }
        // These have no body, whatever their Content-Length is.
        if !matches!(answer.status, 204 | 304) {
            answer.body.resize(length, 0);
            stream.read_exact(&mut answer.body)?;
        }
        Ok((answer, keeps))
    }

    fn line(&mut self, stream: &mut BufReader<TcpStream>) -> Result<&str> {
        self.line.clear();
        stream.read_until(b'\n', &mut self.line)?;
        if !self.line.ends_with(b"\r\n") {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        std::str::from_utf8(&self.line[..self.line.len() - 2]).map_err(Error::other)
    }
}
