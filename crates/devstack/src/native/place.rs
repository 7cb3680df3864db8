//! Where the native stack of a checkout keeps its state.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Result, say};
use crate::postgres::give;
use crate::programs::Account;

/// The checkout and its `.local`.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) checkout: PathBuf,
    local: PathBuf,
    /// Who owns and serves the Postgres data, if not we.
    pub(super) account: Option<Account>,
}

impl Place {
    /// Makes the folders that are missing.
    pub(super) fn of(checkout: &Path) -> Result<Place> {
        let checkout = checkout.canonicalize().map_err(|error| format!("{}: {error}", checkout.display()))?;
        let place = Place { local: checkout.join(".local"), checkout, account: Account::unprivileged() };
        place.folder("run")?;
        place.folder("log")?;
        Ok(place)
    }

    /// A folder in `.local`, made if missing.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.local.join(name);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// Waits until no other command works on this checkout. Dropping the file ends the lock, and so does our death.
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

    /// What is known of a part: its process and ports.
    pub(super) fn record(&self, part: &str) -> PathBuf {
        self.local.join("run").join(format!("{part}.json"))
    }

    /// What a part wrote.
    pub(super) fn log(&self, part: &str) -> PathBuf {
        self.local.join("log").join(format!("{part}.log"))
    }

    /// The folder of the Postgres data: in `.local`, unless the user that Postgres runs as cannot get there.
    pub(super) fn data(&self) -> PathBuf {
        match &self.account {
            Some(account) if !account.can_enter(&self.local) => self.elsewhere().join("postgres"),
            _ => self.local.join("postgres"),
        }
    }

    /// A folder for this checkout alone where everybody may enter. The path's hash tells `/a/b` from `/a-b`.
    fn elsewhere(&self) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        self.checkout.hash(&mut hasher);
        let readable = self.checkout.display().to_string().replace('/', "-");
        PathBuf::from(format!("/var/tmp/devstack{readable}-{:08x}", hasher.finish() as u32))
    }

    /// The same, made if missing, with its parent open to the user that Postgres runs as.
    pub(super) fn prepared_data(&self) -> Result<PathBuf> {
        let data = self.data();
        let parent = data.parent().unwrap_or(Path::new("/"));
        if parent == self.elsewhere() {
            own_folder(parent, self.account.as_ref())?;
            say(format!(
                "postgres  the data are in {}, since its user cannot enter this checkout",
                data.display()
            ));
        }
        Ok(data)
    }

    /// Removes all data, logs and records.
    pub(super) fn clear(&self) -> Result<()> {
        let inside = ["postgres", "postgres.new", "redis", "log", "run"].map(|name| self.local.join(name));
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

/// Makes a folder in a place where everybody may, and makes sure that nobody else made it before.
fn own_folder(path: &Path, account: Option<&Account>) -> Result<()> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return give(path, account).map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let metadata = path.symlink_metadata().map_err(failed)?;
    let owner = account.map_or(0, |account| account.uid);
    if !metadata.is_dir() || ![owner, 0].contains(&metadata.uid()) {
        return Err(format!("{} belongs to somebody else: remove it", path.display()));
    }
    give(path, account).map_err(failed)
}

/// Writes a file so that it is seen whole or not at all.
pub(super) fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}
