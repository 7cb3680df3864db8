//! Entity tags of users, and the conditions that clients set with them.

use actix_web::http::header::{EntityTag, HeaderValue};
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

/// Whether one of `tags` is `etag`, by weak comparison (RFC 9110, section 8.8.3.2).
#[must_use]
pub fn matches_any(tags: &[EntityTag], etag: &[u8; 16]) -> bool {
    let current = hex(etag);
    tags.iter().any(|tag| tag.tag().as_bytes() == current)
}

/// 128 bits as hexadecimal digits, without the formatting machinery.
fn hex(bits: &[u8; 16]) -> [u8; 32] {
    let mut digits = [b'0'; 32];
    const_hex::encode_to_slice(bits, &mut digits).unwrap_or_default();
    digits
}

/// What `If-Match` asks for.
///
/// RFC 9110 (section 13.1.1) asks for strong comparison, and our tags are weak: their opaque parts are compared. That
/// is sound here, since a tag covers name and info, which is all that a PUT replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// No condition, or `*`: that the user exists.
    Any,
    /// The user has one of these tags.
    Tags(Vec<EntityTag>),
}

impl IfMatch {
    /// Whether a user with the tag `current` meets the condition.
    #[must_use]
    pub fn holds(&self, current: &[u8; 16]) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => matches_any(tags, current),
        }
    }
}
