//! How much a client may ask for, as settings and the token list write it: `200/s`, `600/m`, `200/s,burst=400`, `off`.

use std::fmt::{self, Display};
use std::num::NonZeroU32;
use std::str::FromStr;

use governor::Quota;

use crate::error::Invalid;

/// The largest number in a rate: more than a process answers, and far from where governor's nanoseconds end.
const NUMBER_MAX: u32 = 1_000_000;
/// The least burst if none is given: a page that a browser opens asks for a few things at once.
const BURST_MIN: u32 = 10;

/// The limit of a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RateLimit {
    /// None.
    #[default]
    Off,
    /// This.
    To(Rate),
}

impl RateLimit {
    /// The rate, if there is one.
    #[must_use]
    pub const fn rate(self) -> Option<Rate> {
        match self {
            Self::Off => None,
            Self::To(rate) => Some(rate),
        }
    }
}

impl FromStr for RateLimit {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::To) }
    }
}

impl Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::To(rate) => rate.fmt(f),
        }
    }
}

/// So many requests a second or a minute, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU32,
    unit: Unit,
    burst: NonZeroU32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
}

impl Unit {
    const fn seconds(self) -> u32 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
        }
    }
}

impl Rate {
    /// How many requests may come at once.
    #[must_use]
    pub const fn burst(self) -> u32 {
        self.burst.get()
    }

    /// In how many seconds an empty budget is full again, rounded up.
    #[must_use]
    pub fn window(self) -> u64 {
        (u64::from(self.burst.get()) * u64::from(self.unit.seconds())).div_ceil(u64::from(self.count.get()))
    }

    /// In how many seconds one request more is allowed, rounded up.
    pub(super) const fn interval(self) -> u64 {
        self.unit.seconds().div_ceil(self.count.get()) as u64
    }

    pub(super) const fn quota(self) -> Quota {
        match self.unit {
            Unit::Second => Quota::per_second(self.count),
            Unit::Minute => Quota::per_minute(self.count),
        }
        .allow_burst(self.burst)
    }

    /// One second's worth, and ten at least.
    fn default_burst(count: NonZeroU32, unit: Unit) -> NonZeroU32 {
        let a_second = count.get() / unit.seconds();
        NonZeroU32::new(a_second.max(BURST_MIN)).unwrap_or(count)
    }
}

impl FromStr for Rate {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let read = || {
            let (rate, burst) =
                text.split_once(',').map_or((text, None), |(rate, burst)| (rate, Some(burst)));
            let (count, unit) = rate.split_once('/')?;
            let unit = match unit {
                "s" => Unit::Second,
                "m" => Unit::Minute,
                _ => return None,
            };
            let count = number(count)?;
            let burst = match burst {
                Some(burst) => number(burst.strip_prefix("burst=")?)?,
                None => Self::default_burst(count, unit),
            };
            Some(Self { count, unit, burst })
        };
        read().ok_or(Invalid(
            "must be off, or a rate such as 200/s, 600/m or 200/s,burst=400, of numbers from 1 to 1000000",
        ))
    }
}

impl Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, unit, burst } = *self;
        let letter = match unit {
            Unit::Second => 's',
            Unit::Minute => 'm',
        };
        write!(f, "{count}/{letter}")?;
        if burst != Self::default_burst(count, unit) {
            write!(f, ",burst={burst}")?;
        }
        Ok(())
    }
}

fn number(text: &str) -> Option<NonZeroU32> {
    // The parser of the standard library would also take a leading +.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number: &NonZeroU32| digits && number.get() <= NUMBER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_burst_of_its_own_or_of_one_second_and_ten_at_least() {
        // Text, burst, window, interval.
        let table = [
            ("200/s", 200, 1, 1),
            ("200/s,burst=400", 400, 2, 1),
            ("200/s,burst=1", 1, 1, 1),
            ("600/m", 10, 1, 1),
            ("6000/m", 100, 1, 1),
            ("7/s", 10, 2, 1),
            ("1/m", 10, 600, 60),
            ("7/m,burst=3", 3, 26, 9),
            ("1000000/s,burst=1000000", 1_000_000, 1, 1),
            ("1/m,burst=1000000", 1_000_000, 60_000_000, 60),
        ];
        for (text, burst, window, interval) in table {
            let rate: Rate = text.parse().expect(text);
            assert_eq!((rate.burst(), rate.window(), rate.interval()), (burst, window, interval), "{text}");
            assert_eq!(rate.quota().burst_size().get(), burst, "{text}");
        }
    }

    #[test]
    fn a_rate_is_written_as_it_is_read() {
        for text in ["off", "200/s", "600/m", "200/s,burst=400", "1/m,burst=1"] {
            let limit: RateLimit = text.parse().expect(text);
            assert_eq!(limit.to_string(), text);
        }
        let limit: RateLimit = "200/s,burst=200".parse().expect("a rate");
        assert_eq!(limit.to_string(), "200/s");
    }

    #[test]
    fn nothing_else_is_read_as_a_rate() {
        let wrong = [
            "",
            "on",
            "OFF",
            "200",
            "200/",
            "/s",
            "0/s",
            "-1/s",
            "+1/s",
            "1.5/s",
            "200/S",
            "200/h",
            "200 /s",
            "200/s ",
            "200/s,",
            "200/s,400",
            "200/s,burst=",
            "200/s,burst=0",
            "200/s,burst=+1",
            "200/s, burst=1",
            "200/s,burst=1,burst=1",
            "1000001/s",
            "1/s,burst=1000001",
            "99999999999/s",
            "\u{661}/s",
        ];
        for text in wrong {
            assert!(text.parse::<RateLimit>().is_err(), "{text}");
        }
    }
}
