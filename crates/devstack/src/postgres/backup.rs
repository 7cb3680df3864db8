//! A copy of all data, and a server that goes back to it.

use std::fs;
use std::io::Write;
use std::process::Command;

use super::Postgres;
use crate::programs::{give, output};
use crate::tempdir::TempDir;

/// All data of a server, as they were at one moment. Dropping it removes it.
#[derive(Debug)]
pub struct Backup {
    dir: TempDir,
}

/// How a server goes on from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeline {
    /// As after a power cut: the server cannot know that its data are from the past. A snapshot of a disk or of a virtual
    /// machine that is put back looks like this.
    Same,
    /// As after a recovery from an archive.
    New,
}

impl Postgres {
    /// Copies all data while the server runs.
    pub fn backup(&self) -> Backup {
        let dir = TempDir::new(self.account.as_ref());
        let copied = output(&mut self.base_backup(&dir.path().join("data"), self.port));
        copied.unwrap_or_else(|error| panic!("{error}"));
        Backup { dir }
    }

    /// Kills the server if it runs, and starts it with the data of the backup and the same port: rows go back in time.
    /// Returns when the server accepts connections.
    pub fn restore(&self, backup: &Backup, timeline: Timeline) {
        self.kill();
        self.remove_shared_memory();
        fs::remove_dir_all(self.data()).expect("the data can be removed");
        let copied =
            output(Command::new("cp").arg("-Rp").arg(backup.dir.path().join("data")).arg(self.data()));
        copied.unwrap_or_else(|error| panic!("{error}"));
        if timeline == Timeline::New {
            self.recover_from_archive();
        }
        self.restart();
    }

    /// Makes the next start a recovery from an archive, which happens to hold nothing more than the data have.
    fn recover_from_archive(&self) {
        let signal = self.data().join("recovery.signal");
        fs::write(&signal, "").expect("the data can be written");
        give(&signal, self.account.as_ref()).expect("root may give a file away");
        let settings = self.data().join("postgresql.auto.conf");
        let mut settings = fs::OpenOptions::new().append(true).open(settings).expect("every server has it");
        settings.write_all(b"restore_command = 'false'\n").expect("the data can be written");
    }
}
