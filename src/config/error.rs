//! What is wrong with a configuration: the line, what was found there and what is expected. Invariants: nothing here
//! carries a raw control character, and every problem of a text is told at once, in the text's order.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use miette::{LabeledSpan, NamedSource, SourceSpan};

use crate::item::escape;

/// A configuration that can't be used. `Display` is the first problem in one line; [`ConfigError::summary`] adds the
/// place; as a [`miette::Diagnostic`] it shows every problem under its line.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{message}")]
pub struct ConfigError {
    pub message: String,
    #[help]
    pub help: Option<String>,
    #[source_code]
    pub source_code: Option<Arc<NamedSource<String>>>,
    /// The place first, then others that it contradicts.
    #[label(collection)]
    pub labels: Vec<LabeledSpan>,
    /// The further problems of the same text.
    #[related]
    pub others: Vec<ConfigError>,
}

impl ConfigError {
    /// A problem with no place in a text.
    pub(super) fn plain(message: impl Into<String>, help: impl Into<String>) -> ConfigError {
        ConfigError {
            message: message.into(),
            help: Some(help.into()),
            source_code: None,
            labels: Vec::new(),
            others: Vec::new(),
        }
    }

    /// All in one line, for logs, the health list and JSON: `gamdok.toml:12:9: unknown key … (and 2 more)`.
    pub fn summary(&self) -> String {
        let mut line = String::new();
        if let (Some(source), Some(label)) = (&self.source_code, self.labels.first()) {
            let (row, column) = position(source.inner(), label.offset());
            line = format!("{}:{row}:{column}: ", source.name());
        }
        line.push_str(&self.message);
        if let Some(label) = self.labels.first().and_then(LabeledSpan::label) {
            line.push_str(&format!(" ({label})"));
        }
        if !self.others.is_empty() {
            line.push_str(&format!(", and {} more", self.others.len()));
        }
        line
    }
}

/// Line and column of a byte, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

/// One thing that is wrong at one place.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) at: Range<usize>,
    /// The whole story in a line: which key, what is expected.
    pub(super) message: String,
    /// Under the caret: what was found.
    pub(super) label: String,
    pub(super) help: Option<String>,
    /// The other place of a contradiction.
    pub(super) also: Option<(Range<usize>, String)>,
}

/// Collects the problems of one text, so that the reader goes on after the first.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// More than these help nobody.
    const TOLD: usize = 20;

    pub(super) fn add(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    /// Nothing when all is well.
    pub(super) fn into_error(self, name: &str, text: &str) -> Option<ConfigError> {
        let mut problems = self.0.into_inner();
        problems.sort_by_key(|problem| problem.at.start);
        // A value that is read for two reasons is wrong once.
        problems.dedup_by(|one, other| one.at == other.at && one.message == other.message);
        problems.truncate(Self::TOLD);
        let source = Arc::new(NamedSource::new(name, printable(text)));
        let mut errors = problems.into_iter().map(|problem| {
            let mut labels = vec![labeled(problem.at, problem.label)];
            labels.extend(problem.also.map(|(at, label)| labeled(at, label)));
            ConfigError {
                message: problem.message,
                help: problem.help,
                source_code: Some(source.clone()),
                labels,
                others: Vec::new(),
            }
        });
        let mut first = errors.next()?;
        first.others = errors.collect();
        Some(first)
    }
}

fn labeled(at: Range<usize>, label: String) -> LabeledSpan {
    LabeledSpan::new_with_span(Some(label), SourceSpan::from(at))
}

/// The source's name as errors show it.
pub(super) fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    escape(path.as_os_str().as_bytes())
}

/// The text as a terminal may show it: control characters and those that reorder their neighbours are replaced by as
/// many bytes, so that every span stays right.
fn printable(text: &str) -> String {
    let replace = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        '\r' => " ".to_owned(),
        c if escape(c.encode_utf8(&mut [0; 4]).as_bytes()).starts_with("\\u") => "?".repeat(c.len_utf8()),
        c => c.to_string(),
    };
    text.chars().map(replace).collect()
}

/// The known word that `found` was likely meant to be.
pub(super) fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_lowercase().replace('-', "_");
    let scored =
        known.into_iter().map(|word| (strsim::jaro_winkler(&found, &word.to_lowercase().replace('-', "_")), word));
    scored.filter(|(score, _)| *score > 0.82).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["settle", "ignore", "watch", "poll_interval", "least-connections"];
        let check = |found: &str, expected: Option<&str>| assert_eq!(nearest(found, known), expected, "{found}");
        check("setle", Some("settle"));
        check("Settle", Some("settle"));
        check("poll-interval", Some("poll_interval"));
        check("pollinterval", Some("poll_interval"));
        check("least_connections", Some("least-connections"));
        check("wach", Some("watch"));
        check("colour", None);
        check("", None);
    }

    #[test]
    fn no_control_character_reaches_a_terminal_and_spans_stay() {
        let text = "a\u{1b}[31mb\u{202e}c\u{85}\td\r\ne";
        let shown = printable(text);
        assert_eq!(shown, "a?[31mb???c??\td \ne");
        assert_eq!(shown.len(), text.len());
    }

    #[test]
    fn a_place_is_a_line_and_a_column() {
        let check = |offset, place| assert_eq!(position("ab\ncéd\n", offset), place, "{offset}");
        check(0, (1, 1));
        check(3, (2, 1));
        check(6, (2, 3));
        check(99, (3, 1));
    }
}
