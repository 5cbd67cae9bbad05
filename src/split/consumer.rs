//! Who works on batches: the trait, its errors, and the consumers that need no process.

use std::fmt;

use crate::item::Counters;

/// A run of whole lines.
#[derive(Debug)]
pub struct Batch {
    /// From 0, without gaps.
    pub index: u64,
    /// The lines as they stand in the file; the last one of the file may lack its newline.
    pub bytes: Vec<u8>,
    /// How many.
    pub lines: u64,
    /// The number of its first line, from 1.
    pub first_line: u64,
    /// Where it begins in the file, uncompressed.
    pub offset: u64,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// How much of the file as it lies on the disk it stands for, for progress.
    pub file_bytes: u64,
    /// Where it ends there.
    pub(super) file_end: u64,
}

impl Batch {
    /// The number of its last line, from 1.
    pub fn last_line(&self) -> u64 {
        (self.first_line + self.lines).saturating_sub(1)
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// For people: `batch 17 (lines 85001-90000)`.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {} (lines {}-{})", self.index, self.first_line, self.last_line())
    }
}

/// Makes something of batches, one after another, on its slot's thread.
///
/// A closure of the same signature is one. A panic counts as a failure of the batch, and the consumer gets further
/// batches; dropped once its slot has ended.
pub trait Consumer {
    /// Appends to `out`, which comes empty, what stands for the batch in the output. After an error `out` is forgotten.
    fn consume(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError>;

    /// What was counted over the batch that was just consumed. Asked after a success alone: a batch counts once, with the part
    /// that stands for it.
    fn counted(&mut self) -> Counters {
        Counters::default()
    }

    /// The slot ends, after whatever batch: lets go of what is kept from one batch to the next, and answers what was counted since
    /// the last that succeeded, but not over one that failed. It is on record like a batch's.
    fn finish(&mut self) -> Counters {
        Counters::default()
    }

    /// Asked before each batch: false ends the slot, and its place is free for other work.
    fn wants_more(&mut self) -> bool {
        true
    }
}

impl<F: FnMut(&Batch, &mut Vec<u8>) -> Result<(), BatchError>> Consumer for F {
    fn consume(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError> {
        self(batch, out)
    }
}

/// Hands lines on as they are: to compress only.
#[derive(Clone, Copy, Debug)]
pub struct Identity;

impl Consumer for Identity {
    fn consume(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError> {
        out.extend_from_slice(&batch.bytes);
        Ok(())
    }
}

/// Why a batch failed, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchError {
    /// What follows.
    pub kind: Kind,
    /// What happened.
    pub message: String,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Counted, and tried again while retries are left.
    Failed,
    /// Like `Failed`, for want of the device's or the host's memory. A run that ends with it says so.
    OutOfMemory,
    /// No retry will help.
    Final,
    /// Not the batch's fault: tried again, later, uncounted up to a bound.
    Later,
    /// The process for it can't be started. By the host's fault (no memory, no process slots) like `Later`; else no batch's
    /// can, and the run ends.
    NotStarted {
        /// Whether it is the host's fault.
        host: bool,
    },
    /// The consumer is of no use any more: its slot ends, the batch goes to another one, uncounted up to a bound.
    SlotLost,
    /// It was stopped by the flag; nothing is wrong with the batch.
    Stopped,
}

impl BatchError {
    /// Of any kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> BatchError {
        BatchError { kind, message: message.into() }
    }

    /// The usual one: counted, and tried again.
    pub fn failed(message: impl Into<String>) -> BatchError {
        BatchError::new(Kind::Failed, message)
    }
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for BatchError {}
