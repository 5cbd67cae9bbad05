//! `gamdok status`: what is going on, on one screen.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use unicode_width::UnicodeWidthStr as _;

use super::source::Source;
use super::table::{Column, Table, cut_end, cut_middle, wrap};
use super::trouble::{Trouble, exit};
use super::{Global, output};
use crate::api::view::{Counts, DeviceView, DirectorState, Status as StatusView};
use crate::devices::HostMode;
use crate::health::Condition;
use crate::item::Sum;
use crate::logging::plain;

/// Rows of each kind on the screen; `list` shows all.
const ROWS: usize = 10;

#[derive(Debug, Args)]
pub(super) struct Status {}

impl Status {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let status = Source::open(global)?.status()?;
        if global.json {
            output::json(&status)?;
        } else {
            output::print(&render(&status, Timestamp::now(), output::width()))?;
        }
        Ok(exit::OK)
    }
}

fn render(status: &StatusView, now: Timestamp, width: usize) -> String {
    let mut text = String::new();
    let mut head = vec![format!("gamdok {}", status.version), state_word(status.state).to_owned()];
    head.extend(status.pid.map(|pid| format!("pid {pid}")));
    head.extend(
        status.uptime_s.map(|up| format!("up {}", output::span(Duration::try_from_secs_f64(up).unwrap_or_default()))),
    );
    if status.state != DirectorState::Stopped {
        head.push(mode_word(status.mode).to_owned());
    }
    let _ = writeln!(text, "{}", cut_end(&head.join(" · "), width));
    let _ = writeln!(text, "{}", cut_middle(&plain(&status.root), width));
    text += &wrap(&counted(&status.counts), "", width);
    for check in status.health.iter().filter(|check| check.state != Condition::Ok) {
        let word = if check.state == Condition::Failed { "FAILED" } else { "warning" };
        let what = serde_json::to_value(check.what).ok().and_then(|what| what.as_str().map(str::to_owned));
        text += &wrap(&format!("{word}: {}: {}", what.unwrap_or_default(), check.message), "", width);
    }
    if !status.devices.is_empty() {
        let _ = write!(text, "\n{}", devices(&status.devices, width));
    }
    if !status.running.is_empty() {
        let _ = write!(text, "\n{}{}", running(status, now, width), beyond(status.running.len(), "running"));
    }
    if !status.counters.is_empty() {
        let mut table = Table::new(&[Column::name("COUNTED", 16), Column::number("SUM")]);
        for (name, sum) in status.counters.iter().take(ROWS) {
            table.row([name.to_owned(), Sum(sum).to_string()]);
        }
        let _ = write!(text, "\n{}", table.render(width));
        if status.counters.len() > ROWS {
            let _ = writeln!(text, "and {} more: `gamdok status --json`", status.counters.len() - ROWS);
        }
    }
    if !status.held.is_empty() {
        let mut table = Table::new(&[Column::name("HELD", 16), Column::fixed("FOR"), Column::text("REASON", 20)]);
        for held in status.held.iter().take(ROWS) {
            table.row([held.name.clone(), output::ago(now, Some(held.since)), held.reason.clone()]);
        }
        let _ = write!(text, "\n{}{}", table.render(width), beyond(status.counts.held as usize, "held"));
    }
    text
}

fn beyond(all: usize, state: &str) -> String {
    if all > ROWS { format!("and {} more: `gamdok list --state {state}`\n", all - ROWS) } else { String::new() }
}

/// Only what there is, in the order of an item's life.
fn counted(counts: &Counts) -> String {
    let all = [
        (counts.arriving, "arriving"),
        (counts.ready, "ready"),
        (counts.held, "held"),
        (counts.ignored, "ignored"),
        (counts.claimed, "claimed"),
        (counts.running, "running"),
        (counts.retrying, "retrying"),
        (counts.done, "done"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    ];
    let some: Vec<String> = all.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    if some.is_empty() { "nothing yet".to_owned() } else { some.join(" · ") }
}

fn state_word(state: DirectorState) -> &'static str {
    match state {
        DirectorState::Running => "running",
        DirectorState::Paused => "paused",
        DirectorState::Draining => "draining",
        DirectorState::Stopped => "no director is running",
    }
}

fn mode_word(mode: HostMode) -> &'static str {
    match mode {
        HostMode::Gpu => "GPU",
        HostMode::Cpu => "CPU",
        HostMode::Sim => "simulated GPUs",
    }
}

/// The devices as a table, and the reasons behind it when they need more room; `gpus` prints it too.
pub(super) fn devices(devices: &[DeviceView], width: usize) -> String {
    let whole = device_table(devices, true).render(usize::MAX);
    if whole.lines().all(|line| line.width() <= width) {
        return whole;
    }
    let mut text = device_table(devices, false).render(width);
    for device in devices.iter().filter(|device| !matches!(device.verdict.as_str(), "free" | "leased")) {
        let reason = format!("{}: {}: {}", short(device), device.verdict, device.reason);
        text += &wrap(&reason, "  ", width);
    }
    text
}

/// What people call it.
fn short(device: &DeviceView) -> String {
    device.index.map_or_else(|| device.id.clone(), |index| index.to_string())
}

fn device_table(devices: &[DeviceView], reasons: bool) -> Table {
    let mut table = Table::new(&[
        Column::fixed("DEVICE"),
        Column::text("NAME", 8),
        Column::fixed("VERDICT"),
        Column::fixed("USED"),
        Column::fixed("MEMORY"),
        Column::number("LOAD"),
        Column::number("TEMP"),
        Column::fixed("REASON"),
    ]);
    for device in devices {
        table.row([
            short(device),
            if device.name.eq_ignore_ascii_case(&device.id) { String::new() } else { device.name.clone() },
            device.verdict.clone(),
            format!("{}/{}", device.taken, device.slots),
            output::of_total(device.memory_used, device.memory_total),
            device.utilization.map(|load| format!("{load}%")).unwrap_or_default(),
            device.temperature.map(|degrees| format!("{degrees}°")).unwrap_or_default(),
            if reasons { device.reason.clone() } else { String::new() },
        ]);
    }
    table
}

fn running(status: &StatusView, now: Timestamp, width: usize) -> String {
    // As the table above calls them.
    let called = |id: &String| status.devices.iter().find(|device| device.id == *id).map_or_else(|| id.clone(), short);
    let mut table = Table::new(&[
        Column::name("RUNNING", 16),
        Column::name("ROUTE", 5),
        Column::number("TRY"),
        Column::name("DEVICES", 6),
        Column::number("PID"),
        Column::fixed("FOR"),
        Column::text("PROGRESS", 8),
    ]);
    for job in status.running.iter().take(ROWS) {
        let progress = job.progress.as_ref().map(|progress| {
            let fraction = progress.fraction.map(|it| format!("{:.0}%", it * 100.0));
            fraction.into_iter().chain(progress.message.clone()).collect::<Vec<_>>().join(" ")
        });
        table.row([
            job.name.clone(),
            job.route.clone(),
            job.attempt.to_string(),
            job.devices.iter().map(called).collect::<Vec<_>>().join(","),
            job.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            output::ago(now, job.started_at),
            progress.unwrap_or_default(),
        ]);
    }
    table.render(width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::{HeldView, ProgressView, RunningView};
    use crate::devices::DeviceKind;
    use crate::health::{Check, What};

    fn gpu(index: u32, verdict: &str, reason: &str) -> DeviceView {
        DeviceView {
            id: format!("GPU-{index}"),
            index: Some(index),
            kind: DeviceKind::Gpu,
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
            slots: 1,
            taken: 0,
            leases: Vec::new(),
            memory_total: Some(80 << 30),
            memory_used: Some(3 << 30),
            utilization: Some(7),
            temperature: Some(41),
            power_w: Some(80.0),
        }
    }

    fn status() -> StatusView {
        let at = |text: &str| text.parse().expect("a time");
        StatusView {
            version: "0.1.0".to_owned(),
            pid: Some(4711),
            root: "/data/root".to_owned(),
            mode: HostMode::Gpu,
            state: DirectorState::Running,
            uptime_s: Some(7_500.0),
            counts: Counts { ready: 12, running: 1, held: 1, done: 1_000, failed: 2, ..Counts::default() },
            devices: vec![
                gpu(0, "free", "idle"),
                gpu(1, "busy", "3.1 GiB held by pid 411 jupyter (bob), 0 % for 52 min"),
                DeviceView { utilization: None, temperature: None, ..gpu(2, "unhealthy", "Xid 79: off the bus") },
            ],
            running: vec![RunningView {
                id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
                job: "a~01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
                name: "a-recording-with-a-rather-long-name-that-goes-on-and-on-2026.wav".to_owned(),
                route: "transcribe".to_owned(),
                devices: vec!["GPU-1".to_owned()],
                attempt: 2,
                pid: Some(31337),
                started_at: Some(at("2026-11-22T11:00:00Z")),
                progress: Some(ProgressView { fraction: Some(0.425), message: Some("layer 3\u{1b}[2J".to_owned()) }),
                estimate: None,
            }],
            residents: Vec::new(),
            held: vec![HeldView {
                name: "x.pdf".to_owned(),
                reason: "no route matches it".to_owned(),
                since: at("2026-11-22T10:00:00Z"),
            }],
            health: vec![
                Check::ok(What::Spool),
                Check::degraded(What::LeaseTest, "files of other users can't be tested: settle decides alone"),
            ],
            counters: [("pages".to_owned(), 21_000.0), ("a\u{1b}[2Jb".to_owned(), 0.5)].into_iter().collect(),
            api: None,
        }
    }

    #[test]
    fn a_busy_host_fits_its_screen() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().expect("a time");
        let text = render(&status(), now, 80);
        assert!(text.lines().all(|line| unicode_width::UnicodeWidthStr::width(line) <= 80), "{text}");
        insta::assert_snapshot!(text, @r#"
        gamdok 0.1.0 · running · pid 4711 · up 2h 5m · GPU
        /data/root
        12 ready · 1 held · 1 running · 1000 done · 2 failed
        warning: lease-test: files of other users can't be tested: settle decides alone

        DEVICE  NAME                   VERDICT    USED  MEMORY        LOAD  TEMP
        0       NVIDIA H100 80GB HBM3  free       0/1   3.0/80.0 GiB    7%   41°
        1       NVIDIA H100 80GB HBM3  busy       0/1   3.0/80.0 GiB    7%   41°
        2       NVIDIA H100 80GB HBM3  unhealthy  0/1   3.0/80.0 GiB
          1: busy: 3.1 GiB held by pid 411 jupyter (bob), 0 % for 52 min
          2: unhealthy: Xid 79: off the bus

        RUNNING              ROUTE       TRY  DEVICES    PID  FOR    PROGRESS
        a-recordi…-2026.wav  transcribe    2  1        31337  1h 0m  42% layer 3\u{1b}[…

        COUNTED        SUM
        a\u{1b}[2Jb    0.5
        pages        21000

        HELD   FOR    REASON
        x.pdf  2h 0m  no route matches it
        "#);
    }

    #[test]
    fn without_a_director_there_are_counts() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().expect("a time");
        let stopped = StatusView {
            pid: None,
            uptime_s: None,
            state: DirectorState::Stopped,
            devices: Vec::new(),
            running: Vec::new(),
            residents: Vec::new(),
            held: Vec::new(),
            health: Vec::new(),
            counters: Default::default(),
            ..status()
        };
        insta::assert_snapshot!(render(&stopped, now, 80), @r#"
        gamdok 0.1.0 · no director is running
        /data/root
        12 ready · 1 held · 1 running · 1000 done · 2 failed
        "#);
    }
}
