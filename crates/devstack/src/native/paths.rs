//! Where the native stack of a checkout keeps its state.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::terminal::{Result, say};
use crate::programs::{Account, give};

/// The checkout and its `.local`.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) checkout: PathBuf,
    local: PathBuf,
    /// The user that owns the Postgres data and runs the server, if that is not this user.
    pub(super) account: Option<Account>,
}

impl Paths {
    /// The paths of a checkout. Makes the folders that are missing.
    pub(super) fn of(checkout: &Path) -> Result<Paths> {
        let checkout = checkout.canonicalize().map_err(|error| format!("{}: {error}", checkout.display()))?;
        let paths = Paths { local: checkout.join(".local"), checkout, account: Account::unprivileged() };
        paths.folder("run")?;
        paths.folder("log")?;
        Ok(paths)
    }

    /// A folder in `.local`, made if missing.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.local.join(name);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// Waits until no other command works on this checkout. The lock ends when the file is dropped or this process ends.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.local.join("lock");
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = File::create(&path).map_err(failed)?;
        if file.try_lock().is_err() {
            say("another command works on this checkout: waiting for it");
            file.lock().map_err(failed)?;
        }
        Ok(file)
    }

    /// The record of a part: its process and ports.
    pub(super) fn record(&self, part: &str) -> PathBuf {
        self.local.join("run").join(format!("{part}.json"))
    }

    /// The names of the parts that have a record.
    pub(super) fn records(&self) -> Vec<String> {
        let entries = fs::read_dir(self.local.join("run")).into_iter().flatten().flatten();
        let name = |file: &str| file.strip_suffix(".json").map(str::to_owned);
        entries.filter_map(|entry| name(entry.file_name().to_str()?)).collect()
    }

    /// The output of a part.
    pub(super) fn log(&self, part: &str) -> PathBuf {
        self.local.join("log").join(format!("{part}.log"))
    }

    /// The folder of the Postgres data: in `.local`, or elsewhere if the user that Postgres runs as cannot enter that.
    pub(super) fn data(&self) -> PathBuf {
        match &self.account {
            Some(account) if !account.can_enter(&self.local) => self.elsewhere().join("postgres"),
            _ => self.local.join("postgres"),
        }
    }

    /// A folder for this checkout alone, in a folder that every user may enter. The path's hash distinguishes `/a/b` from
    /// `/a-b`.
    fn elsewhere(&self) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        self.checkout.hash(&mut hasher);
        let readable = self.checkout.display().to_string().replace('/', "-");
        PathBuf::from(format!("/var/tmp/devstack{readable}-{:08x}", hasher.finish() as u32))
    }

    /// The folder of the Postgres data. Makes its parent if that is missing, and lets the user that Postgres runs as enter.
    pub(super) fn prepared_data(&self) -> Result<PathBuf> {
        let data = self.data();
        let parent = data.parent().unwrap_or(Path::new("/"));
        if parent == self.elsewhere() {
            make_own_folder(parent, self.account.as_ref())?;
            say(format!(
                "postgres   the data are in {}, since its user cannot enter this checkout",
                data.display()
            ));
        }
        Ok(data)
    }

    /// Removes all data, logs and records.
    pub(super) fn clear(&self) -> Result<()> {
        let inside =
            ["postgres", "postgres.new", "redis", "haproxy", "log", "run"].map(|name| self.local.join(name));
        for path in inside.into_iter().chain([self.elsewhere()]) {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{}: {error}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Makes a folder where every user may make one, and fails if another user has made it before.
fn make_own_folder(path: &Path, account: Option<&Account>) -> Result<()> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return give(path, account).map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let metadata = path.symlink_metadata().map_err(failed)?;
    let owner = account.map_or(0, |account| account.uid);
    if !metadata.is_dir() || ![owner, 0].contains(&metadata.uid()) {
        return Err(format!("{} belongs to another user: remove it", path.display()));
    }
    give(path, account).map_err(failed)
}

/// Writes a file so that a reader sees all of it or none.
pub(super) fn write_atomically(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}
