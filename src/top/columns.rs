//! A row of cells at fixed places. Whatever a cell holds is escaped and cut to its width as a terminal counts it.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr as _;

use crate::logging::plain;
use crate::text::{cut_end, cut_middle};

/// Where a cell gives way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cut {
    Middle,
    End,
    /// A number: stands at the right.
    Right,
}

/// Writes cells from left to right into one line.
pub(super) struct Cells<'a> {
    buffer: &'a mut Buffer,
    line: Rect,
    x: u16,
}

impl<'a> Cells<'a> {
    /// `line` is the area of one line.
    pub(super) fn new(buffer: &'a mut Buffer, line: Rect) -> Cells<'a> {
        Cells { buffer, line: line.intersection(Rect { height: 1, ..line }), x: line.x }
    }

    pub(super) fn left(&self) -> u16 {
        self.line.right().saturating_sub(self.x)
    }

    /// One cell of `width` columns, and a gap behind it.
    pub(super) fn put(&mut self, text: &str, width: u16, cut: Cut, style: Style) -> &mut Cells<'a> {
        let width = width.min(self.left());
        if width > 0 && self.line.height > 0 {
            let text = plain(text);
            let text = match cut {
                Cut::Middle => cut_middle(&text, width.into()),
                Cut::End | Cut::Right => cut_end(&text, width.into()),
            };
            let used = u16::try_from(text.width()).unwrap_or(width).min(width);
            let x = if cut == Cut::Right { self.x + width - used } else { self.x };
            self.buffer.set_stringn(x, self.line.y, text, width.into(), style);
        }
        self.x = self.x.saturating_add(width).saturating_add(1);
        self
    }

    /// The rest of the line.
    pub(super) fn rest(&mut self, text: &str, cut: Cut, style: Style) {
        let left = self.left();
        self.put(text, left, cut, style);
    }
}

/// Text of several styles in one line; cut at its end.
pub(super) fn words(buffer: &mut Buffer, line: Rect, words: &[(String, Style)]) {
    let mut x = line.x;
    for (text, style) in words {
        let left = line.right().saturating_sub(x);
        let text = cut_end(&plain(text), left.into());
        if left == 0 || line.height == 0 {
            return;
        }
        x = buffer.set_stringn(x, line.y, text, left.into(), *style).0;
    }
}

/// A bar of `width` characters that is filled to `part` of 1.
pub(super) fn bar(part: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (part * (width * 8) as f64).round() as usize;
    let (whole, rest) = (eighths / 8, eighths % 8);
    let filled = "█".repeat(whole) + EIGHTHS[rest];
    let empty = width - whole - usize::from(rest > 0);
    filled + &"░".repeat(empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_wide_as_they_should_be() {
        let check = |part: f64, expected: &str| assert_eq!(bar(part, 4), expected, "{part}");
        check(0.0, "░░░░");
        check(0.5, "██░░");
        check(0.3, "█▎░░");
        check(1.0, "████");
        check(7.0, "████");
        check(-1.0, "░░░░");
        check(f64::NAN, "░░░░");
        check(f64::INFINITY, "░░░░");
    }
}
