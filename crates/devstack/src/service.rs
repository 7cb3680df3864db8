//! One running `user-svc` or `data-svc`: its address, its log, its signals, its end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::guard::{Guarded, watched};
use crate::http;
use crate::log::Log;
use crate::process::until;
use crate::programs::{clean, sibling};
use crate::proxy::Proxy;
use crate::scratch::Scratch;

/// How long a service may take to listen, to be ready, or to write what a test waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A service that is about to start: add settings, then [`start`](ServiceBuilder::start) it.
#[derive(Debug, Clone)]
#[must_use = "nothing runs until it is started"]
pub struct ServiceBuilder {
    program: PathBuf,
    settings: Vec<(String, String)>,
}

impl ServiceBuilder {
    /// One of our services by its binary's name, with any port, and with no store to talk to yet.
    /// Panics if the binary is not built.
    pub fn new(name: &str) -> ServiceBuilder {
        ServiceBuilder::of(sibling(name).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Any program that says where it listens as our services do.
    pub fn of(program: PathBuf) -> ServiceBuilder {
        let builder = ServiceBuilder { program, settings: Vec::new() };
        builder.env("HOST", "127.0.0.1").env("PORT", "0").env("METRICS_PORT", "0").env("RUST_BACKTRACE", "1")
    }

    /// Sets a setting, by its environment variable. It sees no other variable of ours.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> ServiceBuilder {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    /// Takes a setting away, so that the service sees its default.
    pub fn env_remove(mut self, name: &str) -> ServiceBuilder {
        self.settings.retain(|(known, _)| known != name);
        self
    }

    /// Lets it reach Postgres through `proxy`.
    pub fn postgres_through(self, proxy: &Proxy) -> ServiceBuilder {
        self.through("DATABASE_URL", proxy)
    }

    /// Lets it reach Redis through `proxy`.
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
        let ready = until(PATIENCE, || service.has_ended() || service.is_ready());
        assert!(ready && !service.has_ended(), "{} is not ready:\n{}", service.name, service.log());
        service
    }

    /// Starts the service and waits only until it listens. Panics with its log if that takes more than 10 s.
    pub fn spawn(&self) -> Service {
        let mut command = watched(Signal::KILL, &self.program);
        command.envs(self.settings.iter().cloned()).current_dir(empty_folder());
        let server = Guarded::start(command);
        let name = self.program.file_name().unwrap_or_default().display().to_string();
        let line = server.log().wait_for("listening on http://", PATIENCE);
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

    /// The command that [`run`](ServiceBuilder::run) runs, for what it does not foresee. Nothing ends it for you.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = clean(&self.program);
        command.args(arguments).envs(self.settings.iter().cloned()).current_dir(empty_folder());
        command
    }
}

/// A folder without a `.env`, which could aim a test at somebody's database.
fn empty_folder() -> &'static Path {
    static FOLDER: OnceLock<Scratch> = OnceLock::new();
    FOLDER.get_or_init(|| Scratch::new(None)).path()
}

/// Both addresses of `listening on http://127.0.0.1:43121, metrics on http://127.0.0.1:43122`.
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
    server: Guarded,
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

    /// The address that serves metrics, `http://127.0.0.1:PORT`.
    pub fn metrics_url(&self) -> String {
        format!("http://{}", self.metrics)
    }

    /// `127.0.0.1:PORT`, for a connection of your own.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process number.
    pub fn pid(&self) -> Pid {
        self.server.pid()
    }

    /// Sends a signal. Does nothing if it has ended.
    pub fn signal(&self, signal: Signal) {
        self.server.signal(signal);
    }

    /// Asks it to end (SIGTERM); [`wait`](Service::wait) tells when it has.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it at once (SIGKILL), and returns when it is gone.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Waits for its end. Panics with its log if that takes more than 60 s.
    pub fn wait(&self) -> ExitStatus {
        let ended = self.server.wait(Duration::from_secs(60));
        let status = ended.unwrap_or_else(|| panic!("{} does not end:\n{}", self.name, self.log()));
        // Its last lines may still be on their way.
        self.server.log().wait_for_end(Duration::from_secs(1));
        status
    }

    /// True once it has ended.
    pub fn has_ended(&self) -> bool {
        self.server.status().is_some()
    }

    /// True if `/readyz` answers 200 now.
    pub fn is_ready(&self) -> bool {
        http::try_send("GET", &self.url_of("/readyz"), &[], "").is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until `/readyz` answers `status`. Panics with its log if that takes more than 10 s.
    pub fn wait_for_readiness(&self, status: u16) {
        let answers =
            || http::try_send("GET", &self.url_of("/readyz"), &[], "").is_ok_and(|it| it.status == status);
        assert!(until(PATIENCE, answers), "{}: /readyz is not {status}:\n{}", self.name, self.log());
    }

    /// All that it wrote so far.
    pub fn log(&self) -> String {
        self.server.log().text()
    }

    /// Waits for a text in its log and returns the line. Panics with the log if it ends or 10 s pass without.
    pub fn wait_for_log(&self, needle: &str) -> String {
        let line = self.server.log().wait_for(needle, PATIENCE);
        line.unwrap_or_else(|| panic!("{} never said {needle:?}:\n{}", self.name, self.log()))
    }

    /// Its log, to wait for other texts or other times.
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
