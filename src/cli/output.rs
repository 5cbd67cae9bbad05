//! Printing: to stdout, as wide as the reader's terminal.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::trouble::Trouble;
pub(super) use crate::text::{ago, count, of_total, size, span, took};

/// What gives no room for a table can't be meant.
const LEAST: usize = 20;

pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stdout's reader wants colours, and can see them.
pub(super) fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    is_terminal() && !unwanted && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
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
