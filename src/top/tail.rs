//! The end of a log that grows: its last lines, as text that a screen can be shown. A carriage return begins the line
//! anew, as progress bars mean it; colours are left out. Bounded, however long the log is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;

use crate::text::Screen;

/// Lines that are kept.
const LINES: usize = 2000;
/// Where a log is longer, its beginning isn't read.
const BYTES: u64 = 256 << 10;
/// A longer line goes on in the next.
const LONGEST: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Tail {
    file: File,
    read: u64,
    text: Text,
}

impl Tail {
    pub(super) fn open(path: &Path) -> io::Result<Tail> {
        let mut file = File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(BYTES);
        file.seek(SeekFrom::Start(from))?;
        Ok(Tail { file, read: from, text: Text { skips: from > 0, ..Text::default() } })
    }

    /// Reads what came since; whether there was anything.
    pub(super) fn read(&mut self) -> io::Result<bool> {
        let before = self.read;
        if self.file.metadata()?.len() < self.read {
            // Somebody made it shorter: what was read is no longer there.
            self.read = 0;
            self.file.seek(SeekFrom::Start(0))?;
            self.text = Text::default();
        }
        let mut part = vec![0; 64 << 10];
        loop {
            match self.file.read(&mut part)? {
                0 => return Ok(self.read != before),
                n => {
                    self.read += n as u64;
                    self.text.push(&part[..n]);
                }
            }
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let open = Some(&self.text.open).filter(|open| !open.is_empty());
        self.text.lines.iter().chain(open).cloned().collect()
    }
}

#[derive(Debug, Default)]
struct Text {
    screen: Screen,
    lines: VecDeque<String>,
    /// The line that isn't ended yet.
    open: String,
    chars: usize,
    /// A carriage return was the last: what follows begins the line anew, unless it ends it.
    returned: bool,
    in_colour: bool,
    /// What was read first is the end of a line whose beginning wasn't.
    skips: bool,
}

impl Text {
    fn push(&mut self, bytes: &[u8]) {
        for c in self.screen.show(bytes).chars() {
            match c {
                // Of all sequences the screen lets colours through only, and these whole.
                _ if self.in_colour => self.in_colour = c != 'm',
                '\x1b' => self.in_colour = true,
                '\n' => self.end(),
                '\r' => self.returned = true,
                '\t' => {
                    self.add(' ');
                    while !self.chars.is_multiple_of(8) {
                        self.add(' ');
                    }
                }
                c => self.add(c),
            }
        }
    }

    fn add(&mut self, c: char) {
        if std::mem::take(&mut self.returned) {
            self.open.clear();
            self.chars = 0;
        }
        if self.chars == LONGEST {
            self.end();
        }
        self.open.push(c);
        self.chars += 1;
    }

    fn end(&mut self) {
        let line = std::mem::take(&mut self.open);
        self.chars = 0;
        self.returned = false;
        if !std::mem::take(&mut self.skips) {
            self.lines.push_back(line);
        }
        if self.lines.len() > LINES {
            self.lines.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_becomes_lines_of_plain_text() {
        let check = |parts: &[&[u8]], expected: &[&str]| {
            let mut text = Text::default();
            parts.iter().for_each(|part| text.push(part));
            let open = Some(text.open.clone()).filter(|open| !open.is_empty());
            let lines: Vec<String> = text.lines.iter().cloned().chain(open).collect();
            assert_eq!(lines, expected, "{parts:?}");
        };
        check(&[b"a\nb"], &["a", "b"]);
        check(&[b"a\r\nb\r\n"], &["a", "b"]);
        check(&[b"10%\r50%", b"\r100%\n"], &["100%"]);
        check(&[b"10%\r"], &["10%"]);
        check(&[b"\x1b[1;3", b"1mred\x1b[0m!"], &["red!"]);
        check(&[b"a\tb\n123456789\tc"], &["a       b", "123456789       c"]);
        check(&[b"\x1b[2Jx\x1b]0;t\x07"], &["\\u{1b}[2Jx\\u{1b}]0;t\\u{7}"]);
        check(&["감\u{202e}".as_bytes()], &["감\\u{202e}"]);
        check(&[b"\xff\n"], &["\\xff"]);
        check(&[&[b'x'; LONGEST + 1]], &[&"x".repeat(LONGEST), "x"]);
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read_and_what_is_added_later() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("attempt-1.log");
        let mut file = File::create(&path).expect("a log");
        for n in 0..200_000 {
            writeln!(file, "line {n}").expect("write");
        }
        let mut tail = Tail::open(&path).expect("open it");
        assert!(tail.read().expect("read it"));
        let lines = tail.lines();
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (LINES, Some("line 199999")));
        assert!(!tail.read().expect("read it"));
        write!(file, "more").expect("write");
        assert!(tail.read().expect("read it"));
        assert_eq!(tail.lines().last().map(String::as_str), Some("more"));
        file.set_len(0).expect("cut it");
        std::fs::write(&path, "anew\n").expect("write");
        assert!(tail.read().expect("read it"));
        assert_eq!(tail.lines(), ["anew"]);
    }
}
