//! A private Redis server, and the ways to hurt it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::certificates::Certificates;
use crate::guard::{Guarded, watched};
use crate::postgres::answer;
use crate::process::{free_port, stop};
use crate::programs::{clean, find};
use crate::scratch::Scratch;

const PATIENCE: Duration = Duration::from_secs(20);

/// A Redis server on 127.0.0.1 that keeps nothing on disk and evicts the least recently used. Dropping it stops it.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    arguments: Vec<String>,
    password: Option<String>,
    authority: Option<PathBuf>,
    running: Mutex<Option<Guarded>>,
    scratch: Scratch,
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

    /// Starts a server that wants this password.
    pub fn start_with_password(password: &str) -> Redis {
        let mut server = Redis::prepare(&["--requirepass", password]);
        server.password = Some(password.to_owned());
        server.launch()
    }

    /// Starts a server that speaks only TLS, with this certificate, and asks clients for none.
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
        let running = Mutex::new(None);
        Redis { port: 0, arguments, password: None, authority: None, running, scratch: Scratch::new(None) }
    }

    /// Chooses a port and starts; tries another one if somebody was faster there.
    fn launch(mut self) -> Redis {
        for _ in 0..5 {
            self.port = free_port();
            match self.run() {
                Ok(server) => {
                    *self.lock() = Some(server);
                    return self;
                }
                Err(log) if log.contains("ddress already in use") => {}
                Err(log) => panic!("Redis does not start:\n{log}"),
            }
        }
        panic!("no port to be had for Redis");
    }

    fn run(&self) -> Result<Guarded, String> {
        let program = find("redis-server").unwrap_or_else(|error| panic!("{error}"));
        // It has nothing to write out, so it need not be asked.
        let mut command = watched(Signal::KILL, &program);
        let (plain, tls) = if self.authority.is_some() { (0, self.port) } else { (self.port, 0) };
        command.args(arguments(self.scratch.path(), plain));
        if tls != 0 {
            command.args(["--tls-port", &tls.to_string()]);
        }
        // A key space for each test of a long suite.
        command.args(["--databases", "4096"]).args(&self.arguments).current_dir(self.scratch.path());
        let server = Guarded::start(command);
        match server.log().wait_for("Ready to accept connections", PATIENCE) {
            Some(_) => Ok(server),
            None => Err(server.log().text()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Guarded>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port on 127.0.0.1, the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database by its number, with the password if there is one.
    pub fn url(&self, database: u32) -> String {
        let scheme = if self.authority.is_some() { "rediss" } else { "redis" };
        let user = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("{scheme}://{user}127.0.0.1:{}/{database}", self.port)
    }

    /// The server's process number; panics if it is killed.
    pub fn pid(&self) -> Pid {
        self.lock().as_ref().expect("Redis runs").pid()
    }

    /// What the server wrote since it was last started.
    pub fn log(&self) -> String {
        self.lock().as_ref().map(|server| server.log().text()).unwrap_or_default()
    }

    /// Runs a command in a database by `redis-cli` and returns what it prints. Panics if the command fails.
    pub fn cli(&self, database: u32, arguments: &[&str]) -> String {
        let mut command = clean("redis-cli");
        command.args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-n", &database.to_string()]);
        if let Some(authority) = &self.authority {
            command.arg("--tls").arg("--cacert").arg(authority);
        }
        if let Some(password) = &self.password {
            command.env("REDISCLI_AUTH", password);
        }
        answer(command.args(arguments)).unwrap_or_else(|error| panic!("{arguments:?}\n{error}"))
    }

    /// Ends the server by SIGKILL, and returns when it is gone. Its connections are reset.
    pub fn kill(&self) {
        // Dropping kills and waits.
        drop(self.lock().take());
    }

    /// Stops the server where it stands (SIGSTOP): connections stay open, nothing answers.
    pub fn freeze(&self) {
        stop(self.pid());
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        if let Some(server) = &*self.lock() {
            server.signal(Signal::CONT);
        }
    }

    /// Starts the server again, empty, on the same port; kills it first if it runs. Returns when it takes connections.
    pub fn restart(&self) {
        let mut running = self.lock();
        drop(running.take());
        *running = Some(self.run().unwrap_or_else(|log| panic!("Redis does not start again:\n{log}")));
    }
}

/// How `redis-server` is started on this port: 127.0.0.1 alone, nothing on disk, a bound on memory with eviction.
pub(crate) fn arguments(folder: &Path, port: u16) -> Vec<String> {
    let port = port.to_string();
    let folder = folder.display().to_string();
    let network = ["--bind", "127.0.0.1", "--port", &port, "--daemonize", "no"];
    let storage = ["--save", "", "--appendonly", "no", "--dir", &folder];
    let memory = ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"];
    [&network[..], &storage, &memory].concat().into_iter().map(str::to_owned).collect()
}

/// True if a Redis without password on this port answers PING within a second.
pub(crate) fn ping(port: u16) -> bool {
    let bound = Duration::from_secs(1);
    let mut answer = [0; 5];
    let asked =
        TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), bound).and_then(|mut stream| {
            stream.set_read_timeout(Some(bound))?;
            stream.write_all(b"PING\r\n")?;
            stream.read_exact(&mut answer)
        });
    asked.is_ok() && &answer == b"+PONG"
}
