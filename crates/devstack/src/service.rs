//! One running `user-svc` or `data-svc`: its address, log, signals and end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::http;
use crate::log::Log;
use crate::process::{freeze, until};
use crate::programs::{clean, sibling};
use crate::proxy::Proxy;
use crate::supervise::{Supervised, supervised};
use crate::tempdir::TempDir;

/// How long a service may take to listen, to be ready, or to write what a test waits for.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A service before it starts: add settings, then [`start`](ServiceBuilder::start) it.
#[derive(Debug, Clone)]
#[must_use = "nothing runs before start"]
pub struct ServiceBuilder {
    program: PathBuf,
    settings: Vec<(String, String)>,
}

impl ServiceBuilder {
    /// One of our services by its binary's name, on any free port and without stores. Panics if the binary is not built.
    pub fn new(name: &str) -> ServiceBuilder {
        ServiceBuilder::of(sibling(name).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Any program that logs its addresses as our services do.
    pub fn of(program: PathBuf) -> ServiceBuilder {
        let builder = ServiceBuilder { program, settings: Vec::new() };
        builder.env("HOST", "127.0.0.1").env("PORT", "0").env("METRICS_PORT", "0").env("RUST_BACKTRACE", "1")
    }

    /// Sets an environment variable. The service sees no variables but those set here.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> ServiceBuilder {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    /// Removes an environment variable, so that the service uses its default.
    pub fn env_remove(mut self, name: &str) -> ServiceBuilder {
        self.settings.retain(|(known, _)| known != name);
        self
    }

    /// With long time-outs, for a test that is about none: neither a message that is held nor a busy machine causes one.
    /// Writes wait for longer than a suspension of the cache lasts.
    pub fn with_long_timeouts(self) -> ServiceBuilder {
        let names = ["DATABASE_DEADLINE", "DATABASE_STATEMENT_TIMEOUT", "DATABASE_LOCK_TIMEOUT"];
        names.iter().fold(self.env("CACHE_TIMEOUT", "4s"), |builder, name| builder.env(name, "9s"))
    }

    /// Makes the service reach Postgres through `proxy`.
    pub fn postgres_through(self, proxy: &Proxy) -> ServiceBuilder {
        self.through("DATABASE_URL", proxy)
    }

    /// Makes the service reach Redis through `proxy`.
    pub fn redis_through(self, proxy: &Proxy) -> ServiceBuilder {
        self.through("REDIS_URL", proxy)
    }

    fn through(self, setting: &str, proxy: &Proxy) -> ServiceBuilder {
        let found = self.settings.iter().find(|(name, _)| name == setting);
        let (_, url) = found.unwrap_or_else(|| panic!("{setting} is not set"));
        let (head, rest) = url.rsplit_once(':').expect("a URL with a port");
        let path = rest.find('/').map_or("", |slash| &rest[slash..]);
        let url = format!("{head}:{}{path}", proxy.port());
        self.env(setting, url)
    }

    /// Starts the service and waits until `/readyz` is 200. Panics with its log if that takes more than 10 s.
    pub fn start(&self) -> Service {
        let service = self.spawn();
        let ready = until(TIMEOUT, || service.has_ended() || service.is_ready());
        assert!(ready && !service.has_ended(), "{} is not ready:\n{}", service.name, service.log());
        service
    }

    /// Starts the service and waits only until it listens. Panics with its log if that takes more than 10 s.
    pub fn spawn(&self) -> Service {
        let mut command = supervised(Signal::KILL, &self.program);
        command.envs(self.settings.iter().cloned()).current_dir(empty_folder());
        let server = Supervised::start(command);
        let name = self.program.file_name().unwrap_or_default().display().to_string();
        let line = server.log().wait_for("listening on http://", TIMEOUT);
        let addresses = line.as_deref().and_then(addresses);
        let Some((address, metrics)) = addresses else {
            panic!("{name} does not listen:\n{}", server.log().text())
        };
        Service { name, address, metrics, server }
    }

    /// Runs the binary with arguments (`health`, `migrate`, `--help`, or settings that it refuses) until it exits.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.output().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()))
    }

    /// The command that [`run`](ServiceBuilder::run) runs, for a test that must start it otherwise. Nothing ends it
    /// automatically.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = clean(&self.program);
        command.args(arguments).envs(self.settings.iter().cloned()).current_dir(empty_folder());
        command
    }
}

/// A folder without a `.env`, which could point a test at a developer's database.
fn empty_folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| TempDir::new(None)).path()
}

/// The two addresses in `listening on http://127.0.0.1:43121, metrics on http://127.0.0.1:43122`.
fn addresses(line: &str) -> Option<(String, String)> {
    let address = |after: &str| {
        let (_, rest) = line.split_once(after)?;
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && !".:[]-".contains(letter));
        Some(rest[..end.unwrap_or(rest.len())].to_owned())
    };
    Some((address("listening on http://")?, address("metrics on http://")?))
}

/// A running service. Dropping it kills it.
#[derive(Debug)]
pub struct Service {
    name: String,
    address: String,
    metrics: String,
    server: Supervised,
}

impl Service {
    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL of a path, which starts with a slash and is sent as it is.
    pub fn url_of(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The URL of the port that serves metrics, `http://127.0.0.1:PORT`.
    pub fn metrics_url(&self) -> String {
        format!("http://{}", self.metrics)
    }

    /// `127.0.0.1:PORT`, for a connection that the test opens itself.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The service's process ID.
    pub fn pid(&self) -> Pid {
        self.server.pid()
    }

    /// Sends a signal. Does nothing if the service has ended.
    pub fn signal(&self, signal: Signal) {
        self.server.signal(signal);
    }

    /// Asks the service to end (SIGTERM). [`wait`](Service::wait) returns when it has.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the service at once (SIGKILL), and returns when it has ended.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Freezes the service (SIGSTOP), and returns when it stands still: connections stay open, and nothing answers.
    pub fn freeze(&self) {
        freeze(self.pid());
    }

    /// Lets a frozen service continue.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for the service's end. Panics with its log if that takes more than 60 s, which is several times the grace
    /// period.
    pub fn wait(&self) -> ExitStatus {
        let ended = self.server.wait(Duration::from_secs(60));
        let status = ended.unwrap_or_else(|| panic!("{} does not end:\n{}", self.name, self.log()));
        // The last lines may still be in the pipe.
        self.server.log().wait_for_end(Duration::from_secs(1));
        status
    }

    /// Returns whether the service has ended.
    pub fn has_ended(&self) -> bool {
        self.server.status().is_some()
    }

    /// Returns whether `/readyz` answers 200 now.
    pub fn is_ready(&self) -> bool {
        self.readiness() == Some(200)
    }

    fn readiness(&self) -> Option<u16> {
        http::try_send("GET", &self.url_of("/readyz"), &[], "").ok().map(|answer| answer.status)
    }

    /// Waits until `/readyz` answers `status`. Panics with its log if that takes more than 10 s.
    pub fn wait_for_readiness(&self, status: u16) {
        let answers = || self.readiness() == Some(status);
        assert!(until(TIMEOUT, answers), "{}: /readyz is not {status}:\n{}", self.name, self.log());
    }

    /// The service's output so far.
    pub fn log(&self) -> String {
        self.server.log().text()
    }

    /// Waits for a text in the log and returns its line. Panics with the log if the service ends without writing it, or
    /// 10 s pass.
    pub fn wait_for_log(&self, needle: &str) -> String {
        let line = self.server.log().wait_for(needle, TIMEOUT);
        line.unwrap_or_else(|| panic!("{} never wrote {needle:?}:\n{}", self.name, self.log()))
    }

    /// The log itself, to wait for a text with another time-out.
    pub fn log_handle(&self) -> &Log {
        self.server.log()
    }
}

#[cfg(test)]
mod tests {
    use super::addresses;

    #[test]
    fn the_addresses_are_found_in_a_human_and_in_a_json_line() {
        let expected = Some(("127.0.0.1:43121".to_owned(), "127.0.0.1:43122".to_owned()));
        let human = "[INFO] listening on http://127.0.0.1:43121, metrics on http://127.0.0.1:43122";
        assert_eq!(addresses(human), expected);
        let json = r#"{"message":"listening on http://127.0.0.1:43121, metrics on http://127.0.0.1:43122"}"#;
        assert_eq!(addresses(json), expected);
    }
}
