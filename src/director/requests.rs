//! What people and programs ask of the director through the interface.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Director, NewsEvent};
use crate::api::{Command, InboxRef, Refusal, Request};
use crate::devices::{Cordon, CordonBy, DeviceId, DeviceKind, Reading, prober};
use crate::inbox::{self, Candidate, CandidateKey};
use crate::item::{ItemName, JobId};
use crate::notifier;
use crate::spool::{self, ClaimedJob};
use crate::state::Phase;

pub(super) type Reply = oneshot::Sender<Result<Value, Refusal>>;

/// A `retry` whose jobs are on their way back into `claimed/`.
pub(super) struct PendingRetry {
    waiting: HashSet<JobId>,
    revived: Vec<String>,
    refused: Vec<Value>,
    reply: Reply,
}

/// A cordon, or the end of one, that is being written down.
pub(super) struct PendingCordon {
    answer: Value,
    reply: Reply,
}

/// An item in the inbox that was looked at, off this thread, because someone wants it cancelled.
pub(super) struct Inspected {
    key: CandidateKey,
    outcome: Result<Candidate, String>,
}

impl Director {
    pub(super) fn on_request(&mut self, request: Request) {
        let Request { what, reply } = request;
        info!(command = ?what, "asked");
        let answer = match what {
            Command::Pause => self.pause(),
            Command::Resume => self.resume(),
            Command::Drain => {
                self.drain();
                Ok(json!({ "state": "draining" }))
            }
            Command::Release => return self.release(reply),
            Command::Cordon { device } => return self.cordon(&device, reply),
            Command::Uncordon { device } => return self.uncordon(&device, reply),
            Command::Cancel { jobs, inbox } => self.cancel(&jobs, inbox),
            Command::Retry { jobs } => return self.retry(jobs, reply),
        };
        // Whoever reads after the answer sees what was asked for; a client that went away needs none.
        self.publish();
        let _ = reply.send(answer);
    }

    fn pause(&mut self) -> Result<Value, Refusal> {
        self.expect_accepting("pause")?;
        self.state.phase = Phase::Paused;
        self.guest.news.tell(|| NewsEvent::Paused);
        Ok(json!({ "state": "paused" }))
    }

    fn resume(&mut self) -> Result<Value, Refusal> {
        self.expect_accepting("resume")?;
        self.state.phase = Phase::Running;
        self.guest.news.tell(|| NewsEvent::Resumed);
        self.to_prober(prober::Ask::Resume);
        Ok(json!({ "state": "running" }))
    }

    /// Answered once the driver is closed: whoever asks is about to unload it.
    fn release(&mut self, reply: Reply) {
        self.releasing.push(reply);
        self.to_prober(prober::Ask::Release);
        if self.prober_hangs {
            self.refuse_releases("the driver doesn't answer");
        }
    }

    pub(super) fn answer_releases(&mut self) {
        if self.releasing.is_empty() {
            return;
        }
        // Whoever reads after the answer sees what was asked for.
        self.publish();
        for reply in self.releasing.drain(..) {
            let _ = reply.send(Ok(json!({ "released": true })));
        }
    }

    /// The wish itself stands: the driver is let go of as soon as its call comes back.
    pub(super) fn refuse_releases(&mut self, why: &str) {
        for reply in self.releasing.drain(..) {
            let help = "it is let go of as soon as the call comes back; `gamdok status` tells. Ending the director lets go at once";
            let _ = reply.send(Err(refusal("not-released", format!("the driver is still held: {why}"), help)));
        }
    }

    fn expect_accepting(&self, what: &str) -> Result<(), Refusal> {
        if self.is_accepting() {
            return Ok(());
        }
        Err(refusal("draining", format!("cannot {what}: the director is draining"), "start it again once it has ended"))
    }

    fn cordon(&mut self, device: &str, reply: Reply) {
        let id = match self.find_device(device) {
            Ok(id) => id,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        self.cordon_by_hand(&id);
        warn!(device = %id, "cordoned by hand");
        self.notifier.tell(notifier::What::DeviceCordoned { device: id.to_string(), reason: "by hand".to_owned() });
        self.write_cordons(PendingCordon { answer: json!({ "cordoned": id }), reply });
    }

    fn uncordon(&mut self, device: &str, reply: Reply) {
        let id = match self.find_device(device) {
            Ok(id) => id,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        crate::fault::forgive(&mut self.state, &id);
        info!(device = %id, "uncordoned");
        self.write_cordons(PendingCordon { answer: json!({ "uncordoned": id }), reply });
    }

    pub(super) fn cordon_by_hand(&mut self, id: &DeviceId) {
        let cordon = Cordon { by: CordonBy::Hand, since: self.state.now, reason: String::new() };
        self.state.device_mut(id).cordon = Some(cordon);
    }

    /// What a hand took out stays out after a restart: it is answered once that is on disk.
    fn write_cordons(&mut self, pending: PendingCordon) {
        let by_hand = |device: &crate::state::Device| device.cordon.as_ref().is_some_and(|it| it.by == CordonBy::Hand);
        let devices = self.state.devices().filter(|(_, device)| by_hand(device)).map(|(id, _)| id.clone()).collect();
        self.cordoning.push_back(pending);
        self.to_spool(spool::Task::Cordons { devices });
    }

    pub(super) fn on_cordons(&mut self, outcome: Result<(), String>) {
        let Some(PendingCordon { answer, reply }) = self.cordoning.pop_front() else { return };
        let answer = outcome.map(|()| answer).map_err(|error| {
            refusal(
                "not-written",
                format!("it holds until the director ends, but can't be written down: {error}"),
                "see the health of spool and space in `gamdok status`, then ask again",
            )
        });
        self.publish();
        let _ = reply.send(answer);
    }

    /// By UUID, a unique prefix of one, or the index. A device that isn't there at present may still be cordoned, and is
    /// known by its UUID.
    fn find_device(&self, text: &str) -> Result<DeviceId, Refusal> {
        // A GPU's index is its instances' too; it stands for all of them.
        let of_index = |reading: &&Reading| {
            reading.kind != DeviceKind::Mig && reading.index.is_some_and(|index| index.to_string() == text)
        };
        let known: BTreeSet<&DeviceId> = self
            .snapshot
            .devices
            .iter()
            .map(|reading| &reading.id)
            .chain(self.state.devices().map(|(id, _)| id))
            .collect();
        let mut found: Vec<&DeviceId> = known.iter().copied().filter(|id| id.0 == text).collect();
        if found.is_empty() {
            found = self.snapshot.devices.iter().filter(of_index).map(|reading| &reading.id).collect();
        }
        if found.is_empty() && !text.is_empty() {
            found = known.into_iter().filter(|id| id.0.starts_with(text)).collect();
        }
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            [] => Err(refusal(
                "no-such-device",
                format!("no device `{text}`"),
                "`gamdok gpus` lists them: name one by index or UUID",
            )),
            _ => Err(refusal(
                "ambiguous",
                format!("`{text}` names {} devices", found.len()),
                "give the UUID that `gamdok gpus --json` shows",
            )),
        }
    }

    fn cancel(&mut self, jobs: &[JobId], inbox: Vec<InboxRef>) -> Result<Value, Refusal> {
        let mut cancelled = Vec::new();
        let mut refused = Vec::new();
        for id in jobs {
            match self.cancel_job(*id) {
                Ok(()) => cancelled.push(id.to_string()),
                Err(why) => refused.push(json!({ "id": id, "message": why })),
            }
        }
        for item in inbox {
            match ItemName::from_base64(&item.name_b64) {
                Some(name) => {
                    cancelled.push(name.escaped());
                    self.cancel_in_inbox(CandidateKey { folder: item.folder, name });
                }
                None => refused.push(json!({ "name_b64": item.name_b64, "message": "not the base64 of a file name" })),
            }
        }
        Ok(json!({ "cancelled": cancelled, "refused": refused }))
    }

    /// An item that is still in the inbox is claimed only to be filed as cancelled.
    fn cancel_in_inbox(&mut self, key: CandidateKey) {
        if let Some(candidate) = self.state.take_offer(&key) {
            self.claim_candidate(candidate, true);
            return;
        }
        let known = self.config.routes.iter().map(|route| route.folder.as_str()).any(|folder| folder == key.folder);
        if !known && !key.folder.is_empty() {
            warn!(folder = crate::item::escape(key.folder.as_bytes()), "no such intake folder; nothing is cancelled");
            return;
        }
        // The inbox may hang (a dead mount): it is looked at on a thread of its own.
        let (path, results, routes) = (self.root.inbox(), self.inspections.clone(), self.config.routes.clone());
        let unmatched = Arc::new(spool::no_route());
        let look = move || {
            let outcome = inbox::find(&path, &key, &routes, unmatched).map_err(|error| error.to_string());
            let _ = results.send(Inspected { key, outcome });
        };
        if let Err(error) = std::thread::Builder::new().name("inspect".to_owned()).spawn(look) {
            warn!(%error, "cannot look at the item to cancel; ask again");
        }
    }

    pub(super) fn on_inspected(&mut self, inspected: Inspected) {
        match inspected.outcome {
            Ok(candidate) => {
                self.state.take_offer(&inspected.key);
                self.claim_candidate(candidate, true);
            }
            Err(error) => warn!(item = inspected.key.name.escaped(), error, "cannot be cancelled"),
        }
    }

    fn retry(&mut self, jobs: Vec<JobId>, reply: Reply) {
        if let Err(refusal) = self.expect_accepting("retry") {
            let _ = reply.send(Err(refusal));
            return;
        }
        let mut pending = PendingRetry { waiting: HashSet::new(), revived: Vec::new(), refused: Vec::new(), reply };
        for id in jobs {
            if self.state.job(id).is_some() {
                pending.refused.push(json!({ "id": id, "message": "it hasn't ended" }));
            } else if pending.waiting.insert(id) {
                self.to_spool(spool::Task::Revive { id });
            }
        }
        self.retries.push(pending);
        self.answer_retries();
    }

    pub(super) fn on_revived(&mut self, id: JobId, outcome: Result<Box<ClaimedJob>, String>) {
        let words = match outcome {
            Ok(claimed) => {
                info!(job = %claimed.dir, "to be tried again");
                let dir = claimed.dir.to_string();
                let counters = claimed.record.counters.clone();
                let number = self.adopt(*claimed);
                self.note_revived(number, &counters);
                Ok(dir)
            }
            Err(why) => Err(json!({ "id": id, "message": why })),
        };
        if let Some(pending) = self.retries.iter_mut().find(|pending| pending.waiting.contains(&id)) {
            pending.waiting.remove(&id);
            match words {
                Ok(dir) => pending.revived.push(dir),
                Err(why) => pending.refused.push(why),
            }
        }
        self.answer_retries();
    }

    fn answer_retries(&mut self) {
        if self.retries.iter().all(|pending| !pending.waiting.is_empty()) {
            return;
        }
        self.publish();
        for pending in self.retries.extract_if(.., |pending| pending.waiting.is_empty()) {
            let _ = pending.reply.send(Ok(json!({ "retried": pending.revived, "refused": pending.refused })));
        }
    }
}

fn refusal(code: &str, message: String, help: &str) -> Refusal {
    Refusal { code: code.to_owned(), message, help: help.to_owned() }
}
