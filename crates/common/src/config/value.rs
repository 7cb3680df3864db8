//! What the values of settings may be.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use url::Url;

/// The longest time-out that PostgreSQL accepts: its milliseconds are an `int`.
const DURATION_MAX: Duration = Duration::from_secs(24 * 24 * 60 * 60);

/// A whole number within `range`.
pub fn number<T: FromStr + PartialOrd + Display>(
    range: std::ops::RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> {
    move |value| {
        let number = value.parse().ok().filter(|n| range.contains(n));
        number.ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }
}

/// Whether each `%` is followed by two hexadecimal digits, and none is an escaped NUL.
pub fn escapes_are_whole(url: &str) -> bool {
    url.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits != b"00" && digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// A duration such as `50ms`, `2s` or `5m`, zero included.
pub fn duration(value: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(value)
        .map_err(|_| "must be a duration with its unit, such as 50ms, 2s or 5m".to_owned())?;
    if duration > DURATION_MAX { Err("must be at most 24days".to_owned()) } else { Ok(duration) }
}

/// A duration of at least a millisecond.
pub fn positive_duration(value: &str) -> Result<Duration, String> {
    duration(value)
        .and_then(|d| if d.as_millis() == 0 { Err("must be at least 1ms".to_owned()) } else { Ok(d) })
}

/// How long a look at the grant is valid: several looks long, so that one that is late does not end it, and no longer
/// than writes could ever wait.
pub fn grant_life(value: &str) -> Result<Duration, String> {
    let life = duration(value)?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(60);
    if allowed.contains(&life) { Ok(life) } else { Err("must be from 1s to 60s".to_owned()) }
}

/// One of `choices`.
pub fn one_of(choices: &'static [&'static str]) -> impl Fn(&str) -> Result<&'static str, String> {
    move |value| {
        let choice = choices.iter().find(|choice| **choice == value);
        choice.copied().ok_or_else(|| format!("must be one of: {}", choices.join(", ")))
    }
}

/// The URL of a Redis server, reached by TCP, TLS or a Unix socket. No error quotes it.
pub fn redis_url(value: &str) -> Result<Url, String> {
    const SCHEMES: [&str; 4] = ["redis", "rediss", "unix", "redis+unix"];
    let url = Url::parse(value).map_err(|_| "is not a URL".to_owned())?;
    if !SCHEMES.contains(&url.scheme()) {
        return Err("must start with redis://, rediss:// or unix://".to_owned());
    }
    if !escapes_are_whole(value) {
        return Err("holds a % that begins no escape; write %25 for the character itself".to_owned());
    }
    Ok(url)
}

/// An `http://` or `https://` URL to which a path can be added, without its trailing slash.
pub fn http_url(value: &str) -> Result<String, String> {
    let url = Url::parse(value).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.filter(|url| url.query().is_none() && url.fragment().is_none());
    url.map(|url| url.as_str().trim_end_matches('/').to_owned())
        .ok_or_else(|| "must be an http:// or https:// URL without ? and #".to_owned())
}

/// The path of `url`, which a proxy removes before it sends requests on; often nothing.
#[must_use]
pub fn path_prefix(url: &str) -> String {
    let url = Url::parse(url);
    url.map_or(String::new(), |url| url.path().trim_end_matches('/').to_owned())
}
