//! A finish: the result is staged, made durable under its name (the commit point), and then the whole directory is moved
//! to `done/` or `failed/`. Invariant: a result is named only when the outputs it lists are durable, or in the same round
//! when it lists none; after the commit everything can be done again from what lies there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::io::Errno;

use super::claim::sync_at;
use super::ground::Ground;
use super::record::{self, RESULT, RESULT_TMP};
use super::{Answer, outputs, publish};
use crate::item::{Ending, JobDir, JobRecord, Outcome, Reason, ResultRecord};

/// A job on its way out.
#[derive(Debug)]
pub(super) struct Finish {
    pub(super) record: Arc<JobRecord>,
    pub(super) dir: JobDir,
    ending: Ending,
    /// No route was ever known: the record's is a stand-in.
    routeless: bool,
    step: Step,
    result: Option<Box<ResultRecord>>,
    job: Option<OwnedFd>,
    lists_outputs: bool,
    /// The name is ours already, from a round that failed.
    named: bool,
    /// The director doesn't know the job.
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Fresh,
    /// `result.json.tmp` is whole.
    Staged,
    /// It has its name; the next round makes that durable.
    Named,
    /// Durable.
    Committed,
}

impl Finish {
    pub(super) fn new(record: Arc<JobRecord>, ending: Ending) -> Finish {
        let dir = record.dir();
        Finish {
            record,
            dir,
            ending,
            routeless: false,
            step: Step::Fresh,
            result: None,
            job: None,
            lists_outputs: false,
            named: false,
            quiet: false,
        }
    }

    /// For a job whose record can't be read.
    pub(super) fn routeless(record: Arc<JobRecord>, dir: JobDir, ending: Ending) -> Finish {
        Finish { dir, routeless: true, quiet: true, ..Finish::new(record, ending) }
    }

    /// One whose result was found committed.
    pub(super) fn committed(record: Arc<JobRecord>, dir: JobDir, result: ResultRecord) -> Finish {
        let ending = Ending { outcome: result.outcome, reason: result.reason, message: None, result: None };
        let result = Some(Box::new(result));
        Finish { dir, step: Step::Committed, result, quiet: true, ..Finish::new(record, ending) }
    }

    /// Decided by recovery: the director doesn't know the job.
    pub(super) fn quietly(self) -> Finish {
        Finish { quiet: true, ..self }
    }

    /// Nobody waits for its answer.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    pub(super) fn step(&self) -> Step {
        self.step
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.result.as_ref().map_or(self.ending.outcome, |result| result.outcome)
    }

    /// The day of its `finished_at`.
    pub(super) fn day(&self) -> String {
        let at = self.result.as_ref().map_or_else(Timestamp::now, |result| result.finished_at);
        at.strftime("%Y-%m-%d").to_string()
    }

    /// What failed is begun again from the start: nothing written before a failed sync is believed.
    pub(super) fn reset(&mut self) {
        if self.step != Step::Committed {
            self.step = Step::Fresh;
        }
    }

    fn job(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.job.as_ref().map(|job| job.as_fd()).ok_or(Errno::BADF)
    }

    /// Lists the outputs and writes the result beside its name.
    pub(super) fn stage(&mut self, ground: &Ground) -> Result<(), Errno> {
        ground.faults.at("finish.begun")?;
        self.job = Some(ground.open_job(&self.record, self.dir.as_str())?);
        let outputs = outputs::list(self.job()?)?;
        self.lists_outputs = !outputs.is_empty();
        let result = self.write_up(outputs);
        let json = record::json(&result)?;
        let publishes = self.lists_outputs && result.outcome == Outcome::Done && self.record.route.publish.is_some();
        if publishes {
            publish::intend(self.job()?)?;
        }
        record::write(self.job()?, RESULT_TMP, &json)?;
        self.result = Some(Box::new(result));
        ground.faults.at("finish.staged")?;
        self.step = Step::Staged;
        Ok(())
    }

    pub(super) fn write_up(&self, outputs: outputs::Outputs) -> ResultRecord {
        let record = &self.record;
        let message = match (&self.ending.message, outputs.note()) {
            (Some(message), Some(note)) => Some(format!("{message} ({note})")),
            (message, note) => message.clone().or(note),
        };
        // The attempt that was planned and never started is nobody's history.
        let attempts = record.attempts.iter().filter(|attempt| attempt.ended_at.is_some()).cloned().collect();
        ResultRecord {
            id: record.id,
            name: record.name.clone(),
            name_b64: record.name_b64.clone(),
            route: (!self.routeless && !record.route.name.is_empty()).then(|| record.route.name.clone()),
            outcome: self.ending.outcome,
            reason: self.ending.reason,
            message,
            arrived_at: record.arrived_at,
            claimed_at: (!self.routeless).then_some(record.claimed_at),
            finished_at: Timestamp::now(),
            attempts,
            outputs: outputs.listed,
            result: self.ending.result.clone(),
            counters: record.counters.clone(),
        }
    }

    /// Whether the result may get its name before the round: it speaks of no output that isn't durable yet.
    pub(super) fn may_be_named_early(&self) -> bool {
        self.step == Step::Staged && !self.lists_outputs
    }

    /// Gives the result its name.
    pub(super) fn name(&mut self, ground: &Ground) -> Result<(), Errno> {
        let job = self.job()?;
        if self.named {
            rustix::fs::renameat(job, RESULT_TMP, job, RESULT)?;
        } else {
            match record::rename_new(job, RESULT_TMP, job, RESULT) {
                Err(Errno::EXIST) => {
                    // Only this thread writes results, so it is the worker's own idea of one.
                    tracing::warn!(job = self.dir.as_str(), "a result.json that isn't the director's is set aside");
                    record::keep_result(job)?;
                    record::rename_new(job, RESULT_TMP, job, RESULT)?;
                }
                other => other?,
            }
            self.named = true;
        }
        ground.faults.at("finish.named")?;
        self.step = Step::Named;
        Ok(())
    }

    /// One by one: outputs, result, its name, each durable before the next.
    pub(super) fn sync_each(&mut self, ground: &Ground) -> Result<(), Errno> {
        if self.step == Step::Staged || self.step == Step::Named {
            if let Err(error) = outputs::sync(self.job()?) {
                self.lose_outputs(error);
                return Err(error);
            }
            if let Some(attempt) = self.record.attempts.last() {
                match sync_at(self.job()?, &format!("attempt-{}.log", attempt.n)) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    // The log is a comfort; the outcome doesn't hang on it.
                    Err(error) => tracing::warn!(job = self.dir.as_str(), %error, "the log may not be on disk"),
                }
            }
            ground.faults.at("finish.outputs-synced")?;
        }
        if self.step == Step::Staged {
            sync_at(self.job()?, RESULT_TMP)?;
            self.name(ground)?;
        } else {
            sync_at(self.job()?, RESULT)?;
        }
        rustix::fs::fsync(self.job()?)
    }

    /// The kernel could not write an output out and may have dropped it: what the item claims to have made isn't there.
    fn lose_outputs(&mut self, error: Errno) {
        if self.ending.outcome == Outcome::Done && matches!(error, Errno::IO | Errno::NOSPC | Errno::DQUOT) {
            let message = format!("the outputs could not be written to disk: {error}");
            self.ending =
                Ending { outcome: Outcome::Failed, reason: Some(Reason::Io), message: Some(message), result: None };
        }
    }

    pub(super) fn commit(&mut self) {
        self.step = Step::Committed;
    }

    /// What the publisher needs, when the outputs are to be published too.
    pub(super) fn to_publish(&self, ground: &Ground) -> Result<Option<publish::Order>, Errno> {
        let Some(into) = &self.record.route.publish else { return Ok(None) };
        if self.outcome() != Outcome::Done || self.routeless {
            return Ok(None);
        }
        let job = match record::open_dir(ground.claimed(), self.dir.as_str()) {
            Ok(job) => job,
            // Moved already, by a try whose last step failed.
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        if !publish::is_intended(&job)? {
            return Ok(None);
        }
        Ok(Some(publish::Order { id: self.record.id, name: self.record.item_name(), job, into: into.clone() }))
    }

    pub(super) fn into_answer(self, dir: PathBuf) -> Option<Answer> {
        let result = self.result?;
        let record = self.record;
        Some(if self.quiet { Answer::Filed { record, result, dir } } else { Answer::Finished { record, result, dir } })
    }
}
