//! A process in the background, and a record that identifies it.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, setsid};
use serde_json::{Value, json};

use super::paths::{Paths, write_atomically};
use super::terminal::{Result, say};
use crate::process::{birth, children, signal_if_born, until};
use crate::programs::{Account, clean};

pub(super) const POSTGRES: &str = "postgres";
pub(super) const REDIS: &str = "redis";
pub(super) const USER_SVC: &str = "user-svc";
pub(super) const DATA_SVC: &str = "data-svc";
pub(super) const HAPROXY: &str = "haproxy";

/// The next start sets a longer log aside, and removes the one set aside before. So a part has at most two logs, and
/// neither fills the disk.
const LONG_LOG: u64 = 10 * 1024 * 1024;

/// What is known about a process that was started.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) pid: i32,
    /// Distinguishes the process from a later one with the same ID.
    birth: String,
    /// Distinguishes the process from that of a checkout that this one was copied from.
    checkout: String,
    pub(super) port: u16,
    /// Of HAProxy: its port for data-svc.
    pub(super) metrics_port: u16,
    /// Changes with the binary and settings: a process with another version is out of date.
    pub(super) version: String,
    /// Where in the log the process's own lines begin, in bytes.
    log_start: u64,
}

/// How a part is started.
#[derive(Debug, Default)]
pub(super) struct Start {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) settings: Vec<(String, String)>,
    pub(super) account: Option<Account>,
    pub(super) port: u16,
    pub(super) metrics_port: u16,
    pub(super) version: String,
}

/// One of the processes of a native stack.
#[derive(Debug)]
pub(super) struct Part<'a> {
    paths: &'a Paths,
    name: String,
}

/// The names of all parts: the stores, and what the last `up` has started besides. In the order of their start.
pub(super) fn parts(paths: &Paths) -> Vec<String> {
    let kinds = [POSTGRES, REDIS, USER_SVC, DATA_SVC, HAPROXY];
    let kind = |name: &str| kinds.iter().position(|kind| name.starts_with(kind));
    let mut names: Vec<String> = paths.records().into_iter().filter(|name| kind(name).is_some()).collect();
    let is_there = |names: &[String], name: &str| names.iter().any(|it| it.starts_with(name));
    for name in [POSTGRES, REDIS, USER_SVC, DATA_SVC] {
        if !is_there(&names, name) {
            names.push(name.to_owned());
        }
    }
    // The length, since `user-svc-10` comes after `user-svc-9`.
    names.sort_by_key(|name| (kind(name), name.len(), name.clone()));
    names
}

impl Record {
    fn read(path: &Path) -> Option<Record> {
        let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let port = |name: &str| u16::try_from(value[name].as_u64()?).ok();
        Some(Record {
            pid: value["pid"].as_i64()?.try_into().ok()?,
            birth: text("birth")?,
            checkout: text("checkout")?,
            port: port("port")?,
            metrics_port: port("metrics_port")?,
            version: text("version")?,
            log_start: value["log_start"].as_u64()?,
        })
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.pid)
    }
}

impl Part<'_> {
    pub(super) fn of<'a>(paths: &'a Paths, name: &str) -> Part<'a> {
        Part { paths, name: name.to_owned() }
    }

    /// The record of the last process, which need not be alive.
    pub(super) fn previous(&self) -> Option<Record> {
        let record = Record::read(&self.paths.record(&self.name))?;
        (record.checkout == self.paths.checkout.display().to_string()).then_some(record)
    }

    /// The record of the process, if it is alive.
    pub(super) fn alive(&self) -> Option<Record> {
        self.previous().filter(|record| record.pid().and_then(birth).as_ref() == Some(&record.birth))
    }

    /// Starts the process in the background, and returns when its record is written.
    pub(super) fn start(&self, start: Start) -> Result<()> {
        let log =
            self.open_log().map_err(|error| format!("{}: {error}", self.paths.log(&self.name).display()))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let record = json!({
            "checkout": self.paths.checkout.display().to_string(),
            "port": start.port,
            "metrics_port": start.metrics_port,
            "version": start.version,
            "log_start": log.metadata().map_err(|error| error.to_string())?.len(),
        });
        let account =
            start.account.map_or("-".to_owned(), |account| format!("{}:{}", account.uid, account.gid));
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        // The shell's variables are not for the parts: many shells export a HOST, and conda's is no address.
        let mut command = clean(own);
        command.arg("background").arg(self.paths.record(&self.name)).args([record.to_string(), account]);
        command.arg(start.program).args(start.arguments).envs(start.settings);
        command.current_dir(&self.paths.checkout).stdin(Stdio::null()).stdout(log).stderr(errors);
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let pid = child.id().cast_signed();
        let is_recorded = || self.previous().is_some_and(|record| record.pid == pid);
        let mut has_ended = || !matches!(child.try_wait(), Ok(None));
        // The process writes its record within milliseconds; 10 s are enough on the busiest machine.
        until(Duration::from_secs(10), || is_recorded() || has_ended());
        if is_recorded() { Ok(()) } else { Err(self.failure("does not start")) }
    }

    fn open_log(&self) -> std::io::Result<File> {
        let path = self.paths.log(&self.name);
        if path.metadata().is_ok_and(|metadata| metadata.len() > LONG_LOG) {
            fs::rename(&path, path.with_extension("log.1"))?;
        }
        File::options().create(true).append(true).open(path)
    }

    /// Waits until `is_ready` holds, and returns whether it does. Returns early if the process ends.
    pub(super) fn becomes_ready(&self, timeout: Duration, is_ready: impl Fn() -> bool) -> bool {
        until(timeout, || self.alive().is_none() || is_ready()) && self.alive().is_some()
    }

    /// Sends the process a signal, if it is alive.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some((pid, record)) = self.alive().and_then(|record| Some((record.pid()?, record))) {
            signal_if_born(pid, &record.birth, signal);
        }
    }

    /// Ends the process by `signal`, and after `timeout` kills it and its children.
    pub(super) fn stop(&self, signal: Signal, timeout: Duration) {
        let Some(pid) = self.alive().and_then(|record| record.pid()) else { return };
        self.signal(signal);
        // A frozen process must be thawed to handle the signal.
        self.signal(Signal::CONT);
        if !until(timeout, || self.alive().is_none()) {
            say(format!("{:<10} does not stop within {} s: killed", self.name, timeout.as_secs()));
            let orphans = children(pid);
            self.signal(Signal::KILL);
            for orphan in orphans {
                // Fails if the child has ended by itself.
                let _ = kill_process(orphan, Signal::KILL);
            }
            until(Duration::from_secs(10), || self.alive().is_none());
        }
    }

    /// Ends the process as [`Part::stop`] does, and removes its record: it is no part any more.
    pub(super) fn remove(&self, signal: Signal, timeout: Duration) -> Result<()> {
        self.stop(signal, timeout);
        let record = self.paths.record(&self.name);
        fs::remove_file(&record).map_err(|error| format!("{}: {error}", record.display()))
    }

    /// A message with the last lines that the process has written since it was started.
    pub(super) fn failure(&self, what: &str) -> String {
        let path = self.paths.log(&self.name);
        let bytes = fs::read(&path).unwrap_or_default();
        let start = self.previous().and_then(|record| usize::try_from(record.log_start).ok()).unwrap_or(0);
        let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default());
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("{} {what}. The last lines of {}:\n{end}", self.name, path.display())
    }
}

/// What `devstack background RECORD JSON UID:GID|- PROGRAM ARGUMENT...` does in the new process. It leaves the terminal,
/// writes its own process ID and birth into the record, then becomes the program, which keeps both. So at no time does
/// the program run without a record.
pub fn become_background(mut arguments: impl Iterator<Item = OsString>) -> Result<Infallible> {
    let mut next = || arguments.next().ok_or("too few arguments");
    let path = next()?;
    let record = next()?;
    let account = next()?;
    let program = next()?;
    setsid().map_err(|error| format!("setsid: {error}"))?;
    let own = rustix::process::getpid();
    let mut record: Value =
        serde_json::from_str(&record.to_string_lossy()).map_err(|error| error.to_string())?;
    record["pid"] = own.as_raw_nonzero().get().into();
    record["birth"] = birth(own).ok_or("this process is not to be found")?.into();
    write_atomically(Path::new(&path), &record.to_string()).map_err(|error| error.to_string())?;
    let mut command = Command::new(&program);
    command.args(arguments);
    if let Some((uid, gid)) = account.to_string_lossy().split_once(':') {
        let number = |word: &str| word.parse::<u32>().map_err(|error| error.to_string());
        command.uid(number(uid)?).gid(number(gid)?);
    }
    Err(format!("{}: {}", program.display(), command.exec()))
}
