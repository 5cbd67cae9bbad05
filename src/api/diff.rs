//! What changed between two published views. Pure.

use std::collections::{HashMap, HashSet};

use super::journal::Page;
use super::told::{Director, Id, InInbox, More, Told};
use super::view::{Listed, RunningView, View};

/// Items that are told one by one at a time; of more only the number.
pub(super) const ITEMS: usize = 100;

/// Two rows of the same key are one item.
type Key<'a> = (Option<&'a str>, &'a str, &'a str);

fn key(row: &Listed) -> Key<'_> {
    match &row.id {
        Some(id) => (Some(id), "", ""),
        None => (None, &row.folder, &row.name),
    }
}

/// Everything that is to be told, in the order in which it can be taken in. `ended` ended since `old` was published.
pub(super) fn changes(old: &View, new: &View, ended: Page) -> Vec<Told> {
    let mut told = Vec::new();
    let (a, b) = (&old.status, &new.status);
    if (a.state, a.mode) != (b.state, b.mode) {
        told.push(Told::Director(Director { state: b.state, mode: b.mode }));
    }
    for device in b.devices.iter().filter(|it| !a.devices.contains(it)) {
        told.push(Told::Device(device.clone()));
    }
    for device in a.devices.iter().filter(|it| !b.devices.iter().any(|other| other.id == it.id)) {
        told.push(Told::DeviceGone(Id { id: device.id.clone() }));
    }
    items(old, new, ended, &mut told);
    let before: HashMap<&str, _> = a.running.iter().map(|it| (&*it.id, it)).collect();
    let is_news = |it: &&RunningView| {
        before.get(&*it.id).is_none_or(|known| **known != RunningView { estimate: known.estimate, ..(*it).clone() })
    };
    for running in b.running.iter().filter(is_news) {
        told.push(Told::Running(running.clone()));
    }
    if a.residents != b.residents {
        told.push(Told::Residents(b.residents.clone()));
    }
    for check in b.health.iter().filter(|it| !a.health.contains(it)) {
        told.push(Told::Health(check.clone()));
    }
    if a.counters != b.counters {
        told.push(Told::Counters(b.counters.clone()));
    }
    if a.counts != b.counts {
        told.push(Told::Counts(b.counts));
    }
    told
}

fn items(old: &View, new: &View, ended: Page, told: &mut Vec<Told>) {
    let before: HashMap<Key<'_>, &Listed> = old.live.iter().map(|row| (key(row), row)).collect();
    let now: HashSet<Key<'_>> = new.live.iter().map(key).collect();
    let gone = old.live.iter().filter(|row| row.id.is_none() && !now.contains(&key(row)));
    let (mut moved, mut reworded) = (Vec::new(), Vec::new());
    for row in &new.live {
        match before.get(&key(row)) {
            Some(known) if *known == row || is_reestimated(known, row) => {}
            Some(known) if is_reworded(known, row) => reworded.push(row),
            _ => moved.push(row),
        }
    }
    // What matters most comes first: another state before another word for why it waits. Only what is told is copied.
    let gone: Vec<&Listed> = gone.collect();
    let all = gone.len() + moved.len() + ended.rows.len() + reworded.len();
    let items = moved.into_iter().chain(&ended.rows).chain(reworded);
    let gone = gone.into_iter().map(|row| {
        let Listed { folder, name, name_b64, .. } = row.clone();
        Told::Gone(InInbox { folder, name, name_b64 })
    });
    told.extend(gone.chain(items.cloned().map(Told::Item)).take(ITEMS));
    let more = all.saturating_sub(ITEMS) as u64 + ended.more;
    if more > 0 {
        told.push(Told::Items(More { more }));
    }
}

/// Nothing but its estimate has changed: that moves all the time, and is no news.
fn is_reestimated(known: &Listed, row: &Listed) -> bool {
    known.estimate != row.estimate && *known == Listed { estimate: known.estimate, ..row.clone() }
}

/// Nothing but its reason, or its estimate too, has changed.
fn is_reworded(known: &Listed, row: &Listed) -> bool {
    let rest = |row: &Listed| (row.attempts, row.finished_at);
    known.reason != row.reason && known.state == row.state && known.devices == row.devices && rest(known) == rest(row)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{id, view};
    use super::*;
    use crate::health::{Check, What};

    fn job(n: u128, state: &str) -> Listed {
        Listed { id: Some(id(n).to_string()), name: format!("{n}"), state: state.to_owned(), ..Listed::empty() }
    }

    fn item(name: &str, state: &str, reason: &str) -> Listed {
        let reason = Some(reason.to_owned()).filter(|it| !it.is_empty());
        Listed { name: name.to_owned(), state: state.to_owned(), reason, ..Listed::empty() }
    }

    /// `event:what` of all that is told.
    fn said(told: &[Told]) -> String {
        let word = |told: &Told| match told {
            Told::Item(row) => format!("{} {}", row.name, row.state),
            Told::Gone(it) => format!("{} gone", it.name),
            Told::Items(more) => format!("{} more", more.more),
            other => other.frame().0,
        };
        told.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn each_change_is_told_once_and_in_an_order_that_can_be_taken_in() {
        let check = |old: Vec<Listed>, new: Vec<Listed>, ended: Vec<Listed>, expected: &str| {
            let told = changes(&view(1, old), &view(1, new), Page { rows: ended, more: 0 });
            assert_eq!(said(&told), expected);
        };
        check(vec![], vec![], vec![], "");
        check(vec![job(1, "running")], vec![job(1, "running")], vec![], "");
        check(vec![job(1, "claimed")], vec![job(1, "running")], vec![], "1 running");
        check(vec![item("a", "ready", "")], vec![job(1, "claimed")], vec![], "a gone, 1 claimed");
        check(vec![job(1, "running")], vec![], vec![job(1, "done")], "1 done");
        check(vec![], vec![], vec![job(1, "failed")], "1 failed");
        check(vec![], vec![item("a", "held", "x")], vec![], "a held");
        check(
            vec![item("a", "ready", "x"), item("b", "arriving", "")],
            vec![item("a", "ready", "y"), item("b", "ready", "")],
            vec![],
            "b ready, a ready",
        );
    }

    #[test]
    fn a_storm_is_told_as_a_number() {
        let rows = |state: &str| (0..1000).map(|n| job(n, state)).collect::<Vec<_>>();
        let told = changes(&view(1, rows("claimed")), &view(1, rows("running")), Page { rows: vec![], more: 7 });
        assert_eq!((told.len(), &told[ITEMS]), (ITEMS + 1, &Told::Items(More { more: 907 })));
    }

    #[test]
    fn what_isnt_an_item_is_told_too() {
        let old = view(1, vec![]);
        let mut new = view(2, vec![]);
        new.status.state = crate::api::view::DirectorState::Paused;
        new.status.health.push(Check::degraded(What::Space, "low"));
        new.status.counters.add("words", 3.0);
        assert_eq!(said(&changes(&old, &new, Page::default())), "director, health, counters, counts");
        assert_eq!(said(&changes(&new, &new, Page::default())), "");
    }
}
