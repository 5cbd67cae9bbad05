//! The ledger: an SQLite index of jobs and attempts, one writer thread, grouped commits. Never the truth: delete it and
//! the next start rebuilds what the directories tell. Beside them it keeps samples of the devices, which they don't tell.
//!
//! Invariants: nobody waits for it (entries that find no room are counted and mended later from the directories); a row
//! speaks of a directory that was there when it was written; a reader never blocks the writer.

mod charts;
mod counted;
mod history;
mod lag;
mod paces;
mod query;
mod rebuild;
mod row;
mod samples;
mod schema;
mod stats;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::health::Check;
use crate::item::{JobRecord, ResultRecord};

pub use charts::{Bucket, Seen};
pub use counted::{Counted, Sums};
pub use history::{Claim, Direction, Filter, History, HistoryError, OUTCOMES, Try};
pub use lag::Lag;
pub use paces::Pace;
pub use query::{QueryError, Reader, ReportedPage, Wanted};
pub use row::Row;
pub use samples::{Batch as Samples, Sample, Sampled};
pub use stats::{OfDevice, OfRoute, Outcomes, Spread, Stats, Window};

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
    /// What the devices were seen to do.
    Sampled(Samples),
    /// The directories were changed by others: look again.
    Reconcile,
    Stop,
}

/// Where the ledger lies and which directories it is an index of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub file: PathBuf,
    pub claimed: PathBuf,
    pub done: PathBuf,
    pub failed: PathBuf,
}

impl Setup {
    /// The usual places under a root.
    pub fn of_root(root: &Path) -> Setup {
        Setup {
            file: file_of(root),
            claimed: root.join("claimed"),
            done: root.join("done"),
            failed: root.join("failed"),
        }
    }
}

/// The ledger's file under a root.
pub fn file_of(root: &Path) -> PathBuf {
    root.join(".gamdok").join("ledger.sqlite")
}

/// A running ledger. Dropping it ends the thread once every [`Entries`] is gone too; [`Ledger::stop`] waits for
/// it.
#[derive(Debug)]
pub struct Ledger {
    pub entries: Entries,
    pub health: Receiver<Check>,
    /// The sums over ended jobs.
    pub counted: Counted,
    /// They have changed by what the directories told, not by an entry.
    pub recounted: Receiver<()>,
    /// How long items took, as the file tells at the start and after it was mended.
    pub paces: Receiver<Vec<Pace>>,
    thread: JoinHandle<()>,
}

/// What the writer is told beside the entries, so that they needn't wake it one by one.
#[derive(Debug)]
enum Order {
    /// Answer once every entry sent before this is in the file.
    Flush(Sender<()>),
    Stop,
}

/// The entries that may wait. The writer does about 50,000 a second, so this is room for more than a second of a disk
/// that stands still.
pub const ENTRIES: usize = 65_536;

/// The way in: never waits.
#[derive(Clone, Debug)]
pub struct Entries {
    /// Bounded by hand at [`ENTRIES`]: a bounded channel would take and touch memory for all its places at once.
    queue: Sender<(u64, Entry)>,
    orders: Sender<Order>,
    dropped: Arc<AtomicU64>,
    /// Of the last entry.
    number: Arc<AtomicU64>,
    pub lag: Arc<Lag>,
    in_hand: counted::InHand,
}

impl Entries {
    /// Hands an entry to the writer, or counts it as dropped. Answers its number; they grow in the order of sending.
    pub fn send(&self, entry: Entry) -> u64 {
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        if let Entry::Claimed { record, .. } = &entry {
            self.in_hand.insert(record.id);
        }
        self.lag.is_sent(number);
        if self.queue.len() >= ENTRIES || self.queue.send((number, entry)).is_err() {
            self.lag.is_dropped();
            self.dropped.fetch_add(1, Ordering::Release);
        }
        number
    }

    /// Waits until all that was sent before is in the file; false when that took longer than `limit`.
    pub fn flush(&self, limit: Duration) -> bool {
        let (done, answer) = bounded(1);
        self.orders.send(Order::Flush(done)).is_ok() && answer.recv_timeout(limit).is_ok()
    }
}

impl Ledger {
    /// Writes what still waits, closes the file and ends the thread.
    pub fn stop(self) {
        let _ = self.entries.orders.send(Order::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the ledger's thread panicked; the next start mends the ledger");
        }
    }
}

/// Starts the writer. Opening, checking and rebuilding happen on its thread.
pub fn start(setup: Setup) -> std::io::Result<Ledger> {
    let (queue, waiting) = unbounded();
    let (orders, ordered) = unbounded();
    // Checks are sent on change and read by the director's loop; a few places bridge a busy moment.
    let (tell, health) = bounded(16);
    // One is as good as many.
    let (tell_recounted, recounted) = bounded(1);
    let entries = Entries {
        queue,
        orders,
        dropped: Arc::new(AtomicU64::new(0)),
        number: Arc::new(AtomicU64::new(0)),
        lag: Arc::default(),
        in_hand: counted::InHand::default(),
    };
    let counted = Counted::default();
    // Told at the start, and after a rebuild.
    let (tell_paces, paces) = bounded(2);
    let tell = writer::Tell { health: tell, counted: counted.clone(), recounted: tell_recounted, paces: tell_paces };
    let writer = writer::Writer::new(setup, waiting, ordered, &entries, tell);
    let thread = std::thread::Builder::new().name("ledger".to_owned()).spawn(move || writer.run())?;
    Ok(Ledger { entries, health, counted, recounted, paces, thread })
}
