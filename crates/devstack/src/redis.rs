//! A private Redis server, and the faults that a test can cause in it.

mod replica;

use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};

use crate::certificates::Certificates;
use crate::commands::{default_redis_arguments, redis_arguments};
use crate::process::{free_port, freeze};
use crate::programs::{clean, find, output};
use crate::proxy::Proxy;
use crate::supervise::{Supervised, supervised};
use crate::tempdir::TempDir;

/// How long a server may take to start on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A Redis server on 127.0.0.1. Dropping it stops it. Usually it keeps nothing on disk and evicts the least recently used
/// keys.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    base: Base,
    arguments: Vec<String>,
    password: Option<String>,
    authority: Option<PathBuf>,
    running: Mutex<Option<Supervised>>,
    /// Between this server and the one that it follows.
    link: Mutex<Option<Proxy>>,
    dir: TempDir,
}

/// What a server's configuration starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    /// The project's advice for a cache: nothing on disk, at most 256 MB, and eviction.
    Cache,
    /// Redis' own defaults, with snapshots.
    Defaults,
}

impl Redis {
    /// Starts a server.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// Starts a server with more arguments, such as `["--maxmemory", "2mb"]`.
    pub fn start_with(arguments: &[&str]) -> Redis {
        Redis::prepare(arguments).launch()
    }

    /// Starts a server with Redis' own default configuration. Its snapshots survive [`Redis::kill`]: a restart brings
    /// back what the newest one holds.
    pub fn start_with_defaults() -> Redis {
        let mut server = Redis::prepare(&[]);
        server.base = Base::Defaults;
        server.launch()
    }

    /// Starts a server that requires this password.
    pub fn start_with_password(password: &str) -> Redis {
        let mut server = Redis::prepare(&["--requirepass", password]);
        server.password = Some(password.to_owned());
        server.launch()
    }

    /// Starts a server that accepts only TLS, with this certificate, and requires no certificate of clients.
    pub fn start_tls(certificates: &Certificates) -> Redis {
        let [ca, certificate, key] = [certificates.ca(), certificates.certificate(), certificates.key()]
            .map(|path| path.display().to_string());
        let files = ["--tls-ca-cert-file", &ca, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        let mut server = Redis::prepare(&[&files[..], &["--tls-auth-clients", "no"]].concat());
        server.authority = Some(certificates.ca());
        server.launch()
    }

    fn prepare(arguments: &[&str]) -> Redis {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Redis {
            port: 0,
            base: Base::Cache,
            arguments,
            password: None,
            authority: None,
            running: Mutex::new(None),
            link: Mutex::new(None),
            dir: TempDir::new(None),
        }
    }

    /// Chooses a port and starts the server. Tries another port if some other program took the first meanwhile.
    fn launch(mut self) -> Redis {
        for _ in 0..5 {
            self.port = free_port();
            match self.run() {
                Ok(server) => {
                    *self.running.lock() = Some(server);
                    return self;
                }
                Err(log) if log.contains("ddress already in use") => {}
                Err(log) => panic!("Redis does not start:\n{log}"),
            }
        }
        panic!("no free port for Redis");
    }

    fn run(&self) -> Result<Supervised, String> {
        let program = find("redis-server").unwrap_or_else(|error| panic!("{error}"));
        // It has nothing to write out that a test needs, so SIGKILL ends it well.
        let mut command = supervised(Signal::KILL, &program);
        let tls = self.authority.is_some();
        let port = if tls { 0 } else { self.port };
        command.args(match self.base {
            Base::Cache => redis_arguments(self.dir.path(), port),
            Base::Defaults => default_redis_arguments(self.dir.path(), port),
        });
        if tls {
            command.args(["--tls-port", &self.port.to_string()]);
        }
        // A key space for each test of a long suite.
        command.args(["--databases", "4096"]).args(&self.arguments).current_dir(self.dir.path());
        let server = Supervised::start(command);
        match server.log().wait_for("Ready to accept connections", TIMEOUT) {
            Some(_) => Ok(server),
            None => Err(server.log().text()),
        }
    }

    /// The port on 127.0.0.1. A restart keeps it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database by its number, with the password if there is one.
    pub fn url(&self, database: u32) -> String {
        let scheme = if self.authority.is_some() { "rediss" } else { "redis" };
        let user = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("{scheme}://{user}127.0.0.1:{}/{database}", self.port)
    }

    /// The server's process ID. Panics if the server was killed.
    pub fn pid(&self) -> Pid {
        self.running.lock().as_ref().expect("Redis runs").pid()
    }

    /// The server's output since it was last started.
    pub fn log(&self) -> String {
        self.running.lock().as_ref().map(|server| server.log().text()).unwrap_or_default()
    }

    /// Runs a command in a database by `redis-cli` and returns what it prints. Panics if the command fails.
    pub fn cli(&self, database: u32, arguments: &[&str]) -> String {
        self.try_cli(database, arguments).unwrap_or_else(|error| panic!("{arguments:?}\n{error}"))
    }

    /// As [`Redis::cli`], but returns the message of `redis-cli` if the command fails or the server cannot be reached.
    pub fn try_cli(&self, database: u32, arguments: &[&str]) -> Result<String, String> {
        let mut command = clean("redis-cli");
        command.args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-n", &database.to_string()]);
        if let Some(authority) = &self.authority {
            command.arg("--tls").arg("--cacert").arg(authority);
        }
        if let Some(password) = &self.password {
            command.env("REDISCLI_AUTH", password);
        }
        output(command.args(arguments))
    }

    /// What names the running process in the grant: its `run_id` and `master_replid`.
    ///
    /// # Errors
    /// The message of `redis-cli` if the server cannot be reached.
    pub fn process(&self) -> Result<String, String> {
        let info = self.try_cli(0, &["INFO"])?;
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("INFO has no {name}")).trim().to_owned()
        };
        Ok(format!("{} {}", field("run_id"), field("master_replid")))
    }

    /// Ends the server by SIGKILL, and returns when it has ended. Its connections are reset.
    pub fn kill(&self) {
        // Dropping a supervised server kills it and waits for its end.
        drop(self.running.lock().take());
    }

    /// Freezes the server (SIGSTOP): connections stay open, and nothing answers.
    pub fn freeze(&self) {
        freeze(self.pid());
    }

    /// Lets a frozen server continue.
    pub fn thaw(&self) {
        if let Some(server) = &*self.running.lock() {
            server.signal(Signal::CONT);
        }
    }

    /// Writes a snapshot of all databases to disk, and returns when it is complete. A server that was started with
    /// Redis' defaults does that by itself when enough has changed.
    pub fn save(&self) {
        assert_eq!(self.cli(0, &["SAVE"]), "OK");
    }

    /// Starts the server again on the same port; kills it first if it runs. It holds what its newest snapshot holds, or
    /// nothing, and follows nobody. Returns when the server accepts connections.
    pub fn restart(&self) {
        let mut running = self.running.lock();
        drop(running.take());
        *running = Some(self.run().unwrap_or_else(|log| panic!("Redis does not start again:\n{log}")));
    }
}
