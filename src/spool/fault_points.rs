//! Named places where a test can end the process or make a step fail. In release builds they are nothing.
//!
//! `GAMDOK_FAULT=<name>[:<nth>]` kills the process there with SIGKILL; `GAMDOK_FAULT_ERR=<name>:<errno>[:<nth>[+]]` makes
//! that step fail, once, or with `+` from then on. The nth time counts from 1. `GAMDOK_FAULT_SYNC=each` makes every round
//! one of single fsyncs.

use rustix::io::Errno;

/// Every point, in the order of an item's life.
pub const FAULT_POINTS: &[&str] = &[
    "claim.begun",
    "claim.intended",
    "claim.moved",
    "claim.verified",
    "claim.companions",
    "claim.synced",
    "record.written",
    "record.named",
    "record.synced",
    "round.sync",
    "finish.begun",
    "finish.staged",
    "finish.outputs-synced",
    "finish.named",
    "finish.committed",
    "finish.published",
    "finish.moved",
    "publish.staged",
    "publish.named",
    "publish.noted",
    "revive.begun",
    "revive.moved",
    "revive.written",
    "revive.kept",
    "revive.synced",
    "recover.begun",
    "recover.orphans-ended",
    "recover.job",
    "recover.set-aside",
    "recover.removed",
    "recover.put-back",
    "recover.looked",
];

/// Which point does what; counts how often each was passed. One for each user of the spool, given as a parameter.
#[derive(Debug, Default)]
pub struct Faults {
    #[cfg(any(test, debug_assertions))]
    armed: Option<std::sync::Mutex<Vec<Armed>>>,
    #[cfg(any(test, debug_assertions))]
    each: bool,
}

#[cfg(any(test, debug_assertions))]
#[derive(Clone, Debug)]
struct Armed {
    name: String,
    what: What,
    /// Passes left before it acts.
    left: u32,
    again: bool,
}

#[cfg(any(test, debug_assertions))]
#[derive(Clone, Copy, Debug)]
enum What {
    Kill,
    Fail(Errno),
}

impl Faults {
    /// As the environment says.
    pub fn from_env() -> Faults {
        #[cfg(any(test, debug_assertions))]
        {
            let each = std::env::var_os("GAMDOK_FAULT_SYNC").is_some_and(|how| how == "each");
            let mut faults = Faults { each, ..Faults::default() };
            if let Ok(text) = std::env::var("GAMDOK_FAULT") {
                let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
                faults.arm(name, What::Kill, nth);
            }
            if let Ok(text) = std::env::var("GAMDOK_FAULT_ERR") {
                let mut parts = text.splitn(3, ':');
                let name = parts.next().unwrap_or_default();
                let errno = errno(parts.next().unwrap_or_default());
                faults.arm(name, What::Fail(errno), parts.next().unwrap_or("1"));
            }
            faults
        }
        #[cfg(not(any(test, debug_assertions)))]
        Faults {}
    }

    /// Whether every round is to be one of single fsyncs.
    pub fn syncs_each(&self) -> bool {
        #[cfg(any(test, debug_assertions))]
        return self.each;
        #[cfg(not(any(test, debug_assertions)))]
        false
    }

    /// Makes the nth pass of a point fail; `"2+"` = the second and all after it.
    #[cfg(test)]
    pub(super) fn failing(name: &str, errno: Errno, nth: &str) -> Faults {
        let mut faults = Faults::default();
        faults.arm(name, What::Fail(errno), nth);
        faults
    }

    #[cfg(any(test, debug_assertions))]
    fn arm(&mut self, name: &str, what: What, nth: &str) {
        let again = nth.ends_with('+');
        let nth = nth.trim_end_matches('+').parse().unwrap_or(1u32);
        if !FAULT_POINTS.contains(&name) {
            tracing::warn!(point = crate::item::escape(name.as_bytes()), "no such fault point");
        }
        let armed = Armed { name: name.to_owned(), what, left: nth.saturating_sub(1), again };
        self.armed.get_or_insert_default().get_mut().unwrap_or_else(|e| e.into_inner()).push(armed);
    }

    /// The point `name`: nothing, an error, or the end.
    #[inline]
    pub fn at(&self, name: &'static str) -> Result<(), Errno> {
        #[cfg(any(test, debug_assertions))]
        if let Some(armed) = &self.armed {
            debug_assert!(FAULT_POINTS.contains(&name), "{name} is listed");
            let mut armed = armed.lock().unwrap_or_else(|e| e.into_inner());
            let Some(at) = armed.iter().position(|armed| armed.name == name) else { return Ok(()) };
            if armed[at].left > 0 {
                armed[at].left -= 1;
                return Ok(());
            }
            let acting = if armed[at].again { armed[at].clone() } else { armed.remove(at) };
            match acting.what {
                What::Fail(errno) => return Err(errno),
                What::Kill => {
                    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                }
            }
        }
        let _ = name;
        Ok(())
    }
}

#[cfg(any(test, debug_assertions))]
fn errno(text: &str) -> Errno {
    match text {
        "ENOSPC" => Errno::NOSPC,
        "EDQUOT" => Errno::DQUOT,
        "EROFS" => Errno::ROFS,
        "EACCES" => Errno::ACCESS,
        number => Errno::from_raw_os_error(number.parse().unwrap_or(libc::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_passed_somewhere() {
        let sources = [
            include_str!("claim.rs"),
            include_str!("desk.rs"),
            include_str!("finish.rs"),
            include_str!("orphans.rs"),
            include_str!("publish.rs"),
            include_str!("recover.rs"),
            include_str!("revive.rs"),
            include_str!("unpublished.rs"),
            include_str!("desk/publishing.rs"),
            include_str!("write.rs"),
        ];
        for point in FAULT_POINTS {
            let call = format!("at(\"{point}\")");
            assert_eq!(sources.iter().map(|source| source.matches(&call).count()).sum::<usize>(), 1, "{point}");
        }
    }

    #[test]
    fn a_point_fails_at_its_time() {
        let check = |nth: &str, expected: [bool; 4]| {
            let faults = Faults::failing("claim.moved", Errno::IO, nth);
            assert!(faults.at("claim.begun").is_ok());
            assert_eq!([(); 4].map(|()| faults.at("claim.moved").is_err()), expected, "{nth}");
        };
        check("1", [true, false, false, false]);
        check("2", [false, true, false, false]);
        check("3+", [false, false, true, true]);
    }
}
