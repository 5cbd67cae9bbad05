//! When an item is ready. Pure: facts and the time in, a judgement out. Facts that cost something (a lease, a walk, a
//! hash, a program) are asked for only when all cheaper ones speak for the item.
//!
//! Invariants: an item is never ready while a writer is known to have it open; what wasn't renamed in is ready only after
//! `settle` without a change, measured by its ctime (which nobody can set) or between two looks on our own clock.

use std::time::Duration;

use super::HeldFor;
use crate::config;
use crate::item::{ItemKind, Signature};
use crate::units::{Bytes, Moment};

const SETTLE_LOCAL: Duration = Duration::from_secs(2);
const SETTLE_NETWORK: Duration = Duration::from_secs(15);
const SETTLE_DIRECTORY: Duration = Duration::from_secs(30);
/// Items that keep changing, or keep failing a condition, are looked at less and less often, down to this.
const SLOWEST: Duration = Duration::from_secs(60);
/// Between two looks at an item that somebody writes to, at least.
const QUICKEST: Duration = Duration::from_millis(100);
/// A file with several links is taken after this: whoever publishes by `link` and `unlink` has two for an instant.
const LINKED: Duration = Duration::from_secs(60);
/// A validator's refusal stands this long, unless the item changes.
const REFUSED: Duration = Duration::from_secs(600);

/// How we came to know of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Its name appeared complete, by a rename we were told of.
    RenamedIn,
    /// A scan found it.
    Scanned,
    /// It was judged ready before, and waited for its turn.
    Settled,
    /// Created, written, linked: it may be in the middle of something.
    Touched,
}

/// Whether somebody has a file open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    None,
    Present,
    /// The lease test isn't allowed here.
    Unknowable,
}

/// What a manifest or a validator says of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    NotYet(String),
    Refused(String),
}

/// What a look has found so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) kind: ItemKind,
    pub(super) signature: Signature,
    /// The latest ctime of the item and all in it.
    pub(super) newest_ns: i128,
    /// A directory's content is in the signature.
    pub(super) walked: bool,
    pub(super) writer: Option<Writer>,
    pub(super) marker: Option<bool>,
}

/// The times a judgement is made at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) moment: Moment,
    /// The wall clock, in nanoseconds since the epoch: the clock of ctimes.
    pub(super) wall_ns: i128,
    /// How long the wall clock is known to have run without a jump; an age can't be believed beyond it.
    pub(super) steady: Duration,
}

/// What an item must meet.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) settle: Duration,
    /// Its ctimes are another host's.
    pub(super) network: bool,
    pub(super) min_bytes: Bytes,
    pub(super) marker: Option<String>,
    pub(super) manifest: bool,
    pub(super) validator: bool,
}

impl Rules {
    pub(super) fn new(inbox: &config::Inbox, ready: &config::Ready, kind: ItemKind, network: bool) -> Rules {
        let by_place = match kind {
            ItemKind::Directory => SETTLE_DIRECTORY,
            ItemKind::File if network => SETTLE_NETWORK,
            ItemKind::File => SETTLE_LOCAL,
        };
        Rules {
            settle: ready.settle.or(inbox.settle).unwrap_or(by_place),
            network,
            min_bytes: ready.min_bytes,
            marker: ready.marker.clone(),
            manifest: ready.manifest,
            validator: !ready.validator.is_empty(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Judgement {
    Ready,
    /// Find this out and ask again.
    Need(Need),
    /// Look again then, or when an event speaks of it.
    Wait(Moment),
    Held {
        why: HeldFor,
        reason: String,
        retry_at: Moment,
        /// It will be taken without anybody's doing.
        passing: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Tree,
    Writer,
    Marker,
    Manifest,
    Validator,
}

/// What is remembered of an item between looks.
#[derive(Clone, Debug)]
pub(super) struct Track {
    origin: Origin,
    /// What it looked like last, and since when.
    seen: Option<(Signature, Moment)>,
    /// Looks in a row that found it changed or written to.
    changes: u32,
    /// Looks in a row that found it short of a condition.
    shortfalls: u32,
    linked_since: Option<Moment>,
    /// With the signature they speak of.
    manifest: Option<(Signature, Verdict)>,
    validator: Option<(Signature, Verdict)>,
}

impl Track {
    pub(super) fn new(origin: Origin) -> Track {
        Track { origin, seen: None, changes: 0, shortfalls: 0, linked_since: None, manifest: None, validator: None }
    }

    /// An event spoke of it: its quiet time starts anew, and it may be a new item under an old name.
    pub(super) fn touch(&mut self, origin: Origin) {
        self.origin = origin;
        self.seen = None;
        self.changes = 0;
        self.shortfalls = 0;
        self.forget_refusals();
    }

    /// What was refused may be better now.
    pub(super) fn forget_refusals(&mut self) {
        self.manifest.take_if(|(_, verdict)| *verdict != Verdict::Passed);
        self.validator.take_if(|(_, verdict)| *verdict != Verdict::Passed);
    }

    /// Takes in what a check said of the item when it had this signature.
    pub(super) fn learn(&mut self, check: Need, signature: Signature, verdict: Verdict) {
        match check {
            Need::Manifest => self.manifest = Some((signature, verdict)),
            Need::Validator => self.validator = Some((signature, verdict)),
            Need::Tree | Need::Writer | Need::Marker => {}
        }
    }

    pub(super) fn judge(&mut self, facts: &Facts, rules: &Rules, now: Now) -> Judgement {
        if facts.kind == ItemKind::Directory && !facts.walked {
            return Judgement::Need(Need::Tree);
        }
        let since = self.observe(facts.signature, now.moment);
        if let Some(held) = self.judge_links(facts, rules, now) {
            return held;
        }
        if let Some(wait) = self.judge_quiet(facts, rules, now, since) {
            return wait;
        }
        if facts.kind == ItemKind::File
            && let Some(wait) = self.judge_writer(facts, rules, now, since)
        {
            return wait;
        }
        self.judge_conditions(facts, rules, now)
    }

    /// Since when it has looked like this.
    fn observe(&mut self, signature: Signature, now: Moment) -> Moment {
        match self.seen {
            Some((before, since)) if before == signature => since,
            before => {
                if before.is_some() {
                    self.origin = Origin::Touched;
                    self.changes += 1;
                    self.shortfalls = 0;
                }
                self.seen = Some((signature, now));
                now
            }
        }
    }

    fn judge_links(&mut self, facts: &Facts, rules: &Rules, now: Now) -> Option<Judgement> {
        if facts.kind != ItemKind::File || facts.signature.nlink < 2 {
            self.linked_since = None;
            return None;
        }
        let since = *self.linked_since.get_or_insert(now.moment);
        // A link sets the ctime, so an old one tells that the links are old too.
        let waited = now.moment.since(since).max(age(facts.newest_ns, rules, now).unwrap_or_default());
        let left = LINKED.checked_sub(waited).filter(|left| !left.is_zero())?;
        let retry_at = now.moment + left.min((waited / 2).max(Duration::from_secs(1)));
        let reason = format!(
            "it has {} hard links, so its producer may still be publishing it; taken within a minute",
            facts.signature.nlink
        );
        Some(Judgement::Held { why: HeldFor::HardLinks, reason, retry_at, passing: true })
    }

    fn judge_quiet(&self, facts: &Facts, rules: &Rules, now: Now, since: Moment) -> Option<Judgement> {
        let calm = rules.settle <= now.moment.since(since);
        let age = age(facts.newest_ns, rules, now);
        let old = age.is_some_and(|age| rules.settle <= age);
        let quiet = match (self.origin, facts.kind) {
            (Origin::RenamedIn, _) | (Origin::Settled, ItemKind::File) => true,
            // What happened deep inside doesn't show at the top; on a network file system only the claim tells.
            (Origin::Settled, ItemKind::Directory) => old || calm || rules.network,
            (Origin::Scanned, _) => old || calm,
            (Origin::Touched, _) => calm,
        };
        if quiet {
            return None;
        }
        let by_looks = since + slowed(rules.settle, self.changes);
        let by_age = age.filter(|_| self.origin != Origin::Touched).map(|age| now.moment + (rules.settle - age));
        Some(Judgement::Wait(by_age.map_or(by_looks, |at| at.min(by_looks))))
    }

    fn judge_writer(&mut self, facts: &Facts, rules: &Rules, now: Now, since: Moment) -> Option<Judgement> {
        match facts.writer {
            None => Some(Judgement::Need(Need::Writer)),
            Some(Writer::None) => None,
            Some(Writer::Present) => {
                let wait = slowed(rules.settle, self.changes).max(QUICKEST);
                self.changes += 1;
                self.origin = Origin::Touched;
                // Quiet time counts from the last writer on.
                self.seen = Some((facts.signature, now.moment));
                Some(Judgement::Wait(now.moment + wait))
            }
            // Nothing vouches for the one who renamed it, so time has to.
            Some(Writer::Unknowable) if self.origin == Origin::RenamedIn => {
                self.origin = Origin::Touched;
                let calm = now.moment.since(since);
                (calm < rules.settle).then(|| Judgement::Wait(since + rules.settle))
            }
            Some(Writer::Unknowable) => None,
        }
    }

    fn judge_conditions(&mut self, facts: &Facts, rules: &Rules, now: Now) -> Judgement {
        if facts.signature.size < rules.min_bytes.0 {
            let size = Bytes(facts.signature.size);
            let reason = format!("it has {size} and its route asks for at least {}", rules.min_bytes);
            return self.hold(HeldFor::TooSmall, reason, Duration::from_secs(5), now);
        }
        if let Some(marker) = &rules.marker {
            match facts.marker {
                None => return Judgement::Need(Need::Marker),
                Some(true) => {}
                Some(false) => {
                    let reason = format!("it waits for its marker, a file of the same name with `{marker}` at its end");
                    return self.hold(HeldFor::Marker, reason, Duration::from_secs(5), now);
                }
            }
        }
        let asked =
            [(rules.manifest, Need::Manifest, &self.manifest), (rules.validator, Need::Validator, &self.validator)];
        let mut refusal = None;
        for (_, need, said) in asked.into_iter().filter(|(asked, ..)| *asked) {
            match said {
                Some((of, Verdict::Passed)) if *of == facts.signature => {}
                Some((of, Verdict::NotYet(why))) if *of == facts.signature => {
                    refusal = Some((need, why.clone(), Duration::from_secs(5)));
                }
                Some((of, Verdict::Refused(why))) if *of == facts.signature => {
                    refusal = Some((need, why.clone(), REFUSED));
                }
                _ => return Judgement::Need(need),
            }
            if refusal.is_some() {
                break;
            }
        }
        match refusal {
            None => Judgement::Ready,
            Some((Need::Manifest, why, again)) => self.hold(HeldFor::Manifest, why, again, now),
            Some((_, why, again)) => self.hold(HeldFor::Validator, why, again, now),
        }
    }

    fn hold(&mut self, why: HeldFor, reason: String, first: Duration, now: Now) -> Judgement {
        let retry_at = now.moment + slowed(first, self.shortfalls);
        self.shortfalls += 1;
        Judgement::Held { why, reason, retry_at, passing: false }
    }
}

/// `first`, doubled with each look in vain, at most a minute (or `first`, if that is more).
fn slowed(first: Duration, in_vain: u32) -> Duration {
    first.saturating_mul(1 << in_vain.min(16)).min(SLOWEST.max(first))
}

/// How old the latest change is; nothing where that can't be told: another host's clock, a ctime that lies ahead.
fn age(ctime_ns: i128, rules: &Rules, now: Now) -> Option<Duration> {
    let age = u64::try_from(now.wall_ns - ctime_ns).ok().filter(|_| !rules.network)?;
    Some(Duration::from_nanos(age).min(now.steady))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: ItemKind = ItemKind::File;
    const DIRECTORY: ItemKind = ItemKind::Directory;
    const FREE: Writer = Writer::None;
    const WALL: i128 = 1_700_000_000_000_000_000;

    /// One look: when (ms), which version of the content, how old its ctime was at 0 (ms), and whether a writer is there.
    type Step<'a> = (u64, u64, i64, Writer, &'a str);

    fn rules(kind: ItemKind, network: bool) -> Rules {
        let inbox = config::Inbox {
            settle: None,
            ignore: Vec::new(),
            watch: config::Watch::Auto,
            poll_interval: Duration::from_secs(5),
        };
        Rules::new(&inbox, &config::Ready::default(), kind, network)
    }

    fn facts(kind: ItemKind, version: u64, age_ms: i64) -> Facts {
        let newest_ns = WALL - i128::from(age_ms) * 1_000_000;
        let signature = Signature {
            dev: 1,
            ino: 7,
            size: version,
            mtime_ns: 0,
            ctime_ns: newest_ns,
            blocks: 0,
            nlink: 1,
            digest: 0,
            entries: 0,
        };
        Facts { kind, signature, newest_ns, walked: true, writer: None, marker: None }
    }

    fn shown(judgement: &Judgement) -> String {
        match judgement {
            Judgement::Ready => "ready".to_owned(),
            Judgement::Need(need) => format!("need {need:?}").to_lowercase(),
            Judgement::Wait(at) => format!("wait {}", at.0.as_millis()),
            Judgement::Held { retry_at, passing, .. } => {
                format!("held {}{}", retry_at.0.as_millis(), if *passing { " passing" } else { "" })
            }
        }
    }

    fn at(ms: u64) -> Now {
        let span = Duration::from_millis(ms);
        Now {
            moment: Moment(span),
            wall_ns: WALL + i128::try_from(span.as_nanos()).unwrap(),
            steady: Duration::from_secs(1 << 30),
        }
    }

    /// Judges, answering the question for a writer from the step.
    fn judged(track: &mut Track, facts: Facts, writer: Writer, rules: &Rules, now: Now) -> String {
        let mut judgement = track.judge(&facts, rules, now);
        if judgement == Judgement::Need(Need::Writer) {
            judgement = track.judge(&Facts { writer: Some(writer), ..facts }, rules, now);
        }
        shown(&judgement)
    }

    fn check(origin: Origin, kind: ItemKind, network: bool, steps: &[Step<'_>]) {
        let rules = rules(kind, network);
        let mut track = Track::new(origin);
        for &(ms, version, age_ms, writer, expected) in steps {
            let found = judged(&mut track, facts(kind, version, age_ms), writer, &rules, at(ms));
            assert_eq!(found, expected, "{origin:?} {kind:?} network={network} at {ms} ms of {steps:?}");
        }
    }

    #[test]
    fn what_was_renamed_in_is_ready_at_once_when_nobody_writes() {
        check(Origin::RenamedIn, FILE, false, &[(0, 1, 0, FREE, "ready")]);
        check(Origin::RenamedIn, DIRECTORY, false, &[(0, 1, 0, FREE, "ready")]);
        check(Origin::RenamedIn, DIRECTORY, true, &[(0, 1, 0, FREE, "ready")]);
    }

    #[test]
    fn what_was_renamed_in_under_a_writer_settles_like_the_rest() {
        let writes = Writer::Present;
        check(Origin::RenamedIn, FILE, false, &[(0, 1, 0, writes, "wait 2000"), (2000, 1, 0, FREE, "ready")]);
        check(Origin::RenamedIn, FILE, false, &[(0, 1, 0, writes, "wait 2000"), (2000, 2, -1999, FREE, "wait 10000")]);
    }

    #[test]
    fn where_no_lease_is_possible_time_alone_decides() {
        let dark = Writer::Unknowable;
        check(Origin::RenamedIn, FILE, false, &[(0, 1, 0, dark, "wait 2000"), (2000, 1, 0, dark, "ready")]);
        check(Origin::RenamedIn, FILE, true, &[(0, 1, 0, dark, "wait 15000"), (15000, 1, 0, dark, "ready")]);
        check(Origin::Scanned, FILE, false, &[(0, 1, 2000, dark, "ready")]);
        check(Origin::Scanned, FILE, true, &[(0, 1, 90_000, dark, "wait 15000"), (15000, 1, 90_000, dark, "ready")]);
        check(Origin::Settled, FILE, true, &[(0, 1, 0, dark, "ready")]);
    }

    #[test]
    fn what_a_scan_finds_is_ready_when_its_ctime_is_old_enough() {
        check(Origin::Scanned, FILE, false, &[(0, 1, 2000, FREE, "ready")]);
        check(Origin::Scanned, FILE, false, &[(0, 1, 500, FREE, "wait 1500"), (1500, 1, 500, FREE, "ready")]);
        check(Origin::Scanned, FILE, false, &[(0, 1, 5000, Writer::Present, "wait 2000")]);
        check(Origin::Scanned, DIRECTORY, false, &[(0, 1, 2000, FREE, "wait 28000"), (28000, 1, 2000, FREE, "ready")]);
        check(Origin::Scanned, DIRECTORY, false, &[(0, 1, 30_000, FREE, "ready")]);
    }

    #[test]
    fn a_ctime_that_lies_ahead_settles_by_looks() {
        check(Origin::Scanned, FILE, false, &[(0, 1, -9000, FREE, "wait 2000"), (2000, 1, -9000, FREE, "ready")]);
    }

    #[test]
    fn no_age_is_believed_beyond_a_clock_jump() {
        let rules = rules(FILE, false);
        let mut track = Track::new(Origin::Scanned);
        let jumped = |ms| Now { steady: Duration::from_millis(300 + ms), ..at(ms) };
        assert_eq!(judged(&mut track, facts(FILE, 1, 3_600_000), FREE, &rules, jumped(0)), "wait 1700");
        assert_eq!(judged(&mut track, facts(FILE, 1, 3_600_000), FREE, &rules, jumped(1700)), "ready");
    }

    #[test]
    fn what_was_written_in_place_settles_by_looks() {
        check(Origin::Touched, FILE, false, &[(0, 1, 0, FREE, "wait 2000"), (2000, 1, 0, FREE, "ready")]);
        check(Origin::Touched, DIRECTORY, false, &[(0, 1, 0, FREE, "wait 30000"), (30_000, 1, 0, FREE, "ready")]);
        // An old ctime doesn't help: an event just spoke of it.
        check(Origin::Touched, FILE, false, &[(0, 1, 90_000, FREE, "wait 2000")]);
    }

    #[test]
    fn what_keeps_changing_is_looked_at_ever_less_often() {
        let steps: [Step<'_>; 7] = [
            (0, 1, 0, FREE, "wait 2000"),
            (2000, 2, -2000, FREE, "wait 6000"),
            (6000, 3, -6000, FREE, "wait 14000"),
            (14_000, 4, -14_000, FREE, "wait 30000"),
            (30_000, 5, -30_000, FREE, "wait 62000"),
            (62_000, 6, -62_000, FREE, "wait 122000"),
            (122_000, 6, -62_000, FREE, "ready"),
        ];
        check(Origin::Touched, FILE, false, &steps);
    }

    #[test]
    fn an_event_starts_the_quiet_time_anew() {
        let rules = rules(FILE, false);
        let mut track = Track::new(Origin::Touched);
        assert_eq!(judged(&mut track, facts(FILE, 1, 0), FREE, &rules, at(0)), "wait 2000");
        track.touch(Origin::Touched);
        assert_eq!(judged(&mut track, facts(FILE, 1, 0), FREE, &rules, at(1500)), "wait 3500");
        track.touch(Origin::RenamedIn);
        assert_eq!(judged(&mut track, facts(FILE, 1, 0), FREE, &rules, at(1600)), "ready");
    }

    #[test]
    fn several_links_are_held_for_a_minute() {
        let rules = rules(FILE, false);
        let linked = |nlink, age_ms| {
            let plain = facts(FILE, 1, age_ms);
            Facts { signature: Signature { nlink, ..plain.signature }, ..plain }
        };
        let mut track = Track::new(Origin::Touched);
        assert_eq!(judged(&mut track, linked(2, 0), FREE, &rules, at(0)), "held 1000 passing");
        assert_eq!(judged(&mut track, linked(2, 0), FREE, &rules, at(30_000)), "held 45000 passing");
        assert_eq!(judged(&mut track, linked(2, 0), FREE, &rules, at(60_000)), "ready");
        // Old links were made long ago; a link taken away leaves an ordinary file.
        assert_eq!(judged(&mut Track::new(Origin::Scanned), linked(3, 60_000), FREE, &rules, at(0)), "ready");
        let mut track = Track::new(Origin::Touched);
        assert_eq!(judged(&mut track, linked(2, 0), FREE, &rules, at(0)), "held 1000 passing");
        assert_eq!(judged(&mut track, linked(1, -900), FREE, &rules, at(1000)), "wait 5000");
    }

    #[test]
    fn conditions_are_asked_for_in_the_order_of_their_cost() {
        let mut rules = rules(FILE, false);
        rules.min_bytes = Bytes(2);
        rules.marker = Some(".done".to_owned());
        rules.manifest = true;
        rules.validator = true;
        let mut track = Track::new(Origin::RenamedIn);
        let mut ask = |facts: Facts| shown(&track.judge(&facts, &rules, at(0)));
        let small = Facts { writer: Some(FREE), ..facts(FILE, 1, 0) };
        assert_eq!(ask(small), "held 5000");
        let mut track = Track::new(Origin::RenamedIn);
        let mut ask = |facts: Facts, learnt: Option<(Need, Verdict)>| {
            if let Some((need, verdict)) = learnt {
                track.learn(need, facts.signature, verdict);
            }
            shown(&track.judge(&facts, &rules, at(0)))
        };
        let fact = facts(FILE, 2, 0);
        assert_eq!(ask(fact, None), "need writer");
        let fact = Facts { writer: Some(FREE), ..fact };
        assert_eq!(ask(fact, None), "need marker");
        assert_eq!(ask(Facts { marker: Some(false), ..fact }, None), "held 5000");
        let fact = Facts { marker: Some(true), ..fact };
        assert_eq!(ask(fact, None), "need manifest");
        assert_eq!(ask(fact, Some((Need::Manifest, Verdict::Passed))), "need validator");
        assert_eq!(ask(fact, Some((Need::Validator, Verdict::NotYet("later".to_owned())))), "held 10000");
        assert_eq!(ask(fact, Some((Need::Validator, Verdict::Refused("no".to_owned())))), "held 600000");
        assert_eq!(ask(fact, Some((Need::Validator, Verdict::Passed))), "ready");
        // What was said of another content says nothing of this one.
        let changed = Facts { writer: Some(FREE), marker: Some(true), ..facts(FILE, 3, 0) };
        assert_eq!(ask(changed, None), "wait 4000");
    }
}
