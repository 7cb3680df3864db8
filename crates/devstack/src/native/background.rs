//! A process in the background, known by a record that no other process can be mistaken for.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, setsid};
use serde_json::{Value, json};

use super::place::{Place, write_whole};
use super::{Result, say};
use crate::process::{birth, children, signal_if_born, until};
use crate::programs::Account;

/// A log longer than this is put aside at the next start, and the one put aside before is removed.
const LONG_LOG: u64 = 10 * 1024 * 1024;

/// What is known of a process that was started.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) pid: i32,
    /// Tells it from a later process with the same number.
    birth: String,
    /// Tells it from the process of a checkout that this one was copied from.
    checkout: String,
    pub(super) port: u16,
    pub(super) metrics_port: u16,
    /// Tells whether it would be started the same way today.
    pub(super) version: String,
    /// Where in the log its own lines begin, in bytes.
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

/// One of the four processes of a native stack.
#[derive(Debug)]
pub(super) struct Part<'a> {
    place: &'a Place,
    name: &'static str,
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
    pub(super) fn of<'a>(place: &'a Place, name: &'static str) -> Part<'a> {
        Part { place, name }
    }

    /// What was known of it last; it need not live.
    pub(super) fn previous(&self) -> Option<Record> {
        let record = Record::read(&self.place.record(self.name))?;
        (record.checkout == self.place.checkout.display().to_string()).then_some(record)
    }

    /// The process, if it lives.
    pub(super) fn alive(&self) -> Option<Record> {
        self.previous().filter(|record| record.pid().and_then(birth).as_ref() == Some(&record.birth))
    }

    /// Starts it in the background, and returns when its record is written.
    pub(super) fn start(&self, start: Start) -> Result<()> {
        let log =
            self.open_log().map_err(|error| format!("{}: {error}", self.place.log(self.name).display()))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let record = json!({
            "checkout": self.place.checkout.display().to_string(),
            "port": start.port,
            "metrics_port": start.metrics_port,
            "version": start.version,
            "log_start": log.metadata().map_err(|error| error.to_string())?.len(),
        });
        let account =
            start.account.map_or("-".to_owned(), |account| format!("{}:{}", account.uid, account.gid));
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(own);
        command.arg("background").arg(self.place.record(self.name)).args([record.to_string(), account]);
        command.arg(start.program).args(start.arguments).envs(start.settings);
        command.current_dir(&self.place.checkout).stdin(Stdio::null()).stdout(log).stderr(errors);
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let pid = child.id().cast_signed();
        let recorded = || self.previous().is_some_and(|record| record.pid == pid);
        let mut ended = || !matches!(child.try_wait(), Ok(None));
        until(Duration::from_secs(10), || recorded() || ended());
        if recorded() { Ok(()) } else { Err(self.failure("does not start")) }
    }

    fn open_log(&self) -> std::io::Result<File> {
        let path = self.place.log(self.name);
        if path.metadata().is_ok_and(|metadata| metadata.len() > LONG_LOG) {
            fs::rename(&path, path.with_extension("log.1"))?;
        }
        File::options().create(true).append(true).open(path)
    }

    /// Sends it a signal, if it lives.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some((pid, record)) = self.alive().and_then(|record| Some((record.pid()?, record))) {
            signal_if_born(pid, &record.birth, signal);
        }
    }

    /// Ends it: asks, then kills it and its children when the time is over. False if it did not live.
    pub(super) fn stop(&self, signal: Signal, patience: Duration) -> bool {
        let Some(pid) = self.alive().and_then(|record| record.pid()) else { return false };
        self.signal(signal);
        // Should somebody have frozen it.
        self.signal(Signal::CONT);
        if !until(patience, || self.alive().is_none()) {
            say(format!("{:<9} does not stop within {} s: killed", self.name, patience.as_secs()));
            let orphans = children(pid);
            self.signal(Signal::KILL);
            for orphan in orphans {
                let _ = kill_process(orphan, Signal::KILL);
            }
            until(Duration::from_secs(10), || self.alive().is_none());
        }
        true
    }

    /// A message with the end of what it wrote since it was last started.
    pub(super) fn failure(&self, what: &str) -> String {
        let path = self.place.log(self.name);
        let bytes = fs::read(&path).unwrap_or_default();
        let start = self.previous().and_then(|record| usize::try_from(record.log_start).ok()).unwrap_or(0);
        let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default());
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n");
        format!("{} {what}; {} ends so:\n{end}", self.name, path.display())
    }
}

/// What `devstack background RECORD JSON UID:GID|- PROGRAM ARGUMENT...` does in the new process: leaves the terminal,
/// writes down its own number and birth, then becomes the program, which keeps both. So no moment passes in which the
/// program runs and nobody knows of it.
pub fn become_background(mut arguments: impl Iterator<Item = OsString>) -> Result<Infallible> {
    let mut next = || arguments.next().ok_or("too few arguments");
    let (path, record, account, program) = (next()?, next()?, next()?, next()?);
    setsid().map_err(|error| format!("setsid: {error}"))?;
    let own = rustix::process::getpid();
    let mut record: Value =
        serde_json::from_str(&record.to_string_lossy()).map_err(|error| error.to_string())?;
    record["pid"] = own.as_raw_nonzero().get().into();
    record["birth"] = birth(own).ok_or("we do not live")?.into();
    write_whole(Path::new(&path), &record.to_string()).map_err(|error| error.to_string())?;
    let mut command = Command::new(&program);
    command.args(arguments);
    if let Some((uid, gid)) = account.to_string_lossy().split_once(':') {
        let number = |word: &str| word.parse::<u32>().map_err(|error| error.to_string());
        command.uid(number(uid)?).gid(number(gid)?);
    }
    Err(format!("{}: {}", program.display(), command.exec()))
}
