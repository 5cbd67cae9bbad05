//! What attempts and jobs were like, by route and by device. SQL does the work; percentiles are exact (nearest rank).
//!
//! A job counts when it ended in the window, an attempt when it ended in it, and hours are cut to it. *Waiting* is from a
//! job's arrival to the start of its first attempt, *running* from the start to the end of an attempt that was done.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::params_from_iter;
use rusqlite::types::Value;
use serde::Serialize;

use super::history::{Condition, History, HistoryError, instant};
use crate::devices::DeviceId;

/// The time that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// None: from the beginning.
    pub since: Option<Timestamp>,
    pub until: Timestamp,
}

/// Seconds: the half of all were no longer, and 95 of 100.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub count: u64,
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub max: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Outcomes {
    pub done: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Attempts that the end of a director cut short; no job has this.
    #[serde(skip_serializing_if = "is_zero")]
    pub cut: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Outcomes {
    fn add(&mut self, word: &str, n: u64) {
        match word {
            "done" => self.done += n,
            "failed" => self.failed += n,
            "cancelled" => self.cancelled += n,
            _ => self.cut += n,
        }
    }

    pub fn total(&self) -> u64 {
        self.done + self.failed + self.cancelled + self.cut
    }
}

/// What is told of a route, and of all together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OfRoute {
    /// None for all, and for jobs whose route isn't known.
    pub route: Option<String>,
    pub jobs: Outcomes,
    pub attempts: Outcomes,
    pub waiting: Spread,
    pub running: Spread,
    /// Attempts that failed, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Each GPU of each attempt.
    pub gpu_hours: f64,
    /// Each attempt on a CPU slot.
    pub cpu_hours: f64,
    /// Of the attempts whose energy is known.
    pub energy_joules: Option<f64>,
    pub energy_attempts: u64,
    /// The most that one attempt's processes used, on all of its GPUs together.
    pub peak_gpu_memory: Option<u64>,
    /// What the route last declared for each GPU.
    pub declared_gpu_memory: Option<u64>,
    /// Attempts that used more than declared for all of their GPUs.
    pub over_declared: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OfDevice {
    pub device: String,
    /// As it was last sampled.
    pub index: Option<u32>,
    pub name: Option<String>,
    pub attempts: Outcomes,
    pub running: Spread,
    pub failures: BTreeMap<String, u64>,
    /// Each attempt on it: with several slots, several at a time.
    pub hours: f64,
    /// Of attempts that had this device alone and whose energy is known.
    pub energy_joules: Option<f64>,
    pub energy_attempts: u64,
    pub peak_gpu_memory: Option<u64>,
}

/// `stats --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    pub since: Option<Timestamp>,
    pub until: Timestamp,
    pub total: OfRoute,
    pub routes: Vec<OfRoute>,
    pub devices: Vec<OfDevice>,
}

/// Attempts that ended in the window.
fn ended(window: &Window) -> Condition {
    let mut condition = Condition { sql: "ended_at IS NOT NULL".to_owned(), values: Vec::new() };
    if let Some(since) = window.since {
        condition.and("ended_at >= ?", [instant(since).into()]);
    }
    condition.and("ended_at < ?", [instant(window.until).into()]);
    condition
}

/// Jobs that ended in the window.
fn finished(window: &Window) -> Condition {
    let mut condition = Condition { sql: "state IN ('done', 'failed', 'cancelled')".to_owned(), values: Vec::new() };
    if let Some(since) = window.since {
        condition.and("finished_at >= ?", [instant(since).into()]);
    }
    // One whose end isn't known belongs to all times.
    condition.and("coalesce(finished_at, 0) < ?", [instant(window.until).into()]);
    condition
}

impl History {
    pub fn stats(&self, window: &Window) -> Result<Stats, HistoryError> {
        // One moment for all the questions.
        self.connection.execute_batch("BEGIN")?;
        let stats = self.counted(window);
        self.connection.execute_batch("ROLLBACK")?;
        stats
    }

    fn counted(&self, window: &Window) -> Result<Stats, HistoryError> {
        let mut routes: BTreeMap<Option<String>, OfRoute> = BTreeMap::new();
        let mut total = OfRoute::default();
        self.jobs(window, &mut routes, &mut total)?;
        self.attempts_of_routes(window, &mut routes, &mut total)?;
        self.hours_of_routes(window, &mut routes, &mut total)?;
        self.declared(&mut routes)?;
        for (word, by_route) in [("route", true), ("NULL", false)] {
            for (key, spread) in self.waiting(window, word)? {
                of(&mut routes, &mut total, by_route, key).waiting = spread;
            }
            for (key, spread) in self.running(window, word)? {
                of(&mut routes, &mut total, by_route, key).running = spread;
            }
        }
        for (route, told) in &mut routes {
            told.route.clone_from(route);
        }
        Ok(Stats {
            since: window.since,
            until: window.until,
            total,
            routes: routes.into_values().collect(),
            devices: self.devices(window)?,
        })
    }

    fn jobs(
        &self,
        window: &Window,
        routes: &mut BTreeMap<Option<String>, OfRoute>,
        total: &mut OfRoute,
    ) -> Result<(), HistoryError> {
        let condition = finished(window);
        let sql = format!("SELECT route, state, count(*) FROM jobs WHERE {} GROUP BY 1, 2", condition.sql);
        let mut query = self.connection.prepare(&sql)?;
        let mut rows = query.query(params_from_iter(condition.params()))?;
        while let Some(row) = rows.next()? {
            let (route, state, n): (Option<String>, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            routes.entry(route).or_default().jobs.add(&state, n.unsigned_abs());
            total.jobs.add(&state, n.unsigned_abs());
        }
        Ok(())
    }

    fn attempts_of_routes(
        &self,
        window: &Window,
        routes: &mut BTreeMap<Option<String>, OfRoute>,
        total: &mut OfRoute,
    ) -> Result<(), HistoryError> {
        let condition = ended(window);
        let sql = format!(
            "SELECT route, outcome, reason, count(*), sum(energy), count(energy), max(peak),
                 count(CASE WHEN peak > declared * json_array_length(devices) THEN 1 END)
             FROM tries WHERE {} GROUP BY 1, 2, 3",
            condition.sql
        );
        let mut query = self.connection.prepare(&sql)?;
        let mut rows = query.query(params_from_iter(condition.params()))?;
        while let Some(row) = rows.next()? {
            let route: Option<String> = row.get(0)?;
            for told in [routes.entry(route).or_default(), &mut *total] {
                let outcome: String = row.get(1)?;
                let n = row.get::<_, i64>(3)?.unsigned_abs();
                told.attempts.add(&outcome, n);
                if let Some(reason) = row.get::<_, Option<String>>(2)?.filter(|_| outcome == "failed") {
                    *told.failures.entry(reason).or_default() += n;
                }
                told.energy_joules = sum(told.energy_joules, row.get(4)?);
                told.energy_attempts += row.get::<_, i64>(5)?.unsigned_abs();
                let peak: Option<i64> = row.get(6)?;
                told.peak_gpu_memory = told.peak_gpu_memory.max(peak.map(i64::unsigned_abs));
                told.over_declared += row.get::<_, i64>(7)?.unsigned_abs();
            }
        }
        Ok(())
    }

    fn hours_of_routes(
        &self,
        window: &Window,
        routes: &mut BTreeMap<Option<String>, OfRoute>,
        total: &mut OfRoute,
    ) -> Result<(), HistoryError> {
        let condition = ended(window);
        let sql = format!(
            "SELECT route, d.value = ?, sum({HOURS}) FROM tries, json_each(tries.devices) d WHERE {} GROUP BY 1, 2",
            condition.sql
        );
        let mut values = vec![Value::from(DeviceId::cpu().0), window.since.map_or(i64::MIN, instant).into()];
        values.extend(condition.values);
        let mut query = self.connection.prepare(&sql)?;
        let mut rows = query.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            let hours: f64 = row.get::<_, Option<f64>>(2)?.unwrap_or_default();
            for told in [routes.entry(row.get(0)?).or_default(), &mut *total] {
                *(if row.get(1)? { &mut told.cpu_hours } else { &mut told.gpu_hours }) += hours;
            }
        }
        Ok(())
    }

    /// What each route's newest job declares.
    fn declared(&self, routes: &mut BTreeMap<Option<String>, OfRoute>) -> Result<(), HistoryError> {
        let mut query = self
            .connection
            .prepare("SELECT route, max(id), gpu_memory FROM jobs WHERE gpu_memory IS NOT NULL GROUP BY route")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let declared: Option<i64> = row.get(2)?;
            if let Some(told) = routes.get_mut(&row.get::<_, Option<String>>(0)?) {
                told.declared_gpu_memory = declared.map(i64::unsigned_abs);
            }
        }
        Ok(())
    }

    fn waiting(&self, window: &Window, key: &str) -> Result<Spreads, HistoryError> {
        let condition = finished(window);
        let waited = "(SELECT min(a.started_at) FROM attempts a WHERE a.job = jobs.id) - arrived_at";
        self.spreads(key, waited, &format!("jobs WHERE {}", condition.sql), condition.values)
    }

    fn running(&self, window: &Window, key: &str) -> Result<Spreads, HistoryError> {
        let condition = ended(window);
        self.spreads(key, "ran", &format!("tries WHERE outcome = 'done' AND {}", condition.sql), condition.values)
    }

    /// The spread of a span in nanoseconds, for each value of a key. What is negative was measured by a clock that was set
    /// back, and is nothing.
    fn spreads(&self, key: &str, span: &str, from: &str, values: Vec<Value>) -> Result<Spreads, HistoryError> {
        let rank = |percent: u32| format!("max(CASE WHEN place = (n * {percent} + 99) / 100 THEN span END)");
        let sql = format!(
            "SELECT key, max(n), {}, {}, max(span) FROM (
                 SELECT key, span, row_number() OVER (PARTITION BY key ORDER BY span) AS place,
                     count(*) OVER (PARTITION BY key) AS n
                 FROM (SELECT {key} AS key, {span} AS span FROM {from}) WHERE span >= 0
             ) GROUP BY key",
            rank(50),
            rank(95)
        );
        let mut query = self.connection.prepare(&sql)?;
        let rows = query.query_map(params_from_iter(values), |row| {
            let seconds = |at: usize| row.get::<_, Option<i64>>(at).map(|it| it.map(|it| it as f64 / 1e9));
            let count = row.get::<_, i64>(1)?.unsigned_abs();
            Ok((row.get(0)?, Spread { count, p50: seconds(2)?, p95: seconds(3)?, max: seconds(4)? }))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn devices(&self, window: &Window) -> Result<Vec<OfDevice>, HistoryError> {
        let mut devices: BTreeMap<String, OfDevice> = BTreeMap::new();
        let condition = ended(window);
        let sql = format!(
            "SELECT d.value, outcome, reason, count(*), sum({HOURS}),
                 sum(CASE WHEN json_array_length(tries.devices) = 1 THEN energy END),
                 count(CASE WHEN json_array_length(tries.devices) = 1 THEN energy END),
                 max(CASE WHEN json_array_length(tries.devices) = 1 THEN peak END)
             FROM tries, json_each(tries.devices) d WHERE {} GROUP BY 1, 2, 3",
            condition.sql
        );
        let mut values = vec![window.since.map_or(i64::MIN, instant).into()];
        values.extend(condition.values.iter().cloned());
        let mut query = self.connection.prepare(&sql)?;
        let mut rows = query.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            let device: String = row.get(0)?;
            let told = devices.entry(device.clone()).or_default();
            told.device = device;
            let outcome: String = row.get(1)?;
            let n = row.get::<_, i64>(3)?.unsigned_abs();
            told.attempts.add(&outcome, n);
            if let Some(reason) = row.get::<_, Option<String>>(2)?.filter(|_| outcome == "failed") {
                *told.failures.entry(reason).or_default() += n;
            }
            told.hours += row.get::<_, Option<f64>>(4)?.unwrap_or_default();
            told.energy_joules = sum(told.energy_joules, row.get(5)?);
            told.energy_attempts += row.get::<_, i64>(6)?.unsigned_abs();
            told.peak_gpu_memory = told.peak_gpu_memory.max(row.get::<_, Option<i64>>(7)?.map(i64::unsigned_abs));
        }
        let from = format!("tries, json_each(tries.devices) d WHERE outcome = 'done' AND {}", condition.sql);
        for (device, spread) in self.spreads("d.value", "ran", &from, condition.values)? {
            if let Some(told) = device.and_then(|device| devices.get_mut(&device)) {
                told.running = spread;
            }
        }
        for device in self.sampled_devices()? {
            if let Some(told) = devices.get_mut(&device.id) {
                (told.index, told.name) = (device.index, Some(device.name));
            }
        }
        Ok(devices.into_values().collect())
    }
}

type Spreads = Vec<(Option<String>, Spread)>;

/// The hours of an attempt that lie in the window, which begins at `?`.
const HOURS: &str = "max(0, ended_at - max(started_at, ?)) / 3.6e12";

fn of<'a>(
    routes: &'a mut BTreeMap<Option<String>, OfRoute>,
    total: &'a mut OfRoute,
    by_route: bool,
    key: Option<String>,
) -> &'a mut OfRoute {
    if by_route { routes.entry(key).or_default() } else { total }
}

fn sum(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one + other),
        (one, other) => one.or(other),
    }
}
