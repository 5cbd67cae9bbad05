//! Where a page of the list ended. The order is: jobs that haven't ended, by their ids; what lies in the inbox, by its
//! arrival; ended jobs, newest first. A cursor names the last row itself and no number of rows, so that what comes and
//! goes between two pages moves nothing else. Pure.

use std::cmp::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ended::Query;
use super::view::Listed;
use crate::item::JobId;

/// No cursor that was given out is longer: a name has 255 bytes, escaped fourfold.
const LONGEST: usize = 4096;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cursor {
    /// Behind this job that hadn't ended.
    Job(String),
    /// Behind this item in the inbox.
    Inbox(Option<Timestamp>, String, String),
    /// Behind this ended job.
    Ended(JobId),
}

impl Cursor {
    /// Behind this row.
    pub fn behind(row: &Listed) -> Option<Cursor> {
        Some(match &row.id {
            Some(id) if Query::ENDED.contains(&row.state.as_str()) => Cursor::Ended(id.parse().ok()?),
            Some(id) => Cursor::Job(id.clone()),
            None => Cursor::Inbox(row.arrived_at, row.folder.clone(), row.name.clone()),
        })
    }

    pub fn parse(text: &str) -> Option<Cursor> {
        let json = (text.len() <= LONGEST).then(|| URL_SAFE_NO_PAD.decode(text).ok())??;
        serde_json::from_slice(&json).ok()
    }

    /// Whether a row that hasn't ended stands behind it.
    pub fn admits(&self, row: &Listed) -> bool {
        match (self, &row.id) {
            (Cursor::Ended(_), _) | (Cursor::Inbox(..), Some(_)) => false,
            (Cursor::Job(last), Some(id)) => last < id,
            (Cursor::Job(_), None) => true,
            (Cursor::Inbox(at, folder, name), None) => (at, folder, name) < (&row.arrived_at, &row.folder, &row.name),
        }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| std::fmt::Error)?;
        f.write_str(&URL_SAFE_NO_PAD.encode(json))
    }
}

/// The order of rows that haven't ended.
pub fn order(a: &Listed, b: &Listed) -> Ordering {
    match (&a.id, &b.id) {
        (Some(a), Some(b)) => a.cmp(b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => (a.arrived_at, &a.folder, &a.name).cmp(&(b.arrived_at, &b.folder, &b.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, name: &str, state: &str, at: i64) -> Listed {
        Listed {
            id: (!id.is_empty()).then(|| id.to_owned()),
            name: name.to_owned(),
            state: state.to_owned(),
            arrived_at: Timestamp::from_second(at).ok().filter(|_| at > 0),
            ..Listed::empty()
        }
    }

    #[test]
    fn each_row_stands_behind_those_before_it_and_no_others() {
        let rows = [
            row("01ARZ3NDEKTSV4RRFFQ69G5FAV", "z", "running", 9),
            row("01ARZ3NDEKTSV4RRFFQ69G5FAW", "y", "claimed", 1),
            row("", "held\\n", "held", 0),
            row("", "x", "ready", 1),
            row("", "a", "ready", 2),
            row("", "b", "arriving", 2),
        ];
        for (at, one) in rows.iter().enumerate() {
            let cursor = Cursor::behind(one).expect("a cursor");
            assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor.clone()));
            for (other, row) in rows.iter().enumerate() {
                assert_eq!(cursor.admits(row), at < other, "{cursor:?} {row:?}");
                assert_eq!(order(one, row), at.cmp(&other));
            }
        }
        let ended = Cursor::behind(&row("01ARZ3NDEKTSV4RRFFQ69G5FAV", "z", "done", 9)).expect("a cursor");
        assert_eq!(Cursor::parse(&ended.to_string()), Some(ended.clone()));
        assert!(rows.iter().all(|row| !ended.admits(row)));
    }

    #[test]
    fn what_was_never_given_out_is_refused() {
        for text in ["", "x", "e30", "\0", "AAAA", &"A".repeat(5000)] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
