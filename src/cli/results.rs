//! `gamdok results`: what the workers reported of every item that ended, as one table; the newest last. Read twice where
//! the columns must be known first, and never held as a whole.

use std::borrow::Cow;
use std::io;

use clap::Args;
use jiff::Timestamp;
use unicode_width::UnicodeWidthStr as _;

use super::csv::Lines;
use super::flat::{Cell, Columns, FIXED, words};
use super::list::largest;
use super::source::Source;
use super::table::{cut_end, cut_middle};
use super::trouble::{Trouble, exit};
use super::window::{When, when};
use super::{Global, output};
use crate::api::results::{Reported, Results as Kept, Wanted};
use crate::logging::plain;

#[derive(Debug, Args)]
pub(super) struct Results {
    /// Only of this route
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// Only of items that ended since then: `2h`, `7d`, or a date or a time (UTC) as 2026-11-22 or 2026-11-22T10:00
    #[arg(long, value_name = "DUR|DATE", value_parser = when)]
    since: Option<When>,
    /// As comma-separated values (RFC 4180), for spreadsheets
    #[arg(long)]
    csv: bool,
}

impl Results {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        if self.csv && global.json {
            let help = "`--json` for programs, `--csv` for spreadsheets";
            return Err(Trouble::new(exit::USAGE, "usage", "`--csv` and `--json` exclude each other", help));
        }
        let now = Timestamp::now();
        let kept = Source::open(global)?.results()?;
        let wanted = Wanted { route: self.route, since: self.since.map(|it| it.moment(now)), until: None };
        if global.json {
            output::Array::default().print(|array| kept.each(&wanted, |row| array.row(&row)))?;
        } else if self.csv {
            csv(&kept, wanted)?;
        } else {
            table(&kept, wanted, now)?;
        }
        Ok(exit::OK)
    }
}

/// Reads all once, to know the columns; what ends meanwhile isn't wanted any more.
fn look(kept: &Kept, wanted: &mut Wanted, mut look: impl FnMut(&Reported)) -> Result<(), Trouble> {
    let mut last = None;
    kept.each(wanted, |row| {
        last = Some(row.mark());
        look(&row);
        Ok::<(), Trouble>(())
    })?;
    wanted.until = last.or(wanted.until);
    Ok(())
}

fn csv(kept: &Kept, mut wanted: Wanted) -> Result<(), Trouble> {
    let mut columns = Columns::default();
    look(kept, &mut wanted, |row| columns.note(row))?;
    let on_terminal = output::is_terminal();
    let mut to = Lines::new(io::stdout().lock(), on_terminal);
    to.line(columns.heads().iter().map(|head| words(head)))?;
    if wanted.until.is_some() {
        kept.each(&wanted, |row| match columns.cells(&row) {
            Some(cells) => Ok(to.line(cells.iter().map(Cell::for_spreadsheet))?),
            None => Ok::<(), Trouble>(()),
        })?;
    }
    Ok(to.finish()?)
}

fn table(kept: &Kept, mut wanted: Wanted, now: Timestamp) -> Result<(), Trouble> {
    let mut columns = Columns::default();
    let mut widths = Widths::default();
    look(kept, &mut wanted, |row| {
        columns.note(row);
        widths.note(&columns, row, now);
    })?;
    if wanted.until.is_none() {
        return output::print("nothing\n");
    }
    let mut sheet = Sheet::new(&columns, widths);
    let dropped = sheet.fit(output::width());
    let mut text = sheet.head();
    kept.each(&wanted, |row| {
        if let Some(cells) = columns.cells(&row) {
            text += &sheet.line(&shown(&row, cells, now));
        }
        if text.len() < 1 << 16 { Ok(()) } else { output::print(&std::mem::take(&mut text)) }
    })?;
    if dropped > 0 {
        text += &format!("{} more: `--csv` and `--json` have all\n", output::count(dropped, "column"));
    }
    output::print(&text)
}

/// The cells as a terminal may have them; for the moment of the end, how long ago it was.
fn shown(row: &Reported, mut cells: Vec<Cell>, now: Timestamp) -> Vec<Cell> {
    cells[FIXED.len() - 1] = Cell::Text(largest(output::ago(now, row.finished_at)));
    let shown = |cell: Cell| match plain(cell.text()) {
        Cow::Borrowed(_) => cell,
        Cow::Owned(text) => Cell::Text(text),
    };
    cells.into_iter().map(shown).collect()
}

/// Which cell is the id.
const ID: usize = 0;
/// No column of a key is wider while others are cut.
const WIDEST: usize = 32;
const GAP: usize = 2;

/// How wide the columns are, while their number still grows.
#[derive(Default)]
struct Widths {
    /// Of the fixed ones and the keys.
    each: Vec<Width>,
    /// Of the one behind them.
    rest: Width,
}

#[derive(Clone, Copy, Default)]
struct Width {
    width: usize,
    /// Whether anything stands in it, and anything but numbers.
    any: bool,
    words: bool,
}

impl Widths {
    fn note(&mut self, columns: &Columns, row: &Reported, now: Timestamp) {
        let Some(cells) = columns.cells(row) else { return };
        let own = cells.len() - usize::from(columns.has_rest());
        self.each.resize(own.max(self.each.len()), Width::default());
        for (at, cell) in shown(row, cells, now).iter().enumerate() {
            let width = if at < own { &mut self.each[at] } else { &mut self.rest };
            let most = if at == ID { usize::MAX } else { WIDEST };
            width.any |= *cell != Cell::Nothing;
            width.words |= *cell != Cell::Nothing && !cell.is_number();
            width.width = width.width.max(cell.text().width().min(most));
        }
    }
}

/// A table whose rows are written one by one: their widths are known.
struct Sheet {
    columns: Vec<SheetColumn>,
}

struct SheetColumn {
    /// Which of a row's cells stands in it.
    at: usize,
    head: String,
    kind: Kind,
    width: usize,
    numbers: bool,
    /// Whether it is there at all.
    any: bool,
    least: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// As wide as it is.
    Fixed,
    /// Cut in the middle.
    Name,
    /// Cut at the end, and left out for want of room.
    Key,
    /// Whole, or not there.
    Id,
}

impl Sheet {
    fn new(columns: &Columns, widths: Widths) -> Sheet {
        let mut heads = columns.heads();
        heads[FIXED.len() - 1] = "ago".to_owned();
        let width = |at: usize| widths.each.get(at).copied().unwrap_or(widths.rest);
        let column = |(at, head): (usize, String)| {
            let (kind, least) = match at {
                ID => (Kind::Id, 0),
                1 => (Kind::Name, 14),
                2 => (Kind::Name, 8),
                at if at < FIXED.len() => (Kind::Fixed, 0),
                _ => (Kind::Key, 6),
            };
            // Keys are the workers' own words.
            let head = if kind == Kind::Key { cut_end(&plain(&head), WIDEST) } else { head.to_uppercase() };
            let Width { width, any, words } = width(at);
            SheetColumn { at, width: width.max(head.width()), head, kind, numbers: !words, any, least }
        };
        let mut columns: Vec<SheetColumn> = heads.into_iter().enumerate().map(column).collect();
        // The id comes last.
        columns.rotate_left(1);
        Sheet { columns }
    }

    /// Makes it fit; answers how many columns of keys found no room.
    fn fit(&mut self, width: usize) -> usize {
        // A key that only nulls stand under is a column all the same; a route that nobody has is none.
        self.columns.retain(|column| column.any || column.kind == Kind::Key);
        let total = |columns: &[SheetColumn]| {
            columns.iter().map(|column| column.width).sum::<usize>() + GAP * columns.len().saturating_sub(1)
        };
        let floor = |column: &SheetColumn| match column.kind {
            Kind::Fixed | Kind::Id => column.width,
            // A number that is cut is another number.
            Kind::Key if column.numbers => column.width,
            Kind::Name | Kind::Key => column.width.min(column.least.max(column.head.width().min(12))),
        };
        if total(&self.columns) > width {
            self.columns.retain(|column| column.kind != Kind::Id);
        }
        let mut dropped = 0;
        let least =
            |columns: &[SheetColumn]| columns.iter().map(floor).sum::<usize>() + GAP * columns.len().saturating_sub(1);
        while least(&self.columns) > width && self.columns.last().is_some_and(|column| column.kind == Kind::Key) {
            self.columns.pop();
            dropped += 1;
        }
        while total(&self.columns) > width {
            // The widest gives first, so that no column vanishes for another's sake.
            let gives = self.columns.iter_mut().filter(|column| column.width > floor(column));
            match gives.max_by_key(|column| column.width) {
                Some(column) => column.width -= 1,
                None => break,
            }
        }
        dropped
    }

    fn head(&self) -> String {
        let heads = self.columns.iter().map(|column| (column, column.head.as_str()));
        Sheet::written(heads)
    }

    fn line(&self, cells: &[Cell]) -> String {
        let text = |at: usize| cells.get(at).map_or("", Cell::text);
        Sheet::written(self.columns.iter().map(|column| (column, text(column.at))))
    }

    fn written<'a>(cells: impl Iterator<Item = (&'a SheetColumn, &'a str)>) -> String {
        let mut line = String::new();
        for (at, (column, text)) in cells.enumerate() {
            if at > 0 {
                line += "  ";
            }
            let text =
                if column.kind == Kind::Name { cut_middle(text, column.width) } else { cut_end(text, column.width) };
            let pad = " ".repeat(column.width.saturating_sub(text.width()));
            line += &if column.numbers && column.kind == Kind::Key { pad + &text } else { text + &pad };
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    fn row(n: u128, name: &str, result: &str) -> Reported {
        Reported {
            id: crate::item::JobId(ulid::Ulid::from_parts(1_764_000_000_000, n)),
            name: name.to_owned(),
            route: Some("transcribe".to_owned()),
            outcome: "done".to_owned(),
            finished_at: "2026-11-22T10:00:00Z".parse().ok(),
            result: RawValue::from_string(result.to_owned()).ok(),
            counters: Default::default(),
        }
    }

    fn columns(rows: &[Reported]) -> Columns {
        let mut columns = Columns::default();
        rows.iter().for_each(|row| columns.note(row));
        columns
    }

    fn sheet(rows: &[Reported], width: usize) -> String {
        let now = "2026-11-22T12:00:00Z".parse().expect("a time");
        let (mut columns, mut widths) = (Columns::default(), Widths::default());
        for row in rows {
            columns.note(row);
            widths.note(&columns, row, now);
        }
        let mut sheet = Sheet::new(&columns, widths);
        let shown: Vec<Vec<Cell>> = rows.iter().filter_map(|row| Some(shown(row, columns.cells(row)?, now))).collect();
        let dropped = sheet.fit(width);
        let text: String = std::iter::once(sheet.head()).chain(shown.iter().map(|cells| sheet.line(cells))).collect();
        assert!(text.lines().all(|line| line.width() <= width), "{text}");
        format!("{text}{dropped} dropped")
    }

    #[test]
    fn a_table_fits_its_width_and_says_what_it_left_out() {
        let few = [row(1, "a.wav", r#"{"words":1931,"ok":true}"#), row(2, "b.wav", r#"{"words":-7}"#)];
        insta::assert_snapshot!(sheet(&few, 80), @r#"
        NAME   ROUTE       OUTCOME  AGO  words  ok    ID
        a.wav  transcribe  done     2h    1931  true  01KAV9FT000000000000000001
        b.wav  transcribe  done     2h      -7        01KAV9FT000000000000000002
        0 dropped
        "#);
        let long = [
            row(
                1,
                "a-recording-with-a-rather-long-name-2026-11-22.wav",
                r#"{"words":1931,"text":"it said\n much more than would fit into a row"}"#,
            ),
            row(2, "감독.wav", r#"{"words":7,"deep":{"a":[1,2,3]},"another":"\u001b[2J","and":"x","more":"y"}"#),
            row(3, "c.wav", r#""no object""#),
        ];
        insta::assert_snapshot!(sheet(&long, 80), @r#"
        NAME            ROUTE     OUTCOME  AGO  words  text      deep      another   and
        a-recor…22.wav  tran…ibe  done     2h    1931  it said…
        감독.wav        tran…ibe  done     2h       7            {"a":[1…  \u{1b}[…  x
        c.wav           tran…ibe  done     2h
        2 dropped
        "#);
        insta::assert_snapshot!(sheet(&long, 60), @r#"
        NAME            ROUTE       OUTCOME  AGO  words  text
        a-recor…22.wav  transcribe  done     2h    1931  it said\n …
        감독.wav        transcribe  done     2h       7
        c.wav           transcribe  done     2h
        5 dropped
        "#);
    }

    #[test]
    fn csv_is_that_of_rfc_4180() {
        let check = |results: &[&str], on_terminal: bool, expected: &str| {
            let rows: Vec<Reported> = results.iter().map(|result| row(1, "=1", result)).collect();
            let columns = columns(&rows);
            let mut written = Vec::new();
            let mut to = Lines::new(&mut written, on_terminal);
            to.line(columns.heads().iter().map(|head| words(head))).expect("written");
            for row in &rows {
                let cells = columns.cells(row).expect("cells");
                to.line(cells.iter().map(Cell::for_spreadsheet)).expect("written");
            }
            to.finish().expect("written");
            assert_eq!(String::from_utf8(written).expect("text"), expected);
        };
        let head = "id,name,route,outcome,finished_at";
        let row = "01KAV9FT000000000000000001,'=1,transcribe,done,2026-11-22T10:00:00Z";
        check(&[], false, &format!("{head}\r\n"));
        check(&[r#"{"n":-3}"#], false, &format!("{head},n\r\n{row},-3\r\n"));
        check(
            &[r#"{"a,b":"x\"y","=k":"two\r\nlines","e":""}"#],
            false,
            &format!("{head},\"a,b\",'=k,e\r\n{row},\"x\"\"y\",\"two\r\nlines\",\r\n"),
        );
        check(&[r#""\u001b[2J""#], true, &format!("{head},result\r\n{row},\\u{{1b}}[2J\r\n"));
    }
}
