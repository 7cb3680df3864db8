//! Postgres in the background, as safe with its data as in production. It recovers, in whatever way it ended before.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::background::{POSTGRES, Part, Start};
use super::paths::Paths;
use super::ports;
use super::terminal::{Result, say};
use crate::commands::{initdb, make_roles, postgres_arguments, psql};
use crate::process::{birth, name, signal_if_born, until};
use crate::programs::{give, output, postgres_folder, postgres_folder_of};

/// How long a start may take, which includes recovery after a crash.
const TIMEOUT: Duration = Duration::from_secs(120);

const DATABASE: &str = "users";

/// The role of user-svc, which owns the tables. `docker/roles.sql` makes both.
pub(super) const OWNER: &str = "user_svc";
/// The role of data-svc, which may only read.
pub(super) const READER: &str = "data_svc";
const SUPERUSER: &str = "postgres";

/// The URL of the services' database for a role.
pub(super) fn url(port: u16, role: &str) -> String {
    url_of(port, role, DATABASE)
}

fn url_of(port: u16, role: &str, database: &str) -> String {
    format!("postgres://{role}@127.0.0.1:{port}/{database}")
}

/// Returns whether the database can be connected to within 2 s and answers a query.
pub(super) fn is_ready(port: u16) -> bool {
    sql(&url(port, OWNER), "SELECT 1").is_ok()
}

fn sql(url: &str, statement: &str) -> Result<String> {
    let mut command = psql(&postgres_folder()?, url, statement);
    output(command.env("PGCONNECT_TIMEOUT", "2"))
}

/// Starts the server unless it runs, makes the database and the roles unless they exist, and returns the server's port.
pub(super) fn up(paths: &Paths) -> Result<u16> {
    let part = Part::of(paths, POSTGRES);
    let data = paths.prepared_data()?;
    let (port, how) = match part.alive() {
        Some(record) => (record.port, "kept"),
        None => (start(paths, &part, &data)?, "started"),
    };
    // A server that was kept may still be starting, if the last `up` was interrupted.
    if !part.becomes_ready(TIMEOUT, || is_accepting(&part, &data)) {
        return Err(part.failure("is not ready"));
    }
    let maintenance = url_of(port, SUPERUSER, "postgres");
    if sql(&maintenance, &format!("SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"))?.is_empty() {
        sql(&maintenance, &format!("CREATE DATABASE {DATABASE}"))?;
    }
    // Each time: a former release made the tables as the superuser.
    make_roles(&postgres_folder()?, &url(port, SUPERUSER))?;
    say(format!("postgres   {how}"));
    Ok(port)
}

fn start(paths: &Paths, part: &Part<'_>, data: &Path) -> Result<u16> {
    let folder = make_data(paths, data)?;
    // pg_ctl has this variable: a process ID in the pid file that the server ignores. The server still makes sure that
    // no backend of an earlier server uses the data.
    let settings: Vec<_> = stale_pid(data)?
        .into_iter()
        .map(|pid| ("PG_GRANDPARENT_PID".to_owned(), pid.as_raw_nonzero().to_string()))
        .collect();
    let port = ports::for_store(part);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        part.start(Start {
            program: folder.join("postgres"),
            arguments: postgres_arguments(data, port),
            settings: settings.clone(),
            account: paths.account.clone(),
            port,
            ..Start::default()
        })?;
        until(TIMEOUT, || part.alive().is_none() || is_accepting(part, data));
        if part.alive().is_some() {
            return Ok(port);
        }
        // After SIGKILL of the old server, its backends take a moment to notice, and until then they use the data.
        let failure = part.failure("does not start");
        if !failure.contains("shared memory block") || Instant::now() > deadline {
            return Err(failure);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Makes the data unless they exist, and returns the folder of the programs that can serve them.
fn make_data(paths: &Paths, data: &Path) -> Result<PathBuf> {
    if let Ok(version) = fs::read_to_string(data.join("PG_VERSION")) {
        take_over(paths, data)?;
        return postgres_folder_of(version.trim()).map_err(|error| {
            format!("{error}\nThe data in {} need it; `make reset` removes them.", data.display())
        });
    }
    // The data are made under another name and then renamed, so that an interruption leaves none or all of them.
    let new = data.with_extension("new");
    let failed = |error: std::io::Error| format!("{}: {error}", new.display());
    if new.exists() {
        fs::remove_dir_all(&new).map_err(failed)?;
    }
    fs::create_dir(&new).map_err(failed)?;
    give(&new, paths.account.as_ref()).map_err(failed)?;
    let folder = postgres_folder()?;
    say(format!("postgres   new data in {}", data.display()));
    output(&mut initdb(&folder, &new, paths.account.as_ref()))?;
    fs::rename(&new, data).map_err(failed)?;
    Ok(folder)
}

/// Gives the data to the user that Postgres runs as. In a copied checkout they may belong to the user who copied them,
/// and be open to others, both of which Postgres refuses.
fn take_over(paths: &Paths, data: &Path) -> Result<()> {
    let metadata = data.metadata().map_err(|error| error.to_string())?;
    if let Some(account) = &paths.account
        && metadata.uid() != account.uid
    {
        let owner = format!("{}:{}", account.uid, account.gid);
        output(Command::new("chown").args(["-R", &owner]).arg(data))?;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(data, fs::Permissions::from_mode(0o700)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Returns whether the server accepts connections. It writes that into its pid file, where `pg_ctl` looks too.
fn is_accepting(part: &Part<'_>, data: &Path) -> bool {
    let Some(record) = part.alive() else { return false };
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = text.lines();
    lines.next() == Some(&record.pid.to_string()) && lines.any(|line| line.trim() == "ready")
}

/// The process ID in Postgres' pid file, if the new server must ignore it.
///
/// Postgres does not start while its pid file names an existing process. That process may be one of:
/// - a server on these data whose record was lost: this function stops it;
/// - a dead server whose parent has not reaped it, as happens in some containers;
/// - an unrelated process, because the ID was used again or the whole checkout was copied.
fn stale_pid(data: &Path) -> Result<Option<Pid>> {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
    let Some((pid, born)) = pid.and_then(|pid| Some((pid, birth(pid)?))) else { return Ok(pid) };
    // A server's working folder is its data. Where the system does not show it, the file's own line is believed.
    let works_in = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok();
    let folder = works_in.or_else(|| lines.next().map(PathBuf::from));
    if name(pid).as_deref() != Some("postgres") || folder.as_deref() != Some(data) {
        return Ok(Some(pid));
    }
    say("postgres   stops a server on these data that was started before");
    signal_if_born(pid, &born, Signal::INT);
    if until(TIMEOUT, || birth(pid).as_ref() != Some(&born)) {
        return Ok(Some(pid));
    }
    Err(format!("postgres with pid {} uses {} and does not stop", pid.as_raw_nonzero(), data.display()))
}
