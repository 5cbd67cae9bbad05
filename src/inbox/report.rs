//! What the director is told of the whole: counts and health. Sent when changed, the counts at most ten times a second,
//! and never is the last change kept back.

use std::time::Duration;

use jiff::Timestamp;

use super::folder::{Folder, HELD, State};
use super::scanner::Core;
use super::{Counts, HELD_LISTED, HeldFor, HeldItem, ItemInfo, RouteCounts};
use crate::config;
use crate::health::{Check, What};
use crate::units::Moment;

const PACE: Duration = Duration::from_millis(100);

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Reported {
    counts: Option<Counts>,
    health: Vec<Check>,
    /// Something changed since.
    stale: bool,
    next: Moment,
}

impl Reported {
    /// Something that is counted may have changed.
    pub(super) fn touch(&mut self) {
        self.stale = true;
    }

    /// When the next counts are due.
    pub(super) fn due(&self) -> Option<Moment> {
        self.stale.then_some(self.next)
    }
}

impl Core {
    /// The counts, when they changed and it is time.
    pub(super) fn new_counts(&mut self) -> Option<Counts> {
        let now = self.now();
        let (scanned, drained) = (self.scanned, self.is_drained());
        let flipped =
            self.reported.counts.as_ref().is_none_or(|last| (last.scanned, last.drained) != (scanned, drained));
        if !(flipped || (self.reported.stale && self.reported.next <= now)) {
            return None;
        }
        let counts = Counts { scanned, drained, ..self.count() };
        self.reported.stale = false;
        self.reported.next = now + PACE;
        if self.reported.counts.as_ref() == Some(&counts) {
            return None;
        }
        self.reported.counts = Some(counts.clone());
        Some(counts)
    }

    /// In `--once` mode: whether all that counts is through.
    fn is_drained(&self) -> bool {
        let through = |folder: &Folder| {
            let tally = folder.tally;
            let open = tally.settling + tally.queued + tally.offered + tally.passing;
            let beyond: u64 = folder.lines.iter().map(|line| line.beyond).sum();
            // What would be read again isn't known to be through.
            let reading = folder.place.is_some() && (folder.is_scanning() || folder.scan_wanted);
            open == 0 && beyond == 0 && !reading && folder.lines.iter().all(super::line::Line::is_empty)
        };
        self.until_ns.is_some() && self.scanned && self.trouble.is_none() && self.folders.iter().all(through)
    }

    fn count(&self) -> Counts {
        let mut counts = Counts { taken: self.taken, ..Counts::default() };
        let mut held_for = [0; HeldFor::ALL.len()];
        for folder in &self.folders {
            let waiting: u64 = folder.lines.iter().map(|line| line.len() as u64 + line.beyond).sum();
            let census = &folder.census;
            counts.arriving += folder.tally.settling as u64;
            counts.ready += folder.tally.offered as u64 + waiting;
            counts.ignored += census.ignored.len() as u64 + census.ignored_beyond;
            counts.held_total += folder.tally.held as u64 + census.held_beyond;
            for (at, (line, of_route)) in folder.lines.iter().zip(&folder.of_routes).enumerate() {
                counts.routes.push(RouteCounts {
                    route: folder.router.route(at).name.clone(),
                    arriving: of_route.settling as u64,
                    ready: (line.offered + line.len()) as u64 + line.beyond,
                    held: of_route.held as u64,
                });
            }
            held_for.iter_mut().zip(folder.tally.held_for).for_each(|(sum, held)| *sum += held as u64);
            held_for[HeldFor::Beyond.place()] += census.held_beyond;
            let route_of = |route: usize| Some(folder.router.route(route).name.clone());
            let listed = |before: usize, more: usize| HELD_LISTED.min(before + more);
            let held = listed(counts.held.len(), folder.tally.held);
            let arriving = listed(counts.arriving_names.len(), folder.tally.settling);
            for (name, tracked) in &folder.items {
                // Tens of thousands may be known, and this runs ten times a second while they change.
                if counts.held.len() == held && counts.arriving_names.len() == arriving {
                    break;
                }
                match &tracked.state {
                    State::Held(held) if counts.held.len() < HELD_LISTED => counts.held.push(HeldItem {
                        key: folder.key(name),
                        reason: held.reason.to_string(),
                        since: held.since,
                        route: held.route.and_then(route_of),
                    }),
                    State::Settling { route, .. } if counts.arriving_names.len() < HELD_LISTED => {
                        let arrived_at = tracked.shape.arrived_at();
                        let info = ItemInfo { key: folder.key(name), arrived_at, route: route_of(*route) };
                        counts.arriving_names.push(info);
                    }
                    _ => {}
                }
            }
            for (route, line) in folder.lines.iter().enumerate() {
                let room = HELD_LISTED.saturating_sub(counts.ready_names.len());
                counts.ready_names.extend(line.leads().take(room).map(|lead| ItemInfo {
                    key: folder.key(&lead.name),
                    arrived_at: Timestamp::from_nanosecond(lead.ctime_ns.into()).ok(),
                    route: route_of(route),
                }));
            }
            let room = HELD_LISTED.saturating_sub(counts.ignored_names.len());
            counts.ignored_names.extend(census.ignored.iter().take(room).map(|(name, since)| ItemInfo {
                key: folder.key(name),
                arrived_at: *since,
                route: None,
            }));
        }
        counts.held_for = HeldFor::ALL.into_iter().zip(held_for).collect();
        // The table has no order of its own, and an unchanged list should be equal to itself.
        counts.held.sort_by(|a, b| (a.since, &a.key).cmp(&(b.since, &b.key)));
        counts.arriving_names.sort_by(|a, b| (a.arrived_at, &a.key).cmp(&(b.arrived_at, &b.key)));
        counts
    }

    /// The health, when it changed.
    pub(super) fn new_health(&mut self) -> Option<Vec<Check>> {
        let health = vec![self.inbox_health(), self.watch_health(), self.lease_health()];
        if health == self.reported.health {
            return None;
        }
        self.reported.health.clone_from(&health);
        Some(health)
    }

    fn inbox_health(&self) -> Check {
        if let Some(why) = &self.trouble {
            return Check::failed(What::Inbox, why.clone());
        }
        if let Some(folder) = self.folders.iter().find(|folder| folder.place.is_none() && self.was_looked_at()) {
            let shown = folder.shown();
            let words = match folder.is_foreign_link() {
                true => "is a link that somebody else made: it isn't followed; put a folder in its place",
                false => "is missing; make it",
            };
            return Check::degraded(What::Inbox, format!("the intake folder `{shown}` {words}"));
        }
        if let Some(folder) = self.folders.iter().find(|folder| self.is_on_another_mount(folder)) {
            let shown = folder.shown();
            let message =
                format!("the intake folder `{shown}` lies on another mount than the root: its items can't be claimed");
            return Check::degraded(What::Inbox, message);
        }
        if let Some(folder) = self.folders.iter().find(|folder| HELD <= folder.tally.held) {
            let shown = folder.shown();
            let message = format!("more than {HELD} items of `{shown}` are held; take away what isn't wanted");
            return Check::degraded(What::Inbox, message);
        }
        Check::ok(What::Inbox)
    }

    fn is_on_another_mount(&self, folder: &Folder) -> bool {
        let identity = |folder: &Folder| folder.place.as_ref().map(|place| place.identity);
        let inbox = self.folders.first().and_then(identity);
        inbox.zip(identity(folder)).is_some_and(|(inbox, it)| !it.is_on_mount_of(&inbox))
    }

    fn was_looked_at(&self) -> bool {
        self.next_tick != Moment::default()
    }

    fn watch_health(&self) -> Check {
        if let Some(why) = &self.watching.trouble {
            let every = self.setup.rules.poll_interval.as_secs_f64();
            let message = format!("{why}; the inbox is read every {every} s instead");
            return match self.setup.rules.watch {
                config::Watch::Events => Check::failed(What::Watch, message),
                config::Watch::Auto | config::Watch::Poll => Check::degraded(What::Watch, message),
            };
        }
        Check::ok(What::Watch)
    }

    fn lease_health(&self) -> Check {
        let remote = self.folders.iter().find_map(|folder| Some((folder, folder.place.as_ref()?.network?)));
        if let Some((folder, system)) = remote {
            let shown = folder.shown();
            let message =
                format!("`{shown}` lies on {system}: open writers can't be seen there, only quiet time tells");
            return Check::degraded(What::LeaseTest, message);
        }
        match &self.lease_trouble {
            Some(why) => Check::degraded(What::LeaseTest, why.clone()),
            None => Check::ok(What::LeaseTest),
        }
    }
}
