//! The budget of one client, and what is decided by it.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, MonotonicClock};
use governor::middleware::{StateInformationMiddleware, StateSnapshot};
use governor::state::{InMemoryState, NotKeyed};
use governor::{NotUntil, RateLimiter};

use super::rate::Rate;

/// How much is left of a client's budget.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// What the budget is.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Whether a request is within its client's budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is. The headers are to be sent, if there are any: they are two more of each answer, so they are left out
    /// while a quarter of the budget or more is left.
    Allowed(Option<RateHeaders>),
    /// It is not: 429, with these headers and `Retry-After`.
    Limited(RateHeaders),
}

/// What `RateLimit-Policy` and `RateLimit` say (draft-ietf-httpapi-ratelimit-headers-11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateHeaders {
    rate: Rate,
    remaining: u32,
    reset: u64,
}

impl RateHeaders {
    /// What the description of an API shows: nothing is left of this budget.
    #[must_use]
    pub const fn of_empty(rate: Rate) -> Self {
        Self { rate, remaining: 0, reset: 1 }
    }

    /// The value of `RateLimit-Policy`, such as `"default";q=400;w=2`: how many requests in how many seconds.
    #[must_use]
    pub fn policy(&self) -> String {
        format!("\"default\";q={};w={}", self.rate.burst(), self.rate.window())
    }

    /// The value of `RateLimit`, such as `"default";r=0;t=1`: how many requests are left, and in how many seconds there
    /// is one more.
    #[must_use]
    pub fn limit(&self) -> String {
        format!("\"default\";r={};t={}", self.remaining, self.reset)
    }

    /// Adds both headers to those of an answer.
    pub fn write(&self, headers: &mut HeaderMap) {
        for (name, value) in [(RATE_LIMIT, self.limit()), (RATE_LIMIT_POLICY, self.policy())] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }

    /// The value of `Retry-After`: in how many seconds there is one more, 1 at least.
    #[must_use]
    pub const fn retry_after(&self) -> u64 {
        self.reset
    }
}

/// The budget of one client.
#[derive(Debug)]
pub struct Limiter<C: Clock = MonotonicClock> {
    rate: Rate,
    budget: RateLimiter<NotKeyed, InMemoryState, C, StateInformationMiddleware>,
}

impl Limiter {
    /// A full budget.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self::with_clock(rate, MonotonicClock)
    }
}

impl<C: Clock> Limiter<C> {
    fn with_clock(rate: Rate, clock: C) -> Self {
        Self { rate, budget: RateLimiter::new(rate.quota(), InMemoryState::default(), clock) }
    }

    /// How it is refilled.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one request from the budget.
    #[must_use]
    pub fn check(&self) -> Decision {
        decide(self.rate, self.budget.check(), self.budget.clock())
    }
}

/// What governor's answer means for a client of this `rate`.
pub(super) fn decide<C: Clock>(
    rate: Rate,
    answer: Result<StateSnapshot, NotUntil<C::Instant>>,
    clock: &C,
) -> Decision {
    match answer {
        Ok(state) => {
            let remaining = state.remaining_burst_capacity();
            let is_short = u64::from(remaining) * 4 < u64::from(rate.burst());
            Decision::Allowed(is_short.then(|| RateHeaders { rate, remaining, reset: rate.interval() }))
        }
        Err(until) => {
            let wait = until.wait_time_from(clock.now());
            let reset = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            Decision::Limited(RateHeaders { rate, remaining: 0, reset: reset.max(1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;

    fn limiter(rate: &str) -> (Limiter<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Limiter::with_clock(rate.parse().expect("a rate"), clock.clone()), clock)
    }

    /// How many of `requests` are allowed now.
    fn allowed(limiter: &Limiter<FakeRelativeClock>, requests: usize) -> usize {
        (0..requests).filter(|_| matches!(limiter.check(), Decision::Allowed(_))).count()
    }

    #[test]
    fn exactly_the_burst_and_what_the_rate_adds_in_time_pass() {
        for (rate, burst, a_second) in [("200/s", 200, 200), ("50/s,burst=400", 400, 50), ("600/m", 10, 10)] {
            let (limiter, clock) = limiter(rate);
            assert_eq!(allowed(&limiter, 1_000), burst, "{rate}");
            let mut later = 0;
            for _ in 0..300 {
                clock.advance(Duration::from_millis(10));
                later += allowed(&limiter, 100);
            }
            assert_eq!(later, 3 * a_second, "{rate}");
        }
    }

    #[test]
    fn a_budget_that_is_not_used_is_filled_up_to_the_burst_and_no_further() {
        let (limiter, clock) = limiter("200/s,burst=400");
        assert_eq!(allowed(&limiter, 500), 400);
        clock.advance(Duration::from_secs(1));
        assert_eq!(allowed(&limiter, 500), 200);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(allowed(&limiter, 500), 400);
    }

    #[test]
    fn headers_are_sent_once_less_than_a_quarter_is_left() {
        let (limiter, _clock) = limiter("200/s,burst=400");
        for left in (0..400).rev() {
            let Decision::Allowed(headers) = limiter.check() else { panic!("limited at {left}") };
            assert_eq!(headers.is_some(), left < 100, "{left}");
            if let Some(headers) = headers {
                assert_eq!(headers.policy(), "\"default\";q=400;w=2");
                assert_eq!(headers.limit(), format!("\"default\";r={left};t=1"));
            }
        }
        let Decision::Limited(headers) = limiter.check() else { panic!("allowed") };
        assert_eq!(headers.policy(), "\"default\";q=400;w=2");
        assert_eq!(headers.limit(), "\"default\";r=0;t=1");
        assert_eq!(headers.retry_after(), 1);
    }

    #[test]
    fn a_client_that_returns_when_it_is_told_to_is_allowed() {
        let (limiter, clock) = limiter("7/m,burst=2");
        assert_eq!(allowed(&limiter, 3), 2);
        clock.advance(Duration::from_millis(1_300));
        let Decision::Limited(headers) = limiter.check() else { panic!("allowed") };
        // 8.57 s for each request, of which 1.3 s are over.
        assert_eq!(headers.retry_after(), 8);
        clock.advance(Duration::from_secs(headers.retry_after()));
        assert_eq!(allowed(&limiter, 2), 1);
    }
}
