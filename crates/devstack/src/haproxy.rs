//! A private HAProxy with the configuration of `deploy/haproxy`: in front of replicas of the services, or of a Redis and
//! its replica.

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::commands::{haproxy_arguments, haproxy_settings};
use crate::process::{free_port, until};
use crate::programs::{clean, haproxy, output};
use crate::redis::Redis;
use crate::supervise::{Supervised, supervised};
use crate::tempdir::TempDir;

/// How long it may take to listen on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The configuration of the address of a Redis that fails over.
const REDIS: &str = include_str!("../../../deploy/haproxy/redis.cfg");

/// HAProxy, found on this machine. Nothing runs yet.
#[derive(Debug)]
pub struct Program(PathBuf);

/// A running HAProxy. Dropping it stops it.
#[derive(Debug)]
pub struct Haproxy {
    /// For user-svc or Redis, and for data-svc.
    ports: [u16; 2],
    server: Supervised,
    _folder: TempDir,
}

impl Program {
    /// The program. If it is missing, says that the test was not run: `let Some(program) = Program::find() else { return }`.
    pub fn find() -> Option<Program> {
        let found = haproxy();
        if let Err(error) = &found {
            // Not by `eprintln!`, whose lines the tests' harness shows only for tests that fail.
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            let line = format!("NOT RUN, since {error} (`scripts/setup check` installs it): {test}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        found.ok().map(Program)
    }

    /// Starts it in front of the replicas of user-svc and data-svc that listen, or will listen, on these ports.
    pub fn balance(&self, users: &[u16], data: &[u16]) -> Haproxy {
        self.start(|folder, ports, command| {
            let arguments = haproxy_arguments(folder, users, data).expect("our own folder");
            command.args(arguments).envs(haproxy_settings(ports));
        })
    }

    /// Reads files of `deploy/haproxy` as it would at its start. Returns what it prints if it takes them.
    ///
    /// # Errors
    /// What it prints if it does not.
    pub fn check(&self, files: &[&str]) -> Result<String, String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/haproxy");
        let mut command = clean(&self.0);
        command.arg("-c").current_dir(folder);
        for file in files {
            command.args(["-f", file]);
        }
        output(&mut command)
    }

    /// Starts it in front of two Redis servers, of which the first is used while it is a primary.
    pub fn redis(&self, primary: &Redis, replica: &Redis) -> Haproxy {
        self.start(|folder, [port, _], command| {
            let file = folder.join("redis.cfg");
            std::fs::write(&file, REDIS).expect("our own folder");
            let at = |port| format!("127.0.0.1:{port}");
            command.arg("-f").arg(file).env("REDIS_BIND", at(port));
            command.env("REDIS_PRIMARY", at(primary.port())).env("REDIS_REPLICA", at(replica.port()));
        })
    }

    /// Tries other ports if some other program took the first meanwhile.
    fn start(&self, prepare: impl Fn(&Path, [u16; 2], &mut Command)) -> Haproxy {
        for _ in 0..5 {
            let folder = TempDir::new(None);
            let ports = [free_port(), free_port()];
            let mut command = supervised(Signal::TERM, &self.0);
            prepare(folder.path(), ports, &mut command);
            let server = Supervised::start(command);
            let listens = || TcpStream::connect(("127.0.0.1", ports[0])).is_ok();
            until(TIMEOUT, || server.status().is_some() || listens());
            if server.status().is_none() {
                return Haproxy { ports, server, _folder: folder };
            }
            server.log().wait_for_end(TIMEOUT);
            let log = server.log().text();
            assert!(log.contains("cannot bind") || log.contains("in use"), "HAProxy does not start:\n{log}");
        }
        panic!("no free port for HAProxy");
    }
}

impl Haproxy {
    /// Where it listens for user-svc, or for Redis: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Where it listens for data-svc: `127.0.0.1:PORT`.
    pub fn data_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[1])
    }

    /// The port where it listens for user-svc, or for Redis.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Its output so far: a line for each request that failed, and for each server that comes or goes.
    pub fn log(&self) -> String {
        self.server.log().text()
    }
}
