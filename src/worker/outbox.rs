//! What goes to the director before the report. Its queue is bounded, and a worker must never wait for it while it
//! looks after a process: what doesn't fit is kept, summed up, and offered again.
//!
//! Invariants: counters arrive exactly, progress at most every 100 ms with the last one never lost, `Started` first
//! and within 5 ms.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};

use super::Event;
use super::channel::Broken;
use crate::item::{JobId, plus};

/// The least time between two deliveries.
const EVERY: Duration = Duration::from_millis(100);
/// How long `Started` may wait. Most short attempts end within it, and the director hears of both in one go; it hangs
/// nothing on the number of a process that young.
const SOON: Duration = Duration::from_millis(5);
/// Counters of one attempt; more is a mistake that would fill our memory.
const MAX_COUNTERS: usize = 1000;

#[derive(Debug)]
pub(super) struct Outbox {
    events: Sender<Event>,
    job: JobId,
    attempt: u32,
    started: Option<Event>,
    progress: Option<(Option<f64>, Option<String>)>,
    /// What was counted and isn't delivered yet.
    counts: BTreeMap<String, f64>,
    waiting: bool,
    not_before: Option<Instant>,
}

impl Outbox {
    pub(super) fn new(events: Sender<Event>, job: JobId, attempt: u32) -> Outbox {
        Outbox {
            events,
            job,
            attempt,
            started: None,
            progress: None,
            counts: BTreeMap::new(),
            waiting: false,
            not_before: None,
        }
    }

    pub(super) fn started(&mut self, event: Event, now: Instant) {
        self.started = Some(event);
        self.waiting = true;
        self.not_before = Some(now + SOON);
    }

    pub(super) fn progress(&mut self, fraction: Option<f64>, message: Option<String>) {
        self.progress = Some((fraction, message));
        self.waiting = true;
    }

    pub(super) fn count(&mut self, name: String, by: f64) -> Result<(), Broken> {
        if MAX_COUNTERS <= self.counts.len() && !self.counts.contains_key(&name) {
            return Err(Broken(format!("more than {MAX_COUNTERS} counters")));
        }
        let sum = self.counts.entry(name).or_default();
        *sum = plus(*sum, by);
        self.waiting = true;
        Ok(())
    }

    /// Takes over what another one hasn't delivered.
    pub(super) fn take_counts(&mut self, other: &mut Outbox) {
        for (name, by) in std::mem::take(&mut other.counts) {
            let sum = self.counts.entry(name).or_default();
            *sum = plus(*sum, by);
        }
        self.waiting |= !self.counts.is_empty();
    }

    /// When [`Outbox::deliver`] has something to do; none when all is delivered.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.then_some(self.not_before).flatten()
    }

    /// Delivers what may go now. Never waits.
    pub(super) fn deliver(&mut self, now: Instant) {
        if !self.waiting || self.not_before.is_some_and(|not_before| now < not_before) {
            return;
        }
        let only_started = self.progress.is_none() && self.counts.values().all(|by| *by == 0.0);
        let all = self.send_all(|events, event| match events.try_send(event) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(event)) => Err(Some(event)),
            Err(TrySendError::Disconnected(_)) => Err(None),
        });
        self.waiting = !all;
        // The first progress needn't wait because the start was told.
        self.not_before = if all && only_started { None } else { Some(now + EVERY) };
    }

    /// Delivers all that is left, and waits for room: the process has ended.
    pub(super) fn finish(&mut self) {
        self.send_all(|events, event| events.send(event).map_err(|_| None));
    }

    /// The same for an item of a resident worker: a start that nobody has heard of yet is part of the report, and short
    /// items come by the thousand.
    pub(super) fn finish_short(&mut self, now: Instant) {
        if self.started.is_some() && self.not_before.is_some_and(|not_before| now < not_before) {
            self.started = None;
        }
        self.finish();
    }

    /// The same for an item that its worker never came to: what was counted meanwhile was counted.
    pub(super) fn finish_unbegun(&mut self) {
        (self.started, self.progress) = (None, None);
        self.finish();
    }

    /// Sends until one doesn't go; answers whether all went. Nobody to hear it is as good as heard.
    fn send_all(&mut self, send: impl Fn(&Sender<Event>, Event) -> Result<(), Option<Event>>) -> bool {
        let (job, attempt) = (self.job, self.attempt);
        if let Some(event) = self.started.take()
            && let Err(Some(event)) = send(&self.events, event)
        {
            self.started = Some(event);
            return false;
        }
        for (name, sum) in self.counts.iter_mut().filter(|(_, sum)| **sum != 0.0) {
            let event = Event::Count { job, attempt, name: name.clone(), by: *sum };
            if let Err(Some(_)) = send(&self.events, event) {
                return false;
            }
            *sum = 0.0;
        }
        if let Some((fraction, message)) = self.progress.take()
            && let Err(Some(Event::Progress { fraction, message, .. })) =
                send(&self.events, Event::Progress { job, attempt, fraction, message })
        {
            self.progress = Some((fraction, message));
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const JOB: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

    fn shown(event: Event) -> String {
        match event {
            Event::Started { pid, .. } => format!("started {}", pid.unwrap_or_default()),
            Event::Progress { fraction, .. } => format!("progress {}", fraction.unwrap_or_default()),
            Event::Count { name, by, .. } => format!("{name}+{by}"),
            Event::Ahead { .. } | Event::SlotGone { .. } | Event::Ended(_) => "another".to_owned(),
            Event::Resident { news, .. } => format!("{news:?}"),
        }
    }

    fn outbox(room: usize) -> (Outbox, crossbeam_channel::Receiver<Event>, Instant) {
        let (events, heard) = crossbeam_channel::bounded(room);
        let job = JOB.parse().unwrap();
        let mut outbox = Outbox::new(events, job, 1);
        let began = Instant::now();
        outbox.started(Event::Started { job, attempt: 1, pid: Some(7), at: Timestamp::UNIX_EPOCH }, began);
        (outbox, heard, began + SOON)
    }

    fn drain(heard: &crossbeam_channel::Receiver<Event>) -> String {
        heard.try_iter().map(shown).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn progress_is_thinned_out_and_counters_are_summed() {
        let (mut outbox, heard, start) = outbox(10);
        outbox.deliver(start - SOON / 2);
        assert_eq!((drain(&heard).as_str(), outbox.due()), ("", Some(start)));
        outbox.deliver(start);
        assert_eq!((drain(&heard).as_str(), outbox.due()), ("started 7", None));
        outbox.progress(Some(0.1), None);
        outbox.deliver(start);
        assert_eq!(drain(&heard), "progress 0.1");
        for n in 2..=9 {
            outbox.progress(Some(f64::from(n) / 10.0), None);
            outbox.count("pages".to_owned(), 3.0).unwrap();
            outbox.deliver(start + EVERY / 2);
        }
        assert_eq!((drain(&heard).as_str(), outbox.due()), ("", Some(start + EVERY)));
        outbox.deliver(start + EVERY);
        assert_eq!((drain(&heard).as_str(), outbox.due()), ("pages+24 progress 0.9", None));
        outbox.count("pages".to_owned(), 1.0).unwrap();
        outbox.finish();
        assert_eq!(drain(&heard), "pages+1");
    }

    #[test]
    fn a_full_queue_loses_and_repeats_nothing() {
        let (mut outbox, heard, mut now) = outbox(1);
        outbox.count("a".to_owned(), 1.0).unwrap();
        outbox.count("b".to_owned(), 2.0).unwrap();
        outbox.progress(Some(0.5), None);
        let mut all = Vec::new();
        while outbox.waiting {
            outbox.deliver(now);
            all.push(drain(&heard));
            now += EVERY;
        }
        assert_eq!(all, ["started 7", "a+1", "b+2", "progress 0.5"]);
    }

    #[test]
    fn counters_are_bounded_and_a_deaf_director_stops_nobody() {
        let (mut outbox, heard, now) = outbox(1);
        for n in 0..MAX_COUNTERS {
            outbox.count(n.to_string(), 1.0).unwrap();
        }
        assert!(outbox.count("more".to_owned(), 1.0).is_err());
        assert!(outbox.count("5".to_owned(), 1.0).is_ok());
        drop(heard);
        outbox.deliver(now);
        outbox.finish();
    }
}
