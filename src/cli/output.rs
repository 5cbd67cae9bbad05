//! Printing: to stdout, as wide as the reader's terminal, and how times and sizes look to people.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::trouble::Trouble;
use crate::units::Bytes;

/// What gives no room for a table can't be meant.
const LEAST: usize = 20;

pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// The columns a line may have: the terminal's, else COLUMNS. What is piped is for programs and files, and isn't cut.
pub(super) fn width() -> usize {
    let terminal = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| size.ws_col.into());
    let told = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    terminal.or_else(told).filter(|width| *width >= LEAST).unwrap_or(usize::MAX)
}

/// The columns of the terminal that stderr is; none where it is something else.
pub(super) fn width_of_errors() -> Option<usize> {
    let columns = rustix::termios::tcgetwinsize(io::stderr()).ok().map(|size| size.ws_col.into());
    columns.filter(|width| *width >= LEAST)
}

/// Prints text that ends its own lines.
pub(super) fn print(text: &str) -> Result<(), Trouble> {
    bytes(text.as_bytes())
}

pub(super) fn bytes(bytes: &[u8]) -> Result<(), Trouble> {
    let mut to = io::stdout().lock();
    Ok(to.write_all(bytes).and_then(|()| to.flush())?)
}

/// Prints one JSON document.
pub(super) fn json(value: &impl Serialize) -> Result<(), Trouble> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    print(&format!("{text}\n"))
}

/// A JSON array, printed as its rows come: it may be larger than memory.
#[derive(Debug, Default)]
pub(super) struct Array {
    any: bool,
    text: String,
}

impl Array {
    pub(super) fn print(mut self, fill: impl FnOnce(&mut Array) -> Result<(), Trouble>) -> Result<(), Trouble> {
        self.text += "[";
        fill(&mut self)?;
        self.text += if self.any { "\n]\n" } else { "]\n" };
        print(&self.text)
    }

    pub(super) fn row(&mut self, row: &impl Serialize) -> Result<(), Trouble> {
        const PIECE: usize = 1 << 16;
        self.text += if std::mem::replace(&mut self.any, true) { ",\n  " } else { "\n  " };
        self.text += &serde_json::to_string(row).map_err(io::Error::other)?;
        if self.text.len() < PIECE { Ok(()) } else { print(&std::mem::take(&mut self.text)) }
    }
}

/// `45s`, `3m 20s`, `2h 5m`, `6d 3h`: the two largest units.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// How long ago it was; nothing when it isn't known.
pub(super) fn ago(now: Timestamp, at: Option<Timestamp>) -> String {
    at.map(|at| span(Duration::try_from(now - at).unwrap_or_default())).unwrap_or_default()
}

/// How long something took.
pub(super) fn took(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    let (Some(from), Some(to)) = (from, to) else { return String::new() };
    let took: Duration = Duration::try_from(to - from).unwrap_or_default();
    if took < Duration::from_secs(10) { format!("{:.1}s", took.as_secs_f64()) } else { span(took) }
}

/// `1.5/80.0 GiB`; what isn't known is left out.
pub(super) fn of_total(used: Option<u64>, total: Option<u64>) -> String {
    const GIB: f64 = (1_u64 << 30) as f64;
    match (used, total) {
        (Some(used), Some(total)) => format!("{:.1}/{:.1} GiB", used as f64 / GIB, total as f64 / GIB),
        (None, Some(total)) => format!("{:.1} GiB", total as f64 / GIB),
        (Some(used), None) => format!("{:.1} GiB used", used as f64 / GIB),
        (None, None) => String::new(),
    }
}

pub(super) fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// `1 item`, `2 items`.
pub(super) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        let check = |seconds: u64, expected: &str| assert_eq!(span(Duration::from_secs(seconds)), expected);
        check(0, "0s");
        check(59, "59s");
        check(200, "3m 20s");
        check(7_500, "2h 5m");
        check(530_000, "6d 3h");
        assert_eq!(of_total(Some(3 << 29), Some(80 << 30)), "1.5/80.0 GiB");
        assert_eq!(of_total(None, None), "");
        let at: Timestamp = "2026-11-22T10:00:00Z".parse().expect("a time");
        let later: Timestamp = "2026-11-22T10:00:01.5Z".parse().expect("a time");
        assert_eq!((took(Some(at), Some(later)).as_str(), ago(at, Some(later)).as_str()), ("1.5s", "0s"));
    }
}
