//! The tables, seen from the writer: rows in, rows out, within whatever transaction the caller has open.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::row::Account;
use crate::item::{Attempt, Counters, JobId, ResultRecord, plus};

/// The tables of an open transaction.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a>(pub(super) &'a Connection);

impl Tables<'_> {
    /// Writes a job, its attempts and its result over what was known of them.
    pub(super) fn put(self, account: &Account) -> rusqlite::Result<()> {
        let Account { row, attempts, result } = account;
        let id = row.id.to_string();
        self.0
            .prepare_cached(
                "INSERT INTO jobs (id, job, place, name, shown, folder, route, state, attempts, devices,
                     arrived_at, claimed_at, finished_at, reason, message, gpu_memory)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
                 ON CONFLICT (id) DO UPDATE SET job = ?2, place = ?3, name = ?4, shown = ?5, folder = ?6, route = ?7,
                     state = ?8, attempts = ?9, devices = ?10, arrived_at = ?11, claimed_at = ?12, finished_at = ?13,
                     reason = ?14, message = ?15, gpu_memory = ?16",
            )?
            .execute(params![
                id,
                row.job,
                row.place,
                row.name.as_bytes(),
                row.name.escaped(),
                row.folder,
                row.route,
                row.state,
                row.attempts,
                list(&row.devices),
                row.arrived_at.and_then(nanoseconds),
                row.claimed_at.and_then(nanoseconds),
                row.finished_at.and_then(nanoseconds),
                row.reason,
                row.message,
                row.gpu_memory.and_then(|bytes| i64::try_from(bytes).ok()),
            ])?;
        for attempt in attempts {
            self.put_attempt(&id, attempt)?;
        }
        self.put_reported(&id, result.as_deref())
    }

    /// Replaces what a job's workers said, and keeps the sums over all jobs.
    fn put_reported(self, job: &str, result: Option<&ResultRecord>) -> rusqlite::Result<()> {
        let before: Option<Option<String>> = self
            .0
            .prepare_cached("SELECT counters FROM reported WHERE job = ?1")?
            .query_row([job], |row| row.get(0))
            .optional()?;
        let before = before.map(|counters| counters.and_then(|json| serde_json::from_str(&json).ok()));
        if let Some(Some(counters)) = &before {
            self.change_sums(counters, -1)?;
        }
        let said = result.filter(|result| result.result.is_some() || !result.counters.is_empty());
        let Some(said) = said else {
            if before.is_some() {
                self.0.prepare_cached("DELETE FROM reported WHERE job = ?1")?.execute([job])?;
            }
            return Ok(());
        };
        self.change_sums(&said.counters, 1)?;
        let counters = Some(&said.counters).filter(|counters| !counters.is_empty());
        let counters = counters.and_then(|counters| serde_json::to_string(counters).ok());
        self.0.prepare_cached("INSERT OR REPLACE INTO reported VALUES (?1, ?2, ?3)")?.execute(params![
            job,
            said.result.as_ref().map(|result| result.get()),
            counters
        ])?;
        Ok(())
    }

    /// Adds a job's counters to the sums, or takes them out. The sum is made here: SQLite's own is rounded otherwise.
    fn change_sums(self, counters: &Counters, jobs: i64) -> rusqlite::Result<()> {
        for (name, by) in counters.iter() {
            let known: Option<(i64, f64)> = self
                .0
                .prepare_cached("SELECT jobs, sum FROM counters WHERE name = ?1")?
                .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let (of, sum) = known.unwrap_or_default();
            if of + jobs > 0 {
                self.0.prepare_cached("INSERT OR REPLACE INTO counters VALUES (?1, ?2, ?3)")?.execute(params![
                    name,
                    of + jobs,
                    plus(sum, by * jobs as f64)
                ])?;
            } else {
                self.0.prepare_cached("DELETE FROM counters WHERE name = ?1")?.execute([name])?;
            }
        }
        Ok(())
    }

    fn put_attempt(self, job: &str, attempt: &Attempt) -> rusqlite::Result<()> {
        let devices: Vec<String> = attempt.devices.iter().map(|device| device.0.clone()).collect();
        let ended_at = attempt.ended_at.and_then(nanoseconds);
        self.0
            .prepare_cached(
                "INSERT OR REPLACE INTO attempts (job, n, devices, pid, started_at, ended_at, exit_code, signal,
                     reason, peak_gpu_memory, energy_joules, counted)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                job,
                attempt.n,
                list(&devices),
                attempt.pid,
                attempt.started_at.and_then(nanoseconds),
                ended_at,
                attempt.exit_code,
                attempt.signal,
                attempt.reason.map(|reason| reason.as_str()),
                attempt.peak_gpu_memory.and_then(|bytes| i64::try_from(bytes).ok()),
                attempt.energy_joules,
                attempt.counted,
            ])?;
        for device in &devices {
            self.0
                .prepare_cached(
                    "INSERT INTO devices VALUES (?1, ?2) ON CONFLICT (id)
                     DO UPDATE SET last_used = max(coalesce(last_used, 0), coalesce(?2, 0))",
                )?
                .execute(params![device, ended_at])?;
        }
        Ok(())
    }

    pub(super) fn forget(self, id: &str) -> rusqlite::Result<()> {
        self.0.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([id])?;
        self.0.prepare_cached("DELETE FROM attempts WHERE job = ?1")?.execute([id])?;
        self.put_reported(id, None)
    }

    /// Where a job is known to lie, and under which name.
    pub(super) fn place_of(self, id: JobId) -> rusqlite::Result<Option<(String, String)>> {
        self.0
            .prepare_cached("SELECT place, job FROM jobs WHERE id = ?1")?
            .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    }

    /// The ids and directory names of a place's jobs, from after an id on.
    pub(super) fn jobs_at(self, place: &str, after: &str, limit: usize) -> rusqlite::Result<Vec<(String, String)>> {
        self.0
            .prepare_cached("SELECT id, job FROM jobs WHERE place = ?1 AND id > ?2 ORDER BY id LIMIT ?3")?
            .query_map(params![place, after, limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    }

    /// The next place that jobs are known at, in the order of names.
    pub(super) fn place_after(self, place: &str) -> rusqlite::Result<Option<String>> {
        self.0.prepare_cached("SELECT min(place) FROM jobs WHERE place > ?1")?.query_row([place], |row| row.get(0))
    }

    /// When a day directory had last changed when it was read whole, in nanoseconds.
    pub(super) fn day(self, place: &str) -> rusqlite::Result<Option<i64>> {
        self.0
            .prepare_cached("SELECT changed_at FROM days WHERE place = ?1")?
            .query_row([place], |row| row.get(0))
            .optional()
    }

    pub(super) fn set_day(self, place: &str, changed_at: Option<i64>) -> rusqlite::Result<()> {
        match changed_at {
            Some(at) => {
                self.0.prepare_cached("INSERT OR REPLACE INTO days VALUES (?1, ?2)")?.execute(params![place, at])?
            }
            None => self.0.prepare_cached("DELETE FROM days WHERE place = ?1")?.execute([place])?,
        };
        Ok(())
    }

    /// The latest moment that any row speaks of, in nanoseconds.
    pub(super) fn newest(self) -> rusqlite::Result<Option<i64>> {
        self.0.query_row("SELECT max(max(coalesce(finished_at, 0), coalesce(claimed_at, 0))) FROM jobs", [], |row| {
            row.get(0)
        })
    }

    /// What a director that ended called running or retrying waits in `claimed/` for the next one.
    pub(super) fn settle_live(self) -> rusqlite::Result<()> {
        self.0.execute("UPDATE jobs SET state = 'claimed' WHERE state IN ('running', 'retrying')", [])?;
        Ok(())
    }

    /// Every directory was read since the file was made: what isn't here doesn't exist.
    pub(super) fn set_complete(self) -> rusqlite::Result<()> {
        self.0.execute("UPDATE meta SET value = '1' WHERE key = 'complete' AND value <> '1'", [])?;
        Ok(())
    }
}

/// As a JSON array.
fn list(words: &[String]) -> String {
    serde_json::Value::from(words).to_string()
}

/// 64 bits reach to the year 2262; what lies beyond is a broken clock's, and unknown.
pub(super) fn nanoseconds(at: Timestamp) -> Option<i64> {
    i64::try_from(at.as_nanosecond()).ok()
}
