//! What the runs are over: words of the command line, or stdin as it comes. A thread of its own reads, since stdin may
//! stay silent for ever; it stops when nobody takes what it has.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::thread;

use crossbeam_channel::{Receiver, bounded};

use super::Arguments;
use super::kept::Kept;

/// A word of a command is at most 128 KiB on Linux; a line may hold some as its columns. One that is longer still is
/// passed over, and needs no memory.
const LONGEST: usize = 1 << 20;
/// How many arguments are read ahead.
const READ_AHEAD: usize = 32;

/// One run's.
#[derive(Debug)]
pub(super) struct Input {
    /// From 1.
    pub(super) number: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Argument(Vec<u8>),
    /// One that no process can be given: so many bytes.
    TooLong(u64),
    /// For its stdin.
    Lines {
        count: u64,
        bytes: Kept,
    },
}

impl What {
    /// What it holds in memory.
    pub(super) fn size(&self) -> usize {
        match self {
            What::Argument(argument) => argument.len(),
            What::TooLong(_) | What::Lines { .. } => 0,
        }
    }

    /// Lets go of what only a run needs.
    pub(super) fn used(&mut self) {
        if let What::Lines { bytes, .. } = self {
            *bytes = Kept::default();
        }
    }
}

/// Begins to read. The channel closes at the end, or after an error.
pub(super) fn start(arguments: Arguments) -> io::Result<Receiver<io::Result<What>>> {
    // Blocks of lines may be large, and each is worth a while of work.
    let ahead = if matches!(arguments, Arguments::Blocks(_)) { 1 } else { READ_AHEAD };
    let (give, take) = bounded(ahead);
    let read = move || {
        let give = |what| give.send(what).is_ok();
        match arguments {
            Arguments::Listed(words) => {
                let _ = words.into_iter().all(|word| give(Ok(What::Argument(word.into_vec()))));
            }
            Arguments::Stdin { end } => from_stdin(give, |from| argument(from, end)),
            Arguments::Blocks(lines) => from_stdin(give, |from| block(from, lines.get())),
        }
    };
    thread::Builder::new().name("map-input".to_owned()).spawn(read)?;
    Ok(take)
}

fn from_stdin(
    give: impl Fn(io::Result<What>) -> bool,
    mut next: impl FnMut(&mut BufReader<File>) -> io::Result<Option<What>>,
) {
    let opened = io::stdin().as_fd().try_clone_to_owned();
    let mut from = match opened {
        Ok(stdin) => BufReader::with_capacity(64 << 10, File::from(stdin)),
        Err(error) => {
            give(Err(error));
            return;
        }
    };
    while let Some(what) = next(&mut from).transpose() {
        let broke = what.is_err();
        if !give(what) || broke {
            return;
        }
    }
}

/// The next argument; one that the end of the file ends counts, too.
fn argument(from: &mut impl BufRead, end: u8) -> io::Result<Option<What>> {
    let (mut argument, mut length) = (Vec::new(), 0_u64);
    let found = to_end(from, end, |piece| {
        length += piece.len() as u64;
        argument.extend_from_slice(&piece[..piece.len().min(LONGEST - argument.len())]);
        Ok(())
    })?;
    Ok(match length {
        0 if !found => None,
        length if length > LONGEST as u64 => Some(What::TooLong(length)),
        _ => Some(What::Argument(argument)),
    })
}

/// The next lines as they stand, so many or what is left.
fn block(from: &mut impl BufRead, lines: u64) -> io::Result<Option<What>> {
    let (mut bytes, mut count) = (Kept::default(), 0);
    while count < lines {
        let before = bytes.len();
        let found = to_end(from, b'\n', |piece| bytes.append(piece))?;
        if found {
            bytes.append(b"\n")?;
        }
        if bytes.len() > before {
            count += 1;
        }
        if !found {
            break;
        }
    }
    Ok((count > 0).then_some(What::Lines { count, bytes }))
}

/// Everything before the next `end`, piece by piece; whether there was one.
fn to_end(from: &mut impl BufRead, end: u8, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
    loop {
        let piece = match from.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            piece => piece?,
        };
        if piece.is_empty() {
            return Ok(false);
        }
        let found = memchr::memchr(end, piece);
        let length = found.unwrap_or(piece.len());
        take(&piece[..length])?;
        from.consume(length + usize::from(found.is_some()));
        if found.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn arguments_end_with_their_byte_or_the_file() {
        let check = |text: &[u8], end: u8, expected: &[&[u8]]| {
            // A tiny buffer, so that every argument comes in pieces.
            let mut from = BufReader::with_capacity(3, text);
            let mut found = Vec::new();
            while let Some(What::Argument(argument)) = argument(&mut from, end).unwrap() {
                found.push(argument);
            }
            assert_eq!(found, expected, "{text:?}");
        };
        check(b"", b'\n', &[]);
        check(b"a\n", b'\n', &[b"a"]);
        check(b"a\nlonger than three", b'\n', &[b"a", b"longer than three"]);
        check(b"\n\nx\n", b'\n', &[b"", b"", b"x"]);
        check(b"a\r\n\xff\xfe\n", b'\n', &[b"a\r", b"\xff\xfe"]);
        check(b"new\nline\0b\0", 0, &[b"new\nline", b"b"]);
    }

    #[test]
    fn an_argument_beyond_all_bounds_is_passed_over_without_memory() {
        let long = vec![b'x'; LONGEST + 1];
        let text = [&long[..], b"\nnext\n"].concat();
        let mut from = BufReader::new(&text[..]);
        let first = argument(&mut from, b'\n').unwrap();
        assert!(matches!(first, Some(What::TooLong(length)) if length == LONGEST as u64 + 1), "{first:?}");
        assert!(matches!(argument(&mut from, b'\n').unwrap(), Some(What::Argument(next)) if next == b"next"));
    }

    #[test]
    fn blocks_are_the_lines_as_they_stand() {
        let check = |text: &[u8], lines: u64, expected: &[(u64, &[u8])]| {
            let mut from = BufReader::with_capacity(3, text);
            let mut found = Vec::new();
            while let Some(What::Lines { count, bytes }) = block(&mut from, lines).unwrap() {
                let mut read = Vec::new();
                bytes.reader().read_to_end(&mut read).unwrap();
                found.push((count, read));
            }
            let found: Vec<(u64, &[u8])> = found.iter().map(|(count, bytes)| (*count, bytes.as_slice())).collect();
            assert_eq!(found, expected, "{text:?}");
        };
        check(b"", 2, &[]);
        check(b"a\nb\nc", 2, &[(2, b"a\nb\n"), (1, b"c")]);
        check(b"a\nb\n", 2, &[(2, b"a\nb\n")]);
        check(b"\n\n\n", 1, &[(1, b"\n"), (1, b"\n"), (1, b"\n")]);
        check(b"a\r\n\xff", 9, &[(2, b"a\r\n\xff")]);
    }
}
