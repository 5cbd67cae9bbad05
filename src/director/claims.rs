//! From the inbox into `claimed/`, and out of it into `done/` and `failed/`: what the scanner offers and the spool answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::{CLAIMS_PAUSE, Director};
use crate::api::view::Listed;
use crate::config::Route;
use crate::fault;
use crate::health::{Check, Condition, What};
use crate::inbox::{self, Candidate, CandidateKey, HeldFor, Notice};
use crate::item::{Attempt, Ending, JobId, JobRecord, Outcome, Reason, ResultRecord, Stage, Step, StopWhy};
use crate::ledger;
use crate::notifier;
use crate::spool::{self, ClaimedJob, NotClaimed};
use crate::state::{Job, Phase};

/// How long a refused item is held before it is offered again.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// What the scanner offered and needn't any more.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) key: CandidateKey,
    pub(super) route: Arc<Route>,
}

impl Director {
    pub(super) fn on_inbox(&mut self, notice: Notice) {
        match notice {
            Notice::Offered(candidates) => {
                for candidate in candidates {
                    debug!(item = candidate.key.name.escaped(), route = candidate.route.name, "ready");
                    self.state.offer(candidate);
                }
            }
            Notice::Withdrawn(keys) => {
                for key in &keys {
                    self.state.take_offer(key);
                }
            }
            Notice::Missing(items) => {
                for (key, inode) in items {
                    // A claim moves it away, and says itself what became of it.
                    if !self.is_being_claimed(&key) {
                        self.guest.news.withdrawn(&key, inode);
                    }
                }
            }
            Notice::Counts(counts) => {
                let news = (counts.taken.saturating_sub(self.heard) as usize).min(self.unheard.len());
                self.unheard.drain(..news);
                self.heard = counts.taken;
                self.counts = counts;
            }
            Notice::Health(checks) => {
                for check in checks {
                    self.set_health(check);
                }
            }
        }
    }

    pub(super) fn claim(&mut self, key: &CandidateKey) {
        if let Some(candidate) = self.state.take_offer(key) {
            self.claim_candidate(candidate, false);
        }
    }

    /// Begins a claim; `cancelled` ones are claimed only to be filed.
    pub(super) fn claim_candidate(&mut self, candidate: Candidate, cancelled: bool) -> JobId {
        let id = self.new_id();
        let record = provisional(id, &candidate, cancelled);
        self.state.insert(Job::new(Arc::new(record), Stage::Claiming));
        self.to_spool(spool::Task::Claim { id, candidate, cancelled });
        id
    }

    pub(super) fn new_id(&mut self) -> JobId {
        match self.ids.generate() {
            Ok(id) => JobId(id),
            // 2^80 ids within one millisecond are used up: any later one serves.
            Err(overflow) => JobId(overflow.commit_overflow_increment()),
        }
    }

    pub(super) fn refuse(&mut self, key: &CandidateKey, reason: String) {
        if self.state.take_offer(key).is_some() {
            debug!(item = key.name.escaped(), reason, "held");
            let why = HeldFor::NoDevice;
            self.to_scanner(inbox::Answer::Refused { key: key.clone(), why, reason, retry_in: REFUSED_FOR });
        }
    }

    pub(super) fn on_spool(&mut self, answer: spool::Answer) {
        match answer {
            spool::Answer::Claimed(job) => self.on_claimed(*job),
            spool::Answer::NotClaimed { id, candidate, why } => self.on_not_claimed(id, candidate, why),
            spool::Answer::Prepared { id } => self.on_prepared(id),
            spool::Answer::Finished { record, result, dir } => {
                self.step(record.id, Step::Filed);
                self.filed += 1;
                let counters = result.counters.clone();
                let number = self.filed(record, *result, dir);
                self.note_ended(number, &counters);
            }
            // Its counters come with the ledger's sums, whoever tells the ledger first: this, or the directories.
            spool::Answer::Filed { record, result, dir } => {
                self.filed(record, *result, dir);
            }
            spool::Answer::Saved { id } => debug!(job = %id, "saved"),
            spool::Answer::TakenUp(job) => {
                info!(job = %job.dir, "taken up after all");
                self.adopt(*job);
            }
            spool::Answer::Left(jobs) => self.summary.left = jobs,
            spool::Answer::Revived { id, outcome } => self.on_revived(id, outcome),
            // What changed the count without an outcome changed what the ledger is an index of.
            spool::Answer::Counted => {
                self.to_ledger(ledger::Entry::Reconcile);
            }
            spool::Answer::Cordons(outcome) => self.on_cordons(outcome),
            spool::Answer::Root { is_there } => self.state.may_start = is_there,
            spool::Answer::Health(check) => self.on_spool_health(check),
        }
    }

    /// An item has its outcome, in its place. Answers the number of the entry that tells the ledger.
    fn filed(&mut self, record: Arc<JobRecord>, result: ResultRecord, dir: PathBuf) -> u64 {
        match result.outcome {
            Outcome::Done => self.summary.done += 1,
            Outcome::Failed => self.summary.failed += 1,
            Outcome::Cancelled => self.summary.cancelled += 1,
        }
        // One that was never a route's has none.
        let route = result.route.as_deref().unwrap_or_default();
        self.metrics.routes.of(route).count_end(result.outcome, result.reason);
        let reason = result.reason.map(Reason::as_str);
        let why = result.message.as_deref().map(crate::item::shown);
        match result.outcome {
            Outcome::Done => info!(job = %record.dir(), attempts = result.attempts.len(), "done"),
            _ => {
                warn!(job = %record.dir(), reason, why, attempts = result.attempts.len(), "{}", result.outcome.as_str())
            }
        }
        self.note_pace(&result);
        self.guest.news.ended(&result, &dir);
        if let Some(what) = notifier::What::of(&result, record.dir().to_string()) {
            self.notifier.tell(what);
        }
        let folder = &record.folder;
        let job = record.dir();
        self.board.ended(|| Listed { folder: folder.clone(), ..Listed::ended(&result, job.as_str()) });
        self.to_ledger(ledger::Entry::Ended { record, result: Arc::new(result), dir })
    }

    fn on_spool_health(&mut self, check: Check) {
        if check.what == What::Space || check.what == What::Spool {
            self.set_health(check);
            self.state.may_claim = !self.has_nowhere_to_claim() && self.claims_resume.is_none();
            return;
        }
        self.set_health(check);
    }

    /// Whether there is nowhere to claim to. The spool tells when that is over.
    pub(super) fn has_nowhere_to_claim(&self) -> bool {
        let has_failed = |what| self.health.get(what).is_some_and(|check| check.state == Condition::Failed);
        [What::Space, What::Spool].iter().any(has_failed)
    }

    fn on_claimed(&mut self, claimed: ClaimedJob) {
        let id = claimed.record.id;
        self.claims_paused = None;
        let key = CandidateKey { folder: claimed.record.folder.clone(), name: claimed.record.item_name() };
        self.guest.news.claimed(&key, &claimed.record);
        let route = claimed.record.route.clone();
        self.metrics.routes.of(&route.name).claimed.fetch_add(1, Ordering::Relaxed);
        self.taken.push(Taken { key, route });
        info!(job = %claimed.dir, route = claimed.record.route.name, item = claimed.record.name, "claimed");
        let record = claimed.record;
        self.state.rewrite(id, |known| *known = (*record).clone());
        self.step(id, Step::Claimed);
        self.to_ledger(ledger::Entry::Claimed {
            record: record.clone(),
            dir: self.root.claimed().join(claimed.dir.as_str()),
        });
        if record.cancelled || self.cancelling.remove(&id) {
            self.commit(id, cancelled_ending());
        }
    }

    fn is_being_claimed(&self, key: &CandidateKey) -> bool {
        let claiming = self.state.jobs().filter(|job| matches!(job.stage, Stage::Claiming));
        claiming.map(|job| &job.record).any(|record| record.folder == key.folder && record.item_name() == key.name)
    }

    fn on_not_claimed(&mut self, id: JobId, candidate: Candidate, why: NotClaimed) {
        self.step(id, Step::Withdraw);
        self.cancelling.remove(&id);
        let key = candidate.key.clone();
        let item = key.name.escaped();
        if !matches!(why, NotClaimed::Gone) {
            // It lies there again, should the scanner have missed it meanwhile.
            self.guest.news.expect_again(&key);
        }
        match why {
            NotClaimed::Gone => {
                debug!(item, "withdrawn before the claim");
                self.guest.news.withdrawn(&key, candidate.signature.ino);
                self.taken.push(Taken { key, route: candidate.route });
            }
            NotClaimed::Changed => {
                debug!(item, "changed before the claim; it settles again");
                self.to_scanner(inbox::Answer::Unsettled(key));
            }
            NotClaimed::Refused(reason) => {
                warn!(item, reason, "can't be claimed");
                let why = HeldFor::Unclaimable;
                self.to_scanner(inbox::Answer::Refused { key, why, reason, retry_in: REFUSED_FOR });
            }
            NotClaimed::NoRoom(reason) => {
                if self.claims_paused.as_ref() != Some(&reason) {
                    warn!(reason, "claims pause");
                    self.claims_paused = Some(reason);
                }
                self.state.offer_first(candidate);
                self.state.may_claim = false;
                self.claims_resume = Some(self.state.now + CLAIMS_PAUSE);
            }
        }
    }

    /// Takes in a job that lies in `claimed/` already. Answers the number of the entry that tells the ledger.
    pub(super) fn adopt(&mut self, claimed: ClaimedJob) -> u64 {
        let record = claimed.record;
        let next = match record.attempts.last() {
            // Made durable, never started: the same attempt.
            Some(last) if last.ended_at.is_none() => last.n,
            Some(last) => last.n + 1,
            None => 1,
        };
        let id = record.id;
        let number = self.to_ledger(ledger::Entry::Claimed {
            record: record.clone(),
            dir: self.root.claimed().join(claimed.dir.as_str()),
        });
        let rest = fault::rest(&record, Timestamp::now());
        let stage = match rest {
            Duration::ZERO => Stage::Claimed { next, since: self.state.now },
            rest => Stage::Retrying { next, at: self.state.now + rest },
        };
        let cancelled = record.cancelled;
        self.state.insert(Job::new(record, stage));
        if cancelled {
            self.commit(id, cancelled_ending());
        }
        number
    }

    /// Hands a job's ending to the spool.
    pub(super) fn commit(&mut self, id: JobId, ending: Ending) {
        self.step(id, Step::Commit { outcome: ending.outcome });
        // A planned attempt that never began is no attempt.
        let record = self.state.rewrite(id, |record| record.attempts.retain(began));
        if let Some(record) = record {
            self.to_spool(spool::Task::Finish { record, ending });
        }
    }

    pub(super) fn cancel_job(&mut self, id: JobId) -> Result<(), String> {
        let Some(job) = self.state.job(id) else { return Err("it isn't known here; has it ended already?".to_owned()) };
        match &job.stage {
            Stage::Claiming => {
                self.cancelling.insert(id);
            }
            Stage::Claimed { .. } | Stage::Retrying { .. } => self.commit(id, cancelled_ending()),
            Stage::Preparing { .. } | Stage::Running { .. } | Stage::Stopping { .. } => {
                self.stop(id, StopWhy::Cancelled)
            }
            Stage::Committing { .. } | Stage::Ended { .. } | Stage::Withdrawn => {
                return Err("it has ended already".to_owned());
            }
        }
        Ok(())
    }

    pub(super) fn is_accepting(&self) -> bool {
        matches!(self.state.phase, Phase::Running | Phase::Paused)
    }
}

/// Whether an attempt's process may ever have run.
fn began(attempt: &Attempt) -> bool {
    attempt.started_at.is_some() || attempt.ended_at.is_some()
}

pub(super) fn cancelled_ending() -> Ending {
    Ending { outcome: Outcome::Cancelled, reason: Some(Reason::Cancelled), message: None, result: None }
}

/// What is known of a job while its claim is under way; the spool's own record replaces it.
fn provisional(id: JobId, candidate: &Candidate, cancelled: bool) -> JobRecord {
    JobRecord {
        id,
        name: candidate.key.name.escaped(),
        name_b64: candidate.key.name.base64(),
        folder: candidate.key.folder.clone(),
        kind: candidate.kind,
        route: candidate.route.clone(),
        arrived_at: Some(candidate.arrived_at),
        claimed_at: Timestamp::now(),
        boot_id: String::new(),
        signature: Some(candidate.signature),
        attempts: Vec::new(),
        avoid: Vec::new(),
        cancelled,
        revived_after: 0,
        batch_limit: None,
        counters: Default::default(),
    }
}
