//! A private HAProxy with the configuration of `deploy/haproxy`: in front of replicas of the services, or of a Redis and
//! its replica.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::commands::{haproxy_arguments, haproxy_settings};
use crate::installed::Installed;
use crate::process::{free_port, until};
use crate::programs::{clean, output};
use crate::redis::Redis;
use crate::supervise::{Supervised, supervised};
use crate::tempdir::TempDir;

/// How long it may take to listen on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The configuration of the address of a Redis that fails over.
const REDIS: &str = include_str!("../../../deploy/haproxy/redis.cfg");

/// A running HAProxy. Dropping it stops it.
#[derive(Debug)]
pub struct Haproxy {
    /// For user-svc or Redis, and for data-svc.
    ports: [u16; 2],
    server: Supervised,
    _folder: TempDir,
}

impl Haproxy {
    /// Starts it in front of the replicas of user-svc and data-svc that listen, or will listen, on these ports.
    pub fn balance(program: &Installed, users: &[u16], data: &[u16]) -> Haproxy {
        Haproxy::start(program, |folder, ports, command| {
            let arguments = haproxy_arguments(folder, users, data).expect("our own folder");
            command.args(arguments).envs(haproxy_settings(ports));
        })
    }

    /// Reads files of `deploy/haproxy` as it would at its start. Returns what it prints if it takes them.
    ///
    /// # Errors
    /// What it prints if it does not.
    pub fn check(program: &Installed, files: &[&str]) -> Result<String, String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/haproxy");
        let mut command = clean(program.path());
        command.arg("-c").current_dir(folder);
        for file in files {
            command.args(["-f", file]);
        }
        output(&mut command)
    }

    /// Starts it in front of two Redis servers, of which the first is used while it is a primary.
    pub fn redis(program: &Installed, primary: &Redis, replica: &Redis) -> Haproxy {
        Haproxy::start(program, |folder, [port, _], command| {
            let file = folder.join("redis.cfg");
            std::fs::write(&file, REDIS).expect("our own folder");
            let at = |port| format!("127.0.0.1:{port}");
            command.arg("-f").arg(file).env("REDIS_BIND", at(port));
            command.env("REDIS_PRIMARY", at(primary.port())).env("REDIS_REPLICA", at(replica.port()));
        })
    }

    /// Tries other ports if some other program took the first meanwhile.
    fn start(program: &Installed, prepare: impl Fn(&Path, [u16; 2], &mut Command)) -> Haproxy {
        for _ in 0..5 {
            let folder = TempDir::new(None);
            let ports = [free_port(), free_port()];
            let mut command = supervised(Signal::TERM, program.path());
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
