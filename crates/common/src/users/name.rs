//! Names: what a user can be found by, and the narrower rule for what a new user may be called.
//!
//! Most names are printable ASCII, which needs none of Unicode's tables.

use std::borrow::Cow;
use std::sync::LazyLock;

use diesel::backend::Backend;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::pg::Pg;
use diesel::sql_types::Text;
use idna_adapter::{Adapter, LEFT_OR_DUAL_JOINING_MASK, RIGHT_OR_DUAL_JOINING_MASK};
use regex::Regex;
use serde::Serialize;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use utoipa::ToSchema;

use super::emoji::has_emoji_style;
use crate::error::Invalid;

/// The longest name, in bytes of UTF-8 after NFC.
pub const NAME_MAX_BYTES: usize = 128;

const ZERO_WIDTH_NON_JOINER: char = '\u{200c}';
const ZERO_WIDTH_JOINER: char = '\u{200d}';
const EMOJI_STYLE: char = '\u{fe0f}';

/// What shows nothing, except the characters that have rules of their own: the joiners and U+FE0F.
static IGNORABLE: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"[\p{Default_Ignorable_Code_Point}--[\p{Join_Control}\x{FE0F}]]";
    Regex::new(pattern).expect("a valid pattern")
});

/// A user's name: 1 to 128 bytes of UTF-8 in Unicode normal form C, compared exactly.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, FromSqlRow, Serialize, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$", example = "john_doe")]
pub struct UserName(String);

impl UserName {
    /// Converts `text`, the name of a user that may be there, to NFC and checks it.
    ///
    /// # Errors
    /// [`Invalid`] for a name that is empty, too long, `.` or `..`, has white space at an end, or holds a control,
    /// format, private-use or unassigned code point. U+200C and U+200D are format characters that some scripts need,
    /// and are allowed where they are seen (RFC 5892, appendixes A.1 and A.2).
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let plain = is_plain(text);
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
        if !plain && has_unseen_joiner(&name) {
            return Err(Invalid("must hold U+200C and U+200D only where a script needs them"));
        }
        Ok(Self(name.into_owned()))
    }

    /// As [`UserName::parse`], but for a new user. A user that is there already may have a name that is refused here.
    ///
    /// # Errors
    /// [`Invalid`] also for a name that looks like another one or like none, and for one that another name may become
    /// on its way: a proxy that decodes a path removes segments that are empty, `.` or `..`.
    pub fn parse_new(text: &str) -> Result<Self, Invalid> {
        let name = Self::parse(text)?;
        if name.0.contains('/') && name.0.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(Invalid("must not hold a path segment that is empty, \".\" or \"..\""));
        }
        if is_plain(&name.0) {
            return Ok(name);
        }
        if IGNORABLE.is_match(&name.0) || name.0.chars().any(is_blank) {
            return Err(Invalid("must not hold invisible characters, or blanks other than the space U+0020"));
        }
        if has_style_without_emoji(&name.0) {
            return Err(Invalid("must hold U+FE0F only directly after a character that has an emoji style"));
        }
        Ok(name)
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

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

fn normal_form_c(text: &str) -> Cow<'_, str> {
    match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => Cow::Borrowed(text),
        IsNormalized::No | IsNormalized::Maybe => Cow::Owned(text.nfc().collect()),
    }
}

/// Control, format, private-use and unassigned characters. The joiners have a rule of their own.
fn is_forbidden(c: char) -> bool {
    use GeneralCategory::{Control, Format, PrivateUse, Surrogate, Unassigned};
    let category = c.general_category();
    matches!(category, Control | Format | PrivateUse | Surrogate | Unassigned) && !is_joiner(c)
}

/// What looks like a space or an end of a line, and is not U+0020. Unicode calls U+2800, the blank of Braille, a symbol.
fn is_blank(c: char) -> bool {
    use GeneralCategory::{LineSeparator, ParagraphSeparator, SpaceSeparator};
    let is_separator = matches!(c.general_category(), SpaceSeparator | LineSeparator | ParagraphSeparator);
    (is_separator && c != ' ') || c == '\u{2800}'
}

fn is_joiner(c: char) -> bool {
    matches!(c, ZERO_WIDTH_NON_JOINER | ZERO_WIDTH_JOINER)
}

/// Whether there is a joiner that does not change how its neighbours look.
fn has_unseen_joiner(name: &str) -> bool {
    let mut joiners = name.char_indices().filter(|(_, c)| is_joiner(*c));
    joiners.any(|(at, joiner)| {
        let (before, after) = (&name[..at], &name[at + joiner.len_utf8()..]);
        let follows_virama = before.chars().next_back().is_some_and(|c| Adapter::new().is_virama(c));
        !follows_virama && (joiner == ZERO_WIDTH_JOINER || !would_join(before, after))
    })
}

/// Whether the end of `before` and the start of `after` would be joined, as in cursive scripts. Marks between them do
/// not matter.
fn would_join(before: &str, after: &str) -> bool {
    let unicode = Adapter::new();
    let types = |c: char| unicode.joining_type(c);
    let left = before.chars().rev().map(types).find(|joining| !joining.is_transparent());
    let right = after.chars().map(types).find(|joining| !joining.is_transparent());
    left.is_some_and(|joining| joining.to_mask().intersects(LEFT_OR_DUAL_JOINING_MASK))
        && right.is_some_and(|joining| joining.to_mask().intersects(RIGHT_OR_DUAL_JOINING_MASK))
}

/// Whether U+FE0F follows something that has no emoji style.
fn has_style_without_emoji(name: &str) -> bool {
    let mut before = None;
    name.chars().any(|c| {
        let after = before.replace(c);
        c == EMOJI_STYLE && !after.is_some_and(has_emoji_style)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_found(name: &str) -> bool {
        UserName::parse(name).is_ok()
    }

    fn is_new(name: &str) -> bool {
        UserName::parse_new(name).is_ok()
    }

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
        assert!(!is_found(&name));
    }

    #[test]
    fn a_name_of_128_bytes_is_accepted_and_one_of_129_is_not() {
        assert!(is_new(&"x".repeat(128)));
        assert!(!is_found(&"x".repeat(129)));
    }

    #[test]
    fn case_spaces_inside_slashes_and_single_emoji_are_fine() {
        for name in ["Ann", "ann", "Ann Lee", "a/b", "\u{1f600}", "...", "a/...", "a/.b", "%41", "%2e%2e"] {
            assert_eq!(UserName::parse_new(name).map(|name| name.0), Ok(name.to_owned()));
        }
    }

    #[test]
    fn no_name_holds_what_cannot_be_typed() {
        for name in [
            "",
            ".",
            "..",
            " a",
            "a ",
            "\u{a0}a",
            "a\nb",
            "a\0",
            "\u{feff}a",
            "\u{e000}",
            "\u{378}",
            "\u{10ffff}",
            "a\u{202e}b",
            "a\u{200b}b",
            "a\u{ad}b",
        ] {
            assert!(!is_found(name) && !is_new(name), "{name:?}");
        }
    }

    #[test]
    fn a_new_name_holds_nothing_invisible_and_no_blank_but_the_space() {
        for name in [
            "\u{3164}",
            "a\u{3164}",
            "\u{ffa0}",
            "\u{115f}\u{1160}",
            "a\u{34f}b",
            "a\u{17b4}",
            "a\u{fe0e}",
            "a\u{e0100}",
            "a\u{180b}b",
            "a\u{2028}b",
            "a\u{2029}b",
            "a\u{a0}b",
            "a\u{2003}b",
            "a\u{3000}b",
            "\u{2800}",
            "a\u{2800}b",
        ] {
            assert!(!is_new(name), "{name:?}");
            assert!(is_found(name), "{name:?} may be there from earlier");
        }
    }

    #[test]
    fn an_emoji_style_follows_only_what_has_one() {
        for name in ["\u{2764}\u{fe0f}", "1\u{fe0f}\u{20e3}", "a \u{2600}\u{fe0f} b", "\u{26ce}\u{fe0f}"] {
            assert!(is_new(name), "{name:?}");
        }
        for name in
            ["\u{fe0f}", "a\u{fe0f}", "\u{2764}\u{fe0f}\u{fe0f}", "\u{1f600}\u{fe0f}", "\u{3042}\u{fe0f}"]
        {
            assert!(!is_new(name), "{name:?}");
        }
    }

    #[test]
    fn a_joiner_stands_only_where_a_script_needs_it() {
        for name in [
            // Persian: between letters that would join, with and without marks between them.
            "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
            "\u{628}\u{651}\u{200c}\u{650}\u{628}",
            // Sinhala and Hindi: after a virama.
            "\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
            "\u{915}\u{94d}\u{200d}\u{937}",
            "\u{915}\u{94d}\u{200c}\u{937}",
        ] {
            assert!(is_found(name) && is_new(name), "{name:?}");
        }
        for name in [
            "a\u{200d}b",
            "a\u{200c}b",
            "\u{200c}",
            "\u{200d}a",
            "a\u{200d}",
            // ZWJ between Persian letters, and ZWNJ after a letter that does not join to its left, and at the end.
            "\u{628}\u{200d}\u{628}",
            "\u{627}\u{200c}\u{628}",
            "\u{628}\u{200c}",
            // A second joiner, which changes nothing.
            "\u{915}\u{94d}\u{200d}\u{200d}\u{937}",
            // A family of joined emoji.
            "\u{1f468}\u{200d}\u{1f469}",
        ] {
            assert!(!is_found(name) && !is_new(name), "{name:?}");
        }
    }

    #[test]
    fn a_new_name_has_no_path_segment_that_a_proxy_removes() {
        for name in ["x/../y", "x/./y", "../y", "x/..", "./y", "/y", "x/", "x//y", "/"] {
            assert!(!is_new(name), "{name:?}");
            assert!(is_found(name), "{name:?} may be there from earlier");
        }
    }
}
