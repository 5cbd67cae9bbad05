//! What workers reported of every item that ended, one after another in the order of their ends: from the ledger where it
//! tells all, else from the directories. Bounded memory, however many there are; no reading lasts while rows are printed.

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::directories::Directories;
use crate::item::{Counters, JobId};
use crate::ledger::{self, Reader};

/// One row of `results --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reported {
    pub id: JobId,
    pub name: String,
    pub route: Option<String>,
    pub outcome: String,
    /// None when its result.json can't be read.
    pub finished_at: Option<Timestamp>,
    pub result: Option<Box<RawValue>>,
    pub counters: Counters,
}

impl Reported {
    pub fn mark(&self) -> Mark {
        Mark { finished_at: self.finished_at, id: self.id }
    }
}

/// A place in the order: by the end, then by the id. What has no known end comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub finished_at: Option<Timestamp>,
    pub id: JobId,
}

/// Which results are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub route: Option<String>,
    /// Ended at this time or later.
    pub since: Option<Timestamp>,
    /// Up to this one.
    pub until: Option<Mark>,
}

impl Wanted {
    pub fn admits(&self, row: &Reported) -> bool {
        self.route.as_ref().is_none_or(|route| row.route.as_ref() == Some(route))
            && self.since.is_none_or(|since| row.finished_at.is_some_and(|at| since <= at))
            && self.until.is_none_or(|until| row.mark() <= until)
    }
}

/// Where the results are read.
#[derive(Debug)]
pub enum Results {
    Ledger(Reader, Directories),
    Directories(Directories),
}

impl Results {
    /// Without a director the ledger tells all only when its last writer closed it in order.
    pub fn open(directories: Directories, is_written: bool) -> Results {
        let tells_all = |reader: &Reader| if is_written { reader.is_complete() } else { reader.is_whole() };
        let reader = Reader::open(&ledger::file_of(directories.root())).ok();
        match reader.filter(|reader| tells_all(reader).unwrap_or(false)) {
            Some(reader) => Results::Ledger(reader, directories),
            None => Results::Directories(directories),
        }
    }

    /// Hands over the results that are wanted, the newest last.
    pub fn each<E: From<io::Error>>(
        &self,
        wanted: &Wanted,
        mut take: impl FnMut(Reported) -> Result<(), E>,
    ) -> Result<(), E> {
        let (reader, directories) = match self {
            Results::Ledger(reader, directories) => (reader, directories),
            Results::Directories(directories) => return directories.each_reported(wanted, take),
        };
        let mut after = None;
        loop {
            let (rows, next) = reader.reported(wanted, after).map_err(io::Error::other)?;
            for (place, row) in rows {
                // The ledger lags behind what is removed.
                if directories.root().join(place).is_dir() {
                    take(row)?;
                }
            }
            after = next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}
