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

/// The ports of a replica behind HAProxy, which nobody needs to remember either.
pub(super) fn for_replica(part: &Part<'_>) -> (u16, u16) {
    let is_usable = |port: &u16| part.alive().is_some() || is_free(*port);
    let previous = part.previous();
    let choose = |port: Option<u16>| port.filter(is_usable).unwrap_or_else(free_port);
    (
        choose(previous.as_ref().map(|record| record.port)),
        choose(previous.as_ref().map(|record| record.metrics_port)),
    )
}

/// The port where clients find a service, which had `previous`. Ports that are `ours` count as free. `setting` looks up an
/// environment variable.
pub(super) fn for_clients(
    service: &str,
    previous: Option<u16>,
    ours: &[u16],
    setting: impl Fn(&str) -> Option<String>,
) -> Result<u16> {
    let (variable, usual) = usual(service);
    let Some(text) = setting(variable) else { return choose(previous, usual, ours) };
    let port = text.parse().map_err(|_| format!("{variable} is not a port: {text}"))?;
    if !ours.contains(&port) && !is_free(port) {
        return Err(format!("{variable}: another program listens on 127.0.0.1:{port}"));
    }
    Ok(port)
}

/// The port for metrics of a service without replicas.
pub(super) fn for_metrics(service: &str, previous: Option<u16>, ours: &[u16]) -> Result<u16> {
    choose(previous, usual(service).1 + 1000, ours)
}

/// Chooses the previous port, else the first free one from `usual` on. It steps by two, so that the two services, whose
/// usual ports are neighbours, never want the same one.
fn choose(previous: Option<u16>, usual: u16, ours: &[u16]) -> Result<u16> {
    let mut candidates = previous.into_iter().chain((usual..usual + 200).step_by(2));
    candidates
        .find(|port| ours.contains(port) || is_free(*port))
        .ok_or_else(|| format!("no free port from {usual} on"))
}
