//! Parts come in any order and go out in theirs: into a file that grows in the state directory, with a line in the journal
//! for each group that came together, and the name it shall have once it is whole. Written data is made durable in groups
//! on a thread of its own, so that nobody waits for the disk before the end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use libdeflater::Crc;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::fault_points::at;
use super::journal::{self, Header, Record, Standing};
use super::setup::Error;
use super::stop::StopFlag;
use crate::item::Counters;

/// Data and time after which what was written is made durable.
const SYNC_BYTES: u64 = 32 << 20;
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) index: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
    /// Where the batch ends in the input: uncompressed, and as it lies on the disk.
    pub(super) offset: u64,
    pub(super) position: u64,
    /// The batch's share of the input as it lies there.
    pub(super) file_bytes: u64,
    /// What was counted over it.
    pub(super) counters: Counters,
}

/// Puts parts in order. Pure.
#[derive(Debug)]
pub(super) struct Order {
    next: u64,
    early: BTreeMap<u64, Part>,
}

impl Order {
    pub(super) fn new(next: u64) -> Order {
        Order { next, early: BTreeMap::new() }
    }

    pub(super) fn accept(&mut self, part: Part) {
        debug_assert!(self.next <= part.index, "a batch becomes one part");
        self.early.insert(part.index, part);
    }

    /// All whose turn it is.
    pub(super) fn ready(&mut self) -> Vec<Part> {
        let mut ready = Vec::new();
        while let Some(part) = self.early.remove(&self.next) {
            self.next += 1;
            ready.push(part);
        }
        ready
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// How much of the input, as it lies on the disk, the parts stand for whose turn it isn't.
    pub(super) fn early_bytes(&self) -> u64 {
        self.early.values().map(|part| part.file_bytes).sum()
    }
}

/// The growing output and its journal.
#[derive(Debug)]
pub(super) struct Output {
    partial: File,
    journal: File,
    /// Which file `partial` is: device and inode.
    is: (u64, u64),
    then: Then,
    state_dir: PathBuf,
    path: PathBuf,
    /// All that was merged.
    standing: Record,
    broken: bool,
    syncer: Option<Syncer>,
    synced: u64,
    synced_at: Instant,
}

impl Output {
    /// Goes on with what stands, or begins. `path` is the name it shall have.
    pub(super) fn open(
        state_dir: &Path,
        path: &Path,
        header: &Header,
        stop: &StopFlag,
        then: Then,
    ) -> Result<Output, Error> {
        fs::create_dir_all(state_dir).map_err(failed("make", state_dir))?;
        let (partial_path, journal_path) = (state_dir.join("partial"), state_dir.join("journal"));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let was_there = match fs::symlink_metadata(&partial_path) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed("look at", &partial_path)(error)),
        };
        let mut journal = options.open(&journal_path).map_err(failed("open", &journal_path))?;
        let partial =
            if was_there { Some(options.open(&partial_path).map_err(failed("open", &partial_path))?) } else { None };
        let standing = journal::verify(&journal, partial.as_ref(), header, stop)
            .map_err(|error| if stop.is_ordered() { Error::Stopped } else { failed("verify", state_dir)(error) })?;
        let (standing, journal_bytes) = match standing {
            Standing::UpTo { record, journal } if was_there || is_file_of(path, record.length) => (record, journal),
            Standing::UpTo { .. } | Standing::Nothing => (Record::default(), 0),
        };
        at("resume.verified").map_err(failed("open", state_dir))?;
        let mut partial = match partial {
            Some(partial) => {
                partial.set_len(standing.length).map_err(failed("cut", &partial_path))?;
                partial
            }
            // The finished file stands under its name: the end is all that is left to do.
            None if standing.end => File::open(path).map_err(failed("open", path))?,
            None => options.open(&partial_path).map_err(failed("make", &partial_path))?,
        };
        if !standing.end {
            journal.set_len(journal_bytes).map_err(failed("cut", &journal_path))?;
            partial.seek(SeekFrom::End(0)).map_err(failed("open", &partial_path))?;
            journal.seek(SeekFrom::End(0)).map_err(failed("open", &journal_path))?;
            if journal_bytes == 0 {
                let head = journal::line(header).map_err(failed("write", &journal_path))?;
                journal.write_all(&head).map_err(failed("write", &journal_path))?;
            }
        }
        let is = partial.metadata().map(|meta| (meta.dev(), meta.ino())).map_err(failed("look at", &partial_path))?;
        let (state_dir, path) = (state_dir.to_owned(), path.to_owned());
        let (synced, synced_at) = (standing.length, Instant::now());
        Ok(Output {
            partial,
            journal,
            is,
            then,
            state_dir,
            path,
            standing,
            broken: false,
            syncer: None,
            synced,
            synced_at,
        })
    }

    pub(super) fn standing(&self) -> &Record {
        &self.standing
    }

    /// Writes parts whose turn it is. After an error it does nothing any more.
    pub(super) fn append(&mut self, parts: &[Part]) -> Result<(), Error> {
        if self.broken || parts.is_empty() {
            return Ok(());
        }
        // The sooner it is told, the less work is done in vain.
        self.is_free()?;
        let mut counters = std::mem::take(&mut self.standing.counters);
        // Of the record alone, until it is written.
        let mut standing = self.standing.clone();
        let mut crc = Crc::new();
        for part in parts {
            standing.counters.add_all(&part.counters);
            standing.batches = part.index + 1;
            standing.lines += part.lines;
            (standing.offset, standing.position) = (part.offset, part.position);
            standing.length += part.bytes.len() as u64;
            crc.update(&part.bytes);
        }
        standing.crc = crc.sum();
        let write = |output: &mut Output| -> io::Result<()> {
            for part in parts {
                output.partial.write_all(&part.bytes)?;
                at("merge.part")?;
            }
            at("merge.written")?;
            output.journal.write_all(&journal::line(&standing)?)?;
            at("merge.noted")
        };
        self.guarded("write", write)?;
        counters.add_all(&standing.counters);
        standing.counters = counters;
        self.standing = standing;
        self.guarded("sync", Output::sync_in_groups)
    }

    /// Puts counters of no part on record.
    pub(super) fn note(&mut self, counters: &Counters) -> Result<(), Error> {
        if self.broken || self.standing.end {
            return Ok(());
        }
        let record = Record { crc: Crc::new().sum(), counters: counters.clone(), ..self.standing };
        self.guarded("write", |output| output.journal.write_all(&journal::line(&record)?))?;
        self.standing.counters.add_all(counters);
        Ok(())
    }

    /// Whether the output's name is free where it must be, or the output's already.
    fn is_free(&self) -> Result<(), Error> {
        if self.then == Then::Clear {
            return Ok(());
        }
        match fs::symlink_metadata(&self.path) {
            Ok(meta) if (meta.dev(), meta.ino()) == self.is => Ok(()),
            Ok(_) => Err(Error::Taken { path: self.path.clone() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("look at", &self.path)(error)),
        }
    }

    fn guarded(&mut self, what: &'static str, act: impl FnOnce(&mut Output) -> io::Result<()>) -> Result<(), Error> {
        act(self).map_err(|error| {
            self.broken = true;
            failed(what, &self.state_dir.join("partial"))(error)
        })
    }

    fn sync_in_groups(&mut self) -> io::Result<()> {
        if let Some(syncer) = &self.syncer {
            syncer.failed()?;
        }
        let written = self.standing.length - self.synced;
        if written == 0 || (written < SYNC_BYTES && self.synced_at.elapsed() < SYNC_EVERY) {
            return Ok(());
        }
        let syncer = match &self.syncer {
            Some(syncer) => syncer,
            None => self.syncer.insert(Syncer::start(self.partial.try_clone()?, self.journal.try_clone()?)?),
        };
        // One that is still busy with the group before gets this one with the next.
        if syncer.order() {
            (self.synced, self.synced_at) = (self.standing.length, Instant::now());
        }
        Ok(())
    }

    /// All parts are in: notes the end, and gives the output its name. `tail` belongs to the end of the file.
    pub(super) fn finish(mut self, tail: &[u8]) -> Result<(), Error> {
        if !self.standing.end {
            let mut crc = Crc::new();
            crc.update(tail);
            let length = self.standing.length + tail.len() as u64;
            // The counters are on record already.
            self.standing =
                Record { length, crc: crc.sum(), end: true, counters: Counters::default(), ..self.standing };
            self.guarded("write", |output| {
                output.partial.write_all(tail)?;
                output.syncer.take().map_or(Ok(()), Syncer::finish)?;
                output.partial.sync_data()?;
                output.journal.write_all(&journal::line(&output.standing)?)?;
                output.journal.sync_data()?;
                at("end.noted")
            })?;
        }
        let partial = self.state_dir.join("partial");
        let named = match self.then {
            Then::Clear => fs::rename(&partial, &self.path),
            Then::Keep => link(&partial, &self.path),
        };
        match named {
            Ok(()) => {}
            // An earlier run came this far.
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_file_of(&self.path, self.standing.length) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.is_free()?,
            Err(error) => return Err(failed("make", &self.path)(error)),
        }
        let out_dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(out_dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", out_dir))?;
        at("end.named").map_err(failed("make", &self.path))?;
        if self.then == Then::Keep {
            return Ok(());
        }
        fs::remove_file(self.state_dir.join("journal")).map_err(failed("remove", &self.state_dir))?;
        // Something else may lie in it.
        let _kept = fs::remove_dir(&self.state_dir);
        Ok(())
    }
}

/// What becomes of the state once the output has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Clear,
    /// Another run has nothing left to do but to name it again.
    Keep,
}

/// Gives it a second name; its only one where the file system knows no second. Replaces nothing.
fn link(partial: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(partial, path) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
            rename_new(partial, path)
        }
        named => named,
    }
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that can't promise it: those who could have put something there have ended.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::symlink_metadata(to) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
        },
        renamed => Ok(renamed?),
    }
}

fn is_file_of(path: &Path, length: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == length)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Output { what, path, source }
}

/// Makes both files durable beside the merge.
#[derive(Debug)]
struct Syncer {
    orders: Sender<()>,
    errors: Receiver<io::Error>,
    thread: std::thread::JoinHandle<()>,
}

impl Syncer {
    fn start(partial: File, journal: File) -> io::Result<Syncer> {
        let (orders, inbox) = bounded(1);
        let (told, errors) = bounded(1);
        let work = move || {
            for () in inbox {
                if let Err(error) = partial.sync_data().and_then(|()| journal.sync_data()) {
                    let _told = told.send(error);
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("split-sync".to_owned()).spawn(work)?;
        Ok(Syncer { orders, errors, thread })
    }

    fn order(&self) -> bool {
        self.orders.try_send(()).is_ok()
    }

    /// The kernel tells of a write error once, so it must not be lost.
    fn failed(&self) -> io::Result<()> {
        self.errors.try_recv().map_or(Ok(()), Err)
    }

    fn finish(self) -> io::Result<()> {
        drop(self.orders);
        if self.thread.join().is_err() {
            return Err(io::Error::other("the thread that syncs panicked"));
        }
        self.errors.try_recv().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_go_out_in_order() {
        let check = |first: u64, come: &[u64], expected: &str| {
            let mut order = Order::new(first);
            let mut groups = Vec::new();
            for index in come {
                let (bytes, counters) = (Vec::new(), Counters::default());
                let (lines, offset, position, file_bytes) = (0, 0, 0, 0);
                order.accept(Part { index: *index, bytes, lines, offset, position, file_bytes, counters });
                let ready: Vec<String> = order.ready().iter().map(|part| part.index.to_string()).collect();
                groups.push(ready.join(","));
            }
            assert_eq!(groups.join(" "), expected);
        };
        check(0, &[0, 1, 2], "0 1 2");
        check(0, &[2, 1, 0, 3], "  0,1,2 3");
        check(5, &[6, 5, 8], " 5,6 ");
    }
}
