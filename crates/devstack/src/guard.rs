//! A server that ends when we do, however we end.
//!
//! Statics are never dropped, a test may be ended by a time-out's SIGKILL, and `PR_SET_PDEATHSIG` fires when the
//! *thread* that started the server ends, which for a test is too early. So each server starts as a shell that first
//! leaves a watcher behind, then becomes the server. The watcher reads a pipe whose other end only this process has:
//! end-of-file there means that we are gone, and it kills the server and the server's children.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitIdOptions, kill_process, waitid};

use crate::log::Log;
use crate::programs::clean;

/// `$1` is the signal that ends the server well, the rest its command. The watcher is started twice removed, so
/// that it is nobody's child: Postgres would wonder. The kernel sends SIGHUP to a group that loses its parent while
/// a member is frozen, which must not end the watcher. A line on the pipe says that the server is reaped, and its
/// number must not be used any more. SIGCONT comes first, because a frozen server does not hear; the children are
/// named too, since Postgres' backends are frozen one by one.
const WATCHED: &str = r#"
watch() {
    trap '' HUP INT TERM
    if read -r _; then exit; fi
    kill -CONT $$ $(children)
    kill -"$1" $$
    left=50
    while [ $left -gt 0 ]; do kill -0 $$ || exit; sleep 0.1; left=$((left - 1)); done
    kill -KILL $$ $(children)
}
children() { cat /proc/$$/task/$$/children || pgrep -P $$; }
exec 3<&0 </dev/null
( watch "$1" <&3 3<&- >/dev/null 2>&1 & )
exec 3<&-
shift
exec "$@"
"#;

/// The command that starts `program` with a watcher, with no variables but PATH and the like; add its arguments and
/// variables, folder and user. `farewell` is the signal on which the program ends well and at once.
pub fn watched(farewell: Signal, program: &Path) -> Command {
    let mut shell = clean("/bin/sh");
    shell.args(["-c", WATCHED, "sh", &farewell.as_raw().to_string()]).arg(program);
    shell
}

/// A running server. Dropping it kills the server.
#[derive(Debug)]
pub struct Guarded {
    pid: Pid,
    log: Log,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug)]
enum State {
    Running(Child, ChildStdin),
    Ended(ExitStatus),
}

impl Guarded {
    /// Starts a command made by [`watched`]. Its standard input is empty, output and error go to the log.
    pub fn start(mut command: Command) -> Guarded {
        let (log, output) = std::io::pipe().expect("a pipe for the server's log");
        let errors = output.try_clone().expect("a second end of the pipe");
        command.stdin(Stdio::piped()).stdout(output).stderr(errors);
        // In a group of its own, so that Ctrl-C on the terminal ends the test, and only then the watcher its server.
        let mut child = command.process_group(0).spawn().expect("/bin/sh starts");
        // It holds our copies of the pipe's ends, with which the log would never end.
        drop(command);
        let pid = Pid::from_child(&child);
        let stdin = child.stdin.take().expect("stdin is piped");
        let shared =
            Arc::new(Shared { state: Mutex::new(State::Running(child, stdin)), ended: Condvar::new() });
        let copy = Arc::clone(&shared);
        std::thread::spawn(move || copy.reap(pid));
        Guarded { pid, log: Log::of(log), shared }
    }

    /// The server's process number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What the server wrote.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Sends a signal; returns false if the server has ended before.
    pub fn signal(&self, signal: Signal) -> bool {
        // Under the lock the server is not reaped, and so its number cannot have become someone else's.
        match *self.shared.lock() {
            State::Running(..) => kill_process(self.pid, signal).is_ok(),
            State::Ended(_) => false,
        }
    }

    /// How the server ended; `None` while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        match *self.shared.lock() {
            State::Running(..) => None,
            State::Ended(status) => Some(status),
        }
    }

    /// Waits for the server's end; `None` when the time is over.
    pub fn wait(&self, bound: Duration) -> Option<ExitStatus> {
        let running = |state: &mut State| matches!(state, State::Running(..));
        drop(self.shared.ended.wait_timeout_while(self.shared.lock(), bound, running));
        self.status()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(10));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end without reaping, then reaps under the lock: see [`Guarded::signal`].
    fn reap(&self, pid: Pid) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(rustix::process::WaitId::Pid(pid), options)
            .is_err_and(|error| error == rustix::io::Errno::INTR)
        {}
        let mut state = self.lock();
        if let State::Running(child, stdin) = &mut *state {
            let status = child.wait().expect("our own child can be waited for");
            // Fails if the watcher is gone, and then there is nobody to tell.
            drop(stdin.write_all(b"reaped\n"));
            *state = State::Ended(status);
        }
        self.ended.notify_all();
    }
}
