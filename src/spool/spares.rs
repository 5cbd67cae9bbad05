//! Job directories made ahead, on a thread of their own: a claim then renames one, instead of making three directories and
//! a file while its item waits; in a stream of items that is a quarter of what the spool's thread has to do. They lie in
//! `.gamdok/spare/`, hold nothing and mean nothing; what an earlier director left of them is removed at the start.
//! Invariant: a spare is whole, or it isn't in the list; without any, a claim makes its own directory. Like that one it is
//! made durable by the claim's round, though mostly it is already.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded, never};
use rustix::fs::Mode;
use rustix::io::Errno;

use super::ground::Ground;
use super::record;

/// As many as a group of claims takes in a stream of items, while the next are being made.
const READY: usize = 32;
/// How long none may be taken before they are made durable: in a stream of items each sync would be one more for the disk,
/// beside those of the spool, which take them along anyway.
const REST: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Spares {
    /// None: it can't be had, and there are no spares.
    dir: Option<Arc<OwnedFd>>,
    ready: Receiver<String>,
    paused: Arc<AtomicBool>,
    go: Sender<()>,
    maker: Option<JoinHandle<()>>,
}

/// The thread that makes them; it ends with the list.
struct Maker {
    ground: Arc<Ground>,
    dir: Arc<OwnedFd>,
    ready: Sender<String>,
    paused: Arc<AtomicBool>,
    go: Receiver<()>,
    made: u64,
}

impl Spares {
    pub(super) fn new(ground: &Arc<Ground>) -> Spares {
        let (list, ready) = bounded(READY);
        let (go, gone_on) = bounded(1);
        let paused = Arc::new(AtomicBool::new(false));
        let begun = open(ground.root.dir()).map(Arc::new).and_then(|dir| {
            let maker = Maker {
                ground: ground.clone(),
                dir: dir.clone(),
                ready: list,
                paused: paused.clone(),
                go: gone_on,
                made: 0,
            };
            let thread = std::thread::Builder::new().name("gamdok-spares".to_owned());
            let maker = thread.spawn(move || maker.run()).map_err(|_| Errno::AGAIN)?;
            Ok((dir, maker))
        });
        if let Err(error) = &begun {
            tracing::debug!(%error, "no job directories are made ahead");
        }
        let (dir, maker) = begun.ok().unzip();
        Spares { dir, ready, paused, go, maker }
    }

    /// Moves one to its place in `claimed/`.
    pub(super) fn take(&mut self, ground: &Ground, job: &str) -> Option<OwnedFd> {
        let name = self.ready.try_recv().ok()?;
        // Its old place isn't synced: found in both after a power cut, it is the job's, and not empty.
        record::rename_new(self.dir.as_ref()?, name.as_str(), ground.claimed(), job).ok()?;
        record::open_dir(ground.claimed(), job).ok()
    }

    /// None are made until [`Spares::go_on`].
    pub(super) fn pause(&mut self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(super) fn go_on(&mut self) {
        self.paused.store(false, Ordering::Relaxed);
        // One word waits already, or nobody is there for it.
        let _told = self.go.try_send(());
    }
}

/// Waits until the last one is made: nothing is written below the root after the spool's end.
impl Drop for Spares {
    fn drop(&mut self) {
        (self.ready, self.go) = (never(), bounded(0).0);
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
    }
}

impl Maker {
    fn run(mut self) {
        remove_all(&self.dir);
        loop {
            if self.paused.load(Ordering::Relaxed) {
                let Ok(()) = self.go.recv() else { return };
                continue;
            }
            self.made += 1;
            let name = self.made.to_string();
            if let Err(error) = self.ground.make_job_in(self.dir.as_fd(), &name) {
                tracing::debug!(%error, "no job directory could be made ahead");
                self.paused.store(true, Ordering::Relaxed);
                continue;
            }
            match self.ready.send_timeout(name, REST) {
                Ok(()) => {}
                Err(SendTimeoutError::Disconnected(_)) => return,
                Err(SendTimeoutError::Timeout(name)) => {
                    // Nobody is in a hurry: what is durable now, no claim has to wait for.
                    let synced = rustix::fs::fsync(&self.dir);
                    if let Err(error) = synced {
                        tracing::debug!(%error, "the job directories made ahead can't be synced");
                    }
                    if self.ready.send(name).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// The folder.
fn open(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let state = record::open_dir(root, ".gamdok")?;
    match rustix::fs::mkdirat(&state, "spare", Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    record::open_dir(&state, "spare")
}

/// What an earlier director left.
fn remove_all(dir: &OwnedFd) {
    let names = || -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.parse::<u64>().is_ok() {
                names.push(name);
            }
        }
        Ok(names)
    };
    for name in names().unwrap_or_default() {
        if let Err(error) = record::remove_empty_job(dir.as_fd(), &name) {
            tracing::debug!(name, %error, "a spare directory that isn't empty stays where it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::fault_points::Faults;
    use super::*;
    use crate::root::Root;

    fn list(dir: &Path) -> Vec<u64> {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut numbers: Vec<u64> = names.map(|name| name.to_string_lossy().parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    }

    fn ground(path: &Path) -> Arc<Ground> {
        Root::init(path).unwrap();
        let root = Arc::new(Root::open(path).unwrap());
        root.ensure_dirs().unwrap();
        Arc::new(Ground::new(root, Faults::default()).unwrap())
    }

    /// Waits for what the thread does.
    fn until(what: &str, is: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !is() {
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_spare_is_a_jobs_directory_and_leftovers_are_removed_unless_something_is_in_them() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("root");
        let ground = ground(&path);
        let spare = path.join(".gamdok/spare");
        let mut spares = Spares::new(&ground);
        until("they are made", || spares.ready.is_full());
        assert!(spares.take(&ground, "a").is_some());
        for part in ["item", "out", "lock"] {
            assert!(path.join("claimed/a").join(part).exists(), "{part}");
        }
        until("the next is made", || spares.ready.is_full());
        std::fs::create_dir(path.join("claimed/b")).unwrap();
        assert!(spares.take(&ground, "b").is_none(), "nothing is replaced");

        until("the list is full and one waits", || list(&spare).last() == Some(&(READY as u64 + 3)));
        std::fs::write(spare.join("5/item/precious"), "x").unwrap();
        drop(spares);
        let mut spares = Spares::new(&ground);
        // Its number is taken: that ends the making, until someone says to go on.
        until("it has paused", || spares.paused.load(Ordering::Relaxed));
        assert_eq!(list(&spare), [1, 2, 3, 4, 5]);
        spares.go_on();
        until("they are made", || spares.ready.is_full());
        assert!(spare.join("5/item/precious").exists());
    }

    #[test]
    fn none_are_made_while_it_is_paused() {
        let temp = tempfile::tempdir().unwrap();
        let ground = ground(&temp.path().join("root"));
        let mut spares = Spares::new(&ground);
        until("they are made", || spares.ready.is_full());
        spares.pause();
        let before = (0..).map_while(|n| spares.take(&ground, &n.to_string())).count();
        // At most the one that waited for its place, and one that was being made.
        assert!((READY..=READY + 2).contains(&before), "{before}");
        spares.go_on();
        until("they are made", || spares.ready.is_full());
    }
}
