//! Users as they are read from a request: bodies, the name in a path, and conditions.

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::etag::Conditions;
use super::model::{Info, NewInfo, NewUser};
use super::name::UserName;
use crate::error::{Error, Invalid};
use crate::http::{FromBody, member};

/// The members of a body, raw. Each is parsed by itself, so that every wrong one is named; and a member that we do not
/// know may hold anything.
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

impl FromBody for NewUser {
    fn from_body(text: &str) -> Result<Self, Error> {
        let raw = RawUser::read(text)?;
        let mut errors = Vec::new();
        let name = member(&mut errors, "#/name", raw.name, |text| UserName::parse_new(&text));
        let info = member(&mut errors, "#/info", raw.info, Info::parse);
        match (name, info) {
            (Some(name), Some(info)) => Ok(Self { name, info }),
            _ => Err(Error::InvalidMembers(errors)),
        }
    }
}

impl FromBody for NewInfo {
    fn from_body(text: &str) -> Result<Self, Error> {
        let raw = RawUser::read(text)?;
        let mut errors = Vec::new();
        let info = member(&mut errors, "#/info", raw.info, Info::parse);
        info.map(|info| Self { info }).ok_or(Error::InvalidMembers(errors))
    }
}

/// The name in `/user/{name}`.
///
/// It is decoded from the request target as it was sent: the router has already replaced bad UTF-8.
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

impl FromRequest for Conditions {
    type Error = Error;
    type Future = std::future::Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        std::future::ready(Ok(Self::of(request.headers())))
    }
}

/// A request without `If-Match`. At a path where nothing can be read no tag matches, and not even `*` (RFC 9110, section
/// 13.1.1); `If-None-Match` is met there.
#[derive(Debug)]
pub struct NoIfMatch;

impl FromRequest for NoIfMatch {
    type Error = Error;
    type Future = std::future::Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let refused = Conditions::of(request.headers()).if_match.is_some();
        std::future::ready(if refused { Err(Error::PreconditionFailed) } else { Ok(Self) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(body: &str) -> Vec<String> {
        match NewUser::from_body(body) {
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
        let user = NewUser::from_body(r#"{"x":{"name":[]},"name":"a","y":"\ud800","info":"i","x":1}"#);
        assert_eq!(user.expect("valid").name.as_str(), "a");
    }

    #[test]
    fn a_member_given_twice_is_refused() {
        for body in [r#"{"name":"a","name":"a","info":"i"}"#, r#"{"name":"a","info":"i","info":"j"}"#] {
            assert!(matches!(NewUser::from_body(body), Err(Error::MalformedBody(_))), "{body}");
        }
    }

    #[test]
    fn escapes_of_a_whole_pair_are_one_character() {
        let user = NewUser::from_body(r#"{"name":"\ud83d\ude00","info":"i"}"#).expect("valid");
        assert_eq!(user.name.as_str(), "\u{1f600}");
    }
}
