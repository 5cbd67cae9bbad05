//! What a route says of big line files: `split`, and what can't be true beside it.

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::parse::value;
use super::text::{Fault, Table};
use super::{Batch, Mode, RouteKind};

/// How an item is cut into batches of lines, and what becomes of the parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// In a batch, at most.
    pub lines: u32,
    #[serde(default)]
    pub compress: Compress,
    /// Of gzip, 0 (stored) to 12 (small).
    #[serde(default = "usual_level")]
    pub level: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    #[default]
    None,
    Gzip,
}

fn usual_level() -> u8 {
    6
}

impl Split {
    /// The level to compress with; none: plain.
    pub fn gzip(&self) -> Option<u8> {
        (self.compress == Compress::Gzip).then_some(self.level)
    }
}

/// Reads `split`.
pub(super) fn read(
    table: &Table<'_>,
    (mode, batch): (Mode, &Batch),
    kind: Option<&Spanned<RouteKind>>,
) -> Option<Split> {
    let inner = table.table("split")?;
    if let Some(kind) = kind.filter(|kind| *kind.get_ref() == RouteKind::Directory) {
        let fault = Fault::new("splits a file into its lines").help("leave `split` out, or write `kind = \"file\"`");
        let message = format!("{} contradicts `kind = \"directory\"`", table.called("split"));
        table.contradiction(inner.span.clone(), (kind.span(), "takes directories only"), message, fault);
    }
    if mode == Mode::Resident
        && batch != &Batch::default()
        && let Some(other) = table.table("batch")
    {
        let fault = Fault::new("counts items, and here a batch is one of lines")
            .help("leave `batch` out: `lines` in `split` says how large a batch is");
        let message = format!("{} contradicts `split`", table.called("batch"));
        table.contradiction(other.span.clone(), (inner.span.clone(), "hands out batches of lines"), message, fault);
    }
    if !inner.has("lines") {
        let fault = Fault::new("has no `lines`").help("write `split = { lines = 5000 }`: so many lines are a batch");
        table.problem(inner.span.clone(), format!("{} is missing", inner.called("lines")), fault);
    }
    let compress = inner.choice("compress", &[("none", Compress::None), ("gzip", Compress::Gzip)]);
    let compress = value(compress, Compress::None);
    let level = inner.integer("level", 0..=12u8);
    if let Some(level) = level.as_ref().filter(|_| compress == Compress::None && !inner.has("compress")) {
        let fault = Fault::new("of a compression that isn't asked for")
            .help("write `compress = \"gzip\"` beside it, or leave it out");
        table.problem(level.span(), format!("{} needs `compress`", inner.called("level")), fault);
    }
    let lines = inner.integer("lines", 1..=Split::MOST_LINES);
    Some(Split { lines: value(lines, Split::MOST_LINES), compress, level: value(level, usual_level()) })
}

impl Split {
    /// Far more than fit into the memory that a batch may take; there it is cut anyway.
    pub const MOST_LINES: u32 = 1_000_000_000;
}
