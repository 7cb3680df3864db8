//! Just enough of HTTP/1.1 to find where an answer ends.

use memchr::memmem;

/// An answer that has arrived completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: &'a [u8],
}

/// The bytes are no HTTP, or a body without a length.
#[derive(Debug, PartialEq, Eq)]
pub struct Strange;

/// Parses the answer at the start of `bytes`. `None` while some of it is missing.
///
/// # Errors
/// [`Strange`].
pub fn parse(bytes: &[u8]) -> Result<Option<Answer<'_>>, Strange> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let digits = bytes.get(9..12).ok_or(Strange)?;
    let status = digits
        .iter()
        .try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u16::from(digit - b'0')))
        .ok_or(Strange)?;
    let body = end + 4;
    let length = length(&bytes[..end]).ok_or(Strange)?;
    Ok(bytes.get(body..body + length).map(|body| Answer { status, body }))
}

fn length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\ncontent-length:";
    let lines = memchr::memchr_iter(b'\n', head);
    let line = lines
        .map(|start| &head[start..])
        .find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))?;
    let digits = line[NAME.len()..].trim_ascii_start();
    Some(
        digits
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_parsed_once_its_last_byte_is_there() {
        let whole = b"HTTP/1.1 201 Created\r\nETag: x\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(parse(whole), Ok(Some(Answer { status: 201, body: b"hello" })));
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn a_body_without_a_length_is_strange() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(Strange));
    }
}
