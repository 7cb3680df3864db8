//! A folder that is removed when we end, however we end.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::programs::Account;

/// As in `guard`: end-of-file means that we are gone. A server may still be ending and write, so it tries for a while.
const WATCHED: &str = r#"
read -r _
left=100
while [ $left -gt 0 ]; do
    rm -rf "$1"
    [ -e "$1" ] || exit 0
    sleep 0.1
    left=$((left - 1))
done
"#;

/// A new, empty folder, removed when dropped and also when this process ends without dropping it.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    watcher: Child,
}

impl Scratch {
    /// Makes the folder, for `owner` if that is another user than ours.
    pub(crate) fn new(owner: Option<&Account>) -> Scratch {
        let base = base(owner);
        let made = tempfile::Builder::new().prefix("devstack-").tempdir_in(&base);
        let path = made.unwrap_or_else(|error| panic!("no folder in {}: {error}", base.display())).keep();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", WATCHED, "sh"]).arg(&path).current_dir("/").process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let watcher = shell.spawn().expect("/bin/sh starts");
        if let Some(owner) = owner {
            chown(&path, Some(owner.uid), Some(owner.gid)).expect("root may give a folder away");
        }
        Scratch { path, watcher }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It removes the folder in the background: a test need not wait for that.
        drop(self.watcher.stdin.take());
        drop(std::fs::remove_dir_all(&self.path));
        drop(self.watcher.wait());
    }
}

/// The system's folder for temporary files, unless its owner-to-be cannot get there (a TMPDIR below /root, say).
fn base(owner: Option<&Account>) -> PathBuf {
    let usual = std::env::temp_dir();
    match owner {
        Some(owner) if !owner.can_enter(&usual) => PathBuf::from("/tmp"),
        _ => usual,
    }
}

impl Account {
    /// True if this user may pass through every folder on the way to `path` and into it.
    pub(crate) fn can_enter(&self, path: &Path) -> bool {
        let Ok(path) = path.canonicalize() else { return false };
        path.ancestors().all(|folder| {
            let Ok(metadata) = folder.metadata() else { return false };
            let mode = metadata.permissions().mode();
            let bit = if metadata.uid() == self.uid {
                0o100
            } else if metadata.gid() == self.gid {
                0o010
            } else {
                0o001
            };
            mode & bit != 0
        })
    }
}
