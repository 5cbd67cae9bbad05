//! A slot: one consumer on a thread of its own, which also compresses what comes of its batches. Each batch that was taken
//! becomes one event, whatever happens, and the slot's end is told last.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::Sender;
use libdeflater::{CompressionLvl, Compressor};

use super::consumer::{BatchError, Consumer, Kind};
use super::merge::Part;
use super::producer::Place;
use super::queue::{Queue, Task};
use super::setup::Error;
use crate::item::Counters;

/// What the merging thread hears.
#[derive(Debug)]
pub(super) enum Event {
    Part(Part),
    Failed(Task, BatchError),
    /// A slot has ended; with its last words if it failed, and what was counted since its last part.
    Gone(Option<String>, Counters),
    /// More than one batch waits, or has waited.
    Ahead,
    /// All batches were cut, up to here.
    Produced(Result<Place, Error>),
}

pub(super) struct Slot<'a, 'q> {
    consumer: Box<dyn Consumer + Send + 'a>,
    queue: &'q Queue,
    events: Sender<Event>,
    packer: Packer,
    last_words: Option<String>,
}

impl<'a, 'q> Slot<'a, 'q> {
    pub(super) fn new(
        consumer: Box<dyn Consumer + Send + 'a>,
        queue: &'q Queue,
        events: Sender<Event>,
        packer: Packer,
    ) -> Slot<'a, 'q> {
        Slot { consumer, queue, events, packer, last_words: None }
    }

    /// Works until there is nothing left to do, or the consumer wants no more.
    pub(super) fn work(mut self) {
        let mut out = Vec::new();
        // The calls are counted before the consumer is asked: one that comes in between isn't missed.
        while let Some(calls) = self.queue.calls()
            && self.consumer.wants_more()
        {
            let Some(task) = self.queue.take(calls) else { continue };
            let made = catch_unwind(AssertUnwindSafe(|| {
                self.consumer.consume(&task.batch, &mut out)?;
                Ok((self.packer.pack(&mut out, self.queue), self.consumer.counted()))
            }));
            let error = match made {
                Ok(Ok((bytes, counters))) => {
                    self.deliver(task, bytes, counters);
                    continue;
                }
                Ok(Err(error)) => error,
                Err(panic) => BatchError::failed(format!("the consumer panicked: {}", words(&*panic))),
            };
            out.clear();
            shrink(&mut out);
            let is_lost = error.kind == Kind::SlotLost;
            if is_lost {
                self.last_words = Some(error.message.clone());
            }
            let _ended = self.events.send(Event::Failed(task, error));
            if is_lost {
                return;
            }
        }
    }

    fn deliver(&self, task: Task, bytes: Vec<u8>, counters: Counters) {
        let batch = task.batch;
        let (index, lines, offset) = (batch.index, batch.lines, batch.end());
        let (position, file_bytes) = (batch.file_end, batch.file_bytes);
        self.queue.finished(batch, bytes.len());
        let part = Part { index, bytes, lines, offset, position, file_bytes, counters };
        let _ended = self.events.send(Event::Part(part));
    }
}

impl Drop for Slot<'_, '_> {
    fn drop(&mut self) {
        let late = catch_unwind(AssertUnwindSafe(|| self.consumer.finish())).unwrap_or_default();
        let _ended = self.events.send(Event::Gone(self.last_words.take(), late));
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}

/// Makes a part of a consumer's output.
pub(super) enum Packer {
    Plain,
    Gzip { compressor: Compressor, scratch: Vec<u8> },
}

impl Packer {
    pub(super) fn new(level: Option<u8>) -> Packer {
        let Some(level) = level else { return Packer::Plain };
        // The level was checked; the library has no other way to make one.
        let level = CompressionLvl::new(i32::from(level)).unwrap_or_default();
        Packer::Gzip { compressor: Compressor::new(level), scratch: Vec::new() }
    }

    /// The bytes of the part; `out` is empty afterwards.
    fn pack(&mut self, out: &mut Vec<u8>, queue: &Queue) -> Vec<u8> {
        match self {
            Packer::Plain => std::mem::replace(out, queue.buffer()),
            Packer::Gzip { .. } if out.is_empty() => Vec::new(),
            Packer::Gzip { .. } => {
                let member = self.member(out);
                out.clear();
                shrink(out);
                member
            }
        }
    }

    /// One member of a gzip file, also of nothing; plain bytes as they are.
    pub(super) fn member(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Packer::Gzip { compressor, scratch } = self else { return bytes.to_vec() };
        let most = compressor.gzip_compress_bound(bytes.len());
        if scratch.len() < most {
            scratch.resize(most, 0);
        }
        // It fails only for want of room.
        let length = compressor.gzip_compress(bytes, scratch).unwrap_or_else(|error| {
            panic!("{} bytes don't fit where they must: {error}", bytes.len());
        });
        let member = scratch[..length].to_vec();
        shrink(scratch);
        member
    }
}

/// Lets go of a buffer that one huge line has blown up.
fn shrink(buffer: &mut Vec<u8>) {
    const USUAL: usize = 16 << 20;
    if buffer.capacity() > USUAL {
        *buffer = Vec::new();
    }
}
