//! Users as they may exist: a value of [`UserName`] or [`Info`] is always valid.
//!
//! Both are checked where they enter (a request's body or path), and once more by the table's CHECKs.

use diesel::backend::Backend;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::pg::Pg;
use diesel::sql_types::Text;
use serde::Serialize;
use utoipa::ToSchema;

use super::name::UserName;
use crate::error::Invalid;

/// The longest info, in bytes of UTF-8.
pub const INFO_MAX_BYTES: usize = 16 * 1024;

/// Not checked again: the table's CHECKs have seen it.
impl FromSql<Text, Pg> for Info {
    fn from_sql(bytes: <Pg as Backend>::RawValue<'_>) -> deserialize::Result<Self> {
        <String as FromSql<Text, Pg>>::from_sql(bytes).map(Self)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_info_is_1_byte_to_16_kib_without_nul() {
        assert!(Info::parse("x".repeat(INFO_MAX_BYTES)).is_ok());
        assert!(Info::parse("x".repeat(INFO_MAX_BYTES + 1)).is_err());
        assert!(Info::parse(String::new()).is_err());
        assert!(Info::parse("a\0b".into()).is_err());
    }
}
