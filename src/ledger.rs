//! The ledger: an SQLite index of jobs and attempts, one writer thread, grouped commits. Never the truth: delete it and
//! the next start rebuilds what the directories tell.

use std::path::PathBuf;
use std::sync::Arc;

use crate::item::{JobRecord, ResultRecord};

/// What the director tells the ledger. The queue is bounded; when it is full the entry is dropped, health says so, and
/// the next reconciliation mends it.
#[derive(Clone, Debug)]
pub enum Entry {
    Claimed {
        record: Arc<JobRecord>,
        dir: PathBuf,
    },
    /// An attempt began or ended, or the job waits for its next one; `state` is the word of `list`.
    Changed {
        record: Arc<JobRecord>,
        state: &'static str,
    },
    Ended {
        record: Arc<JobRecord>,
        result: Arc<ResultRecord>,
        dir: PathBuf,
    },
    /// The directories were changed by others: look again.
    Reconcile,
    Stop,
}
