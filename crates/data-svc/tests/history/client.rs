//! A client with a connection that it keeps: as little as a recorder needs, since it shares two cores with all that it
//! watches. Unlike devstack's, it tells whether a request can have arrived, and survives that nobody listens.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any deadline of the services, on a machine however busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of a request.
pub enum Reply {
    /// It was answered.
    Answer(Answer),
    /// It was sent, or a part of it, and no answer came.
    Lost,
    /// Nobody listened.
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

/// A connection to wherever the service is at the moment.
#[derive(Default)]
pub struct Client {
    connection: Option<(SocketAddr, BufReader<TcpStream>)>,
    line: Vec<u8>,
}

impl Client {
    /// Sends a whole request to `address`, on the connection that is there or on a new one.
    pub fn ask(&mut self, address: SocketAddr, request: &str) -> Reply {
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

    /// Connects, so that a later request need not.
    pub fn open(&mut self, address: SocketAddr) {
        self.connection = self.take_connection(address).ok().map(|stream| (address, stream));
    }

    fn take_connection(&mut self, address: SocketAddr) -> Result<BufReader<TcpStream>> {
        if let Some((to, stream)) = self.connection.take()
            && to == address
        {
            return Ok(stream);
        }
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }

    /// Reads one answer, and whether the connection stays open.
    fn receive(&mut self, stream: &mut BufReader<TcpStream>) -> Result<(Answer, bool)> {
        let mut answer = Answer::default();
        let (mut length, mut keeps) = (0, true);
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
        // These have no body, whatever their length says.
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
