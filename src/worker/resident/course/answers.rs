//! What a resident's process says, what becomes of each item then, and what is left when the process has ended.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::{CHUNK, Course, EMPTY_LOG, HEARTBEAT, InFlight, REMEMBERED, Why};
use crate::item::{JobId, StopWhy};
use crate::symptoms::speaks_of_memory;
use crate::worker::channel::{self, Broken, Message};
use crate::worker::log::Log;
use crate::worker::process::Exit;
use crate::worker::resident::{News, Task, unbegun};
use crate::worker::{End, Event, Report, Said, attempt, outputs};

impl Course<'_> {
    /// Takes in what lies in the channel; false at its end.
    pub(super) fn listen(&mut self, channel: &OwnedFd, chunk: &mut [u8], log: &mut Log) -> Result<bool, Broken> {
        let read = match recv(channel, &mut *chunk, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(false),
            Ok((read, _)) => read,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
            Err(error) => {
                self.unread = error == Errno::CONNRESET;
                return Ok(false);
            }
        };
        self.heard_at = Instant::now();
        self.hear(|reader, hear| reader.feed(&chunk[..read], hear), log)?;
        Ok(true)
    }

    /// The last of what the process said.
    pub(super) fn hear_out(&mut self, channel: Option<OwnedFd>, log: &mut Log) -> Result<(), Broken> {
        if let Some(channel) = channel {
            let mut chunk = vec![0; CHUNK];
            let mut left = rustix::io::ioctl_fionread(&channel).unwrap_or(0) as usize;
            while left > 0 {
                match recv(&channel, &mut chunk[..left.min(CHUNK)], RecvFlags::DONTWAIT) {
                    Ok((0, _)) => break,
                    Ok((read, _)) => {
                        left -= read;
                        self.hear(|reader, hear| reader.feed(&chunk[..read], hear), log)?;
                    }
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            if let Err(Errno::CONNRESET) = recv(&channel, &mut chunk[..1], RecvFlags::DONTWAIT) {
                self.unread = true;
            }
        }
        self.hear(|reader, hear| reader.finish(hear), log)
    }

    fn hear(
        &mut self,
        read: impl FnOnce(&mut channel::Reader, channel::Hear) -> Result<(), Broken>,
        log: &mut Log,
    ) -> Result<(), Broken> {
        let mut reader = std::mem::take(&mut self.reader);
        let heard = read(&mut reader, &mut |message| self.take_in(message, log));
        self.reader = reader;
        heard
    }

    fn take_in(&mut self, message: Message, log: &mut Log) -> Result<(), Broken> {
        match message {
            Message::Ready { device_uuid } => self.on_ready(device_uuid),
            Message::Heartbeat => {
                self.beats = true;
                Ok(())
            }
            Message::Done { id, result } => self.answered(id, Said::Done { result }, log),
            Message::Failed { id, error, retry } => self.answered(id, Said::Failed { error, retry }, log),
            Message::Progress { id, fraction, message } => {
                let at = self.find(id)?;
                if let Some(item) = at.and_then(|at| self.batches.front_mut()?.items.get_mut(at)) {
                    item.outbox.progress(fraction, message);
                }
                Ok(())
            }
            Message::Count { name, by } => match self.batches.front_mut().and_then(|batch| batch.items.first_mut()) {
                Some(item) => item.outbox.count(name, by),
                // Between two items: it is the next one's.
                None => self.between.count(name, by),
            },
            Message::Unknown { kind } => {
                if !std::mem::replace(&mut self.warned, true) {
                    let kind = crate::item::escape(kind.as_bytes());
                    tracing::warn!(resident = %self.launch.id, kind, "a worker sent a kind of message that isn't known; passed over");
                }
                Ok(())
            }
        }
    }

    fn on_ready(&mut self, device_uuid: Option<String>) -> Result<(), Broken> {
        if let Some(uuid) = device_uuid
            && !self.launch.devices.is_empty()
            && !self.launch.devices.iter().any(|given| given.eq_ignore_ascii_case(&uuid))
        {
            let given = self.launch.devices.join(", ");
            return Err(Broken(format!("it says that it runs on {uuid}, and was given {given}")));
        }
        if !std::mem::replace(&mut self.ready, true) {
            self.farewell.ready = true;
            self.tell(News::Ready);
        }
        Ok(())
    }

    /// Which item of the current message is meant; with none named, the only one.
    fn find(&self, id: Option<JobId>) -> Result<Option<usize>, Broken> {
        let items = self.batches.front().map_or(&[][..], |batch| &batch.items);
        match id {
            None if items.len() == 1 => Ok(Some(0)),
            None => Ok(None),
            Some(id) => match items.iter().position(|item| item.task.job == id) {
                Some(at) => Ok(Some(at)),
                None if self.answered.contains(&id) => {
                    Err(Broken(format!("it spoke again of item {id}, which it had answered")))
                }
                None => Err(Broken(format!("it spoke of item {id}, which it wasn't given"))),
            },
        }
    }

    /// An item's answer.
    fn answered(&mut self, id: Option<JobId>, said: Said, log: &mut Log) -> Result<(), Broken> {
        let Some(at) = self.find(id)? else {
            return Err(Broken("it answered without saying for which item (`id`)".to_owned()));
        };
        let Some(batch) = self.batches.front_mut() else { return Ok(()) };
        let mut item = batch.items.remove(at);
        let last = batch.items.is_empty();
        item.said = Some(said);
        self.answered.push_back(item.task.job);
        if self.answered.len() > REMEMBERED {
            self.answered.pop_front();
        }
        // A failure may have left the process in a bad way (a poisoned context, memory that is gone), unless the worker
        // itself says that it is the item for good.
        let spoils = matches!(item.said, Some(Said::Failed { retry: true, .. }));
        self.share_log_with(&item.task, log);
        self.conclude(item, End::Exited(0), 0, log);
        if spoils {
            self.retire();
        }
        if last {
            self.batches.pop_front();
            (self.begun, self.begun_at) = (Instant::now(), Timestamp::now());
            let length = log.len();
            self.talks |= length > self.logged;
            self.logged = length;
            // A worker that is to be replaced gets nothing that it hasn't been sent.
            if self.retiring {
                let sent = self.batches.iter().take_while(|batch| batch.unsent.is_empty()).count();
                for batch in self.batches.split_off(sent) {
                    batch.items.iter().for_each(|item| self.report(unbegun(&item.task)));
                }
            }
            if let Some(next) = self.batches.front_mut() {
                self.outgoing.append(&mut next.unsent);
            }
            if self.batches.is_empty() && self.logged > EMPTY_LOG && log.empty().is_ok() {
                self.logged = 0;
            }
        }
        Ok(())
    }

    /// Reports how an item ended.
    fn conclude(&mut self, mut item: InFlight, end: End, beside: u32, log: &Log) {
        item.outbox.finish_short(Instant::now());
        let mut report = Report {
            pid: self.farewell.pid,
            started_at: Some(self.begun_at),
            ran: self.begun.elapsed(),
            said: item.said,
            beside,
            ..unbegun(&item.task)
        };
        report.end = end;
        let failed = matches!(report.said, Some(Said::Failed { .. }));
        if report.end == End::Exited(0) && !failed {
            match outputs::missing(&item.task.dir.join("out"), &item.task.outputs) {
                Ok(missing) => report.missing_outputs = missing,
                Err(error) => report.end = End::Io(format!("cannot look for the declared outputs in `out`: {error}")),
            }
        } else {
            let told = matches!(&report.said, Some(Said::Failed { error, .. }) if speaks_of_memory(error.as_bytes()));
            report.out_of_memory = told || log.speaks_of_memory();
        }
        let succeeded = report.end == End::Exited(0) && !failed && report.missing_outputs.is_empty();
        if !succeeded && matches!(report.end, End::Exited(_) | End::Signalled(_)) && !self.launch.root.is_intact() {
            report.end = End::Io(attempt::MOVED.to_owned());
        }
        self.report(report);
    }

    pub(super) fn report(&self, report: Report) {
        let _heard = self.events.send(Event::Ended(Box::new(report)));
    }

    /// Copies what was printed while an item was worked on to the item's own log.
    fn share_log_with(&self, task: &Task, log: &mut Log) {
        if let Err(error) = log.copy_from(self.logged, &task.dir, task.attempt) {
            tracing::warn!(job = %task.job, %error, "cannot write an item's part of its worker's log");
        }
    }

    /// The same for all that were not answered.
    pub(super) fn share_log(&self, log: &mut Log) {
        for item in self.batches.front().iter().flat_map(|batch| &batch.items) {
            self.share_log_with(&item.task, log);
        }
    }

    /// Why we ended it outranks how it then died.
    pub(super) fn judge(&mut self, exit: std::io::Result<Exit>, said_to_the_end: Result<(), Broken>) -> End {
        let (exit_code, signal) = match &exit {
            Ok(Exit::Code(code)) => (Some(*code), None),
            Ok(Exit::Signal(signal)) => (None, Some(*signal)),
            Err(_) => (None, None),
        };
        let unanswered = || End::Protocol("the worker ended (exit code 0) without an answer for it".to_owned());
        match (self.ending.take().map(|ending| ending.why), exit, said_to_the_end) {
            (Some(Why::TimedOut), ..) => End::TimedOut { exit_code, signal },
            (Some(Why::NeverReady), ..) => End::NotReady { within: self.launch.ready_timeout },
            (Some(Why::Silent), ..) => {
                End::Protocol(format!("silent for {} s after its last heartbeat", HEARTBEAT.as_secs()))
            }
            (Some(Why::Stopped(why)), ..) => End::Stopped { why, exit_code, signal },
            (Some(Why::Protocol(Broken(what))), ..) => End::Protocol(what),
            (Some(Why::Io(what)), ..) => End::Io(what),
            (Some(Why::Retired), ..) if !self.ready => End::Stopped { why: StopWhy::Shutdown, exit_code, signal },
            (Some(Why::Retired) | None, Err(error), _) => {
                End::Io(format!("cannot tell how the process ended: {error}"))
            }
            (Some(Why::Retired) | None, Ok(Exit::Code(0)), Err(Broken(what))) => End::Protocol(what),
            (Some(Why::Retired) | None, Ok(Exit::Code(0)), Ok(())) if !self.ready => {
                End::Protocol("the worker ended (exit code 0) before it was ready".to_owned())
            }
            (Some(Why::Retired) | None, Ok(Exit::Code(0)), Ok(())) => {
                self.left = true;
                unanswered()
            }
            (Some(Why::Retired) | None, Ok(Exit::Code(code)), _) => End::Exited(code),
            (Some(Why::Retired) | None, Ok(Exit::Signal(signal)), _) => End::Signalled(signal),
        }
    }

    /// Reports everything that the process was handed and didn't answer.
    pub(super) fn give_back(&mut self, end: &End) {
        let ended_at = Timestamp::now();
        let batches = std::mem::take(&mut self.batches);
        let count = batches.iter().filter(|batch| batch.unsent.is_empty()).count();
        let doubled = matches!(end, End::Protocol(what) if what.starts_with("it spoke again"));
        self.between.finish();
        // It closed its end before the last message went out.
        self.unread |= !self.outgoing.is_empty();
        for (at, batch) in batches.into_iter().enumerate() {
            // It never came to it, or never read the message: what lies unread is the last one.
            let only = count == 1;
            let whole = batch.items.len() == batch.size;
            // One that left after the message before may have read this one with it. Handed over again it is the first.
            let untouched = whole && ((only && self.unread) || (batch.ahead && self.left));
            let begun = at == 0 && !untouched;
            let beside = (batch.items.len() as u32).saturating_sub(1);
            for mut item in batch.items {
                let wish = self.stopped.iter().rev().find(|(job, _)| *job == item.task.job).map(|(_, why)| *why);
                let (exit_code, signal) = end.codes();
                let end = match (wish, end) {
                    (Some(why), _) => End::Stopped { why, exit_code, signal },
                    _ if !begun => End::NotBegun,
                    // Another item's stop, or its second answer, is nothing against this one.
                    (None, End::Stopped { .. }) => End::Stopped { why: StopWhy::Shutdown, exit_code, signal },
                    _ if doubled => End::Stopped { why: StopWhy::Shutdown, exit_code, signal },
                    (None, end) => end.clone(),
                };
                let began = end != End::NotBegun;
                if began {
                    item.outbox.finish_short(Instant::now());
                } else {
                    item.outbox.finish_unbegun();
                }
                let report = Report {
                    pid: self.farewell.pid.filter(|_| began),
                    started_at: Some(self.begun_at).filter(|_| began),
                    ended_at,
                    ran: if began { self.begun.elapsed() } else { Duration::ZERO },
                    said: item.said,
                    out_of_memory: self.farewell.out_of_memory && began,
                    beside: if began { beside } else { 0 },
                    end,
                    ..unbegun(&item.task)
                };
                self.report(report);
            }
        }
    }
}
