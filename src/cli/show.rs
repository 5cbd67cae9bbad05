//! `gamdok show JOB`: one job, its attempts, its files, its outcome.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::Args;

use super::source::{self, Source};
use super::table::{Column, Table, wrap};
use super::trouble::{Trouble, exit};
use super::{Global, output};
use crate::api::view::{Shown, Span};
use crate::item::Attempt;
use crate::logging::plain;

#[derive(Debug, Args)]
pub(super) struct Show {
    /// A job, its id, a unique beginning of either, or an item's name
    job: OsString,
}

impl Show {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let shown = Source::open(global)?.show(&source::named(&self.job)?)?;
        if global.json {
            output::json(&shown)?;
        } else {
            output::print(&render(&shown, output::width()))?;
        }
        Ok(exit::OK)
    }
}

fn render(shown: &Shown, width: usize) -> String {
    let row = &shown.listed;
    let mut text = String::new();
    // Sentences are broken between words; names and paths stay in one piece, to be copied.
    let mut line = |what: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let shown = match what {
                "state" | "message" => wrap(value, "          ", width),
                _ => format!("          {}\n", plain(value)),
            };
            let _ = write!(text, "{what:<9} {}", shown.trim_start_matches(' '));
        }
    };
    let state = match &row.reason {
        Some(reason) => format!("{} ({reason})", row.state),
        None => row.state.clone(),
    };
    let message = shown.result.as_ref().and_then(|result| result.get("message")?.as_str());
    line("name", Some(&row.name));
    line("folder", Some(&row.folder));
    line("state", Some(&state));
    line("message", message);
    line("id", row.id.as_deref());
    line("route", row.route.as_deref());
    line("devices", Some(&row.devices.join(", ")));
    line("arrived", row.arrived_at.map(|at| format!("{at:.0}")).as_deref());
    for (what, span) in [("starts", row.estimate.and_then(|it| it.start)), ("ends", row.estimate.and_then(|it| it.end))]
    {
        line(what, span.map(|Span { from, to }| format!("{from:.0} to {to:.0} (estimated)")).as_deref());
    }
    line("finished", row.finished_at.map(|at| format!("{at:.0}")).as_deref());
    line("dir", shown.paths.dir.as_deref());
    line("item", shown.paths.item.as_deref());
    line("out", shown.paths.out.as_deref());
    for log in &shown.paths.logs {
        line("log", Some(log));
    }
    if let Some(reported) = shown.result.as_ref().and_then(|result| result.get("result")).filter(|it| !it.is_null()) {
        line("result", Some(&reported.to_string()));
    }
    if !shown.history.is_empty() {
        let _ = write!(text, "\n{}", attempts(&shown.history, width));
    }
    let outputs =
        shown.result.as_ref().and_then(|result| result.get("outputs")?.as_array()).filter(|it| !it.is_empty());
    if let Some(outputs) = outputs {
        let mut table = Table::new(&[Column::name("OUTPUT", 20), Column::number("SIZE")]);
        for output in outputs {
            let path = output.get("path").and_then(|path| path.as_str()).unwrap_or_default();
            let bytes = output.get("bytes").and_then(|bytes| bytes.as_u64()).map(output::size);
            table.row([path.to_owned(), bytes.unwrap_or_default()]);
        }
        let _ = write!(text, "\n{}", table.render(width));
    }
    text
}

fn attempts(attempts: &[Attempt], width: usize) -> String {
    let mut table = Table::new(&[
        Column::number("TRY"),
        Column::name("DEVICES", 10),
        Column::fixed("STARTED"),
        Column::fixed("TOOK"),
        Column::fixed("END"),
        Column::fixed("REASON"),
        Column::fixed("COUNTED"),
        Column::fixed("PEAK"),
    ]);
    for attempt in attempts {
        let end = match (attempt.exit_code, attempt.signal) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => String::new(),
        };
        let devices: Vec<&str> = attempt.devices.iter().map(|device| device.0.as_str()).collect();
        let ended = attempt.ended_at.is_some();
        table.row([
            attempt.n.to_string(),
            devices.join(","),
            attempt.started_at.map(|at| format!("{at:.0}")).unwrap_or_default(),
            output::took(attempt.started_at, attempt.ended_at),
            end,
            attempt.reason.map(|reason| reason.to_string()).unwrap_or_default(),
            if ended && !attempt.counted { "no".to_owned() } else { String::new() },
            attempt.peak_gpu_memory.map(output::size).unwrap_or_default(),
        ]);
    }
    table.render(width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::{Listed, Paths};
    use crate::devices::DeviceId;
    use crate::item::Reason;

    #[test]
    fn a_job_tells_its_story() {
        let at = |text: &str| text.parse().ok();
        let first = Attempt {
            devices: vec![DeviceId("GPU-11111111-2222-3333-4444-555555555555".to_owned())],
            started_at: at("2026-11-22T10:00:01.25Z"),
            ended_at: at("2026-11-22T10:00:04Z"),
            exit_code: Some(7),
            reason: Some(Reason::Exit),
            counted: true,
            ..Attempt::planned(1)
        };
        let second = Attempt {
            started_at: at("2026-11-22T10:01:00Z"),
            ended_at: at("2026-11-22T11:03:00Z"),
            signal: Some(9),
            reason: Some(Reason::DeviceLost),
            ..Attempt { n: 2, counted: false, exit_code: None, ..first.clone() }
        };
        let shown = Shown {
            listed: Listed {
                id: Some("01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()),
                name: "a.wav".to_owned(),
                state: "failed".to_owned(),
                route: Some("transcribe".to_owned()),
                reason: Some("exit".to_owned()),
                arrived_at: at("2026-11-22T09:59:00Z"),
                finished_at: at("2026-11-22T11:03:00Z"),
                ..Listed::empty()
            },
            paths: Paths {
                dir: Some("/data/failed/2026-11-22/a~01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()),
                logs: vec!["/data/failed/2026-11-22/a~01ARZ3NDEKTSV4RRFFQ69G5FAV/attempt-1.log".to_owned()],
                ..Paths::default()
            },
            result: Some(
                serde_json::json!({ "message": "it ended with code 7", "result": { "words": 3 }, "outputs": [{ "path": "a.txt", "bytes": 2048 }] }),
            ),
            history: vec![first, second],
        };
        insta::assert_snapshot!(render(&shown, 80), @r#"
        name      a.wav
        state     failed (exit)
        message   it ended with code 7
        id        01ARZ3NDEKTSV4RRFFQ69G5FAV
        route     transcribe
        arrived   2026-11-22T09:59:00Z
        finished  2026-11-22T11:03:00Z
        dir       /data/failed/2026-11-22/a~01ARZ3NDEKTSV4RRFFQ69G5FAV
        log       /data/failed/2026-11-22/a~01ARZ3NDEKTSV4RRFFQ69G5FAV/attempt-1.log
        result    {"words":3}

        TRY  DEVICES         STARTED               TOOK   END       REASON       COUNTED
          1  GPU-111…555555  2026-11-22T10:00:01Z  2.8s   exit 7    exit
          2  GPU-111…555555  2026-11-22T10:01:00Z  1h 2m  signal 9  device-lost  no

        OUTPUT     SIZE
        a.txt   2.0 KiB
        "#);
    }
}
