//! A server that ends when this process ends, in whatever way it ends.
//!
//! Rust never drops statics, a time-out may end a test by SIGKILL, and `PR_SET_PDEATHSIG` fires when the *thread* that
//! started the server ends, which for a test is too early. So each server starts as a shell that first leaves a
//! supervisor behind and then becomes the server. The supervisor reads a pipe whose other end only this process has:
//! end-of-file on it means that this process has ended, and the supervisor kills the server and the server's children.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, WaitIdOptions, kill_process, waitid};

use crate::log::Log;
use crate::programs::clean;

/// The shell that becomes the server. `$1` is the stop signal, the rest the server's command.
///
/// A subshell that ends at once starts the supervisor, so that it is no child of the server: Postgres does not expect
/// children that it did not start. The supervisor ignores SIGHUP, which the kernel sends to a process group that loses
/// its parent while a member is frozen. A line on the pipe means that the server has been reaped, after which its process
/// ID must not be used. SIGCONT comes before the stop signal, because a frozen server would not handle that. It goes to
/// the children too, since Postgres' backends are frozen one by one. A server that still runs after 5 s (50 times 0.1 s)
/// is killed.
const SUPERVISED: &str = r#"
supervise() {
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
( supervise "$1" <&3 3<&- >/dev/null 2>&1 & )
exec 3<&-
shift
exec "$@"
"#;

/// The command that starts `program` under a supervisor, with no variables but PATH and the like. The caller adds
/// arguments, variables, folder and user. The supervisor sends `stop_signal`, on which the program must end at once and
/// in good order.
pub fn supervised(stop_signal: Signal, program: &Path) -> Command {
    let mut shell = clean("/bin/sh");
    shell.args(["-c", SUPERVISED, "sh", &stop_signal.as_raw().to_string()]).arg(program);
    shell
}

/// A running server. Dropping it kills the server.
#[derive(Debug)]
pub struct Supervised {
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

impl Supervised {
    /// Starts a command made by [`supervised`]. Its standard input is empty; output and errors go to the log.
    pub fn start(mut command: Command) -> Supervised {
        let (log, output) = std::io::pipe().expect("a pipe for the server's log");
        let errors = output.try_clone().expect("a second end of the pipe");
        command.stdin(Stdio::piped()).stdout(output).stderr(errors);
        // In a group of its own, so that Ctrl-C on the terminal ends the test first, and then the supervisor ends the server.
        let mut child = command.process_group(0).spawn().expect("/bin/sh starts");
        // The command holds our copies of the pipe's write end, which would keep the log open for ever.
        drop(command);
        let pid = Pid::from_child(&child);
        let stdin = child.stdin.take().expect("stdin is piped");
        let shared =
            Arc::new(Shared { state: Mutex::new(State::Running(child, stdin)), ended: Condvar::new() });
        let copy = Arc::clone(&shared);
        std::thread::spawn(move || copy.reap(pid));
        Supervised { pid, log: Log::of(log), shared }
    }

    /// The server's process ID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The server's output.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Sends a signal. Returns false if the server has ended.
    pub fn signal(&self, signal: Signal) -> bool {
        // Under the lock the server is not reaped, so its process ID cannot belong to another process yet.
        match *self.shared.state.lock() {
            State::Running(..) => kill_process(self.pid, signal).is_ok(),
            State::Ended(_) => false,
        }
    }

    /// The server's exit status; `None` while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        match *self.shared.state.lock() {
            State::Running(..) => None,
            State::Ended(status) => Some(status),
        }
    }

    /// Waits for the server's end; `None` if it still runs after `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        let is_running = |state: &mut State| matches!(state, State::Running(..));
        self.shared.ended.wait_while_for(&mut self.shared.state.lock(), is_running, timeout);
        self.status()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(10));
    }
}

impl Shared {
    /// Waits for the server's end without reaping it, then reaps it under the lock: see [`Supervised::signal`].
    fn reap(&self, pid: Pid) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(rustix::process::WaitId::Pid(pid), options)
            .is_err_and(|error| error == rustix::io::Errno::INTR)
        {}
        let mut state = self.state.lock();
        if let State::Running(child, stdin) = &mut *state {
            let status = child.wait().expect("our own child can be waited for");
            // Fails if the supervisor has ended, and then it needs no message.
            let _ = stdin.write_all(b"reaped\n");
            *state = State::Ended(status);
        }
        self.ended.notify_all();
    }
}
