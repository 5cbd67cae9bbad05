//! What ran on a device when, in a fixed number of parts of the time: memory doesn't grow with what ran. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::svg::Drawing;
use crate::ledger::Try;

/// Parts of the time.
pub(super) const PARTS: usize = 480;
const HEIGHT: usize = 26;

/// The devices, each with its line.
#[derive(Debug)]
pub(super) struct Timeline {
    since: i128,
    until: i128,
    pub(super) lines: BTreeMap<String, Line>,
}

#[derive(Debug)]
pub(super) struct Line {
    /// How much of each part something ran: with several slots it may be more than all of it.
    busy: Vec<f32>,
    /// How many ended in each part, and how many of them failed.
    ended: Vec<u32>,
    failed: Vec<u32>,
    /// Up to when the line is covered, and how long it was in all (nanoseconds).
    covered_until: i128,
    covered: i128,
}

impl Timeline {
    pub(super) fn new(since: Timestamp, until: Timestamp) -> Timeline {
        let (since, until) = (since.as_nanosecond(), until.as_nanosecond());
        Timeline { since, until: until.max(since + 1), lines: BTreeMap::new() }
    }

    pub(super) fn add_device(&mut self, id: &str) -> &mut Line {
        let covered_until = self.since;
        self.lines.entry(id.to_owned()).or_insert_with(|| {
            let none = || vec![0; PARTS];
            Line { busy: vec![0.0; PARTS], ended: none(), failed: none(), covered_until, covered: 0 }
        })
    }

    /// One attempt; they come in the order of their beginnings.
    pub(super) fn note(&mut self, row: &Try) {
        let Some(began) = row.started_at.or(row.ended_at) else { return };
        let (since, until) = (self.since, self.until);
        let from = began.as_nanosecond().clamp(since, until);
        let running = row.outcome == "running";
        let to = row.ended_at.map_or(if running { until } else { from }, |at| at.as_nanosecond()).clamp(from, until);
        let part = (until - since) as f64 / PARTS as f64;
        let at = |moment: i128| (moment - since) as f64 / part;
        for device in &row.devices {
            let line = self.add_device(device);
            line.covered += (to - from.max(line.covered_until)).max(0);
            line.covered_until = line.covered_until.max(to);
            let (first, last) = (at(from), at(to));
            for n in (first as usize)..=(last as usize).min(PARTS - 1) {
                let overlap = (last.min(n as f64 + 1.0) - first.max(n as f64)).max(0.0);
                line.busy[n] += overlap as f32;
            }
            if !running {
                let part = (last as usize).min(PARTS - 1);
                line.ended[part] += 1;
                line.failed[part] += u32::from(row.outcome == "failed");
            }
        }
    }

    /// How much of the time something ran.
    pub(super) fn share(&self, line: &Line) -> f64 {
        line.covered as f64 / (self.until - self.since) as f64
    }
}

impl Line {
    pub(super) fn draw(&self, about: &str) -> String {
        let mut drawing = Drawing::new(PARTS, HEIGHT, about);
        // Neighbours that look alike are one bar.
        let level = |busy: f32| if busy <= 0.0 { 0 } else { ((busy.min(1.0) * 4.0).ceil() as usize).clamp(1, 4) };
        let mut from = 0;
        for n in 1..=PARTS {
            let shade = level(self.busy[from]);
            if n == PARTS || level(self.busy[n]) != shade {
                let class = ["", "done l1", "done l2", "done l3", "done"][shade];
                if shade > 0 {
                    drawing.bar(from as f64, 0.0, (n - from) as f64, HEIGHT as f64, class, "");
                }
                from = n;
            }
        }
        for (n, failed) in self.failed.iter().enumerate().filter(|(_, failed)| **failed > 0) {
            let ended = self.ended[n];
            // As high as the share that failed, so that one of thousands doesn't look like all.
            let height = (f64::from(*failed) / f64::from(ended)).max(0.15) * HEIGHT as f64;
            drawing.bar(n as f64 - 0.5, 0.0, 2.0, height, "failed", &format!("{failed} of {ended} failed"));
        }
        drawing.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(from: i64, to: Option<i64>, outcome: &str) -> Try {
        let at = |second: i64| Timestamp::from_second(second).ok();
        Try {
            id: String::new(),
            job: String::new(),
            name: String::new(),
            name_b64: String::new(),
            folder: String::new(),
            route: None,
            attempt: 1,
            outcome: outcome.to_owned(),
            devices: vec!["g".to_owned()],
            arrived_at: None,
            started_at: at(from),
            ended_at: to.and_then(at),
            seconds: None,
            exit_code: None,
            signal: None,
            reason: None,
            counted: None,
            peak_gpu_memory: None,
            energy_joules: None,
        }
    }

    #[test]
    fn what_ran_at_the_same_time_is_counted_once_and_gaps_are_seen() {
        // One part is one second.
        let check = |rows: &[Try], share: f64, bars: &[&str]| {
            let at = |second: i64| Timestamp::from_second(second).expect("a time");
            let mut timeline = Timeline::new(at(1000), at(1000 + PARTS as i64));
            rows.iter().for_each(|row| timeline.note(row));
            let line = &timeline.lines["g"];
            assert!((timeline.share(line) - share).abs() < 1e-9, "{} {share}", timeline.share(line));
            let drawn = line.draw("g");
            let found: Vec<String> = drawn
                .split("<rect ")
                .skip(1)
                .map(|bar| {
                    let word = |key: &str| bar.split(&format!("{key}=\"")).nth(1).and_then(|it| it.split('"').next());
                    format!("{} {}+{}", word("class").expect("it"), word("x").expect("it"), word("width").expect("it"))
                })
                .collect();
            assert_eq!(found, bars);
        };
        let whole = PARTS as f64;
        check(
            &[row(1010, Some(1020), "done"), row(1030, Some(1040), "done")],
            20.0 / whole,
            &["done 10.00+10.00", "done 30.00+10.00"],
        );
        check(
            &[row(1010, Some(1020), "done"), row(1015, Some(1030), "failed")],
            20.0 / whole,
            &["done 10.00+20.00", "failed 29.50+2.00"],
        );
        // Cut to the window; what runs runs on.
        check(
            &[row(0, Some(1001), "done"), row(1000 + PARTS as i64 - 1, None, "running")],
            2.0 / whole,
            &["done 0.00+1.00", "done 479.00+1.00"],
        );
        check(&[row(1010, None, "cut")], 0.0, &[]);
        check(&[row(1009, Some(1005), "failed")], 0.0, &["failed 8.50+2.00"]);
    }
}
