//! The thread that tells one: takes orders, sends what is due, says how it gets on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jiff::Timestamp;
use ulid::Ulid;

use super::message::Origin;
use super::outbox::{Order, Outbox, Parcel, Undelivered};
use super::{Said, Sent, WAITING, command, webhook};
use crate::config::{Notify, Target};
use crate::units::Clock;

pub(super) struct Courier {
    pub(super) notify: Arc<Notify>,
    pub(super) origin: Arc<Origin>,
    pub(super) orders: Receiver<Order>,
    /// What found no room on the way here.
    pub(super) dropped: Arc<AtomicU64>,
    pub(super) said: Sender<Said>,
    pub(super) sent: Arc<Sent>,
}

impl Courier {
    /// Until the orders end; then what is left goes out once.
    pub(super) fn run(self) {
        let clock = Clock::start();
        let mut outbox = Outbox::new(WAITING, self.notify.retries);
        let mut wrong = false;
        let mut closing = false;
        while !closing || !outbox.is_empty() {
            if !closing {
                closing = self.listen(&mut outbox, clock).is_none();
            }
            outbox.lost(self.dropped.swap(0, Ordering::Relaxed));
            self.count_lost(&mut outbox);
            let Some(parcel) = outbox.next(clock.now(), closing, || Ulid::generate().to_string()) else {
                continue;
            };
            let outcome = self.deliver(parcel);
            match outcome {
                Ok(()) => {
                    outbox.sent();
                    self.sent.sent.fetch_add(1, Ordering::Relaxed);
                    if std::mem::take(&mut wrong) {
                        let _ = self.said.send((self.notify.clone(), None));
                    }
                }
                Err(undelivered) => {
                    let to = self.notify.to.shown();
                    let lost = outbox.failed(&undelivered, clock.now());
                    self.sent.failed.fetch_add(1, Ordering::Relaxed);
                    self.count_lost(&mut outbox);
                    let why = undelivered.words;
                    match lost {
                        0 => tracing::warn!(to, why, "not told; it is tried again"),
                        lost => tracing::error!(to, why, lost, "not told, and given up"),
                    }
                    wrong = true;
                    let _ = self.said.send((self.notify.clone(), Some(format!("{to}: {why}"))));
                    if closing {
                        // Another try at once would fail alike, and nobody waits for a later one.
                        return tracing::warn!(to, "the director ends; what is left to tell is not told");
                    }
                }
            }
        }
    }

    fn count_lost(&self, outbox: &mut Outbox) {
        self.sent.lost.fetch_add(std::mem::take(&mut outbox.given_up), Ordering::Relaxed);
    }

    /// Waits for orders, or until something is due. None: there will be no more.
    fn listen(&self, outbox: &mut Outbox, clock: Clock) -> Option<()> {
        let first = match outbox.due() {
            Some(at) => self.orders.recv_timeout(at.since(clock.now())),
            None => self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(order) => outbox.take_in(order, clock.now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
        while let Ok(order) = self.orders.try_recv() {
            outbox.take_in(order, clock.now());
        }
        Some(())
    }

    fn deliver(&self, parcel: &Parcel) -> Result<(), Undelivered> {
        let now = Timestamp::now();
        let message = self.origin.message(parcel, now);
        let limit = self.notify.timeout;
        match &self.notify.to {
            Target::Webhook { url, secret_file } => {
                webhook::post(url, secret_file.as_deref(), &parcel.id, now, &message, limit)
            }
            Target::Command { command, dir } => command::run(command, dir, &message, limit),
        }
    }
}

impl Target {
    /// As logs and the health list call it.
    pub(super) fn shown(&self) -> String {
        match self {
            Target::Webhook { url, .. } => url.to_string(),
            Target::Command { command, .. } => {
                let program = command.first().map_or("", String::as_str);
                format!("`{}`", crate::item::escape(program.as_bytes()))
            }
        }
    }
}
