//! What the system knows about a process by its ID: whether it lives, since when, and its children. And free ports.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// The fields of `/proc/PID/stat` after the command's name: state, parent, and so on (see proc(5)).
fn stat(pid: Pid) -> Option<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name is in parentheses and may contain any character, so the fields start after the last parenthesis.
    let (_, fields) = line.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// What `ps` prints about a process, for systems without `/proc`.
fn ps(pid: Pid, column: &str) -> Option<String> {
    let output = Command::new("ps")
        .args(["-o", &format!("{column}="), "-p", &pid.as_raw_nonzero().to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Returns whether the process runs or is stopped. A process that has ended and waits to be reaped is not alive.
pub(crate) fn is_alive(pid: Pid) -> bool {
    if cfg!(target_os = "linux") {
        stat(pid).is_some_and(|fields| fields[0] != "Z" && fields[0] != "X")
    } else {
        test_kill_process(pid).is_ok() && ps(pid, "stat").is_some_and(|state| !state.starts_with('Z'))
    }
}

/// When the process started, and in which boot of the machine: no other process has both this and this process ID.
/// `None` if no process with this ID is alive.
pub(crate) fn birth(pid: Pid) -> Option<String> {
    if !is_alive(pid) {
        return None;
    }
    if cfg!(target_os = "linux") {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Some(format!("{} {}", stat(pid)?.get(19)?, boot.trim()))
    } else {
        ps(pid, "lstart")
    }
}

/// Sends a signal to the process with this ID and [`birth`], and to no later one with the same ID. Returns false if it has
/// ended.
pub(crate) fn signal_if_born(pid: Pid, born: &str, signal: Signal) -> bool {
    // A pidfd stays with the process that it was opened for, so the process cannot change between the look and the signal.
    #[cfg(target_os = "linux")]
    if let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        return birth(pid).as_deref() == Some(born)
            && rustix::process::pidfd_send_signal(handle, signal).is_ok();
    }
    birth(pid).as_deref() == Some(born) && kill_process(pid, signal).is_ok()
}

/// The command's name, without its folder.
pub(crate) fn name(pid: Pid) -> Option<String> {
    if cfg!(target_os = "linux") {
        fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()))
            .ok()
            .map(|name| name.trim().to_owned())
    } else {
        ps(pid, "comm").and_then(|path| path.rsplit('/').next().map(str::to_owned))
    }
}

/// The process's children. The list is complete only if the process is frozen: a running one may start more meanwhile.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let number = pid.as_raw_nonzero();
    let listed = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap_or_else(|_| {
        let output = Command::new("pgrep").args(["-P", &number.to_string()]).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    });
    listed.split_whitespace().filter_map(|word| word.parse().ok().and_then(Pid::from_raw)).collect()
}

/// Freezes the process (SIGSTOP), and returns when it stands still: it may still run on another core for a moment.
#[cfg(feature = "testing")]
pub(crate) fn freeze(pid: Pid) {
    if kill_process(pid, Signal::STOP).is_err() {
        return;
    }
    let is_frozen = || stat(pid).is_none_or(|fields| matches!(fields[0].as_str(), "T" | "t" | "Z" | "X"));
    until(Duration::from_secs(5), is_frozen);
}

/// Polls `condition` until it holds (returns true) or `timeout` has passed (returns false). For what gives no event to
/// wait for. At 3 ms a poll costs little, and no test waits noticeably longer than it must.
pub(crate) fn until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// A port of 127.0.0.1 on which nothing listens, from 10240 to 32767. That is below the range that Linux gives to
/// outgoing connections, so a restarted server finds its port free.
pub fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    // Test binaries run side by side, so each starts at another port.
    let start = std::process::id().wrapping_mul(7919);
    loop {
        let step = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = 10_240 + (start.wrapping_add(step) % (32_768 - 10_240)) as u16;
        if is_free(port) {
            return port;
        }
    }
}

/// Returns whether a server could listen on this port of 127.0.0.1 now.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
