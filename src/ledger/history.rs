//! What was: attempts, one after another, for the commands that look back. SQL does the work, so memory doesn't grow with
//! the number of jobs. Where the ledger doesn't tell all (there is none, its writer was cut off, another version wrote it)
//! an index is made of the directories first, in a temporary file.

use std::path::Path;
use std::sync::LazyLock;

use jiff::Timestamp;
use rusqlite::types::{ToSql, Value};
use rusqlite::{Connection, params_from_iter};
use serde::Serialize;

use super::counted::InHand;
use super::query::{QueryError, Reader, time, words};
use super::rebuild::{Progress, Survey, SurveyError};
use super::schema::Store;
use super::tables::{Tables, nanoseconds};
use super::{Setup, file_of};
use crate::item::ItemName;

/// Why the past can't be told.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("cannot make an index of the directories in `{dir}`: {why}")]
    Index { dir: String, why: String },
}

impl From<rusqlite::Error> for HistoryError {
    fn from(error: rusqlite::Error) -> HistoryError {
        HistoryError::Query(error.into())
    }
}

/// One word for how an attempt went. A successful one has no reason and counts; one that the director's end cut short has
/// none and doesn't.
const OUTCOME: &str = "CASE WHEN a.ended_at IS NULL THEN CASE WHEN j.state = 'running' THEN 'running' ELSE 'cut' END
         WHEN a.reason = 'cancelled' THEN 'cancelled'
         WHEN a.reason = 'orphaned' THEN 'cut'
         WHEN a.reason IS NOT NULL THEN 'failed'
         WHEN a.counted THEN 'done' ELSE 'cut' END";

/// The words of `--outcome`.
pub const OUTCOMES: [&str; 5] = ["running", "done", "failed", "cancelled", "cut"];

static VIEW: LazyLock<String> = LazyLock::new(|| {
    format!(
        "CREATE TEMP VIEW tries AS SELECT
             a.job AS id, a.n AS n, j.job AS job, j.name AS name, j.folder AS folder, j.route AS route, j.place AS place,
             {OUTCOME} AS outcome, a.devices AS devices, coalesce(a.started_at, a.ended_at) AS began,
             a.started_at AS started_at, a.ended_at AS ended_at, a.ended_at - a.started_at AS ran,
             a.exit_code AS exit_code, a.signal AS signal, a.reason AS reason, a.peak_gpu_memory AS peak,
             a.energy_joules AS energy, a.counted AS counted, j.gpu_memory AS declared, j.arrived_at AS arrived_at
         FROM attempts a JOIN jobs j ON j.id = a.job
         WHERE coalesce(a.started_at, a.ended_at) IS NOT NULL"
    )
});

/// Which attempts are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub route: Option<String>,
    pub outcomes: Vec<String>,
    /// An id, or the beginning of one.
    pub device: Option<String>,
    pub reason: Option<String>,
    /// Ended at this time or later, or not at all yet.
    pub since: Option<Timestamp>,
    /// Began before.
    pub until: Option<Timestamp>,
}

/// A condition, and what stands for its question marks.
pub(super) struct Condition {
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
}

impl Condition {
    pub(super) fn and(&mut self, sql: &str, values: impl IntoIterator<Item = Value>) {
        self.sql.push_str(" AND ");
        self.sql.push_str(sql);
        self.values.extend(values);
    }

    pub(super) fn params(&self) -> impl Iterator<Item = &dyn ToSql> {
        self.values.iter().map(|value| value as &dyn ToSql)
    }
}

impl Filter {
    pub(super) fn condition(&self) -> Condition {
        let mut condition = Condition { sql: "true".to_owned(), values: Vec::new() };
        if let Some(route) = &self.route {
            condition.and("route = ?", [route.clone().into()]);
        }
        if let Some(reason) = &self.reason {
            condition.and("reason = ?", [reason.clone().into()]);
        }
        if !self.outcomes.is_empty() {
            let marks = vec!["?"; self.outcomes.len()].join(", ");
            condition.and(&format!("outcome IN ({marks})"), self.outcomes.iter().map(|word| word.clone().into()));
        }
        if let Some(device) = &self.device {
            let sql = "EXISTS (SELECT 1 FROM json_each(devices) d WHERE substr(d.value, 1, length(?)) = ?)";
            condition.and(sql, [device.clone().into(), device.clone().into()]);
        }
        if let Some(since) = self.since {
            condition.and("(ended_at IS NULL OR ended_at >= ?)", [instant(since).into()]);
        }
        if let Some(until) = self.until {
            condition.and("began < ?", [instant(until).into()]);
        }
        condition
    }
}

/// In nanoseconds; what lies beyond them is before or after all.
pub(super) fn instant(at: Timestamp) -> i64 {
    nanoseconds(at).unwrap_or(if at < Timestamp::UNIX_EPOCH { i64::MIN } else { i64::MAX })
}

/// One row of `history`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Try {
    pub id: String,
    pub job: String,
    pub name: String,
    pub name_b64: String,
    pub folder: String,
    pub route: Option<String>,
    pub attempt: u32,
    /// running, done, failed, cancelled, cut.
    pub outcome: String,
    pub devices: Vec<String>,
    pub arrived_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// From its start to its end.
    pub seconds: Option<f64>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub reason: Option<String>,
    pub counted: Option<bool>,
    pub peak_gpu_memory: Option<u64>,
    pub energy_joules: Option<f64>,
}

/// A place in the order of attempts.
#[derive(Clone, Debug)]
struct Place {
    began: i64,
    id: String,
    n: u32,
}

/// The order of attempts, by their beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Direction {
    NewestFirst,
    OldestFirst,
}

/// The past of a root.
pub struct History {
    pub(super) connection: Connection,
    /// The ledger itself, where `connection` is an index of the directories: only it has samples.
    samples: Option<Reader>,
    /// Where that index lies.
    _dir: Option<tempfile::TempDir>,
}

impl History {
    /// `is_written`: a director keeps the ledger, and has told it all it knows. Without one it tells all only when its last
    /// writer closed it in order.
    pub fn open(root: &Path, is_written: bool) -> Result<History, HistoryError> {
        let tells_all = |reader: &Reader| if is_written { reader.is_complete() } else { reader.is_whole() };
        let ledger = Reader::open(&file_of(root)).ok();
        match ledger {
            Some(reader) if tells_all(&reader).unwrap_or(false) => History::of(reader),
            samples => History::of_directories(root, samples)?.prepared(),
        }
    }

    /// As this ledger tells it.
    pub fn of(reader: Reader) -> Result<History, HistoryError> {
        History { connection: reader.into_connection(), samples: None, _dir: None }.prepared()
    }

    fn prepared(self) -> Result<History, HistoryError> {
        // What doesn't fit into memory is sorted in files.
        self.connection.execute_batch("PRAGMA temp_store = FILE; PRAGMA cache_size = -8192;")?;
        self.connection.execute_batch(&VIEW)?;
        Ok(self)
    }

    fn of_directories(root: &Path, samples: Option<Reader>) -> Result<History, HistoryError> {
        let wrong = |why: String| HistoryError::Index { dir: crate::root::shown(&std::env::temp_dir()), why };
        let dir = tempfile::Builder::new().prefix("gamdok-").tempdir().map_err(|error| wrong(error.to_string()))?;
        let (store, _) = Store::open(&dir.path().join("index.sqlite")).map_err(|error| wrong(error.to_string()))?;
        let mut connection = store.connection;
        connection.query_row("PRAGMA journal_mode = OFF", [], |_| Ok(()))?;
        connection.execute_batch("PRAGMA synchronous = OFF")?;
        let root = Setup::of_root(root).claimed.parent().unwrap_or(root).to_owned();
        let mut survey = Survey::new(&root, None, false, InHand::default());
        let change = connection.transaction()?;
        loop {
            match survey.step(Tables(&change)) {
                Ok(Progress::More) => {}
                Ok(Progress::Finished) => break,
                Err(SurveyError::Ledger(error)) => return Err(wrong(error.to_string())),
                Err(error) => return Err(wrong(error.to_string())),
            }
        }
        change.commit().map_err(|error| wrong(error.to_string()))?;
        Ok(History { connection, samples, _dir: Some(dir) })
    }

    /// Where the samples are; none where nobody can tell.
    pub(super) fn sampled(&self) -> Option<&Connection> {
        match &self.samples {
            Some(reader) => Some(reader.connection()),
            None => self._dir.is_none().then_some(&self.connection),
        }
    }

    /// The id of the device that the driver calls by this number, as it was last sampled.
    pub fn device_of(&self, index: u32) -> Result<Option<String>, HistoryError> {
        let Some(from) = self.sampled() else { return Ok(None) };
        let mut query = from.prepare("SELECT id FROM sample_devices WHERE number = ?1 ORDER BY n DESC LIMIT 1")?;
        Ok(query.query_map([index], |row| row.get(0))?.next().transpose()?)
    }

    /// Hands over the attempts that are wanted. Read in pages, so that no reading lasts while somebody prints.
    pub fn each<E: From<HistoryError>>(
        &self,
        filter: &Filter,
        order: Direction,
        limit: Option<usize>,
        mut take: impl FnMut(Try) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = limit.unwrap_or(usize::MAX);
        let mut after = None;
        while rest > 0 {
            let (page, next) = self.page(filter, order, after.as_ref(), rest.min(PAGE)).map_err(E::from)?;
            rest -= page.len().min(rest);
            page.into_iter().try_for_each(&mut take)?;
            after = next;
            if after.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn page(
        &self,
        filter: &Filter,
        order: Direction,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<(Vec<Try>, Option<Place>), HistoryError> {
        let mut condition = filter.condition();
        let (behind, direction) = match order {
            Direction::NewestFirst => ("<", "DESC"),
            Direction::OldestFirst => (">", "ASC"),
        };
        if let Some(Place { began, id, n }) = after {
            // The first half alone would do; only by the second does SQLite find the place in its index.
            let sql = format!("(began, id, n) {behind} (?, ?, ?) AND began {behind}= ?");
            let began = Value::from(*began);
            condition.and(&sql, [began.clone(), id.clone().into(), i64::from(*n).into(), began]);
        }
        let sql = format!(
            "SELECT {TRY} FROM tries WHERE {} ORDER BY began {direction}, id {direction}, n {direction} LIMIT {limit}",
            condition.sql
        );
        let mut query = self.connection.prepare_cached(&sql)?;
        let mut rows = query.query(params_from_iter(condition.params()))?;
        let mut page = Vec::new();
        let mut last = None;
        while let Some(row) = rows.next()? {
            let read = read(row)?;
            last = Some(Place { began: row.get(TRY_BEGAN)?, id: read.id.clone(), n: read.attempt });
            page.push(read);
        }
        let last = last.filter(|_| page.len() == limit);
        Ok((page, last))
    }

    /// The attempts that ran longest, or that failed last.
    pub fn longest(&self, filter: &Filter, limit: usize) -> Result<Vec<Try>, HistoryError> {
        let condition = filter.condition();
        let sql = format!(
            "SELECT {TRY} FROM tries WHERE {} AND ran IS NOT NULL ORDER BY ran DESC, id, n LIMIT {limit}",
            condition.sql
        );
        let mut query = self.connection.prepare(&sql)?;
        let rows = query.query_map(params_from_iter(condition.params()), read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Each claim with its moment, the item's name and its route, in the order of ids.
    pub fn each_claim<E: From<HistoryError>>(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
        mut take: impl FnMut(Claim) -> Result<(), E>,
    ) -> Result<(), E> {
        let (since, until) = (since.map_or(i64::MIN, instant), until.map_or(i64::MAX, instant));
        let mut after = String::new();
        loop {
            let page = self.claims(&after, since, until).map_err(E::from)?;
            let Some(last) = page.last() else { return Ok(()) };
            after.clone_from(&last.id);
            page.into_iter().try_for_each(&mut take)?;
        }
    }

    fn claims(&self, after: &str, since: i64, until: i64) -> Result<Vec<Claim>, HistoryError> {
        let mut query = self.connection.prepare_cached(
            "SELECT id, job, name, route, claimed_at FROM jobs
             WHERE id > ?1 AND claimed_at >= ?2 AND claimed_at < ?3 ORDER BY id LIMIT ?4",
        )?;
        let rows = query.query_map(rusqlite::params![after, since, until, PAGE as i64], |row| {
            Ok(Claim {
                id: row.get(0)?,
                job: row.get(1)?,
                name: name(row.get(2)?).escaped(),
                route: row.get(3)?,
                claimed_at: time(row.get(4)?).unwrap_or_default(),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// A job was claimed.
#[derive(Clone, Debug)]
pub struct Claim {
    pub id: String,
    pub job: String,
    pub name: String,
    pub route: Option<String>,
    pub claimed_at: Timestamp,
}

/// Rows are read in pages of this size.
const PAGE: usize = 1000;

pub(super) const TRY: &str = "id, job, name, folder, route, n, outcome, devices, arrived_at, started_at, ended_at, ran, \
                              exit_code, signal, reason, counted, peak, energy, began";
const TRY_BEGAN: usize = 18;

pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Try> {
    let name = name(row.get(2)?);
    let ended_at = time(row.get(10)?);
    Ok(Try {
        id: row.get(0)?,
        job: row.get(1)?,
        name: name.escaped(),
        name_b64: name.base64(),
        folder: row.get(3)?,
        route: row.get(4)?,
        attempt: row.get(5)?,
        outcome: row.get(6)?,
        devices: words(row.get(7)?),
        arrived_at: time(row.get(8)?),
        started_at: time(row.get(9)?),
        ended_at,
        // A clock that was set back has nothing to say of how long it took.
        seconds: row.get::<_, Option<i64>>(11)?.filter(|ran| *ran >= 0).map(|ran| ran as f64 / 1e9),
        exit_code: row.get(12)?,
        signal: row.get(13)?,
        reason: row.get(14)?,
        counted: if ended_at.is_some() { Some(row.get(15)?) } else { None },
        peak_gpu_memory: row.get::<_, Option<i64>>(16)?.map(i64::unsigned_abs),
        energy_joules: row.get(17)?,
    })
}

fn name(bytes: Vec<u8>) -> ItemName {
    use std::os::unix::ffi::OsStringExt as _;
    ItemName::new(std::ffi::OsString::from_vec(bytes))
}
