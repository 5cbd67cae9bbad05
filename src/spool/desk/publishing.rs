//! Outputs that are to be published: tried once before the job is filed, so that whoever waits for the job finds them
//! there; what fails or takes long doesn't keep the job, and is tried again from `done/`. A thread for each target folder:
//! one that hangs keeps nobody else's outputs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;

use super::super::finish::Finish;
use super::super::publish::{self, Order, Published};
use super::super::record::{self, Read};
use super::super::trouble::About;
use super::super::unpublished;
use super::{Desk, Op};
use crate::item::{ItemName, JobDir, JobId};
use crate::units::Moment;

/// How long a job waits for its outputs to be published, and the end of the spool for those under way to move on.
const PATIENCE: Duration = Duration::from_secs(30);
/// The wait after the first failure; doubles.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Publishing {
    /// Not filed yet, until then at most.
    first: HashMap<JobId, (Box<Finish>, Moment)>,
    /// Filed.
    later: BTreeMap<JobId, Later>,
    /// Ordered, and not heard of since.
    under_way: HashSet<JobId>,
    publishers: HashMap<PathBuf, Sender<Order>>,
    /// Grows while anything moves.
    progress: Arc<AtomicU64>,
    outbox: Sender<Published>,
    pub(super) words: Receiver<Published>,
}

#[derive(Debug)]
struct Later {
    name: ItemName,
    into: PathBuf,
    dir: JobDir,
    day: String,
    at: Moment,
    wait: Duration,
}

impl Default for Publishing {
    fn default() -> Publishing {
        // Bounded by the orders under way: one a job.
        let (outbox, words) = crossbeam_channel::unbounded();
        Publishing {
            first: HashMap::new(),
            later: BTreeMap::new(),
            under_way: HashSet::new(),
            publishers: HashMap::new(),
            progress: Arc::default(),
            outbox,
            words,
        }
    }
}

impl Publishing {
    pub(super) fn due(&self) -> Option<Moment> {
        let idle = self.later.iter().filter(|(id, _)| !self.under_way.contains(id)).map(|(_, later)| later.at);
        self.first.values().map(|(_, until)| *until).chain(idle).min()
    }

    /// Whether a filed job's outputs are still to be published.
    pub(super) fn is_owed(&self, id: JobId) -> bool {
        self.later.contains_key(&id)
    }

    pub(super) fn is_under_way(&self, id: JobId) -> bool {
        self.under_way.contains(&id)
    }
}

impl Desk {
    /// What an earlier director filed unpublished.
    pub(super) fn find_unpublished(&mut self) {
        let noted = unpublished::list(&self.ground).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell which outputs are still to be published");
            Vec::new()
        });
        for (id, dir, day) in noted {
            let record = match self.open_unpublished(&day, &dir) {
                Ok(Some(job)) => record::read_job(std::os::fd::AsFd::as_fd(&job), id),
                // Moved, removed or published; or still in claimed/, and then filed anew.
                Ok(None) => {
                    unpublished::forget(&self.ground, dir.as_str());
                    continue;
                }
                Err(error) => Err(error),
            };
            let found = match &record {
                Ok(Read::Whole(record)) => record.route.publish.clone().map(|into| (record.item_name(), into)),
                _ => None,
            };
            match found {
                Some((name, into)) => {
                    let words =
                        format!("the outputs of {dir} are still to be published to `{}`", crate::root::shown(&into));
                    self.troubles.is_wrong(About::Publishing(id), words);
                    let later = Later { name, into, dir, day, at: self.clock.now(), wait: AGAIN };
                    self.publishing.later.insert(id, later);
                }
                None => {
                    let words = format!("the outputs of {dir} can't be published: its job.json can't be read");
                    self.troubles.is_wrong(About::Publishing(id), words);
                }
            }
        }
        self.tell();
    }

    /// A filed job's directory, while its outputs are to be published.
    fn open_unpublished(&self, day: &str, dir: &JobDir) -> Result<Option<OwnedFd>, Errno> {
        let job = match record::open_dir(self.ground.root.dir(), unpublished::place(day, dir.as_str()).as_str()) {
            Ok(job) => job,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(publish::is_intended(&job)?.then_some(job))
    }

    /// Gives the publisher what is to be published; hands the finish back when there is nothing.
    pub(super) fn publish_first(&mut self, finish: Box<Finish>) -> Result<Option<Box<Finish>>, (Box<Finish>, Errno)> {
        let order = match finish.to_publish(&self.ground) {
            Ok(Some(order)) => order,
            Ok(None) => return Ok(Some(finish)),
            Err(error) => return Err((finish, error)),
        };
        let id = order.id;
        if !self.publishing.is_under_way(id)
            && let Err(error) = self.order(order)
        {
            // As a failure of the publisher's own.
            let _ = self.publishing.outbox.send((id, Err(format!("cannot publish outputs: {error}"))));
        }
        self.publishing.first.insert(id, (finish, self.clock.now() + PATIENCE));
        Ok(None)
    }

    fn order(&mut self, order: Order) -> std::io::Result<()> {
        let id = order.id;
        let orders = match self.publishing.publishers.get(&order.into) {
            Some(orders) => orders.clone(),
            None => {
                let (orders, inbox) = crossbeam_channel::unbounded();
                let (ground, outbox) = (self.ground.clone(), self.publishing.outbox.clone());
                let progress = self.publishing.progress.clone();
                let run = move || publish::run(inbox, outbox, &ground, &progress);
                std::thread::Builder::new().name("gamdok-publish".to_owned()).spawn(run)?;
                self.publishing.publishers.insert(order.into.clone(), orders.clone());
                orders
            }
        };
        let into = order.into.clone();
        if orders.send(order).is_err() {
            self.publishing.publishers.remove(&into);
            return Err(std::io::Error::other("its thread has ended"));
        }
        self.publishing.under_way.insert(id);
        Ok(())
    }

    /// The publisher's word.
    pub(super) fn published(&mut self, (id, outcome): Published) {
        self.publishing.under_way.remove(&id);
        let mut refused = Vec::new();
        match outcome {
            Ok(()) => {
                self.troubles.is_well(About::Publishing(id));
                self.is_published(id);
                if let Some((finish, _)) = self.publishing.first.remove(&id) {
                    match self.ground.faults.at("finish.published") {
                        Ok(()) => self.file(finish, &mut refused),
                        Err(error) => refused.push((Op::Finish(finish), error)),
                    }
                }
            }
            Err(words) => {
                self.troubles.is_wrong(About::Publishing(id), format!("{words}, and are published when that works"));
                self.tell();
                let now = self.clock.now();
                if let Some(later) = self.publishing.later.get_mut(&id) {
                    later.at = now + later.wait;
                    later.wait = (later.wait * 2).min(AGAIN_AT_MOST);
                }
                if let Some((finish, _)) = self.publishing.first.remove(&id) {
                    self.file_unpublished(finish, &mut refused);
                }
            }
        }
        self.refuse(refused);
        self.tell();
    }

    /// It owes nothing any more.
    pub(super) fn is_published(&mut self, id: JobId) {
        if let Some(later) = self.publishing.later.remove(&id) {
            self.troubles.is_well(About::Publishing(id));
            unpublished::forget(&self.ground, later.dir.as_str());
        }
    }

    fn file_unpublished(&mut self, finish: Box<Finish>, refused: &mut Vec<(Op, Errno)>) {
        let (id, day) = (finish.record.id, finish.day());
        if let Err(error) = unpublished::note(&self.ground, &day, finish.dir.as_str()) {
            return refused.push((Op::Finish(finish), error));
        }
        let Some(into) = finish.record.route.publish.clone() else { return self.file(finish, refused) };
        let (name, dir) = (finish.record.item_name(), finish.dir.clone());
        let before = refused.len();
        self.file(finish, refused);
        if refused.len() == before {
            let later = Later { name, into, dir, day, at: self.clock.now() + AGAIN, wait: AGAIN * 2 };
            self.publishing.later.insert(id, later);
        }
    }

    /// Files those that have waited long enough, and orders what is to be tried again.
    pub(super) fn go_on_publishing(&mut self, now: Moment) {
        if self.publishing.due().is_none_or(|at| at > now) {
            return;
        }
        let mut refused = Vec::new();
        let slow: Vec<_> = self.publishing.first.extract_if(|_, (_, until)| *until <= now).collect();
        for (id, (finish, _)) in slow {
            let words = format!(
                "the outputs of {} are still being published: they are large, or the folder's file system is slow or hangs",
                finish.dir
            );
            self.troubles.is_wrong(About::Publishing(id), words);
            self.tell();
            self.file_unpublished(finish, &mut refused);
        }
        let due = |(id, later): (&JobId, &Later)| {
            (later.at <= now && !self.publishing.under_way.contains(id))
                .then(|| (*id, later.day.clone(), later.dir.clone()))
        };
        let due: Vec<_> = self.publishing.later.iter().filter_map(due).collect();
        for (id, day, dir) in due {
            match self.open_unpublished(&day, &dir) {
                Ok(Some(job)) => {
                    let Some(later) = self.publishing.later.get(&id) else { continue };
                    let order = Order { id, name: later.name.clone(), job, into: later.into.clone() };
                    if let Err(error) = self.order(order) {
                        self.published((id, Err(format!("cannot publish outputs: {error}"))));
                    }
                }
                Ok(None) => self.is_published(id),
                Err(error) => self.published((id, Err(format!("the outputs of {dir} can't be read: {error}")))),
            }
        }
        self.refuse(refused);
        self.tell();
    }

    /// Waits for what is under way, as long as anything moves; the rest is for the next start.
    pub(super) fn end_publishing(&mut self) {
        self.publishing.publishers.clear();
        let mut seen = self.publishing.progress.load(Ordering::Relaxed);
        while !self.publishing.under_way.is_empty() || !self.publishing.words.is_empty() {
            match self.publishing.words.recv_timeout(PATIENCE) {
                Ok(word) => self.published(word),
                Err(_) => {
                    let moved = self.publishing.progress.load(Ordering::Relaxed);
                    if std::mem::replace(&mut seen, moved) == moved {
                        break;
                    }
                }
            }
        }
        let mut refused = Vec::new();
        for (_, (finish, _)) in std::mem::take(&mut self.publishing.first) {
            self.file_unpublished(finish, &mut refused);
        }
        self.refuse(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::claim::Claim;
    use super::super::super::tests::Place;
    use super::super::super::{Answer, Tally};
    use super::*;
    use crate::health::{Check, Condition, What};
    use crate::item::{Ending, JobRecord, Outcome};
    use crate::units::Clock;

    #[test]
    fn a_folder_that_hangs_keeps_no_job_from_its_place() {
        let place = Place::new();
        let ground = Arc::new(place.ground());
        let mut candidate = place.drop_file("a", "x");
        Arc::make_mut(&mut candidate.route).publish = Some(place.root.path().join("published"));
        let folder = Arc::new(record::open_dir(rustix::fs::CWD, place.root.inbox()).unwrap());
        let id = JobId(ulid::Ulid::generate());
        let mut claim = Claim::new(&ground, folder, id, candidate, false);
        claim.carry_out(&ground).unwrap();
        let job = claim.into_job();
        std::fs::write(place.root.claimed().join(job.dir.as_str()).join("out/x"), "1").unwrap();
        let ending = Ending { outcome: Outcome::Done, reason: None, message: None, result: None };
        let mut finish = Box::new(Finish::new(Arc::new(JobRecord::clone(&job.record)), ending));
        finish.stage(&ground).unwrap();
        finish.name(&ground).unwrap();
        finish.commit();
        let day = finish.day();

        let (outbox, answers) = crossbeam_channel::unbounded();
        let mut desk = Desk::new(ground.clone(), Clock::start(), outbox, Arc::new(Tally::default())).unwrap();
        // Ordered from a publisher that says nothing.
        desk.publishing.under_way.insert(id);
        assert!(desk.publish_first(finish).unwrap().is_none());
        let now = desk.clock.now();
        desk.go_on_publishing(now);
        assert!(answers.try_recv().is_err(), "it has its time");
        desk.go_on_publishing(now + PATIENCE + Duration::from_secs(1));
        let said = |expected| {
            let health =
                answers.try_iter().filter_map(|it| if let Answer::Health(check) = it { Some(check) } else { None });
            let last = health.filter(|check: &Check| check.what == What::Spool).last().map(|check| check.state);
            assert_eq!(last, Some(expected));
        };
        said(Condition::Degraded);
        let filed = place.root.path().join(unpublished::place(&day, job.dir.as_str()));
        assert!(filed.join("result.json").is_file() && filed.join("publish.tmp").is_file());
        assert_eq!(unpublished::list(&ground).unwrap().len(), 1);
        assert!(desk.publishing.is_owed(id) && desk.publishing.due().is_none());
        desk.published((id, Ok(())));
        said(Condition::Ok);
        assert!(unpublished::list(&ground).unwrap().is_empty() && !desk.publishing.is_owed(id));
    }
}
