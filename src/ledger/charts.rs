//! What is drawn: ends over time, spans one by one, and the devices' samples. Bounded by what is drawn, not by what was.

use jiff::Timestamp;
use rusqlite::params;

use super::history::{History, HistoryError, instant};
use super::query::time;
use super::samples::Sampled;

/// How many jobs ended with one outcome in one part of the time.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    pub at: usize,
    pub outcome: String,
    pub jobs: u64,
}

/// What a device was seen to do in one part of the time; means, absent where nothing was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub device: String,
    pub at: usize,
    pub utilization: Option<f64>,
    pub memory: Option<f64>,
}

impl History {
    /// When the first known attempt began and the first known job ended, whichever was first.
    pub fn beginning(&self) -> Result<Option<Timestamp>, HistoryError> {
        let first = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
        let began = first("SELECT min(coalesce(started_at, ended_at)) FROM attempts")?;
        let finished = first("SELECT min(finished_at) FROM jobs")?;
        Ok([began, finished].into_iter().flatten().min().and_then(|at| time(Some(at))))
    }

    /// The ends of jobs, in this many equal parts of the time.
    pub fn ends(&self, since: Timestamp, until: Timestamp, parts: usize) -> Result<Vec<Bucket>, HistoryError> {
        let (since, until) = (instant(since), instant(until));
        let mut query = self.connection.prepare(
            "SELECT min((finished_at - ?1) / max(1, (?2 - ?1) / ?3), ?3 - 1), state, count(*) FROM jobs
             WHERE state IN ('done', 'failed', 'cancelled') AND finished_at >= ?1 AND finished_at < ?2 GROUP BY 1, 2",
        )?;
        let rows = query.query_map(params![since, until, parts as i64], |row| {
            let at = usize::try_from(row.get::<_, i64>(0)?).unwrap_or(0);
            Ok(Bucket { at, outcome: row.get(1)?, jobs: row.get::<_, i64>(2)?.unsigned_abs() })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The route of each job that ended in this time, with the seconds that it waited.
    pub fn each_wait(
        &self,
        since: Timestamp,
        until: Timestamp,
        take: impl FnMut(Option<String>, f64),
    ) -> Result<(), HistoryError> {
        self.each_span(
            "SELECT route, (SELECT min(a.started_at) FROM attempts a WHERE a.job = jobs.id) - arrived_at AS span FROM jobs
             WHERE state IN ('done', 'failed', 'cancelled') AND finished_at >= ?1 AND finished_at < ?2",
            since,
            until,
            take,
        )
    }

    /// The route of each attempt that was done in this time, with the seconds that it ran.
    pub fn each_run(
        &self,
        since: Timestamp,
        until: Timestamp,
        take: impl FnMut(Option<String>, f64),
    ) -> Result<(), HistoryError> {
        let sql = "SELECT route, ran AS span FROM tries WHERE outcome = 'done' AND ended_at >= ?1 AND ended_at < ?2";
        self.each_span(sql, since, until, take)
    }

    fn each_span(
        &self,
        sql: &str,
        since: Timestamp,
        until: Timestamp,
        mut take: impl FnMut(Option<String>, f64),
    ) -> Result<(), HistoryError> {
        let mut query = self.connection.prepare(&format!("SELECT route, span FROM ({sql}) WHERE span >= 0"))?;
        let mut rows = query.query(params![instant(since), instant(until)])?;
        while let Some(row) = rows.next()? {
            take(row.get(0)?, row.get::<_, i64>(1)? as f64 / 1e9);
        }
        Ok(())
    }

    /// The devices' samples, in this many equal parts of the time.
    pub fn seen(&self, since: Timestamp, until: Timestamp, parts: usize) -> Result<Vec<Seen>, HistoryError> {
        let Some(from) = self.sampled() else { return Ok(Vec::new()) };
        let mut query = from.prepare(
            "SELECT id, min((at - ?1) * ?3 / max(1, ?2 - ?1), ?3 - 1) AS part,
                 sum(utilization_sum) / sum(utilization_n), sum(memory_sum) / sum(memory_n)
             FROM sample_minutes JOIN sample_devices ON device = n
             WHERE at >= ?1 AND at < ?2 GROUP BY id, part ORDER BY id, part",
        )?;
        let rows = query.query_map(params![since.as_second(), until.as_second(), parts as i64], |row| {
            let at = usize::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
            Ok(Seen { device: row.get(0)?, at, utilization: row.get(2)?, memory: row.get(3)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Every device that was sampled.
    pub fn sampled_devices(&self) -> Result<Vec<Sampled>, HistoryError> {
        let Some(from) = self.sampled() else { return Ok(Vec::new()) };
        let mut query =
            from.prepare("SELECT id, number, name, memory_total FROM sample_devices ORDER BY number, id")?;
        let rows = query.query_map([], |row| {
            let memory_total = row.get::<_, Option<i64>>(3)?.map(i64::unsigned_abs);
            Ok(Sampled { id: row.get(0)?, index: row.get(1)?, name: row.get(2)?, memory_total })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
