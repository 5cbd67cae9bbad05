//! The line of one route: names that wait for their turn, oldest first, and how many are offered. Bounded: of a million
//! names the oldest are kept, and the folder is read again when they run low.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use super::ready::Origin;

/// Names kept over all routes: what a scan is worth. Reading a million names takes seconds, so the more are kept the
/// less often; some 6 MiB at most.
pub(super) const KEPT: usize = 65_536;
/// Of one route, however many routes there are.
const KEPT_AT_LEAST: usize = 2048;

/// A name in line.
#[derive(Clone, Debug)]
pub(super) struct Lead {
    pub(super) ctime_ns: i64,
    pub(super) name: Box<OsStr>,
    pub(super) origin: Origin,
}

impl Lead {
    pub(super) fn new(ctime_ns: i128, name: OsString, origin: Origin) -> Lead {
        // 64 bits of nanoseconds last until 2262.
        Lead { ctime_ns: i64::try_from(ctime_ns).unwrap_or(i64::MAX), name: name.into(), origin }
    }

    fn key(&self) -> (i64, &OsStr) {
        (self.ctime_ns, &self.name)
    }
}

impl Ord for Lead {
    fn cmp(&self, other: &Lead) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Lead {
    fn partial_cmp(&self, other: &Lead) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Lead {
    fn eq(&self, other: &Lead) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Lead {}

#[derive(Debug)]
pub(super) struct Line {
    leads: BTreeSet<Lead>,
    kept: usize,
    /// Names that were seen and not kept, as of the last scan.
    pub(super) beyond: u64,
    /// Offered and unanswered.
    pub(super) offered: usize,
}

/// How many names the line of each route keeps.
pub(super) fn kept(routes: usize) -> usize {
    (KEPT / routes.max(1)).max(KEPT_AT_LEAST)
}

impl Line {
    pub(super) fn new(kept: usize) -> Line {
        Line { leads: BTreeSet::new(), kept, beyond: 0, offered: 0 }
    }

    /// An empty line of the same length, for a scan.
    pub(super) fn emptied(&self) -> Line {
        Line { leads: BTreeSet::new(), kept: self.kept, beyond: 0, offered: 0 }
    }

    /// The same without its names.
    pub(super) fn emptied_but_offered(&self) -> Line {
        Line { offered: self.offered, ..self.emptied() }
    }

    /// Puts a name in its place, at the cost of the youngest when the line is full.
    pub(super) fn push(&mut self, lead: Lead) {
        if self.admits(lead.ctime_ns) {
            self.leads.insert(lead);
            if self.leads.len() > self.kept {
                self.leads.pop_last();
                self.beyond += 1;
            }
        } else {
            self.beyond += 1;
        }
    }

    /// Whether a name of this ctime would be kept; saves the copy of its name.
    pub(super) fn admits(&self, ctime_ns: i64) -> bool {
        self.leads.len() < self.kept || self.leads.last().is_none_or(|youngest| ctime_ns <= youngest.ctime_ns)
    }

    pub(super) fn pop(&mut self) -> Option<Lead> {
        self.leads.pop_first()
    }

    pub(super) fn leads(&self) -> impl Iterator<Item = &Lead> {
        self.leads.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.leads.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leads.is_empty()
    }

    /// Whether a name waits that came before this one.
    pub(super) fn has_older_than(&self, ctime_ns: i128) -> bool {
        self.leads.first().is_some_and(|oldest| i128::from(oldest.ctime_ns) < ctime_ns)
    }

    /// It runs low and the folder has more.
    pub(super) fn wants_refill(&self) -> bool {
        self.beyond > 0 && self.leads.len() < self.kept / 4
    }

    /// Takes what a scan found. What events told of stays: it may have come after the scan had passed, and how it came
    /// is worth more than that it lies there.
    pub(super) fn replace_by(&mut self, mut scanned: Line) {
        for lead in std::mem::take(&mut self.leads) {
            if lead.origin != Origin::Scanned {
                scanned.leads.replace(lead);
            }
        }
        while scanned.leads.len() > scanned.kept {
            scanned.leads.pop_last();
            scanned.beyond += 1;
        }
        scanned.offered = self.offered;
        *self = scanned;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead(ctime: i64, name: &str, origin: Origin) -> Lead {
        Lead { ctime_ns: ctime, name: OsString::from(name).into(), origin }
    }

    fn names(line: &Line) -> String {
        line.leads().map(|lead| format!("{}{:?} ", lead.name.display(), lead.origin)).collect()
    }

    #[test]
    fn the_oldest_are_kept() {
        let mut line = Line::new(2);
        for (ctime, name) in [(5, "e"), (3, "c"), (4, "d"), (1, "a"), (4, "b")] {
            line.push(lead(ctime, name, Origin::Scanned));
        }
        assert_eq!(names(&line), "aScanned cScanned ");
        assert_eq!(line.beyond, 3);
        assert!(!line.wants_refill());
        line.pop();
        line.pop();
        assert!(!line.wants_refill(), "a quarter of two is none");
    }

    #[test]
    fn a_scan_keeps_what_events_told() {
        let mut line = Line::new(KEPT);
        line.push(lead(1, "gone", Origin::Scanned));
        line.push(lead(2, "both", Origin::RenamedIn));
        line.push(lead(9, "late", Origin::Settled));
        line.offered = 7;
        let mut scanned = Line::new(KEPT);
        scanned.push(lead(2, "both", Origin::Scanned));
        scanned.push(lead(3, "new", Origin::Scanned));
        line.replace_by(scanned);
        assert_eq!(names(&line), "bothRenamedIn newScanned lateSettled ");
        assert_eq!(line.offered, 7);
    }
}
