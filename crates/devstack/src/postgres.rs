//! A private Postgres server, and the ways to hurt it.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::certificates::{Certificates, Leaf};
use crate::guard::{Guarded, watched};
use crate::process::{children, free_port, stop};
use crate::programs::{Account, clean, postgres_folder, run_as};
use crate::scratch::Scratch;

/// How long a server may take to start, stop or recover on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fast rather than safe on a power cut: a test's data need not survive that. They do survive `kill -9`, since what is
/// committed has been handed to the kernel.
const QUICK: [(&str, &str); 2] = [("fsync", "off"), ("full_page_writes", "off")];

/// A Postgres server on 127.0.0.1 with data of its own, superuser `postgres`, no password. Dropping it stops it and
/// removes the data.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    folder: PathBuf,
    settings: Vec<(String, String)>,
    account: Option<Account>,
    running: Mutex<Option<Guarded>>,
    scratch: Scratch,
}

impl Postgres {
    /// Starts a server for tests, which does not wait for the disk.
    pub fn start() -> Postgres {
        Postgres::start_with(&QUICK)
    }

    /// Starts a server with these settings (`postgres -c name=value`): none for one as safe as in production.
    pub fn start_with(settings: &[(&str, &str)]) -> Postgres {
        Postgres::prepare(settings).launch()
    }

    /// Starts a server for tests that offers TLS with this certificate; with `only_tls` it refuses all else.
    pub fn start_tls(certificates: &Certificates, only_tls: bool) -> Postgres {
        let mut server = Postgres::prepare(&QUICK);
        let Leaf { certificate, key } =
            certificates.copy_leaf(server.scratch.path(), server.account.as_ref());
        for (name, value) in [("ssl", "on".into()), ("ssl_cert_file", certificate), ("ssl_key_file", key)] {
            server.settings.push((name.to_owned(), value.display().to_string()));
        }
        if only_tls {
            let rule = "hostssl all all 127.0.0.1/32 trust\n";
            fs::write(server.data().join("pg_hba.conf"), rule).expect("pg_hba.conf can be written");
        }
        server.launch()
    }

    fn prepare(settings: &[(&str, &str)]) -> Postgres {
        let folder = postgres_folder().unwrap_or_else(|error| panic!("{error}"));
        let account = Account::unprivileged();
        let scratch = Scratch::new(account.as_ref());
        let made = initialize(&folder, &scratch.path().join("data"), account.as_ref(), false);
        made.unwrap_or_else(|error| panic!("{error}"));
        // Shared memory as files among the data, since other kinds would outlive a killed server.
        let mut all = vec![("dynamic_shared_memory_type".to_owned(), "mmap".to_owned())];
        all.push(("shared_buffers".to_owned(), "64MB".to_owned()));
        all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Postgres { port: 0, folder, settings: all, account, running: Mutex::new(None), scratch }
    }

    /// Chooses a port and starts; tries another one if somebody was faster there.
    fn launch(mut self) -> Postgres {
        for _ in 0..5 {
            self.port = free_port();
            match self.run() {
                Ok(server) => {
                    *self.lock() = Some(server);
                    return self;
                }
                Err(log) if log.contains("could not bind") => {}
                Err(log) => panic!("Postgres does not start:\n{log}"),
            }
        }
        panic!("no port to be had for Postgres");
    }

    /// Starts on the port and data there are; gives the log if it ends or takes too long.
    fn run(&self) -> Result<Guarded, String> {
        // SIGQUIT is Postgres' immediate stop: it does not write out, but removes its shared memory.
        let mut command = watched(Signal::QUIT, &self.folder.join("postgres"));
        command.args(arguments(&self.data(), self.port));
        command.args(
            self.settings.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]),
        );
        run_as(command.current_dir(self.scratch.path()), self.account.as_ref());
        let server = Guarded::start(command);
        match server.log().wait_for("database system is ready to accept connections", PATIENCE) {
            Some(_) => Ok(server),
            None => Err(server.log().text()),
        }
    }

    fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn lock(&self) -> MutexGuard<'_, Option<Guarded>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port on 127.0.0.1, the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database, as superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The server's process number; panics if it is killed.
    pub fn pid(&self) -> Pid {
        self.lock().as_ref().expect("Postgres runs").pid()
    }

    /// What the server wrote since it was last started.
    pub fn log(&self) -> String {
        self.lock().as_ref().map(|server| server.log().text()).unwrap_or_default()
    }

    /// Runs a statement in a database and returns its rows, columns divided by `|`. Panics if the statement fails.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        self.try_sql(database, statement).unwrap_or_else(|error| panic!("{statement}\n{error}"))
    }

    /// As [`Postgres::sql`], but gives psql's message if the statement fails or the server cannot be reached.
    pub fn try_sql(&self, database: &str, statement: &str) -> Result<String, String> {
        answer(psql(&self.folder, &self.url(database), statement).env("PGCONNECT_TIMEOUT", "10"))
    }

    /// Makes a database, as a copy of `template` (which nobody may use meanwhile), or an empty one.
    pub fn create_database(&self, name: &str, template: Option<&str>) {
        let template = template.unwrap_or("template1");
        self.sql("postgres", &format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}""#));
    }

    /// Ends the server and all its backends by SIGKILL, and returns when they are gone.
    pub fn kill(&self) {
        let Some(server) = self.lock().take() else { return };
        // Stopped, it can make no more children while we list them.
        stop(server.pid());
        let backends = children(server.pid());
        server.signal(Signal::KILL);
        for backend in backends {
            // Fails if it is gone by itself, which is as well.
            let _ = kill_process(backend, Signal::KILL);
        }
        server.wait(PATIENCE);
        assert!(server.log().wait_for_end(PATIENCE), "a backend outlives SIGKILL");
    }

    /// Stops the server and all its backends where they stand (SIGSTOP): connections stay open, nothing answers.
    pub fn freeze(&self) {
        let server = self.pid();
        stop(server);
        children(server).into_iter().for_each(stop);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        let server = self.pid();
        for process in children(server).into_iter().chain([server]) {
            let _ = kill_process(process, Signal::CONT);
        }
    }

    /// Starts the server again after [`Postgres::kill`]; if it runs, stops it first in good order (fast shutdown, which
    /// ends all connections). Same port, same data. Returns when it takes connections.
    pub fn restart(&self) {
        let mut running = self.lock();
        if let Some(server) = running.take() {
            server.signal(Signal::INT);
            assert!(server.wait(PATIENCE).is_some(), "Postgres does not stop:\n{}", server.log().text());
        }
        let server = self.run().unwrap_or_else(|log| panic!("Postgres does not start again:\n{log}"));
        *running = Some(server);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(server) = self.lock().take() else { return self.remove_shared_memory() };
        for process in children(server.pid()).into_iter().chain([server.pid()]) {
            let _ = kill_process(process, Signal::CONT);
        }
        server.signal(Signal::QUIT);
        server.wait(Duration::from_secs(5));
    }
}

impl Postgres {
    /// A killed server leaves a piece of shared memory of 56 bytes, of which a machine has 4096. A restarted one
    /// removes it.
    fn remove_shared_memory(&self) {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let number = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
        if let Some(number) = number {
            // Nothing is lost but order if that program is missing.
            let _ = Command::new("ipcrm").args(["-m", number]).output();
        }
    }
}

/// The command that runs a statement, without the user's own settings of psql.
pub(crate) fn psql(folder: &Path, url: &str, statement: &str) -> Command {
    let beside = folder.join("psql");
    let mut command = clean(if beside.exists() { beside } else { PathBuf::from("psql") });
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement]);
    command
}

/// Makes an empty database cluster in `data`, which must not exist yet or be empty: UTF-8, superuser
/// `postgres` without a password. `safe` waits until it is on disk.
pub(crate) fn initialize(
    folder: &Path,
    data: &Path,
    account: Option<&Account>,
    safe: bool,
) -> Result<(), String> {
    // Old versions of macOS have no C.UTF-8.
    let locale = if cfg!(target_os = "macos") { "--locale=C" } else { "--locale=C.UTF-8" };
    let mut command = clean(folder.join("initdb"));
    command.args(["-E", "UTF8", locale, "-A", "trust", "-U", "postgres", "-D"]).arg(data);
    command.args((!safe).then_some("--no-sync"));
    run_as(command.current_dir(data.parent().unwrap_or(Path::new("/"))), account);
    answer(&mut command).map(drop)
}

/// How `postgres` is started on these data and this port: TCP on 127.0.0.1 alone, no Unix socket (their paths may be
/// too long), and connections enough for several replicas of both services.
pub(crate) fn arguments(data: &Path, port: u16) -> Vec<String> {
    let mut arguments = vec!["-D".to_owned(), data.display().to_string()];
    let port = format!("port={port}");
    for setting in [&port, "listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200"] {
        arguments.extend(["-c".to_owned(), setting.to_owned()]);
    }
    arguments
}

/// What a command prints, without the last line's end; what it complained of if it fails.
pub(crate) fn answer(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
}

/// Gives files to the user that the server runs as.
pub(crate) fn give(path: &Path, account: Option<&Account>) -> std::io::Result<()> {
    account.map_or(Ok(()), |account| chown(path, Some(account.uid), Some(account.gid)))
}
