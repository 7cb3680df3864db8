//! Postgres in the background, as safe with its data as in production, and recovered from whatever ended it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::background::{Part, Start};
use super::place::Place;
use super::{POSTGRES, Result, ports, say};
use crate::postgres::{answer, arguments, initialize, psql};
use crate::process::{birth, name, signal_if_born, until};
use crate::programs::{postgres_folder, postgres_folder_of};

/// How long a start may take, which covers recovery after a crash.
const PATIENCE: Duration = Duration::from_secs(120);

const DATABASE: &str = "users";

/// The URL of the services' database.
pub(super) fn url(port: u16) -> String {
    url_of(port, DATABASE)
}

fn url_of(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}")
}

/// True if the database answers a query within 2 s.
pub(super) fn is_ready(port: u16) -> bool {
    sql(&url(port), "SELECT 1").is_ok()
}

fn sql(url: &str, statement: &str) -> Result<String> {
    let mut command = psql(&postgres_folder()?, url, statement);
    answer(command.env("PGCONNECT_TIMEOUT", "2"))
}

/// Starts the server unless it runs, makes the database unless it exists, and returns its URL.
pub(super) fn up(place: &Place) -> Result<String> {
    let part = Part::of(place, POSTGRES);
    let data = place.prepared_data()?;
    let (port, how) = match part.alive() {
        Some(record) => (record.port, "kept"),
        None => (start(place, &part, &data)?, "started"),
    };
    // Kept, it may still be starting: a former `up` was interrupted.
    if !until(PATIENCE, || part.alive().is_none() || says_ready(&part, &data)) || part.alive().is_none() {
        return Err(part.failure("is not ready"));
    }
    let maintenance = url_of(port, "postgres");
    if sql(&maintenance, &format!("SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"))?.is_empty() {
        sql(&maintenance, &format!("CREATE DATABASE {DATABASE}"))?;
    }
    say(format!("postgres  {how}"));
    Ok(url(port))
}

fn start(place: &Place, part: &Part<'_>, data: &Path) -> Result<u16> {
    let folder = make_data(place, data)?;
    // The variable is pg_ctl's: a number that may stand in the pid file. The server still makes sure that no backend
    // of an earlier one uses the data.
    let settings: Vec<_> = disregarded(data)?
        .into_iter()
        .map(|pid| ("PG_GRANDPARENT_PID".to_owned(), pid.as_raw_nonzero().to_string()))
        .collect();
    let port = ports::for_store(part);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (program, account, settings) = (folder.join("postgres"), place.account.clone(), settings.clone());
        let arguments = arguments(data, port);
        part.start(Start { program, arguments, settings, account, port, ..Start::default() })?;
        until(PATIENCE, || part.alive().is_none() || says_ready(part, data));
        if part.alive().is_some() {
            return Ok(port);
        }
        // After SIGKILL the old server's backends take a moment to notice, and until then the data are theirs.
        let failure = part.failure("does not start");
        if !failure.contains("shared memory block") || Instant::now() > deadline {
            return Err(failure);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Makes the data unless they exist, and returns the folder of the programs that can serve them.
fn make_data(place: &Place, data: &Path) -> Result<PathBuf> {
    if let Ok(version) = fs::read_to_string(data.join("PG_VERSION")) {
        take_over(place, data)?;
        return postgres_folder_of(version.trim()).map_err(|error| {
            format!("{error}\nThe data in {} need it; `make reset` removes them.", data.display())
        });
    }
    // Made beside and then renamed, so that an interruption leaves no half.
    let new = data.with_extension("new");
    let failed = |error: std::io::Error| format!("{}: {error}", new.display());
    if new.exists() {
        fs::remove_dir_all(&new).map_err(failed)?;
    }
    fs::create_dir(&new).map_err(failed)?;
    crate::postgres::give(&new, place.account.as_ref()).map_err(failed)?;
    let folder = postgres_folder()?;
    say(format!("postgres  new data in {}", data.display()));
    initialize(&folder, &new, place.account.as_ref(), true)?;
    fs::rename(&new, data).map_err(failed)?;
    Ok(folder)
}

/// In a copied checkout the data may belong to whoever copied them, and be open to others, which Postgres refuses.
fn take_over(place: &Place, data: &Path) -> Result<()> {
    let metadata = data.metadata().map_err(|error| error.to_string())?;
    if let Some(account) = &place.account
        && metadata.uid() != account.uid
    {
        let owner = format!("{}:{}", account.uid, account.gid);
        answer(Command::new("chown").args(["-R", &owner]).arg(data))?;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(data, fs::Permissions::from_mode(0o700)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// True once the server has written into its pid file that it takes connections, as `pg_ctl` asks too.
fn says_ready(part: &Part<'_>, data: &Path) -> bool {
    let Some(record) = part.alive() else { return false };
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = text.lines();
    lines.next() == Some(&record.pid.to_string()) && lines.any(|line| line.trim() == "ready")
}

/// Postgres will not start while its pid file names a process that is there. It may be a server of ours whose record
/// was lost: that one is stopped. Or it is dead, but its parent has not noticed, as is the way of some containers.
/// Or it is somebody else's, because the number was used again, or because the whole checkout was copied. Such a
/// number is returned, for the new server to disregard.
fn disregarded(data: &Path) -> Result<Option<Pid>> {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
    let Some((pid, born)) = pid.and_then(|pid| Some((pid, birth(pid)?))) else { return Ok(pid) };
    // A server works in its data folder. Where that cannot be seen, what the file says is believed.
    let works_in = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok();
    let folder = works_in.or_else(|| lines.next().map(PathBuf::from));
    if name(pid).as_deref() != Some("postgres") || folder.as_deref() != Some(data) {
        return Ok(Some(pid));
    }
    say("postgres  stops a server on these data that was started before");
    signal_if_born(pid, &born, Signal::INT);
    if until(PATIENCE, || birth(pid).as_ref() != Some(&born)) {
        return Ok(Some(pid));
    }
    Err(format!("postgres with pid {} holds {} and does not stop", pid.as_raw_nonzero(), data.display()))
}
