//! What handlers take from a request: a JSON body and a name in the path, valid or not there at all.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::{self, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, Header as _, HeaderMap};
use actix_web::rt::time::timeout;
use actix_web::web::BytesMut;
use actix_web::{FromRequest, HttpRequest};
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, MemberError};
use crate::models::{Info, Invalid, NewInfo, NewUser, UserName};
use crate::users::IfMatch;

/// The largest body: every valid pair fits, however it is escaped.
pub const BODY_MAX_BYTES: usize = 128 * 1024;
/// How long a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A JSON object in the body, read whole and valid.
#[derive(Debug)]
pub struct Body<T>(pub T);

/// What a request body can be read as.
pub trait FromObject: Sized {
    /// Reads the JSON object `text`.
    ///
    /// # Errors
    /// [`Error::MalformedBody`], or [`Error::InvalidMembers`] with every wrong member.
    fn from_object(text: &str) -> Result<Self, Error>;
}

impl<T: FromObject + 'static> FromRequest for Body<T> {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let accepted = check_headers(request.headers());
        let payload = payload.take();
        Box::pin(async move {
            accepted?;
            let bytes = timeout(BODY_TIMEOUT, collect(payload)).await.map_err(|_| Error::BodyTimeout)??;
            let text = std::str::from_utf8(&bytes)
                .map_err(|_| Error::MalformedBody("The body is not valid UTF-8.".into()))?;
            // serde takes an array for a struct whose members it holds in order: an array is not an object.
            if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
                return Err(Error::MalformedBody("The body must be a JSON object.".into()));
            }
            T::from_object(text).map(Self)
        })
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), Error> {
    let essence = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = essence.map(|value| value.split(';').next().unwrap_or_default().trim());
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Err(Error::UnsupportedMediaType("The Content-Type must be application/json."));
    }
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Error::UnsupportedMediaType("A Content-Encoding is not supported."));
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY_MAX_BYTES as u64) {
        return Err(Error::BodyTooLarge);
    }
    Ok(())
}

async fn collect(mut payload: Payload) -> Result<BytesMut, Error> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Error::MalformedBody("The body did not arrive whole.".into()))?;
        if bytes.len() + chunk.len() > BODY_MAX_BYTES {
            return Err(Error::BodyTooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Members are looked at one by one, so that every wrong one is named; raw, since a member that we do not know may
/// hold anything.
#[derive(Deserialize)]
struct RawUser<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
}

impl<'a> RawUser<'a> {
    fn read(text: &'a str) -> Result<Self, Error> {
        serde_json::from_str(text)
            .map_err(|error| Error::MalformedBody(format!("The body cannot be read: {error}.")))
    }
}

impl FromObject for NewUser {
    fn from_object(text: &str) -> Result<Self, Error> {
        let raw = RawUser::read(text)?;
        let mut errors = Vec::new();
        let name = member(&mut errors, "#/name", raw.name, |text| UserName::parse(&text));
        let info = member(&mut errors, "#/info", raw.info, Info::parse);
        match (name, info) {
            (Some(name), Some(info)) => Ok(Self { name, info }),
            _ => Err(Error::InvalidMembers(errors)),
        }
    }
}

impl FromObject for NewInfo {
    fn from_object(text: &str) -> Result<Self, Error> {
        let raw = RawUser::read(text)?;
        let mut errors = Vec::new();
        let info = member(&mut errors, "#/info", raw.info, Info::parse);
        info.map(|info| Self { info }).ok_or(Error::InvalidMembers(errors))
    }
}

fn member<T>(
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
    // The quotes are there and the escapes are well-formed: what is left to fail is half of a surrogate pair.
    let Ok(text) = serde_json::from_str(raw.get()) else {
        return wrong("must not hold a lone surrogate");
    };
    parse(text).map_or_else(|Invalid(detail)| wrong(detail), Some)
}

/// The name in `/user/{name}`.
///
/// It is decoded from the request target as it was sent: what the router hands out has replaced bad UTF-8 already.
#[derive(Debug)]
pub struct PathName(pub UserName);

impl FromRequest for PathName {
    type Error = Error;
    type Future = std::future::Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let segment = request.uri().path().rsplit('/').next().unwrap_or_default();
        let name = match percent_decode_str(segment).decode_utf8() {
            Ok(text) => UserName::parse(&text).map_err(|Invalid(what)| Error::InvalidName(what)),
            Err(_) => Err(Error::InvalidName("is not valid UTF-8")),
        };
        std::future::ready(name.map(Self))
    }
}

impl FromRequest for IfMatch {
    type Error = Error;
    type Future = std::future::Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let condition = match header::IfMatch::parse(request) {
            _ if !request.headers().contains_key(header::IF_MATCH) => Self::Any,
            Ok(header::IfMatch::Any) => Self::Any,
            Ok(header::IfMatch::Items(tags)) => Self::Tags(tags),
            // What cannot be read is no tag of ours: to ignore it would be to lose another's change.
            Err(_) => Self::Tags(Vec::new()),
        };
        std::future::ready(Ok(condition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(body: &str) -> Vec<String> {
        match NewUser::from_object(body) {
            Err(Error::InvalidMembers(errors)) => {
                errors.into_iter().map(|e| e.pointer.into_owned()).collect()
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn every_wrong_member_is_named() {
        assert_eq!(pointers("{}"), ["#/name", "#/info"]);
        assert_eq!(pointers(r#"{"name":1,"info":null}"#), ["#/name", "#/info"]);
        assert_eq!(pointers(r#"{"name":"a","info":"\ud800"}"#), ["#/info"]);
        assert_eq!(pointers(r#"{"name":"a\u0000","info":"i"}"#), ["#/name"]);
    }

    #[test]
    fn unknown_members_are_ignored_whatever_they_hold() {
        let user = NewUser::from_object(r#"{"x":{"name":[]},"name":"a","y":"\ud800","info":"i","x":1}"#);
        assert_eq!(user.expect("valid").name.as_str(), "a");
    }

    #[test]
    fn a_member_given_twice_is_refused() {
        for body in [r#"{"name":"a","name":"a","info":"i"}"#, r#"{"name":"a","info":"i","info":"j"}"#] {
            assert!(matches!(NewUser::from_object(body), Err(Error::MalformedBody(_))), "{body}");
        }
    }

    #[test]
    fn escapes_of_a_whole_pair_are_one_character() {
        let user = NewUser::from_object(r#"{"name":"\ud83d\ude00","info":"i"}"#).expect("valid");
        assert_eq!(user.name.as_str(), "\u{1f600}");
    }
}
