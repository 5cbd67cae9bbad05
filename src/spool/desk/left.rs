//! Jobs that the start had to leave in `claimed/`: a process of an earlier director that hangs in the kernel, or a
//! directory that couldn't be read. Looked at again and again, on a thread of its own since a sweep of all processes
//! takes its time; what is free then is taken up.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;

use super::super::orphans::{self, Alive};
use super::super::recover::{self, Left};
use super::super::shelves;
use super::super::trouble::About;
use super::super::{Answer, Recovered};
use super::{Desk, Op};
use crate::units::Moment;

/// The wait before the first look; doubles.
const LOOK_AFTER: Duration = Duration::from_secs(1);
const LOOK_AT_MOST: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(super) struct LeftJobs {
    jobs: Vec<Left>,
    /// As it was last told.
    told: u64,
    look_at: Moment,
    wait: Duration,
    /// Someone is looking.
    looking: bool,
    outbox: Sender<Alive>,
    pub(super) looks: Receiver<Alive>,
}

impl Default for LeftJobs {
    fn default() -> LeftJobs {
        let (outbox, looks) = crossbeam_channel::bounded(1);
        let (jobs, look_at) = (Vec::new(), Moment::default());
        LeftJobs { jobs, told: 0, look_at, wait: LOOK_AFTER, looking: false, outbox, looks }
    }
}

impl LeftJobs {
    pub(super) fn due(&self) -> Option<Moment> {
        (!self.jobs.is_empty() && !self.looking).then_some(self.look_at)
    }
}

impl Desk {
    pub(super) fn leave(&mut self, left: Vec<Left>) {
        for job in &left {
            self.troubles.is_wrong(About::Left(job.suspect.id), job.why.clone());
        }
        self.left.told = left.len() as u64;
        self.left.jobs = left;
        self.left.look_at = self.clock.now() + self.left.wait;
    }

    pub(super) fn look_at_left(&mut self, now: Moment) {
        if self.left.due().is_none_or(|at| at > now) {
            return;
        }
        let (ground, outbox) = (self.ground.clone(), self.left.outbox.clone());
        let suspects: Vec<_> = self.left.jobs.iter().map(|job| job.suspect.clone()).collect();
        // Whoever is left waiting in the kernel by a hung process's files answers late or never; the job waits as well.
        let look = move || drop(outbox.send(orphans::look_again(&ground, &suspects)));
        match std::thread::Builder::new().name("gamdok-orphans".to_owned()).spawn(look) {
            Ok(_) => self.left.looking = true,
            Err(error) => {
                tracing::warn!(%error, "cannot look after the processes of an earlier director");
                self.left.look_at = now + self.left.wait;
            }
        }
    }

    pub(super) fn looked(&mut self, alive: Alive) {
        let mut found = Recovered::default();
        for mut job in std::mem::take(&mut self.left.jobs) {
            job.why = match alive.get(&job.suspect.id) {
                Some(pids) => recover::outlived(&job.suspect.dir, pids),
                None => match recover::take_up(&self.ground, &job.suspect, &mut found) {
                    Ok(()) => {
                        self.troubles.is_well(About::Left(job.suspect.id));
                        continue;
                    }
                    Err(Errno::NOENT) if !shelves::is_at(self.ground.claimed(), job.suspect.dir.as_str()) => {
                        tracing::error!(job = %job.suspect.dir, "a job of an earlier director is gone from claimed/");
                        self.troubles.is_well(About::Left(job.suspect.id));
                        continue;
                    }
                    Err(error) => recover::not_taken_up(&job.suspect.dir, error),
                },
            };
            self.troubles.is_wrong(About::Left(job.suspect.id), job.why.clone());
            self.left.jobs.push(job);
        }
        found.jobs.into_iter().for_each(|job| self.answer(Answer::TakenUp(Box::new(job))));
        if !found.backlog.ends.is_empty() {
            self.stalled.extend(found.backlog.ends.into_iter().map(|finish| Op::Finish(Box::new(finish))));
            self.retry_at = self.clock.now();
        }
        self.left.looking = false;
        self.left.wait = (self.left.wait * 2).min(LOOK_AT_MOST);
        self.left.look_at = self.clock.now() + self.left.wait;
        self.tell_left(0);
        self.tell();
    }

    /// Tells the number of those left, and of those whose outcome can't be written.
    pub(super) fn tell_left(&mut self, unfiled: usize) {
        let left = (self.left.jobs.len() + unfiled) as u64;
        if std::mem::replace(&mut self.left.told, left) != left {
            self.answer(Answer::Left(left));
        }
    }

    /// What isn't ours may have been moved away.
    pub(super) fn look_at_strangers(&mut self) {
        if self.troubles.has(About::Strangers)
            && let Ok((_, strangers)) = recover::list(&self.ground)
        {
            match strangers {
                Some(words) => self.troubles.is_wrong(About::Strangers, words),
                None => self.troubles.is_well(About::Strangers),
            }
            self.tell();
        }
    }
}
