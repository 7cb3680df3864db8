//! `make up` without Docker: private Postgres and Redis servers and both services, in the background.
//!
//! All state is in `.local` of the checkout: `run/` says which processes are ours and where they listen, `log/` has
//! what they wrote, `postgres/` the data, and `lock` lets one command work at a time. Nothing is believed that can be
//! seen: each command looks at what lives, and starts, keeps or replaces it.

mod background;
mod database;
mod place;
mod ports;
mod services;

use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

pub use background::become_background;
use background::{Part, Start};
use place::Place;

use crate::process::until;
use crate::programs::find;
use crate::redis;

/// What went wrong, in words for the person at the terminal.
pub type Result<T> = std::result::Result<T, String>;

const POSTGRES: &str = "postgres";
const REDIS: &str = "redis";
const USER_SVC: &str = "user-svc";
const DATA_SVC: &str = "data-svc";
const PARTS: [&str; 4] = [POSTGRES, REDIS, USER_SVC, DATA_SVC];

/// Services get their grace period (10 s unless set otherwise) and some more before they are killed.
const GRACE: Duration = Duration::from_secs(20);

/// Starts what is missing, replaces what is out of date, keeps the rest; returns when both services are ready.
pub fn up(checkout: &Path) -> Result<()> {
    let place = Place::of(checkout)?;
    let _lock = place.lock()?;
    services::check(&place)?;
    let [user, data] = start_all(&place)?;
    let json = r#"{"name":"john_doe","info":"likes tea"}"#;
    say(format!("\nuser-svc  {user}\ndata-svc  {data}\n\nRegister a user, then read it:"));
    say(format!("  curl -i {user}/register -H 'Content-Type: application/json' -d '{json}'"));
    say(format!("  curl -i {data}/user/john_doe"));
    Ok(())
}

/// Starts or keeps each part in the order of their needs, and returns the URLs of user-svc and data-svc.
fn start_all(place: &Place) -> Result<[String; 2]> {
    let living = || PARTS.map(|name| Part::of(place, name).alive().is_some());
    let attempt = || {
        let database_url = database::up(place)?;
        let redis_url = redis_up(place)?;
        services::up(place, &database_url, &redis_url)
    };
    // What was killed a moment ago still seems to live at the first look, and for some time after it fails. So try
    // again as long as a part ends: each can do so once.
    let mut done = Err(String::new());
    for _ in PARTS {
        let before = living();
        done = attempt();
        let has_ended = || before.into_iter().zip(living()).any(|(before, now)| before && !now);
        if done.is_ok() || !until(Duration::from_secs(2), has_ended) {
            break;
        }
    }
    done
}

/// Stops the services, then the stores, each in good order. The data stay.
pub fn down(checkout: &Path) -> Result<()> {
    let place = Place::of(checkout)?;
    let _lock = place.lock()?;
    stop_all(&place);
    Ok(())
}

fn stop_all(place: &Place) {
    let postgres_fast_shutdown = Signal::INT;
    let steps = [
        (USER_SVC, Signal::TERM, GRACE),
        (DATA_SVC, Signal::TERM, GRACE),
        (REDIS, Signal::TERM, GRACE),
        (POSTGRES, postgres_fast_shutdown, Duration::from_secs(60)),
    ];
    let living = steps.map(|(name, ..)| Part::of(place, name).alive().is_some());
    // Both services drain at the same time; below, each is waited for.
    for name in [USER_SVC, DATA_SVC] {
        Part::of(place, name).signal(Signal::TERM);
    }
    for ((name, signal, patience), lived) in steps.into_iter().zip(living) {
        Part::of(place, name).stop(signal, patience);
        say(format!("{name:<9} {}", if lived { "stopped" } else { "not running" }));
    }
}

/// Prints a line. Whoever reads may have gone (`make up | head -1`), which must not stop the work.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line for each part: whether it runs, where, and whether it is ready.
pub fn status(checkout: &Path) -> Result<()> {
    let place = Place::of(checkout)?;
    for name in PARTS {
        let Some(record) = Part::of(&place, name).alive() else {
            say(format!("{name:<9} not running"));
            continue;
        };
        let (address, ready) = match name {
            POSTGRES => (database::url(record.port), database::is_ready(record.port)),
            REDIS => (redis_url(record.port), redis::ping(record.port)),
            _ => (services::url(record.port), services::is_ready(record.port)),
        };
        let ready = if ready { "ready" } else { "NOT READY" };
        say(format!("{name:<9} running  pid {:<8} {ready:<10} {address}", record.pid));
    }
    Ok(())
}

/// Shows the last lines of all logs, and with `follow` goes on until Ctrl-C. Returns only on failure.
pub fn logs(checkout: &Path, follow: bool) -> Result<()> {
    let place = Place::of(checkout)?;
    let logs = PARTS.map(|name| place.log(name));
    let present: Vec<_> = logs.into_iter().filter(|log| log.exists()).collect();
    if present.is_empty() {
        return Err("no logs yet: `make up` first".to_owned());
    }
    let mut tail = Command::new("tail");
    tail.args(["-n", "100"]).args(follow.then_some("-F")).args(present);
    Err(format!("tail: {}", tail.exec()))
}

/// Stops everything and removes all data and logs, after asking unless `sure`.
pub fn reset(checkout: &Path, sure: bool) -> Result<()> {
    let place = Place::of(checkout)?;
    let _lock = place.lock()?;
    let data = place.data();
    if !sure && !confirmed(&format!("Stop everything and remove all users in {}?", data.display()))? {
        say("Nothing was removed.");
        return Ok(());
    }
    stop_all(&place);
    place.clear()?;
    say("All data are removed.");
    Ok(())
}

fn confirmed(question: &str) -> Result<bool> {
    print!("{question} [y/N] ");
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| error.to_string())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Prints the URL of the running database, for tools such as the Diesel CLI.
pub fn database_url(checkout: &Path) -> Result<()> {
    let place = Place::of(checkout)?;
    let record = Part::of(&place, POSTGRES).alive().ok_or("Postgres does not run: `make up` first")?;
    say(database::url(record.port));
    Ok(())
}

fn redis_url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/0")
}

fn redis_up(place: &Place) -> Result<String> {
    let part = Part::of(place, REDIS);
    let (port, how) = match part.alive() {
        Some(record) => (record.port, "kept"),
        None => {
            let port = ports::for_store(&part);
            let arguments = redis::arguments(&place.folder("redis")?, port);
            let start = Start { program: find("redis-server")?, arguments, port, ..Start::default() };
            part.start(start)?;
            (port, "started")
        }
    };
    if !(until(GRACE, || part.alive().is_none() || redis::ping(port)) && part.alive().is_some()) {
        return Err(part.failure("does not answer"));
    }
    say(format!("redis     {how}"));
    Ok(redis_url(port))
}
