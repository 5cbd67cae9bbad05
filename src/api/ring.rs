//! The last events, numbered, for clients that follow and those that come back. Bounded by number and by size: who is
//! further behind starts anew. Pure.

use std::collections::VecDeque;

use axum::body::Bytes;

/// What a client that comes back can have missed.
const EVENTS: usize = 16_384;
const BYTES: usize = 16 << 20;

/// What a client gets at once.
const BATCH: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Ring {
    /// Of this server: ids of an earlier one are told apart.
    epoch: u64,
    /// The number of the next event.
    next: u64,
    frames: VecDeque<Bytes>,
    bytes: usize,
}

/// What lies behind an event.
#[derive(Debug, PartialEq)]
pub(super) enum Behind {
    Nothing,
    /// And the number of the last one in it.
    Batch(Bytes, u64),
    /// More than is kept.
    TooMuch,
}

impl Ring {
    pub(super) fn new(epoch: u64) -> Ring {
        Ring { epoch, next: 1, frames: VecDeque::new(), bytes: 0 }
    }

    /// The number of the newest event.
    pub(super) fn newest(&self) -> u64 {
        self.next - 1
    }

    pub(super) fn id(&self, number: u64) -> String {
        format!("{:x}-{number}", self.epoch)
    }

    /// The number in an id; `Err(true)` when it is another epoch's, `Err(false)` when it is no id at all.
    pub(super) fn parse(&self, id: &str) -> Result<u64, bool> {
        let (epoch, number) = id.split_once('-').ok_or(false)?;
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| false)?;
        if epoch == self.epoch { number.parse().map_err(|_| false) } else { Err(true) }
    }

    pub(super) fn push(&mut self, name: &str, data: &str) {
        let frame = Bytes::from(format!("id: {}\nevent: {name}\ndata: {data}\n\n", self.id(self.next)));
        self.next += 1;
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.frames.len() > EVENTS || self.bytes > BYTES {
            self.bytes -= self.frames.pop_front().map_or(0, |frame| frame.len());
        }
    }

    /// Forgets all, and that nothing was missed since: whoever followed starts anew.
    pub(super) fn skip(&mut self) {
        self.frames.clear();
        self.bytes = 0;
        self.next += 1;
    }

    pub(super) fn behind(&self, number: u64) -> Behind {
        let oldest = self.next - self.frames.len() as u64;
        // A number that wasn't given yet is none of ours.
        if number >= self.next || number.saturating_add(1) < oldest {
            return Behind::TooMuch;
        }
        let (mut batch, mut last) = (Vec::new(), number);
        for frame in self.frames.range((number + 1 - oldest) as usize..) {
            if !batch.is_empty() && batch.len() + frame.len() > BATCH {
                break;
            }
            batch.extend_from_slice(frame);
            last += 1;
        }
        if batch.is_empty() { Behind::Nothing } else { Behind::Batch(batch.into(), last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(events: u64) -> Ring {
        let mut ring = Ring::new(0xab);
        (0..events).for_each(|n| ring.push("item", &format!("{{\"n\":{n}}}")));
        ring
    }

    #[test]
    fn what_was_missed_is_told_or_that_it_was_too_much() {
        let ring = ring(3);
        assert_eq!(ring.behind(3), Behind::Nothing);
        let last = Bytes::from_static(b"id: ab-3\nevent: item\ndata: {\"n\":2}\n\n");
        assert_eq!(ring.behind(2), Behind::Batch(last, 3));
        assert!(matches!(ring.behind(0), Behind::Batch(all, 3) if all.iter().filter(|b| **b == b'\n').count() == 12));
        for number in [4, 5, u64::MAX] {
            assert_eq!(ring.behind(number), Behind::TooMuch, "{number}");
        }
    }

    #[test]
    fn memory_is_bounded_by_number_and_by_size() {
        let many = ring(EVENTS as u64 + 10);
        assert_eq!((many.frames.len(), many.behind(9)), (EVENTS, Behind::TooMuch));
        assert!(matches!(many.behind(10), Behind::Batch(batch, _) if batch.len() <= BATCH));
        let mut large = Ring::new(1);
        (0..40).for_each(|_| large.push("item", &"x".repeat(1 << 20)));
        assert!(large.bytes <= BYTES && !large.frames.is_empty());
        // What is larger than a batch is one.
        assert!(matches!(large.behind(39), Behind::Batch(batch, 40) if batch.len() > BATCH));
    }

    #[test]
    fn after_a_pause_everyone_starts_anew() {
        let mut ring = ring(3);
        ring.skip();
        assert_eq!((ring.behind(3), ring.behind(ring.newest())), (Behind::TooMuch, Behind::Nothing));
    }

    #[test]
    fn ids_of_others_are_told_apart() {
        let ring = ring(1);
        let check = |id: &str, expected: Result<u64, bool>| assert_eq!(ring.parse(id), expected, "{id}");
        check(&ring.id(1), Ok(1));
        check("ac-1", Err(true));
        for id in ["", "1", "ab-", "ab-x", "zz-1", "ab--1", "-", "ab-99999999999999999999"] {
            check(id, Err(false));
        }
    }
}
