//! Reading the ledger: for the command line and the API, while a director writes it or none does. Opened for a question
//! and closed after it, so that a ledger that was set aside isn't read for long.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::ToSql;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use serde_json::value::RawValue;

use super::row::Row;
use super::schema;
use super::tables::nanoseconds;
use crate::api::results::{self, Mark, Reported};
use crate::devices::DeviceId;
use crate::item::{Attempt, Counters, ItemName, JobId, Reason};

/// Why the ledger can't answer. The directories can.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("there is no ledger at `{}`", .0.display())]
    Absent(PathBuf),
    #[error("the ledger at `{}` was written by another version of gamdok", .0.display())]
    OtherVersion(PathBuf),
    #[error("cannot read the ledger: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Which rows, newest first.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The word of `list`.
    pub state: Option<String>,
    pub route: Option<String>,
    /// Part of the name as it is shown; ASCII letters in either case.
    pub name: Option<String>,
    /// Ended at this time or later, or nobody knows when.
    pub since: Option<Timestamp>,
    /// Ended before this time.
    pub until: Option<Timestamp>,
    /// Only jobs older than this one: the last of the page before.
    pub before: Option<JobId>,
    /// None: all.
    pub limit: Option<u32>,
}

/// An open ledger.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
}

const COLUMNS: &str = "id, job, place, name, folder, route, state, attempts, devices, arrived_at, claimed_at, \
                       finished_at, reason, message, gpu_memory";

impl Reader {
    pub fn open(file: &Path) -> Result<Reader, QueryError> {
        if !file.exists() {
            return Err(QueryError::Absent(file.to_owned()));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)?;
        // The writer's transactions are short; where readers and the writer exclude each other (network file systems)
        // one waits its turn.
        connection.busy_timeout(Duration::from_secs(5))?;
        if schema::meta(&connection, "schema")?.as_deref() != Some(schema::VERSION) {
            return Err(QueryError::OtherVersion(file.to_owned()));
        }
        Ok(Reader { connection })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn into_connection(self) -> Connection {
        self.connection
    }

    /// Whether every directory was read since the file was made. When not, a job that isn't found may still exist.
    pub fn is_complete(&self) -> Result<bool, QueryError> {
        Ok(schema::meta(&self.connection, "complete")?.as_deref() == Some("1"))
    }

    /// Whether it tells all that ended, as long as nobody writes it: every directory was read, and the last writer
    /// closed it in order.
    pub fn is_whole(&self) -> Result<bool, QueryError> {
        Ok(self.is_complete()? && schema::meta(&self.connection, "clean")?.as_deref() == Some("1"))
    }

    /// What all ended jobs counted.
    pub fn counters(&self) -> Result<Counters, QueryError> {
        Ok(schema::counters(&self.connection)?)
    }

    /// Rows, newest first by the time of their claim.
    pub fn list(&self, wanted: &Wanted) -> Result<Vec<Row>, QueryError> {
        let mut rows = Vec::new();
        self.each(wanted, |row| rows.push(row))?;
        Ok(rows)
    }

    /// A page of what workers reported of jobs that ended, each with its directory under the root, oldest end first; and
    /// where the next page begins, if there is one. A page is short, so that no reading lasts long.
    pub fn reported(&self, wanted: &results::Wanted, after: Option<Mark>) -> Result<ReportedPage, QueryError> {
        const ROWS: i64 = 1000;
        const BYTES: usize = 4 << 20;
        let id = after.map(|mark| mark.id.to_string());
        let end = after.and_then(|mark| mark.finished_at).and_then(nanoseconds);
        let since = wanted.since.map(bound);
        // What has no known end comes first.
        let behind = if end.is_some() { "(finished_at, id) > (?, ?)" } else { "(finished_at IS NOT NULL OR id > ?)" };
        let filters: [(&str, &[Option<&dyn ToSql>]); 3] = [
            (behind, &[end.as_ref().map(|it| it as &dyn ToSql), id.as_ref().map(|it| it as &dyn ToSql)]),
            ("finished_at >= ?", &[since.as_ref().map(|it| it as &dyn ToSql)]),
            ("+route = ?", &[wanted.route.as_ref().map(|it| it as &dyn ToSql)]),
        ];
        // The pluses keep SQLite from indexes that would need a sort of all rows.
        let mut sql = "SELECT id, place || '/' || jobs.job, name, route, state, finished_at, result, counters
             FROM jobs LEFT JOIN reported ON reported.job = id
             WHERE +state IN ('done', 'failed', 'cancelled')"
            .to_owned();
        let mut values: Vec<&dyn ToSql> = Vec::new();
        for (condition, given) in filters {
            let given = given.iter().flatten();
            if given.clone().next().is_some() {
                sql.push_str(" AND ");
                sql.push_str(condition);
                values.extend(given);
            }
        }
        sql.push_str(" ORDER BY finished_at, id LIMIT ?");
        values.push(&ROWS);
        let mut query = self.connection.prepare(&sql)?;
        let mut rows = query.query(values.as_slice())?;
        let mut page = Vec::new();
        let (mut read, mut bytes) = (0, 0);
        let mut last = None;
        while let Some(row) = rows.next()? {
            let reported = reported(row)?;
            if wanted.until.is_some_and(|until| until < reported.mark()) {
                return Ok((page, None));
            }
            (last, read) = (Some(reported.mark()), read + 1);
            bytes += reported.result.as_ref().map_or(0, |result| result.get().len());
            page.push((row.get(1)?, reported));
            if bytes > BYTES {
                return Ok((page, last));
            }
        }
        Ok((page, last.filter(|_| read == ROWS)))
    }

    /// Rows one by one, newest first, without holding them all.
    pub fn each(&self, wanted: &Wanted, mut take: impl FnMut(Row)) -> Result<(), QueryError> {
        let before = wanted.before.map(|id| id.to_string());
        let limit = wanted.limit.map_or(-1, i64::from);
        let (since, until) = (wanted.since.map(bound), wanted.until.map(bound));
        let filters: [(&str, Option<&dyn ToSql>); 6] = [
            ("state = ?", wanted.state.as_ref().map(|it| it as &dyn ToSql)),
            ("route = ?", wanted.route.as_ref().map(|it| it as &dyn ToSql)),
            ("id < ?", before.as_ref().map(|it| it as &dyn ToSql)),
            ("instr(lower(shown), lower(?)) > 0", wanted.name.as_ref().map(|it| it as &dyn ToSql)),
            ("(finished_at IS NULL OR finished_at >= ?)", since.as_ref().map(|it| it as &dyn ToSql)),
            ("finished_at < ?", until.as_ref().map(|it| it as &dyn ToSql)),
        ];
        let mut sql = format!("SELECT {COLUMNS} FROM jobs WHERE true");
        let mut values: Vec<&dyn ToSql> = Vec::new();
        for (condition, value) in filters {
            if let Some(value) = value {
                sql.push_str(" AND ");
                sql.push_str(condition);
                values.push(value);
            }
        }
        sql.push_str(" ORDER BY id DESC LIMIT ?");
        values.push(&limit);
        let mut query = self.connection.prepare(&sql)?;
        let mut rows = query.query(values.as_slice())?;
        while let Some(row) = rows.next()? {
            take(read(row)?);
        }
        Ok(())
    }

    pub fn get(&self, id: JobId) -> Result<Option<Row>, QueryError> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
        Ok(self.connection.query_row(&sql, [id.to_string()], read).optional()?)
    }

    /// What a person may mean by `text`: a job's directory, its ULID or a prefix of it, or an item's name, raw or as it
    /// is shown. At most `limit` rows, newest first: more than one means that it isn't unique.
    pub fn find(&self, text: &OsStr, limit: u32) -> Result<Vec<Row>, QueryError> {
        let words = text.to_str();
        if let Some((_, id)) = crate::item::JobDir::parse(text) {
            let job = self.get(id)?.filter(|row| Some(row.job.as_str()) == words);
            if let Some(row) = job {
                return Ok(vec![row]);
            }
        }
        let mut begins = Vec::new();
        if let Some(prefix) = words.filter(|word| is_prefix(word)) {
            // Every character of a ULID sorts before `a`.
            begins = self.rows("id >= ?1 AND id < ?1 || 'a'", &[&prefix.to_ascii_uppercase()], limit)?;
        }
        if begins.len() == 1 {
            return Ok(begins);
        }
        let named = self.rows("name = ?1", &[&text.as_bytes()], limit)?;
        if !named.is_empty() || !begins.is_empty() {
            return Ok(if named.is_empty() { begins } else { named });
        }
        match words {
            Some(shown) if shown.contains('\\') => self.rows("shown = ?1", &[&shown], limit),
            _ => Ok(Vec::new()),
        }
    }

    /// How many jobs stand where, by the word of `list`.
    pub fn counts(&self) -> Result<BTreeMap<String, u64>, QueryError> {
        let mut query = self.connection.prepare("SELECT state, count(*) FROM jobs GROUP BY state")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A job's attempts, first to last.
    pub fn attempts(&self, id: JobId) -> Result<Vec<Attempt>, QueryError> {
        let mut query = self.connection.prepare(
            "SELECT n, devices, pid, started_at, ended_at, exit_code, signal, reason, peak_gpu_memory, energy_joules,
                 counted FROM attempts WHERE job = ?1 ORDER BY n",
        )?;
        let rows = query.query_map(params![id.to_string()], |row| {
            Ok(Attempt {
                n: row.get(0)?,
                devices: words(row.get(1)?).into_iter().map(DeviceId).collect(),
                pid: row.get(2)?,
                started_at: time(row.get(3)?),
                ended_at: time(row.get(4)?),
                exit_code: row.get(5)?,
                signal: row.get(6)?,
                reason: reason(row.get::<_, Option<String>>(7)?.as_deref()),
                peak_gpu_memory: row.get::<_, Option<i64>>(8)?.map(i64::unsigned_abs),
                energy_joules: row.get(9)?,
                counted: row.get(10)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn rows(&self, condition: &str, values: &[&dyn ToSql], limit: u32) -> Result<Vec<Row>, QueryError> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE {condition} ORDER BY id DESC LIMIT {limit}");
        let mut query = self.connection.prepare(&sql)?;
        let rows = query.query_map(values, read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Could be the beginning of a ULID: Crockford's letters and digits, and few enough of them.
fn is_prefix(word: &str) -> bool {
    (1..=26).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Directories under the root, with what was reported; and behind which row the next page begins.
pub type ReportedPage = (Vec<(String, Reported)>, Option<Mark>);

fn reported(row: &rusqlite::Row<'_>) -> rusqlite::Result<Reported> {
    let counters: Option<String> = row.get(7)?;
    Ok(Reported {
        id: job_id(row)?,
        name: ItemName::new(std::ffi::OsString::from_vec(row.get(2)?)).escaped(),
        route: row.get(3)?,
        outcome: row.get(4)?,
        finished_at: time(row.get(5)?),
        result: row.get::<_, Option<String>>(6)?.and_then(|json| RawValue::from_string(json).ok()),
        counters: counters.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
    })
}

/// A time that may lie further away than the ledger counts.
fn bound(at: Timestamp) -> i64 {
    let far = if at < Timestamp::UNIX_EPOCH { i64::MIN } else { i64::MAX };
    nanoseconds(at).unwrap_or(far)
}

fn job_id(row: &rusqlite::Row<'_>) -> rusqlite::Result<JobId> {
    let id: String = row.get(0)?;
    id.parse().map_err(|error: ulid::DecodeError| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row {
        id: job_id(row)?,
        job: row.get(1)?,
        place: row.get(2)?,
        name: ItemName::new(std::ffi::OsString::from_vec(row.get(3)?)),
        folder: row.get(4)?,
        route: row.get(5)?,
        state: row.get(6)?,
        attempts: row.get(7)?,
        devices: words(row.get(8)?),
        arrived_at: time(row.get(9)?),
        claimed_at: time(row.get(10)?),
        finished_at: time(row.get(11)?),
        reason: row.get(12)?,
        message: row.get(13)?,
        gpu_memory: row.get::<_, Option<i64>>(14)?.map(i64::unsigned_abs),
    })
}

pub(super) fn words(list: String) -> Vec<String> {
    serde_json::from_str(&list).unwrap_or_default()
}

pub(super) fn time(nanoseconds: Option<i64>) -> Option<Timestamp> {
    Timestamp::from_nanosecond(nanoseconds?.into()).ok()
}

fn reason(word: Option<&str>) -> Option<Reason> {
    Reason::ALL.into_iter().find(|reason| Some(reason.as_str()) == word)
}
