//! Where the programs are that devstack starts, and the user that Postgres runs as.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;

/// A user of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Account {
    /// The user to start Postgres as, since Postgres refuses to run as root: `postgres`, else `nobody`. `None` if we are
    /// not root.
    pub(crate) fn unprivileged() -> Option<Account> {
        if !geteuid().is_root() {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "nobody"]
            .iter()
            .find_map(|wanted| users.lines().find_map(|line| Account::parse(line, wanted)))
    }

    fn parse(line: &str, wanted: &str) -> Option<Account> {
        let fields: Vec<&str> = line.split(':').collect();
        match fields[..] {
            [name, _, uid, gid, ..] if name == wanted => {
                Some(Account { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
            }
            _ => None,
        }
    }

    /// Returns whether this user may enter `path` and every folder on the way to it.
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

/// Makes the command run as `account`, if there is one.
pub(crate) fn run_as(command: &mut Command, account: Option<&Account>) {
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
}

/// Makes `account`, if there is one, the owner of a file or folder.
pub(crate) fn give(path: &Path, account: Option<&Account>) -> std::io::Result<()> {
    account.map_or(Ok(()), |account| chown(path, Some(account.uid), Some(account.gid)))
}

/// A command with few variables: the developer's own (PGHOST, DATABASE_URL) must not reach it.
pub(crate) fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
    // Messages are in English on every machine.
    command.env("LC_ALL", "C");
    command
}

/// Runs a command to its end, and returns what it prints without the last newline. If it fails, the error holds what it
/// printed to standard error.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
}

/// The folder with `postgres`, `initdb` and `psql`: the one on PATH, else Debian's newest, else Homebrew's.
pub(crate) fn postgres_folder() -> Result<PathBuf, String> {
    // On PATH may be a link, and the other programs are beside what it leads to.
    let on_path =
        on_path("postgres").into_iter().filter_map(|link| Some(link.canonicalize().ok()?.parent()?.into()));
    let mut candidates: Vec<PathBuf> = on_path.collect();
    candidates.extend(numbered("/usr/lib/postgresql", ""));
    candidates.extend(numbered("/opt/homebrew/opt", "postgresql@"));
    candidates.extend(numbered("/usr/local/opt", "postgresql@"));
    let is_complete = |folder: &PathBuf| folder.join("initdb").exists() && folder.join("postgres").exists();
    let found = candidates.into_iter().find(is_complete);
    found.ok_or_else(|| {
        "no PostgreSQL server found on PATH or in /usr/lib/postgresql: run `make setup`".to_owned()
    })
}

/// The folder with the programs of one version, such as `17`.
pub(crate) fn postgres_folder_of(version: &str) -> Result<PathBuf, String> {
    let [debian, apple, intel] =
        ["/usr/lib/postgresql/", "/opt/homebrew/opt/postgresql@", "/usr/local/opt/postgresql@"];
    let usual = [debian, apple, intel].map(|start| PathBuf::from(format!("{start}{version}/bin")));
    if let Some(folder) = usual.into_iter().find(|folder| folder.join("postgres").exists()) {
        return Ok(folder);
    }
    let folder = postgres_folder()?;
    let printed = output(Command::new(folder.join("postgres")).arg("--version"))?;
    if printed.split_whitespace().any(|word| word.split('.').next() == Some(version)) {
        Ok(folder)
    } else {
        Err(format!("PostgreSQL {version} is not installed"))
    }
}

/// The `bin` folders of the folders in `parent` that are named `prefix` and a version, newest version first.
fn numbered(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let version = |name: &str| name.strip_prefix(prefix)?.parse::<u32>().ok();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((version(entry.file_name().to_str()?)?, entry.path().join("bin"))))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// A program on PATH by its name.
pub(crate) fn find(name: &str) -> Result<PathBuf, String> {
    on_path(name).into_iter().next().ok_or_else(|| format!("no {name} on PATH: run `make setup`"))
}

/// HAProxy. Debian puts it where only root's PATH leads.
pub(crate) fn haproxy() -> Result<PathBuf, String> {
    let debian = PathBuf::from("/usr/sbin/haproxy");
    find("haproxy")
        .or_else(|_| debian.is_file().then_some(debian).ok_or("haproxy is not installed".to_owned()))
}

fn on_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|file| file.is_file()).collect()
}

/// One of the workspace's own binaries. Cargo gives a test only the paths of its own package's binaries
/// (`CARGO_BIN_EXE_*`), so look beside the running executable: in `<target>/<profile>/`, whether the executable is
/// there or in the `deps` or `examples` below.
pub(crate) fn sibling(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("the path of this executable: {error}"))?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let is_nested = folder.ends_with("deps") || folder.ends_with("examples");
    let profile = if is_nested { folder.parent().unwrap_or(folder) } else { folder };
    let path = profile.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let profile = profile.file_name().unwrap_or_default().to_string_lossy();
    let option = if profile == "debug" { String::new() } else { format!(" --profile {profile}") };
    Err(format!("{} is missing: run `cargo build --workspace{option}` first", path.display()))
}
