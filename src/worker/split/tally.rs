//! What is said over a batch on descriptor 3: counters and how far it is, for the item as a whole; and the channel of a
//! batch that has a process of its own.
//!
//! Invariant: what was counted over a batch is asked for after its success alone, so each batch counts once, however
//! often it was tried.

use std::sync::Arc;

use super::Mail;
use crate::item::{Counters, JobId, escape};
use crate::split::{Batch, BatchError, Ear, Kind};
use crate::worker::Said;
use crate::worker::channel::{self, Broken, Message};

/// Counters of one batch; more is a mistake that would fill our memory.
const MAX_COUNTERS: usize = 1000;

/// What one slot hears over the batch that it has.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) job: JobId,
    mail: Arc<Mail>,
    slot: u32,
    /// The batch's part of the file as it lies on the disk.
    share: u64,
    counters: Counters,
    warned: bool,
}

impl Tally {
    pub(super) fn new(job: JobId, mail: Arc<Mail>, slot: u32) -> Tally {
        Tally { job, mail, slot, share: 0, counters: Counters::default(), warned: false }
    }

    /// A batch begins.
    pub(super) fn begin(&mut self, batch: &Batch) {
        self.share = batch.file_bytes;
        self.counters = Counters::default();
    }

    /// The batch has ended, well or not: how far it was no longer says anything.
    pub(super) fn end(&mut self) {
        self.is_at(0.0);
    }

    pub(super) fn progress(&mut self, fraction: Option<f64>) {
        let Some(fraction) = fraction else { return };
        let bytes = fraction * self.share as f64;
        self.is_at(bytes);
    }

    fn is_at(&self, bytes: f64) {
        self.mail.leave(|letters| {
            letters.at_work.insert(self.slot, bytes);
        });
    }

    pub(super) fn count(&mut self, name: &str, by: f64) -> Result<(), Broken> {
        self.counters.add(name, by);
        if self.counters.len() <= MAX_COUNTERS {
            return Ok(());
        }
        Err(Broken(format!("more than {MAX_COUNTERS} counters")))
    }

    pub(super) fn counted(&mut self) -> Counters {
        std::mem::take(&mut self.counters)
    }

    /// What was counted so far counts for nothing.
    pub(super) fn forget(&mut self) {
        self.counters = Counters::default();
    }

    /// A kind of message that isn't known is warned of once.
    pub(super) fn pass_over(&mut self, kind: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            let kind = escape(kind.as_bytes());
            tracing::warn!(job = %self.job, kind, "a worker sent a kind of message that isn't known; passed over");
        }
    }
}

/// What a failure that was told means for the batch.
pub(super) fn failed(error: String, retry: bool) -> BatchError {
    BatchError::new(if retry { Kind::Failed } else { Kind::Final }, error)
}

/// The channel of a batch's own process.
#[derive(Debug)]
pub(super) struct Channel {
    tally: Tally,
    reader: channel::Reader,
    said: Option<Said>,
}

impl Channel {
    pub(super) fn new(tally: Tally) -> Channel {
        Channel { tally, reader: channel::Reader::default(), said: None }
    }

    fn read(
        &mut self,
        read: impl FnOnce(&mut channel::Reader, channel::Hear) -> Result<(), Broken>,
    ) -> Result<(), String> {
        let mut reader = std::mem::take(&mut self.reader);
        let heard = read(&mut reader, &mut |message| self.take_in(message));
        self.reader = reader;
        heard.map_err(|Broken(what)| what)
    }

    fn take_in(&mut self, message: Message) -> Result<(), Broken> {
        if let Message::Done { id: Some(id), .. }
        | Message::Failed { id: Some(id), .. }
        | Message::Progress { id: Some(id), .. } = &message
            && *id != self.tally.job
        {
            return Err(Broken(format!("it spoke of item {id}, which it wasn't given")));
        }
        match message {
            Message::Done { result, .. } => self.last_word(Said::Done { result }),
            Message::Failed { error, retry, .. } => self.last_word(Said::Failed { error, retry }),
            Message::Progress { fraction, .. } => self.tally.progress(fraction),
            Message::Count { name, by } => self.tally.count(&name, by)?,
            // They say nothing that its life doesn't.
            Message::Ready { .. } | Message::Heartbeat => {}
            Message::Unknown { kind } => self.tally.pass_over(&kind),
        }
        Ok(())
    }

    fn last_word(&mut self, now: Said) {
        self.said = Some(channel::last_word(self.said.take(), now));
    }
}

impl Ear for Channel {
    fn begin(&mut self, batch: &Batch) {
        self.tally.begin(batch);
        (self.reader, self.said) = (channel::Reader::default(), None);
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.read(|reader, hear| reader.feed(bytes, hear))
    }

    fn end(&mut self) -> Result<(), BatchError> {
        self.tally.end();
        self.read(|reader, hear| reader.finish(hear))
            .map_err(|what| BatchError::failed(format!("broke the protocol of fd 3: {what}")))?;
        match self.said.take() {
            Some(Said::Failed { error, retry }) => Err(failed(error, retry)),
            Some(Said::Done { .. }) | None => Ok(()),
        }
    }

    fn counted(&mut self) -> Counters {
        self.tally.counted()
    }
}
