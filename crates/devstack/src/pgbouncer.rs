//! A private PgBouncer in transaction mode, before a Postgres server.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::installed::Installed;
use crate::process::free_port;
use crate::programs::{Account, give, run_as};
use crate::supervise::{Supervised, supervised};
use crate::tempdir::TempDir;

/// How long it may take to start on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The configuration for production. A later value of a setting takes the place of an earlier one.
const CONFIGURATION: &str = include_str!("../../../deploy/pgbouncer/pgbouncer.ini");

/// A PgBouncer on 127.0.0.1 with the configuration for production, but for its addresses, and without passwords.
/// Dropping it stops it.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    _server: Supervised,
    _dir: TempDir,
}

impl PgBouncer {
    /// Starts it before the server on this port of 127.0.0.1, for all its databases and the users `postgres`, `user_svc`
    /// and `data_svc`.
    pub fn start(program: &Installed, postgres_port: u16) -> PgBouncer {
        PgBouncer::start_with(program, postgres_port, &[])
    }

    /// Starts it with more settings, such as `[("default_pool_size", "2")]`.
    pub fn start_with(program: &Installed, postgres_port: u16, settings: &[(&str, &str)]) -> PgBouncer {
        // It refuses to run as root.
        let account = Account::unprivileged();
        let dir = TempDir::new(account.as_ref());
        let [users, ini] = ["users.txt", "pgbouncer.ini"].map(|name| dir.path().join(name));
        let port = free_port();
        // A second section of the same name would begin from the defaults again.
        let database = format!("* = host=127.0.0.1 port={postgres_port}\n[pgbouncer]");
        let mut text = CONFIGURATION.replacen("[pgbouncer]", &database, 1);
        let users_path = users.display();
        write!(
            text,
            "listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = trust\nauth_file = {users_path}\n"
        )
        .expect("a text takes all");
        for (name, value) in settings {
            writeln!(text, "{name} = {value}").expect("a text takes all");
        }
        let files = [(&users, "\"postgres\" \"\"\n\"user_svc\" \"\"\n\"data_svc\" \"\"\n"), (&ini, &text)];
        for (path, text) in files {
            fs::write(path, text)
                .and_then(|()| give(path, account.as_ref()))
                .expect("the folder takes files");
        }
        // SIGINT and SIGTERM would wait for clients in some versions.
        let mut command = supervised(Signal::KILL, program.path());
        run_as(command.arg(&ini).current_dir(dir.path()), account.as_ref());
        let server = Supervised::start(command);
        assert!(
            server.log().wait_for("process up", TIMEOUT).is_some(),
            "PgBouncer does not start:\n{}",
            server.log().text()
        );
        PgBouncer { port, _server: server, _dir: dir }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database, as superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}
