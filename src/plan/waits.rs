//! Why something isn't running yet, in words for people: the planner's own rules, asked after a plan was made.

use super::floor::{Floor, Look, Need, until};
use super::{Decision, Planner, refusal};
use crate::devices::Snapshot;
use crate::inbox::Candidate;
use crate::item::{JobId, Stage};
use crate::state::{Demand, Job, Phase, Pool, State};

/// The answers for one moment; asking for many jobs makes one plan.
pub struct Waits<'a> {
    planner: Planner<'a>,
}

impl<'a> Waits<'a> {
    pub fn new(state: &'a State, snapshot: &'a Snapshot) -> Waits<'a> {
        let mut planner = Planner::new(state, snapshot, &state.due());
        planner.start_waiting();
        Waits { planner }
    }

    /// Why this job doesn't run; for one that runs, that it does.
    pub fn job(&self, job: &Job) -> String {
        let Planner { state, floor, .. } = &self.planner;
        match &job.stage {
            Stage::Claiming | Stage::Preparing { .. } if !self.planner.state.may_claim => {
                "nothing can be written at present: see the health of spool and space".to_owned()
            }
            Stage::Claiming => "it is being claimed".to_owned(),
            Stage::Preparing { .. } => "its attempt is being written down".to_owned(),
            Stage::Running { .. } => "it runs".to_owned(),
            Stage::Stopping { .. } => "it is being stopped".to_owned(),
            Stage::Committing { .. } | Stage::Ended { .. } => "it has ended".to_owned(),
            Stage::Withdrawn => "it was withdrawn".to_owned(),
            Stage::Retrying { next, at } if *at > state.now => {
                format!("waits until its retry in {} (attempt {next})", until(*at, state.now))
            }
            Stage::Claimed { .. } | Stage::Retrying { .. } => {
                let line = job.line();
                let need = Need::of_job(job.record.id, &line, self.planner.snapshot);
                let warm = || self.planner.warm.why(job, state).filter(|_| line.demand.resident);
                self.halted()
                    .or_else(|| self.started(job.record.id))
                    .or_else(warm)
                    .unwrap_or_else(|| self.full_route(&line.demand).unwrap_or_else(|| self.devices(floor, &need)))
            }
        }
    }

    /// Why an item that lies ready in the inbox isn't claimed.
    pub fn offer(&self, offer: &Candidate) -> String {
        let route = &offer.route;
        if let Some(reason) = refusal(route, self.planner.snapshot) {
            return reason;
        }
        if let Some(halted) = self.halted() {
            return halted;
        }
        if !self.planner.state.may_claim {
            return "nothing is claimed at present: see the health of spool and space".to_owned();
        }
        let demand = Demand::of(route);
        if let Some(full) = self.full_route(&demand) {
            return full;
        }
        let need = Need::of(&demand, self.planner.snapshot);
        let ahead = self.planner.ahead.pool.get(&need.pool).copied().unwrap_or(0);
        match (self.planner.floor.place(&need), ahead) {
            (Some(_), _) => "it is next".to_owned(),
            (None, 0) => self.devices(&self.planner.floor, &need),
            (None, 1) => format!("1 item is ahead of it; {}", self.devices(&self.planner.floor, &need)),
            (None, n) => format!("{n} items are ahead of it; {}", self.devices(&self.planner.floor, &need)),
        }
    }

    fn halted(&self) -> Option<String> {
        match self.planner.state.phase {
            Phase::Running if !self.planner.state.may_start => {
                Some("the root isn't at its path: see the health of spool".to_owned())
            }
            Phase::Running => None,
            Phase::Paused => Some("paused".to_owned()),
            Phase::Draining => Some("the director drains: nothing new is started".to_owned()),
            Phase::Stopping => Some("the director is stopping".to_owned()),
        }
    }

    /// What the plan itself does with the job.
    fn started(&self, id: JobId) -> Option<String> {
        let start = |decision: &Decision| match decision {
            Decision::Start { job, .. } | Decision::Warm { job, .. } => *job == id,
            _ => false,
        };
        self.planner.decisions.iter().any(start).then(|| "it is about to start".to_owned())
    }

    fn full_route(&self, demand: &Demand) -> Option<String> {
        let most = demand.max_running?;
        let full = self.planner.running_of(&demand.route) >= most;
        full.then(|| format!("route `{}` already runs its {most} (max_running)", demand.route))
    }

    fn devices(&self, floor: &Floor, need: &Need) -> String {
        // What the backend as a whole says tells more than each of its devices being unknown.
        if need.pool == Pool::Gpu
            && let Some(trouble) = &self.planner.snapshot.trouble
        {
            return format!("the GPUs can't be asked: {trouble}");
        }
        let looked_at = floor.pool(need.pool).filter(|spot| spot.look != Look::Fresh && spot.promised > 0);
        let looked_at: Vec<String> = looked_at.map(|spot| spot.name()).collect();
        match looked_at.is_empty() {
            true => floor.explain(need),
            false => format!("a fresh look at {} is under way", looked_at.join(", ")),
        }
    }
}

/// Why this job doesn't run. For many at once, make one [`Waits`].
pub fn why_waiting(state: &State, snapshot: &Snapshot, job: &Job) -> String {
    Waits::new(state, snapshot).job(job)
}

/// Why an item that lies ready in the inbox isn't claimed.
pub fn why_offer_waits(state: &State, snapshot: &Snapshot, offer: &Candidate) -> String {
    Waits::new(state, snapshot).offer(offer)
}
