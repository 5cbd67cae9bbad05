//! What is known of the growing output, so that a run can go on after a kill: a line for each group of parts that was
//! merged, with where the group ends in the input and in the output, and a checksum of its bytes. Each line ends with a
//! checksum of its own. What a journal says counts as far as its lines are whole and the output's bytes are what they say.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use libdeflater::{Crc, crc32};
use serde::{Deserialize, Serialize};

use super::input::Identity;
use super::producer::Place;
use super::stop::StopFlag;
use crate::item::Counters;

const VERSION: u32 = 1;
/// No line is longer; a longer one isn't ours.
const LONGEST: u64 = 4 << 20;

/// The first line: what the output is made of. Another one means another output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    version: u32,
    input_bytes: u64,
    input_mtime_ns: i64,
    gzip: bool,
    tag: u32,
}

impl Header {
    pub(super) fn new(input: &Identity, gzip: bool, tag: &str) -> Header {
        let input_mtime_ns = i64::try_from(input.mtime_ns).unwrap_or(i64::MAX);
        // A tag may be long, such as a whole command: its checksum tells it from another.
        Header { version: VERSION, input_bytes: input.bytes, input_mtime_ns, gzip, tag: crc32(tag.as_bytes()) }
    }
}

/// A group of parts that stands in the output, or none, where only counters came; all numbers but the checksum count from the beginning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) batches: u64,
    pub(super) lines: u64,
    /// Of the input, uncompressed.
    pub(super) offset: u64,
    /// Of the input as it lies on the disk.
    pub(super) position: u64,
    /// Of the output.
    pub(super) length: u64,
    /// Of the output's bytes since the record before.
    pub(super) crc: u32,
    /// The output is whole.
    pub(super) end: bool,
    /// What was counted over these parts: on the disk since the record before, like the checksum; of what stands, in all.
    #[serde(default, skip_serializing_if = "Counters::is_empty")]
    pub(super) counters: Counters,
}

impl Record {
    pub(super) fn place(&self) -> Place {
        Place { batches: self.batches, lines: self.lines, offset: self.offset, position: self.position }
    }
}

/// A line of the journal.
pub(super) fn line(entry: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    let crc = crc32(&line);
    line.extend_from_slice(format!(" {crc:08x}\n").as_bytes());
    Ok(line)
}

fn parse<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Option<T> {
    let (entry, crc) = line.strip_suffix(b"\n")?.split_last_chunk::<9>()?;
    let crc = std::str::from_utf8(crc).ok()?.strip_prefix(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc32(entry)).then(|| serde_json::from_slice(entry).ok())?
}

/// What stands, by a journal and its output.
#[derive(Debug, PartialEq)]
pub(super) enum Standing {
    /// No journal, or another output's.
    Nothing,
    /// So much; the journal's lines up to it take `journal` bytes.
    UpTo { record: Record, journal: u64 },
}

/// Reads both from their beginnings. `output` is none when the file is gone: then only an end on record stands, which the
/// caller checks by the finished file.
pub(super) fn verify(
    journal: &File,
    mut output: Option<&File>,
    expected: &Header,
    stop: &StopFlag,
) -> io::Result<Standing> {
    let mut reader = BufReader::new(journal);
    let mut text = Vec::new();
    let mut next = |text: &mut Vec<u8>| {
        text.clear();
        (&mut reader).take(LONGEST).read_until(b'\n', text)
    };
    next(&mut text)?;
    if parse::<Header>(&text).as_ref() != Some(expected) {
        return Ok(Standing::Nothing);
    }
    let mut good = text.len() as u64;
    let mut standing = Record::default();
    let mut last_is_end = None;
    let mut chunk = vec![0; 256 << 10];
    loop {
        next(&mut text)?;
        let Some(mut record) = parse::<Record>(&text) else { break };
        let follows = standing.batches <= record.batches && standing.length <= record.length && !standing.end;
        if !follows {
            break;
        }
        if let Some(output) = &mut output
            && checksum(output, record.length - standing.length, &mut chunk, stop)? != Some(record.crc)
        {
            break;
        }
        let mut counters = std::mem::take(&mut standing.counters);
        counters.add_all(&record.counters);
        record.counters = counters;
        last_is_end = Some(record.end);
        standing = record;
        good += text.len() as u64;
    }
    match (output, last_is_end) {
        (None, None | Some(false)) => Ok(Standing::Nothing),
        _ => Ok(Standing::UpTo { record: standing, journal: good }),
    }
}

/// The checksum of the next bytes of a file; none if it ends before.
fn checksum(file: &mut &File, bytes: u64, chunk: &mut [u8], stop: &StopFlag) -> io::Result<Option<u32>> {
    let mut crc = Crc::new();
    let mut left = file.take(bytes);
    loop {
        if stop.is_ordered() {
            return Err(io::Error::other("stopped"));
        }
        match left.read(chunk) {
            Ok(0) => break,
            Ok(read) => crc.update(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((left.limit() == 0).then(|| crc.sum()))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    fn header() -> Header {
        Header::new(&Identity { bytes: 9, mtime_ns: 7 }, false, "cat")
    }

    fn record(batches: u64, length: u64, bytes: &[u8]) -> Record {
        let counters = [("seen".to_owned(), 2.0)].into_iter().collect();
        let (lines, offset, crc) = (batches * 2, batches * 10, crc32(bytes));
        Record { batches, lines, offset, position: 1, length, crc, end: false, counters }
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    fn check(text: &[u8], output: Option<&[u8]>, expected: Option<(u64, u64)>) {
        let output = output.map(file);
        let found = match verify(&file(text), output.as_ref(), &header(), &StopFlag::new().unwrap()).unwrap() {
            Standing::Nothing => None,
            Standing::UpTo { record, journal } => {
                let records = text[..journal as usize].iter().filter(|byte| **byte == b'\n').count() - 1;
                assert_eq!(record.counters.get("seen").unwrap_or_default(), 2.0 * records as f64, "each counts two");
                Some((record.length, journal))
            }
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_whole_and_right_stands() {
        let head = line(&header()).unwrap();
        let one = line(&record(1, 3, b"abc")).unwrap();
        let two = line(&record(3, 5, b"de")).unwrap();
        let end = line(&Record { end: true, ..record(3, 5, b"") }).unwrap();
        let whole = [&head[..], &one, &two, &end].concat();
        let (first, second, third) =
            (head.len() as u64, (head.len() + one.len()) as u64, (whole.len() - end.len()) as u64);
        check(&whole, Some(b"abcde"), Some((5, whole.len() as u64)));
        check(&whole, Some(b"abcdefgh"), Some((5, whole.len() as u64)));
        check(&whole, Some(b"abcd"), Some((3, second)));
        check(&whole, Some(b"abcxe"), Some((3, second)));
        check(&whole, Some(b"Abcde"), Some((0, first)));
        check(&whole, Some(b""), Some((0, first)));
        check(&whole, None, Some((5, whole.len() as u64)));
        check(&whole[..third as usize], None, None);
        for cut in 0..whole.len() {
            let expected = match cut as u64 {
                cut if cut < first => None,
                cut if cut < second => Some((0, first)),
                cut if cut < third => Some((3, second)),
                _ => Some((5, third)),
            };
            check(&whole[..cut], Some(b"abcde"), expected);
        }
        let mut flipped = whole.clone();
        flipped[second as usize + 12] ^= 1;
        check(&flipped, Some(b"abcde"), Some((3, second)));
        check(&[&head[..], &two, &one].concat(), Some(b"abcde"), Some((0, first)));
    }

    #[test]
    fn another_outputs_journal_is_nothing() {
        let other = |identity: Identity, gzip, tag| {
            let journal = line(&Header::new(&identity, gzip, tag)).unwrap();
            check(&journal, Some(b""), None);
        };
        other(Identity { bytes: 8, mtime_ns: 7 }, false, "cat");
        other(Identity { bytes: 9, mtime_ns: 8 }, false, "cat");
        other(Identity { bytes: 9, mtime_ns: 7 }, true, "cat");
        other(Identity { bytes: 9, mtime_ns: 7 }, false, "tac");
        check(&[b'x'; 200_000], Some(b""), None);
        check(b"", Some(b""), None);
    }
}
