//! Who may, and how much: API tokens, what a request must present, and budgets of requests.
//!
//! [`Access`] judges the `Authorization` of each request by the [`TokenList`]. Most requests come on a connection that
//! has presented the same token before: its [`Memo`] answers for them, without a hash or a lock. [`Limits`] then takes
//! the request from the budget of its client.

mod addresses;
mod clients;
mod forwarded;
mod limiter;
mod limits;
mod list;
mod rate;
mod token;
mod watch;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use arc_swap::ArcSwap;
use constant_time_eq::constant_time_eq;

use self::clients::Clients;
pub use self::forwarded::{Cidr, client_address};
pub use self::limiter::{Decision, Limiter, RATE_LIMIT, RATE_LIMIT_POLICY, RateHeaders};
pub use self::limits::Limits;
pub use self::list::{Entry, ListError, TokenList, client_name, read_file};
pub use self::rate::{Rate, RateLimit};
pub use self::token::{Digest, Scope, Scopes, Token};
use crate::metrics::AccessMetrics;

/// The longest `Authorization` that is looked at: what most servers take as a whole head.
const AUTHORIZATION_MAX_BYTES: usize = 8 * 1024;

/// What a request needs to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: what it presents is not looked at.
    Nothing,
    /// Any valid token.
    ValidToken,
    /// A valid token that allows this.
    Scope(Scope),
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It presents nothing, or something for another scheme than `Bearer`.
    CredentialsNeeded,
    /// What it presents is no token, or one that is unknown, expired or revoked. The client never learns which.
    InvalidToken,
    /// Its token is valid, and does not allow this.
    InsufficientScope(Scope),
    /// It has two `Authorization` headers.
    TwoCredentials,
}

/// A request that is not let in.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// The client, if its token is valid, and only does not allow this.
    pub client: Option<Rc<Principal>>,
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self { why, client: None }
    }
}

/// Whether a request is let in, and as which client (none if it needs nothing).
pub type Checked = Result<Option<Rc<Principal>>, Refused>;

/// The client that a token stands for.
#[derive(Debug)]
pub struct Principal {
    /// Its name in the list.
    pub name: Arc<str>,
    /// What its token allows.
    pub scopes: Scopes,
    until: Option<SystemTime>,
    /// None without a limit. It is here so that a request that the memo answers for reaches it without a map.
    budget: Option<Arc<Limiter>>,
}

impl Principal {
    /// Takes a request from the client's budget.
    fn take(&self) -> Decision {
        self.budget.as_ref().map_or(Decision::Allowed(None), |budget| budget.check())
    }

    fn is_valid(&self, now: impl FnOnce() -> SystemTime) -> bool {
        self.until.is_none_or(|until| now() < until)
    }
}

/// What a connection remembers of the last token that was valid on it.
#[derive(Default)]
pub struct Memo(RefCell<Option<Remembered>>);

struct Remembered {
    authorization: Vec<u8>,
    principal: Rc<Principal>,
    epoch: u64,
}

impl Memo {
    fn recall(
        &self,
        authorization: &[u8],
        epoch: u64,
        now: impl FnOnce() -> SystemTime,
    ) -> Option<Rc<Principal>> {
        let remembered = self.0.borrow();
        let remembered = remembered.as_ref().filter(|it| it.epoch == epoch)?;
        // In constant time, since a proxy may put an attacker's request on a connection that last carried the token of
        // somebody else.
        let same = constant_time_eq(&remembered.authorization, authorization);
        (same && remembered.principal.is_valid(now)).then(|| remembered.principal.clone())
    }
}

/// Judges what requests present, by the newest token list.
pub struct Access {
    clients: ArcSwap<Clients>,
    /// The limit of clients whose lines name none.
    limit: RateLimit,
    /// Raised after each change of the list. What was remembered under a lower one is worthless.
    epoch: AtomicU64,
    metrics: AccessMetrics,
}

impl Access {
    /// Judges by `list`, and counts in `metrics`. `limit` is that of clients whose lines name none.
    #[must_use]
    pub fn new(list: TokenList, limit: RateLimit, metrics: AccessMetrics) -> Self {
        let clients = ArcSwap::from_pointee(Clients::new(list, limit, None));
        Self { clients, limit, epoch: AtomicU64::new(0), metrics }
    }

    /// Lets a request with these `headers` in, as the client that is returned (none if it needs nothing), or refuses
    /// it. `memo` is that of its connection; `now` is called only for a token that expires.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(
        &self,
        headers: &HeaderMap,
        memo: &Memo,
        needs: Needs,
        now: impl Fn() -> SystemTime,
    ) -> Checked {
        let needed = match needs {
            Needs::Nothing => return Ok(None),
            Needs::ValidToken => None,
            Needs::Scope(scope) => Some(scope),
        };
        let found = self.authenticate(headers, memo, now).map_err(Refused::from);
        let checked = found.and_then(|(client, by)| match needed {
            Some(scope) if !client.scopes.allow(scope) => {
                Err(Refused { why: Refusal::InsufficientScope(scope), client: Some(client) })
            }
            _ => Ok((client, by)),
        });
        let counter = match &checked {
            Ok((_, By::Memo)) => &self.metrics.memo,
            Ok((_, By::List)) => &self.metrics.verified,
            Err(Refused { why: Refusal::CredentialsNeeded, .. }) => &self.metrics.none,
            Err(Refused { why: Refusal::InvalidToken | Refusal::TwoCredentials, .. }) => {
                &self.metrics.invalid
            }
            Err(Refused { why: Refusal::InsufficientScope(_), .. }) => &self.metrics.scope,
        };
        counter.inc();
        checked.map(|(client, _)| Some(client))
    }

    fn authenticate(
        &self,
        headers: &HeaderMap,
        memo: &Memo,
        now: impl Fn() -> SystemTime,
    ) -> Result<(Rc<Principal>, By), Refusal> {
        let mut presented = headers.get_all(AUTHORIZATION);
        let authorization = presented.next().ok_or(Refusal::CredentialsNeeded)?.as_bytes();
        if presented.next().is_some() {
            return Err(Refusal::TwoCredentials);
        }
        // Before the list is loaded: if it changes in between, what is remembered is of an older epoch, not of a newer
        // one than it was verified under.
        let epoch = self.epoch.load(Ordering::Acquire);
        if let Some(principal) = memo.recall(authorization, epoch, &now) {
            return Ok((principal, By::Memo));
        }
        let principal = Rc::new(self.verify(authorization)?);
        if !principal.is_valid(now) {
            return Err(Refusal::InvalidToken);
        }
        let remembered =
            Remembered { authorization: authorization.to_owned(), principal: principal.clone(), epoch };
        memo.0.replace(Some(remembered));
        Ok((principal, By::List))
    }

    /// Finds the client, whose token may have expired.
    fn verify(&self, authorization: &[u8]) -> Result<Principal, Refusal> {
        let token = Token::parse(bearer(authorization)?).ok_or(Refusal::InvalidToken)?;
        // A look-up in constant time is not needed: what it leaks is about a digest, not about a token.
        let clients = self.clients.load();
        let entry = clients.find(&token.digest()).ok_or(Refusal::InvalidToken)?;
        let budget = clients.budget(&entry.name);
        Ok(Principal { name: entry.name.clone(), scopes: entry.scopes, until: entry.until, budget })
    }

    /// Judges by `list` from now on. Returns whether that is a change.
    fn replace(&self, list: TokenList) -> Change {
        let former = self.clients.load();
        if former.list == list {
            return Change::None;
        }
        self.clients.store(Arc::new(Clients::new(list, self.limit, Some(&former))));
        // After the list, so that nothing of the old one is remembered under the new epoch.
        self.epoch.fetch_add(1, Ordering::Release);
        Change::Made
    }
}

/// What a token was found valid by.
enum By {
    Memo,
    List,
}

/// Whether a new list differed.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Made,
}

/// What stands in an `Authorization` after `Bearer` and its spaces (RFC 6750, section 2.1).
fn bearer(authorization: &[u8]) -> Result<&str, Refusal> {
    if authorization.is_empty() || authorization.len() > AUTHORIZATION_MAX_BYTES || !authorization.is_ascii()
    {
        return Err(Refusal::InvalidToken);
    }
    let text = std::str::from_utf8(authorization).map_err(|_| Refusal::InvalidToken)?;
    let (scheme, credentials) = text.split_once(' ').unwrap_or((text, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(credentials.trim_start_matches(' '))
    } else {
        Err(Refusal::CredentialsNeeded)
    }
}

#[cfg(test)]
mod tests;
