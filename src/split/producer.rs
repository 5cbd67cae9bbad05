//! Cuts the input into batches of whole lines. Where to cut depends on the bytes alone, not on how they came in blocks.

use std::ops::ControlFlow;

use memchr::{memchr_iter, memrchr};

use super::consumer::Batch;
use super::input::Input;
use super::setup::Error;
use crate::units::Bytes;

/// How large a batch may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) lines: u64,
    /// A batch of several lines isn't larger.
    pub(super) bytes: usize,
    /// The longest line there may be: it passes alone, and whole.
    pub(super) line: usize,
}

/// Where reading begins: at the start, or behind what an earlier run has merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) batches: u64,
    pub(super) lines: u64,
    pub(super) offset: u64,
    /// In the file as it lies on the disk.
    pub(super) position: u64,
}

/// Where batches go, and their buffers come from.
pub(super) trait Sink {
    /// Waits for room. A break: nobody wants more.
    fn send(&mut self, batch: Batch) -> ControlFlow<()>;
    /// An empty buffer, used before if there is one.
    fn buffer(&mut self) -> Vec<u8>;
    /// Nobody wants more, whatever comes.
    fn is_halted(&self) -> bool;
}

/// Reads to the end. Answers where that is, or where it was when the sink wanted no more.
pub(super) fn produce(input: &mut Input, limits: Limits, from: Place, sink: &mut impl Sink) -> Result<Place, Error> {
    let mut cutter = Cutter::new(limits);
    let mut place = from;
    let mut block = sink.buffer();
    // What of the block is in batches already.
    let mut start = 0;
    loop {
        while let Some(cut) = cutter.cut(&block[start..]) {
            let end = start + cut.bytes;
            let rest = block.len() - end;
            let mut bytes = sink.buffer();
            // Whichever is less is copied, so that all of it costs no more than a copy of each byte.
            if start == 0 && rest <= end {
                bytes.extend_from_slice(&block[end..]);
                block.truncate(end);
                std::mem::swap(&mut block, &mut bytes);
            } else {
                bytes.extend_from_slice(&block[start..end]);
                start = end;
            }
            if emit(&mut place, bytes, cut.lines, input, sink).is_break() {
                return Ok(place);
            }
        }
        block.drain(..start);
        start = 0;
        // Between two batches lie any number of blocks where a line has no end.
        if sink.is_halted() {
            return Ok(place);
        }
        if block.len() - cutter.last > limits.line {
            let number = place.lines + cutter.found + 1;
            return Err(input
                .unfit(format!("line {number} is longer than {}, the most there may be", Bytes(limits.line as u64))));
        }
        match input.read_block(&mut block) {
            Ok(0) => break,
            Ok(_) => {}
            // What came before the damage is in the block, and wasn't looked at yet.
            Err(error) => {
                let fresh = &block[cutter.scanned.min(block.len())..];
                return Err(after_line(error, place.lines + cutter.found + memchr_iter(b'\n', fresh).count() as u64));
            }
        }
    }
    if !block.is_empty() {
        // The last line may lack its newline.
        let lines = cutter.found + u64::from(block.last() != Some(&b'\n'));
        let _last = emit(&mut place, block, lines, input, sink);
    }
    Ok(place)
}

fn emit(place: &mut Place, bytes: Vec<u8>, lines: u64, input: &Input, sink: &mut impl Sink) -> ControlFlow<()> {
    let (offset, end) = (place.offset, place.offset + bytes.len() as u64);
    // Reading is ahead of the batch: of what it has read, the batch's share.
    let share = u128::from(input.position()) * u128::from(end) / u128::from(input.offset().max(1));
    let file_end = u64::try_from(share).unwrap_or(u64::MAX).max(place.position);
    let file_bytes = file_end - place.position;
    let (index, first_line) = (place.batches, place.lines + 1);
    *place = Place { batches: index + 1, lines: place.lines + lines, offset: end, position: file_end };
    sink.send(Batch { index, first_line, offset, bytes, lines, attempt: 1, file_bytes, file_end })
}

fn after_line(error: Error, lines: u64) -> Error {
    match error {
        Error::Input { path, message, damaged } => {
            Error::Input { path, message: format!("{message}; {lines} whole lines came before"), damaged }
        }
        other => other,
    }
}

/// Finds the end of the next batch in bytes that become more.
#[derive(Debug)]
struct Cutter {
    limits: Limits,
    /// How much was looked through without a cut.
    scanned: usize,
    /// Newlines in there, and the end of the last one.
    found: u64,
    last: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Cut {
    bytes: usize,
    lines: u64,
}

impl Cutter {
    fn new(limits: Limits) -> Cutter {
        Cutter { limits, scanned: 0, found: 0, last: 0 }
    }

    /// The batch that `bytes` begin with, if all of it is there; then the next call is about what follows it. The bytes of
    /// one call begin like those of the call before.
    fn cut(&mut self, bytes: &[u8]) -> Option<Cut> {
        let fresh = &bytes[self.scanned..];
        let newlines = memchr_iter(b'\n', fresh).count() as u64;
        if self.found + newlines < self.limits.lines && bytes.len() <= self.limits.bytes {
            if newlines > 0 {
                self.last = memrchr(b'\n', fresh).map_or(self.last, |at| self.scanned + at + 1);
            }
            self.found += newlines;
            self.scanned = bytes.len();
            return None;
        }
        for at in memchr_iter(b'\n', fresh) {
            let end = self.scanned + at + 1;
            if end > self.limits.bytes && self.last > 0 {
                return Some(self.take());
            }
            (self.found, self.last) = (self.found + 1, end);
            if self.found == self.limits.lines || end >= self.limits.bytes {
                return Some(self.take());
            }
        }
        self.scanned = bytes.len();
        (self.last > 0 && bytes.len() > self.limits.bytes).then(|| self.take())
    }

    fn take(&mut self) -> Cut {
        let cut = Cut { bytes: self.last, lines: self.found };
        *self = Cutter::new(self.limits);
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::super::stop::StopFlag;
    use super::*;

    #[derive(Default)]
    struct Collected {
        batches: Vec<Batch>,
        most: Option<usize>,
        halted: bool,
    }

    impl Sink for Collected {
        fn send(&mut self, batch: Batch) -> ControlFlow<()> {
            self.batches.push(batch);
            if self.most == Some(self.batches.len()) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }

        fn buffer(&mut self) -> Vec<u8> {
            Vec::new()
        }

        fn is_halted(&self) -> bool {
            self.halted
        }
    }

    fn cut_file(content: &[u8], limits: Limits, from: Place) -> (Vec<Batch>, Place) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let mut input = Input::open(file.path()).unwrap();
        input.skip(from.offset, &StopFlag::new().unwrap()).unwrap();
        let mut collected = Collected::default();
        let end = produce(&mut input, limits, from, &mut collected).unwrap();
        (collected.batches, end)
    }

    /// The batches, as text, `|` between them, and how many lines each has.
    fn check(content: &[u8], lines: u64, bytes: usize, expected: &str, counts: &[u64]) {
        let (batches, end) = cut_file(content, Limits { lines, bytes, line: 64 << 20 }, Place::default());
        let shown: Vec<String> = batches.iter().map(|batch| crate::item::escape(&batch.bytes)).collect();
        assert_eq!(shown.join("|"), expected);
        assert_eq!(batches.iter().map(|batch| batch.lines).collect::<Vec<_>>(), counts);
        assert_eq!(batches.concat_bytes(), content, "not a byte is changed");
        let sum = counts.iter().sum();
        let whole = content.len() as u64;
        assert_eq!(end, Place { batches: counts.len() as u64, lines: sum, offset: whole, position: whole });
        assert_eq!(batches.iter().map(|batch| batch.file_bytes).sum::<u64>(), whole);
    }

    trait Concat {
        fn concat_bytes(&self) -> Vec<u8>;
    }

    impl Concat for Vec<Batch> {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter().flat_map(|batch| batch.bytes.iter().copied()).collect()
        }
    }

    #[test]
    fn lines_are_cut_after_their_newlines_whatever_is_in_them() {
        check(b"", 2, 100, "", &[]);
        check(b"\n", 2, 100, "\\n", &[1]);
        check(b"a", 2, 100, "a", &[1]);
        check(b"a\n", 1, 100, "a\\n", &[1]);
        check(b"a\nb\nc\n", 2, 100, "a\\nb\\n|c\\n", &[2, 1]);
        check(b"a\nb\nc", 2, 100, "a\\nb\\n|c", &[2, 1]);
        check(b"a\nb\nc", 3, 100, "a\\nb\\nc", &[3]);
        check(b"a\nb\nc", 1, 100, "a\\n|b\\n|c", &[1, 1, 1]);
        check(b"\n\n\n\n\n", 2, 100, "\\n\\n|\\n\\n|\\n", &[2, 2, 1]);
        check(b"a\r\nb\r\nc\rd\r\n", 2, 100, "a\\r\\nb\\r\\n|c\\rd\\r\\n", &[2, 1]);
        check(b"\xff\xfe\n\xc3\n\x28", 2, 100, "\\xff\\xfe\\n\\xc3\\n|(", &[2, 1]);
        check(b"a\0\0\n\0", 1, 100, "a\\u{0}\\u{0}\\n|\\u{0}", &[1, 1]);
    }

    #[test]
    fn bytes_bound_a_batch_but_a_single_line_passes_alone() {
        check(b"aa\nbb\ncc\n", 9, 6, "aa\\nbb\\n|cc\\n", &[2, 1]);
        check(b"aa\nbb\ncc\n", 9, 5, "aa\\n|bb\\n|cc\\n", &[1, 1, 1]);
        check(b"a\nbbbbbbbb\nc\n", 9, 4, "a\\n|bbbbbbbb\\n|c\\n", &[1, 1, 1]);
        check(b"bbbbbbbbbb", 9, 4, "bbbbbbbbbb", &[1]);
        check(b"a\nbbbbbbbbbb", 9, 4, "a\\n|bbbbbbbbbb", &[1, 1]);
        check(b"aaaa\nb", 9, 5, "aaaa\\n|b", &[1, 1]);
        check(b"aaaa\nb", 9, 0, "aaaa\\n|b", &[1, 1]);
    }

    #[test]
    fn lines_of_megabytes_pass() {
        let line = |size: usize, with: u8| [vec![with; size], vec![b'\n']].concat();
        let content =
            [line(5 << 20, b'a'), line(3, b'b'), line(3, b'c'), line(1 << 20, b'd'), line(1 << 20, b'e')].concat();
        let (batches, end) =
            cut_file(&content, Limits { lines: 5000, bytes: 2 << 20, line: 64 << 20 }, Place::default());
        assert_eq!(batches.iter().map(|batch| batch.lines).collect::<Vec<_>>(), [1, 3, 1]);
        assert!(batches.concat_bytes() == content);
        assert_eq!(end.lines, 5);
    }

    #[test]
    fn a_line_without_an_end_is_told_and_a_halt_is_heard_within_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = |size: usize| [vec![b'a'; size], vec![b'\n']].concat();
        std::fs::write(file.path(), [&line(3)[..], &line(3 << 20), &line(3), &vec![b'b'; 9 << 20]].concat()).unwrap();
        let run = |halted| {
            let mut collected = Collected { halted, ..Collected::default() };
            let limits = Limits { lines: 1, bytes: 1 << 20, line: 4 << 20 };
            let end = produce(&mut Input::open(file.path()).unwrap(), limits, Place::default(), &mut collected);
            (collected.batches.len(), end)
        };
        let (batches, end) = run(false);
        let told = end.unwrap_err().to_string();
        assert!(
            batches == 3 && told.ends_with("line 4 is longer than 4.0 MiB, the most there may be"),
            "{batches} {told}"
        );
        assert_eq!(run(true).1.unwrap(), Place::default());
    }

    #[test]
    fn batches_know_their_place() {
        let (batches, _) = cut_file(b"a\nbb\nccc\nd", Limits { lines: 2, bytes: 100, line: 100 }, Place::default());
        let shown: Vec<String> = batches.iter().map(|batch| format!("{batch} at {}", batch.offset)).collect();
        assert_eq!(shown, ["batch 0 (lines 1-2) at 0", "batch 1 (lines 3-4) at 5"]);
        assert_eq!(batches[1].file_end, 10);
        let from = Place { batches: 1, lines: 2, offset: 5, position: 5 };
        let (batches, end) = cut_file(b"a\nbb\nccc\nd", Limits { lines: 1, bytes: 100, line: 100 }, from);
        let shown: Vec<String> = batches.iter().map(|batch| format!("{batch} at {}", batch.offset)).collect();
        assert_eq!(shown, ["batch 1 (lines 3-3) at 5", "batch 2 (lines 4-4) at 9"]);
        assert_eq!(end, Place { batches: 3, lines: 4, offset: 10, position: 10 });
    }

    #[test]
    fn a_sink_that_wants_no_more_ends_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\nb\nc\n").unwrap();
        let mut collected = Collected { most: Some(2), ..Collected::default() };
        let limits = Limits { lines: 1, bytes: 100, line: 100 };
        let end = produce(&mut Input::open(file.path()).unwrap(), limits, Place::default(), &mut collected).unwrap();
        assert_eq!((end.batches, collected.batches.len()), (2, 2));
    }

    /// The rule, word by word: as many whole lines as both limits allow, at least one.
    fn expected(content: &[u8], limits: Limits) -> Vec<usize> {
        let mut sizes = Vec::new();
        let (mut size, mut count) = (0, 0);
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            if count == limits.lines || (count > 0 && size + line.len() > limits.bytes) {
                sizes.push(std::mem::take(&mut size));
                count = 0;
            }
            size += line.len();
            count += 1;
        }
        sizes.extend((count > 0).then_some(size));
        sizes
    }

    proptest::proptest! {
        #[test]
        fn where_it_cuts_does_not_depend_on_the_blocks(
            content in proptest::collection::vec(proptest::sample::select(&b"ab\n\r\0\xff\n"[..]), 0..400),
            blocks in proptest::collection::vec(1usize..50, 1..20),
            lines in 1u64..12,
            bytes in 0usize..60,
        ) {
            let limits = Limits { lines, bytes, line: 64 << 20 };
            let mut cutter = Cutter::new(limits);
            let (mut come, mut start, mut sizes) = (0, 0, Vec::new());
            for block in blocks.iter().cycle() {
                while let Some(cut) = cutter.cut(&content[start..come]) {
                    let newlines = content[start..start + cut.bytes].iter().filter(|byte| **byte == b'\n').count();
                    assert_eq!(newlines as u64, cut.lines);
                    sizes.push(cut.bytes);
                    start += cut.bytes;
                }
                if come == content.len() {
                    break;
                }
                come = content.len().min(come + block);
            }
            sizes.extend((start < content.len()).then_some(content.len() - start));
            assert_eq!(sizes, expected(&content, limits));
        }
    }
}
