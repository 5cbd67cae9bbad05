//! Ended jobs: what can be asked of them, and who answers. The ledger answers fast, the directories always.

use std::io;

use jiff::Timestamp;

use super::view::Listed;
use crate::item::JobId;

/// Which rows of `list` are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// Words of `list`; empty = every state.
    pub states: Vec<String>,
    pub route: Option<String>,
    /// Part of the name as it is shown; ASCII letters in either case.
    pub name: Option<String>,
    /// Ended at this time or later.
    pub since: Option<Timestamp>,
    /// Ended before this time: nothing that hasn't ended.
    pub until: Option<Timestamp>,
    /// Only what stands behind this job in the order of [`Ended::list`]: the last row of the page before.
    pub after: Option<JobId>,
    /// None: all.
    pub limit: Option<usize>,
}

impl Query {
    /// The words for ended jobs.
    pub const ENDED: [&'static str; 3] = ["done", "failed", "cancelled"];

    /// Every word that `--state` knows.
    pub const STATES: [&'static str; 10] =
        ["arriving", "ready", "held", "ignored", "claimed", "running", "retrying", "done", "failed", "cancelled"];

    pub fn wants_state(&self, state: &str) -> bool {
        self.states.is_empty() || self.states.iter().any(|wanted| wanted == state)
    }

    /// Whether any ended job could be wanted.
    pub fn wants_ended(&self) -> bool {
        Self::ENDED.iter().any(|state| self.wants_state(state))
    }

    /// Whether anything that hasn't ended could be wanted.
    pub fn wants_live(&self) -> bool {
        self.states.is_empty() || self.states.iter().any(|state| !Self::ENDED.contains(&state.as_str()))
    }

    /// Whether a row belongs to the answer, place and number apart.
    pub fn admits(&self, row: &Listed) -> bool {
        self.wants_state(&row.state)
            && self.route.as_ref().is_none_or(|route| row.route.as_ref() == Some(route))
            && self.name.as_ref().is_none_or(|part| contains(&row.name, part))
            && self.since.is_none_or(|since| row.finished_at.is_none_or(|at| at >= since))
            && self.until.is_none_or(|until| row.finished_at.is_some_and(|at| at < until))
    }
}

/// As SQLite's `instr(lower(…), lower(…))`.
fn contains(name: &str, part: &str) -> bool {
    name.to_ascii_lowercase().contains(&part.to_ascii_lowercase())
}

/// Answers questions about jobs that have ended. Called from threads that may block.
pub trait Ended: Send + Sync {
    /// Newest first: by the day they ended, then by their ids or the moment they ended.
    fn list(&self, query: &Query) -> io::Result<Vec<Listed>>;

    /// Every ended job that `text` could mean: see [`super::reference`]. At most [`FOUND`] of them.
    fn find(&self, text: &str) -> io::Result<Vec<Listed>>;

    /// The past as the ledger tells it; none while it can't tell all.
    fn history(&self) -> Option<crate::ledger::History> {
        None
    }
}

/// More candidates than this make a reference no clearer.
pub const FOUND: usize = 20;
