//! What waits to be told to one, and when it is due. Pure: it is told the time. Invariants: a message is sent again as it
//! was, under the same id; while it is tried, what else happens gathers behind it; nothing grows without bound.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Happening;
use crate::units::Moment;

/// What happens together goes together.
const GATHER: Duration = Duration::from_secs(1);
/// A queue that is empty for so long is empty: between two items of a script that drops one after the other it isn't.
const EMPTY_FOR: Duration = Duration::from_secs(10);
/// Of one message.
pub(super) const MOST: usize = 100;
/// Before the second try; doubles.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_AT_MOST: Duration = Duration::from_secs(300);

/// What a courier is told.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Tell(Arc<Happening>),
    /// Nothing is left to do, which is told unless work comes soon.
    Rest(Arc<Happening>),
    /// Something is.
    Work,
}

/// Why a message didn't get through.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Undelivered {
    pub(super) words: String,
    /// Whether another try may help, and the least wait before it.
    pub(super) again: Option<Duration>,
}

/// What is sent, as often as it takes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parcel {
    pub(super) id: String,
    pub(super) happenings: Vec<Arc<Happening>>,
    /// How many could not be told before.
    pub(super) dropped: u64,
}

#[derive(Debug)]
pub(super) struct Outbox {
    room: usize,
    retries: u32,
    waiting: VecDeque<Arc<Happening>>,
    /// Since when the first of them waits.
    since: Moment,
    rest: Option<(Moment, Arc<Happening>)>,
    /// Not told, and not yet told of.
    dropped: u64,
    /// Not told, and not yet counted.
    pub(super) given_up: u64,
    sending: Option<Parcel>,
    tries: u32,
    retry_at: Moment,
}

impl Outbox {
    pub(super) fn new(room: usize, retries: u32) -> Outbox {
        Outbox {
            room,
            retries,
            waiting: VecDeque::new(),
            since: Moment::default(),
            rest: None,
            dropped: 0,
            given_up: 0,
            sending: None,
            tries: 0,
            retry_at: Moment::default(),
        }
    }

    pub(super) fn take_in(&mut self, order: Order, now: Moment) {
        match order {
            Order::Tell(happening) => self.wait(happening, now),
            Order::Rest(happening) => self.rest = Some((now + EMPTY_FOR, happening)),
            Order::Work => self.rest = None,
        }
    }

    fn wait(&mut self, happening: Arc<Happening>, now: Moment) {
        if self.waiting.len() >= self.room {
            self.dropped += 1;
            self.given_up += 1;
            return;
        }
        if self.waiting.is_empty() {
            self.since = now;
        }
        self.waiting.push_back(happening);
    }

    pub(super) fn lost(&mut self, happenings: u64) {
        self.dropped += happenings;
    }

    /// When it is to be looked at again.
    pub(super) fn due(&self) -> Option<Moment> {
        let next = match &self.sending {
            Some(_) => Some(self.retry_at),
            None if self.waiting.is_empty() => None,
            None => Some(self.since + GATHER),
        };
        next.into_iter().chain(self.rest.as_ref().map(|(at, _)| *at)).min()
    }

    /// What is to be sent now; `closing`: all of it is due.
    pub(super) fn next(&mut self, now: Moment, closing: bool, new_id: impl FnOnce() -> String) -> Option<&Parcel> {
        if let Some((_, happening)) = self.rest.take_if(|(at, _)| closing || *at <= now) {
            self.wait(happening, now);
        }
        if self.sending.is_none() && !self.waiting.is_empty() && (closing || self.since + GATHER <= now) {
            let happenings = self.waiting.drain(..self.waiting.len().min(MOST)).collect();
            self.sending = Some(Parcel { id: new_id(), happenings, dropped: std::mem::take(&mut self.dropped) });
            (self.tries, self.retry_at) = (0, now);
        }
        self.sending.as_ref().filter(|_| closing || self.retry_at <= now)
    }

    pub(super) fn sent(&mut self) {
        self.sending = None;
    }

    /// Answers how many happenings were given up with this.
    pub(super) fn failed(&mut self, wrong: &Undelivered, now: Moment) -> u64 {
        self.tries += 1;
        let wait = BACKOFF.saturating_mul(1 << (self.tries - 1).min(16)).min(BACKOFF_AT_MOST);
        match wrong.again {
            Some(least) if self.tries <= self.retries => {
                self.retry_at = now + wait.max(least);
                0
            }
            _ => {
                let Some(Parcel { happenings, dropped, .. }) = self.sending.take() else { return 0 };
                self.given_up += happenings.len() as u64;
                let lost = happenings.len() as u64 + dropped;
                self.dropped += lost;
                lost
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sending.is_none() && self.rest.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::super::What;
    use super::*;

    fn happening(n: u64) -> Arc<Happening> {
        let what = What::QueueEmpty { done: n, failed: 0, cancelled: 0 };
        Arc::new(Happening { at: jiff::Timestamp::UNIX_EPOCH, what })
    }

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn told(parcel: Option<&Parcel>) -> Option<(String, Vec<u64>, u64)> {
        parcel.map(|parcel| {
            let number = |it: &Arc<Happening>| match it.what {
                What::QueueEmpty { done, .. } => done,
                _ => unreachable!(),
            };
            (parcel.id.clone(), parcel.happenings.iter().map(number).collect(), parcel.dropped)
        })
    }

    fn id(name: &str) -> impl FnOnce() -> String {
        || name.to_owned()
    }

    const WRONG: Undelivered = Undelivered { words: String::new(), again: Some(Duration::ZERO) };

    #[test]
    fn what_happens_together_goes_together_and_the_rest_after_it() {
        let mut outbox = Outbox::new(1000, 3);
        assert_eq!((outbox.due(), told(outbox.next(at(0), false, id("a")))), (None, None));
        outbox.take_in(Order::Tell(happening(1)), at(0));
        outbox.take_in(Order::Tell(happening(2)), at(900));
        assert_eq!(outbox.due(), Some(at(1000)));
        assert_eq!(told(outbox.next(at(999), false, id("a"))), None);
        assert_eq!(told(outbox.next(at(1000), false, id("a"))), Some(("a".to_owned(), vec![1, 2], 0)));
        outbox.take_in(Order::Tell(happening(3)), at(1100));
        outbox.sent();
        assert_eq!(outbox.due(), Some(at(2100)));
        assert_eq!(told(outbox.next(at(2100), false, id("b"))), Some(("b".to_owned(), vec![3], 0)));
        outbox.sent();
        assert!(outbox.is_empty());
        for n in 0..=MOST as u64 {
            outbox.take_in(Order::Tell(happening(n)), at(3000));
        }
        assert_eq!(outbox.next(at(4000), false, id("c")).map(|it| it.happenings.len()), Some(MOST));
        outbox.sent();
        assert_eq!(told(outbox.next(at(4000), false, id("d"))), Some(("d".to_owned(), vec![MOST as u64], 0)));
    }

    #[test]
    fn the_same_message_is_tried_again_later_and_later_and_then_given_up() {
        let mut outbox = Outbox::new(1000, 2);
        outbox.take_in(Order::Tell(happening(1)), at(0));
        assert!(outbox.next(at(1000), false, id("a")).is_some());
        assert_eq!(outbox.failed(&WRONG, at(1000)), 0);
        outbox.take_in(Order::Tell(happening(2)), at(1000));
        assert_eq!((outbox.due(), told(outbox.next(at(1999), false, id("b")))), (Some(at(2000)), None));
        assert_eq!(told(outbox.next(at(2000), false, id("b"))), Some(("a".to_owned(), vec![1], 0)));
        // Who is told to wait longer waits longer.
        let later = Undelivered { again: Some(Duration::from_secs(60)), ..WRONG };
        assert_eq!((outbox.failed(&later, at(2000)), outbox.due()), (0, Some(at(62_000))));
        assert!(outbox.next(at(62_000), false, id("b")).is_some());
        assert_eq!(outbox.failed(&WRONG, at(62_000)), 1);
        assert_eq!(told(outbox.next(at(62_000), false, id("b"))), Some(("b".to_owned(), vec![2], 1)));
        // No other try would help.
        let final_one = Undelivered { again: None, ..WRONG };
        assert_eq!((outbox.failed(&final_one, at(62_000)), outbox.is_empty()), (2, true));
    }

    #[test]
    fn an_empty_queue_is_told_unless_work_comes_soon() {
        let mut outbox = Outbox::new(1000, 0);
        outbox.take_in(Order::Rest(happening(1)), at(0));
        outbox.take_in(Order::Work, at(9_000));
        assert_eq!(outbox.due(), None);
        outbox.take_in(Order::Rest(happening(2)), at(10_000));
        assert_eq!(outbox.due(), Some(at(20_000)));
        assert_eq!(told(outbox.next(at(20_000), false, id("a"))), None);
        assert_eq!(told(outbox.next(at(21_000), false, id("a"))), Some(("a".to_owned(), vec![2], 0)));
        outbox.sent();
        // The end waits for nothing.
        outbox.take_in(Order::Rest(happening(3)), at(30_000));
        assert_eq!(told(outbox.next(at(30_000), true, id("b"))), Some(("b".to_owned(), vec![3], 0)));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let mut outbox = Outbox::new(2, 0);
        for n in 0..5 {
            outbox.take_in(Order::Tell(happening(n)), at(0));
        }
        outbox.lost(4);
        assert_eq!(told(outbox.next(at(1000), false, id("a"))), Some(("a".to_owned(), vec![0, 1], 7)));
        // What was lost before it came here was counted there, and nothing is counted twice.
        assert_eq!(std::mem::take(&mut outbox.given_up), 3);
        assert_eq!((outbox.failed(&WRONG, at(1000)), outbox.given_up), (9, 2));
    }
}
