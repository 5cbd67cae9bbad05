//! What is printed of a run: its output whole, its failure in a line; or one JSON object, streamed, since its output may be
//! larger than the memory.

use std::io::{self, BufWriter, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::input::What;
use super::kept::Kept;
use super::out::Out;
use super::slot::{Done, End};
use super::stop::Stop;
use super::{Summary, View};
use crate::item::escape;
use crate::worker::process::Exit;

/// Output is turned into JSON in pieces of this size: whole groups of base64.
const PIECE: usize = 48 << 10;
/// So much of an argument names it in a line for people.
const SHOWN: usize = 200;

#[derive(Debug)]
pub(super) struct Printer {
    stdout: Out,
    stderr: Out,
    view: View,
}

impl Printer {
    pub(super) fn new(view: View, stop: &Stop) -> io::Result<Printer> {
        Ok(Printer { stdout: Out::new(io::stdout(), stop)?, stderr: Out::new(io::stderr(), stop)?, view })
    }

    pub(super) fn show(&mut self, done: &Done) -> io::Result<()> {
        if self.view.json {
            let mut to = BufWriter::with_capacity(64 << 10, &mut self.stdout);
            let written = object(&mut to, done).and_then(|()| to.flush());
            // What is left in it is not to be tried again.
            let _ = to.into_parts();
            return written;
        }
        io::copy(&mut done.stdout.reader(), &mut self.stdout)?;
        // Who closed stderr doesn't want to be told.
        let told = io::copy(&mut done.stderr.reader(), &mut self.stderr);
        match told {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(_) => return Ok(()),
            Ok(_) => {}
        }
        if !done.end.is_success() && !self.view.quiet {
            self.say(&failure(done));
        }
        Ok(())
    }

    /// The end of it all.
    pub(super) fn tell(&mut self, summary: &Summary, taken: u64) {
        let Summary { runs, failed, stopped, unread } = *summary;
        if self.view.json || self.view.quiet || unread {
            return;
        }
        let of = |count: u64| if count == 1 { "run" } else { "runs" };
        if stopped {
            let cut = taken - runs;
            self.say(&format!(
                "stopped: {runs} {} had ended, {failed} of them failed; {cut} cut or not begun",
                of(runs)
            ));
        } else if failed > 0 {
            self.say(&format!("{failed} of {runs} {} failed", of(runs)));
        }
    }

    fn say(&mut self, line: &str) {
        let _ = self.stderr.write_all(format!("gamdok: {line}\n").as_bytes());
    }
}

/// `run 3 (`b.txt`) failed: exit code 1, after 2 attempts`
fn failure(done: &Done) -> String {
    let what = match &done.input.what {
        What::Argument(argument) => {
            let more = if argument.len() > SHOWN { "…" } else { "" };
            format!(" (`{}{more}`)", escape(&argument[..argument.len().min(SHOWN)]))
        }
        What::TooLong(_) | What::Lines { .. } => String::new(),
    };
    let attempts = if done.attempts > 1 { format!(", after {} attempts", done.attempts) } else { String::new() };
    format!("run {}{what} failed: {}{attempts}", done.input.number, why(&done.end).unwrap_or_default())
}

/// Why it didn't end well, in words.
fn why(end: &End) -> Option<String> {
    Some(match end {
        End::Exit(Exit::Code(0)) => return None,
        End::Exit(Exit::Code(code)) => format!("exit code {code}"),
        End::Exit(Exit::Signal(signal)) => format!("signal {signal}"),
        End::NotRun { why, .. } => why.clone(),
        End::Stopped => "stopped".to_owned(),
    })
}

/// One line.
fn object(to: &mut impl Write, done: &Done) -> io::Result<()> {
    let (argument, lines) = match &done.input.what {
        What::Argument(argument) => (Some(argument), None),
        What::Lines { count, .. } => (None, Some(count)),
        What::TooLong(_) => (None, None),
    };
    let (code, signal) = match done.end {
        End::Exit(Exit::Code(code)) => (Some(code), None),
        End::Exit(Exit::Signal(signal)) => (None, Some(signal)),
        End::NotRun { .. } | End::Stopped => (None, None),
    };
    let fields = [
        ("n", json!(done.input.number)),
        ("argument", argument.map_or(Value::Null, |argument| escape(argument).into())),
        ("argument_b64", argument.map_or(Value::Null, |argument| BASE64.encode(argument).into())),
        ("lines", json!(lines)),
        ("ok", json!(done.end.is_success())),
        ("exit_code", json!(code)),
        ("signal", json!(signal)),
        ("error", json!(why(&done.end))),
        ("attempts", json!(done.attempts)),
        ("slot", json!(done.slot)),
        ("device", json!(done.device)),
        ("device_id", json!(done.device_id)),
        ("started_at", json!(done.started_at.to_string())),
        ("seconds", json!(done.took.as_secs_f64())),
    ];
    to.write_all(b"{")?;
    for (key, value) in fields {
        write!(to, "\"{key}\":{value},")?;
    }
    output(to, "stdout", &done.stdout)?;
    to.write_all(b",")?;
    output(to, "stderr", &done.stderr)?;
    to.write_all(b"}\n")
}

/// As text where it is UTF-8, else as base64 under the key's second form.
fn output(to: &mut impl Write, key: &str, kept: &Kept) -> io::Result<()> {
    if is_text(kept)? {
        write!(to, "\"{key}\":\"")?;
        each_text(kept, |text| {
            let quoted = serde_json::to_string(text)?;
            to.write_all(&quoted.as_bytes()[1..quoted.len() - 1])
        })?;
        write!(to, "\",\"{key}_b64\":null")
    } else {
        write!(to, "\"{key}\":null,\"{key}_b64\":\"")?;
        each_piece(kept, |piece| to.write_all(BASE64.encode(piece).as_bytes()).map(|()| piece.len()))?;
        to.write_all(b"\"")
    }
}

fn is_text(kept: &Kept) -> io::Result<bool> {
    match each_text(kept, |_| Ok(())) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes it piece by piece, cut between characters.
fn each_text(kept: &Kept, mut take: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let left = each_piece(kept, |piece| {
        let whole = match std::str::from_utf8(piece) {
            Ok(text) => text,
            // A character may be cut by the end of the piece.
            Err(wrong) if wrong.error_len().is_none() => {
                std::str::from_utf8(&piece[..wrong.valid_up_to()]).map_err(io::Error::other)?
            }
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        };
        take(whole)?;
        Ok(whole.len())
    })?;
    if left == 0 { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Gives out full pieces, but for the last; what `take` leaves of one begins the next. How much is left at the end.
fn each_piece(kept: &Kept, mut take: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
    let mut reader = kept.reader();
    let (mut buffer, mut held) = (vec![0; PIECE.min(usize::try_from(kept.len()).unwrap_or(PIECE))], 0);
    loop {
        while held < buffer.len() {
            match reader.read(&mut buffer[held..])? {
                0 => break,
                read => held += read,
            }
        }
        if held == 0 {
            return Ok(0);
        }
        let taken = take(&buffer[..held])?;
        let is_last = held < buffer.len() || taken == 0;
        buffer.copy_within(taken..held, 0);
        held -= taken;
        if is_last {
            return Ok(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::Input;
    use super::super::slot::fixtures;
    use super::*;

    fn shown(stdout: &[u8]) -> Value {
        let mut done = fixtures::done(3);
        done.stdout.append(stdout).unwrap();
        let mut line = Vec::new();
        object(&mut line, &done).unwrap();
        assert!(line.ends_with(b"}\n") && line.iter().filter(|byte| **byte == b'\n').count() == 1);
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn output_of_any_size_and_kind_comes_through_as_json() {
        let check = |bytes: &[u8]| {
            let object = shown(bytes);
            match (object["stdout"].as_str(), object["stdout_b64"].as_str()) {
                (Some(text), None) => assert_eq!(text.as_bytes(), bytes),
                (None, Some(coded)) => {
                    assert!(BASE64.decode(coded).unwrap() == bytes && std::str::from_utf8(bytes).is_err());
                }
                other => panic!("{other:?}"),
            }
        };
        check(b"");
        check(b"one\n\"two\"\\\x1b\0");
        check(b"\xff");
        // Cut at the end of it all, and by the end of a piece.
        check("é".as_bytes().split_last().unwrap().1);
        for shift in 0..4 {
            let mut text = "x".repeat(shift) + &"한".repeat(PIECE);
            check(text.as_bytes());
            text.push('é');
            check(text.as_bytes());
            check(&text.as_bytes()[..text.len() - 1]);
            check(&[text.as_bytes(), b"\xff", text.as_bytes()].concat());
        }
        check(&vec![b'x'; PIECE]);
        check(&vec![b'x'; PIECE * 2]);
    }

    #[test]
    fn what_is_not_known_is_null() {
        let object = shown(b"x");
        for key in ["lines", "signal", "error"] {
            assert_eq!(object.get(key), Some(&Value::Null), "{key}");
        }
        assert_eq!((&object["exit_code"], &object["seconds"], &object["n"]), (&json!(0), &json!(1.5), &json!(3)));
    }

    #[test]
    fn a_failure_is_told_in_one_line() {
        let check = |argument: &[u8], end: End, attempts: u32, expected: &str| {
            let input = Input { number: 3, what: What::Argument(argument.to_vec()) };
            assert_eq!(failure(&Done { input, end, attempts, ..fixtures::done(3) }), expected);
        };
        check(b"b", End::Exit(Exit::Code(1)), 1, "run 3 (`b`) failed: exit code 1");
        check(b"a\n\x1b", End::Exit(Exit::Signal(9)), 2, "run 3 (`a\\n\\u{1b}`) failed: signal 9, after 2 attempts");
        let not_run = End::NotRun { why: "it has 1 column".to_owned(), hopeless: false };
        check(b"", not_run, 1, "run 3 (``) failed: it has 1 column");
    }
}
