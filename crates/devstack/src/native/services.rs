//! Both services in the background.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::background::{DATA_SVC, Part, Start, USER_SVC};
use super::database::{self, OWNER, READER};
use super::paths::Paths;
use super::ports;
use super::terminal::{Result, say};
use crate::http;
use crate::programs::sibling;

/// How long a part may take to stop before it is killed: longer than the services' grace period (10 s by default).
pub(super) const GRACE: Duration = Duration::from_secs(20);

/// How long a service may take to be ready, which includes migrations of a large database.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// The URL of a service.
pub(super) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Returns whether the service on this port is ready.
pub(super) fn is_ready(port: u16) -> bool {
    http::try_send("GET", &format!("{}/readyz", url(port)), &[], "").is_ok_and(|answer| answer.status == 200)
}

/// Starts each service, or keeps it if it is up to date. Returns the URLs of user-svc and data-svc when both are ready.
pub(super) fn up(paths: &Paths, database_port: u16, redis_url: &str) -> Result<[String; 2]> {
    // Ports come first, since both services send addresses to clients.
    let user_ports = ports(paths, USER_SVC)?;
    let data_ports = ports(paths, DATA_SVC)?;
    let user_url = url(user_ports.0);
    let data_url = url(data_ports.0);
    let settings = |role: &str| {
        [
            ("DATABASE_URL", database::url(database_port, role)),
            ("REDIS_URL", redis_url.to_owned()),
            ("PUBLIC_USER_URL", user_url.clone()),
            ("PUBLIC_DATA_URL", data_url.clone()),
        ]
    };
    let user = plan(paths, USER_SVC, user_ports, settings(OWNER))?;
    let data = plan(paths, DATA_SVC, data_ports, settings(READER))?;
    // user-svc runs first, since it migrates.
    let ports = [(USER_SVC, user.port), (DATA_SVC, data.port)];
    run(paths, USER_SVC, user)?;
    run(paths, DATA_SVC, data)?;
    for (name, port) in ports {
        let part = Part::of(paths, name);
        if !part.becomes_ready(READY_TIMEOUT, || is_ready(port)) {
            return Err(part.failure("is not ready"));
        }
    }
    Ok([user_url, data_url])
}

/// Fails if a service's binary is missing or its port is taken.
pub(super) fn check(paths: &Paths) -> Result<()> {
    for name in [USER_SVC, DATA_SVC] {
        sibling(name)?;
        ports(paths, name)?;
    }
    Ok(())
}

/// The service's port, and its port for metrics.
fn ports(paths: &Paths, name: &'static str) -> Result<(u16, u16)> {
    let environment = environment(paths);
    let setting = |variable: &str| std::env::var(variable).ok().or_else(|| line_of(&environment, variable));
    ports::for_service(name, &Part::of(paths, name), setting)
}

/// The setting of this name in `.env`.
pub(super) fn setting(paths: &Paths, name: &str) -> Option<String> {
    line_of(&environment(paths), name)
}

/// The text of `.env`, which the services read too.
fn environment(paths: &Paths) -> String {
    fs::read_to_string(paths.checkout.join(".env")).unwrap_or_default()
}

/// How the service is to run now. It reads the checkout's `.env` too, but the settings here override that.
fn plan(
    paths: &Paths,
    name: &'static str,
    (port, metrics_port): (u16, u16),
    settings: [(&str, String); 4],
) -> Result<Start> {
    let program = sibling(name)?;
    let mut settings: Vec<(String, String)> =
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    settings.push(("PORT".to_owned(), port.to_string()));
    settings.push(("METRICS_PORT".to_owned(), metrics_port.to_string()));
    let version = version(&program, &settings, &environment(paths));
    Ok(Start { program, settings, port, metrics_port, version, ..Start::default() })
}

/// The value of `NAME=value` in a `.env` file, from which Compose reads the ports too.
fn line_of(environment: &str, name: &str) -> Option<String> {
    let value = environment
        .lines()
        .find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
}

/// A text that changes with the binary, the settings and `.env`.
fn version(program: &Path, settings: &[(String, String)], environment: &str) -> String {
    let mut hasher = DefaultHasher::new();
    let file = program.metadata().ok();
    (program, file.as_ref().map(fs::Metadata::len), file.and_then(|file| file.modified().ok()))
        .hash(&mut hasher);
    (settings, environment).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn run(paths: &Paths, name: &'static str, start: Start) -> Result<()> {
    let part = Part::of(paths, name);
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
