//! Both services in the background.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::background::{Part, Start};
use super::place::Place;
use super::{DATA_SVC, GRACE, Result, USER_SVC, ports, say};
use crate::http;
use crate::process::until;
use crate::programs::sibling;

/// How long a service may take to be ready, which covers migrations of a database that has grown.
const READY: Duration = Duration::from_secs(60);

/// The URL of a service.
pub(super) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// True if the service on this port says that it is ready.
pub(super) fn is_ready(port: u16) -> bool {
    http::try_send("GET", &format!("{}/readyz", url(port)), &[], "").is_ok_and(|answer| answer.status == 200)
}

/// Starts both, or keeps what runs as it should; returns their URLs, user-svc's first, when both are ready.
pub(super) fn up(place: &Place, database_url: &str, redis_url: &str) -> Result<[String; 2]> {
    // data-svc's address first, since user-svc tells it to clients. user-svc runs first, since it migrates.
    let data = plan(place, DATA_SVC, &[("DATABASE_URL", database_url), ("REDIS_URL", redis_url)])?;
    let data_url = url(data.port);
    let stores = [("DATABASE_URL", database_url), ("REDIS_URL", redis_url), ("PUBLIC_DATA_URL", &data_url)];
    let user = plan(place, USER_SVC, &stores)?;
    let user_url = url(user.port);
    let ports = [(USER_SVC, user.port), (DATA_SVC, data.port)];
    run(place, USER_SVC, user)?;
    run(place, DATA_SVC, data)?;
    for (name, port) in ports {
        let part = Part::of(place, name);
        if !(until(READY, || part.alive().is_none() || is_ready(port)) && part.alive().is_some()) {
            return Err(part.failure("is not ready"));
        }
    }
    Ok([user_url, data_url])
}

/// Fails if a service could not be started because of what its binary or port is.
pub(super) fn check(place: &Place) -> Result<()> {
    for name in [USER_SVC, DATA_SVC] {
        sibling(name)?;
        ports(place, name)?;
    }
    Ok(())
}

fn ports(place: &Place, name: &'static str) -> Result<(u16, u16)> {
    let environment = environment(place);
    let setting = |variable: &str| std::env::var(variable).ok().or_else(|| line_of(&environment, variable));
    ports::for_service(name, &Part::of(place, name), setting)
}

/// The text of `.env`, which the services read too.
fn environment(place: &Place) -> String {
    fs::read_to_string(place.checkout.join(".env")).unwrap_or_default()
}

/// How the service is to run today. It reads `.env` of the checkout too, but what is set here wins.
fn plan(place: &Place, name: &'static str, settings: &[(&str, &str)]) -> Result<Start> {
    let program = sibling(name)?;
    let (port, metrics_port) = ports(place, name)?;
    let mut settings: Vec<(String, String)> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    settings.push(("PORT".to_owned(), port.to_string()));
    settings.push(("METRICS_PORT".to_owned(), metrics_port.to_string()));
    let version = version(&program, &settings, &environment(place));
    Ok(Start { program, settings, port, metrics_port, version, ..Start::default() })
}

/// The value of `NAME=value` in a `.env` file, as Compose reads ports from there.
fn line_of(environment: &str, name: &str) -> Option<String> {
    let value = environment
        .lines()
        .find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
}

/// A text that changes with the binary, with the settings and with `.env`.
fn version(program: &Path, settings: &[(String, String)], environment: &str) -> String {
    let mut hasher = DefaultHasher::new();
    let file = program.metadata().ok();
    (program, file.as_ref().map(fs::Metadata::len), file.and_then(|file| file.modified().ok()))
        .hash(&mut hasher);
    (settings, environment).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn run(place: &Place, name: &'static str, start: Start) -> Result<()> {
    let part = Part::of(place, name);
    let how = match part.alive() {
        Some(record) if record.version == start.version => "kept",
        Some(_) => {
            part.stop(Signal::TERM, GRACE);
            part.start(start)?;
            "restarted, since its binary or settings are new"
        }
        None => {
            part.start(start)?;
            "started"
        }
    };
    say(format!("{name:<9} {how}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::line_of;

    #[test]
    fn a_port_is_read_from_an_environment_file() {
        let file = "# ports\nUSER_SVC_PORT=18080\n DATA_SVC_PORT = \"18081\"\nOTHER=\n#NOT=1\n";
        assert_eq!(line_of(file, "USER_SVC_PORT").as_deref(), Some("18080"));
        assert_eq!(line_of(file, "DATA_SVC_PORT").as_deref(), Some("18081"));
        assert_eq!(line_of(file, "OTHER"), None);
        assert_eq!(line_of(file, "NOT"), None);
    }
}
