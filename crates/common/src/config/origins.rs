//! The setting `CORS_ORIGINS`: the origins whose pages may call a service from a browser.

use std::net::IpAddr;

use url::{Host, Url};

/// The origins whose pages may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// None but the service's own.
    #[default]
    Own,
    /// Those of this machine, such as the other service's page.
    Loopback,
    /// These.
    These(Vec<String>),
    /// Any.
    Any,
}

impl Origins {
    /// Reads the setting `CORS_ORIGINS` of a service that listens on `host`.
    ///
    /// # Errors
    /// What the setting must be.
    pub fn parse(value: &str, host: IpAddr) -> Result<Self, String> {
        match value {
            "auto" if host.is_loopback() => Ok(Self::Loopback),
            "auto" => Ok(Self::Own),
            "*" => Ok(Self::Any),
            list => {
                let origins: Vec<&str> = list.split(',').map(str::trim).collect();
                if !origins.iter().all(|origin| host_of(origin).is_some()) {
                    return Err(
                        "must be auto, *, or origins such as https://example.com, separated by commas"
                            .to_owned(),
                    );
                }
                Ok(Self::These(origins.into_iter().map(str::to_owned).collect()))
            }
        }
    }

    /// Whether `origin` is one of them.
    #[must_use]
    pub fn hold(&self, origin: &str) -> bool {
        match self {
            Self::Own => false,
            Self::Loopback => host_of(origin).is_some_and(|host| match host {
                Host::Domain(name) => name == "localhost",
                Host::Ipv4(address) => address.is_loopback(),
                Host::Ipv6(address) => address.is_loopback(),
            }),
            Self::These(origins) => origins.iter().any(|known| known == origin),
            Self::Any => true,
        }
    }
}

/// The host of `origin`, if it is the origin of a web page as browsers write it.
fn host_of(origin: &str) -> Option<Host> {
    let url = Url::parse(origin).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    if url.origin().ascii_serialization() != origin {
        return None;
    }
    url.host().map(|host| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn origins(value: &str) -> Result<Origins, String> {
        Origins::parse(value, Ipv4Addr::LOCALHOST.into())
    }

    #[test]
    fn loopback_origins_are_allowed_only_to_a_service_on_loopback() {
        assert_eq!(origins("auto"), Ok(Origins::Loopback));
        assert_eq!(Origins::parse("auto", Ipv4Addr::UNSPECIFIED.into()), Ok(Origins::Own));
    }

    #[test]
    fn an_origin_is_of_this_machine_by_its_host() {
        for origin in [
            "http://127.0.0.1:8080",
            "http://127.1.2.3",
            "http://localhost:3000",
            "https://localhost",
            "http://[::1]:8081",
        ] {
            assert!(Origins::Loopback.hold(origin), "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://localhost.evil.test",
            "http://evil.test:8080",
            "http://127.0.0.1.evil.test",
            "file://localhost",
            "http://localhost:8080/path",
            "http://user@localhost",
            "http://LOCALHOST",
            "http://localhost:80",
            "http://0.0.0.0",
        ] {
            assert!(!Origins::Loopback.hold(origin), "{origin}");
        }
    }

    #[test]
    fn origins_are_given_as_browsers_write_them() {
        let two = origins("https://a.test, http://b.test:8080").expect("valid");
        assert!(two.hold("https://a.test") && two.hold("http://b.test:8080"));
        assert!(
            !two.hold("http://a.test") && !two.hold("https://a.test:8443") && !two.hold("http://localhost")
        );
        for wrong in [
            "a.test",
            "https://a.test/",
            "https://a.test:443",
            "HTTPS://a.test",
            "https://a.test,",
            "ftp://a.test",
            "*,*",
        ] {
            assert!(origins(wrong).is_err(), "{wrong}");
        }
    }
}
