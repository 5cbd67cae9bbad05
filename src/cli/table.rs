//! Tables for people: plain columns that fit a width. Names are shortened in the middle, since their ends tell them
//! apart; sentences at the end. A column with nothing in it isn't shown.

use comfy_table::{CellAlignment, ContentArrangement, presets};
use unicode_width::UnicodeWidthStr as _;

use crate::logging::plain;
pub(super) use crate::text::{cut_end, cut_middle, wrap};

/// Between two columns.
const GAP: usize = 2;

/// What gives way when the width doesn't do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Give {
    Nothing,
    Middle,
    End,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    head: &'static str,
    right: bool,
    give: Give,
    least: usize,
}

impl Column {
    /// As wide as it is.
    pub(super) const fn fixed(head: &'static str) -> Column {
        Column { head, right: false, give: Give::Nothing, least: 0 }
    }

    /// A number.
    pub(super) const fn number(head: &'static str) -> Column {
        Column { head, right: true, give: Give::Nothing, least: 0 }
    }

    /// A name: shortened in the middle, to no less than `least`.
    pub(super) const fn name(head: &'static str, least: usize) -> Column {
        Column { head, right: false, give: Give::Middle, least }
    }

    /// A sentence: cut at its end, to no less than `least`.
    pub(super) const fn text(head: &'static str, least: usize) -> Column {
        Column { head, right: false, give: Give::End, least }
    }
}

#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[Column]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Cells in the order of the columns.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells.iter().map(|cell| plain(cell).into_owned()).collect());
    }

    /// The table in lines of at most `width`, if that can be.
    pub(super) fn render(&self, width: usize) -> String {
        let used: Vec<usize> =
            (0..self.columns.len()).filter(|&at| self.rows.iter().any(|row| !row[at].is_empty())).collect();
        let natural = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].width()).max().unwrap_or(0);
            cells.max(self.columns[at].head.width())
        };
        let mut widths: Vec<usize> = used.iter().map(|&at| natural(at)).collect();
        let fits = width.saturating_sub(GAP * used.len().saturating_sub(1));
        while widths.iter().sum::<usize>() > fits {
            let gives = |(place, at): &(usize, &usize)| {
                let column = &self.columns[**at];
                column.give != Give::Nothing && widths[*place] > column.least.max(column.head.width())
            };
            // The widest gives first, so that no column vanishes for another's sake.
            match used.iter().enumerate().filter(gives).max_by_key(|(place, _)| widths[*place]) {
                Some((place, _)) => widths[place] -= 1,
                None => break,
            }
        }
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(used.iter().map(|&at| self.columns[at].head));
        for row in &self.rows {
            table.add_row(used.iter().zip(&widths).map(|(&at, &width)| match self.columns[at].give {
                Give::Nothing => row[at].clone(),
                Give::Middle => cut_middle(&row[at], width),
                Give::End => cut_end(&row[at], width),
            }));
        }
        let last = used.len().saturating_sub(1);
        for (place, &at) in used.iter().enumerate() {
            if let Some(column) = table.column_mut(place) {
                column.set_padding((0, if place == last { 0 } else { GAP as u16 }));
                if self.columns[at].right {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        let mut text = table.trim_fmt();
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_its_width() {
        let mut table = Table::new(&[
            Column::fixed("ID"),
            Column::name("NAME", 8),
            Column::number("TRIES"),
            Column::fixed("EMPTY"),
            Column::text("REASON", 10),
        ]);
        let long = "a-very-long-name-of-a-recording-from-the-field-2026-11-22.wav";
        table.row(["01ARZ".into(), long.into(), "1".into(), String::new(), "exit: it said nothing at all\n".into()]);
        table.row(["01BRZ".into(), "b".into(), "12".into(), String::new(), String::new()]);
        let check = |width: usize, expected: &str| {
            assert_eq!(table.render(width), expected);
        };
        check(
            60,
            "ID     NAME                    TRIES  REASON\n\
             01ARZ  a-very-long…-11-22.wav      1  exit: it said nothing…\n\
             01BRZ  b                          12\n",
        );
    }
}
