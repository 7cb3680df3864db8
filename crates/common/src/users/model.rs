//! Users as they may exist: a value of [`UserName`] or [`Info`] is always valid.
//!
//! Both are checked where they enter (a request's body or path), and once more by the table's CHECKs.

use std::borrow::Cow;

use diesel::backend::Backend;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::pg::Pg;
use diesel::sql_types::Text;
use diesel::{Queryable, Selectable};
use serde::Serialize;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use utoipa::ToSchema;

use crate::database::schema::users;
use crate::error::Invalid;

/// The longest name, in bytes of UTF-8 after NFC.
pub const NAME_MAX_BYTES: usize = 128;
/// The longest info, in bytes of UTF-8.
pub const INFO_MAX_BYTES: usize = 16 * 1024;

/// A user's name: 1 to 128 bytes of UTF-8 in Unicode normal form C, compared exactly.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, FromSqlRow, Serialize, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$", example = "john_doe")]
pub struct UserName(String);

impl UserName {
    /// Converts `text` to NFC and checks it.
    ///
    /// # Errors
    /// [`Invalid`] for a name that is empty, too long, `.` or `..`, has white space at an end, or holds a control,
    /// format, private-use or unassigned code point. (Path segments `.` and `..` never reach a server as they were
    /// sent; invisible characters make two names look like one.)
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        // Most names are printable ASCII, which needs none of Unicode's tables.
        let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let name = if plain { Cow::Borrowed(text) } else { normal_form_c(text) };
        if name.is_empty() {
            return Err(Invalid("must not be empty"));
        }
        if name.len() > NAME_MAX_BYTES {
            return Err(Invalid("must be at most 128 bytes of UTF-8"));
        }
        if name == "." || name == ".." {
            return Err(Invalid("must not be \".\" or \"..\""));
        }
        if name.starts_with(char::is_whitespace) || name.ends_with(char::is_whitespace) {
            return Err(Invalid("must not start or end with white space"));
        }
        if !plain && name.chars().any(is_forbidden) {
            return Err(Invalid("must not hold control, format, private-use or unassigned characters"));
        }
        Ok(Self(name.into_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Not checked again: the table's CHECKs have seen it, and a row must stay readable by the key that it has.
impl FromSql<Text, Pg> for UserName {
    fn from_sql(bytes: <Pg as Backend>::RawValue<'_>) -> deserialize::Result<Self> {
        <String as FromSql<Text, Pg>>::from_sql(bytes).map(Self)
    }
}

/// Not checked again either.
impl FromSql<Text, Pg> for Info {
    fn from_sql(bytes: <Pg as Backend>::RawValue<'_>) -> deserialize::Result<Self> {
        <String as FromSql<Text, Pg>>::from_sql(bytes).map(Self)
    }
}

fn normal_form_c(text: &str) -> Cow<'_, str> {
    match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => Cow::Borrowed(text),
        IsNormalized::No | IsNormalized::Maybe => Cow::Owned(text.nfc().collect()),
    }
}

fn is_forbidden(c: char) -> bool {
    use GeneralCategory::{Control, Format, PrivateUse, Surrogate, Unassigned};
    matches!(c.general_category(), Control | Format | PrivateUse | Surrogate | Unassigned)
}

/// The info of a user: 1 byte to 16 KiB of UTF-8 without NUL (which Postgres cannot store).
#[derive(Debug, Clone, PartialEq, Eq, FromSqlRow, Serialize, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 16384, pattern = "^[^\\u0000]*$", example = "Likes long walks")]
pub struct Info(String);

impl Info {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] for a text that is empty, too long or holds NUL.
    pub fn parse(text: String) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Err(Invalid("must not be empty"));
        }
        if text.len() > INFO_MAX_BYTES {
            return Err(Invalid("must be at most 16384 bytes of UTF-8"));
        }
        if text.contains('\0') {
            return Err(Invalid("must not hold NUL"));
        }
        Ok(Self(text))
    }

    /// The info as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The body of a register: the user to be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NewUser {
    /// The name to register.
    pub name: UserName,
    /// The info to keep.
    pub info: Info,
}

/// The body of a replace: the info to be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NewInfo {
    /// The info to keep.
    pub info: Info,
}

/// A user as stored.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable, Serialize)]
#[diesel(table_name = users, check_for_backend(Pg))]
pub struct User {
    /// The name, the primary key.
    pub name: UserName,
    /// The info.
    pub info: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_in_normal_form_c() {
        let decomposed = UserName::parse("Jose\u{301}").expect("valid");
        assert_eq!(decomposed, UserName::parse("Jos\u{e9}").expect("valid"));
        assert_eq!(decomposed.as_str(), "Jos\u{e9}");
    }

    #[test]
    fn a_name_that_normalisation_makes_too_long_is_refused() {
        // U+0958 is excluded from composition: three bytes become six.
        let name = "\u{958}".repeat(42);
        assert_eq!(name.len(), 126);
        assert!(UserName::parse(&name).is_err());
    }

    #[test]
    fn a_name_of_128_bytes_is_accepted_and_one_of_129_is_not() {
        assert!(UserName::parse(&"x".repeat(128)).is_ok());
        assert!(UserName::parse(&"x".repeat(129)).is_err());
    }

    #[test]
    fn case_spaces_inside_slashes_and_single_emoji_are_fine() {
        for name in ["Ann", "ann", "Ann Lee", "a/b", "\u{1f600}", "...", "%41"] {
            assert_eq!(UserName::parse(name).map(|n| n.0), Ok(name.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_seen_or_typed_is_refused() {
        for name in [
            "",
            ".",
            "..",
            " a",
            "a ",
            "\u{a0}a",
            "a\nb",
            "a\0",
            "a\u{200d}b",
            "\u{feff}a",
            "\u{e000}",
            "\u{378}",
            "\u{10ffff}",
            "a\u{202e}b",
        ] {
            assert!(UserName::parse(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_info_is_1_byte_to_16_kib_without_nul() {
        assert!(Info::parse("x".repeat(INFO_MAX_BYTES)).is_ok());
        assert!(Info::parse("x".repeat(INFO_MAX_BYTES + 1)).is_err());
        assert!(Info::parse(String::new()).is_err());
        assert!(Info::parse("a\0b".into()).is_err());
    }
}
