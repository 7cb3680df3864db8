//! HAProxy in front of replicas, as deploy/haproxy has it, and how many replicas there are.

use super::background::{HAPROXY, Part, Start};
use super::paths::Paths;
use super::services::{GRACE, is_ready, run, url, version};
use super::terminal::Result;
use crate::commands::{MAX_CONNECTIONS, haproxy_arguments, haproxy_settings};
use crate::programs::find;

/// What a service's `DATABASE_CONNECTIONS` is by default.
const DATABASE_CONNECTIONS: usize = 10;
/// Connections that are left to superusers, `psql` and `make migrate`.
const LEFT: usize = 10;

/// How many of each service are wanted: `REPLICAS`, else one, without HAProxy.
pub(super) fn replicas() -> Result<usize> {
    let text = std::env::var("REPLICAS").unwrap_or_default();
    match text.parse() {
        _ if text.is_empty() => Ok(1),
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("REPLICAS is how many of each service run, 1 or more, not {text}")),
    }
}

/// Fails if HAProxy is missing, or PostgreSQL has too few connections for so many replicas. `setting` looks up a setting of
/// the services.
pub(super) fn check(replicas: usize, setting: impl Fn(&str) -> Option<String>) -> Result<()> {
    find("haproxy")
        .map_err(|error| format!("REPLICAS={replicas}: {error}; REPLICAS={replicas} make needs"))?;
    let each = setting("DATABASE_CONNECTIONS").and_then(|text| text.parse().ok());
    let each = each.unwrap_or(DATABASE_CONNECTIONS) + 1;
    let needed = replicas.saturating_mul(2 * each);
    let given = usize::from(MAX_CONNECTIONS) - LEFT;
    if needed <= given {
        return Ok(());
    }
    let fitting = given / (2 * each);
    Err(format!(
        "REPLICAS={replicas} needs {needed} connections to PostgreSQL, which gives {given} here: each of the {} services \
         takes DATABASE_CONNECTIONS and one more, {each}. REPLICAS={fitting} fits, or set a smaller DATABASE_CONNECTIONS \
         in .env",
        2 * replicas
    ))
}

/// The settings of a service behind HAProxy. `setting` looks up one that is given.
pub(super) fn settings_of_replicas(setting: impl Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    // Until HAProxy has noticed that a replica stops.
    let drain_delay = setting("DRAIN_DELAY").unwrap_or_else(|| "2s".to_owned());
    vec![("TRUSTED_PROXIES", "127.0.0.1".to_owned()), ("DRAIN_DELAY", drain_delay)]
}

/// Starts or keeps HAProxy on these ports, in front of the replicas of user-svc and data-svc. Returns when both are ready.
pub(super) fn up(paths: &Paths, ports: [u16; 2], users: &[u16], data: &[u16]) -> Result<()> {
    let folder = paths.folder("haproxy")?;
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let arguments = haproxy_arguments(&folder, users, data).map_err(failed)?;
    let files: Vec<_> =
        arguments.iter().map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect();
    let settings = haproxy_settings(ports).to_vec();
    let program = find("haproxy")?;
    let version = version(&program, &settings, &files.concat());
    let [port, metrics_port] = ports;
    run(
        paths,
        HAPROXY,
        Start { program, arguments, settings, port, metrics_port, version, ..Start::default() },
    )?;
    let part = Part::of(paths, HAPROXY);
    let ready = part.becomes_ready(GRACE, || ports.into_iter().all(is_ready));
    if ready { Ok(()) } else { Err(part.failure("is not ready")) }
}

/// Where it listens, and whether a replica of each service is ready.
pub(super) fn state(ports: [u16; 2]) -> (String, bool) {
    (ports.map(url).join(" "), ports.into_iter().all(is_ready))
}
