//! Streaming replication: a standby, its promotion, and COMMITs that wait for it.

use std::path::Path;
use std::process::Command;

use parking_lot::Mutex;

use super::{Postgres, TIMEOUT};
use crate::process::until;
use crate::programs::{clean, output, run_as};
use crate::proxy::Proxy;
use crate::tempdir::TempDir;

/// The sessions whose COMMIT waits for a synchronous standby.
const HELD: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

impl Postgres {
    /// Starts a standby of `primary`, with its settings and all its databases. Returns when it follows the primary. The
    /// primary does not wait for it until [`Postgres::commit_on_standbys`].
    pub fn standby_of(primary: &Postgres) -> Postgres {
        let link = Proxy::start(("127.0.0.1", primary.port));
        let dir = TempDir::new(primary.account.as_ref());
        // Also writes where the primary is, and that this is a standby.
        let mut copy = primary.base_backup(&dir.path().join("data"), link.port());
        output(copy.arg("--write-recovery-conf")).unwrap_or_else(|error| panic!("{error}"));
        let mut settings = primary.settings.clone();
        // How long it waits before it connects again. The default is 5 s.
        settings.push(("wal_retrieve_retry_interval".to_owned(), "100ms".to_owned()));
        let standby = Postgres {
            port: 0,
            programs: primary.programs.clone(),
            settings,
            account: primary.account.clone(),
            running: Mutex::new(None),
            link: Some(link),
            dir,
        };
        let standby = standby.launch();
        standby.catch_up_with(primary);
        standby
    }

    /// The command that copies the running server's data to a new folder, by way of this port.
    pub(super) fn base_backup(&self, data: &Path, port: u16) -> Command {
        let mut command = clean(self.programs.join("pg_basebackup"));
        command.args(["--checkpoint", "fast", "--no-sync", "--wal-method", "stream", "--pgdata"]).arg(data);
        command.args(["--dbname", &format!("host=127.0.0.1 port={port} user=postgres")]);
        run_as(command.current_dir("/"), self.account.as_ref());
        command
    }

    /// Waits until a standby shows all that `primary` has committed by now.
    pub fn catch_up_with(&self, primary: &Postgres) {
        let end = primary.sql("postgres", "SELECT pg_current_wal_lsn()");
        let shown = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        let caught_up = until(TIMEOUT, || self.sql("postgres", &shown) == "t");
        assert!(caught_up, "the standby does not follow its primary:\n{}", self.log());
    }

    /// Makes every COMMIT on this primary wait until a standby has it. With no standby in reach, COMMITs hang until one
    /// comes or [`Postgres::commit_alone`]. A statement that only reads does not wait.
    pub fn commit_on_standbys(&self) {
        self.set_synchronous_standbys("*");
        let is_synchronous = "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'";
        let reached = until(TIMEOUT, || self.sql("postgres", is_synchronous) == "t");
        assert!(reached, "no standby is synchronous:\n{}", self.log());
    }

    /// Makes COMMITs wait for no standby, those that hang included.
    pub fn commit_alone(&self) {
        self.set_synchronous_standbys("");
    }

    fn set_synchronous_standbys(&self, names: &str) {
        self.sql("postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"));
        self.sql("postgres", "SELECT pg_reload_conf()");
        // The reload reaches each process by a signal.
        let known = || self.sql("postgres", "SHOW synchronous_standby_names") == names;
        assert!(until(TIMEOUT, known), "the server does not read its configuration again:\n{}", self.log());
    }

    /// Cuts a standby from its primary: it serves reads as before, and COMMITs that wait for it hang. Returns when the
    /// primary has lost it.
    pub fn detach(&self, primary: &Postgres) {
        self.link.as_ref().expect("a standby").cut();
        let streaming = "SELECT count(*) FROM pg_stat_replication";
        let lost = until(TIMEOUT, || primary.sql("postgres", streaming) == "0");
        assert!(lost, "the primary still streams:\n{}", primary.log());
    }

    /// Lets a standby reach its primary again after [`Postgres::detach`]. It connects by itself, a moment later.
    pub fn attach(&self) {
        self.link.as_ref().expect("a standby").restore();
    }

    /// Makes a standby a primary with a new timeline, and returns when it takes writes. The old primary is not told: kill
    /// it before, or let it live on.
    pub fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote()"), "t", "{}", self.log());
    }

    /// How many COMMITs wait for a synchronous standby now. Such a COMMIT survives its client: it completes when a standby
    /// comes, though the client may be dead or cut off by then.
    pub fn held_commits(&self) -> usize {
        self.sql("postgres", HELD).parse().expect("a number")
    }

    /// Waits until this many COMMITs wait for a synchronous standby.
    pub fn wait_for_held_commits(&self, count: usize) {
        let reached = until(TIMEOUT, || self.held_commits() == count);
        assert!(reached, "{} COMMITs are held, not {count}", self.held_commits());
    }
}
