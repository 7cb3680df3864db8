//! Watches the file of the token list, and takes over what is right.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use actix_web::rt;
use tokio::signal::unix::{SignalKind, signal};

use super::{Access, Change, Digest, TokenList, read_file};

/// How long a change of the file may go unseen.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

impl Access {
    /// Looks at the list at `path` every five seconds and at each SIGHUP, for as long as the process runs. To be called
    /// within a runtime.
    ///
    /// # Errors
    /// A signal handler or a thread that cannot be had.
    pub fn watch(self: &Arc<Self>, path: PathBuf) -> io::Result<()> {
        let mut hangups = signal(SignalKind::hangup())?;
        let (sender, receiver) = mpsc::channel();
        rt::spawn(async move { while hangups.recv().await.is_some() && sender.send(()).is_ok() {} });
        let watcher = Watcher { access: self.clone(), path, seen: None };
        // A thread, since a file system may hang: a runtime's end would wait for its blocking tasks.
        thread::Builder::new().name("token-list".into()).spawn(move || watcher.run(&receiver))?;
        Ok(())
    }
}

struct Watcher {
    access: Arc<Access>,
    path: PathBuf,
    /// What was read last, so that a mistake is logged once.
    seen: Option<Result<Digest, String>>,
}

impl Watcher {
    fn run(mut self, hangups: &Receiver<()>) {
        loop {
            match hangups.recv_timeout(LOOK_INTERVAL) {
                // The operator wants to hear of mistakes again.
                Ok(()) => self.seen = None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look();
        }
    }

    /// Reads the whole file each time: it is small. A time of modification, a size and an inode would miss a change
    /// within one tick of the clock, or take a file that is half written for the whole one.
    fn look(&mut self) {
        let text = read_file(&self.path);
        let seen = text.as_ref().map(|text| Digest::of(text)).map_err(String::clone);
        if self.seen.as_ref() != Some(&seen) {
            self.seen = Some(seen);
            self.take(text);
        }
    }

    fn take(&self, text: Result<String, String>) {
        let list = text.and_then(|text| TokenList::parse(&text).map_err(|mistakes| mistakes.to_string()));
        let stale = &self.access.metrics.stale;
        match list {
            Ok(list) => {
                stale.set(0);
                let count = list.len();
                if self.access.replace(list) == Change::Made {
                    log::info!(target: "audit", "token list changed: {count} tokens");
                }
            }
            Err(mistakes) => {
                stale.set(1);
                log::error!(
                    "the token list is wrong, and the last good one stays in use: API_TOKENS_FILE: {mistakes}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::Instant;

    use rustix::process::{Signal, getpid, kill_process};

    use super::super::tests::{access, list_of, token};
    use super::*;

    /// A folder of the test's own, removed when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("access-{name}-{}", std::process::id()));
            fs::create_dir(&path).expect("a new folder can be made");
            Self(path)
        }

        fn put(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).expect("it can be written");
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            // A folder that is left over does no harm.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn watcher(access: &Arc<Access>, path: &Path) -> Watcher {
        Watcher { access: access.clone(), path: path.to_owned(), seen: None }
    }

    #[test]
    fn a_list_that_is_written_anew_renamed_or_behind_another_symlink_is_taken() {
        let folder = Folder::new("changes");
        let lists =
            [list_of(&[&token(1)]), list_of(&[&token(2)]), list_of(&[&token(3)]), list_of(&[&token(4)])];
        let knows = |access: &Access, digits| access.clients.load().find(&token(digits).digest()).is_some();
        let file = folder.put("tokens", &lists[0]);
        let link = folder.0.join("link");
        symlink(&file, &link).expect("a symlink");
        let access = Arc::new(access(&lists[0]));
        let mut watcher = watcher(&access, &link);

        watcher.look();
        assert_eq!(access.epoch.load(std::sync::atomic::Ordering::Relaxed), 0, "nothing has changed");
        // The same size, and perhaps within the same tick of the file system's clock.
        folder.put("tokens", &lists[1]);
        watcher.look();
        assert!(knows(&access, 2) && !knows(&access, 1));
        fs::rename(folder.put("new", &lists[2]), &file).expect("renamed");
        watcher.look();
        assert!(knows(&access, 3) && !knows(&access, 2));
        symlink(folder.put("tokens-2", &lists[3]), folder.0.join("link-2")).expect("a symlink");
        fs::rename(folder.0.join("link-2"), &link).expect("renamed");
        watcher.look();
        assert!(knows(&access, 4) && !knows(&access, 3));
        assert_eq!(access.epoch.load(std::sync::atomic::Ordering::Relaxed), 3);
    }

    #[test]
    fn a_list_that_is_wrong_or_away_is_not_taken_and_the_gauge_says_so_until_it_is_right() {
        let folder = Folder::new("mistakes");
        let good = list_of(&[&token(1)]);
        let file = folder.put("tokens", &good);
        let access = Arc::new(access(&good));
        let mut watcher = watcher(&access, &file);
        let stale = || access.metrics.stale.get();
        let epoch = || access.epoch.load(std::sync::atomic::Ordering::Relaxed);

        folder.put("tokens", &format!("{}\nbilling", list_of(&[&token(2)])));
        watcher.look();
        assert_eq!((stale(), epoch()), (1, 0));
        folder.put("tokens", "");
        watcher.look();
        assert_eq!((stale(), epoch()), (1, 0));
        assert!(access.clients.load().find(&token(1).digest()).is_some());
        folder.put("tokens", &good);
        watcher.look();
        assert_eq!((stale(), epoch()), (0, 0));
        fs::remove_file(&file).expect("removed");
        watcher.look();
        assert_eq!((stale(), epoch()), (1, 0));
        folder.put("tokens", &list_of(&[&token(2)]));
        watcher.look();
        assert_eq!((stale(), epoch()), (0, 1));
    }
    #[test]
    fn a_hangup_makes_the_watcher_look_at_once() {
        let folder = Folder::new("hangup");
        let file = folder.put("tokens", &list_of(&[&token(1)]));
        let access = Arc::new(access(&list_of(&[&token(1)])));
        let epoch = || access.epoch.load(std::sync::atomic::Ordering::Relaxed);
        rt::System::new().block_on(async {
            access.watch(file).expect("watched");
            folder.put("tokens", &list_of(&[&token(2)]));
            kill_process(getpid(), Signal::HUP).expect("sent");
            let begin = Instant::now();
            while epoch() == 0 && begin.elapsed() < LOOK_INTERVAL / 2 {
                rt::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert_eq!(epoch(), 1);
    }
}
