//! What a worker says on fd 3: one JSON object a line, read in pieces as they come. Pure: bytes in, messages out.
//!
//! Invariants: memory is bounded by the longest line allowed; a kind of message that is not known is passed over, a
//! known one with wrong fields is not; after the first broken line nothing more is read.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Said;
use crate::item::{JobId, escape};

/// The longest line, without its newline.
pub(crate) const MAX_LINE: usize = 1 << 20;
/// The longest message that is kept for people; the rest is cut.
pub(super) const MAX_ERROR: usize = 16 << 10;
pub(super) const MAX_PROGRESS: usize = 1 << 10;
/// How deep a result may be nested: what reads result.json later has its own limit, and none is known below this.
const MAX_DEPTH: usize = 100;
/// The longest name of a counter.
const MAX_NAME: usize = 200;

/// One line, understood.
#[derive(Debug)]
pub(crate) enum Message {
    /// The worker can take items; on which GPU, if it says so.
    Ready {
        device_uuid: Option<String>,
    },
    Done {
        id: Option<JobId>,
        result: Option<Box<RawValue>>,
    },
    Failed {
        id: Option<JobId>,
        error: String,
        retry: bool,
    },
    Progress {
        id: Option<JobId>,
        fraction: Option<f64>,
        message: Option<String>,
    },
    Count {
        name: String,
        by: f64,
    },
    Heartbeat,
    /// Of a kind that is not known here.
    Unknown {
        kind: String,
    },
}

/// A line that breaks the protocol, in words for people.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(pub(crate) String);

/// What is done with each message; its error ends the reading.
pub(crate) type Hear<'a> = &'a mut dyn FnMut(Message) -> Result<(), Broken>;

/// Cuts a stream into lines and reads each.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// The start of a line whose end hasn't come.
    partial: Vec<u8>,
}

impl Reader {
    /// Takes in the next bytes; `hear` gets each message. The first broken line ends it.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], hear: Hear) -> Result<(), Broken> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            self.bound(line.len())?;
            if self.partial.is_empty() {
                take(line, hear)?;
            } else {
                self.partial.extend_from_slice(line);
                let whole = std::mem::take(&mut self.partial);
                take(&whole, hear)?;
            }
        }
        self.bound(bytes.len())?;
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// The stream ended: what has no newline is a line too.
    pub(crate) fn finish(&mut self, hear: Hear) -> Result<(), Broken> {
        take(&std::mem::take(&mut self.partial), hear)
    }

    fn bound(&self, more: usize) -> Result<(), Broken> {
        let length = self.partial.len() + more;
        if length <= MAX_LINE { Ok(()) } else { Err(Broken(format!("a line of more than {MAX_LINE} bytes"))) }
    }
}

fn take(line: &[u8], hear: Hear) -> Result<(), Broken> {
    let line = line.trim_ascii();
    if line.is_empty() { Ok(()) } else { hear(parse(line)?) }
}

/// Reads one line.
pub(super) fn parse(line: &[u8]) -> Result<Message, Broken> {
    // A struct would also be read from an array.
    if line.first() != Some(&b'{') {
        return Err(Broken(format!("not a JSON object: `{}`", excerpt(line))));
    }
    let Head { kind } = read(line)?;
    match &*kind {
        "ready" => read(line).map(|Ready { device_uuid }| Message::Ready {
            device_uuid: device_uuid.map(|uuid: String| shorten(uuid, MAX_NAME)),
        }),
        "done" => {
            let Done { id, result } = read(line)?;
            result.as_deref().map_or(Ok(()), flat_enough)?;
            Ok(Message::Done { id, result })
        }
        "failed" => read(line).map(|Failed { id, error, retry }| Message::Failed {
            id,
            error: shorten(error, MAX_ERROR),
            retry: retry.unwrap_or(true),
        }),
        "progress" => read(line).map(|Progress { id, fraction, message }| {
            let fraction = fraction.map(|fraction: f64| fraction.clamp(0.0, 1.0));
            Message::Progress { id, fraction, message: message.map(|text| shorten(text, MAX_PROGRESS)) }
        }),
        "count" => {
            let Count { name, by } = read(line)?;
            counter(&name)?;
            Ok(Message::Count { name, by })
        }
        "heartbeat" => Ok(Message::Heartbeat),
        unknown => Ok(Message::Unknown { kind: shorten(unknown.to_owned(), MAX_NAME) }),
    }
}

/// Whether others can read a result.
pub(super) fn flat_enough(result: &RawValue) -> Result<(), Broken> {
    match is_deeper_than(MAX_DEPTH, result.get()) {
        true => Err(Broken(format!("a result that is nested deeper than {MAX_DEPTH} levels"))),
        false => Ok(()),
    }
}

/// Whether a counter can be called that.
pub(super) fn counter(name: &str) -> Result<(), Broken> {
    if (1..=MAX_NAME).contains(&name.len()) {
        return Ok(());
    }
    Err(Broken(format!("a counter's name has 1 to {MAX_NAME} bytes, not {}", name.len())))
}

fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, Broken> {
    serde_json::from_slice(line).map_err(|error| Broken(format!("{error}: `{}`", excerpt(line))))
}

/// Of valid JSON: how deep its arrays and objects go.
fn is_deeper_than(limit: usize, json: &str) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// The start of a line, fit to be shown.
fn excerpt(line: &[u8]) -> String {
    const SHOWN: usize = 120;
    let more = if line.len() > SHOWN { "…" } else { "" };
    escape(&line[..line.len().min(SHOWN)]) + more
}

pub(super) fn shorten(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Ready {
    #[serde(default)]
    device_uuid: Option<String>,
}

#[derive(Deserialize)]
struct Done {
    #[serde(default)]
    id: Option<JobId>,
    #[serde(default)]
    result: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Failed {
    #[serde(default)]
    id: Option<JobId>,
    error: String,
    #[serde(default)]
    retry: Option<bool>,
}

#[derive(Deserialize)]
struct Progress {
    #[serde(default)]
    id: Option<JobId>,
    #[serde(default)]
    fraction: Option<f64>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct Count {
    name: String,
    by: f64,
}

/// The last word that counts, after one more: `failed` beats `done` in either order, and `"retry":false` stays.
pub(super) fn last_word(before: Option<Said>, now: Said) -> Said {
    match (before, now) {
        (Some(Said::Failed { error, retry }), Said::Done { .. }) => Said::Failed { error, retry },
        (Some(Said::Failed { retry: before, .. }), Said::Failed { error, retry }) => {
            Said::Failed { error, retry: retry && before }
        }
        (_, now) => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

    fn shown(message: &Message) -> String {
        match message {
            Message::Done { id, result } => {
                format!("done {} {}", id.is_some(), result.as_ref().map_or("-", |result| result.get()))
            }
            Message::Failed { id, error, retry } => format!("failed {} {error:?} {retry}", id.is_some()),
            Message::Ready { device_uuid } => format!("ready {}", device_uuid.as_deref().unwrap_or("-")),
            Message::Progress { fraction, message, .. } => format!("progress {fraction:?} {message:?}"),
            other => format!("{other:?}"),
        }
    }

    /// Feeds the text whole and byte by byte; both must say the same.
    fn hear(text: &[u8]) -> String {
        let run = |piece: usize| {
            let mut reader = Reader::default();
            let mut heard = Vec::new();
            let mut note = |message: Message| {
                heard.push(shown(&message));
                Ok(())
            };
            let read = text.chunks(piece.max(1)).try_for_each(|piece| reader.feed(piece, &mut note));
            let end = read.and_then(|()| reader.finish(&mut note));
            heard.extend(end.err().map(|Broken(why)| format!("BROKEN {}", &why[..why.len().min(24)])));
            heard.join("; ")
        };
        let whole = run(text.len());
        assert_eq!(whole, run(1), "in pieces of one byte");
        whole
    }

    #[test]
    fn lines_are_read_as_the_contract_says() {
        let check = |text: &str, heard: &str| assert_eq!(hear(text.replace("ID", ID).as_bytes()), heard, "{text}");
        check("", "");
        check("\n \r\n", "");
        check("{\"type\":\"heartbeat\"}\n", "Heartbeat");
        check("{\"type\":\"heartbeat\"}", "Heartbeat");
        check("{\"type\":\"ready\",\"device_uuid\":\"GPU-1\"}\n", "ready GPU-1");
        check("{\"type\":\"ready\"}\n", "ready -");
        check("{\"type\":\"done\",\"id\":\"ID\"}\n", "done true -");
        check(
            "{\"result\":{\"b\":1.50,\"a\":[ 1e400 ]},\"type\":\"done\"}\r\n",
            "done false {\"b\":1.50,\"a\":[ 1e400 ]}",
        );
        check("{\"type\":\"failed\",\"id\":\"ID\",\"error\":\"no\"}\n", "failed true \"no\" true");
        check("{\"type\":\"failed\",\"id\":null,\"error\":\"no\",\"retry\":false}\n", "failed false \"no\" false");
        check("{\"type\":\"progress\",\"fraction\":0.5}\n", "progress Some(0.5) None");
        check("{\"type\":\"progress\",\"fraction\":7,\"message\":\"x\"}\n", "progress Some(1.0) Some(\"x\")");
        check("{\"type\":\"count\",\"name\":\"pages\",\"by\":3}\n", "Count { name: \"pages\", by: 3.0 }");
        check("{\"type\":\"count\",\"name\":\"p\",\"by\":-0.5,\"new\":[]}\n", "Count { name: \"p\", by: -0.5 }");
        check(
            "{\"type\":\"later\",\"by\":\"x\",\"id\":7}\n{\"type\":\"heartbeat\"}\n",
            "Unknown { kind: \"later\" }; Heartbeat",
        );
    }

    #[test]
    fn a_broken_line_ends_it() {
        let check =
            |text: &[u8], heard: &str| assert!(hear(text).starts_with(heard), "{}: {}", escape(text), hear(text));
        check(b"hello\n{\"type\":\"heartbeat\"}\n", "BROKEN not a JSON object");
        check(b"{\"type\":\"heartbeat\"}\n[\"heartbeat\"]\n", "Heartbeat; BROKEN not a JSON object");
        check(b"{\"type\":\"heartbeat\"", "BROKEN ");
        check(b"{}\n", "BROKEN missing field");
        check(b"{\"type\":3}\n", "BROKEN invalid type");
        check(b"{\"type\":\"failed\"}\n", "BROKEN missing field `error`");
        check(b"{\"type\":\"failed\",\"error\":\"x\",\"retry\":\"no\"}\n", "BROKEN invalid type");
        check(b"{\"type\":\"count\",\"name\":\"x\"}\n", "BROKEN missing field `by`");
        check(b"{\"type\":\"count\",\"name\":\"\",\"by\":1}\n", "BROKEN a counter's name");
        check(b"{\"type\":\"count\",\"name\":\"x\",\"by\":1e999}\n", "BROKEN number out of range");
        check(b"{\"type\":\"progress\",\"fraction\":NaN}\n", "BROKEN ");
        check(b"{\"type\":\"done\",\"id\":\"somebody\"}\n", "BROKEN ");
        check(b"{\"type\":\"heart\xffbeat\"}\n", "BROKEN ");
        check(b"{\"type\":\"heartbeat\"} {}\n", "BROKEN trailing");
    }

    #[test]
    fn a_result_has_a_depth_that_others_can_read() {
        let check = |result: &str, fine: bool| {
            let line = format!("{{\"type\":\"done\",\"result\":{result}}}");
            assert_eq!(parse(line.as_bytes()).is_ok(), fine, "{}", &result[..result.len().min(40)]);
        };
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        check(&nested(MAX_DEPTH), true);
        check(&nested(MAX_DEPTH + 1), false);
        check(&nested(200_000), false);
        check(&format!("\"{}\"", nested(500)), true);
        check(&format!("[\"\\\"{}\", {}]", "[".repeat(500), nested(5)), true);
        check(&format!("[{}]", vec!["{\"a\":[1]}"; 500].join(",")), true);
    }

    #[test]
    fn a_line_has_a_bound() {
        let padded = |length: usize| {
            let mut line = b"{\"type\":\"heartbeat\",\"x\":\"".to_vec();
            line.resize(length - 2, b'x');
            line.extend_from_slice(b"\"}\n");
            line
        };
        let run = |bytes: &[u8]| {
            let mut reader = Reader::default();
            bytes.chunks(65536).try_for_each(|piece| reader.feed(piece, &mut |_| Ok(())))
        };
        assert_eq!(run(&padded(MAX_LINE)), Ok(()));
        assert!(run(&padded(MAX_LINE + 1)).is_err());
        // One that never ends is stopped at the bound.
        assert!(run(&padded(MAX_LINE + 1)[..MAX_LINE + 1]).is_err());
    }

    #[test]
    fn long_words_for_people_are_cut_and_results_are_not() {
        let long = "\u{e4}".repeat(MAX_ERROR);
        let line = format!("{{\"type\":\"failed\",\"error\":\"{long}\"}}");
        let Ok(Message::Failed { error, .. }) = parse(line.as_bytes()) else { panic!() };
        assert!(error.len() <= MAX_ERROR + '…'.len_utf8() && error.ends_with('…'));
        let line = format!("{{\"type\":\"done\",\"result\":\"{long}\"}}");
        let Ok(Message::Done { result, .. }) = parse(line.as_bytes()) else { panic!() };
        assert_eq!(result.unwrap().get().len(), long.len() + 2);
    }

    #[test]
    fn the_last_word_counts_but_failed_beats_done() {
        let done = || Said::Done { result: None };
        let failed = |error: &str, retry| Said::Failed { error: error.to_owned(), retry };
        let check = |said: Vec<Said>, last: &str| {
            let word = said.into_iter().fold(None, |before, now| Some(last_word(before, now)));
            let word = match word {
                None => "-".to_owned(),
                Some(Said::Done { result }) => format!("done {}", result.is_some()),
                Some(Said::Failed { error, retry }) => format!("{error} {retry}"),
            };
            assert_eq!(word, last);
        };
        check(vec![], "-");
        let result = serde_json::value::to_raw_value(&1).ok();
        check(vec![Said::Done { result }, done()], "done false");
        check(vec![done(), failed("a", true)], "a true");
        check(vec![failed("a", true), done()], "a true");
        check(vec![failed("a", false), failed("b", true)], "b false");
    }
}
