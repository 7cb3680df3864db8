//! A program that a machine may lack, and the test that needs it says so.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use crate::programs::find;

/// A program that was found on this machine. Nothing runs yet.
#[derive(Debug)]
pub struct Installed(PathBuf);

impl Installed {
    /// The program of this name. If it is missing, says that the test was not run:
    /// `let Some(haproxy) = Installed::find("haproxy") else { return }`.
    ///
    /// Panics instead in `make check`, which sets `NOTHING_NOT_RUN`.
    pub fn find(name: &str) -> Option<Installed> {
        let found = find(name);
        if found.is_err() {
            assert!(std::env::var_os("NOTHING_NOT_RUN").is_none(), "{name} is not installed");
            // Not by `eprintln!`, whose lines the tests' harness shows only for tests that fail.
            let test = thread::current().name().unwrap_or_default().to_owned();
            let _ = writeln!(
                std::io::stderr(),
                "NOT RUN, since {name} is not installed (`make setup` installs it): {test}"
            );
        }
        found.ok().map(Installed)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}
