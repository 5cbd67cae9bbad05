//! `gamdok history`: attempts, one a row, the newest first. Printed as they are read.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;

use super::flat::words;
use super::fresh::Fresh;
use super::source::Source;
use super::table::{Column, Table};
use super::trouble::{Trouble, exit};
use super::window::{When, when};
use super::{Global, output};
use crate::item::Reason;
use crate::ledger::{Direction, Filter, History as Past, HistoryError, OUTCOMES, Try};
use crate::trace::{Trace, TraceError};

/// More rows than this are for programs.
const FOR_PEOPLE: usize = 100;

#[derive(Debug, Args)]
pub(super) struct History {
    /// Only of this route
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// Only attempts that went so
    #[arg(long, visible_alias = "state", value_name = "OUTCOME", value_delimiter = ',',
        value_parser = PossibleValuesParser::new(OUTCOMES))]
    outcome: Vec<String>,
    /// Only on this device: an id or its beginning, a GPU's number, or `cpu`
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Only attempts that failed for this reason
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
    reason: Option<String>,
    /// Only what ended since then, or still runs: `2h`, `7d`, or a date or a time (UTC) as 2026-11-22 or 2026-11-22T10:00
    #[arg(long, value_name = "DUR|DATE", value_parser = when)]
    since: Option<When>,
    /// Only what began before then
    #[arg(long, value_name = "DUR|DATE", value_parser = when)]
    until: Option<When>,
    /// At most so many rows; 0 for all [default: 100, with --json, --csv and --chrome-trace all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// As comma-separated values (RFC 4180), for spreadsheets
    #[arg(long, conflicts_with = "chrome_trace")]
    csv: bool,
    /// Write a trace of each device instead, as Perfetto and Chrome's tracing open it
    #[arg(long, value_name = "FILE")]
    chrome_trace: Option<PathBuf>,
    /// Replace FILE where it exists
    #[arg(long, requires = "chrome_trace")]
    force: bool,
}

impl History {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        if self.csv && global.json {
            let help = "`--json` for programs, `--csv` for spreadsheets";
            return Err(Trouble::new(exit::USAGE, "usage", "`--csv` and `--json` exclude each other", help));
        }
        // Before anything is read, which may take a while.
        let file = self.chrome_trace.as_deref().map(|path| Fresh::create(path, self.force)).transpose()?;
        let now = Timestamp::now();
        let past = Source::open(global)?.past()?;
        let whole = global.json || self.csv || file.is_some();
        let limit = self.limit.map_or((!whole).then_some(FOR_PEOPLE), |limit| (limit > 0).then_some(limit));
        let filter = Filter {
            route: self.route,
            outcomes: self.outcome,
            device: self.device.map(|device| named(&past, device)).transpose()?,
            reason: self.reason,
            since: self.since.map(|it| it.moment(now)),
            until: self.until.map(|it| it.moment(now)),
        };
        if let Some(file) = file {
            trace(&past, &filter, limit, file, now)?;
        } else if global.json {
            output::Array::default()
                .print(|array| past.each(&filter, Direction::NewestFirst, limit, |row| array.row(&row)))?;
        } else if self.csv {
            csv(&past, &filter, limit)?;
        } else {
            table(&past, &filter, limit, now)?;
        }
        Ok(exit::OK)
    }
}

/// A device by its number, where it has one.
fn named(past: &Past, device: String) -> Result<String, Trouble> {
    let by_number = device.parse().ok().map(|number| past.device_of(number)).transpose()?.flatten();
    Ok(by_number.unwrap_or(device))
}

impl From<HistoryError> for Trouble {
    fn from(wrong: HistoryError) -> Trouble {
        let help = match wrong {
            HistoryError::Index { .. } => "it needs room there; another folder can be named in TMPDIR",
            HistoryError::Query(_) => {
                "ask again, or restart the director: it makes its ledger anew from the directories"
            }
        };
        Trouble::new(exit::FAILED, "history", wrong.to_string(), help)
    }
}

fn trace(past: &Past, filter: &Filter, limit: Option<usize>, mut file: Fresh, now: Timestamp) -> Result<(), Trouble> {
    let traced = Trace::new(&mut file, now).and_then(|trace| trace.write(past, filter, limit));
    match traced {
        Ok(()) => file.finish(),
        Err(TraceError::Write(error)) => Err(file.trouble(&error)),
        Err(TraceError::Read(wrong)) => Err(wrong.into()),
    }
}

fn csv(past: &Past, filter: &Filter, limit: Option<usize>) -> Result<(), Trouble> {
    const HEADS: [&str; 18] = [
        "id",
        "name",
        "folder",
        "route",
        "attempt",
        "outcome",
        "devices",
        "arrived_at",
        "started_at",
        "ended_at",
        "seconds",
        "exit_code",
        "signal",
        "reason",
        "counted",
        "peak_gpu_memory",
        "energy_joules",
        "job",
    ];
    let mut to = super::csv::Lines::new(io::stdout().lock(), output::is_terminal());
    to.line(HEADS.iter().map(|head| Cow::Borrowed(*head)))?;
    past.each(filter, Direction::NewestFirst, limit, |row| {
        let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
        let number = |it: Option<String>| Cow::Owned(it.unwrap_or_default());
        let line = [
            words(&row.id),
            words(&row.name),
            words(&row.folder),
            words(row.route.as_deref().unwrap_or_default()),
            number(Some(row.attempt.to_string())),
            words(&row.outcome),
            words(&row.devices.join(" ")).into_owned().into(),
            number(time(row.arrived_at)),
            number(time(row.started_at)),
            number(time(row.ended_at)),
            number(row.seconds.map(|it| it.to_string())),
            number(row.exit_code.map(|it| it.to_string())),
            number(row.signal.map(|it| it.to_string())),
            words(row.reason.as_deref().unwrap_or_default()),
            number(row.counted.map(|it| it.to_string())),
            number(row.peak_gpu_memory.map(|it| it.to_string())),
            number(row.energy_joules.map(|it| it.to_string())),
            words(&row.job),
        ];
        Ok::<(), Trouble>(to.line(line.into_iter())?)
    })?;
    Ok(to.finish()?)
}

fn table(past: &Past, filter: &Filter, limit: Option<usize>, now: Timestamp) -> Result<(), Trouble> {
    // Columns are as wide as what is in them: rows come in pieces, so that all may be more than memory holds.
    const PIECE: usize = 1000;
    let mut rows = Vec::new();
    let (mut shown, mut more) = (0, false);
    // One more than shown tells whether there are more.
    past.each(filter, Direction::NewestFirst, limit.map(|limit| limit.saturating_add(1)), |row| {
        if limit == Some(shown) {
            more = true;
            return Ok(());
        }
        shown += 1;
        rows.push(row);
        if rows.len() < PIECE {
            return Ok(());
        }
        output::print(&render(&std::mem::take(&mut rows), now, output::width()))
    })?;
    let mut text = match (shown, rows.is_empty()) {
        (0, _) => "nothing\n".to_owned(),
        (_, true) => String::new(),
        _ => render(&rows, now, output::width()),
    };
    if more {
        text += "there are more: `--limit N` shows N, `--limit 0` all\n";
    }
    output::print(&text)
}

fn render(rows: &[Try], now: Timestamp, width: usize) -> String {
    let mut table = Table::new(&[
        Column::fixed("STARTED"),
        Column::name("NAME", 10),
        Column::name("ROUTE", 6),
        Column::number("TRY"),
        Column::name("DEVICES", 7),
        Column::fixed("TOOK"),
        Column::fixed("END"),
        Column::fixed("PEAK"),
    ]);
    for row in rows {
        let name = if row.folder.is_empty() { row.name.clone() } else { format!("{}/{}", row.folder, row.name) };
        let end = match (row.exit_code, row.signal, &row.reason) {
            (Some(code), _, Some(reason)) if reason == "exit" => format!("exit {code}"),
            (_, Some(signal), Some(reason)) if reason == "signal" => format!("signal {signal}"),
            (_, _, reason) => reason.clone().unwrap_or_default(),
        };
        let running = (row.outcome == "running").then_some(now);
        let end = match (row.outcome.as_str(), end.is_empty()) {
            ("failed", false) => end,
            (outcome, _) => outcome.to_owned(),
        };
        table.row([
            row.started_at.or(row.ended_at).map(moment).unwrap_or_default(),
            name,
            row.route.clone().unwrap_or_default(),
            row.attempt.to_string(),
            row.devices.join(","),
            output::took(row.started_at, row.ended_at.or(running)),
            end,
            row.peak_gpu_memory.map(output::size).unwrap_or_default(),
        ]);
    }
    table.render(width)
}

/// `11-22 10:00:03`, in UTC: the year is in `--json`.
fn moment(at: Timestamp) -> String {
    at.strftime("%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    #[test]
    fn attempts_fit_eighty_columns() {
        let at = |text: &str| text.parse().ok();
        let row = Try {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            job: "a~01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            name: "a-recording-with-a-rather-long-name-2026-11-22.wav".to_owned(),
            name_b64: String::new(),
            folder: String::new(),
            route: Some("transcribe".to_owned()),
            attempt: 2,
            outcome: "failed".to_owned(),
            devices: vec!["GPU-11111111-2222-3333-4444-555555555555".to_owned()],
            arrived_at: None,
            started_at: at("2026-11-22T10:00:03Z"),
            ended_at: at("2026-11-22T10:04:03Z"),
            seconds: Some(240.0),
            exit_code: Some(7),
            signal: None,
            reason: Some("exit".to_owned()),
            counted: Some(true),
            peak_gpu_memory: Some(3 << 29),
            energy_joules: None,
        };
        let running = Try {
            name: "감독\u{1b}[2J.wav".to_owned(),
            folder: "low".to_owned(),
            outcome: "running".to_owned(),
            ended_at: None,
            reason: None,
            exit_code: None,
            peak_gpu_memory: None,
            devices: vec!["cpu".to_owned()],
            ..row.clone()
        };
        let now = "2026-11-22T10:00:10Z".parse().expect("a time");
        let text = render(&[running, row], now, 80);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        insta::assert_snapshot!(text, @r#"
        STARTED         NAME        ROUTE       TRY  DEVICES     TOOK   END      PEAK
        11-22 10:00:03  low/….wav   transcribe    2  cpu         7.0s   running
        11-22 10:00:03  a-rec….wav  transcribe    2  GPU-1…5555  4m 0s  exit 7   1.5 GiB
        "#);
    }
}
