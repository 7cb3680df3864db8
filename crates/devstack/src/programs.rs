//! Where the programs are that we start, and the user that Postgres runs as.

use std::fs;
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
    /// The user to start Postgres as, which refuses to run as root: `postgres`, else `nobody`. `None` if we are not
    /// root.
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
}

/// Makes the command run as `account`, if there is one.
pub(crate) fn run_as(command: &mut Command, account: Option<&Account>) {
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
}

/// A command with few variables: what the developer has exported (PGHOST, DATABASE_URL) must not reach it.
pub(crate) fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
    // So that messages are in English on every machine.
    command.env("LC_ALL", "C");
    command
}

/// The folder with `postgres`, `initdb` and `psql`: the one on PATH, else Debian's newest, else Homebrew's.
pub(crate) fn postgres_folder() -> Result<PathBuf, String> {
    // A link on PATH says where the program is; its siblings are beside the program, not beside the link.
    let on_path =
        on_path("postgres").into_iter().filter_map(|link| Some(link.canonicalize().ok()?.parent()?.into()));
    let mut candidates: Vec<PathBuf> = on_path.collect();
    candidates.extend(numbered("/usr/lib/postgresql", ""));
    candidates.extend(numbered("/opt/homebrew/opt", "postgresql@"));
    candidates.extend(numbered("/usr/local/opt", "postgresql@"));
    let complete = |folder: &PathBuf| folder.join("initdb").exists() && folder.join("postgres").exists();
    let found = candidates.into_iter().find(complete);
    found.ok_or_else(|| {
        "no PostgreSQL server found on PATH or in /usr/lib/postgresql: run `make setup`".to_owned()
    })
}

/// The same, of one version.
pub(crate) fn postgres_folder_of(version: &str) -> Result<PathBuf, String> {
    let [debian, apple, intel] =
        ["/usr/lib/postgresql/", "/opt/homebrew/opt/postgresql@", "/usr/local/opt/postgresql@"];
    let usual = [debian, apple, intel].map(|start| PathBuf::from(format!("{start}{version}/bin")));
    if let Some(folder) = usual.into_iter().find(|folder| folder.join("postgres").exists()) {
        return Ok(folder);
    }
    let folder = postgres_folder()?;
    let output =
        Command::new(folder.join("postgres")).arg("--version").output().map_err(|error| error.to_string())?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_it = told.split_whitespace().any(|word| word.split('.').next() == Some(version));
    if is_it { Ok(folder) } else { Err(format!("PostgreSQL {version} is not installed")) }
}

/// The `bin` folders below `parent`, of folders named prefix and version, newest version first.
fn numbered(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let version = |name: &str| name.strip_prefix(prefix)?.parse::<u32>().ok();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((version(entry.file_name().to_str()?)?, entry.path().join("bin"))))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// A program by its name, from PATH.
pub(crate) fn find(name: &str) -> Result<PathBuf, String> {
    on_path(name).into_iter().next().ok_or_else(|| format!("no {name} on PATH: run `make setup`"))
}

fn on_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|file| file.is_file()).collect()
}

/// One of our own binaries. Cargo tells a test only of its own package's (`CARGO_BIN_EXE_*`), so look beside our own
/// executable: `<target>/<profile>/`, or its `deps` or `examples`.
pub(crate) fn sibling(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let nested = folder.ends_with("deps") || folder.ends_with("examples");
    let profile = if nested { folder.parent().unwrap_or(folder) } else { folder };
    let path = profile.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let release = if profile.ends_with("release") { " --release" } else { "" };
    Err(format!("{} is missing: run `cargo build --workspace{release}` first", path.display()))
}
