//! Entity tags of users, and the conditions that clients set with them.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use sha2::{Digest, Sha256};

/// The opaque part of a user's entity tag: 128 bits of SHA-256 over name and info.
#[must_use]
pub fn etag(name: &str, info: &str) -> [u8; 16] {
    // Neither name nor info can hold NUL, so no other pair has the same bytes.
    let digest = Sha256::new().chain_update(name).chain_update([0]).chain_update(info).finalize();
    let mut etag = [0; 16];
    etag.copy_from_slice(&digest[..16]);
    etag
}

/// The entity tag as a header value. It is weak, since the body also has `cache_hit`, which the tag does not cover.
#[must_use]
pub fn entity_tag(etag: &[u8; 16]) -> HeaderValue {
    let mut text = *br#"W/"00000000000000000000000000000000""#;
    text[3..35].copy_from_slice(&hex(etag));
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("*"))
}

/// 128 bits as hexadecimal digits, without the formatting machinery.
fn hex(bits: &[u8; 16]) -> [u8; 32] {
    let mut digits = [b'0'; 32];
    const_hex::encode_to_slice(bits, &mut digits).unwrap_or_default();
    digits
}

/// What a request asks of the user as it is now (RFC 9110, section 13).
///
/// `If-Match` asks for strong comparison, and our tags are weak: their opaque parts are compared. That is sound here,
/// since a tag covers name and info, which is all that a PUT replaces. The conditions on dates are ignored: a user has no
/// modification date that clients see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `If-Match`: the user has one of these tags.
    pub if_match: Option<Tags>,
    /// `If-None-Match`: the user has none of them.
    pub if_none_match: Option<Tags>,
}

/// The value of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any tag.
    Any,
    /// Those with these opaque parts.
    These(Vec<String>),
    /// What cannot be read.
    Unreadable,
}

impl Conditions {
    /// The conditions in `headers`.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        Self { if_match: Tags::of(headers, IF_MATCH), if_none_match: Tags::of(headers, IF_NONE_MATCH) }
    }

    /// Whether a user with the tag `current` may be changed. A condition that cannot be read is not met: if it were
    /// ignored, another client's change could be lost.
    #[must_use]
    pub fn hold(&self, current: &[u8; 16]) -> bool {
        let is_other = |tags: &Tags| *tags != Tags::Unreadable && !tags.name(current);
        self.allow_reading(current) && self.if_none_match.as_ref().is_none_or(is_other)
    }

    /// Whether a user with the tag `current` may be read. `If-None-Match` does not forbid that.
    #[must_use]
    pub fn allow_reading(&self, current: &[u8; 16]) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.name(current))
    }

    /// Whether the client has a copy of the user with the tag `current`.
    #[must_use]
    pub fn client_has(&self, current: &[u8; 16]) -> bool {
        self.if_none_match.as_ref().is_some_and(|tags| tags.name(current))
    }
}

impl Tags {
    fn of(headers: &HeaderMap, condition: HeaderName) -> Option<Self> {
        if !headers.contains_key(&condition) {
            return None;
        }
        let mut lines = headers.get_all(condition);
        if lines.len() == 1 && lines.clone().all(|line| line.as_bytes().trim_ascii() == b"*") {
            return Some(Self::Any);
        }
        let mut parts = Vec::new();
        let is_read =
            lines.all(|line| line.to_str().is_ok_and(|list| read_parts(list, &mut parts).is_some()));
        Some(if is_read && !parts.is_empty() { Self::These(parts) } else { Self::Unreadable })
    }

    /// Whether one of them is `current`, by weak comparison (RFC 9110, section 8.8.3.2).
    fn name(&self, current: &[u8; 16]) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => {
                let current = hex(current);
                tags.iter().any(|tag| tag.as_bytes() == current)
            }
            Self::Unreadable => false,
        }
    }
}

/// Adds the opaque parts of a list of entity tags to `parts`; returns none if it is no such list (RFC 9110, sections
/// 5.6.1 and 8.8.3). A part may hold commas. (actix-web's own reader leaves out what it cannot read.)
fn read_parts(mut list: &str, parts: &mut Vec<String>) -> Option<()> {
    loop {
        list = list.trim_start_matches([' ', '\t', ',']);
        if list.is_empty() {
            return Some(());
        }
        let quoted = list.strip_prefix("W/").unwrap_or(list).strip_prefix('"')?;
        let (part, rest) = quoted.split_once('"')?;
        parts.push(part.to_owned());
        list = rest.trim_start_matches([' ', '\t']);
        if !list.is_empty() && !list.starts_with(',') {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tags_is_read_whole_or_not_at_all() {
        let read = |list: &'static str| {
            let mut headers = HeaderMap::new();
            headers.append(IF_MATCH, HeaderValue::from_static(list));
            match Tags::of(&headers, IF_MATCH) {
                Some(Tags::These(parts)) => Some(parts.join("|")),
                _ => None,
            }
        };
        for (list, parts) in [
            (r#""a""#, "a"),
            (r#"W/"a" ,"b,c",,"#, "a|b,c"),
            (r#", "", W/"x y""#, "|x y"),
            ("\"a\",\t\"b\"", "a|b"),
        ] {
            assert_eq!(read(list).as_deref(), Some(parts), "{list}");
        }
        for list in ["", ",", "a", r#""a"#, r#""a" "b""#, r#"w/"a""#, r#""a", *"#, r#"W/a"#, r#""a"b"#] {
            assert_eq!(read(list), None, "{list}");
        }
    }

    #[test]
    fn a_condition_in_several_lines_is_one_list_and_any_stands_alone() {
        let read = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            lines.iter().for_each(|line| headers.append(IF_MATCH, HeaderValue::from_static(line)));
            Tags::of(&headers, IF_MATCH)
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[" * "]), Some(Tags::Any));
        assert_eq!(read(&[r#""a""#, r#"W/"b""#]), Some(Tags::These(vec!["a".into(), "b".into()])));
        assert_eq!(read(&["*", r#""a""#]), Some(Tags::Unreadable));
    }
}
