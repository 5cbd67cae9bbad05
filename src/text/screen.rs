//! What a terminal is shown of bytes that anyone may have written: text, line ends, tabs, carriage returns (progress
//! bars) and colours. Everything else is escaped. Works on a stream: what is cut in two is kept for the next part.

use std::fmt::Write as _;

use crate::logging::plain;

#[derive(Debug, Default)]
pub struct Screen {
    /// The beginning of a character or of a colour that goes on in the next part.
    kept: Vec<u8>,
}

/// No colour is longer.
const LONGEST: usize = 32;

impl Screen {
    pub fn show(&mut self, bytes: &[u8]) -> String {
        self.kept.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.kept);
        let mut shown = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while let Some(&first) = rest.first() {
            let used = match (first, rest) {
                (0x1b, _) => match colour(rest) {
                    Some(0) => break,
                    Some(used) => {
                        shown.push_str(&String::from_utf8_lossy(&rest[..used]));
                        used
                    }
                    None => escaped(&mut shown, "\x1b"),
                },
                (b'\n' | b'\t' | b'\r', _) => {
                    shown.push(char::from(first));
                    1
                }
                _ => match text(rest) {
                    Piece::Text(text) => {
                        shown.push_str(&plain(text));
                        text.len()
                    }
                    Piece::Cut => break,
                    Piece::Invalid => {
                        let _ = write!(shown, "\\x{first:02x}");
                        1
                    }
                },
            };
            rest = &rest[used..];
        }
        self.kept = rest.to_vec();
        shown
    }

    /// What was kept, when nothing follows.
    pub fn rest(&mut self) -> String {
        let kept = std::mem::take(&mut self.kept);
        kept.iter().fold(String::new(), |mut shown, byte| {
            match byte {
                0x20..0x7f => shown.push(char::from(*byte)),
                byte => {
                    let _ = write!(shown, "\\x{byte:02x}");
                }
            }
            shown
        })
    }
}

fn escaped(shown: &mut String, text: &str) -> usize {
    shown.push_str(&plain(text));
    text.len()
}

/// The length of a colour sequence at the beginning of `bytes`; 0 when it may go on, nothing when it is none.
fn colour(bytes: &[u8]) -> Option<usize> {
    match bytes.get(1) {
        None => return Some(0),
        Some(b'[') => {}
        Some(_) => return None,
    }
    let end = bytes.iter().skip(2).take(LONGEST).position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'));
    match end {
        Some(end) => (bytes[2 + end] == b'm').then_some(2 + end + 1),
        None if bytes.len() < LONGEST => Some(0),
        None => None,
    }
}

enum Piece<'a> {
    Text(&'a str),
    /// A character whose end is still to come.
    Cut,
    Invalid,
}

/// The text up to the next byte that is something else.
fn text(bytes: &[u8]) -> Piece<'_> {
    // Only so far ahead: of bytes that are no text one is taken at a time.
    let near = &bytes[..bytes.len().min(4096)];
    let end = near.iter().position(|byte| matches!(byte, 0x1b | b'\n' | b'\t' | b'\r')).unwrap_or(near.len());
    let text = match std::str::from_utf8(&bytes[..end]) {
        Ok(text) => text,
        Err(wrong) if wrong.valid_up_to() > 0 => std::str::from_utf8(&bytes[..wrong.valid_up_to()]).unwrap_or_default(),
        Err(wrong) if wrong.error_len().is_none() && end == bytes.len() => return Piece::Cut,
        Err(_) => return Piece::Invalid,
    };
    if text.is_empty() { Piece::Invalid } else { Piece::Text(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sees_text_and_colours_only() {
        let check = |parts: &[&[u8]], expected: &str| {
            let mut screen = Screen::default();
            let mut shown: String = parts.iter().map(|part| screen.show(part)).collect();
            shown += &screen.rest();
            assert_eq!(shown, expected, "{parts:?}");
        };
        check(&[b"plain\n\ttext\r50%"], "plain\n\ttext\r50%");
        check(&[b"\x1b[1;31mred\x1b[0m"], "\x1b[1;31mred\x1b[0m");
        check(&[b"\x1b[1;3", b"1mred"], "\x1b[1;31mred");
        check(&[b"a\x1b[2Jb"], "a\\u{1b}[2Jb");
        check(&[b"a\x1b]0;title\x07b"], "a\\u{1b}]0;title\\u{7}b");
        check(
            &[b"\x1b[", b"99999999999999999999999999999999999999m"],
            "\\u{1b}[99999999999999999999999999999999999999m",
        );
        check(&["감독".as_bytes()], "감독");
        check(&[&"감".as_bytes()[..1], &"감".as_bytes()[1..], "!".as_bytes()], "감!");
        check(&[b"a\xffb"], "a\\xffb");
        check(&[b"\xea\xb0"], "\\xea\\xb0");
        check(&["\u{9b}2J\u{202e}".as_bytes()], "\\u{9b}2J\\u{202e}");
        check(&[b"cut\x1b"], "cut\\x1b");
    }
}
