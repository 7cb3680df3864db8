//! Both services in the background, one of each or several.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::background::{DATA_SVC, HAPROXY, Part, Start, USER_SVC};
use super::balancer;
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

/// The names of a service's parts.
fn names(service: &str, replicas: usize) -> Vec<String> {
    match replicas {
        1 => vec![service.to_owned()],
        _ => (1..=replicas).map(|number| format!("{service}-{number}")).collect(),
    }
}

/// The parts of another number of replicas, which an `up` for this one does not want.
fn others(paths: &Paths, replicas: usize) -> Vec<String> {
    let wanted = [USER_SVC, DATA_SVC].map(|service| names(service, replicas)).concat();
    let is_service = |name: &str| name.starts_with(USER_SVC) || name.starts_with(DATA_SVC);
    let is_unwanted_balancer = |name: &str| replicas == 1 && name == HAPROXY;
    let unwanted = |name: &String| is_service(name) && !wanted.contains(name) || is_unwanted_balancer(name);
    paths.records().into_iter().filter(unwanted).collect()
}

/// Stops them.
pub(super) fn remove_others(paths: &Paths, replicas: usize) -> Result<()> {
    let others = others(paths, replicas);
    for name in &others {
        Part::of(paths, name).signal(Signal::TERM);
    }
    for name in others {
        Part::of(paths, &name).remove(Signal::TERM, GRACE)?;
        say(format!("{name:<10} stopped, since it is not wanted with REPLICAS={replicas}"));
    }
    Ok(())
}

/// Starts each service, or keeps it if it is up to date, and HAProxy in front of replicas. Returns the URLs of user-svc and
/// data-svc when all are ready.
pub(super) fn up(paths: &Paths, replicas: usize, database_port: u16, redis_url: &str) -> Result<[String; 2]> {
    // Ports come first, since the services send addresses to clients.
    let ports = client_ports(paths, replicas)?;
    let [user_url, data_url] = ports.map(url);
    let settings = |role: &str| {
        [
            ("DATABASE_URL", database::url(database_port, role)),
            ("REDIS_URL", redis_url.to_owned()),
            ("PUBLIC_USER_URL", user_url.clone()),
            ("PUBLIC_DATA_URL", data_url.clone()),
        ]
    };
    // user-svc runs first, since it migrates.
    let users = start(paths, replicas, USER_SVC, ports[0], &settings(OWNER))?;
    let data = start(paths, replicas, DATA_SVC, ports[1], &settings(READER))?;
    for (name, port) in users.iter().chain(&data) {
        let part = Part::of(paths, name);
        if !part.becomes_ready(READY_TIMEOUT, || is_ready(*port)) {
            return Err(part.failure("is not ready"));
        }
    }
    if replicas > 1 {
        let [users, data] = [users, data].map(|it| it.into_iter().map(|(_, port)| port).collect::<Vec<_>>());
        balancer::up(paths, ports, &users, &data)?;
    }
    Ok([user_url, data_url])
}

/// Starts or keeps a service: one at the port for clients, or replicas at any ports. Returns their names and ports.
fn start(
    paths: &Paths,
    replicas: usize,
    service: &str,
    client_port: u16,
    settings: &[(&str, String)],
) -> Result<Vec<(String, u16)>> {
    let behind_haproxy = balancer::settings_of_replicas(|name| setting(paths, name));
    let mut started = Vec::new();
    for name in names(service, replicas) {
        let part = Part::of(paths, &name);
        let (ports, settings) = if replicas == 1 {
            let previous = part.previous().map(|record| record.metrics_port);
            ((client_port, ports::for_metrics(service, previous, &own_ports(&part))?), settings.to_vec())
        } else {
            (ports::for_replica(&part), [settings, &behind_haproxy].concat())
        };
        run(paths, &name, plan(paths, service, ports, settings)?)?;
        started.push((name, ports.0));
    }
    Ok(started)
}

/// Fails if a service's binary is missing, its port is taken, or there are too many replicas.
pub(super) fn check(paths: &Paths, replicas: usize) -> Result<()> {
    [USER_SVC, DATA_SVC].into_iter().try_for_each(|name| sibling(name).map(drop))?;
    client_ports(paths, replicas)?;
    if replicas > 1 { balancer::check(replicas, |name| setting(paths, name)) } else { Ok(()) }
}

/// Where clients find user-svc and data-svc: the services' own ports, or HAProxy's.
fn client_ports(paths: &Paths, replicas: usize) -> Result<[u16; 2]> {
    let front = |name| Part::of(paths, if replicas == 1 { name } else { HAPROXY });
    let parts = [front(USER_SVC), front(DATA_SVC)];
    let stopping = others(paths, replicas);
    let ours: Vec<u16> = stopping.iter().flat_map(|name| own_ports(&Part::of(paths, name))).collect();
    let environment = environment(paths);
    let setting = |variable: &str| std::env::var(variable).ok().or_else(|| line_of(&environment, variable));
    let previous = [
        parts[0].previous().map(|record| record.port),
        parts[1].previous().map(|record| if replicas == 1 { record.port } else { record.metrics_port }),
    ];
    let port = |at: usize, name| {
        let ours = [&ours[..], &own_ports(&parts[at])].concat();
        ports::for_clients(name, previous[at], &ours, setting)
    };
    Ok([port(0, USER_SVC)?, port(1, DATA_SVC)?])
}

/// The ports on which a part listens now.
fn own_ports(part: &Part<'_>) -> Vec<u16> {
    part.alive().map(|record| vec![record.port, record.metrics_port]).unwrap_or_default()
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
    service: &str,
    (port, metrics_port): (u16, u16),
    settings: Vec<(&str, String)>,
) -> Result<Start> {
    let program = sibling(service)?;
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
pub(super) fn version(program: &Path, settings: &[(String, String)], environment: &str) -> String {
    let mut hasher = DefaultHasher::new();
    let file = program.metadata().ok();
    (program, file.as_ref().map(fs::Metadata::len), file.and_then(|file| file.modified().ok()))
        .hash(&mut hasher);
    (settings, environment).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Starts a part, keeps it if it is up to date, or replaces it.
pub(super) fn run(paths: &Paths, name: &str, start: Start) -> Result<()> {
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
    say(format!("{name:<10} {how}"));
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
