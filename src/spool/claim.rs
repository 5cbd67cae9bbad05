//! A claim: intent, move, check. The job's directory with its record is made first, then the item is moved in, then what
//! was moved is compared with what was inspected. Invariant: whatever fails, the item is back in the inbox under its
//! name, or in a job of its own; it is never replaced, and replaces nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::ground::Ground;
use super::record::{self, COMPANIONS, ITEM, JOB};
use super::spares::Spares;
use super::{ClaimedJob, NotClaimed};
use crate::inbox::Candidate;
use crate::item::{Attempt, ItemKind, ItemName, JobDir, JobId, JobRecord};
use crate::sys::files;
use crate::sys::lease::{self, ReadLease, Taken};

/// An item on its way in.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) id: JobId,
    pub(super) candidate: Candidate,
    record: JobRecord,
    dir: JobDir,
    folder: Arc<OwnedFd>,
    job: Option<OwnedFd>,
    moved: bool,
    companions: Vec<ItemName>,
    /// It can't go back: the job stands, whatever it takes.
    kept: bool,
}

/// What became of a claim that failed.
#[derive(Debug)]
pub(super) enum Undo {
    /// The item is where it was.
    Undone(Box<Candidate>, NotClaimed),
    /// It can't go back, and is a job now.
    Kept(Box<Claim>),
}

impl Claim {
    pub(super) fn new(
        ground: &Ground,
        folder: Arc<OwnedFd>,
        id: JobId,
        candidate: Candidate,
        cancelled: bool,
    ) -> Claim {
        let name = &candidate.key.name;
        let record = JobRecord {
            id,
            name: name.escaped(),
            name_b64: name.base64(),
            folder: candidate.key.folder.clone(),
            kind: candidate.kind,
            route: candidate.route.clone(),
            arrived_at: Some(candidate.arrived_at),
            claimed_at: Timestamp::now(),
            boot_id: ground.boot_id.clone(),
            signature: Some(candidate.signature),
            attempts: vec![Attempt::planned(1)],
            avoid: Vec::new(),
            cancelled,
            revived_after: 0,
            batch_limit: None,
            counters: Default::default(),
        };
        let dir = JobDir::new(name, id);
        Claim { id, candidate, record, dir, folder, job: None, moved: false, companions: Vec::new(), kept: false }
    }

    /// Begins it in a directory that was made ahead.
    pub(super) fn take_spare(&mut self, ground: &Ground, spares: &mut Spares) {
        self.job = spares.take(ground, self.dir.as_str());
    }

    /// Everything up to the round of syncs. After an error, [`Claim::undo`].
    pub(super) fn carry_out(&mut self, ground: &Ground) -> Result<(), NotClaimed> {
        if self.kept {
            // Its first round failed, and what was written then can't be believed any more.
            return self.write_record(ground).map_err(no_room);
        }
        ground.faults.at("claim.begun").map_err(no_room)?;
        if self.job.is_none() {
            self.job = Some(ground.make_job(self.dir.as_str()).map_err(no_room)?);
        }
        self.write_record(ground).map_err(no_room)?;
        self.note_folder().map_err(no_room)?;
        ground.faults.at("claim.intended").map_err(no_room)?;
        let lease = self.lease()?;
        self.move_in(ground)?;
        ground.faults.at("claim.moved").map_err(no_room)?;
        self.verify(lease.as_ref())?;
        ground.faults.at("claim.verified").map_err(no_room)?;
        // An opener that waits for the lease goes on now, into the claimed file; the worker's last look finds it out.
        drop(lease);
        self.move_companions(ground).map_err(no_room)
    }

    fn write_record(&self, ground: &Ground) -> Result<(), Errno> {
        let json = record::job_json(&self.record)?;
        match &self.job {
            Some(job) => record::write(job, JOB, &json).map(drop),
            None => ground.open_job(&self.record, self.dir.as_str()).map(drop),
        }
    }

    /// A power cut before the round can leave the payload moved and the record empty. The item then goes back where it
    /// came from: the folder's name is kept in a symbolic link, which is as durable as the move.
    fn note_folder(&self) -> Result<(), Errno> {
        match &self.job {
            Some(job) if !self.record.folder.is_empty() => {
                rustix::fs::symlinkat(self.record.folder.as_str(), job, record::FOLDER)
            }
            _ => Ok(()),
        }
    }

    /// The target, below the job's directory.
    fn target(&self) -> Vec<u8> {
        [ITEM.as_bytes(), b"/", self.candidate.key.name.as_bytes()].concat()
    }

    fn lease(&self) -> Result<Option<ReadLease<OwnedFd>>, NotClaimed> {
        if self.candidate.kind != ItemKind::File || !self.candidate.lease_tested || self.record.cancelled {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&*self.folder, self.candidate.key.name.as_os_str(), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err(NotClaimed::Gone),
            Err(Errno::LOOP | Errno::NXIO) => return Err(NotClaimed::Changed),
            Err(error) if files::has_run_out(error) => return Err(no_room(error)),
            // Not ours to read; then settling alone decided.
            Err(_) => return Ok(None),
        };
        match lease::take(file) {
            Ok(Taken::Held(lease)) => Ok(Some(lease)),
            Ok(Taken::Writer) => Err(NotClaimed::Changed),
            Ok(Taken::NotAllowed) | Err(_) => Ok(None),
        }
    }

    fn move_in(&mut self, ground: &Ground) -> Result<(), NotClaimed> {
        let Some(job) = &self.job else { return Ok(()) };
        let target = self.target();
        let name = self.candidate.key.name.as_os_str();
        if self.candidate.kind == ItemKind::Directory && !self.record.cancelled {
            // Before the move: on some file systems a directory gets a new mtime with its new parent.
            let stat = rustix::fs::statat(&*self.folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(unmovable)?;
            if self.candidate.signature.mtime_ns != mtime_ns(&stat) {
                return Err(NotClaimed::Changed);
            }
        }
        let outcome = record::rename_new(&*self.folder, name, job, target.as_slice());
        // A reply that got lost: the server moved it and says that it wasn't there. The target is fresh, so what lies
        // in it was moved.
        let there = || rustix::fs::statat(job, target.as_slice(), AtFlags::SYMLINK_NOFOLLOW).is_ok();
        match outcome {
            Ok(()) => self.moved = true,
            Err(_) if ground.network && there() => self.moved = true,
            Err(error) => return Err(unmovable(error)),
        }
        Ok(())
    }

    fn verify(&self, lease: Option<&ReadLease<OwnedFd>>) -> Result<(), NotClaimed> {
        let Some(job) = &self.job else { return Ok(()) };
        let stat = rustix::fs::statat(job, self.target().as_slice(), AtFlags::SYMLINK_NOFOLLOW).map_err(no_room)?;
        let same = if self.record.cancelled { self.is_same_inode(&stat) } else { self.is_unchanged(&stat) };
        if same && lease.is_none_or(ReadLease::is_unbroken) { Ok(()) } else { Err(NotClaimed::Changed) }
    }

    fn is_same_inode(&self, stat: &Stat) -> bool {
        let known = &self.candidate.signature;
        known.ino == 0 || (known.dev, known.ino) == (stat.st_dev, stat.st_ino)
    }

    /// Moving sets the ctime. A directory's size and digest cover its tree: the worker's last look compares those.
    fn is_unchanged(&self, stat: &Stat) -> bool {
        let known = &self.candidate.signature;
        let same_file = || known.mtime_ns == mtime_ns(stat) && known.size == stat.st_size as u64;
        self.is_same_inode(stat) && (self.candidate.kind == ItemKind::Directory || same_file())
    }

    fn move_companions(&mut self, ground: &Ground) -> Result<(), Errno> {
        let Some(job) = &self.job else { return Ok(()) };
        if self.candidate.companions.is_empty() {
            return Ok(());
        }
        rustix::fs::mkdirat(job, COMPANIONS, Mode::RWXU)?;
        for name in &self.candidate.companions {
            let target = [COMPANIONS.as_bytes(), b"/", name.as_bytes()].concat();
            match record::rename_new(&*self.folder, name.as_os_str(), job, target.as_slice()) {
                Ok(()) => self.companions.push(name.clone()),
                Err(error) => tracing::warn!(
                    job = self.dir.as_str(), companion = name.escaped(), %error,
                    "a companion file stays in the inbox"
                ),
            }
        }
        ground.faults.at("claim.companions")
    }

    /// Puts the item back and removes the job.
    pub(super) fn undo(mut self: Box<Self>, ground: &Ground, why: NotClaimed) -> Undo {
        if self.kept {
            return Undo::Kept(self);
        }
        if self.moved {
            if let Err(error) = self.move_back() {
                self.keep(ground, &why, error);
                return Undo::Kept(self);
            }
            self.moved = false;
        }
        if let Err(error) = record::remove_empty_job(ground.claimed(), self.dir.as_str()) {
            // The next start removes it: nothing is in it.
            tracing::debug!(job = self.dir.as_str(), %error, "the directory of a claim that was undone stays");
        }
        Undo::Undone(Box::new(self.candidate), why)
    }

    fn move_back(&mut self) -> Result<(), Errno> {
        let Some(job) = &self.job else { return Ok(()) };
        let name = self.candidate.key.name.as_os_str();
        rename_back(job, &self.target(), &self.folder, name.as_encoded_bytes(), self.candidate.kind)?;
        for name in self.companions.drain(..) {
            let from = [COMPANIONS.as_bytes(), b"/", name.as_bytes()].concat();
            if let Err(error) = rename_back(job, &from, &self.folder, name.as_bytes(), ItemKind::File) {
                tracing::warn!(companion = name.escaped(), job = self.dir.as_str(), %error, "a companion file can't go back");
            }
        }
        Ok(())
    }

    /// The item stays as a job of its own, with what it looks like now.
    fn keep(&mut self, ground: &Ground, why: &NotClaimed, error: Errno) {
        tracing::warn!(
            job = self.dir.as_str(), ?why, %error,
            "the item can't go back into the inbox (another took its name, or the disk refuses); it stays claimed as its own job"
        );
        self.kept = true;
        let Some(job) = &self.job else { return };
        let stat = rustix::fs::statat(job, self.target().as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        if let (Ok(stat), Some(signature)) = (stat, &mut self.record.signature) {
            (signature.dev, signature.ino) = (stat.st_dev, stat.st_ino);
            signature.mtime_ns = mtime_ns(&stat);
            signature.ctime_ns = i128::from(stat.st_ctime) * 1_000_000_000 + stat.st_ctime_nsec as i128;
            if self.candidate.kind == ItemKind::File {
                signature.size = stat.st_size as u64;
                signature.blocks = stat.st_blocks as u64;
            }
        }
        if let Err(error) = self.write_record(ground) {
            tracing::warn!(job = self.dir.as_str(), %error, "its record can't be written yet");
        }
    }

    /// The sync of its own file; the directories are the group's.
    pub(super) fn sync_each(&self) -> Result<(), Errno> {
        self.job.as_ref().map_or(Ok(()), |job| sync_at(job, JOB))
    }

    /// Its own directories, outermost first: the payload's new place is to be found before the old one is forgotten.
    pub(super) fn directories(&self) -> Result<Vec<OwnedFd>, Errno> {
        let Some(job) = &self.job else { return Ok(Vec::new()) };
        let mut dirs = vec![rustix::io::fcntl_dupfd_cloexec(job, 0)?, record::open_dir(job, ITEM)?];
        if !self.companions.is_empty() {
            dirs.push(record::open_dir(job, COMPANIONS)?);
        }
        Ok(dirs)
    }

    pub(super) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// Data that may still have to be written out: a payload's that arrived lately.
    pub(super) fn fresh_bytes(&self) -> u64 {
        let age = Timestamp::now().duration_since(self.candidate.arrived_at);
        if age.as_secs() < 60 { self.candidate.signature.size } else { 0 }
    }

    pub(super) fn into_job(self) -> Box<ClaimedJob> {
        Box::new(ClaimedJob { record: Arc::new(self.record), dir: self.dir })
    }
}

fn mtime_ns(stat: &Stat) -> i128 {
    i128::from(stat.st_mtime) * 1_000_000_000 + stat.st_mtime_nsec as i128
}

/// Back under its name, if that is free.
fn rename_back(job: &OwnedFd, from: &[u8], folder: &OwnedFd, name: &[u8], kind: ItemKind) -> Result<(), Errno> {
    use rustix::fs::RenameFlags;
    match rustix::fs::renameat_with(job, from, folder, name, RenameFlags::NOREPLACE) {
        // Others write into the inbox, so looking first is not enough there; a link never replaces.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if kind == ItemKind::File => {
            rustix::fs::linkat(job, from, folder, name, AtFlags::empty())?;
            rustix::fs::unlinkat(job, from, AtFlags::empty())
        }
        other => other,
    }
}

/// Syncs one file or directory by name.
pub(super) fn sync_at(at: impl AsFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::fsync(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

pub(super) fn no_room(error: Errno) -> NotClaimed {
    NotClaimed::NoRoom(match error {
        Errno::NOSPC => "no room left on the root's file system".to_owned(),
        Errno::DQUOT => "the disk quota on the root's file system is used up".to_owned(),
        Errno::ROFS => "the root's file system is mounted read-only".to_owned(),
        error if files::has_run_out(error) => files::shortage(error),
        error => format!("the root's file system refuses to write: {error}"),
    })
}

fn unmovable(error: Errno) -> NotClaimed {
    match error {
        Errno::NOENT => NotClaimed::Gone,
        Errno::EXIST => NotClaimed::Changed,
        Errno::ACCESS | Errno::PERM => NotClaimed::Refused(
            "it can't be moved: no permission (its folder is sticky, or the directory belongs to another user)"
                .to_owned(),
        ),
        Errno::XDEV => NotClaimed::Refused("it lies on another mount than claimed/".to_owned()),
        Errno::BUSY => NotClaimed::Refused("something is mounted on it".to_owned()),
        Errno::NAMETOOLONG => NotClaimed::Refused("its name is too long".to_owned()),
        Errno::TXTBSY | Errno::INVAL => NotClaimed::Refused(format!("it can't be moved: {error}")),
        error => no_room(error),
    }
}
