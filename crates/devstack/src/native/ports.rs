//! Which port a part gets: the one that is set, else the one that it had, else the usual one, else the next free one.

use super::background::{DATA_SVC, Part, USER_SVC};
use super::terminal::Result;
use crate::process::{free_port, is_free};

/// The environment variable that sets a service's port, and its usual port. The port for metrics is 1000 higher.
fn usual(service: &str) -> (&'static str, u16) {
    match service {
        USER_SVC => ("USER_SVC_PORT", 8080),
        DATA_SVC => ("DATA_SVC_PORT", 8081),
        _ => ("", 0),
    }
}

/// A store's port. No person needs to remember it, so any free one will do.
pub(super) fn for_store(part: &Part<'_>) -> u16 {
    part.previous().map(|record| record.port).filter(|port| is_free(*port)).unwrap_or_else(free_port)
}

/// A service's port and its port for metrics; `setting` looks up an environment variable.
pub(super) fn for_service(
    service: &str,
    part: &Part<'_>,
    setting: impl Fn(&str) -> Option<String>,
) -> Result<(u16, u16)> {
    let (variable, usual) = usual(service);
    let alive = part.alive();
    let previous = part.previous();
    let is_ours =
        |port: u16| alive.as_ref().is_some_and(|record| [record.port, record.metrics_port].contains(&port));
    let port = match setting(variable) {
        Some(text) => {
            let port = text.parse().map_err(|_| format!("{variable} is not a port: {text}"))?;
            if !is_ours(port) && !is_free(port) {
                return Err(format!("{variable}: another program listens on 127.0.0.1:{port}"));
            }
            port
        }
        None => choose(previous.as_ref().map(|record| record.port), usual, is_ours)?,
    };
    let metrics = choose(previous.as_ref().map(|record| record.metrics_port), usual + 1000, is_ours)?;
    Ok((port, metrics))
}

/// Chooses the previous port, else the first free one from `usual` on. It steps by two, so that the two services, whose
/// usual ports are neighbours, never want the same one.
fn choose(previous: Option<u16>, usual: u16, is_ours: impl Fn(u16) -> bool) -> Result<u16> {
    let mut candidates = previous.into_iter().chain((usual..usual + 200).step_by(2));
    candidates
        .find(|port| is_ours(*port) || is_free(*port))
        .ok_or_else(|| format!("no free port from {usual} on"))
}
