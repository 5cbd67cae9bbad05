//! What a route says of its resident workers: `mode`, `batch` and `resident`, and what can't be true of them together.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::parse::value;
use super::template::{self, Placeholder};
use super::text::{Fault, Table};
use super::{Mode, stored};

/// How many items a resident worker is handed at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub max_items: u32,
    /// How long the first item of a batch waits for more.
    #[serde(with = "stored::duration")]
    pub max_wait: Duration,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { max_items: 1, max_wait: Duration::ZERO }
    }
}

impl Batch {
    /// A batch that fails as a whole is halved until one item stands alone: nine times for this many, one less than the
    /// attempts that an item may have without being blamed.
    pub const MOST: u32 = 512;
}

/// The life of a resident worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resident {
    /// Without an item for so long it ends and gives its memory back.
    #[serde(with = "stored::duration")]
    pub idle_timeout: Duration,
    /// After so many items it is replaced; none: never.
    pub max_items: Option<u32>,
    /// From its start to `ready`.
    #[serde(with = "stored::duration")]
    pub ready_timeout: Duration,
}

impl Default for Resident {
    fn default() -> Resident {
        Resident { idle_timeout: Duration::from_secs(600), max_items: None, ready_timeout: Duration::from_secs(300) }
    }
}

/// Placeholders of which a process that outlives its items knows nothing.
pub(crate) const OF_ONE_ITEM: [Placeholder; 7] = [
    Placeholder::Item,
    Placeholder::Name,
    Placeholder::Stem,
    Placeholder::Ext,
    Placeholder::Out,
    Placeholder::Id,
    Placeholder::Attempt,
];

/// Reads `mode`, `batch` and `resident`.
pub(super) fn read(table: &Table<'_>) -> (Mode, Batch, Resident) {
    let mode = table.choice("mode", &[("oneshot", Mode::Oneshot), ("resident", Mode::Resident)]);
    let mode = value(mode, Mode::Oneshot);
    let (batch, resident) = (batch(table), resident(table));
    if mode == Mode::Oneshot {
        let takes_more = batch.max_items > 1 || !batch.max_wait.is_zero();
        if takes_more && let Some(inner) = table.table("batch") {
            let fault = Fault::new("a process of its own for each item takes no batches")
                .help("write `mode = \"resident\"`, or leave `batch` out");
            table.problem(inner.span.clone(), format!("{} needs `mode = \"resident\"`", table.called("batch")), fault);
        }
    } else {
        for word in words(table) {
            refuse_item_words(table, &word);
        }
    }
    (mode, batch, resident)
}

fn batch(table: &Table<'_>) -> Batch {
    let Some(inner) = table.table("batch") else { return Batch::default() };
    let default = Batch::default();
    Batch {
        max_items: value(inner.integer("max_items", 1..=Batch::MOST), default.max_items),
        max_wait: value(inner.duration("max_wait", Duration::ZERO..=Duration::from_secs(3600)), default.max_wait),
    }
}

fn resident(table: &Table<'_>) -> Resident {
    let Some(inner) = table.table("resident") else { return Resident::default() };
    let default = Resident::default();
    let positive = || Duration::from_millis(1)..=Duration::MAX;
    let max_items = inner.integer("max_items", 0..=u32::MAX).map(Spanned::into_inner);
    Resident {
        idle_timeout: value(inner.duration("idle_timeout", Duration::ZERO..=Duration::MAX), default.idle_timeout),
        max_items: max_items.filter(|most| *most > 0),
        ready_timeout: value(inner.duration("ready_timeout", positive()), default.ready_timeout),
    }
}

/// The texts that are filled in when the process starts.
fn words(table: &Table<'_>) -> Vec<(&'static str, Spanned<String>)> {
    let mut words: Vec<(&'static str, Spanned<String>)> = Vec::new();
    let command = table.texts("command").map(Spanned::into_inner).unwrap_or_default();
    words.extend(command.into_iter().map(|word| ("command", word)));
    words.extend(table.map("env").into_iter().map(|(_, text)| ("env", text)));
    words.extend(table.text("cwd").map(|text| ("cwd", text)));
    words
}

fn refuse_item_words(table: &Table<'_>, (key, text): &(&'static str, Spanned<String>)) {
    let Some(found) = template::placeholders(text.get_ref()).find(|found| OF_ONE_ITEM.contains(found)) else { return };
    let word = found.as_str();
    let offset = text.get_ref().find(&format!("{{{word}}}"));
    let help = "a resident worker gets its items on file descriptor 3, one message after the other; {device}, \
                {device_id}, {gpu} and {route} are known at its start";
    let mut fault = Fault::new("of one item, and the process serves many").help(help);
    if let Some(offset) = offset {
        fault = fault.within(offset..offset + word.len() + 2);
    }
    let message = format!("{} holds `{{{word}}}`, which a resident worker can't have", table.called(key));
    table.refuse_part(text, message, fault);
}
