//! How much: whose budget a request takes from.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::HeaderMap;
use governor::clock::{Clock, MonotonicClock};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::addresses::Addresses;
use super::forwarded::{Cidr, client_address};
use super::limiter::Decision;
use super::rate::RateLimit;
use super::{Checked, Refusal, Refused};
use crate::config::RateSettings;

/// How long the budget of an address is kept at most after it is full again.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How long there is no sweep after one, however many addresses come: each looks at all that are known.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// The budgets of a service's clients, but for those of tokens, which [`Principal`](super::Principal) holds.
///
/// [`Access::check`](super::Access::check) comes first, then [`check`](Self::check). So the memo or the list has judged
/// the token before any budget is looked at:
///
/// 1. The token is valid: the request takes one from its client's budget, whether its scope is enough or not. Nothing
///    that others do, from the same address or not, can have an effect on it.
/// 2. The token is not valid, or there are two: the request takes one from its address's budget of `AUTH_FAILURES`, and
///    then as in 3.
/// 3. There is no token, or none is needed: the request takes one from its address's budget of `RATE_LIMIT`.
///
/// A request without a token is no failure: some clients send each request without one first, to be asked for it.
#[derive(Debug)]
pub struct Limits<C: Clock = MonotonicClock> {
    anonymous: Option<Addresses<C>>,
    failures: Option<Addresses<C>>,
    trusted_proxies: Vec<Cidr>,
    full: Arc<Notify>,
}

impl Limits {
    /// Full budgets for all.
    #[must_use]
    pub fn new(settings: &RateSettings) -> Self {
        Self::with_clock(settings, MonotonicClock)
    }
}

impl<C: Clock + Clone> Limits<C> {
    fn with_clock(settings: &RateSettings, clock: C) -> Self {
        let full = Arc::new(Notify::new());
        let addresses = |limit| match limit {
            RateLimit::Off => None,
            RateLimit::To(rate) => Some(Addresses::new(rate, clock.clone(), full.clone())),
        };
        Self {
            anonymous: addresses(settings.limit),
            failures: addresses(settings.failures),
            trusted_proxies: settings.trusted_proxies.clone(),
            full: full.clone(),
        }
    }

    /// Takes a request from the budget of its client. `checked` is what [`Access::check`](super::Access::check) says of
    /// it, and `Ok(None)` in a service that asks nobody. `address`, which is [`client_address`](Self::client_address),
    /// is called only if it matters.
    ///
    /// A refusal comes after this: a request that is limited gets 429, and not 401 or 403. Health routes are not to be
    /// limited.
    #[must_use]
    pub fn check(&self, checked: &Checked, address: impl FnOnce() -> IpAddr) -> Decision {
        let failures = match checked {
            Ok(Some(client)) | Err(Refused { client: Some(client), .. }) => return client.take(),
            Err(Refused { why: Refusal::InvalidToken | Refusal::TwoCredentials, .. }) => {
                self.failures.as_ref()
            }
            _ => None,
        };
        let anonymous = self.anonymous.as_ref();
        if failures.is_none() && anonymous.is_none() {
            return Decision::Allowed(None);
        }
        let address = address();
        if let Some(limited @ Decision::Limited(_)) = failures.map(|failures| failures.check(address)) {
            return limited;
        }
        anonymous.map_or(Decision::Allowed(None), |anonymous| anonymous.check(address))
    }

    /// The address of the client whose request came from `peer` with these `headers`.
    #[must_use]
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        client_address(peer, headers, &self.trusted_proxies)
    }

    /// Forgets addresses whose budgets are full again, once a minute and when there are too many, for as long as the
    /// process runs.
    pub async fn keep_small(self: Arc<Self>) {
        loop {
            // Either way it is time for a sweep.
            let _ = timeout(SWEEP_INTERVAL, self.full.notified()).await;
            for addresses in [&self.anonymous, &self.failures].into_iter().flatten() {
                addresses.sweep();
            }
            sleep(SWEEP_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests;
