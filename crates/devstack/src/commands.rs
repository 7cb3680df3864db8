//! The commands that start and ask Postgres, Redis and HAProxy, for tests and `make up` alike.

use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::programs::{Account, clean, output, run_as};

/// What makes the services' roles, for Compose too.
const ROLES: &str = include_str!("../../../docker/roles.sql");
/// What HAProxy does in front of replicas, in production too.
const BALANCER: &str = include_str!("../../../deploy/haproxy/haproxy.cfg");

/// How many connections Postgres gives.
pub(crate) const MAX_CONNECTIONS: u16 = 200;

/// The command that runs a statement by psql, without the developer's own settings of psql.
pub(crate) fn psql(folder: &Path, url: &str, statement: &str) -> Command {
    let mut command = plain_psql(folder, url);
    command.args(["-c", statement]);
    command
}

/// Makes the services' roles in the superuser's database at `url`, and gives them what is theirs. They get no passwords:
/// the servers here ask for none.
pub(crate) fn make_roles(folder: &Path, url: &str) -> Result<(), String> {
    let script = || {
        let mut file = tempfile::tempfile()?;
        file.write_all(ROLES.as_bytes())?;
        file.rewind()?;
        Ok(file)
    };
    let script = script().map_err(|error: std::io::Error| format!("a temporary file: {error}"))?;
    output(plain_psql(folder, url).stdin(script)).map(drop)
}

fn plain_psql(folder: &Path, url: &str) -> Command {
    let beside = folder.join("psql");
    let mut command = clean(if beside.exists() { beside } else { PathBuf::from("psql") });
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url]);
    command
}

/// The command that makes a database cluster in `data`, which must be empty or missing: UTF-8, superuser `postgres`
/// without a password. It waits until the files are on disk, unless `--no-sync` is added.
pub(crate) fn initdb(folder: &Path, data: &Path, account: Option<&Account>) -> Command {
    // Old versions of macOS have no C.UTF-8.
    let locale = if cfg!(target_os = "macos") { "--locale=C" } else { "--locale=C.UTF-8" };
    let mut command = clean(folder.join("initdb"));
    command.args(["-E", "UTF8", locale, "-A", "trust", "-U", "postgres", "-D"]).arg(data);
    run_as(command.current_dir(data.parent().unwrap_or(Path::new("/"))), account);
    command
}

/// The arguments of `postgres` on these data and this port: TCP on 127.0.0.1 alone, no Unix socket (its path may be too
/// long), and enough connections for several replicas of both services.
pub(crate) fn postgres_arguments(data: &Path, port: u16) -> Vec<String> {
    let mut arguments = vec!["-D".to_owned(), data.display().to_string()];
    let port = format!("port={port}");
    let connections = format!("max_connections={MAX_CONNECTIONS}");
    for setting in [&port, "listen_addresses=127.0.0.1", "unix_socket_directories=", &connections] {
        arguments.extend(["-c".to_owned(), setting.to_owned()]);
    }
    arguments
}

/// The arguments of `redis-server` on this port: 127.0.0.1 alone, nothing on disk, and at most 256 MB of memory, beyond
/// which it evicts.
pub(crate) fn redis_arguments(folder: &Path, port: u16) -> Vec<String> {
    let storage = ["--save", "", "--appendonly", "no"];
    let memory = ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"];
    let mut arguments = default_redis_arguments(folder, port);
    arguments.extend([&storage[..], &memory].concat().into_iter().map(str::to_owned));
    arguments
}

/// The arguments of `redis-server` on this port of 127.0.0.1 and this folder, with Redis' own defaults for all else: it
/// saves snapshots, and has no limit of memory.
pub(crate) fn default_redis_arguments(folder: &Path, port: u16) -> Vec<String> {
    let port = port.to_string();
    let folder = folder.display().to_string();
    let arguments = ["--bind", "127.0.0.1", "--port", &port, "--daemonize", "no", "--dir", &folder];
    arguments.map(str::to_owned).to_vec()
}

/// Returns whether a Redis without a password on this port answers PING within a second.
pub(crate) fn redis_is_ready(port: u16) -> bool {
    let timeout = Duration::from_secs(1);
    let mut answer = [0; 5];
    let asked =
        TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), timeout).and_then(|mut stream| {
            stream.set_read_timeout(Some(timeout))?;
            stream.write_all(b"PING\r\n")?;
            stream.read_exact(&mut answer)
        });
    asked.is_ok() && &answer == b"+PONG"
}

/// Writes the configuration of HAProxy in front of the replicas of user-svc and data-svc on these ports of 127.0.0.1 into
/// `folder`, and returns the arguments that make HAProxy use it. Where it listens, the environment says:
/// [`haproxy_settings`].
pub(crate) fn haproxy_arguments(folder: &Path, users: &[u16], data: &[u16]) -> std::io::Result<Vec<String>> {
    let backend = |service: &str, kind: &str, ports: &[u16]| {
        let servers = ports.iter().zip(1..).map(|(port, number)| {
            // A name of its own for each replica: the lines are otherwise those of deploy/haproxy/servers.cfg.
            format!("    server {service}-{number} 127.0.0.1:{port}\n")
        });
        format!("backend {service} from {kind}\n{}\n", servers.collect::<String>())
    };
    let servers = backend("user-svc", "writes", users) + &backend("data-svc", "reads", data);
    let mut arguments = Vec::new();
    for (name, text) in [("haproxy.cfg", BALANCER), ("servers.cfg", &servers)] {
        let path = folder.join(name);
        std::fs::write(&path, text)?;
        arguments.extend(["-f".to_owned(), path.display().to_string()]);
    }
    Ok(arguments)
}

/// The environment variables with which HAProxy listens on these ports of 127.0.0.1: for user-svc and for data-svc.
pub(crate) fn haproxy_settings(ports: [u16; 2]) -> [(String, String); 2] {
    let [users, data] = ports.map(|port| format!("127.0.0.1:{port}"));
    [("USER_SVC_BIND".to_owned(), users), ("DATA_SVC_BIND".to_owned(), data)]
}
