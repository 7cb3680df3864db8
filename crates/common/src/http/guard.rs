//! Whether a request is let in. This is decided before anything else of it is looked at: its answer must not say who
//! exists, and must not cost more than the check.
//!
//! A service with a token list asks for tokens. An open one answers only to names of its own, since a web page of a
//! foreign name that resolves to this machine (DNS rebinding) is of the same origin for a browser, and could do all
//! that its user may.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::http::Method;
use actix_web::http::header::HOST;
use actix_web::{HttpRequest, rt};
use prometheus::IntCounter;

use super::connection::ClientConnection;
use crate::access::{Access, Decision, Limits, Memo, Needs, Principal, Rate, RateHeaders, Refusal};
use crate::config::{AccessSettings, Mode, RateSettings, TokenSource};
use crate::error::Error;
use crate::metrics::AccessMetrics;

/// Returns what a request with this method to this path, decoded as routes match it, needs by the service's routes.
pub type NeedsOf = fn(&Method, &str) -> Needs;

/// Lets requests in.
#[derive(Clone)]
pub struct Guard {
    /// None while the service is open.
    access: Option<Arc<Access>>,
    /// The names, beside its own, that an open service answers to.
    hosts: Arc<[String]>,
    limits: Arc<Limits>,
    /// What the description shows of the limits: that of each client, or that of attempts with tokens.
    rate: Option<Rate>,
    limited: IntCounter,
    needs: NeedsOf,
}

/// A request that is let in.
#[derive(Default)]
pub struct LetIn {
    /// Whose it is; none if it need not say that.
    pub client: Option<Rc<Principal>>,
    /// What the answer says of the client's budget, if little is left of it.
    pub rate: Option<RateHeaders>,
}

impl Guard {
    /// Lets in as `settings` say, and watches the token list if it is a file; clients have the limits of `rates`. `needs`
    /// is the service's own part of what requests need. Must be called within a runtime.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(
        settings: AccessSettings,
        rates: &RateSettings,
        metrics: &AccessMetrics,
        needs: NeedsOf,
    ) -> io::Result<Self> {
        let AccessSettings { mode, allowed_hosts } = settings;
        let access = match mode {
            Mode::Tokens { source, list } => {
                let access = Arc::new(Access::new(list, rates.limit, metrics.clone()));
                if let TokenSource::File(path) = source {
                    access.watch(path)?;
                }
                Some(access)
            }
            Mode::Open { public: true } => {
                rt::spawn(keep_warning());
                None
            }
            Mode::Open { public: false } => {
                log::info!("open to everyone on this machine: no token is asked for (AUTH)");
                None
            }
        };
        let limits = Arc::new(Limits::new(rates));
        rt::spawn(limits.clone().keep_small());
        let limited = metrics.limited.clone();
        let rate = rates.limit.rate().or_else(|| rates.failures.rate().filter(|_| access.is_some()));
        Ok(Self { access, hosts: allowed_hosts.into(), limits, rate, limited, needs })
    }

    /// One of an open service without other names.
    #[cfg(test)]
    pub fn open(metrics: &AccessMetrics) -> Self {
        let limits = Arc::new(Limits::new(&RateSettings::default()));
        let limited = metrics.limited.clone();
        Self {
            access: None,
            hosts: Arc::new([]),
            limits,
            rate: None,
            limited,
            needs: |_, _| Needs::ValidToken,
        }
    }

    /// Lets `request` in, or refuses it.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(
        &self,
        request: &HttpRequest,
        connection: Option<&ClientConnection>,
    ) -> Result<LetIn, Error> {
        // As the router matches it, and not as it was sent: `/%75ser/ann` is routed to the same handler.
        let path = request.match_info().as_str();
        // A balancer's health check may name any host, or none, and comes as often as it likes.
        if is_health(path) {
            return Ok(LetIn::default());
        }
        let checked = match &self.access {
            None if self.answers_to(host(request)) => Ok(None),
            None => return Err(Error::ForeignHost),
            Some(access) => {
                let needs = self.needs(request.method(), path);
                let forgotten = Memo::default();
                let memo = connection.map_or(&forgotten, |connection| &connection.memo);
                access.check(request.headers(), memo, needs, SystemTime::now)
            }
        };
        let address = || {
            let peer = request.peer_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip());
            self.limits.client_address(peer, request.headers())
        };
        let rate = match self.limits.check(&checked, address) {
            Decision::Allowed(rate) => rate,
            Decision::Limited(rate) => {
                self.limited.inc();
                return Err(Error::RateLimited(rate));
            }
        };
        match checked {
            Ok(client) => Ok(LetIn { client, rate }),
            Err(refused) => Err(match refused.why {
                Refusal::CredentialsNeeded => Error::CredentialsNeeded,
                Refusal::InvalidToken => Error::InvalidToken,
                Refusal::InsufficientScope(scope) => Error::InsufficientScope(scope.name()),
                Refusal::TwoCredentials => Error::TwoCredentials,
            }),
        }
    }

    /// Whether `host` is a name of this service, which is open.
    fn answers_to(&self, host: &str) -> bool {
        is_own_name(host) || self.hosts.iter().any(|name| is_name(host, name))
    }

    /// Whether it asks for tokens.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.access.is_some()
    }

    /// The scopes that a request with this method to this path needs; none if it needs no token.
    #[must_use]
    pub fn scopes(&self, method: &Method, path: &str) -> Option<Vec<&'static str>> {
        match self.needs(method, path) {
            Needs::Nothing => None,
            Needs::ValidToken => Some(Vec::new()),
            Needs::Scope(scope) => Some(vec![scope.name()]),
        }
    }

    /// The errors of those that are not let in, by status.
    #[must_use]
    pub fn refusals(&self, method: &Method, path: &str) -> Vec<Error> {
        if is_health(path) {
            return Vec::new();
        }
        let mut errors = match (&self.access, self.needs(method, path)) {
            (None, _) => vec![Error::ForeignHost],
            (Some(_), Needs::Nothing) => Vec::new(),
            (Some(_), Needs::ValidToken) => vec![Error::CredentialsNeeded, Error::InvalidToken],
            (Some(_), Needs::Scope(scope)) => {
                vec![Error::CredentialsNeeded, Error::InvalidToken, Error::InsufficientScope(scope.name())]
            }
        };
        errors.extend(self.rate.map(|rate| Error::RateLimited(RateHeaders::of_empty(rate))));
        errors
    }

    /// What a request with this method to this path needs.
    #[must_use]
    pub fn needs(&self, method: &Method, path: &str) -> Needs {
        match (self.needs)(method, path) {
            Needs::ValidToken if is_public(path) => Needs::Nothing,
            needs => needs,
        }
    }
}

async fn keep_warning() {
    loop {
        log::warn!("open to everyone who reaches it: no token is asked for (AUTH=none)");
        rt::time::sleep(Duration::from_secs(3600)).await;
    }
}

/// Whether a path is one of those that every service answers to everyone: probes behind authentication break
/// orchestrators, and the description says no secret.
fn is_public(path: &str) -> bool {
    let pages = path.strip_prefix("/docs").or_else(|| path.strip_prefix("/problems"));
    is_health(path)
        || matches!(path, "/" | "/version" | "/openapi.json")
        || pages.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_health(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

/// The host that the request names, with its port; empty if there is none.
fn host(request: &HttpRequest) -> &str {
    // The target's goes first (RFC 9112, section 3.2.2).
    if let Some(authority) = request.uri().authority() {
        return authority.as_str();
    }
    request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}

/// Whether `host` is a name that can only lead to this machine, or no name: an attacker needs one of their own.
fn is_own_name(host: &str) -> bool {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_literal = name.as_bytes().first().is_some_and(|first| first.is_ascii_digit() || *first == b'[')
        && name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let localhost = name.len().checked_sub("localhost".len()).and_then(|at| name.split_at_checked(at));
    is_literal
        || localhost.is_some_and(|(before, last)| {
            last.eq_ignore_ascii_case("localhost") && (before.is_empty() || before.ends_with('.'))
        })
}

/// Whether `host` is `name`, with any port.
fn is_name(host: &str, name: &str) -> bool {
    let host = without_port(host);
    host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case(name)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // Not a colon within [::1].
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_its_own_with_any_port() {
        for own in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1",
            "127.0.0.1:8080",
            "10.0.0.7",
            "[::1]",
            "[::1]:8080",
            "[fe80::1]:80",
        ] {
            assert!(is_own_name(own), "{own}");
        }
        for foreign in [
            "",
            ":",
            ":80",
            ".",
            "evil.test",
            "localhost.evil.test",
            "evillocalhost",
            "127.0.0.1.evil.test",
            "1.evil.test:80",
            "[::1].evil.test",
            "[",
            "::1:x",
            "0x7f.1",
            "2130706433",
            "localhost:x",
            "localhost..",
        ] {
            assert!(!is_own_name(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_name_that_is_allowed_is_compared_whole() {
        assert!(is_name("Users.Example:80", "users.example") && is_name("users.example.", "users.example"));
        assert!(
            !is_name("evil.users.example", "users.example")
                && !is_name("users.example.evil", "users.example")
        );
    }

    #[test]
    fn only_the_paths_of_every_service_are_public() {
        for public in [
            "/",
            "/livez",
            "/readyz",
            "/version",
            "/openapi.json",
            "/docs",
            "/docs/",
            "/docs/a.js",
            "/problems/x",
        ] {
            assert!(is_public(public), "{public}");
        }
        for other in
            ["/user/docs", "/docsx", "/problemsx", "/livez/", "/livezz", "/register", "/user/x", "//docs", ""]
        {
            assert!(!is_public(other), "{other}");
        }
    }
}
