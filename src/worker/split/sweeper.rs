//! Ends what the process of a batch left behind as soon as the batch has ended: batches of the same item run beside it, so
//! each has a mark of its own in its environment.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use ulid::Ulid;

use crate::item::JobId;
use crate::proc::{Owner, ProcStat};
use crate::split::Keeper;
use crate::worker::strays::{self, Registered, Trail};

/// For one batch after another.
#[derive(Debug)]
pub(super) struct Sweeper {
    owner: Owner,
    /// The job's.
    dir: PathBuf,
    grace: Duration,
    /// The process, while it is somebody's.
    leader: Option<(i32, u64, Registered)>,
}

impl Sweeper {
    pub(super) fn new(job: JobId, dir: PathBuf, grace: Duration) -> Sweeper {
        Sweeper { owner: job.into(), dir, grace, leader: None }
    }
}

impl Keeper for Sweeper {
    fn begin(&mut self) -> (OsString, OsString) {
        let (owner, mark) = fresh(self.owner.job);
        self.owner = owner;
        mark
    }

    fn started(&mut self, leader: i32) {
        // It isn't waited for yet, so it is there even when it has ended.
        let start_ticks = ProcStat::read(leader).map_or(0, |stat| stat.start_ticks);
        self.leader = Some((leader, start_ticks, Registered::new(leader, self.owner, start_ticks)));
    }

    fn ended(&mut self) {
        let Some((leader, start_ticks, registered)) = self.leader.take() else { return };
        strays::end(
            &Trail { owner: self.owner, leader: Some((leader, start_ticks)), dir: Some(&self.dir) },
            self.grace,
        );
        drop(registered);
    }
}

/// A run of a job that no other is, and what stands for it in the environment.
pub(super) fn fresh(job: JobId) -> (Owner, (OsString, OsString)) {
    let run = Ulid::generate();
    (Owner { job, run: Some(run) }, (Owner::RUN.into(), run.to_string().into()))
}
