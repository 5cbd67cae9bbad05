//! The one place that knows `notify`. Its handler runs on notify's own thread: it translates, never waits, never panics.
//! What doesn't fit the queue, what the kernel dropped and what failed is remembered in flags: events are hints.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};
use notify::event::{AccessKind, AccessMode, EventKindMask, ModifyKind, RenameMode};
use notify::{ErrorKind, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Names that wait for the scanner; beyond it the folder itself is read again.
const QUEUE: usize = 4096;

/// One thing that happened to one name; nothing in it is believed without a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) path: PathBuf,
    pub(super) what: Happened,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    RenamedIn,
    /// Created, linked, or closed after writing.
    Touched,
    /// Removed or renamed out.
    Gone,
    /// Nothing about a name: look at the flags.
    Flagged,
}

/// Where the handler puts what it hears.
#[derive(Clone, Debug)]
pub(super) struct Ear {
    hints: Sender<Hint>,
    /// Events were lost.
    rescan: Arc<AtomicBool>,
    /// The watch itself failed.
    lost: Arc<AtomicBool>,
}

impl Ear {
    pub(super) fn new() -> (Ear, Receiver<Hint>) {
        let (hints, heard) = crossbeam_channel::bounded(QUEUE);
        (Ear { hints, rescan: Arc::default(), lost: Arc::default() }, heard)
    }

    /// Whether events were lost since the last call.
    pub(super) fn take_rescan(&self) -> bool {
        self.rescan.swap(false, Ordering::AcqRel)
    }

    /// Whether the watch failed since the last call.
    pub(super) fn take_lost(&self) -> bool {
        self.lost.swap(false, Ordering::AcqRel)
    }

    pub(super) fn hear(&self, event: Result<notify::Event, notify::Error>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "the watch of the inbox failed");
                self.lost.store(true, Ordering::Release);
                return self.wake();
            }
        };
        // An overflow names no path, so it must be seen before the paths are.
        if event.need_rescan() {
            self.rescan.store(true, Ordering::Release);
            return self.wake();
        }
        let Some(what) = translate(&event.kind) else { return };
        for path in event.paths {
            if self.hints.try_send(Hint { path, what }).is_err() {
                // The queue is full, so the scanner is awake and sees the flag when it has emptied it.
                self.rescan.store(true, Ordering::Release);
                return;
            }
        }
    }

    fn wake(&self) {
        // A full queue wakes the scanner as well.
        let _ = self.hints.try_send(Hint { path: PathBuf::new(), what: Happened::Flagged });
    }
}

fn translate(kind: &EventKind) -> Option<Happened> {
    match kind {
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Happened::RenamedIn),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => Some(Happened::Gone),
        // It repeats a From and a To that were told before.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => None,
        EventKind::Create(_)
        | EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(_)
        | EventKind::Any => Some(Happened::Touched),
        EventKind::Access(_) | EventKind::Other => None,
    }
}

/// A watch of some folders, each by itself. To watch a folder again that went away, make a new one: watching the same
/// path again silently does nothing.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: RecommendedWatcher,
}

impl Watch {
    pub(super) fn new(ear: &Ear) -> Result<Watch, String> {
        // Without REMOVE the end of the folder itself goes unseen; more than these, and our own reading wakes us.
        let mask =
            EventKindMask::CREATE | EventKindMask::REMOVE | EventKindMask::MODIFY_NAME | EventKindMask::ACCESS_CLOSE;
        let config = notify::Config::default().with_event_kinds(mask).with_follow_symlinks(false);
        let ear = ear.clone();
        let watcher = RecommendedWatcher::new(move |event| ear.hear(event), config);
        Ok(Watch { watcher: watcher.map_err(|error| explain(&error))? })
    }

    pub(super) fn add(&mut self, folder: &Path) -> Result<(), String> {
        self.watcher.watch(folder, RecursiveMode::NonRecursive).map_err(|error| explain(&error))
    }
}

/// What failed and what helps.
fn explain(error: &notify::Error) -> String {
    match &error.kind {
        ErrorKind::MaxFilesWatch => {
            "the limit of inotify watches is reached; raise fs.inotify.max_user_watches".to_owned()
        }
        ErrorKind::Io(io) if io.raw_os_error() == Some(libc::EMFILE) => {
            "no more inotify instances; raise fs.inotify.max_user_instances or the limit of open files".to_owned()
        }
        ErrorKind::Io(io) => format!("the folder can't be watched: {io}"),
        _ => format!("the folder can't be watched: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, Flag, RemoveKind};
    use notify::{Error, Event};

    use super::*;

    fn event(kind: EventKind, path: &str) -> Result<Event, Error> {
        Ok(Event::new(kind).add_path(path.into()))
    }

    #[test]
    fn events_become_hints() {
        let check = |kind: EventKind, expected: Option<Happened>| {
            let (ear, heard) = Ear::new();
            ear.hear(event(kind, "/inbox/a"));
            let hint = heard.try_recv().ok();
            assert_eq!(hint.map(|hint| hint.what), expected, "{kind:?}");
        };
        check(EventKind::Modify(ModifyKind::Name(RenameMode::To)), Some(Happened::RenamedIn));
        check(EventKind::Modify(ModifyKind::Name(RenameMode::From)), Some(Happened::Gone));
        check(EventKind::Modify(ModifyKind::Name(RenameMode::Both)), None);
        check(EventKind::Create(CreateKind::File), Some(Happened::Touched));
        check(EventKind::Access(AccessKind::Close(AccessMode::Write)), Some(Happened::Touched));
        check(EventKind::Access(AccessKind::Close(AccessMode::Read)), None);
        check(EventKind::Remove(RemoveKind::Other), Some(Happened::Gone));
    }

    #[test]
    fn an_overflow_and_a_full_queue_ask_for_a_scan() {
        let (ear, heard) = Ear::new();
        ear.hear(Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        assert_eq!(heard.try_recv().unwrap().what, Happened::Flagged);
        assert!(ear.take_rescan() && !ear.take_rescan());
        for _ in 0..=QUEUE {
            ear.hear(event(EventKind::Create(CreateKind::File), "/inbox/a"));
        }
        assert!(ear.take_rescan());
        assert_eq!(heard.len(), QUEUE);
    }

    #[test]
    fn a_failed_watch_is_told() {
        let (ear, heard) = Ear::new();
        ear.hear(Err(Error::generic("gone")));
        assert!(ear.take_lost() && heard.try_recv().is_ok());
    }

    #[test]
    fn a_real_rename_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let (ear, heard) = Ear::new();
        let inbox = dir.path().join("inbox");
        std::fs::create_dir(&inbox).unwrap();
        let mut watch = Watch::new(&ear).unwrap();
        watch.add(&inbox).unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        std::fs::rename(dir.path().join("a"), inbox.join("a")).unwrap();
        let hint = heard.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert_eq!(hint, Hint { path: inbox.join("a"), what: Happened::RenamedIn });
        assert!(watch.add(&dir.path().join("nothing")).is_err());
    }
}
