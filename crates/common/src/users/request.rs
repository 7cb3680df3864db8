//! Users as they are read from a request: bodies, the name in a path, and `If-Match`.

use actix_web::dev::Payload;
use actix_web::http::header::{self, Header as _};
use actix_web::{FromRequest, HttpRequest};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::etag::IfMatch;
use super::model::{Info, NewInfo, NewUser, UserName};
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
        let name = member(&mut errors, "#/name", raw.name, |text| UserName::parse(&text));
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

impl FromRequest for IfMatch {
    type Error = Error;
    type Future = std::future::Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let condition = match header::IfMatch::parse(request) {
            _ if !request.headers().contains_key(header::IF_MATCH) => Self::Any,
            Ok(header::IfMatch::Any) => Self::Any,
            Ok(header::IfMatch::Items(tags)) => Self::Tags(tags),
            // A header that cannot be read matches no tag. If it were ignored, another client's change could be lost.
            Err(_) => Self::Tags(Vec::new()),
        };
        std::future::ready(Ok(condition))
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
