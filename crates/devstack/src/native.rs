//! `make up` without Docker: private Postgres and Redis servers and both services, in the background. With `REPLICAS` several
//! of each service, and HAProxy in front of them.
//!
//! All state is in `.local` of the checkout: `run/` records which processes are ours and where they listen, `log/` has
//! their output, `postgres/` the data, and `lock` lets one command work at a time. Records are checked and not trusted:
//! each command looks which processes live, and starts, keeps or replaces them.

mod background;
mod balancer;
mod database;
mod paths;
mod ports;
mod services;
mod terminal;
mod tokens;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use self::background::{HAPROXY, POSTGRES, Part, REDIS, Start, parts};
use self::database::OWNER;
use self::paths::Paths;
use self::services::GRACE;
use self::terminal::{confirm, say};
use crate::commands::{redis_arguments, redis_is_ready};
use crate::process::until;
use crate::programs::find;

pub use self::background::become_background;
pub use self::terminal::Result;

/// Which lines of the logs are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// The last 100 of each log.
    Last,
    /// The last 100 of each log, and new ones as they come.
    Follow,
}

/// Whether a person agrees that all data are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Ask on the terminal.
    Ask,
    /// The command line says so.
    Given,
}

/// Starts what is missing, replaces what is out of date and keeps the rest. Returns when both services are ready.
pub fn up(checkout: &Path) -> Result<()> {
    let paths = Paths::of(checkout)?;
    let _lock = paths.lock()?;
    let replicas = balancer::replicas()?;
    services::check(&paths, replicas)?;
    let token = tokens::curl_option(&paths)?;
    let [user, data] = start_all(&paths, replicas)?;
    let json = r#"{"name":"john_doe","info":"likes tea"}"#;
    say(format!("\nuser-svc  {user}\ndata-svc  {data}\n\nRegister a user, then read it:"));
    say(format!("  curl -i {user}/register{token} -H 'Content-Type: application/json' -d '{json}'"));
    say(format!("  curl -i {data}/user/john_doe{token}"));
    Ok(())
}

/// Starts or keeps each part, stores before services, and returns the URLs of user-svc and data-svc.
fn start_all(paths: &Paths, replicas: usize) -> Result<[String; 2]> {
    services::remove_others(paths, replicas)?;
    let names = parts(paths);
    let living =
        || -> Vec<bool> { names.iter().map(|name| Part::of(paths, name).alive().is_some()).collect() };
    let attempt = || {
        let database_port = database::up(paths)?;
        let redis_url = redis_up(paths)?;
        services::up(paths, replicas, database_port, &redis_url)
    };
    // A process that was killed a moment ago may still look alive, so that its part is kept and then fails. Try again
    // while a part ends: each can do so once.
    let mut done = Err(String::new());
    for _ in &names {
        let before = living();
        done = attempt();
        let has_ended = || before.iter().zip(living()).any(|(before, now)| *before && !now);
        if done.is_ok() || !until(Duration::from_secs(2), has_ended) {
            break;
        }
    }
    done
}

/// Stops the services, then the stores, each in good order. The data stay.
pub fn down(checkout: &Path) -> Result<()> {
    let paths = Paths::of(checkout)?;
    let _lock = paths.lock()?;
    stop_all(&paths);
    Ok(())
}

fn stop_all(paths: &Paths) {
    let postgres_fast_shutdown = Signal::INT;
    let (stores, mut steps): (Vec<String>, Vec<String>) =
        parts(paths).into_iter().partition(|name| [POSTGRES, REDIS].contains(&name.as_str()));
    // All services drain at the same time; the loop below waits for each. Postgres is the last one: it stands first.
    steps.extend(stores.into_iter().rev());
    let living: Vec<bool> = steps.iter().map(|name| Part::of(paths, name).alive().is_some()).collect();
    for name in steps.iter().filter(|name| ![POSTGRES, REDIS].contains(&name.as_str())) {
        Part::of(paths, name).signal(Signal::TERM);
    }
    for (name, lived) in steps.iter().zip(living) {
        let (signal, timeout) = match name.as_str() {
            // A fast shutdown writes out all changed pages.
            POSTGRES => (postgres_fast_shutdown, Duration::from_secs(60)),
            _ => (Signal::TERM, GRACE),
        };
        Part::of(paths, name).stop(signal, timeout);
        say(format!("{name:<10} {}", if lived { "stopped" } else { "not running" }));
    }
}

/// Prints a line for each part: whether it runs, where, and whether it is ready.
pub fn status(checkout: &Path) -> Result<()> {
    let paths = Paths::of(checkout)?;
    for name in parts(&paths) {
        let Some(record) = Part::of(&paths, &name).alive() else {
            say(format!("{name:<10} not running"));
            continue;
        };
        let (address, ready) = match name.as_str() {
            HAPROXY => balancer::state([record.port, record.metrics_port]),
            POSTGRES => (database::url(record.port, OWNER), database::is_ready(record.port)),
            REDIS => (redis_url(record.port), redis_is_ready(record.port)),
            _ => (services::url(record.port), services::is_ready(record.port)),
        };
        let ready = if ready { "ready" } else { "NOT READY" };
        say(format!("{name:<10} running  pid {:<8} {ready:<10} {address}", record.pid));
    }
    Ok(())
}

/// Shows the last lines of all logs, and with [`Lines::Follow`] continues until Ctrl-C. Returns only on failure.
pub fn logs(checkout: &Path, lines: Lines) -> Result<()> {
    let paths = Paths::of(checkout)?;
    let logs = parts(&paths).into_iter().map(|name| paths.log(&name));
    let present: Vec<_> = logs.filter(|log| log.exists()).collect();
    if present.is_empty() {
        return Err("no logs yet: `make up` first".to_owned());
    }
    let mut tail = Command::new("tail");
    tail.args(["-n", "100"]).args((lines == Lines::Follow).then_some("-F")).args(present);
    Err(format!("tail: {}", tail.exec()))
}

/// Stops everything and removes all data and logs. Asks before, unless consent is given.
pub fn reset(checkout: &Path, consent: Consent) -> Result<()> {
    let paths = Paths::of(checkout)?;
    let _lock = paths.lock()?;
    let question = format!("Stop everything and remove all users in {}?", paths.data().display());
    if consent == Consent::Ask && !confirm(&question)? {
        say("Nothing was removed.");
        return Ok(());
    }
    stop_all(&paths);
    paths.clear()?;
    say("All data are removed.");
    Ok(())
}

/// Prints the URL of the running database, for tools such as the Diesel CLI. What they make belongs to user-svc's role.
pub fn database_url(checkout: &Path) -> Result<()> {
    let paths = Paths::of(checkout)?;
    let record = Part::of(&paths, POSTGRES).alive().ok_or("Postgres does not run: `make up` first")?;
    say(database::url(record.port, OWNER));
    Ok(())
}

fn redis_url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/0")
}

fn redis_up(paths: &Paths) -> Result<String> {
    let part = Part::of(paths, REDIS);
    let (port, how) = match part.alive() {
        Some(record) => (record.port, "kept"),
        None => {
            let port = ports::for_store(&part);
            let arguments = redis_arguments(&paths.folder("redis")?, port);
            let start = Start { program: find("redis-server")?, arguments, port, ..Start::default() };
            part.start(start)?;
            (port, "started")
        }
    };
    if !part.becomes_ready(GRACE, || redis_is_ready(port)) {
        return Err(part.failure("does not answer"));
    }
    say(format!("redis      {how}"));
    Ok(redis_url(port))
}
