//! Where runs that have ended wait for an earlier one, when their output is to be in order. What they printed lies in
//! memory up to a bound, beyond it in one file without a name, whatever their number.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::sync::Arc;

use super::kept::{self, Kept};
use super::slot::Done;

/// Output of waiting runs beyond this goes to the file.
const IN_MEMORY: u64 = 16 << 20;
/// The most runs that wait, and the most that their arguments may take; then no more are begun until the earliest, which
/// runs already, has ended.
const RUNS: usize = 65_536;
const ARGUMENTS: usize = 16 << 20;

#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// The numbers up to here were given out.
    given: u64,
    waiting: BTreeMap<u64, Box<Done>>,
    in_memory: u64,
    arguments: usize,
    file: Option<Arc<File>>,
    end: u64,
}

impl Shelf {
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= RUNS || self.arguments >= ARGUMENTS
    }

    pub(super) fn put(&mut self, mut done: Box<Done>) -> io::Result<()> {
        let number = done.input.number;
        if self.waiting.is_empty() && self.end > 0 {
            // Nothing of it is needed any more.
            self.end = 0;
            if let Some(file) = &self.file {
                file.set_len(0)?;
            }
        }
        for kept in [&mut done.stdout, &mut done.stderr] {
            // The next one is given out at once.
            if number == self.given + 1 { self.in_memory += in_memory(kept) } else { self.place(kept)? }
        }
        self.arguments += done.input.what.size();
        self.waiting.insert(number, done);
        Ok(())
    }

    fn place(&mut self, kept: &mut Kept) -> io::Result<()> {
        let length = kept.len();
        if length == 0 {
            return Ok(());
        }
        if matches!(kept, Kept::Memory(_)) && self.in_memory + length <= IN_MEMORY {
            self.in_memory += length;
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file.clone(),
            None => self.file.insert(Arc::new(kept::unnamed()?)).clone(),
        };
        (&*file).seek(SeekFrom::Start(self.end))?;
        let copied = io::copy(&mut kept.reader(), &mut &*file)?;
        *kept = Kept::Piece { file, at: self.end, length: copied };
        self.end += copied;
        Ok(())
    }

    /// The one whose turn it is.
    pub(super) fn next(&mut self) -> Option<Box<Done>> {
        let done = self.waiting.remove(&(self.given + 1))?;
        self.give(done)
    }

    /// The first there is, when no other will come.
    pub(super) fn next_at_all(&mut self) -> Option<Box<Done>> {
        let (_, done) = self.waiting.pop_first()?;
        self.give(done)
    }

    fn give(&mut self, done: Box<Done>) -> Option<Box<Done>> {
        self.given = done.input.number;
        self.arguments -= done.input.what.size();
        self.in_memory -= in_memory(&done.stdout) + in_memory(&done.stderr);
        Some(done)
    }
}

fn in_memory(kept: &Kept) -> u64 {
    if matches!(kept, Kept::Memory(_)) { kept.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::super::slot::fixtures::done;
    use super::*;

    fn text(done: &Done) -> Vec<u8> {
        let mut text = Vec::new();
        done.stdout.reader().read_to_end(&mut text).unwrap();
        text
    }

    #[test]
    fn runs_come_out_in_order_whatever_they_printed() {
        let check = |order: &[u64], size: usize, in_file: bool| {
            let mut shelf = Shelf::default();
            let mut given = Vec::new();
            for round in 0..2_u64 {
                let first = round * order.len() as u64;
                for number in order {
                    let mut it = done(first + number);
                    it.stdout.append(&vec![*number as u8; size]).unwrap();
                    shelf.put(Box::new(it)).unwrap();
                    while let Some(next) = shelf.next() {
                        assert_eq!(text(&next), vec![(next.input.number - first) as u8; size]);
                        given.push(next.input.number);
                    }
                }
                assert_eq!((shelf.waiting.len(), shelf.end > 0), (0, in_file));
            }
            assert!(given.iter().copied().eq(1..=2 * order.len() as u64), "{given:?}");
        };
        check(&[1, 2, 3], 10, false);
        check(&[3, 1, 2], 10, false);
        check(&[5, 4, 3, 2, 1], 6 << 20, true);
        check(&[2, 4, 1, 3], 300 << 10, true);
    }

    #[test]
    fn a_run_that_never_came_holds_back_nothing_at_the_end() {
        let mut shelf = Shelf::default();
        for number in [2, 4, 3] {
            shelf.put(Box::new(done(number))).unwrap();
        }
        assert!(shelf.next().is_none());
        let left: Vec<u64> = std::iter::from_fn(|| shelf.next_at_all()).map(|done| done.input.number).collect();
        assert_eq!(left, [2, 3, 4]);
    }
}
