//! Ended jobs by the ledger where it can answer, by the directories where it can't: absent, broken, of another version,
//! or not yet complete.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::directories::Directories;
use super::ended::{Ended, FOUND, Query};
use super::reference::{fit, split};
use super::view::Listed;
use crate::ledger::{self, Entries, QueryError, Reader, Wanted};

/// The writer gathers entries for a while; who asks gets them at once, or what there is after so long.
const LATEST: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct Indexed {
    file: PathBuf,
    directories: Directories,
    entries: Entries,
}

impl Indexed {
    /// `entries`: of the ledger that is being written.
    pub fn new(directories: Directories, entries: Entries) -> Indexed {
        Indexed { file: ledger::file_of(directories.root()), directories, entries }
    }

    /// Opened for each question: the file may have been set aside since the last.
    fn reader(&self) -> Option<Reader> {
        self.entries.flush(LATEST);
        let complete = |reader: &Reader| reader.is_complete().unwrap_or(false);
        Reader::open(&self.file).ok().filter(complete)
    }

    fn rows(reader: &Reader, query: &Query) -> Result<Vec<Listed>, QueryError> {
        let mut rows = Vec::new();
        for state in Query::ENDED.into_iter().filter(|state| query.wants_state(state)) {
            let wanted = Wanted {
                state: Some(state.to_owned()),
                route: query.route.clone(),
                name: query.name.clone(),
                since: query.since,
                until: query.until,
                before: query.after,
                limit: query.limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
            };
            reader.each(&wanted, |row| rows.push(row.listed()))?;
        }
        rows.sort_unstable_by(|a, b| b.id.cmp(&a.id));
        rows.truncate(query.limit.unwrap_or(usize::MAX));
        Ok(rows)
    }
}

impl Ended for Indexed {
    fn history(&self) -> Option<ledger::History> {
        self.reader().and_then(|reader| ledger::History::of(reader).ok())
    }

    fn list(&self, query: &Query) -> io::Result<Vec<Listed>> {
        match self.reader().map(|reader| Indexed::rows(&reader, query)) {
            // The ledger lags behind what is removed.
            Some(Ok(mut rows)) => {
                rows.retain(|row| self.directories.dir(row).is_some());
                Ok(rows)
            }
            _ => self.directories.list(query),
        }
    }

    fn find(&self, text: &str) -> io::Result<Vec<Listed>> {
        // A path that the item had: the ledger is asked for the name.
        let name = split(text).map_or(text, |(_, name)| name);
        let found = self.reader().and_then(|reader| reader.find(OsStr::new(name), FOUND as u32).ok());
        let of_folder = |row: &Listed| name.len() == text.len() || fit(text, row).is_some();
        let ended = |row: &Listed| Query::ENDED.contains(&row.state.as_str());
        let rows = found.into_iter().flatten().map(|row| row.listed()).filter(ended).filter(of_folder);
        // The ledger finds them, the directories tell how they stand: a retry may have changed it since.
        let rows: Vec<Listed> = rows.filter_map(|row| self.directories.now(&row)).collect();
        // What it doesn't know may be a job that ended a moment ago, or a beginning of a directory's name.
        if rows.is_empty() { self.directories.find(text) } else { Ok(rows) }
    }
}
