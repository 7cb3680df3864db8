//! A JSON body as a handler takes it: read whole and valid, or not there at all.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use actix_web::rt::time::timeout;
use actix_web::web::BytesMut;
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use futures_util::StreamExt;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::connection::ClientConnection;
use crate::error::{Error, Invalid, MemberError};

/// The largest body: every valid name and info fit, however they are escaped.
pub const BODY_MAX_BYTES: usize = 128 * 1024;
/// How long a body may take to arrive: 128 KiB in 5 s is a slow mobile connection.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many bytes the bodies of all requests may have at once, from when they arrive until they are answered. The first
/// [`SMALL_BODY`] of each are not counted, so that a usual request is served while others fill this.
pub const BODIES_MAX_BYTES: usize = 32 << 20;
/// Most bodies are smaller.
const SMALL_BODY: usize = 4 * 1024;
const BYTE_ORDER_MARK: char = '\u{feff}';

/// A permit for each byte that is counted.
static MEMORY: Semaphore = Semaphore::const_new(BODIES_MAX_BYTES);

/// A JSON object in the body, read whole and valid.
#[derive(Debug)]
pub struct Body<T>(pub T);

/// What a request body can be read as.
pub trait FromBody: Sized {
    /// Reads the JSON object `text`.
    ///
    /// # Errors
    /// [`Error::MalformedBody`], or [`Error::InvalidMembers`] with every wrong member.
    fn from_body(text: &str) -> Result<Self, Error>;
}

impl<T: FromBody + 'static> FromRequest for Body<T> {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let length = check_headers(request.headers());
        let payload = payload.take();
        let request = request.clone();
        Box::pin(async move {
            let length = length?;
            let connection = request.conn_data::<Rc<ClientConnection>>();
            connection.inspect(|connection| connection.awaits_body.set(true));
            let collecting = timeout(BODY_TIMEOUT, collect(payload, length));
            let (bytes, memory) = collecting.await.map_err(|_| Error::BodyTimeout)??;
            connection.inspect(|connection| connection.awaits_body.set(false));
            // Until the answer: what was read of the body lives as long.
            request.extensions_mut().insert(memory);
            let text = std::str::from_utf8(&bytes)
                .map_err(|_| Error::MalformedBody("The body is not valid UTF-8.".into()))?;
            // A reader may ignore a byte order mark (RFC 8259, section 8.1), and some clients cannot help sending one.
            let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
            // serde reads an array as a struct whose members it holds in order; but an array is no object.
            if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
                return Err(Error::MalformedBody("The body must be a JSON object.".into()));
            }
            T::from_body(text).map(Self)
        })
    }
}

/// Returns the length of the body, if the headers say it (RFC 9112, section 6.3).
fn check_headers(headers: &HeaderMap) -> Result<Option<usize>, Error> {
    let essence = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = essence.map(|value| value.split(';').next().unwrap_or_default().trim());
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Err(Error::UnsupportedMediaType("The Content-Type must be application/json."));
    }
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Error::UnsupportedMediaType("A Content-Encoding is not supported."));
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        return Ok(None);
    }
    let length =
        headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    match usize::try_from(length.unwrap_or(0)) {
        Ok(length) if length <= BODY_MAX_BYTES => Ok(Some(length)),
        _ => Err(Error::BodyTooLarge),
    }
}

/// Reads a body of `length` bytes, or of as many as come, and takes memory for each as it arrives. For a request that
/// asks for an upgrade, actix-web's payload would go on with all that follows, and not end.
async fn collect(
    mut payload: Payload,
    length: Option<usize>,
) -> Result<(BytesMut, SemaphorePermit<'static>), Error> {
    let incomplete = || Error::MalformedBody("The body did not arrive whole.".into());
    let mut bytes = BytesMut::new();
    let mut memory = MEMORY.try_acquire_many(0).map_err(|_| Error::Overloaded)?;
    while length.is_none_or(|length| bytes.len() < length) {
        let Some(chunk) = payload.next().await else { break };
        let chunk = chunk.map_err(|_| incomplete())?;
        let rest = length.unwrap_or(BODY_MAX_BYTES + 1) - bytes.len();
        let counted = bytes.len().max(SMALL_BODY);
        bytes.extend_from_slice(&chunk[..chunk.len().min(rest)]);
        let more = u32::try_from(bytes.len().saturating_sub(counted)).unwrap_or(u32::MAX);
        memory.merge(MEMORY.try_acquire_many(more).map_err(|_| Error::Overloaded)?);
        if bytes.len() > BODY_MAX_BYTES {
            return Err(Error::BodyTooLarge);
        }
    }
    if length.is_some_and(|length| bytes.len() < length) {
        return Err(incomplete());
    }
    Ok((bytes, memory))
}

/// Reads the member `raw` of the body through `parse`. If it is wrong, adds why to `errors`, under `pointer`.
pub fn member<T>(
    errors: &mut Vec<MemberError>,
    pointer: &'static str,
    raw: Option<&RawValue>,
    parse: impl Fn(String) -> Result<T, Invalid>,
) -> Option<T> {
    let mut wrong = |detail: &'static str| {
        errors.push(MemberError { detail: detail.into(), pointer: Cow::Borrowed(pointer) });
        None
    };
    let Some(raw) = raw else { return wrong("must be there, and a string") };
    if !raw.get().starts_with('"') {
        return wrong("must be a string");
    }
    // The quotes are there and the escapes are well-formed, so only half of a surrogate pair can fail.
    let Ok(text) = serde_json::from_str(raw.get()) else {
        return wrong("must not hold a lone surrogate");
    };
    parse(text).map_or_else(|Invalid(detail)| wrong(detail), Some)
}
