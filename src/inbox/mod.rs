//! The inbox: which items lie there, which of them are ready, and which can't be taken and why. Watches, scans, settles.
//! Has never heard of GPUs. Events are hints, the directory is the truth.

mod checks;
mod folder;
mod fsinfo;
mod held;
mod inspect;
mod judging;
mod line;
mod manifest;
mod matching;
mod named;
mod names;
mod places;
mod ready;
mod report;
mod scanner;
pub mod signature;
mod sorting;
#[cfg(test)]
mod tests;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use jiff::Timestamp;

use crate::config::{Inbox as InboxRules, Route};
use crate::item::{ItemKind, ItemName, Signature};
use crate::metrics::Histogram;
use crate::units::{Clock, Moment};

pub use held::HeldFor;
pub(crate) use matching::{first_of_all, is_never_an_item};
pub use named::find;
pub use scanner::start;
pub use sorting::{Sort, Sorting};

/// What the scanner needs to know.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `ROOT/inbox`, absolute.
    pub inbox: PathBuf,
    pub rules: Arc<InboxRules>,
    pub routes: Vec<Arc<Route>>,
    /// Only what lies there at the start counts.
    pub once: bool,
    pub clock: Clock,
    /// `ROOT/.gamdok/root.json`: while it is missing, the inbox isn't what it was.
    pub sentinel: PathBuf,
}

/// The running scanner. Dropping it asks the thread to end, and doesn't wait for one that hangs on a dead mount.
#[derive(Debug)]
pub struct Scanner {
    pub notices: Receiver<Notice>,
    pub answers: Sender<Answer>,
    pub scans: Arc<ScanTimes>,
    beat: Arc<std::sync::atomic::AtomicU64>,
}

/// How long it took to read the intake folders.
#[derive(Debug)]
pub struct ScanTimes {
    pub took: Histogram,
}

impl Default for ScanTimes {
    fn default() -> ScanTimes {
        ScanTimes { took: Histogram::new(&[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0]) }
    }
}

impl Scanner {
    /// How long the scanner hasn't come around. It does at least every few seconds; much longer means that it hangs on a
    /// mount that doesn't answer.
    pub fn silent_for(&self, now: Moment) -> Duration {
        let beat = self.beat.load(std::sync::atomic::Ordering::Relaxed);
        now.since(Moment(Duration::from_millis(beat)))
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.answers.send(Answer::Stop);
    }
}

/// An item that is ready, as it is offered to the director.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub key: CandidateKey,
    pub kind: ItemKind,
    pub signature: Signature,
    /// The item's ctime: what a producer can't forge, and the order among equals.
    pub arrived_at: Timestamp,
    /// The first route that matches it.
    pub route: Arc<Route>,
    /// Whether the lease test was possible and passed; the spool makes it again around the rename.
    pub lease_tested: bool,
    /// Its marker and its manifest, in the same folder: they go where it goes.
    pub companions: Vec<ItemName>,
}

/// Which item in which intake folder. A new file of the same name is another item with another signature.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CandidateKey {
    /// The intake folder under `inbox/`; empty for the inbox itself.
    pub folder: String,
    pub name: ItemName,
}

/// What the scanner thread tells the director. The queue is bounded: at most [`WINDOW`] items of a route are offered
/// and not yet answered.
#[derive(Debug)]
pub enum Notice {
    /// Ready items, oldest first within each route.
    Offered(Vec<Candidate>),
    /// Offered before, and gone or changed since.
    Withdrawn(Vec<CandidateKey>),
    /// Expected items that don't lie there any more, or another one under their names, with their inodes. Who claims one
    /// at that moment knows better.
    Missing(Vec<(CandidateKey, u64)>),
    /// How many lie there in which state, after a scan or a change.
    Counts(Counts),
    /// The state of the inbox and its watch.
    Health(Vec<crate::health::Check>),
}

/// The items of one route that may be offered and unanswered at once. More than the planner can claim at a time (64),
/// so that a claim never waits for a refill.
pub const WINDOW: usize = 256;

/// As of the last scan, kept up by events since.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Seen, and not settled yet.
    pub arriving: u64,
    /// Ready, offered ones included.
    pub ready: u64,
    /// Temporary names, counted and listed by `list --state ignored`.
    pub ignored: u64,
    /// Bounded at [`HELD_LISTED`]; `held_total` counts all.
    pub held: Vec<HeldItem>,
    pub held_total: u64,
    /// All held ones by the kind of their reason.
    pub held_for: Vec<(HeldFor, u64)>,
    /// By route, in the order of the folders.
    pub routes: Vec<RouteCounts>,
    /// A sample of what is arriving and ready beyond the window, for `list`: bounded at [`HELD_LISTED`] each.
    pub arriving_names: Vec<ItemInfo>,
    pub ready_names: Vec<ItemInfo>,
    /// Bounded too.
    pub ignored_names: Vec<ItemInfo>,
    /// Whether every intake folder was read whole at least once since the start.
    pub scanned: bool,
    /// How many taken items it has heard of: what was taken later is counted as ready still.
    pub taken: u64,
    /// In `--once` mode: nothing that lay there at the start is arriving, ready or offered any more.
    pub drained: bool,
}

pub const HELD_LISTED: usize = 1000;

/// How many items of one route are where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteCounts {
    pub route: String,
    pub arriving: u64,
    /// Offered ones included.
    pub ready: u64,
    pub held: u64,
}

/// What lies in the inbox and can't be taken.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldItem {
    pub key: CandidateKey,
    pub reason: String,
    pub since: Timestamp,
    pub route: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ItemInfo {
    pub key: CandidateKey,
    pub arrived_at: Option<Timestamp>,
    pub route: Option<String>,
}

/// What the director tells the scanner.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These were claimed, or are gone: forget them, and offer more.
    Taken(Vec<CandidateKey>),
    /// It can't be taken for a reason that only the director knows; it is held and offered again after `retry_in`.
    Refused {
        key: CandidateKey,
        why: HeldFor,
        reason: String,
        retry_in: Duration,
    },
    /// The claim found it changed or a writer at it: settle it again.
    Unsettled(CandidateKey),
    /// Somebody put it there, and waits for its end: should it go before it was taken, that is to be told. By its inode;
    /// 0 on a file system that has none.
    Expected {
        key: CandidateKey,
        inode: u64,
    },
    /// A changed configuration: everything held or offered is judged again.
    Reconfigure {
        rules: Arc<InboxRules>,
        routes: Vec<Arc<Route>>,
    },
    /// Look again now.
    Rescan,
    Stop,
}
