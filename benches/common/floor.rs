//! The floor: the least that a drop folder with outcomes can cost. Claim by rename, spawn with a log file, reap, a line in
//! a journal, move; one `fdatasync` for 64 results. It looks at nothing, retries nothing and recovers nothing.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::inotify;
use rustix::process::{WaitOptions, wait};

/// How many results share an `fdatasync`.
const GROUP: usize = 64;

pub(crate) struct Floor {
    pub(crate) inbox: PathBuf,
    claimed: PathBuf,
    done: PathBuf,
    logs: PathBuf,
    journal: File,
    unsynced: usize,
    command: Vec<OsString>,
    running: HashMap<i32, OsString>,
}

impl Floor {
    pub(crate) fn new(dir: &Path, command: &[&str]) -> Floor {
        let made = |name: &str| {
            let path = dir.join(name);
            fs::create_dir_all(&path).expect("made");
            path
        };
        Floor {
            inbox: made("inbox"),
            claimed: made("claimed"),
            done: made("done"),
            logs: made("logs"),
            journal: File::create(dir.join("journal")).expect("made"),
            unsynced: 0,
            command: command.iter().map(OsString::from).collect(),
            running: HashMap::new(),
        }
    }

    /// Works off what lies in the inbox, this many at a time.
    pub(crate) fn drain(&mut self, slots: usize) {
        let names = fs::read_dir(&self.inbox).expect("read").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<OsString> = names.collect();
        names.sort();
        for name in names {
            if self.running.len() == slots {
                self.reap();
            }
            self.begin(name);
        }
        while !self.running.is_empty() {
            self.reap();
        }
        self.journal.sync_data().expect("synced");
    }

    #[expect(clippy::zombie_processes, reason = "`reap` waits for whichever ends first")]
    pub(crate) fn begin(&mut self, name: OsString) {
        let item = self.claimed.join(&name);
        fs::rename(self.inbox.join(&name), &item).expect("claimed");
        let log = File::create(self.logs.join(&name)).expect("made");
        // Without `pre_exec`, this takes the `posix_spawn` path.
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .env("ITEM", &item)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("shared"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("started");
        self.running.insert(child.id().cast_signed(), name);
    }

    pub(crate) fn reap(&mut self) {
        let (pid, status) = wait(WaitOptions::empty()).expect("waited").expect("a child");
        let pid = pid.as_raw_nonzero().get();
        let Some(name) = self.running.remove(&pid) else { return };
        writeln!(self.journal, "{} {:?} {pid}", name.display(), status.exit_status()).expect("written");
        self.unsynced += 1;
        if self.unsynced == GROUP {
            self.journal.sync_data().expect("synced");
            self.unsynced = 0;
        }
        fs::rename(self.claimed.join(&name), self.done.join(&name)).expect("moved");
    }
}

/// The floor of a drop: an inotify watch on its inbox.
pub(crate) struct Watch {
    queue: OwnedFd,
}

impl Watch {
    pub(crate) fn new(inbox: &Path) -> Watch {
        let queue = inotify::init(inotify::CreateFlags::CLOEXEC).expect("a queue");
        inotify::add_watch(&queue, inbox, inotify::WatchFlags::MOVED_TO).expect("watched");
        Watch { queue }
    }

    /// The next name that is renamed in.
    pub(crate) fn next(&self) -> OsString {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.queue, &mut space);
        let event = reader.next().expect("an event");
        OsString::from_vec(event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default())
    }
}
