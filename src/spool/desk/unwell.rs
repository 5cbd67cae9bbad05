//! What the disk refuses: kept and tried again, with the time between the tries, and what people are told meanwhile.

use rustix::io::Errno;

use super::super::Answer;
use super::super::claim::no_room;
use super::super::trouble::About;
use super::{BACKOFF, BACKOFF_AT_MOST, Desk, Op, RECHECK};
use crate::sys::files;

/// So many files a group has open beside those that stay open.
const FILES: usize = 8;

/// What a turn was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    None,
    /// Something is wrong in one place only.
    Single,
    /// The disk refuses.
    General,
}

impl Desk {
    pub(super) fn has_to_retry(&self) -> bool {
        !self.stalled.is_empty() || self.troubles.is_writing_refused()
    }

    /// Keeps what the disk refused and sets the time of the next try.
    pub(super) fn refuse(&mut self, refused: Vec<(Op, Errno)>) -> Refusal {
        if refused.is_empty() {
            return Refusal::None;
        }
        let is_full = |error: &Errno| matches!(*error, Errno::NOSPC | Errno::DQUOT);
        let is_broken = |error: &Errno| matches!(*error, Errno::IO | Errno::ROFS);
        let errors = || refused.iter().map(|(_, error)| *error);
        let full = errors().find(is_full);
        let mut freed = false;
        if let Some(error) = full {
            let (gave_up, check) = self.space.is_full(error);
            freed = gave_up;
            check.into_iter().for_each(|check| self.answer(Answer::Health(check)));
            self.recheck_at = Some(self.clock.now() + RECHECK);
        }
        let cannot_write = |error: &Errno| full.is_none() && self.space.try_writing().is_err() && !is_broken(error);
        let broken = errors().find(is_broken).or_else(|| errors().next().filter(cannot_write));
        if let Some(error) = broken {
            let what = match files::has_run_out(error) {
                true => files::shortage(error),
                false => format!("writing under the root fails ({error})"),
            };
            self.cannot_write(format!("{what}; what has ended is kept and tried again"));
        }
        let wait = if freed { std::time::Duration::ZERO } else { self.backoff };
        for (op, error) in refused {
            // A claim goes back, and says so itself; the others' work goes on.
            if broken.is_none() && !is_full(&error) && !matches!(op, Op::Claim(_)) {
                let job = op.job();
                let words =
                    format!("the outcome of job {job} can't be written or moved ({error}); it is kept and tried again");
                self.troubles.is_wrong(About::Job(job), words);
            }
            match op {
                Op::Claim(claim) => {
                    let kept = self.undo(claim, no_room(error));
                    self.stalled.extend(kept);
                }
                Op::Finish(mut finish) => {
                    finish.reset();
                    self.stalled.push(Op::Finish(finish));
                }
                other => self.stalled.push(other),
            }
        }
        self.retry_at = self.clock.now() + wait;
        self.backoff = (self.backoff * 2).min(BACKOFF_AT_MOST);
        if full.or(broken).is_some() { Refusal::General } else { Refusal::Single }
    }

    /// Said at once, before the answers that follow from it.
    pub(super) fn cannot_write(&mut self, words: String) {
        let is_new = self.troubles.cannot_write(words);
        self.writing_is_refused(is_new);
    }

    fn writing_is_refused(&mut self, is_new: bool) {
        if is_new {
            self.retry_at = self.clock.now() + self.backoff;
        }
        self.tell();
    }

    /// Claims would take what isn't this root's, or put it where nobody sees it. What has begun goes on in the root that
    /// was opened.
    pub(super) fn root_is_gone(&mut self) -> String {
        let words = format!(
            "the root `{}` is not the one that was opened: it was unmounted, moved or replaced; nothing is claimed or started until it is back (mount it again, or restart the director on another)",
            crate::root::shown(self.ground.root.path())
        );
        self.root_is_away = true;
        self.answer(Answer::Root { is_there: false });
        let is_new = self.troubles.is_elsewhere(words.clone());
        self.writing_is_refused(is_new);
        words
    }

    /// Where `claimed/` isn't, claims would fail one after the other.
    pub(super) fn find_claimed(&mut self) {
        self.no_claimed = self.ground.find_claimed().err();
        if let Some(words) = self.no_claimed.clone() {
            self.cannot_write(words);
        }
    }

    /// After a turn in which everything that was refused was tried again.
    pub(super) fn tried_again(&mut self, refusal: Refusal) {
        if self.troubles.is_writing_refused() && refusal != Refusal::General {
            let writing = self.space.try_writing();
            // A claim and a finish take more of them at a time than the try.
            let away = self.no_claimed.is_some() || !self.ground.root.is_intact();
            if writing.is_err() || files::are_free(FILES).is_err() || away {
                tracing::debug!(?writing, "the root is not usable yet");
                self.retry_at = self.clock.now() + self.backoff;
                self.backoff = (self.backoff * 2).min(BACKOFF_AT_MOST);
                return;
            }
            self.troubles.can_write();
            if std::mem::take(&mut self.root_is_away) {
                self.answer(Answer::Root { is_there: true });
            }
        }
        if refusal == Refusal::None {
            self.backoff = BACKOFF;
        }
    }

    /// Tells what is wrong, when that has changed.
    pub(super) fn tell(&mut self) {
        if let Some(check) = self.troubles.news() {
            self.answer(Answer::Health(check));
        }
    }
}
