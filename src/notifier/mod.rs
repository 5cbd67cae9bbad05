//! Who is told of what happens: a thread for each `[[notify]]`, which gathers, sends, and tries again. Invariants: nobody
//! here makes the director wait; nothing of an item but its name and how it ended leaves the host; what can't be told is
//! counted, and the next message that gets through says how much it was.

mod command;
mod courier;
mod message;
mod outbox;
mod webhook;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use jiff::Timestamp;
use serde::Serialize;

use crate::config::{Notify, Topic};
use crate::health::Check;
use crate::item::{Outcome, Reason, ResultRecord};
use courier::Courier;
use message::Origin;
use outbox::Order;

/// How many happenings may wait for one courier.
const WAITING: usize = 1000;
/// How long the last words may take once the director ends, all couriers together.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Something people want to know of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Happening {
    pub at: Timestamp,
    #[serde(flatten)]
    pub what: What,
}

/// What it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum What {
    ItemFailed {
        id: String,
        job: String,
        name: String,
        route: Option<String>,
        reason: Option<&'static str>,
        /// The same for people, at most a few hundred characters.
        message: Option<String>,
        attempts: usize,
    },
    DeviceCordoned {
        device: String,
        reason: String,
    },
    /// The part that has failed, in the words of `status`'s `health`.
    RootUnavailable {
        part: &'static str,
        message: String,
    },
    RootAvailable {
        part: &'static str,
    },
    /// Since the queue was empty before.
    QueueEmpty {
        done: u64,
        failed: u64,
        cancelled: u64,
    },
}

impl What {
    pub fn of(result: &ResultRecord, job: String) -> Option<What> {
        if result.outcome != Outcome::Failed {
            return None;
        }
        let said = result.message.as_deref().map(|text| message::shortened(&crate::item::shown(text)));
        Some(What::ItemFailed {
            id: result.id.to_string(),
            job,
            name: result.name.clone(),
            route: result.route.clone(),
            reason: result.reason.map(Reason::as_str),
            message: said,
            attempts: result.attempts.len(),
        })
    }

    fn topic(&self) -> Topic {
        match self {
            What::ItemFailed { .. } => Topic::ItemFailed,
            What::DeviceCordoned { .. } => Topic::DeviceCordoned,
            What::RootUnavailable { .. } | What::RootAvailable { .. } => Topic::RootUnavailable,
            What::QueueEmpty { .. } => Topic::QueueEmpty,
        }
    }

    fn route(&self) -> Option<&str> {
        match self {
            What::ItemFailed { route, .. } => route.as_deref(),
            _ => None,
        }
    }
}

/// Outcomes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub done: u64,
    pub failed: u64,
    pub cancelled: u64,
}

impl Tally {
    fn since(self, before: Tally) -> Tally {
        Tally {
            done: self.done.saturating_sub(before.done),
            failed: self.failed.saturating_sub(before.failed),
            cancelled: self.cancelled.saturating_sub(before.cancelled),
        }
    }
}

/// All couriers.
#[derive(Debug)]
pub struct Notifier {
    origin: Arc<Origin>,
    lines: Vec<Line>,
    /// Whether work was left when it was last said; none before.
    at_rest: Option<bool>,
    /// What had ended when the queue was empty before.
    told: Tally,
    said: Sender<Said>,
    heard: Receiver<Said>,
    sent: Arc<Sent>,
}

/// How telling went so far.
#[derive(Debug, Default)]
pub struct Sent {
    /// Messages that got through.
    pub sent: AtomicU64,
    /// Tries that failed.
    pub failed: AtomicU64,
    /// Happenings that were given up.
    pub lost: AtomicU64,
}

/// What a courier says of itself: which one, and what is wrong; nothing when it gets through again.
pub type Said = (Arc<Notify>, Option<String>);

/// The way to one courier.
#[derive(Debug)]
struct Line {
    notify: Arc<Notify>,
    orders: Sender<Order>,
    dropped: Arc<AtomicU64>,
    wrong: Option<String>,
    /// Its end.
    over: Receiver<()>,
}

impl Notifier {
    pub fn new(root: &Path, wanted: &[Notify]) -> Notifier {
        let (said, heard) = unbounded();
        let origin = Arc::new(Origin::new(root));
        let (lines, told, sent) = (Vec::new(), Tally::default(), Arc::default());
        let mut notifier = Notifier { origin, lines, at_rest: None, told, said, heard, sent };
        notifier.reconfigure(wanted);
        notifier
    }

    /// Those that stay as they are go on; the others finish what they were told.
    pub fn reconfigure(&mut self, wanted: &[Notify]) {
        let mut before = std::mem::take(&mut self.lines);
        for notify in wanted {
            let known = before.iter().position(|line| *line.notify == *notify);
            let line = known.map(|at| before.swap_remove(at)).or_else(|| self.open(notify));
            self.lines.extend(line);
        }
    }

    fn open(&self, notify: &Notify) -> Option<Line> {
        let notify = Arc::new(notify.clone());
        let (orders, inbox) = bounded(WAITING);
        let (ends, over) = bounded(0);
        let dropped = Arc::new(AtomicU64::new(0));
        let courier = Courier {
            notify: notify.clone(),
            origin: self.origin.clone(),
            orders: inbox,
            dropped: dropped.clone(),
            said: self.said.clone(),
            sent: self.sent.clone(),
        };
        let run = move || {
            courier.run();
            drop(ends);
        };
        match std::thread::Builder::new().name("notify".to_owned()).spawn(run) {
            Ok(_) => Some(Line { notify, orders, dropped, wrong: None, over }),
            Err(error) => {
                tracing::error!(%error, to = %notify.to.shown(), "nobody can be told: no thread for it");
                None
            }
        }
    }

    /// Tells all who want to know.
    pub fn tell(&self, what: What) {
        let happening = Arc::new(Happening { at: Timestamp::now(), what });
        let (topic, route) = (happening.what.topic(), happening.what.route());
        for line in &self.lines {
            let of_route = |route| line.notify.routes.is_empty() || line.notify.routes.iter().any(|it| it == route);
            if line.notify.wants(topic) && route.is_none_or(of_route) {
                line.order(Order::Tell(happening.clone()), &self.sent);
            }
        }
    }

    /// Whether nothing waits or runs, and what has ended so far. Cheap when that is no news.
    pub fn at_rest(&mut self, at_rest: bool, ended: Tally) {
        let before = self.at_rest.replace(at_rest);
        // A director that found nothing to do has nothing to tell of it.
        if before.unwrap_or(true) == at_rest {
            return;
        }
        let Tally { done, failed, cancelled } = ended.since(self.told);
        if at_rest {
            self.told = ended;
        }
        let empty = Happening { at: Timestamp::now(), what: What::QueueEmpty { done, failed, cancelled } };
        let order = if at_rest { Order::Rest(Arc::new(empty)) } else { Order::Work };
        for line in self.lines.iter().filter(|line| line.notify.wants(Topic::QueueEmpty)) {
            line.order(order.clone(), &self.sent);
        }
    }

    pub fn sent(&self) -> Arc<Sent> {
        self.sent.clone()
    }

    /// Where couriers say how they are.
    pub fn heard(&self) -> &Receiver<Said> {
        &self.heard
    }

    /// What that means for the health of all.
    pub fn on_said(&mut self, (from, wrong): Said) -> Check {
        for line in self.lines.iter_mut().filter(|line| Arc::ptr_eq(&line.notify, &from)) {
            line.wrong.clone_from(&wrong);
        }
        self.health()
    }

    /// Degraded while somebody can't be told.
    pub fn health(&self) -> Check {
        let wrong: Vec<&str> = self.lines.iter().filter_map(|line| line.wrong.as_deref()).collect();
        match wrong.is_empty() {
            true => Check::ok(crate::health::What::Notify),
            false => Check::degraded(crate::health::What::Notify, wrong.join("; ")),
        }
    }

    /// Nothing more happens: what was told goes out, as far as there is time.
    pub fn stop(&mut self) {
        let until = Instant::now() + LAST_WORDS;
        for Line { orders, over, .. } in std::mem::take(&mut self.lines) {
            drop(orders);
            // Its end, or the time's.
            let _ = over.recv_deadline(until);
        }
    }
}

impl Line {
    fn order(&self, order: Order, sent: &Sent) {
        let counts = matches!(order, Order::Tell(_));
        if let Err(TrySendError::Full(_)) = self.orders.try_send(order)
            && counts
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            sent.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
