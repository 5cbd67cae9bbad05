//! The spool's thread: takes all tasks that wait, carries them out, pays for one round of syncs, answers. Invariants: a
//! task is answered once, and only when what it asked for is durable; what the disk refuses is kept and tried again,
//! written anew, and never believed on the strength of an earlier attempt.

mod idle;
mod left;
mod publishing;
mod unwell;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::claim::{Claim, Undo, no_room};
use super::cordons;
use super::finish::{Finish, Step};
use super::ground::Ground;
use super::pace::Pace;
use super::retention::Retention;
use super::revive::{self, Revived};
use super::shelves::{self, Shelves};
use super::space::{Room, Space};
use super::spares::Spares;
use super::sync::{How, Syncer};
use super::tally::{Books, Shelf, Tally};
use super::trouble::{About, Troubles};
use super::write::{Why, Write};
use super::{Answer, Backlog, NotClaimed, Task};
use crate::item::{JobId, Outcome};
use crate::sys::dirs;
use crate::units::{Clock, Moment};
use crate::worker::SPLIT_DIR;

/// Claims of one group: as many as the planner asks for at a time.
const CLAIMS: usize = 64;
/// The first wait after the disk refused; doubles.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_AT_MOST: Duration = Duration::from_secs(5);
/// A round costs about the same for one thing as for a hundred. After a group of so many things the next one gathers
/// for a while first; a smaller group means that someone may be waiting for each of them.
const CROWD: usize = 8;
const GATHER: Duration = Duration::from_millis(5);
/// A move that nothing else follows becomes durable after this.
const TRAILING: Duration = Duration::from_millis(20);
/// How often low space is looked at until there is enough.
const RECHECK: Duration = Duration::from_secs(1);
/// How long a start may count before it goes on.
const COUNT_FIRST: Duration = Duration::from_millis(20);
/// How often the days are looked at for changes by others, and for what is too old.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// One thing in the works.
#[derive(Debug)]
enum Op {
    Claim(Box<Claim>),
    Write(Write),
    Finish(Box<Finish>),
    Revived(Box<Revived>),
}

impl Op {
    fn job(&self) -> JobId {
        match self {
            Op::Claim(claim) => claim.id,
            Op::Write(write) => write.record.id,
            Op::Finish(finish) => finish.record.id,
            Op::Revived(revived) => revived.id(),
        }
    }

    /// Everything before the round.
    fn carry_out(&mut self, ground: &Ground, how: How) -> Result<(), Errno> {
        match self {
            // New ones were carried out with their own words for what is wrong; this is one that can't go back.
            Op::Claim(claim) => claim.carry_out(ground).map_err(|_| Errno::IO),
            Op::Write(write) => write.carry_out(ground),
            Op::Finish(finish) => {
                if finish.step() == Step::Fresh {
                    finish.stage(ground)?;
                }
                // Whole: a result that speaks of no outputs needs no round before its name.
                if how == How::Whole && finish.may_be_named_early() {
                    finish.name(ground)?;
                }
                Ok(())
            }
            Op::Revived(_) => Ok(()),
        }
    }

    fn sync_each(&mut self, ground: &Ground) -> Result<(), Errno> {
        match self {
            Op::Claim(claim) => claim.sync_each(),
            Op::Write(write) => write.sync_each(),
            Op::Finish(finish) if finish.step() == Step::Committed => Ok(()),
            Op::Finish(finish) => finish.sync_each(ground),
            Op::Revived(revived) => revived.sync_each(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Desk {
    ground: Arc<Ground>,
    syncer: Syncer,
    space: Space,
    shelves: Shelves,
    spares: Spares,
    books: Books,
    retention: Retention,
    clock: Clock,
    pace: Arc<Pace>,
    queue: VecDeque<Task>,
    /// Results that have their name, and become durable with the next round.
    named: Vec<Op>,
    /// What the disk refused.
    stalled: Vec<Op>,
    retry_at: Moment,
    backoff: Duration,
    troubles: Troubles,
    trailing_at: Option<Moment>,
    /// When the group that gathers is taken in.
    gather_until: Moment,
    recheck_at: Option<Moment>,
    housekeeping_at: Moment,
    prune_at: Moment,
    pruning: bool,
    counting: bool,
    left: left::LeftJobs,
    publishing: publishing::Publishing,
    /// The root isn't at its path, and the director knows.
    root_is_away: bool,
    /// Why there is no `claimed/` to work in.
    no_claimed: Option<String>,
    answers: Sender<Answer>,
    stopping: bool,
}

impl Desk {
    pub(super) fn new(
        ground: Arc<Ground>,
        clock: Clock,
        answers: Sender<Answer>,
        tally: Arc<Tally>,
    ) -> Result<Desk, Errno> {
        let spares = Spares::new(&ground);
        Ok(Desk {
            syncer: Syncer::new(ground.root.dir(), clock, ground.faults.syncs_each())?,
            space: Space::new(ground.root.dir())?,
            ground,
            shelves: Shelves::default(),
            spares,
            books: Books::new(tally),
            retention: Retention::default(),
            clock,
            pace: Arc::default(),
            queue: VecDeque::new(),
            named: Vec::new(),
            stalled: Vec::new(),
            retry_at: Moment::default(),
            backoff: BACKOFF,
            troubles: Troubles::default(),
            trailing_at: None,
            gather_until: Moment::default(),
            recheck_at: None,
            housekeeping_at: Moment::default(),
            prune_at: Moment::default(),
            pruning: false,
            counting: false,
            left: left::LeftJobs::default(),
            publishing: publishing::Publishing::default(),
            root_is_away: false,
            no_claimed: None,
            answers,
            stopping: false,
        })
    }

    pub(super) fn pace(&self) -> Arc<Pace> {
        self.pace.clone()
    }

    /// What recovery could not finish itself.
    pub(super) fn take_over(&mut self, backlog: Backlog) {
        let Backlog { ends, left, strangers } = backlog;
        self.stalled.extend(ends.into_iter().map(|finish| Op::Finish(Box::new(finish))));
        self.leave(left);
        strangers.into_iter().for_each(|words| self.troubles.is_wrong(About::Strangers, words));
        self.tell();
    }

    /// What is soon counted is counted before anyone can ask; the rest of many days when nothing else waits.
    pub(super) fn count_first(&mut self) {
        let ground = self.ground.clone();
        let shelf_dir = |shelf| shelves::open_shelf(&ground, shelf).ok();
        self.books.look(shelf_dir);
        let until = self.clock.now() + COUNT_FIRST;
        self.counting = true;
        while self.counting && self.clock.now() < until {
            self.counting = !self.books.count_one(shelf_dir);
        }
        if !self.counting {
            self.answer(Answer::Counted);
        }
    }

    pub(super) fn run(mut self, tasks: Receiver<Task>) {
        self.look_at_space();
        self.find_unpublished();
        self.housekeeping_at = self.clock.now() + HOUSEKEEPING;
        while self.next(&tasks) {
            self.turn();
        }
        self.end();
    }

    /// Waits for what comes first. False: everything is done that can be done, and the end was asked for.
    fn next(&mut self, tasks: &Receiver<Task>) -> bool {
        let gathering = self.gather_until.since(self.clock.now());
        if gathering > Duration::ZERO && !self.stopping {
            // Not a wait for tasks: each would wake this thread.
            if let Ok(word) = self.publishing.words.recv_timeout(gathering) {
                self.published(word);
            }
        }
        if self.queue.is_empty() && self.named.is_empty() && !self.stopping {
            let wait = self.wait_for().saturating_sub(self.clock.now().0);
            if wait > Duration::ZERO {
                select! {
                    recv(tasks) -> task => self.take_in(task.ok()),
                    recv(self.publishing.words) -> word => word.into_iter().for_each(|word| self.published(word)),
                    recv(self.left.looks) -> alive => alive.into_iter().for_each(|alive| self.looked(alive)),
                    default(wait) => {}
                }
            } else {
                match tasks.recv_timeout(Duration::ZERO) {
                    Ok(task) => self.take_in(Some(task)),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => self.take_in(None),
                }
            }
        }
        while let Ok(task) = tasks.try_recv() {
            self.take_in(Some(task));
        }
        while let Ok(word) = self.publishing.words.try_recv() {
            self.published(word);
        }
        while let Ok(alive) = self.left.looks.try_recv() {
            self.looked(alive);
        }
        !(self.stopping && self.queue.is_empty() && self.named.is_empty())
    }

    fn take_in(&mut self, task: Option<Task>) {
        match task {
            Some(Task::Stop) | None => self.stopping = true,
            Some(Task::Keep { done, failed }) => {
                self.retention = Retention { done, failed };
                self.prune_at = self.clock.now();
            }
            Some(task) => self.queue.push_back(task),
        }
    }

    /// The moment of the first thing that is due by itself.
    fn wait_for(&self) -> Duration {
        let rested = self.trailing_at.is_none();
        if self.counting || self.space.wants_ballast() || (rested && self.pruning) {
            return Duration::ZERO;
        }
        let retry = self.has_to_retry().then_some(self.retry_at);
        let prune = self.retention.period().map(|_| self.prune_at);
        let due = [Some(self.housekeeping_at), prune, retry, self.trailing_at, self.recheck_at];
        let due = due.into_iter().chain([self.left.due(), self.publishing.due()]);
        due.flatten().min().unwrap_or_default().0
    }

    /// One group.
    fn turn(&mut self) {
        let now = self.clock.now();
        if self.recheck_at.is_some_and(|at| at <= now) {
            self.look_at_space();
        }
        self.find_claimed();
        self.look_at_left(now);
        self.go_on_publishing(now);
        let retrying = self.has_to_retry() && self.retry_at <= now;
        let mut ops = std::mem::take(&mut self.named);
        if retrying {
            ops.append(&mut self.stalled);
        }
        let (claims, tasks) = self.next_group();
        if ops.is_empty() && claims.is_empty() && tasks.is_empty() && !retrying {
            return self.idle(now);
        }
        let fresh = claims.iter().map(|claim| claim.fresh_bytes()).sum();
        let how = self.syncer.how(ops.len() + claims.len() + tasks.len(), fresh);
        let mut refused = Vec::new();
        ops.extend(tasks);
        ops.retain_mut_into(|op| op.carry_out(&self.ground, how), &mut refused);
        ops.extend(self.move_in(claims));
        let crowded = ops.len() >= CROWD;
        self.round(&mut ops, how, &mut refused);
        if crowded {
            self.gather_until = self.clock.now() + GATHER;
        }
        for op in ops {
            self.settle(op, &mut refused);
        }
        let ground = self.ground.clone();
        self.books.settle(|shelf| shelves::open_shelf(&ground, shelf).ok());
        let refusal = self.refuse(refused);
        if retrying {
            self.tried_again(refusal);
        }
        self.tell();
        self.pace.rounds.count(self.clock.now().since(now));
    }

    /// The claims and the other things of the next group.
    fn next_group(&mut self) -> (Vec<Claim>, Vec<Op>) {
        let (mut claims, mut ops, mut later) = (Vec::new(), Vec::new(), VecDeque::new());
        let mut folders: HashMap<String, Result<Arc<OwnedFd>, Errno>> = HashMap::new();
        let (mut intact, mut room) = (None, None);
        for task in std::mem::take(&mut self.queue) {
            match task {
                Task::Claim { .. } if claims.len() >= CLAIMS => later.push_back(task),
                Task::Claim { id, candidate, cancelled } => {
                    if !*intact.get_or_insert_with(|| self.ground.root.is_intact()) {
                        let why = NotClaimed::NoRoom(self.root_is_gone());
                        self.answer(Answer::NotClaimed { id, candidate, why });
                        continue;
                    }
                    if let Some(words) = self.no_claimed.clone() {
                        let why = NotClaimed::NoRoom(words);
                        self.answer(Answer::NotClaimed { id, candidate, why });
                        continue;
                    }
                    if *room.get_or_insert_with(|| self.look_at_space()) == Room::Low {
                        let why = NotClaimed::NoRoom("too little room is left on the root's file system".to_owned());
                        self.answer(Answer::NotClaimed { id, candidate, why });
                        continue;
                    }
                    let open = || open_folder(&self.ground, &candidate.key.folder).map(Arc::new);
                    match folders.entry(candidate.key.folder.clone()).or_insert_with(open).clone() {
                        Ok(folder) => claims.push(Claim::new(&self.ground, folder, id, candidate, cancelled)),
                        Err(error) => self.answer(Answer::NotClaimed { id, candidate, why: no_folder(error) }),
                    }
                }
                Task::Prepare { record } => {
                    self.forget_older(record.id);
                    ops.push(Op::Write(Write::new(record, Why::Prepare)));
                }
                Task::Save { record } => {
                    self.forget_older(record.id);
                    ops.push(Op::Write(Write::new(record, Why::Save)));
                }
                Task::Finish { record, ending } => {
                    self.forget_older(record.id);
                    ops.push(Op::Finish(Box::new(Finish::new(record, ending))));
                }
                Task::Revive { id } if self.publishing.is_under_way(id) => {
                    let words = format!("job {id} can't be retried now: its outputs are being published");
                    self.answer(Answer::Revived { id, outcome: Err(words) });
                }
                Task::Revive { id } => match revive::revive(&self.ground, id) {
                    Ok(revived) => {
                        // What it had made is set aside; its next outputs are published.
                        self.is_published(id);
                        ops.push(Op::Revived(Box::new(revived)));
                    }
                    Err(words) => self.answer(Answer::Revived { id, outcome: Err(words) }),
                },
                Task::Cordons { devices } => {
                    let outcome = cordons::write(self.ground.root.dir(), &devices).map_err(|error| error.to_string());
                    self.answer(Answer::Cordons(outcome));
                }
                Task::FindRoot => match self.ground.root.is_intact() {
                    true => self.answer(Answer::Root { is_there: true }),
                    false => drop(self.root_is_gone()),
                },
                // Taken in at the door.
                Task::Keep { .. } | Task::Stop => {}
            }
        }
        self.queue = later;
        (claims, ops)
    }

    /// A record that the disk refused is older than what comes now: written later, it would undo that, or bring a
    /// job that has ended back into `claimed/`.
    fn forget_older(&mut self, id: JobId) {
        let is_older = |op: &Op| matches!(op, Op::Write(write) if write.why == Why::Save && write.record.id == id);
        while let Some(at) = self.stalled.iter().position(is_older) {
            self.stalled.swap_remove(at);
            self.troubles.is_well(About::Job(id));
            self.answer(Answer::Saved { id });
        }
    }

    fn move_in(&mut self, claims: Vec<Claim>) -> Vec<Op> {
        let mut moved = Vec::with_capacity(claims.len());
        for claim in claims {
            let mut claim = Box::new(claim);
            claim.take_spare(&self.ground, &mut self.spares);
            match claim.carry_out(&self.ground) {
                Ok(()) => moved.push(Op::Claim(claim)),
                Err(why) => moved.extend(self.undo(claim, why)),
            }
        }
        moved
    }

    /// Answers a claim that failed; what can't go back goes on.
    fn undo(&mut self, claim: Box<Claim>, why: NotClaimed) -> Option<Op> {
        let id = claim.id;
        if let NotClaimed::NoRoom(words) = &why {
            self.cannot_write(words.clone());
        }
        match claim.undo(&self.ground, why) {
            Undo::Kept(kept) => Some(Op::Claim(kept)),
            Undo::Undone(candidate, why) => {
                self.answer(Answer::NotClaimed { id, candidate: *candidate, why });
                None
            }
        }
    }

    /// Makes everything durable; what isn't goes to `refused`.
    fn round(&mut self, ops: &mut Vec<Op>, how: How, refused: &mut Vec<(Op, Errno)>) {
        if ops.is_empty() && !self.shelves.has_unsynced() {
            return;
        }
        let mut outcome = self.ground.faults.at("round.sync");
        if outcome.is_ok() {
            match how {
                How::Whole => {
                    let began = self.clock.now();
                    outcome = self.syncer.whole();
                    self.pace.whole.count(self.clock.now().since(began));
                }
                How::Each => {
                    let (began, things) = (self.clock.now(), ops.len());
                    let chain = self.chain(ops);
                    let ground = self.ground.clone();
                    outcome = chain.and_then(|chain| {
                        self.syncer.beside(chain, || ops.retain_mut_into(|op| op.sync_each(&ground), refused)).1
                    });
                    let took = self.clock.now().since(began);
                    self.syncer.each_took(things, took);
                    self.pace.each.count(took);
                }
            }
        }
        match outcome {
            Ok(()) => {
                self.shelves.are_synced();
                self.trailing_at = None;
            }
            Err(error) => refused.extend(ops.drain(..).map(|op| (op, error))),
        }
    }

    /// The directories that a round syncs one after the other: where things went before where they came from.
    fn chain(&self, ops: &[Op]) -> Result<Vec<OwnedFd>, Errno> {
        let copy = |dir: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(dir, 0);
        let mut chain = self.shelves.unsynced(&self.ground)?;
        chain.push(copy(self.ground.claimed().as_fd())?);
        let mut folders: Vec<&OwnedFd> = Vec::new();
        for op in ops {
            if let Op::Claim(claim) = op {
                chain.extend(claim.directories()?);
                if !folders.iter().any(|folder| std::ptr::eq(*folder, claim.folder())) {
                    folders.push(claim.folder());
                }
            }
        }
        for folder in folders {
            chain.push(copy(folder.as_fd())?);
        }
        Ok(chain)
    }

    /// After the round: answers, or the next step.
    fn settle(&mut self, op: Op, refused: &mut Vec<(Op, Errno)>) {
        match op {
            Op::Claim(claim) => match self.ground.faults.at("claim.synced") {
                Ok(()) => {
                    self.troubles.is_well(About::Job(claim.id));
                    self.answer(Answer::Claimed(claim.into_job()));
                }
                Err(error) => refused.push((Op::Claim(claim), error)),
            },
            Op::Write(write) => match self.ground.faults.at("record.synced") {
                Ok(()) => {
                    let id = write.record.id;
                    self.troubles.is_well(About::Job(id));
                    self.answer(match write.why {
                        Why::Prepare => Answer::Prepared { id },
                        Why::Save => Answer::Saved { id },
                    });
                }
                Err(error) => refused.push((Op::Write(write), error)),
            },
            Op::Revived(revived) => {
                let _ = self.ground.faults.at("revive.synced");
                self.troubles.is_well(About::Job(revived.id()));
                let place = &revived.place;
                let shelf_dir = |shelf| shelves::open_shelf(&self.ground, shelf).ok();
                self.books.moved(place.shelf, &place.day, &[revived.outcome], false, shelf_dir);
                self.answer(Answer::Revived { id: revived.id(), outcome: Ok(revived.into_job()) });
            }
            Op::Finish(mut finish) => {
                let committed = match finish.step() {
                    // Its outputs are durable; now it may say so. The next round makes that durable.
                    Step::Staged => match finish.name(&self.ground) {
                        Ok(()) => return self.named.push(Op::Finish(finish)),
                        Err(error) => Err(error),
                    },
                    _ => {
                        finish.commit();
                        self.ground.faults.at("finish.committed")
                    }
                };
                match match committed {
                    Ok(()) => self.publish_first(finish),
                    Err(error) => Err((finish, error)),
                } {
                    Ok(Some(finish)) => self.file(finish, refused),
                    Ok(None) => {}
                    Err((finish, error)) => refused.push((Op::Finish(finish), error)),
                }
            }
        }
    }

    /// Moves a committed job to its day.
    fn file(&mut self, finish: Box<Finish>, refused: &mut Vec<(Op, Errno)>) {
        let (outcome, day) = (finish.outcome(), finish.day());
        if outcome == Outcome::Done && finish.record.route.split.is_some() {
            let grown = self.ground.root.claimed().join(finish.dir.as_str()).join(SPLIT_DIR);
            // A try before may have done so; what can't be removed is no reason to keep the job.
            let _absent = std::fs::remove_dir_all(grown);
        }
        let moved = self.shelves.file(&self.ground, outcome, &day, finish.dir.as_str());
        let dir = match moved.and_then(|dir| self.ground.faults.at("finish.moved").map(|()| dir)) {
            Ok(dir) => dir,
            // It has its outcome; there is nothing left to move.
            Err(Errno::NOENT) if !shelves::is_at(self.ground.claimed(), finish.dir.as_str()) => {
                tracing::error!(job = finish.dir.as_str(), "an ended job's directory is gone from claimed/");
                let shelf = self.ground.root.path().join(Shelf::of(outcome).name());
                shelf.join(&day).join(finish.dir.as_str())
            }
            Err(error) => {
                if error == Errno::EXIST {
                    tracing::error!(
                        job = finish.dir.as_str(),
                        day,
                        "a job of this id lies there already: neither is touched"
                    );
                }
                return refused.push((Op::Finish(finish), error));
            }
        };
        let shelf_dir = |shelf| shelves::open_shelf(&self.ground, shelf).ok();
        if !finish.is_quiet() {
            self.books.tally().files_one();
        }
        self.books.moved(Shelf::of(outcome), &day, &[outcome], true, shelf_dir);
        self.trailing_at = Some(self.clock.now() + TRAILING);
        self.troubles.is_well(About::Job(finish.record.id));
        if let Some(answer) = finish.into_answer(dir) {
            self.answer(answer);
        }
    }

    /// The last round. What the disk still refuses stays in `claimed/`, for the next start.
    fn end(mut self) {
        // Twice: what is tried once more may have to be published, and what was published is then filed.
        for _ in 0..2 {
            self.go_on_publishing(self.clock.now());
            if !self.stalled.is_empty() {
                self.retry_at = self.clock.now();
                self.turn();
                self.turn();
            }
            self.end_publishing();
        }
        if self.shelves.has_unsynced() {
            let how = self.syncer.how(1, 0);
            self.round(&mut Vec::new(), how, &mut Vec::new());
        }
        let unfiled = self.stalled.iter().filter(|op| matches!(op, Op::Finish(_))).count();
        self.tell_left(unfiled);
        if !self.stalled.is_empty() {
            tracing::error!(
                jobs = self.stalled.len(),
                "the disk refused to the end; the next start finishes these jobs"
            );
        }
    }

    fn answer(&self, answer: Answer) {
        // A director that is gone needs no answers; the directories tell its successor.
        let _ = self.answers.send(answer);
    }
}

/// Opens an intake folder anew for each group: it may have been replaced.
fn open_folder(ground: &Ground, folder: &str) -> Result<OwnedFd, Errno> {
    dirs::open(ground.root.dir(), &Path::new("inbox").join(folder), OFlags::RDONLY)
}

fn no_folder(error: Errno) -> NotClaimed {
    match error {
        Errno::NOENT | Errno::NOTDIR => NotClaimed::Gone,
        dirs::FOREIGN_LINK => NotClaimed::Refused("its folder is a link that somebody else made".to_owned()),
        Errno::ACCESS => NotClaimed::Refused("its folder can't be opened: no permission".to_owned()),
        error => no_room(error),
    }
}

/// Keeps what a step succeeds on, and moves the rest over with the error.
trait RetainMutInto {
    fn retain_mut_into(&mut self, step: impl FnMut(&mut Op) -> Result<(), Errno>, refused: &mut Vec<(Op, Errno)>);
}

impl RetainMutInto for Vec<Op> {
    fn retain_mut_into(&mut self, mut step: impl FnMut(&mut Op) -> Result<(), Errno>, refused: &mut Vec<(Op, Errno)>) {
        for mut op in std::mem::take(self) {
            match step(&mut op) {
                Ok(()) => self.push(op),
                Err(error) => refused.push((op, error)),
            }
        }
    }
}
