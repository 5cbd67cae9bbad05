//! What a worker's process leaves behind: background children in its group, and daemons that left it. They are ended
//! with it: asked, then killed, until none is left.
//!
//! A stray is known by its group, by the `GAMDOK_ID` in its environment (with the `GAMDOK_RUN`, where one job has several
//! processes side by side), or by being the child of one. Where this process
//! adopts orphans ([`adopt_orphans`]) every daemon becomes its child, so that one look at its children tells that there is
//! none; and one that wiped its environment belongs to the only worker that can have started it. Elsewhere all
//! processes are looked through.
//!
//! Invariants: another worker's processes are never touched, nor children that others started; a process is signalled
//! through a handle that was checked to be it; all of it is bounded in time.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, test_kill_process_group, waitid,
};
use rustix::time::ClockId;

use super::lock;
use crate::proc::{Owner, ProcStat, all_pids};

/// The longest that strays may take after they were asked, whatever the route's `kill_grace`.
const MAX_GRACE: Duration = Duration::from_secs(2);
/// How long killed ones may take (a process that waits for a dead disk can't be ended at all).
const GIVE_UP: Duration = Duration::from_secs(5);

static ADOPTS: AtomicBool = AtomicBool::new(false);

/// Makes this process the parent of all orphans below it. For the binary: from now on dead children of the main thread
/// that no worker started are waited for here, so nothing else may start processes on that thread and wait for them.
pub fn adopt_orphans() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    ADOPTS.store(true, Ordering::Release);
    Ok(())
}

/// The workers' processes that live.
static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());

#[derive(Clone, Copy, Debug)]
struct Live {
    pid: i32,
    owner: Owner,
    start_ticks: u64,
}

fn live() -> MutexGuard<'static, Vec<Live>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a worker's process from being taken for a stray; until it is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    pid: i32,
}

impl Registered {
    pub(super) fn new(pid: i32, owner: Owner, start_ticks: u64) -> Registered {
        live().push(Live { pid, owner, start_ticks });
        Registered { pid }
    }

    /// A worker that has one process after another, or several: known by the job's id alone. It counts as started now,
    /// under a number that no process has.
    pub(super) fn without_a_leader(owner: Owner) -> Registered {
        static LAST: AtomicI32 = AtomicI32::new(0);
        let pid = LAST.fetch_sub(1, Ordering::Relaxed).wrapping_sub(1).min(-1);
        let since_boot = rustix::time::clock_gettime(ClockId::Boottime);
        let second = rustix::param::clock_ticks_per_second();
        let ticks = since_boot.tv_sec as u64 * second + since_boot.tv_nsec as u64 * second / 1_000_000_000;
        Registered::new(pid, owner, ticks)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        live().retain(|live| live.pid != self.pid);
    }
}

/// By what the strays of one attempt, or of one of its batches, are known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trail<'a> {
    pub(crate) owner: Owner,
    /// The leader's number and when it started; it has ended and was waited for.
    pub(crate) leader: Option<(i32, u64)>,
    /// The job's directory, for its lock; none where nothing inherits one.
    pub(crate) dir: Option<&'a Path>,
}

/// Ends the strays of an attempt; answers how many there were.
pub(crate) fn end(trail: &Trail, grace: Duration) -> usize {
    end_all(trail, find(trail, Thoroughness::AsNeeded), grace)
}

fn end_all(trail: &Trail, mut found: Vec<ProcStat>, grace: Duration) -> usize {
    if found.is_empty() {
        return 0;
    }
    let kill_at = Instant::now() + grace.min(MAX_GRACE);
    let give_up = kill_at + GIVE_UP;
    let mut asked = HashSet::new();
    while !found.is_empty() {
        let now = Instant::now();
        if give_up <= now {
            let pids: Vec<i32> = found.iter().map(|stat| stat.pid).collect();
            tracing::error!(job = %trail.owner.job, ?pids, "processes left behind by a worker can't be ended");
            break;
        }
        let handles: Vec<OwnedFd> = found.iter().filter_map(|stat| signal(stat, now < kill_at, &mut asked)).collect();
        wait_for_any(&handles, if now < kill_at { kill_at } else { give_up.min(now + Duration::from_millis(100)) });
        found = find(trail, Thoroughness::AllProcesses);
    }
    tracing::info!(job = %trail.owner.job, processes = asked.len(), "ended what a worker left behind");
    asked.len()
}

/// Asks a stray to end, once, or kills it. Answers a handle to wait on; none when it is gone.
fn signal(stat: &ProcStat, ask: bool, asked: &mut HashSet<(i32, u64)>) -> Option<OwnedFd> {
    let handle = pidfd_open(Pid::from_raw(stat.pid)?, PidfdFlags::empty()).ok()?;
    // The number may have been given to another process since it was looked at; from the handle on it can't.
    ProcStat::read(stat.pid).filter(|now| now.start_ticks == stat.start_ticks)?;
    let first = asked.insert((stat.pid, stat.start_ticks));
    if !ask {
        let _gone = pidfd_send_signal(&handle, Signal::KILL);
    } else if first {
        let _gone = pidfd_send_signal(&handle, Signal::TERM);
        // One that was stopped can't hear before it goes on.
        let _gone = pidfd_send_signal(&handle, Signal::CONT);
    }
    Some(handle)
}

fn wait_for_any(handles: &[OwnedFd], until: Instant) {
    let mut fds: Vec<PollFd> = handles.iter().map(|handle| PollFd::new(handle, PollFlags::IN)).collect();
    // With nothing to wait on (no handle could be had) look again shortly.
    let most = if fds.is_empty() { Duration::from_millis(20) } else { MAX_GRACE };
    let span = until.saturating_duration_since(Instant::now()).min(most);
    // An interrupted wait only means an earlier look.
    let _woken = poll(&mut fds, Timespec::try_from(span).ok().as_ref());
}

#[derive(Clone, Copy, PartialEq)]
enum Thoroughness {
    /// Look through all processes only when something speaks for a stray.
    AsNeeded,
    AllProcesses,
}

/// The strays that live. Dead ones that are our children are waited for on the way.
fn find(trail: &Trail, how: Thoroughness) -> Vec<ProcStat> {
    let adopted = if ADOPTS.load(Ordering::Acquire) { adopted() } else { Adopted::Unknown };
    let told_apart = |orphan: &ProcStat| belongs(orphan, trail, Whose::Orphan);
    let quiet = match &adopted {
        Adopted::Unknown => false,
        // Whatever a worker left has an elder that lost its parent. The lock isn't asked: a process that another worker
        // is just starting holds a copy of it for a moment.
        Adopted::Nobody => true,
        Adopted::Some(orphans) => {
            // The lock of a job that has several runs is held by the others.
            let is_held = || trail.owner.run.is_none() && trail.dir.is_some_and(lock::is_held);
            !orphans.iter().any(told_apart) && !group_has_members(trail) && !is_held()
        }
    };
    if quiet && how == Thoroughness::AsNeeded {
        return Vec::new();
    }
    let orphans = match adopted {
        Adopted::Some(orphans) => orphans,
        Adopted::Nobody | Adopted::Unknown => Vec::new(),
    };
    let workers: HashSet<i32> = live().iter().map(|live| live.pid).collect();
    let oldest = trail.leader.map_or(0, |(_, start_ticks)| start_ticks);
    // Nothing that a worker started is older than it. That spares most of a host's processes the closer look.
    let young = |stat: &ProcStat| oldest <= stat.start_ticks && !workers.contains(&stat.pid);
    let others: Vec<ProcStat> = all_pids().into_iter().filter_map(ProcStat::read).filter(young).collect();
    let (mut found, mut rest): (Vec<ProcStat>, Vec<ProcStat>) = others.into_iter().partition(|stat| {
        let orphan = orphans.iter().any(|orphan| orphan.pid == stat.pid);
        belongs(stat, trail, if orphan { Whose::Orphan } else { Whose::Anyones })
    });
    // Their children, and theirs.
    loop {
        let parents: HashSet<i32> = found.iter().map(|stat| stat.pid).collect();
        let (children, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|stat| parents.contains(&stat.parent));
        if children.is_empty() {
            break;
        }
        found.extend(children);
        rest = others;
    }
    found.retain(|stat| !stat.is_dead());
    found
}

/// The children of the main thread that no worker started: the kernel gives orphans to it, while a worker's process is
/// its own thread's child.
enum Adopted {
    /// The kernel doesn't list children, or this process adopts none.
    Unknown,
    /// The list is empty.
    Nobody,
    /// Those that live; maybe none.
    Some(Vec<ProcStat>),
}

fn adopted() -> Adopted {
    let own = std::process::id();
    let Ok(list) = fs::read_to_string(format!("/proc/self/task/{own}/children")) else { return Adopted::Unknown };
    if list.is_empty() {
        return Adopted::Nobody;
    }
    let workers: HashSet<i32> = live().iter().map(|live| live.pid).collect();
    let pids = list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    let orphans = pids.filter(|pid| !workers.contains(pid)).filter_map(ProcStat::read);
    Adopted::Some(orphans.filter(|orphan| !orphan.is_dead() || !reap_one(orphan.pid)).collect())
}

/// Waits for adopted orphans that have died meanwhile, so that a worker of days doesn't fill the process table.
pub(super) fn reap() {
    if ADOPTS.load(Ordering::Acquire) {
        let _living = adopted();
    }
}

fn reap_one(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    matches!(waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG), Ok(Some(_)))
}

fn group_has_members(trail: &Trail) -> bool {
    let Some(group) = trail.leader.and_then(|(leader, _)| Pid::from_raw(leader)) else { return false };
    !matches!(test_kill_process_group(group), Err(Errno::SRCH))
}

#[derive(Clone, Copy, PartialEq)]
enum Whose {
    Orphan,
    Anyones,
}

fn belongs(stat: &ProcStat, trail: &Trail, whose: Whose) -> bool {
    if let Some((leader, start_ticks)) = trail.leader.filter(|(leader, _)| *leader == stat.group) {
        // While a group has members its number isn't given away; a leader of another age proves that it was.
        let reused = ProcStat::read(leader).is_some_and(|now| now.start_ticks != start_ticks);
        return !reused && start_ticks <= stat.start_ticks;
    }
    if let Some(its) = Owner::of(&Path::new("/proc").join(stat.pid.to_string())) {
        // Another run's are left to that one, and to the job's end.
        if its.job == trail.owner.job {
            return trail.owner.includes(its);
        }
        if live().iter().any(|live| live.owner.job == its.job) {
            return false;
        }
    }
    // It hides whose it is: then it is ours if nobody else can have started it.
    let Some((leader, start_ticks)) = trail.leader.filter(|_| whose == Whose::Orphan) else { return false };
    // A job that has runs starts nothing itself.
    let elder =
        |live: &Live| live.pid != leader && live.start_ticks <= stat.start_ticks && !live.owner.includes(trail.owner);
    start_ticks <= stat.start_ticks && !live().iter().any(elder)
}
