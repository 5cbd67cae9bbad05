//! `gamdok stats`: how long items waited and ran, how attempts failed, and what they used, by route and by device.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::source::Source;
use super::table::{Column, Table};
use super::trouble::{Trouble, exit};
use super::window::{When, when};
use super::{Global, output};
use crate::ledger::{self, OfDevice, OfRoute, Spread, Window};

#[derive(Debug, Args)]
pub(super) struct Stats {
    /// Only of what ended since then: `24h`, `7d`, or a date or a time (UTC) as 2026-11-22 or 2026-11-22T10:00
    #[arg(long, value_name = "DUR|DATE", value_parser = when)]
    since: Option<When>,
}

impl Stats {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let now = Timestamp::now();
        let window = Window { since: self.since.map(|it| it.moment(now)), until: now };
        let stats = Source::open(global)?.past()?.stats(&window)?;
        if global.json {
            output::json(&stats)?;
        } else {
            output::print(&render(&stats, output::width()))?;
        }
        Ok(exit::OK)
    }
}

fn render(stats: &ledger::Stats, width: usize) -> String {
    if stats.total.jobs.total() + stats.total.attempts.total() == 0 {
        return "nothing has ended\n".to_owned();
    }
    let mut text = String::new();
    let all = (stats.routes.len() > 1).then_some(&stats.total);
    let routes = || stats.routes.iter().map(|it| (route(it), it)).chain(all.map(|it| ("(all)".to_owned(), it)));
    let mut items = Table::new(&[
        Column::name("ROUTE", 6),
        Column::number("DONE"),
        Column::number("FAILED"),
        Column::number("CANCELLED"),
        Column::number("WAIT P50"),
        Column::number("P95"),
        Column::number("RUN P50"),
        Column::number("P95"),
    ]);
    let mut used = Table::new(&[
        Column::name("ROUTE", 6),
        Column::number("ATTEMPTS"),
        Column::number("GPU-HOURS"),
        Column::number("CPU-HOURS"),
        Column::number("ENERGY"),
        Column::fixed("PEAK"),
        Column::fixed("DECLARED"),
        Column::number("OVER"),
    ]);
    for (name, it) in routes() {
        let OfRoute { jobs, waiting, running, .. } = it;
        items.row([
            name.clone(),
            number(jobs.done),
            number(jobs.failed),
            number(jobs.cancelled),
            time(waiting.p50),
            time(waiting.p95),
            time(running.p50),
            time(running.p95),
        ]);
        used.row([
            name,
            it.attempts.total().to_string(),
            hours(it.gpu_hours),
            hours(it.cpu_hours),
            energy(it.energy_joules),
            it.peak_gpu_memory.map(output::size).unwrap_or_default(),
            it.declared_gpu_memory.map(output::size).unwrap_or_default(),
            number(it.over_declared),
        ]);
    }
    let _ = write!(text, "{}\n{}", items.render(width), used.render(width));
    if !stats.devices.is_empty() {
        let _ = write!(text, "\n{}", devices(&stats.devices, width));
    }
    if !stats.total.failures.is_empty() {
        let _ = write!(text, "\n{}", failures(stats, width));
    }
    text
}

fn devices(devices: &[OfDevice], width: usize) -> String {
    let mut table = Table::new(&[
        Column::name("DEVICE", 8),
        Column::number("DONE"),
        Column::number("FAILED"),
        Column::number("CUT"),
        Column::number("RUN P50"),
        Column::number("P95"),
        Column::number("HOURS"),
        Column::number("ENERGY"),
        Column::fixed("PEAK"),
    ]);
    for it in devices {
        let Spread { p50, p95, .. } = it.running;
        table.row([
            it.device.clone(),
            number(it.attempts.done),
            number(it.attempts.failed),
            number(it.attempts.cut),
            time(p50),
            time(p95),
            hours(it.hours),
            energy(it.energy_joules),
            it.peak_gpu_memory.map(output::size).unwrap_or_default(),
        ]);
    }
    table.render(width)
}

/// Attempts that failed, by route and reason, the most first.
fn failures(stats: &ledger::Stats, width: usize) -> String {
    let mut rows: Vec<(u64, String, &str)> = Vec::new();
    for it in &stats.routes {
        rows.extend(it.failures.iter().map(|(reason, n)| (*n, route(it), reason.as_str())));
    }
    rows.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| (&a.1, a.2).cmp(&(&b.1, b.2))));
    let mut table = Table::new(&[Column::number("FAILED"), Column::fixed("REASON"), Column::name("ROUTE", 6)]);
    for (n, route, reason) in rows {
        table.row([n.to_string(), reason.to_owned(), route]);
    }
    table.render(width)
}

fn route(of: &OfRoute) -> String {
    of.route.clone().unwrap_or_else(|| "(unknown)".to_owned())
}

/// Nothing for none: the eye finds the others.
fn number(n: u64) -> String {
    if n == 0 { String::new() } else { n.to_string() }
}

fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => String::new(),
        Some(seconds) if seconds < 10.0 => format!("{seconds:.1}s"),
        Some(seconds) => output::span(Duration::try_from_secs_f64(seconds).unwrap_or_default()),
    }
}

fn hours(hours: f64) -> String {
    if hours == 0.0 { String::new() } else { format!("{hours:.2}") }
}

fn energy(joules: Option<f64>) -> String {
    match joules {
        None => String::new(),
        Some(joules) if joules < 3.6e5 => format!("{:.1} kJ", joules / 1e3),
        Some(joules) => format!("{:.2} kWh", joules / 3.6e6),
    }
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::*;
    use crate::ledger::Outcomes;

    #[test]
    fn statistics_fit_eighty_columns() {
        let spread = |p50: f64| Spread { count: 9, p50: Some(p50), p95: Some(p50 * 9.0), max: Some(p50 * 10.0) };
        let outcomes = Outcomes { done: 1_200_000, failed: 3, cancelled: 1, cut: 2 };
        let one = OfRoute {
            route: Some("transcribe-long-recordings".to_owned()),
            jobs: outcomes.clone(),
            attempts: outcomes.clone(),
            waiting: spread(3.25),
            running: spread(125.0),
            failures: [("exit".to_owned(), 2), ("out-of-memory".to_owned(), 1)].into(),
            gpu_hours: 41_666.666,
            energy_joules: Some(7.2e8),
            energy_attempts: 1000,
            peak_gpu_memory: Some(9 << 30),
            declared_gpu_memory: Some(8 << 30),
            over_declared: 4,
            ..OfRoute::default()
        };
        let other = OfRoute { jobs: Outcomes { done: 4, ..Outcomes::default() }, cpu_hours: 0.5, ..OfRoute::default() };
        let device = OfDevice {
            device: "GPU-11111111-2222-3333-4444-555555555555".to_owned(),
            attempts: outcomes,
            running: spread(125.0),
            hours: 41_666.666,
            energy_joules: Some(1000.0),
            peak_gpu_memory: Some(9 << 30),
            ..OfDevice::default()
        };
        let stats = ledger::Stats {
            since: None,
            until: Timestamp::UNIX_EPOCH,
            total: OfRoute { route: None, ..one.clone() },
            routes: vec![one, other],
            devices: vec![device],
        };
        let text = render(&stats, 80);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        insta::assert_snapshot!(text, @r#"
        ROUTE                   DONE  FAILED  CANCELLED  WAIT P50  P95  RUN P50      P95
        transcrib…ecordings  1200000       3          1      3.2s  29s    2m 5s  18m 45s
        (unknown)                  4
        (all)                1200000       3          1      3.2s  29s    2m 5s  18m 45s

        ROUTE        ATTEMPTS  GPU-HOURS  CPU-HOURS      ENERGY  PEAK     DECLARED  OVER
        trans…dings   1200006   41666.67             200.00 kWh  9.0 GiB  8.0 GiB      4
        (unknown)           0                  0.50
        (all)         1200006   41666.67             200.00 kWh  9.0 GiB  8.0 GiB      4

        DEVICE            DONE  FAILED  CUT  RUN P50      P95     HOURS  ENERGY  PEAK
        GPU-11…555555  1200000       3    2    2m 5s  18m 45s  41666.67  1.0 kJ  9.0 GiB

        FAILED  REASON         ROUTE
             2  exit           transcribe-long-recordings
             1  out-of-memory  transcribe-long-recordings
        "#);
    }
}
