//! What is still alive of jobs whose director died: found by the lock that their processes inherited, the group noted in
//! it, and `GAMDOK_ID` in their environment; and ended, since an item never runs twice at once.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::ground::Ground;
use super::record::{self, LOCK};
use crate::item::{JobDir, JobId};
use crate::proc::{self, ProcStat, all_pids};
use crate::root::Root;
use crate::units::{Clock, Moment};
use crate::worker::LockRecord;

/// Jobs of which something lives, with the processes that can be seen.
pub(super) type Alive = BTreeMap<JobId, Vec<i32>>;

/// Whose processes may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// A job's, in `claimed/`.
    Claimed,
    /// A resident worker's, in `.gamdok/residents/`.
    Residents,
}

/// A job, or a resident worker, that may have living processes.
#[derive(Clone, Debug)]
pub(super) struct Suspect {
    pub(super) id: JobId,
    pub(super) home: Home,
    pub(super) dir: JobDir,
    /// Between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
}

/// What survives SIGKILL this long hangs in the kernel.
const AFTER_KILL: Duration = Duration::from_secs(10);
/// What is forked while we look is found by the next look.
const LOOKS: usize = 5;
/// A lock whose holder can't be seen: a process that dies, or one that was just forked and has no environment of its own
/// yet. It shows itself, or lets go, within moments.
const UNSEEN: Duration = Duration::from_millis(20);

/// Ends the resident workers of the last director, and removes their directories. One that hangs in the kernel has its
/// SIGKILL before it: it does nothing more, and its device's lock tells that it is there.
pub(super) fn end_residents(ground: &Ground, clock: Clock) {
    let home = ground.root.residents();
    let Ok(entries) = std::fs::read_dir(&home) else { return };
    let known = entries.flatten().filter_map(|entry| JobDir::parse(&entry.file_name()));
    let suspects: Vec<Suspect> =
        known.map(|(dir, id)| Suspect { id, home: Home::Residents, dir, grace: RESIDENT_GRACE }).collect();
    if suspects.is_empty() {
        return;
    }
    let alive = end_all(ground, clock, &suspects);
    for suspect in suspects.iter().filter(|suspect| !alive.contains_key(&suspect.id)) {
        if let Err(error) = std::fs::remove_dir_all(home.join(suspect.dir.as_str())) {
            tracing::warn!(resident = %suspect.dir, %error, "cannot remove what a resident worker left");
        }
    }
}

/// Nobody waits for what it has in hand.
const RESIDENT_GRACE: Duration = Duration::from_secs(2);

/// Ends everything that lives; answers with the jobs of which something still does.
pub(super) fn end_all(ground: &Ground, clock: Clock, suspects: &[Suspect]) -> Alive {
    let (mut looks, patience) = (0, clock.now() + AFTER_KILL);
    let alive = loop {
        let (alive, victims) = survey(ground, suspects);
        if !victims.is_empty() {
            tracing::warn!(pids = ?alive.values().flatten().collect::<Vec<_>>(), "ending what outlived the last director");
        }
        if victims.is_empty() {
            if alive.is_empty() || clock.now() >= patience {
                break alive;
            }
            wait(&mut [], UNSEEN);
            continue;
        }
        looks += 1;
        if looks > LOOKS {
            break alive;
        }
        end(&victims, clock);
    };
    unless_told_otherwise(ground, suspects, alive)
}

/// One more look at what couldn't be ended, without a wait: its grace is long over.
pub(super) fn look_again(ground: &Ground, suspects: &[Suspect]) -> Alive {
    let (alive, victims) = survey(ground, suspects);
    for victim in &victims {
        if let Ok(process) = victim.open() {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
    unless_told_otherwise(ground, suspects, alive)
}

/// What hangs in the kernel can't be made for a test.
fn unless_told_otherwise(ground: &Ground, suspects: &[Suspect], alive: Alive) -> Alive {
    match ground.faults.at("recover.looked") {
        Ok(()) => alive,
        Err(_) => suspects.iter().map(|suspect| (suspect.id, vec![1])).collect(),
    }
}

/// A process to end.
struct Victim {
    pid: i32,
    start_ticks: u64,
    grace: Duration,
}

impl Victim {
    /// The number may have been given to another process since it was looked at; from the handle on it can't.
    fn open(&self) -> Result<OwnedFd, Errno> {
        let opened = pidfd_open(Pid::from_raw(self.pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        let same = ProcStat::read(self.pid).is_some_and(|now| now.start_ticks == self.start_ticks);
        if same { Ok(opened) } else { Err(Errno::SRCH) }
    }
}

/// What lives at this moment.
fn survey(ground: &Ground, suspects: &[Suspect]) -> (Alive, Vec<Victim>) {
    let locks: BTreeMap<JobId, Lock> =
        suspects.iter().filter_map(|suspect| Some((suspect.id, Lock::look(ground, suspect)?))).collect();
    let processes = sweep(locks.values().any(|lock| lock.held));
    let (mut alive, mut victims) = (Alive::new(), Vec::new());
    for suspect in suspects {
        let lock = locks.get(&suspect.id);
        let theirs: Vec<_> = processes.iter().filter(|p| belongs(p, suspect.id, lock, ground, &processes)).collect();
        if !theirs.is_empty() || lock.is_some_and(|lock| lock.held) {
            alive.insert(suspect.id, theirs.iter().map(|process| process.pid).collect());
        }
        let victim = |it: &&Process| Victim { pid: it.pid, start_ticks: it.start_ticks, grace: suspect.grace };
        victims.extend(theirs.iter().map(victim));
    }
    (alive, victims)
}

/// Waits for any of these to end; an error says that none can be waited for.
fn wait(for_any: &mut [PollFd<'_>], at_most: Duration) -> bool {
    match poll(for_any, Timespec::try_from(at_most).ok().as_ref()) {
        Ok(_) | Err(Errno::INTR) => true,
        Err(error) => {
            tracing::error!(%error, "cannot wait for the processes of an earlier director");
            false
        }
    }
}

struct Lock {
    held: bool,
    note: Option<LockRecord>,
    inode: (u64, u64),
}

impl Lock {
    fn look(ground: &Ground, suspect: &Suspect) -> Option<Lock> {
        let job = match suspect.home {
            Home::Claimed => record::open_dir(ground.claimed(), suspect.dir.as_str()),
            Home::Residents => record::open_dir(ground.root.dir(), format!("{}/{}", Root::RESIDENTS, suspect.dir)),
        };
        let job = job.ok()?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&job, LOCK, flags, Mode::empty()).ok()?;
        let held = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => false,
            Err(error) => error == Errno::WOULDBLOCK,
        };
        let stat = rustix::fs::fstat(&file).ok()?;
        let note = record::read(&job, LOCK).ok().flatten().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Some(Lock { held, note, inode: (stat.st_dev, stat.st_ino) })
    }
}

#[derive(Debug)]
struct Process {
    pid: i32,
    group: i32,
    start_ticks: u64,
    job: Option<JobId>,
    /// Device and inode of its open files; only looked at when a lock is held.
    files: Vec<(u64, u64)>,
}

fn belongs(process: &Process, id: JobId, lock: Option<&Lock>, ground: &Ground, all: &[Process]) -> bool {
    if process.job.is_some() {
        return process.job == Some(id);
    }
    let Some(lock) = lock else { return false };
    if lock.held && process.files.contains(&lock.inode) {
        return true;
    }
    let Some(note) = &lock.note else { return false };
    if note.boot_id != ground.boot_id || process.group != note.pid {
        return false;
    }
    // A leader that started at another time is another process of the same number, and so is its group.
    match all.iter().find(|leader| leader.pid == note.pid) {
        Some(leader) => leader.start_ticks == note.start_ticks,
        None => process.start_ticks >= note.start_ticks,
    }
}

/// All living processes of this user, but this one.
fn sweep(with_files: bool) -> Vec<Process> {
    let own = rustix::process::geteuid().as_raw();
    let look = |pid: i32| {
        let path = Path::new("/proc").join(pid.to_string());
        // Each of these can end between two looks.
        std::fs::metadata(&path).ok().filter(|metadata| metadata.uid() == own)?;
        let stat = ProcStat::read(pid).filter(|stat| !stat.is_dead())?;
        let files = if with_files { open_files(&path.join("fd")) } else { Vec::new() };
        Some(Process { pid, group: stat.group, start_ticks: stat.start_ticks, job: proc::job_of(&path), files })
    };
    all_pids().into_iter().filter_map(look).collect()
}

fn open_files(dir: &Path) -> Vec<(u64, u64)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let files = entries.flatten().filter_map(|entry| std::fs::metadata(entry.path()).ok());
    files.map(|metadata| (metadata.dev(), metadata.ino())).collect()
}

/// SIGTERM, and SIGKILL for what is there after its grace.
fn end(victims: &[Victim], clock: Clock) {
    let now = clock.now();
    let mut living: Vec<(OwnedFd, Moment, bool)> = Vec::new();
    for victim in victims {
        match victim.open().and_then(|fd| pidfd_send_signal(&fd, Signal::TERM).map(|()| fd)) {
            Ok(fd) => {
                // A stopped process takes the signal only when it goes on.
                let _ = pidfd_send_signal(&fd, Signal::CONT);
                living.push((fd, now + victim.grace, false));
            }
            Err(Errno::SRCH) => {}
            Err(error) => tracing::error!(pid = victim.pid, %error, "a process of an earlier director can't be ended"),
        }
    }
    while !living.is_empty() {
        let now = clock.now();
        living.retain_mut(|(fd, until, killed)| {
            if *until > now {
                return true;
            }
            if *killed {
                return false;
            }
            (*killed, *until) = (true, now + AFTER_KILL);
            pidfd_send_signal(&*fd, Signal::KILL).is_ok()
        });
        let Some(next) = living.iter().map(|(_, until, _)| *until).min() else { return };
        let mut polled: Vec<PollFd<'_>> = living.iter().map(|(fd, ..)| PollFd::new(fd, PollFlags::IN)).collect();
        if !wait(&mut polled, next.since(now) + Duration::from_millis(1)) {
            return;
        }
        let ended: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        let mut ended = ended.into_iter();
        living.retain(|_| !ended.next().unwrap_or(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_noted_group_of_this_boot_belongs() {
        let root = super::super::tests::Place::new();
        let ground = root.ground();
        let id = JobId(ulid::Ulid::generate());
        let process = |pid, group, start_ticks, job| Process { pid, group, start_ticks, job, files: vec![(1, 2)] };
        let note = |boot: &str| Lock {
            held: false,
            note: Some(LockRecord {
                attempt: 1,
                pid: 10,
                start_ticks: 100,
                boot_id: boot.to_owned(),
                ..LockRecord::default()
            }),
            inode: (1, 2),
        };
        let check = |all: &[Process], lock: &Lock, expected: &[bool]| {
            let found: Vec<_> = all.iter().map(|p| belongs(p, id, Some(lock), &ground, all)).collect();
            assert_eq!(found, expected, "{all:?}");
        };
        let (boot, other) = (note(&ground.boot_id), JobId(ulid::Ulid::generate()));
        check(&[process(10, 10, 100, None), process(11, 10, 101, None)], &boot, &[true, true]);
        check(&[process(10, 10, 999, None), process(11, 10, 1000, None)], &boot, &[false, false]);
        check(&[process(11, 10, 101, None), process(12, 12, 101, None)], &boot, &[true, false]);
        check(&[process(10, 10, 100, None)], &note("another"), &[false]);
        check(&[process(50, 50, 1, Some(id)), process(10, 10, 100, Some(other))], &boot, &[true, false]);
        check(&[process(60, 60, 1, None)], &Lock { held: true, ..boot }, &[true]);
    }
}
