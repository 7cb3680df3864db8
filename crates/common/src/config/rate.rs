//! How much clients may ask for: `RATE_LIMIT`, `AUTH_FAILURES`, `TRUSTED_PROXIES`.

use super::{Setting, SettingsReader, setting};
use crate::access::{Cidr, RateLimit};
use crate::error::Invalid;

pub(super) const RATE_LIMIT: Setting = setting(
    "RATE_LIMIT",
    "off",
    "Requests of a client (its token's name, else its address): off, or e.g. 200/s, 600/m, 200/s,burst=400",
);

pub(super) const AUTH_FAILURES: Setting =
    setting("AUTH_FAILURES", "20/s", "Requests with a token that is not valid, for each address; likewise");

pub(super) const TRUSTED_PROXIES: Setting = Setting {
    env: "TRUSTED_PROXIES",
    default: None,
    help: "Networks of proxies whose Forwarded or X-Forwarded-For names the client, separated by commas",
    secret: false,
};

/// How much clients may ask for.
#[derive(Debug, Clone, Default)]
pub struct RateSettings {
    /// The limit of each client.
    pub limit: RateLimit,
    /// The limit of failed authentications for each address.
    pub failures: RateLimit,
    /// The proxies whose word on a client's address is taken.
    pub trusted_proxies: Vec<Cidr>,
}

impl SettingsReader {
    /// The part of [`shared`](super::shared) for the rate limit.
    pub fn rates(&mut self) -> RateSettings {
        RateSettings {
            limit: self.get(RATE_LIMIT.env, rate_limit),
            failures: self.get(AUTH_FAILURES.env, rate_limit),
            trusted_proxies: self.get(TRUSTED_PROXIES.env, networks),
        }
    }
}

fn rate_limit(value: &str) -> Result<RateLimit, String> {
    value.parse().map_err(|Invalid(what)| what.to_owned())
}

fn networks(value: &str) -> Result<Vec<Cidr>, String> {
    let networks = value.split(',').map(|network| network.trim_ascii().parse());
    networks.collect::<Result<_, _>>().map_err(|Invalid(what)| what.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::super::{SettingsError, shared};
    use super::*;

    fn read(arguments: &[&str]) -> Result<RateSettings, SettingsError> {
        let settings = shared("8080", "9080");
        let matches = SettingsReader::describe(Command::new("test"), &settings)
            .get_matches_from([&["test"], arguments].concat());
        let mut reader = SettingsReader::new(&matches, &settings);
        let rates = reader.rates();
        reader.finish().map(|()| rates)
    }

    #[test]
    fn without_settings_only_failures_are_limited_and_no_proxy_is_trusted() {
        let rates = read(&[]).expect("valid");
        assert_eq!(rates.limit, RateLimit::Off);
        assert_eq!(rates.failures.to_string(), "20/s");
        assert!(rates.trusted_proxies.is_empty());
    }

    #[test]
    fn rates_and_networks_are_read() {
        let rates = read(&[
            "--rate-limit=200/s,burst=400",
            "--auth-failures=off",
            "--trusted-proxies=10.0.0.0/8, 2001:db8::/32,192.0.2.1",
        ]);
        let rates = rates.expect("valid");
        assert_eq!(rates.limit.to_string(), "200/s,burst=400");
        assert_eq!(rates.failures, RateLimit::Off);
        assert_eq!(rates.trusted_proxies.len(), 3);
    }

    #[test]
    fn every_mistake_names_its_variable() {
        let wrong = ["--rate-limit=200", "--auth-failures=0/s", "--trusted-proxies=10.0.0.0/8,"];
        let text = read(&wrong).expect_err("mistakes").to_string();
        for name in [
            "RATE_LIMIT must be off, or",
            "AUTH_FAILURES must be off, or",
            "TRUSTED_PROXIES must be networks",
        ] {
            assert!(text.contains(name), "{text}");
        }
    }
}
