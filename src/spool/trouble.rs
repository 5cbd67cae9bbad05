//! All that is wrong with the spool at a moment, and the one line of health that tells it. Invariants: what is wrong with
//! one job never hides that nothing can be written, and is said until that very job is well.

use std::collections::BTreeMap;

use crate::health::{Check, Condition, What};
use crate::item::JobId;

/// What concerns one job, or one place; the others' work goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum About {
    /// Its outcome or record can't be written or moved.
    Job(JobId),
    /// It lies in `claimed/` and couldn't be taken up.
    Left(JobId),
    /// Its outputs aren't where they are to be published.
    Publishing(JobId),
    /// What lies in `claimed/` and isn't gamdok's.
    Strangers,
}

/// So many are told in full.
const TOLD: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// Nothing can be written, or the root isn't there: claims pause.
    writing: Option<String>,
    single: BTreeMap<About, String>,
    /// What was said last; nothing: all is well.
    said: Option<Check>,
}

impl Troubles {
    /// True: it is new. What was said first stands until it is over: the same disk refuses in many words.
    pub(super) fn cannot_write(&mut self, words: String) -> bool {
        let is_new = self.writing.is_none();
        self.writing.get_or_insert(words);
        is_new
    }

    /// Nothing can be written since this isn't the root any more, whatever was said before.
    pub(super) fn is_elsewhere(&mut self, words: String) -> bool {
        self.writing.replace(words).is_none()
    }

    pub(super) fn can_write(&mut self) {
        self.writing = None;
    }

    pub(super) fn is_writing_refused(&self) -> bool {
        self.writing.is_some()
    }

    pub(super) fn is_wrong(&mut self, about: About, words: String) {
        self.single.insert(about, words);
    }

    pub(super) fn has(&self, about: About) -> bool {
        self.single.contains_key(&about)
    }

    pub(super) fn is_well(&mut self, about: About) {
        self.single.remove(&about);
    }

    /// What is to be said, when that has changed.
    pub(super) fn news(&mut self) -> Option<Check> {
        let now = self.check();
        if self.said == now {
            return None;
        }
        self.said.clone_from(&now);
        Some(now.unwrap_or_else(|| Check::ok(What::Spool)))
    }

    fn check(&self) -> Option<Check> {
        let state = match (&self.writing, self.single.is_empty()) {
            (None, true) => return None,
            (None, false) => Condition::Degraded,
            (Some(_), _) => Condition::Failed,
        };
        let mut words: Vec<&str> = self.writing.iter().chain(self.single.values().take(TOLD)).map(|it| &**it).collect();
        let more = self.single.len().saturating_sub(TOLD);
        let rest = format!("and {more} more like these");
        words.extend((more > 0).then_some(rest.as_str()));
        Some(Check { what: What::Spool, state, message: words.join("; ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_jobs_trouble_is_said_until_it_is_well_and_hides_nothing() {
        let [a, b] = [1, 2].map(|n: u128| About::Job(JobId(ulid::Ulid(n))));
        let mut troubles = Troubles::default();
        let mut check = |step: &dyn Fn(&mut Troubles), expected: Option<(Condition, &str)>| {
            step(&mut troubles);
            let news = troubles.news().map(|check| (check.state, check.message));
            assert_eq!(news, expected.map(|(state, words)| (state, words.to_owned())));
        };
        check(&|_| {}, None);
        check(&|it| it.is_wrong(a, "a".to_owned()), Some((Condition::Degraded, "a")));
        check(&|it| it.is_wrong(a, "a".to_owned()), None);
        check(&|it| assert!(it.cannot_write("disk".to_owned())), Some((Condition::Failed, "disk; a")));
        check(&|it| assert!(!it.cannot_write("the same disk".to_owned())), None);
        check(&|it| it.is_wrong(b, "b".to_owned()), Some((Condition::Failed, "disk; a; b")));
        check(&|it| it.is_well(a), Some((Condition::Failed, "disk; b")));
        check(&|it| it.can_write(), Some((Condition::Degraded, "b")));
        check(&|it| it.is_well(b), Some((Condition::Ok, "")));
        check(&|it| it.is_well(b), None);
        let many = |it: &mut Troubles| {
            (1..=5).for_each(|n| it.is_wrong(About::Job(JobId(ulid::Ulid(n))), n.to_string()));
        };
        check(&many, Some((Condition::Degraded, "1; 2; 3; and 2 more like these")));
    }
}
