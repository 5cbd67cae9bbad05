//! One scrape: which metrics there are, and where each is read. What the view tells is of one moment, the counts are as
//! they stand.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::Registry;

use super::page::{Family, Labels, Page};
use super::tally::RouteTally;
use super::{Metrics, RouteCounts};
use crate::api::View;
use crate::api::view::{DeviceView, DirectorState};
use crate::devices::{CordonBy, DeviceKind, HostMode, Verdict};
use crate::health::Condition;
use std::sync::Arc;

/// How a scrape is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// Prometheus' own of before, for programs that ask for nothing newer.
    Text,
}

impl Format {
    /// What a client gets that sent this `Accept`.
    pub fn accepted(accept: Option<&str>) -> Format {
        let wants = |what: &str| accept.is_some_and(|accept| accept.contains(what));
        if wants("text/plain") && !wants("application/openmetrics-text") { Format::Text } else { Format::OpenMetrics }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The whole exposition.
pub fn scrape(
    metrics: &Arc<Metrics>,
    view: &Arc<View>,
    uptime: Duration,
    format: Format,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("gamdok");
    registry.register_collector(Box::new(Scrape { metrics: metrics.clone(), view: view.clone(), uptime }));
    let mut page = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut page, &registry)?,
        Format::Text => prometheus_text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

#[derive(Debug)]
struct Scrape {
    metrics: Arc<Metrics>,
    view: Arc<View>,
    uptime: Duration,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.director(&mut page)?;
        self.items(&mut page)?;
        self.attempts(&mut page)?;
        self.devices(&mut page)?;
        self.parts(&mut page)?;
        self.interface(&mut page)
    }
}

const fn family(name: &'static str, unit: &'static str, help: &'static str) -> Family {
    Family { name, unit, help }
}

fn label<'l>(key: &'static str, value: impl Into<Cow<'l, str>>) -> Labels<'l> {
    vec![(key, value.into())]
}

fn labels<'l, const N: usize>(pairs: [(&'static str, &'l str); N]) -> Labels<'l> {
    pairs.into_iter().map(|(key, value)| (key, Cow::Borrowed(value))).collect()
}

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// What holds for the whole, without labels.
fn one<V>(value: V) -> [(Labels<'static>, V); 1] {
    [(Vec::new(), value)]
}

impl Scrape {
    fn director(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = &self.view.status;
        page.info(family("build", "", "The version of gamdok"), labels([("version", &status.version)]))?;
        let mode = match status.mode {
            HostMode::Gpu => "gpu",
            HostMode::Cpu => "cpu",
            HostMode::Sim => "sim",
        };
        page.info(
            family("host", "", "What work runs on here: gpu, cpu, or sim for simulated GPUs"),
            labels([("mode", mode)]),
        )?;
        let uptime = family("uptime", "seconds", "Time since the director started");
        page.gauges(uptime, one(self.uptime.as_secs_f64()))?;
        let state = match status.state {
            DirectorState::Running => "running",
            DirectorState::Paused => "paused",
            DirectorState::Draining => "draining",
            DirectorState::Stopped => "stopped",
        };
        let states = family("director_state", "", "1 for what the director is about, 0 for the others");
        page.gauges(states, Page::one_of(Vec::new(), "state", state, &["running", "paused", "draining"]))?;
        let health = family("health", "", "1 for how a part of the director is, 0 for the other states");
        let rows = status.health.iter().flat_map(|check| {
            let word = match check.state {
                Condition::Ok => "ok",
                Condition::Degraded => "degraded",
                Condition::Failed => "failed",
            };
            Page::one_of(label("part", check.what.as_str()), "state", word, &["ok", "degraded", "failed"])
        });
        page.gauges(health, rows)
    }

    fn items(&self, page: &mut Page<'_>) -> fmt::Result {
        let (counts, tallies) = (&self.view.status.counts, &self.view.tallies);
        // Routes beyond the bound are one.
        let mut routes: BTreeMap<&str, RouteTally> = BTreeMap::new();
        for (name, tally) in &tallies.routes {
            routes.entry(self.metrics.routes.label(name)).or_default().add(*tally);
        }
        let scanned = |state: &str| tallies.scanned || matches!(state, "claimed" | "running" | "retrying");
        let of_route = routes.iter().flat_map(|(route, tally)| {
            tally.states().map(|(state, count)| (labels([("route", route), ("state", state)]), count))
        });
        let unrouted = [("held", tallies.unrouted), ("ignored", counts.ignored)];
        let rows = of_route.chain(unrouted.map(|(state, count)| (label("state", state), count)));
        let rows = rows.filter(|(labels, _)| labels.last().is_some_and(|(_, state)| scanned(state)));
        page.gauges(
            family("items", "", "Items that have not ended, by route and state; without a route: matched by none"),
            rows,
        )?;

        let held =
            tallies.held.iter().filter(|_| tallies.scanned).map(|(why, count)| (label("reason", why.word()), *count));
        page.gauges(family("items_held", "", "Items in the inbox that can not be taken, by the kind of reason"), held)?;

        let kept = [("done", counts.done), ("failed", counts.failed), ("cancelled", counts.cancelled)];
        let kept = kept.map(|(outcome, count)| (labels([("outcome", outcome)]), count));
        page.gauges(family("jobs_kept", "", "Directories of ended items in done/ and failed/, by outcome"), kept)?;

        let claimed = self.of_routes(|counts| read(&counts.claimed));
        page.counters(family("items_claimed", "", "Items taken out of the inbox"), claimed)?;
        let ended = self.metrics.routes.all().flat_map(|counts| {
            counts.ended().into_iter().map(|(outcome, reason, count)| {
                let mut labels = labels([("route", counts.name()), ("outcome", outcome.as_str())]);
                labels.extend(reason.map(|reason| ("reason", Cow::Borrowed(reason.as_str()))));
                (labels, count)
            })
        });
        page.counters(family("items_ended", "", "Items that ended, by outcome and the reason of result.json"), ended)?;
        let waiting =
            family("item_waiting", "seconds", "From an item's arrival in the inbox to the start of its first attempt");
        page.histograms(waiting, self.of_routes(|counts| counts.waiting.read()))
    }

    fn attempts(&self, page: &mut Page<'_>) -> fmt::Result {
        let started = self.of_routes(|counts| read(&counts.started));
        page.counters(family("attempts_started", "", "Attempts that began to run"), started)?;
        let running = family("attempt_running", "seconds", "How long attempts ran");
        page.histograms(running, self.of_routes(|counts| counts.running.read()))?;
        let retries = self.metrics.routes.all().flat_map(|counts| {
            counts.retries().into_iter().map(|(reason, count)| {
                let mut labels = labels([("route", counts.name())]);
                labels.extend(reason.map(|reason| ("reason", Cow::Borrowed(reason.as_str()))));
                (labels, count)
            })
        });
        page.counters(
            family("retries", "", "Attempts that failed and are followed by another, by the reason"),
            retries,
        )?;
        let gap = family(
            "dispatch_gap",
            "seconds",
            "From the end of a worker on a device to the next start there, while items for it waited; not of resident workers",
        );
        page.histograms(gap, one(self.metrics.gaps.read()))?;
        let mut residents: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for resident in &self.view.status.residents {
            *residents.entry((self.metrics.routes.label(&resident.route), &resident.state)).or_default() += 1;
        }
        let rows =
            residents.into_iter().map(|((route, state), count)| (labels([("route", route), ("state", state)]), count));
        page.gauges(family("resident_workers", "", "Resident workers, by route and what they are about"), rows)
    }

    fn devices(&self, page: &mut Page<'_>) -> fmt::Result {
        let devices = &self.view.status.devices;
        let of = |device: &DeviceView| vec![("device", Cow::Owned(device.id.clone()))];
        let info = family("device_info", "", "Always 1: what a device is called and where it stands");
        let rows = devices.iter().map(|device| {
            let kind = match device.kind {
                DeviceKind::Gpu => "gpu",
                DeviceKind::Mig => "mig",
                DeviceKind::Cpu => "cpu",
                DeviceKind::Sim => "sim",
            };
            let mut labels = of(device);
            labels.extend(device.index.map(|index| ("index", Cow::Owned(index.to_string()))));
            labels.push(("kind", Cow::Borrowed(kind)));
            labels.push(("name", Cow::Borrowed(device.name.as_str())));
            (labels, 1_u64)
        });
        page.gauges(info, rows)?;
        let verdicts = Verdict::WORDS;
        let rows = devices.iter().flat_map(|device| Page::one_of(of(device), "verdict", &device.verdict, &verdicts));
        page.gauges(family("device_verdict", "", "1 for the verdict on a device, 0 for the others"), rows)?;
        let rows = self.view.tallies.devices.iter().flat_map(|device| {
            let by = [("hand", CordonBy::Hand), ("failures", CordonBy::Failures)];
            by.map(|(word, by)| {
                (labels([("device", &device.id), ("by", word)]), u64::from(device.cordoned == Some(by)))
            })
        });
        page.gauges(
            family("device_cordoned", "", "1 while a device is cordoned, by a hand or since items failed on it"),
            rows,
        )?;
        let every = |value: fn(&DeviceView) -> f64| devices.iter().map(move |device| (of(device), value(device)));
        let known = |value: fn(&DeviceView) -> Option<f64>| {
            devices.iter().filter_map(move |device| Some((of(device), value(device)?)))
        };
        page.gauges(family("device_slots", "", "Workers that a device may have at once"), every(|it| it.slots.into()))?;
        page.gauges(
            family("device_slots_taken", "", "Leases on a device: slots given to attempts or resident workers"),
            every(|it| it.taken.into()),
        )?;
        let memory = family("device_memory_size", "bytes", "Memory of a device");
        page.gauges(memory, known(|it| it.memory_total.map(|bytes| bytes as f64)))?;
        let used = family("device_memory_used", "bytes", "Memory of a device in use, by anybody");
        page.gauges(used, known(|it| it.memory_used.map(|bytes| bytes as f64)))?;
        let busy =
            family("device_utilization", "ratio", "Share of the time in which a device was busy, as the driver says");
        page.gauges(busy, known(|it| it.utilization.map(|percent| f64::from(percent) / 100.0)))?;
        let warm = family("device_temperature", "celsius", "Temperature of a device");
        page.gauges(warm, known(|it| it.temperature.map(f64::from)))?;
        page.gauges(family("device_power", "watts", "Power that a device draws"), known(|it| it.power_w))?;
        let energy = family(
            "device_energy",
            "joules",
            "Energy that a board has used since its driver was loaded; read while work runs on it",
        );
        let rows = self.view.tallies.devices.iter();
        page.counters(energy, rows.filter_map(|it| Some((label("device", it.id.as_str()), it.energy_joules?))))
    }

    fn parts(&self, page: &mut Page<'_>) -> fmt::Result {
        let sources = &self.metrics.sources;
        let scan = family("scan", "seconds", "How long it took to read an intake folder whole");
        page.histograms(scan, one(sources.scans.took.read()))?;
        let round = family("spool_round", "seconds", "One round of claims and finishes, made durable together");
        page.histograms(round, one(sources.spool.rounds.read()))?;
        let sync = family(
            "spool_sync",
            "seconds",
            "The syncs of one round: whole by syncfs, each by fsync of its files and directories",
        );
        let rows = [("whole", &sources.spool.whole), ("each", &sources.spool.each)];
        page.histograms(sync, rows.map(|(how, took)| (labels([("how", how)]), took.read())))?;
        if let Some(room) = sources.spool.room() {
            page.gauges(family("space_free", "bytes", "Room on the root's file system, as last seen"), one(room.free))?;
            page.gauges(family("space_size", "bytes", "Size of the root's file system"), one(room.size))?;
            let need = family("space_needed", "bytes", "Room below which nothing is claimed");
            page.gauges(need, one(room.needed))?;
        }
        let ledger = &sources.ledger;
        page.gauges(
            family("ledger_behind_entries", "", "Entries that the ledger has not written yet"),
            one(ledger.behind()),
        )?;
        let dropped = family(
            "ledger_dropped_entries",
            "",
            "Entries that found no room; the directories tell the ledger what they were",
        );
        page.counters(dropped, one(ledger.dropped()))?;
        let notifier = &sources.notifier;
        let messages = [("sent", &notifier.sent), ("failed", &notifier.failed)];
        let rows = messages.map(|(outcome, count)| (labels([("outcome", outcome)]), read(count)));
        page.counters(family("notify_messages", "", "Tries to tell a [[notify]] something, by how they went"), rows)?;
        let lost = family("notify_lost", "", "Happenings that a [[notify]] was never told");
        page.counters(lost, one(read(&notifier.lost)))
    }

    fn interface(&self, page: &mut Page<'_>) -> fmt::Result {
        let clients = &self.metrics.clients;
        page.gauges(family("api_clients", "", "Clients connected to the interface"), one(clients.connected()))?;
        page.counters(
            family("api_clients_accepted", "", "Clients that connected to the interface"),
            one(clients.accepted()),
        )?;
        page.counters(
            family("api_clients_refused", "", "Clients that could not be let in, for want of descriptors"),
            one(clients.refused()),
        )?;
        let cut = clients.cut().map(|(why, count)| (labels([("reason", why.word())]), count));
        page.counters(
            family("api_clients_cut", "", "Clients that were cut: slow ones, and those that sent no HTTP"),
            cut,
        )?;
        let responses = clients.responses().map(|(class, count)| (labels([("class", class)]), count));
        page.counters(family("api_responses", "", "Answers of the interface, by the class of their code"), responses)?;
        let dropped = [(labels([("queue", "program")]), read(&self.metrics.sources.events_dropped))];
        page.counters(family("events_dropped", "", "Events lost by subscribers that did not read them"), dropped)
    }

    /// One sample of each route.
    fn of_routes<V>(&self, value: impl Fn(&RouteCounts) -> V) -> impl Iterator<Item = (Labels<'_>, V)> {
        self.metrics.routes.all().map(move |counts| (labels([("route", counts.name())]), value(counts)))
    }
}
