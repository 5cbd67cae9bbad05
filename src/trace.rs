//! The past as a trace that Perfetto and Chrome's tracing open (Trace Event Format, the JSON object form): a process for
//! each device with a track for each of its slots, a slice for each attempt, and an instant for each claim. Streamed:
//! memory doesn't grow with what is traced.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::ledger::{Claim, Direction, Filter, History, HistoryError, Try};

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("cannot write it: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Read(#[from] HistoryError),
}

/// What isn't on a device.
const QUEUE: u32 = 1;
/// More at a time are drawn over each other.
const MOST_TRACKS: usize = 1024;

/// A trace in the making.
pub struct Trace<W: Write> {
    to: W,
    /// What runs still ends there, as far as can be told.
    now: Timestamp,
    devices: BTreeMap<String, Tracks>,
    any: bool,
}

/// A device's slots, as far as they are seen: when each of them is free (nanoseconds).
struct Tracks {
    pid: u32,
    free: Vec<i128>,
}

impl<W: Write> Trace<W> {
    pub fn new(mut to: W, now: Timestamp) -> Result<Trace<W>, TraceError> {
        let head = json!({ "product": "gamdok", "version": env!("CARGO_PKG_VERSION"), "written_at": now });
        write!(to, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{head},\"traceEvents\":[")?;
        let mut trace = Trace { to, now, devices: BTreeMap::new(), any: false };
        trace.name("process_name", QUEUE, 0, "queue")?;
        trace.name("thread_name", QUEUE, 1, "claims")?;
        Ok(trace)
    }

    /// All that is wanted of the past, and the end.
    pub fn write(mut self, past: &History, filter: &Filter, limit: Option<usize>) -> Result<(), TraceError> {
        for device in past.sampled_devices()? {
            self.device(&device.id, &words(device.index, &device.name))?;
        }
        past.each(filter, Direction::OldestFirst, limit, |row| self.attempt(&row))?;
        // A claim has no device and no outcome, so that a filter by them leaves it out.
        if filter.outcomes.is_empty() && filter.device.is_none() && filter.reason.is_none() && limit.is_none() {
            past.each_claim(filter.since, filter.until, |claim| match &filter.route {
                Some(route) if claim.route.as_ref() != Some(route) => Ok(()),
                _ => self.claim(&claim),
            })?;
        }
        self.finish()
    }

    fn finish(mut self) -> Result<(), TraceError> {
        self.to.write_all(b"\n]}\n")?;
        Ok(self.to.flush()?)
    }

    fn event(&mut self, event: &Value) -> Result<(), TraceError> {
        self.to.write_all(if std::mem::replace(&mut self.any, true) { b",\n" } else { b"\n" })?;
        serde_json::to_writer(&mut self.to, event).map_err(io::Error::from)?;
        Ok(())
    }

    fn name(&mut self, what: &str, pid: u32, tid: usize, name: &str) -> Result<(), TraceError> {
        self.event(&json!({ "ph": "M", "name": what, "pid": pid, "tid": tid, "args": { "name": name } }))
    }

    /// The process that stands for a device.
    fn device(&mut self, id: &str, about: &str) -> Result<u32, TraceError> {
        if let Some(known) = self.devices.get(id) {
            return Ok(known.pid);
        }
        let pid = QUEUE + 1 + self.devices.len() as u32;
        self.devices.insert(id.to_owned(), Tracks { pid, free: Vec::new() });
        let shown = if about.is_empty() { id.to_owned() } else { format!("{about} {id}") };
        self.name("process_name", pid, 0, &shown)?;
        Ok(pid)
    }

    /// A track of the device on which nothing lies at this time: slices of one track may not overlap.
    fn track(&mut self, id: &str, from: i128, to: i128) -> Result<(u32, usize), TraceError> {
        let pid = self.device(id, "")?;
        let Some(tracks) = self.devices.get_mut(id) else { return Ok((pid, 1)) };
        let at = match tracks.free.iter().position(|free| *free <= from) {
            Some(at) => at,
            None if tracks.free.len() == MOST_TRACKS => return Ok((pid, MOST_TRACKS)),
            None => {
                tracks.free.push(0);
                tracks.free.len() - 1
            }
        };
        let new = tracks.free[at] == 0;
        tracks.free[at] = to.max(1);
        if new {
            self.name("thread_name", pid, at + 1, &format!("slot {}", at + 1))?;
        }
        Ok((pid, at + 1))
    }

    fn attempt(&mut self, row: &Try) -> Result<(), TraceError> {
        let Some(began) = row.started_at.or(row.ended_at) else { return Ok(()) };
        let running = (row.outcome == "running").then_some(self.now);
        let ended = row.ended_at.or(running).unwrap_or(began).max(began);
        let (from, to) = (began.as_nanosecond(), ended.as_nanosecond());
        let mut event = Map::new();
        event.insert("ph".to_owned(), "X".into());
        event.insert("name".to_owned(), title(row).into());
        event.insert("cat".to_owned(), row.route.as_deref().unwrap_or("unknown").into());
        event.insert("ts".to_owned(), micros(from));
        event.insert("dur".to_owned(), micros(to - from));
        match row.outcome.as_str() {
            "failed" => drop(event.insert("cname".to_owned(), "terrible".into())),
            "cancelled" | "cut" => drop(event.insert("cname".to_owned(), "grey".into())),
            _ => {}
        }
        event.insert("args".to_owned(), arguments(row));
        for device in &row.devices {
            let (pid, tid) = self.track(device, from, to)?;
            event.insert("pid".to_owned(), pid.into());
            event.insert("tid".to_owned(), tid.into());
            self.event(&Value::Object(event.clone()))?;
        }
        Ok(())
    }

    fn claim(&mut self, claim: &Claim) -> Result<(), TraceError> {
        self.event(&json!({
            "ph": "i", "s": "t", "name": format!("claim {}", claim.name), "cat": "claim", "pid": QUEUE, "tid": 1,
            "ts": micros(claim.claimed_at.as_nanosecond()),
            "args": { "job": claim.job, "item": claim.name, "route": claim.route },
        }))
    }
}

/// The item's name; of one that didn't end well also why.
fn title(row: &Try) -> String {
    match (row.outcome.as_str(), &row.reason) {
        ("failed", Some(reason)) => format!("✗ {} ({reason})", row.name),
        ("cancelled" | "cut", _) => format!("{} ({})", row.name, row.outcome),
        _ => row.name.clone(),
    }
}

/// What is known of it.
fn arguments(row: &Try) -> Value {
    let mut known = json!({
        "item": row.name, "job": row.job, "route": row.route, "attempt": row.attempt, "outcome": row.outcome,
        "reason": row.reason, "exit_code": row.exit_code, "signal": row.signal, "counted": row.counted,
        "peak_gpu_memory": row.peak_gpu_memory, "energy_joules": row.energy_joules, "arrived_at": row.arrived_at,
    });
    if let Some(known) = known.as_object_mut() {
        known.retain(|_, value| !value.is_null());
    }
    known
}

fn words(index: Option<u32>, name: &str) -> String {
    match index {
        Some(index) => format!("GPU {index} {name}"),
        None => name.to_owned(),
    }
}

/// Microseconds, as the format has its times.
fn micros(nanoseconds: i128) -> Value {
    (nanoseconds as f64 / 1000.0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, from: i64, to: Option<i64>, devices: &[&str]) -> Try {
        let at = |second: i64| Timestamp::from_second(second).ok();
        Try {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            job: format!("{name}~01ARZ3NDEKTSV4RRFFQ69G5FAV"),
            name: name.to_owned(),
            name_b64: String::new(),
            folder: String::new(),
            route: Some("r".to_owned()),
            attempt: 1,
            outcome: if to.is_some() { "done" } else { "running" }.to_owned(),
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
            arrived_at: None,
            started_at: at(from),
            ended_at: to.and_then(at),
            seconds: None,
            exit_code: Some(0),
            signal: None,
            reason: None,
            counted: Some(true),
            peak_gpu_memory: None,
            energy_joules: None,
        }
    }

    /// `name pid.tid from+length`, of slices.
    fn check(rows: &[Try], expected: &[&str]) {
        let mut text = Vec::new();
        let now = Timestamp::from_second(100).expect("a time");
        let mut trace = Trace::new(&mut text, now).expect("begun");
        rows.iter().for_each(|row| trace.attempt(row).expect("written"));
        trace.finish().expect("written");
        let trace: Value = serde_json::from_slice(&text).expect("JSON");
        let events = trace["traceEvents"].as_array().expect("events");
        let slices = events.iter().filter(|event| event["ph"] == "X").map(|event| {
            let number = |key: &str| event[key].as_f64().expect(key);
            let (ts, dur) = (number("ts") / 1e6, number("dur") / 1e6);
            format!("{} {}.{} {ts}+{dur}", event["name"].as_str().expect("a name"), event["pid"], event["tid"])
        });
        assert_eq!(slices.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn slices_of_one_track_never_overlap() {
        check(
            &[
                row("a", 1, Some(5), &["g"]),
                row("b", 2, Some(3), &["g"]),
                row("c", 3, Some(9), &["g", "h"]),
                row("d", 4, Some(6), &["g"]),
                row("e", 5, None, &["g"]),
            ],
            &["a 2.1 1+4", "b 2.2 2+1", "c 2.2 3+6", "c 3.1 3+6", "d 2.3 4+2", "e 2.1 5+95"],
        );
        // A clock that was set back, and one that never started.
        let unstarted = Try { started_at: None, ..row("y", 0, Some(7), &["g"]) };
        check(&[row("x", 9, Some(3), &["g"]), unstarted], &["x 2.1 9+0", "y 2.2 7+0"]);
        let failed =
            Try { outcome: "failed".into(), reason: Some("exit".into()), ..row("</script>\"", 1, Some(2), &["g"]) };
        check(&[failed], &["✗ </script>\" (exit) 2.1 1+1"]);
    }
}
