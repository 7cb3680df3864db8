//! A private Postgres server, and the faults that a test can cause in it.

mod backup;
mod standby;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use crate::certificates::{Certificates, Leaf};
use crate::commands::{initdb, make_roles, postgres_arguments, psql};
use crate::process::{children, free_port, freeze};
use crate::programs::{Account, clean, output, postgres_folder, run_as};
use crate::proxy::Proxy;
use crate::supervise::{Supervised, supervised};
use crate::tempdir::TempDir;

pub use self::backup::{Backup, Timeline};

/// How long a server may take to start, stop or recover on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Faster, but not safe against a power cut, which a test's data need not survive. They do survive SIGKILL, since
/// committed data are in the kernel's hands.
const FAST: [(&str, &str); 2] = [("fsync", "off"), ("full_page_writes", "off")];

/// A Postgres server on 127.0.0.1 with data of its own, superuser `postgres`, no password. Dropping it stops it and
/// removes the data.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    programs: PathBuf,
    settings: Vec<(String, String)>,
    account: Option<Account>,
    running: Mutex<Option<Supervised>>,
    /// Between a standby and its primary.
    link: Option<Proxy>,
    dir: TempDir,
}

impl Postgres {
    /// Starts a server for tests, which does not wait for the disk.
    pub fn start() -> Postgres {
        Postgres::start_with(&FAST)
    }

    /// Starts a server with these settings (`postgres -c name=value`). Without settings it is as safe as in production.
    pub fn start_with(settings: &[(&str, &str)]) -> Postgres {
        Postgres::prepare(settings).launch()
    }

    /// Starts a server for tests that accepts only TLS, with this certificate.
    pub fn start_tls(certificates: &Certificates) -> Postgres {
        let mut server = Postgres::prepare(&FAST);
        let Leaf { certificate, key } = certificates.copy_leaf(server.dir.path(), server.account.as_ref());
        for (name, value) in [("ssl", "on".into()), ("ssl_cert_file", certificate), ("ssl_key_file", key)] {
            server.settings.push((name.to_owned(), value.display().to_string()));
        }
        let rule = "hostssl all all 127.0.0.1/32 trust\n";
        fs::write(server.data().join("pg_hba.conf"), rule).expect("pg_hba.conf can be written");
        server.launch()
    }

    /// Starts a server for tests whose next transaction id is past 2^32: ids do not fit into 32 bits.
    pub fn start_past_32_bits() -> Postgres {
        let server = Postgres::prepare(&FAST);
        let mut command = clean(server.programs.join("pg_resetwal"));
        command.args(["--epoch", "1", "--pgdata"]).arg(server.data());
        run_as(command.current_dir(server.dir.path()), server.account.as_ref());
        output(&mut command).unwrap_or_else(|error| panic!("{error}"));
        server.launch()
    }

    fn prepare(settings: &[(&str, &str)]) -> Postgres {
        let programs = postgres_folder().unwrap_or_else(|error| panic!("{error}"));
        let account = Account::unprivileged();
        let dir = TempDir::new(account.as_ref());
        let made = output(initdb(&programs, &dir.path().join("data"), account.as_ref()).arg("--no-sync"));
        made.unwrap_or_else(|error| panic!("{error}"));
        // Shared memory is in files among the data, since other kinds would outlive a killed server.
        let mut all = vec![("dynamic_shared_memory_type".to_owned(), "mmap".to_owned())];
        all.push(("shared_buffers".to_owned(), "64MB".to_owned()));
        all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Postgres { port: 0, programs, settings: all, account, running: Mutex::new(None), link: None, dir }
    }

    /// Chooses a port and starts the server. Tries another port if some other program took the first meanwhile.
    fn launch(mut self) -> Postgres {
        for _ in 0..5 {
            self.port = free_port();
            match self.run() {
                Ok(server) => {
                    *self.running.lock() = Some(server);
                    return self;
                }
                Err(log) if log.contains("could not bind") => {}
                Err(log) => panic!("Postgres does not start:\n{log}"),
            }
        }
        panic!("no free port for Postgres");
    }

    /// Starts the server on its port and data. Returns its log if it ends or takes too long.
    fn run(&self) -> Result<Supervised, String> {
        // SIGQUIT is Postgres' immediate shutdown: it writes nothing out, but removes its shared memory.
        let mut command = supervised(Signal::QUIT, &self.programs.join("postgres"));
        command.args(postgres_arguments(&self.data(), self.port));
        command.args(
            self.settings.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]),
        );
        run_as(command.current_dir(self.dir.path()), self.account.as_ref());
        let server = Supervised::start(command);
        // A standby is ready to accept read-only connections.
        match server.log().wait_for("database system is ready to accept", TIMEOUT) {
            Some(_) => Ok(server),
            None => Err(server.log().text()),
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The port on 127.0.0.1. A restart keeps it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database, as superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The server's process ID. Panics if the server was killed.
    pub fn pid(&self) -> Pid {
        self.running.lock().as_ref().expect("Postgres runs").pid()
    }

    /// The server's output since it was last started.
    pub fn log(&self) -> String {
        self.running.lock().as_ref().map(|server| server.log().text()).unwrap_or_default()
    }

    /// Runs a statement in a database and returns its rows, with `|` between columns. Panics if the statement fails.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        self.try_sql(database, statement).unwrap_or_else(|error| panic!("{statement}\n{error}"))
    }

    /// Runs a statement through what listens at this URL, such as a pooler. Panics if the statement fails.
    pub fn sql_at(&self, url: &str, statement: &str) -> String {
        output(&mut psql(&self.programs, url, statement))
            .unwrap_or_else(|error| panic!("{statement}\n{error}"))
    }

    /// As [`Postgres::sql`], but returns psql's message if the statement fails or the server cannot be reached.
    pub fn try_sql(&self, database: &str, statement: &str) -> Result<String, String> {
        output(psql(&self.programs, &self.url(database), statement).env("PGCONNECT_TIMEOUT", "10"))
    }

    /// Makes the services' roles `user_svc` and `data_svc` for a database, as `make up` and Compose do at each start. Roles
    /// belong to the whole server: only for one that no other test uses.
    pub fn make_roles(&self, database: &str) {
        make_roles(&self.programs, &self.url(database)).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Makes a database, either empty or as a copy of `template`. No session may use the template meanwhile.
    pub fn create_database(&self, name: &str, template: Option<&str>) {
        let template = template.unwrap_or("template1");
        self.sql("postgres", &format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}""#));
    }

    /// Ends the server and all its backends by SIGKILL, and returns when they have ended.
    pub fn kill(&self) {
        let Some(server) = self.running.lock().take() else { return };
        // A frozen server starts no backends while we list them.
        freeze(server.pid());
        let backends = children(server.pid());
        server.signal(Signal::KILL);
        for backend in backends {
            // Fails if the backend has ended by itself.
            let _ = kill_process(backend, Signal::KILL);
        }
        server.wait(TIMEOUT);
        assert!(server.log().wait_for_end(TIMEOUT), "a backend outlives SIGKILL");
    }

    /// Freezes the server and all its backends (SIGSTOP): connections stay open, and nothing answers.
    pub fn freeze(&self) {
        let server = self.pid();
        freeze(server);
        for backend in children(server) {
            freeze(backend);
        }
    }

    /// Lets a frozen server continue.
    pub fn thaw(&self) {
        let server = self.pid();
        for process in children(server).into_iter().chain([server]) {
            // Fails if the process has ended by itself.
            let _ = kill_process(process, Signal::CONT);
        }
    }

    /// Starts the server again after [`Postgres::kill`], with the same port and data. If it runs, stops it first by a
    /// fast shutdown, which ends all connections. Returns when the server accepts connections.
    pub fn restart(&self) {
        let mut running = self.running.lock();
        if let Some(server) = running.take() {
            server.signal(Signal::INT);
            assert!(server.wait(TIMEOUT).is_some(), "Postgres does not stop:\n{}", server.log().text());
        }
        let server = self.run().unwrap_or_else(|log| panic!("Postgres does not start again:\n{log}"));
        *running = Some(server);
    }

    /// Removes the 56 bytes of shared memory that a killed server leaves behind, of which a machine has at most 4096
    /// pieces. A restarted server removes its own.
    fn remove_shared_memory(&self) {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let number = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
        if let Some(number) = number {
            // If the program is missing, the machine is only left less tidy.
            let _ = Command::new("ipcrm").args(["-m", number]).output();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(server) = self.running.lock().take() else { return self.remove_shared_memory() };
        for process in children(server.pid()).into_iter().chain([server.pid()]) {
            // Fails if the process has ended by itself.
            let _ = kill_process(process, Signal::CONT);
        }
        server.signal(Signal::QUIT);
        server.wait(Duration::from_secs(5));
    }
}
