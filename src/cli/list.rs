//! `gamdok list`: items and jobs, one a row; what hasn't ended first, then the newest that has.

use std::collections::HashSet;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;
use unicode_width::UnicodeWidthStr as _;

use super::source::Source;
use super::table::{Column, Table};
use super::trouble::{Trouble, exit};
use super::{Global, output};
use crate::api::ended::Query;
use crate::api::view::{Listed, Span};

/// More rows than this are for programs.
const FOR_PEOPLE: usize = 100;

/// Every command takes an item's name where it is the only one. A name that is longer than this may be cut in the table,
/// and nobody likes to type it: its row also shows the id.
const LONG_NAME: usize = 40;

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = PossibleValuesParser::new(Query::STATES))]
    state: Vec<String>,
    /// Only of this route
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// At most so many rows; 0 for all [default: 100, with --json all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl List {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let source = Source::open(global)?;
        let usual = (!global.json).then_some(FOR_PEOPLE);
        let limit = self.limit.map_or(usual, |limit| (limit > 0).then_some(limit));
        let query = Query { states: self.state, route: self.route, limit, ..Query::default() };
        if global.json {
            output::Array::default()
                .print(|array| source.each_page(&query, |rows| rows.iter().try_for_each(|row| array.row(row))))?;
            return Ok(exit::OK);
        }
        // One more than shown tells whether there are more.
        let asked = Query { limit: limit.map(|limit| limit.saturating_add(1)), ..query };
        let mut rows = source.rows(&asked)?;
        let more = limit.is_some_and(|limit| rows.len() > limit);
        rows.truncate(limit.unwrap_or(usize::MAX));
        let mut text =
            if rows.is_empty() { "nothing\n".to_owned() } else { render(&rows, Timestamp::now(), output::width()) };
        if more {
            text += "there are more: `--limit N` shows N, `--limit 0` all\n";
        }
        output::print(&text)?;
        Ok(exit::OK)
    }
}

/// The rows as a table.
pub(super) fn render(rows: &[Listed], now: Timestamp, width: usize) -> String {
    let mut table = Table::new(&[
        Column::name("NAME", 12),
        Column::fixed("STATE"),
        Column::name("ROUTE", 6),
        Column::number("TRY"),
        Column::fixed("AGO"),
        Column::fixed("ENDS IN"),
        Column::text("REASON", 8),
        Column::fixed("ID"),
    ]);
    let shared = shared(rows);
    let ids = Ids::of(rows);
    let needs_id = |row: &Listed| LONG_NAME < row.name.width() || shared.contains(row.name.as_str());
    for row in rows {
        let name = if row.folder.is_empty() { row.name.clone() } else { format!("{}/{}", row.folder, row.name) };
        table.row([
            name,
            row.state.clone(),
            row.route.clone().unwrap_or_default(),
            if row.attempts > 0 { row.attempts.to_string() } else { String::new() },
            largest(output::ago(now, row.finished_at.or(row.arrived_at))),
            row.estimate.and_then(|it| it.end).map(|end| ahead(now, end)).unwrap_or_default(),
            row.reason.clone().unwrap_or_default(),
            row.id.as_ref().filter(|_| needs_id(row)).map(|id| ids.short(id).to_owned()).unwrap_or_default(),
        ]);
    }
    table.render(width)
}

/// The ids of these rows, in order.
struct Ids<'a>(Vec<&'a str>);

impl<'a> Ids<'a> {
    fn of(rows: &'a [Listed]) -> Ids<'a> {
        let mut ids: Vec<&str> = rows.iter().filter_map(|row| row.id.as_deref()).filter(|id| id.is_ascii()).collect();
        ids.sort_unstable();
        ids.dedup();
        Ids(ids)
    }

    /// The letters of an id that tell it from the others: the time and a part of the rest at least, so that they nearly
    /// always name one job among all.
    fn short(&self, id: &'a str) -> &'a str {
        const LEAST: usize = 14;
        let common = |other: &&str| id.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let at = self.0.partition_point(|other| *other < id);
        let neighbours = [at.checked_sub(1), Some(at + 1)].into_iter().flatten().filter_map(|at| self.0.get(at));
        let needed = neighbours.map(common).max().map_or(0, |common| common + 1);
        id.get(..needed.max(LEAST)).unwrap_or(id)
    }
}

/// The names that more than one row has.
fn shared(rows: &[Listed]) -> HashSet<&str> {
    let mut seen = HashSet::new();
    rows.iter().map(|row| row.name.as_str()).filter(|name| !seen.insert(*name)).collect()
}

/// `3m..8m`: a range from now on, in the larger unit.
fn ahead(now: Timestamp, span: Span) -> String {
    let until = |at: Timestamp| largest(output::span(Duration::try_from(at - now).unwrap_or_default()));
    let (from, to) = (until(span.from), until(span.to));
    if from == to { from } else { format!("{from}..{to}") }
}

/// The first of the two units: a row has little room.
pub(super) fn largest(span: String) -> String {
    span.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::Estimate;

    fn row(state: &str, name: &str) -> Listed {
        Listed { state: state.to_owned(), name: name.to_owned(), ..Listed::empty() }
    }

    #[test]
    fn rows_fit_eighty_columns() {
        let at = |text: &str| text.parse().ok();
        let rows = [
            Listed {
                id: Some("01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()),
                route: Some("transcribe".to_owned()),
                attempts: 3,
                finished_at: at("2026-11-22T10:00:00Z"),
                reason: Some("exit: it ended with code 7 after it wrote nothing".to_owned()),
                ..row("failed", "a-recording-with-a-rather-long-name-2026-11-22.wav")
            },
            Listed {
                id: Some("01BRZ3NDEKTSV4RRFFQ69G5FAV".to_owned()),
                route: Some("transcribe".to_owned()),
                attempts: 1,
                arrived_at: at("2026-11-22T11:59:30Z"),
                ..row("running", "b.wav")
            },
            Listed { arrived_at: at("2026-11-20T12:00:00Z"), folder: "low".to_owned(), ..row("ready", "감독.wav") },
        ];
        let estimate = Estimate {
            start: None,
            end: Some(Span {
                from: "2026-11-22T12:03:20Z".parse().expect("a time"),
                to: "2026-11-22T13:10:00Z".parse().expect("a time"),
            }),
        };
        let guessed = [Listed { estimate: Some(estimate), ..rows[1].clone() }, rows[2].clone()];
        let again = Listed { id: Some("01CRZ3NDEKTSV4RRFFQ69G5FAV".to_owned()), ..row("done", "b.wav") };
        let short = Listed { name: "a.wav".to_owned(), ..rows[0].clone() };
        let [plain, twice] = [vec![short, rows[1].clone()], vec![rows[1].clone(), again]];
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().expect("a time");
        let render = |rows: &[Listed]| {
            let text = render(rows, now, 80);
            assert!(text.lines().all(|line| line.width() <= 80), "{text}");
            text
        };
        insta::assert_snapshot!(render(&rows), @r#"
        NAME              STATE    ROUTE       TRY  AGO  REASON           ID
        a-record…-22.wav  failed   transcribe    3  2h   exit: it ended…  01ARZ3NDEKTSV4
        b.wav             running  transcribe    1  30s
        low/감독.wav      ready                     2d
        "#);
        insta::assert_snapshot!(render(&plain), @r#"
        NAME   STATE    ROUTE       TRY  AGO  REASON
        a.wav  failed   transcribe    3  2h   exit: it ended with code 7 after it wrote…
        b.wav  running  transcribe    1  30s
        "#);
        insta::assert_snapshot!(render(&guessed), @r#"
        NAME          STATE    ROUTE       TRY  AGO  ENDS IN
        b.wav         running  transcribe    1  30s  3m..1h
        low/감독.wav  ready                     2d
        "#);
        insta::assert_snapshot!(render(&twice), @r#"
        NAME   STATE    ROUTE       TRY  AGO  ID
        b.wav  running  transcribe    1  30s  01BRZ3NDEKTSV4
        b.wav  done                           01CRZ3NDEKTSV4
        "#);
    }
}
