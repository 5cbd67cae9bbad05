//! How long items took of late, for guesses at what is to come.

use jiff::Timestamp;
use rusqlite::Connection;

/// One attempt that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    pub route: String,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
}

/// Only so many attempts are looked at, whatever became of them.
const LATEST: i64 = 20_000;

/// The latest that were done, in any order.
pub(super) fn of(connection: &Connection) -> rusqlite::Result<Vec<Pace>> {
    let mut query = connection.prepare(
        "SELECT jobs.route, late.started_at, late.ended_at FROM (
             SELECT job, started_at, ended_at, reason FROM attempts WHERE coalesce(started_at, ended_at) IS NOT NULL
             ORDER BY coalesce(started_at, ended_at) DESC LIMIT ?1
         ) late JOIN jobs ON jobs.id = late.job
         WHERE late.reason IS NULL AND late.ended_at >= late.started_at AND jobs.state = 'done' AND jobs.route IS NOT NULL",
    )?;
    let time = |nanoseconds: i64| Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default();
    let rows = query.query_map([LATEST], |row| {
        Ok(Pace { route: row.get(0)?, started_at: time(row.get(1)?), ended_at: time(row.get(2)?) })
    })?;
    rows.collect()
}
