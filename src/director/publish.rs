//! The published view: a numbered copy of the state for everyone who reads. Nobody else ever sees the state itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Director, PUBLISH_EVERY, PUBLISH_LARGE_EVERY};
use crate::api::view::{
    Counts, DeviceView, DirectorState, HeldView, Listed, ProgressView, ResidentView, RunningView, Status, View,
};
use crate::config::Route;
use crate::devices::Reading;
use crate::inbox::{CandidateKey, ItemInfo, RouteCounts};
use crate::item::{Counters, Stage};
use crate::metrics::{DeviceTally, RouteTally, Tallies};
use crate::plan;
use crate::state::{Job, Phase, Progress, Resident, ResidentId, Warmth};
use crate::units::Moment;

/// More live rows than this aren't published: a reader of so many asks the ledger.
const LIVE: usize = 10_000;
/// From here on a view is large, and published less often.
const LARGE: usize = 500;

impl Director {
    pub(super) fn publish_period(&self) -> std::time::Duration {
        let stages = self.state.stages();
        let jobs = stages.claimed + stages.running + stages.retrying + stages.committing;
        let listed = jobs as usize + self.counts.held.len() + self.counts.ready_names.len();
        if listed > LARGE { PUBLISH_LARGE_EVERY } else { PUBLISH_EVERY }
    }

    pub(super) fn publish_if_due(&mut self) {
        let first = self.published_at == Moment::default();
        if self.dirty && (first || self.state.now.since(self.published_at) >= self.publish_period()) {
            self.publish();
        }
    }

    pub(super) fn publish(&mut self) {
        self.dirty = false;
        self.estimate();
        self.published_at = self.state.now;
        self.number += 1;
        let counters = self.counters();
        let status = self.status(counters);
        let Counts { arriving, ready, claimed, running, retrying, .. } = status.counts;
        let open = arriving + ready + claimed + running + retrying;
        if self.counts.scanned {
            self.guest.news.at_rest(open == 0);
            self.notifier.at_rest(open == 0, self.ended_so_far());
        }
        let tallies = self.tallies(&status.counts);
        self.board.publish(View { number: self.number, status, live: self.live(), tallies });
    }

    fn status(&self, counters: Counters) -> Status {
        let stages = self.state.stages();
        let (tally, filed) = self.spool.tally.read_with_filed();
        // Moved already, and counted there.
        let moved = filed.saturating_sub(self.filed);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: Some(std::process::id()),
            root: crate::item::escape(self.root.path().as_os_str().as_encoded_bytes()),
            mode: self.snapshot.mode,
            state: match self.state.phase {
                Phase::Running => DirectorState::Running,
                Phase::Paused => DirectorState::Paused,
                Phase::Draining | Phase::Stopping => DirectorState::Draining,
            },
            uptime_s: Some((self.state.now.0.as_secs_f64() * 1000.0).round() / 1000.0),
            counts: Counts {
                arriving: self.counts.arriving,
                ready: self.counts.ready.saturating_sub(self.on_their_way().count() as u64),
                held: self.counts.held_total,
                claimed: stages.claimed,
                // A result that isn't durable yet: its item hasn't ended.
                running: stages.running + stages.committing.saturating_sub(moved),
                retrying: stages.retrying,
                done: tally.done,
                failed: tally.failed,
                cancelled: tally.cancelled,
                ignored: self.counts.ignored,
            },
            devices: self.snapshot.devices.iter().map(|it| DeviceView::new(&self.state, it, &self.snapshot)).collect(),
            running: self
                .state
                .jobs()
                .filter(|job| !job.stage.leased().is_empty())
                .map(|job| self.running_view(job))
                .collect(),
            residents: self.state.residents().map(|(id, it)| self.resident_view(id, it)).collect(),
            held: self.held(),
            health: self.health.values().cloned().collect(),
            counters,
            api: None,
        }
    }

    fn resident_view(&self, id: ResidentId, resident: &Resident) -> ResidentView {
        let state = match resident.warmth {
            Warmth::Starting => "starting",
            Warmth::Ready { .. } if resident.jobs.is_empty() => "idle",
            Warmth::Ready { .. } => "busy",
            Warmth::Retiring => "retiring",
        };
        let jobs = resident.jobs.iter().filter_map(|(job, _)| self.state.job(*job));
        ResidentView {
            id: id.to_string(),
            route: resident.route.name.clone(),
            devices: resident.on.iter().map(|device| device.0.clone()).collect(),
            state: state.to_owned(),
            pid: resident.pid,
            served: resident.served,
            jobs: jobs.map(|job| job.record.dir().to_string()).collect(),
        }
    }

    /// Items that the scanner counts as ready and that are jobs already, or about to be: each counts once.
    fn on_their_way(&self) -> impl Iterator<Item = (CandidateKey, &Arc<Route>)> {
        let claiming = self.state.jobs().filter(|job| matches!(job.stage, Stage::Claiming));
        let keys = claiming.map(|job| {
            let record = &job.record;
            (CandidateKey { folder: record.folder.clone(), name: record.item_name() }, &record.route)
        });
        let taken = self.taken.iter().chain(&self.unheard).map(|it| (it.key.clone(), &it.route));
        keys.chain(taken)
    }

    /// What `/metrics` tells of the same moment.
    fn tallies(&self, counts: &Counts) -> Tallies {
        let mut routes: BTreeMap<String, RouteTally> = BTreeMap::new();
        for route in &self.config.routes {
            // In the order of the file: the first ones are told apart.
            self.metrics.routes.place(&route.name);
            routes.entry(route.name.clone()).or_default();
        }
        for RouteCounts { route, arriving, ready, held } in &self.counts.routes {
            let (arriving, ready, held) = (*arriving, *ready, *held);
            let waiting = RouteTally { arriving, ready, held, ..RouteTally::default() };
            routes.entry(route.clone()).or_default().add(waiting);
        }
        for (_, route) in self.on_their_way() {
            let tally = routes.entry(route.name.clone()).or_default();
            tally.ready = tally.ready.saturating_sub(1);
        }
        for job in self.state.jobs() {
            let tally = routes.entry(job.record.route.name.clone()).or_default();
            match job.stage {
                Stage::Claiming | Stage::Claimed { .. } => tally.claimed += 1,
                Stage::Retrying { .. } => tally.retrying += 1,
                _ => tally.running += 1,
            }
        }
        // In place before the first scrape can name them.
        routes.keys().for_each(|name| self.metrics.routes.place(name));
        let held: u64 = routes.values().map(|tally| tally.held).sum();
        let device = |reading: &Reading| DeviceTally {
            id: reading.id.to_string(),
            energy_joules: reading.energy_millijoules.map(|millijoules| millijoules as f64 / 1000.0),
            cordoned: self.state.cordon(&reading.id).map(|cordon| cordon.by),
        };
        Tallies {
            routes,
            unrouted: counts.held.saturating_sub(held),
            held: self.counts.held_for.clone(),
            devices: self.snapshot.devices.iter().map(device).collect(),
            scanned: self.counts.scanned,
        }
    }

    fn held(&self) -> Vec<HeldView> {
        let shown = |it: &crate::inbox::HeldItem| HeldView {
            name: it.key.name.escaped(),
            reason: crate::item::shown(&it.reason),
            since: it.since,
        };
        self.counts.held.iter().map(shown).collect()
    }

    /// Everything that hasn't ended: jobs by what they are doing, then what lies in the inbox.
    fn live(&self) -> Vec<Listed> {
        let mut rows: Vec<Listed> = self.state.jobs().take(LIVE).map(|job| self.job_row(job)).collect();
        for it in &self.counts.held {
            rows.push(Listed {
                reason: Some(crate::item::shown(&it.reason)),
                ..inbox_row("held", &it.key, None, it.route.clone())
            });
        }
        let offers = self.state.offers().flat_map(|(_, line)| line).map(|it| it.key.clone());
        let told: std::collections::HashSet<CandidateKey> =
            offers.chain(self.on_their_way().map(|(key, _)| key)).collect();
        for (route, line) in self.state.offers() {
            for candidate in line {
                let reason = plan::why_offer_waits(&self.state, &self.snapshot, candidate);
                let row = inbox_row("ready", &candidate.key, Some(candidate.arrived_at), Some(route.name.clone()));
                rows.push(Listed { reason: Some(reason), estimate: self.estimates.offer(&candidate.key), ..row });
            }
        }
        let info =
            |state: &'static str| move |it: &ItemInfo| inbox_row(state, &it.key, it.arrived_at, it.route.clone());
        rows.extend(self.counts.ready_names.iter().filter(|it| !told.contains(&it.key)).map(info("ready")));
        rows.extend(self.counts.arriving_names.iter().map(info("arriving")));
        rows.extend(self.counts.ignored_names.iter().map(info("ignored")));
        rows.truncate(LIVE);
        rows
    }

    fn job_row(&self, job: &Job) -> Listed {
        let record = &job.record;
        let reason = match job.stage {
            Stage::Claiming | Stage::Preparing { .. } | Stage::Claimed { .. } | Stage::Retrying { .. } => {
                Some(plan::why_waiting(&self.state, &self.snapshot, job))
            }
            _ => None,
        };
        Listed {
            id: Some(record.id.to_string()),
            job: Some(record.dir().to_string()),
            name: record.name.clone(),
            route: Some(record.route.name.clone()),
            state: job.stage.word().to_owned(),
            attempts: record.attempts.iter().filter(|it| it.started_at.is_some() || it.ended_at.is_some()).count()
                as u32,
            devices: job.devices().into_iter().map(|id| id.0).collect(),
            arrived_at: record.arrived_at,
            finished_at: None,
            reason,
            folder: record.folder.clone(),
            name_b64: Some(record.name_b64.clone()),
            estimate: self.estimates.job(record.id),
        }
    }

    fn running_view(&self, job: &Job) -> RunningView {
        let last = job.record.attempts.last();
        let progress = |it: &Progress| ProgressView { fraction: it.fraction, message: it.message.clone() };
        RunningView {
            id: job.record.id.to_string(),
            job: job.record.dir().to_string(),
            name: job.record.name.clone(),
            route: job.record.route.name.clone(),
            devices: job.devices().into_iter().map(|id| id.0).collect(),
            attempt: last.map_or(0, |attempt| attempt.n),
            pid: job.pid,
            started_at: last.and_then(|attempt| attempt.started_at),
            progress: job.progress.as_ref().map(progress),
            estimate: self.estimates.job(job.record.id),
        }
    }
}

fn inbox_row(
    state: &str,
    key: &crate::inbox::CandidateKey,
    arrived_at: Option<jiff::Timestamp>,
    route: Option<String>,
) -> Listed {
    Listed {
        id: None,
        job: None,
        name: key.name.escaped(),
        route,
        state: state.to_owned(),
        attempts: 0,
        devices: Vec::new(),
        arrived_at,
        finished_at: None,
        reason: None,
        folder: key.folder.clone(),
        name_b64: Some(key.name.base64()),
        estimate: None,
    }
}
