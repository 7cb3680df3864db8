//! A folder that is removed when this process ends, in whatever way it ends.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::programs::{Account, give};

/// End-of-file on the pipe means that this process has ended, as in [`crate::supervise`]. A server that is still ending
/// may write into the folder, so removal is tried for 10 s (100 times 0.1 s).
const REMOVER: &str = r#"
read -r _
left=100
while [ $left -gt 0 ]; do
    rm -rf "$1"
    [ -e "$1" ] || exit 0
    sleep 0.1
    left=$((left - 1))
done
"#;

/// A new, empty folder. It is removed when dropped, and also when this process ends without dropping it.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    remover: Child,
}

impl TempDir {
    /// A folder of the test's own.
    pub fn for_test() -> TempDir {
        TempDir::new(None)
    }

    /// Makes the folder, for `owner` if that is another user than ours.
    pub(crate) fn new(owner: Option<&Account>) -> TempDir {
        let base = base(owner);
        let made = tempfile::Builder::new().prefix("devstack-").tempdir_in(&base);
        let path = made.unwrap_or_else(|error| panic!("no folder in {}: {error}", base.display())).keep();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", REMOVER, "sh"]).arg(&path).current_dir("/").process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let remover = shell.spawn().expect("/bin/sh starts");
        give(&path, owner).expect("root may give a folder away");
        TempDir { path, remover }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Closes the pipe, so that the remover takes over whatever the next line cannot remove.
        drop(self.remover.stdin.take());
        let _ = std::fs::remove_dir_all(&self.path);
        let _ = self.remover.wait();
    }
}

/// The system's folder for temporary files, or `/tmp` if the owner cannot enter that (a TMPDIR below /root, say).
fn base(owner: Option<&Account>) -> PathBuf {
    let usual = std::env::temp_dir();
    match owner {
        Some(owner) if !owner.can_enter(&usual) => PathBuf::from("/tmp"),
        _ => usual,
    }
}
