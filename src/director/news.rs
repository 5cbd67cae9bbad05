//! What happens, for a program that runs a director in itself: events for who subscribed, the ending of each item that is
//! waited for, and whether anything is left to do. Invariant: the director never waits here: a reader that is slow loses
//! events, and hears how many.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde_json::Value;

use crate::inbox::{self, CandidateKey};
use crate::item::{JobId, JobRecord, Outcome as How, Reason, ResultRecord};

/// Events that may lie unread for one reader: their room is set aside.
const MOST_UNREAD: usize = 1 << 16;

/// Something that happened to an item, or to the director.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An item was taken out of the inbox: it has an id from here on.
    Claimed {
        /// The job's ULID.
        id: String,
        /// The item's name, with what can't be shown escaped.
        name: String,
        /// The route that took it.
        route: String,
    },
    /// An attempt has begun.
    Started {
        /// The job's ULID.
        id: String,
        /// From 1.
        attempt: u32,
        /// The UUIDs of its GPUs, or `cpu`.
        devices: Vec<String>,
    },
    /// A worker told how far it is.
    Progress {
        /// The job's ULID.
        id: String,
        /// From 0 to 1.
        fraction: Option<f64>,
        /// What it does.
        message: Option<String>,
    },
    /// An attempt failed, and another one follows.
    Retrying {
        /// The job's ULID.
        id: String,
        /// The one that failed.
        attempt: u32,
        /// In the words of `result.json`.
        reason: Option<&'static str>,
    },
    /// An item has its outcome, on disk.
    Ended(Arc<Ended>),
    /// Nothing new is started.
    Paused,
    /// Work goes on.
    Resumed,
    /// What runs ends, and then the director does.
    Draining,
}

/// How an item ended: what `result.json` says, and where that lies.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The job's ULID.
    pub id: String,
    /// The item's name, with what can't be shown escaped.
    pub name: String,
    /// The route that took it; none when none ever did.
    pub route: Option<String>,
    /// Done, failed or cancelled.
    pub outcome: How,
    /// Why it isn't done, in the words of `result.json`.
    pub reason: Option<&'static str>,
    /// The same for people.
    pub message: Option<String>,
    /// What its worker told of it.
    pub result: Option<Value>,
    /// How many attempts it took.
    pub attempts: usize,
    /// The job's directory in `done/` or `failed/`: `out/` lies in it, the item, the logs and `result.json`.
    pub dir: PathBuf,
}

impl Ended {
    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        self.outcome == How::Done
    }

    fn new(result: &ResultRecord, dir: PathBuf) -> Ended {
        Ended {
            id: result.id.to_string(),
            name: result.name.clone(),
            route: result.route.clone(),
            outcome: result.outcome,
            reason: result.reason.map(Reason::as_str),
            message: result.message.clone(),
            result: result.result.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok()),
            attempts: result.attempts.len(),
            dir,
        }
    }
}

/// Where the director tells, and a program listens.
#[derive(Clone, Debug, Default)]
pub(crate) struct News(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Desk {
    readers: Vec<Reader>,
    /// Submitted, and not claimed yet.
    submitted: HashMap<CandidateKey, Submitted>,
    /// Submitted and claimed.
    claimed: HashMap<JobId, Sender<Arc<Ended>>>,
    /// Whether anything waits or runs, as far as the director has seen; none before it has seen the whole inbox.
    at_rest: Option<bool>,
    /// Threads that wait for the answer to a request: an end may leave it unanswered.
    askers: Vec<Thread>,
    /// Who looks at the inbox.
    scanner: Option<Sender<inbox::Answer>>,
    /// The director has ended.
    over: bool,
    /// Of all readers.
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Reader {
    events: Sender<Event>,
    dropped: Arc<AtomicU64>,
}

impl News {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The director's side.

    /// How many events were lost by readers that were slow.
    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        self.desk().dropped.clone()
    }

    pub(super) fn tell(&self, event: impl FnOnce() -> Event) {
        self.desk().tell(event);
    }

    pub(super) fn claimed(&self, key: &CandidateKey, record: &JobRecord) {
        let mut desk = self.desk();
        // Another producer's may have come under the name before ours did.
        let inode = record.signature.map(|signature| signature.ino);
        if desk.submitted.get(key).is_some_and(|it| it.is(inode))
            && let Some(it) = desk.submitted.remove(key)
        {
            desk.claimed.insert(record.id, it.waits);
        }
        let JobRecord { id, name, route, .. } = record;
        desk.tell(|| Event::Claimed { id: id.to_string(), name: name.clone(), route: route.name.clone() });
    }

    /// Where the scanner of the inbox listens: it is told of what is submitted.
    pub(super) fn tell_of_submissions(&self, scanner: Sender<inbox::Answer>) {
        self.desk().scanner = Some(scanner);
    }

    /// A claim of it came to nothing.
    pub(super) fn expect_again(&self, key: &CandidateKey) {
        self.desk().expect(key);
    }

    /// Somebody took it out of the inbox; who waits for it hears that by the end of the channel.
    pub(super) fn withdrawn(&self, key: &CandidateKey, inode: u64) {
        let mut desk = self.desk();
        if desk.submitted.get(key).is_some_and(|it| it.is(Some(inode))) {
            desk.submitted.remove(key);
        }
        drop(desk);
        self.0.changed.notify_all();
    }

    pub(super) fn ended(&self, result: &ResultRecord, dir: &std::path::Path) {
        let mut desk = self.desk();
        let waits = desk.claimed.remove(&result.id);
        if waits.is_none() && desk.readers.is_empty() {
            return;
        }
        let ended = Arc::new(Ended::new(result, dir.to_owned()));
        if let Some(waits) = waits {
            // There is room for the one; nobody may wait any more.
            let _ = waits.send(ended.clone());
            self.0.changed.notify_all();
        }
        desk.tell(|| Event::Ended(ended));
    }

    pub(super) fn at_rest(&self, at_rest: bool) {
        let at_rest = Some(at_rest);
        let mut desk = self.desk();
        if std::mem::replace(&mut desk.at_rest, at_rest) != at_rest {
            self.0.changed.notify_all();
        }
    }

    // The program's side.

    /// Nothing more will be told.
    pub(crate) fn close(&self) {
        let left = std::mem::replace(&mut *self.desk(), Desk { over: true, ..Desk::default() });
        self.0.changed.notify_all();
        left.askers.iter().for_each(Thread::unpark);
    }

    pub(crate) fn subscribe(&self, most: usize) -> Events {
        let ((events, heard), dropped) = (bounded(most.clamp(1, MOST_UNREAD)), Arc::new(AtomicU64::new(0)));
        let mut desk = self.desk();
        if !desk.over {
            desk.readers.push(Reader { events, dropped: dropped.clone() });
        }
        Events { heard, dropped }
    }

    /// From before it lies in the inbox on. Nothing when one of this name is on its way already, or the director ended.
    pub(crate) fn await_item(&self, key: &CandidateKey) -> Option<Receiver<Arc<Ended>>> {
        let mut desk = self.desk();
        if desk.over || desk.submitted.contains_key(key) {
            return None;
        }
        let (waits, ended) = bounded(1);
        desk.submitted.insert(key.clone(), Submitted { waits, inode: None });
        Some(ended)
    }

    /// It never came to lie there.
    pub(crate) fn forget_item(&self, key: &CandidateKey) {
        self.desk().submitted.remove(key);
        self.0.changed.notify_all();
    }

    /// It is about to lie there, and is known by its inode.
    pub(crate) fn arrives(&self, key: &CandidateKey, inode: u64) {
        if let Some(it) = self.desk().submitted.get_mut(key) {
            it.inode = Some(inode);
        }
    }

    /// It lies there: should it go again before the director takes it, who waits for it is to hear of that.
    pub(crate) fn lies_there(&self, key: &CandidateKey) {
        self.desk().expect(key);
    }

    /// Waits in this thread for what may be answered from within any runtime; nothing when the director ended without an
    /// answer.
    pub(crate) fn wait_for<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let (mut answer, asker) = (pin!(answer), thread::current());
        self.desk().askers.push(asker.clone());
        let waker = Waker::from(Arc::new(Unpark(asker.clone())));
        let found = loop {
            // Looked at first: what was answered before the end is there.
            let over = self.is_over();
            match answer.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(found) => break Some(found),
                Poll::Pending if over => break None,
                Poll::Pending => thread::park(),
            }
        };
        self.desk().askers.retain(|it| it.id() != asker.id());
        found
    }

    pub(crate) fn is_over(&self) -> bool {
        self.desk().over
    }

    /// Waits until nothing is left to do; false when the director ended before, or the time is up.
    pub(crate) fn wait_for_rest(&self, at_most: Option<Duration>) -> bool {
        let nothing_open = |desk: &Desk| desk.submitted.is_empty() && desk.claimed.is_empty();
        self.wait_until(at_most, |desk| desk.at_rest == Some(true) && nothing_open(desk))
    }

    /// Waits until the director has seen the whole inbox: what comes after that is heard of as it comes, and taken at
    /// once, where what a first look finds may still be written to.
    pub(crate) fn wait_for_look(&self, at_most: Duration) -> bool {
        self.wait_until(Some(at_most), |desk| desk.at_rest.is_some())
    }

    fn wait_until(&self, at_most: Option<Duration>, holds: impl Fn(&Desk) -> bool) -> bool {
        let until = at_most.and_then(|span| Instant::now().checked_add(span));
        let mut desk = self.desk();
        loop {
            let now = holds(&desk);
            if now || desk.over {
                return now;
            }
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            let woken = self.0.changed.wait_timeout(desk, left.min(Duration::from_secs(3600)));
            desk = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}

impl Desk {
    fn expect(&self, key: &CandidateKey) {
        let inode = self.submitted.get(key).and_then(|it| it.inode);
        if let (Some(scanner), Some(inode)) = (&self.scanner, inode) {
            // One that has ended tells nothing more.
            let _ = scanner.send(inbox::Answer::Expected { key: key.clone(), inode });
        }
    }

    fn tell(&mut self, event: impl FnOnce() -> Event) {
        if self.readers.is_empty() {
            return;
        }
        let event = event();
        self.readers.retain(|reader| match reader.events.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                reader.dropped.fetch_add(1, Ordering::Relaxed);
                self.dropped.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }
}

/// An item on its way into the inbox.
#[derive(Debug)]
struct Submitted {
    waits: Sender<Arc<Ended>>,
    /// Once it lies there, or is about to.
    inode: Option<u64>,
}

impl Submitted {
    /// Whether a claimed item is this one; a file system without inodes says 0.
    fn is(&self, claimed: Option<u64>) -> bool {
        self.inode.is_some_and(|ours| claimed.is_none_or(|theirs| theirs == 0 || theirs == ours))
    }
}

/// What happens from the subscription on, in order. Its end is the director's.
///
/// The director never waits for a reader: when as many events lie unread as there is room for, further ones are dropped
/// for this reader, and [`dropped`](Events::dropped) counts them.
#[derive(Debug)]
pub struct Events {
    heard: Receiver<Event>,
    dropped: Arc<AtomicU64>,
}

impl Events {
    /// The next one if it is there.
    pub fn try_next(&self) -> Option<Event> {
        self.heard.try_recv().ok()
    }

    /// Waits for the next one, for at most so long.
    pub fn next_timeout(&self, at_most: Duration) -> Option<Event> {
        self.heard.recv_timeout(at_most).ok()
    }

    /// How many were dropped so far since nobody had read the ones before.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Waits for each.
impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.heard.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_is_slow_loses_events_and_hears_how_many() {
        let news = News::default();
        let (slow, fast) = (news.subscribe(2), news.subscribe(10));
        let gone = news.subscribe(1);
        drop(gone);
        for _ in 0..5 {
            news.tell(|| Event::Paused);
        }
        assert_eq!((slow.dropped(), fast.dropped()), (3, 0));
        assert_eq!(news.dropped().load(Ordering::Relaxed), 3);
        news.close();
        news.tell(|| Event::Resumed);
        assert_eq!((slow.count(), fast.count()), (2, 5));
        assert_eq!(news.subscribe(1).count(), 0);
    }

    #[test]
    fn an_end_without_an_answer_is_an_answer() {
        let news = News::default();
        assert_eq!(news.wait_for(std::future::ready(1)), Some(1));
        let theirs = news.clone();
        let asks = thread::spawn(move || theirs.wait_for(std::future::pending::<()>()));
        while news.desk().askers.is_empty() {
            thread::yield_now();
        }
        news.close();
        assert!(asks.join().is_ok_and(|answer| answer.is_none()));
        assert_eq!(news.wait_for(std::future::ready(2)), Some(2));
        assert_eq!(news.wait_for(std::future::pending::<()>()), None);
    }

    #[test]
    fn rest_is_when_nothing_submitted_is_open() {
        let news = News::default();
        let key = |name: &str| CandidateKey { folder: String::new(), name: crate::item::ItemName::new(name) };
        let now = Some(Duration::ZERO);
        assert!(!news.wait_for_rest(now) && !news.wait_for_look(Duration::ZERO), "nobody has looked yet");
        news.at_rest(true);
        assert!(news.wait_for_rest(now));
        let waits = news.await_item(&key("a")).expect("the first of its name");
        assert!(news.await_item(&key("a")).is_none());
        assert!(!news.wait_for_rest(now), "the director may not have seen it");
        // Another producer's item of the name, taken back: not ours, which isn't there yet.
        news.withdrawn(&key("a"), 7);
        assert!(news.desk().submitted.contains_key(&key("a")));
        news.arrives(&key("a"), 7);
        let submitted = |inode: u64| news.desk().submitted.get(&key("a")).is_some_and(|it| it.is(Some(inode)));
        assert!(submitted(7) && submitted(0) && !submitted(8));
        // Nor is one of the name that went before.
        news.withdrawn(&key("a"), 6);
        assert!(submitted(7));
        news.withdrawn(&key("a"), 7);
        assert!(waits.recv().is_err() && news.wait_for_rest(now));
        news.close();
        assert!(!news.wait_for_rest(None) && news.await_item(&key("b")).is_none());
    }
}
