//! Recovery: what `claimed/` tells after a director ended, however it ended. Runs before any watch or scan, from the
//! directories alone. Invariants: it may be killed itself and run again, with the same outcome; it removes nothing but
//! its own empty directories; while anything of a job lives, the job doesn't run again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{AtFlags, FileType, OFlags, RenameFlags};
use rustix::io::Errno;

use super::fault_points::Faults;
use super::finish::Finish;
use super::ground::Ground;
use super::orphans::{self, Home, Suspect};
use super::record::{self, Read};
use super::{ClaimedJob, Recovered};
use crate::config::{Mode as RouteMode, Ready, Route, RouteKind};
use crate::devices::DeviceId;
use crate::item::{
    Attempt, Ending, ItemKind, ItemName, JobDir, JobId, JobRecord, Outcome, Reason, ResultRecord, escape,
};
use crate::root::{Root, RootError};
use crate::sys::dirs;
use crate::units::{Bytes, Clock};
use crate::worker::LockRecord;

/// Attempts in a row that were nobody's fault: with one more, the item itself is suspect.
const UNCOUNTED: usize = 10;
/// Where the record that knows the route's own can't be read.
const GRACE: Duration = Duration::from_secs(10);

/// Takes stock of `claimed/` and ends what outlived the last director.
pub fn recover(root: &Arc<Root>, clock: Clock) -> Result<Recovered, RootError> {
    recover_with(root, clock, Faults::from_env())
}

pub(super) fn recover_with(root: &Arc<Root>, clock: Clock, faults: Faults) -> Result<Recovered, RootError> {
    let unavailable = |error: Errno| {
        RootError::unavailable(
            format!("cannot read `{}`: {error}", crate::root::shown(&root.claimed())),
            "check the mount and the permissions of claimed/",
        )
    };
    let ground = Ground::new(root.clone(), faults).map_err(unavailable)?;
    let mut recovered = Recovered::default();
    // First: they may have any of the jobs in hand.
    orphans::end_residents(&ground, clock);
    let (jobs, strangers) = list(&ground).map_err(unavailable)?;
    recovered.backlog.strangers = strangers;
    if jobs.is_empty() {
        return Ok(recovered);
    }
    ground.faults.at("recover.begun").map_err(unavailable)?;
    let suspects = suspects(&ground, jobs);
    let alive = orphans::end_all(&ground, clock, &suspects);
    ground.faults.at("recover.orphans-ended").map_err(unavailable)?;
    for suspect in suspects {
        let why = match alive.get(&suspect.id) {
            Some(pids) => Some(outlived(&suspect.dir, pids)),
            None => take_up(&ground, &suspect, &mut recovered).err().map(|error| not_taken_up(&suspect.dir, error)),
        };
        recovered.backlog.left.extend(why.map(|why| Left { suspect, why }));
    }
    recovered.jobs.sort_by_key(|job| (job.record.arrived_at, job.record.id));
    recovered.ended = recovered.backlog.ends.len() as u64;
    recovered.left = recovered.backlog.left.len() as u64;
    Ok(recovered)
}

/// A job that couldn't be taken up.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) suspect: Suspect,
    pub(super) why: String,
}

pub(super) fn outlived(dir: &JobDir, pids: &[i32]) -> String {
    let pids: Vec<_> = pids.iter().map(i32::to_string).collect();
    match pids.as_slice() {
        [] => format!("{dir} waits in claimed/: a process that can't be seen holds its lock"),
        [pid] => format!("{dir} waits in claimed/: process {pid} of an earlier director can't be ended"),
        pids => format!("{dir} waits in claimed/: processes {} of an earlier director can't be ended", pids.join(", ")),
    }
}

pub(super) fn not_taken_up(dir: &JobDir, error: Errno) -> String {
    format!("{dir} waits in claimed/: it can't be recovered yet ({error}), and is tried again")
}

/// The job directories in `claimed/`, and words about what else lies there, which is left.
pub(super) fn list(ground: &Ground) -> Result<(BTreeMap<JobId, JobDir>, Option<String>), Errno> {
    let mut jobs = BTreeMap::new();
    let mut strangers = Vec::new();
    for entry in rustix::fs::Dir::read_from(ground.claimed())? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        // The probe's leftovers among them.
        if name.starts_with(b".") {
            continue;
        }
        let is_dir = || {
            let stat = rustix::fs::statat(ground.claimed(), entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
        };
        match JobDir::parse(OsStr::from_bytes(name)) {
            Some((dir, id)) if is_dir() && !jobs.contains_key(&id) => drop(jobs.insert(id, dir)),
            _ => strangers.push(escape(name)),
        }
    }
    let words = strangers.first().map(|first| {
        format!("{} in claimed/ that gamdok didn't make, `{first}` among them: move them away", strangers.len())
    });
    Ok((jobs, words))
}

fn suspects(ground: &Ground, jobs: BTreeMap<JobId, JobDir>) -> Vec<Suspect> {
    let grace = |id, dir: &JobDir| {
        let job = record::open_dir(ground.claimed(), dir.as_str()).ok()?;
        match record::read_job(job.as_fd(), id).ok()? {
            Read::Whole(record) => Some(record.route.kill_grace),
            _ => None,
        }
    };
    let suspect = |(id, dir)| Suspect { id, home: Home::Claimed, grace: grace(id, &dir).unwrap_or(GRACE), dir };
    jobs.into_iter().map(suspect).collect()
}

/// What a job's directory means.
enum Meaning {
    /// The claim had begun, and the item is still in the inbox.
    Intent,
    /// Claimed when the power went, before that was durable; nothing of it ran.
    Unrecorded,
    /// It has its outcome; the move is missing.
    Committed(Box<ResultRecord>),
    /// To be run.
    Unfinished(Box<JobRecord>),
    /// There is something, and no record of what.
    Unrecognised,
}

/// Does what a job's directory asks for. After an error nothing is decided, and it can be tried again.
pub(super) fn take_up(ground: &Ground, suspect: &Suspect, recovered: &mut Recovered) -> Result<(), Errno> {
    let Suspect { id, ref dir, .. } = *suspect;
    ground.faults.at("recover.job")?;
    let opened = ground.open_claimed(dir.as_str())?;
    let job = opened.as_fd();
    match meaning(ground, job, id, dir)? {
        Meaning::Intent => {
            record::remove_empty_job(ground.claimed().as_fd(), dir.as_str())?;
            ground.faults.at("recover.removed")?;
        }
        Meaning::Unrecorded => match put_back(ground, job) {
            Ok(()) => {
                ground.faults.at("recover.put-back")?;
                recovered.put_back += 1;
                record::remove_empty_job(ground.claimed().as_fd(), dir.as_str())?;
            }
            Err(error) => {
                tracing::warn!(job = dir.as_str(), %error, "an item whose claim was cut off can't go back into the inbox");
                recovered.backlog.ends.push(unrecognised(job, id, dir));
            }
        },
        Meaning::Committed(result) => {
            // The route is in the record; without it there is nothing to publish to.
            let record = match record::read_job(job, id)? {
                Read::Whole(record) => record,
                _ => stand_in(job, id),
            };
            recovered.backlog.ends.push(Finish::committed(Arc::new(record), dir.clone(), *result));
        }
        Meaning::Unfinished(record) => go_on(ground, job, dir, *record, recovered)?,
        Meaning::Unrecognised => recovered.backlog.ends.push(unrecognised(job, id, dir)),
    }
    Ok(())
}

fn meaning(ground: &Ground, job: BorrowedFd<'_>, id: JobId, dir: &JobDir) -> Result<Meaning, Errno> {
    match record::read_result(job, record::RESULT, id)? {
        Read::Whole(result) => return Ok(Meaning::Committed(Box::new(result))),
        Read::Torn => record::set_aside(job, record::RESULT, "result.torn.tmp")?,
        Read::Absent => {}
    }
    let record = match record::read_job(job, id)? {
        Read::Whole(record) if record.dir() == *dir => record,
        Read::Whole(_) => return Ok(Meaning::Unrecognised),
        torn => {
            let (payload, traces) = (has_entries(job, record::ITEM)?, has_traces(job)?);
            let never_written = matches!(torn, Read::Torn) && is_blank(job)?;
            return Ok(match (payload, traces) {
                (false, false) => Meaning::Intent,
                (true, false) if never_written => Meaning::Unrecorded,
                _ => Meaning::Unrecognised,
            });
        }
    };
    if record.boot_id == ground.boot_id
        && let Read::Whole(result) = record::read_result(job, record::RESULT_TMP, id)?
    {
        // The director was killed, the machine wasn't: what was staged is whole, and so is what it speaks of.
        record::rename_new(job, record::RESULT_TMP, job, record::RESULT)?;
        return Ok(Meaning::Committed(Box::new(result)));
    }
    let fresh = record.attempts.len() <= 1 && record.attempts.iter().all(|attempt| attempt.ended_at.is_none());
    if fresh && !has_entries(job, record::ITEM)? && !has_traces(job)? {
        return Ok(Meaning::Intent);
    }
    Ok(Meaning::Unfinished(Box::new(record)))
}

fn has_entries(job: BorrowedFd<'_>, name: &str) -> Result<bool, Errno> {
    match record::open_dir(job, name) {
        Ok(dir) => match record::is_empty(dir) {
            Err(Errno::ACCESS) => Ok(true),
            looked => Ok(!looked?),
        },
        Err(Errno::NOENT) => Ok(false),
        // Something else stands there, or nobody may look into it; it is not ours to remove.
        Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether an attempt left anything: a log, a note in the lock, outputs.
fn has_traces(job: BorrowedFd<'_>) -> Result<bool, Errno> {
    for entry in rustix::fs::Dir::read_from(job)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name.starts_with(b"attempt-") || name.starts_with(b"out.aborted") || name.starts_with(b"result.") {
            return Ok(true);
        }
    }
    let noted = record::read(job, record::LOCK).is_ok_and(|note| note.is_some_and(|note| !note.is_empty()));
    Ok(noted || has_entries(job, record::OUT)?)
}

/// Whether job.json has its name and none of its bytes, as a power cut before the round leaves it.
fn is_blank(job: BorrowedFd<'_>) -> Result<bool, Errno> {
    match record::read(job, record::JOB) {
        Ok(bytes) => Ok(bytes.is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0))),
        // Something else stands there, or a monster.
        Err(Errno::INVAL | Errno::LOOP | Errno::NXIO) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A device's id as a driver gives it: a worker may have written the note.
fn is_plausible(device: &DeviceId) -> bool {
    device.0.len() <= 128 && device.0.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/.:".contains(&byte))
}

/// Moves the payload and its companions to where they came from.
fn put_back(ground: &Ground, job: BorrowedFd<'_>) -> Result<(), Errno> {
    let folder = match rustix::fs::readlinkat(job, record::FOLDER, Vec::new()) {
        Ok(folder) if folder.as_bytes().split(|&byte| byte == b'/').all(|part| !matches!(part, b"" | b"." | b"..")) => {
            [b"inbox/", folder.as_bytes()].concat()
        }
        // No intake folder's name: someone else's idea of where the item belongs.
        Ok(_) => return Err(Errno::INVAL),
        Err(Errno::NOENT) => b"inbox".to_vec(),
        Err(error) => return Err(error),
    };
    let folder = dirs::open(ground.root.dir(), Path::new(OsStr::from_bytes(&folder)), OFlags::RDONLY)?;
    // Companions first: while the item is away, nobody takes it without them.
    for name in [record::COMPANIONS, record::ITEM] {
        let from = match record::open_dir(job, name) {
            Ok(from) => from,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        for entry in names(&from)? {
            rustix::fs::renameat_with(&from, entry.as_os_str(), &folder, entry.as_os_str(), RenameFlags::NOREPLACE)?;
        }
    }
    Ok(())
}

fn names(dir: &OwnedFd) -> Result<Vec<ItemName>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(ItemName::new(OsStr::from_bytes(name)));
        }
    }
    Ok(names)
}

/// An unfinished job: ends the attempt that was cut off, and says what follows.
fn go_on(
    ground: &Ground,
    job: BorrowedFd<'_>,
    dir: &JobDir,
    mut record: JobRecord,
    recovered: &mut Recovered,
) -> Result<(), Errno> {
    let rebooted = record.boot_id != ground.boot_id;
    record.boot_id.clone_from(&ground.boot_id);
    // Only a help: a worker can have put anything in its place.
    let note = record::read(job, record::LOCK)
        .ok()
        .flatten()
        .and_then(|bytes| serde_json::from_slice::<LockRecord>(&bytes).ok());
    if let Some(last) = record.attempts.last_mut()
        && last.ended_at.is_none()
        // A process of its own has a log from the start; what a resident worker was handed is noted in the lock.
        && (rebooted || has_log(job, last.n)? || note.as_ref().is_some_and(|note| note.attempt == last.n))
    {
        if let Some(note) = note.filter(|note| note.attempt == last.n) {
            last.pid = Some(note.pid);
            let began = note.started_at.filter(|at| record.claimed_at <= *at && *at <= Timestamp::now());
            last.started_at = last.started_at.or(began);
            if last.devices.is_empty() && note.devices.iter().all(is_plausible) {
                last.devices = note.devices;
            }
        }
        last.ended_at = Some(Timestamp::now());
        last.reason = Some(Reason::Orphaned);
        last.counted = false;
        let n = last.n;
        record::set_out_aside(job, n)?;
        ground.faults.at("recover.set-aside")?;
    }
    let ending = verdict(&record);
    let record = Arc::new(record);
    match ending {
        Some(ending) => {
            let finish = Finish::new(record, ending);
            recovered.backlog.ends.push(finish.quietly());
        }
        None => recovered.jobs.push(ClaimedJob { record, dir: dir.clone() }),
    }
    Ok(())
}

fn has_log(job: BorrowedFd<'_>, n: u32) -> Result<bool, Errno> {
    match rustix::fs::statat(job, format!("attempt-{n}.log"), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The ending that is due already, if one is.
fn verdict(record: &JobRecord) -> Option<Ending> {
    let ending = |outcome, reason, message: String| Ending {
        outcome,
        reason: Some(reason),
        message: Some(message),
        result: None,
    };
    if record.cancelled {
        return Some(ending(Outcome::Cancelled, Reason::Cancelled, "cancelled while it lay in the inbox".to_owned()));
    }
    let ended = |attempt: &&Attempt| attempt.ended_at.is_some();
    let uncounted = record.tries().filter(ended).filter(|attempt| !attempt.counted).count();
    if uncounted > UNCOUNTED {
        let words = format!("{uncounted} attempts were cut off; the item may be what ends the director or the machine");
        return Some(ending(Outcome::Failed, Reason::Poison, words));
    }
    let counted: Vec<_> = record.tries().filter(ended).filter(|attempt| attempt.counted).collect();
    match counted.last() {
        Some(last) if counted.len() as u64 > u64::from(record.route.retries) => {
            let words = format!("failed {} times; the director ended before it could say so", counted.len());
            Some(ending(Outcome::Failed, last.reason.unwrap_or(Reason::Exit), words))
        }
        _ => None,
    }
}

/// Without a record: the payload's own name is all that is known.
fn unrecognised(job: BorrowedFd<'_>, id: JobId, dir: &JobDir) -> Finish {
    let ending = Ending {
        outcome: Outcome::Failed,
        reason: Some(Reason::Unrecognised),
        message: Some(
            "its job.json is missing, damaged or another's: nobody knows how it was to be processed".to_owned(),
        ),
        result: None,
    };
    Finish::routeless(Arc::new(stand_in(job, id)), dir.clone(), ending)
}

/// A record for a job that has none.
fn stand_in(job: BorrowedFd<'_>, id: JobId) -> JobRecord {
    let payload =
        record::open_dir(job, record::ITEM).and_then(|item| names(&item)).unwrap_or_default().into_iter().next();
    let name = payload.unwrap_or_else(|| ItemName::new("unknown"));
    let target = [record::ITEM.as_bytes(), b"/", name.as_bytes()].concat();
    let stat = rustix::fs::statat(job, target.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
    let is_dir = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
    JobRecord {
        id,
        name: name.escaped(),
        name_b64: name.base64(),
        folder: String::new(),
        kind: if is_dir { ItemKind::Directory } else { ItemKind::File },
        route: Arc::new(no_route()),
        arrived_at: None,
        claimed_at: Timestamp::now(),
        boot_id: String::new(),
        signature: None,
        attempts: Vec::new(),
        avoid: Vec::new(),
        cancelled: false,
        revived_after: 0,
        batch_limit: None,
        counters: Default::default(),
    }
}

/// Stands where a record must have a route; never runs, and no result names it.
pub fn no_route() -> Route {
    Route {
        name: String::new(),
        folder: String::new(),
        patterns: Vec::new(),
        kind: RouteKind::Any,
        command: Vec::new(),
        mode: RouteMode::Oneshot,
        batch: Default::default(),
        resident: Default::default(),
        split: None,
        env: BTreeMap::new(),
        cwd: None,
        dir: std::path::PathBuf::new(),
        gpus: 0,
        gpu_memory: None,
        cpu_fallback: false,
        visible: None,
        priority: 0,
        max_running: None,
        timeout: None,
        kill_grace: GRACE,
        retries: 0,
        backoff: Duration::ZERO,
        outputs: Vec::new(),
        ready: Ready { settle: None, marker: None, manifest: false, min_bytes: Bytes(0), validator: Vec::new() },
        publish: None,
    }
}
