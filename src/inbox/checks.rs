//! What takes too long for the scanner's thread: big directories, manifests with their hashes, validators. Each runs on a
//! short-lived thread, few at a time, and always answers once.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::manifest;
use super::ready::{Need, Verdict};
use super::signature::{Limits, Tree, WalkError, walk};
use crate::config::template::{Placeholder, fill};
use crate::item::{ItemKind, Signature};
use crate::sys::helper::{self, How};

/// At once; they read disks and hold cores that workers want.
const AT_ONCE: usize = 2;
const VALIDATOR_TIME: Duration = Duration::from_secs(60);

/// One check of one item.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) folder: usize,
    pub(super) name: OsString,
    /// Tells a late answer from the one that is waited for.
    pub(super) token: u64,
    /// What the item looked like when it was ordered.
    pub(super) signature: Signature,
    pub(super) task: Task,
}

#[derive(Debug)]
pub(super) enum Task {
    Walk { folder: Arc<OwnedFd>, marker: Option<OsString> },
    Manifest { folder: Arc<OwnedFd>, kind: ItemKind },
    Validator { argv: Vec<OsString>, cwd: PathBuf },
}

#[derive(Debug)]
pub(super) struct Done {
    pub(super) folder: usize,
    pub(super) name: OsString,
    pub(super) token: u64,
    pub(super) signature: Signature,
    pub(super) said: Said,
}

#[derive(Debug)]
pub(super) enum Said {
    Walked(Result<Tree, WalkError>),
    Judged(Need, Verdict),
}

/// The checks that run and those that wait for a thread.
#[derive(Debug)]
pub(super) struct Checks {
    done: Sender<Done>,
    pub(super) answers: Receiver<Done>,
    running: usize,
    waiting: VecDeque<Order>,
    stop: Arc<AtomicBool>,
}

impl Checks {
    pub(super) fn new() -> Checks {
        // Unbounded, and never longer than AT_ONCE: a thread answers once.
        let (done, answers) = crossbeam_channel::unbounded();
        Checks { done, answers, running: 0, waiting: VecDeque::new(), stop: Arc::default() }
    }

    pub(super) fn order(&mut self, order: Order) {
        // The new one replaces what hasn't begun; the answer of what has is known by its token and ignored.
        self.waiting.retain(|other| (other.folder, &other.name) != (order.folder, &order.name));
        self.waiting.push_back(order);
        self.start_waiting();
    }

    /// To be called with each answer: its thread has ended.
    pub(super) fn ended(&mut self) {
        self.running -= 1;
        self.start_waiting();
    }

    fn start_waiting(&mut self) {
        while self.running < AT_ONCE {
            let Some(order) = self.waiting.pop_front() else { return };
            let need = match order.task {
                Task::Walk { .. } => Need::Tree,
                Task::Manifest { .. } => Need::Manifest,
                Task::Validator { .. } => Need::Validator,
            };
            // Answers when it is dropped, so a panic and a thread that never started answer too.
            let report = Report {
                to: self.done.clone(),
                done: Some(Done {
                    folder: order.folder,
                    name: order.name,
                    token: order.token,
                    signature: order.signature,
                    said: Said::Judged(need, Verdict::NotYet("its check could not be made; see the log".to_owned())),
                }),
            };
            let stop = self.stop.clone();
            self.running += 1;
            let thread = std::thread::Builder::new().name("inbox check".to_owned());
            if let Err(error) = thread.spawn(move || report.run(order.task, &stop)) {
                tracing::error!(%error, "no thread for the check of an item");
            }
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

struct Report {
    to: Sender<Done>,
    done: Option<Done>,
}

impl Report {
    fn run(mut self, task: Task, stop: &AtomicBool) {
        let Some(done) = &mut self.done else { return };
        done.said = match task {
            Task::Walk { folder, marker } => {
                let limits = Limits { marker: marker.as_deref(), ..Limits::default() };
                Said::Walked(walk(&folder, &done.name, limits))
            }
            Task::Manifest { folder, kind } => {
                Said::Judged(Need::Manifest, manifest::check(&folder, &done.name, kind, stop))
            }
            Task::Validator { argv, cwd } => Said::Judged(Need::Validator, validate(&argv, &cwd, stop)),
        };
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            // The scanner may have ended.
            let _ = self.to.send(done);
        }
    }
}

/// The validator's arguments with `{item}` and `{name}` filled in; a checked configuration has no others there.
pub(super) fn fill_in(argv: &[String], item: &Path, name: &OsStr) -> Vec<OsString> {
    let value = |placeholder| match placeholder {
        Placeholder::Item => item.as_os_str(),
        Placeholder::Name => name,
        _ => OsStr::new(""),
    };
    argv.iter().map(|argument| fill(argument, value)).collect()
}

/// Runs a validator: 0 = ready, 75 = not yet, all else is a refusal.
fn validate(argv: &[OsString], cwd: &Path, stop: &AtomicBool) -> Verdict {
    let Some(program) = argv.first() else { return Verdict::Passed };
    let shown = crate::item::escape(program.as_bytes());
    let ended = match helper::run(argv, cwd, None, VALIDATOR_TIME, stop) {
        Ok(ended) => ended,
        Err(error) => return Verdict::NotYet(format!("its validator `{shown}` can't be started: {error}")),
    };
    let said = ended.said;
    match ended.how {
        How::Late => {
            let seconds = VALIDATOR_TIME.as_secs();
            Verdict::NotYet(format!("its validator `{shown}` didn't end within {seconds} s{said}"))
        }
        How::Exit(0) => Verdict::Passed,
        How::Exit(75) => Verdict::NotYet(format!("its validator `{shown}` says: not yet{said}")),
        How::Exit(code) => Verdict::Refused(format!("its validator `{shown}` refused it (exit {code}){said}")),
        How::Killed(status) => Verdict::NotYet(format!("its validator `{shown}` was killed ({status}){said}")),
        How::Unknown(error) => Verdict::NotYet(format!("the end of its validator `{shown}` is unknown: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_filled_in_byte_by_byte() {
        let argv = ["a {item} b", "{name}", "{{item}}", "{other}", "-x"].map(str::to_owned);
        let name = OsStr::from_bytes(b"\xff{item}");
        let filled = fill_in(&argv, Path::new("/in/x"), name);
        let expected: [&[u8]; 5] = [b"a /in/x b", b"\xff{item}", b"{item}", b"{other}", b"-x"];
        assert_eq!(filled, expected.map(|bytes| OsStr::from_bytes(bytes).to_owned()));
    }

    #[test]
    fn a_validator_says_it_by_its_exit() {
        let check = |script: &str, expected: &str| {
            let argv = ["sh", "-c", script].map(OsString::from);
            let verdict = format!("{:?}", validate(&argv, Path::new("/"), &AtomicBool::new(false)));
            assert!(verdict.starts_with(expected), "{script}: {verdict}");
        };
        check("exit 0", "Passed");
        check("exit 75", "NotYet(\"its validator `sh` says: not yet");
        check("exit 3", "Refused(\"its validator `sh` refused it (exit 3)\")");
        check("echo 'no header' >&2; exit 3", "Refused(\"its validator `sh` refused it (exit 3): no header\")");
        check(
            "printf 'a\\nb\\nc\\n\\nd\\033[1m' >&2; exit 1",
            r#"Refused("its validator `sh` refused it (exit 1): b | c | d\\u{1b}[1m")"#,
        );
        check("echo wait >&2; exit 75", "NotYet(\"its validator `sh` says: not yet: wait\")");
        // More than the pipe holds, and a child that keeps it open.
        check(
            "sleep 5 & yes 0123456789abcdef | head -c 1000000 >&2; echo end >&2; exit 2",
            "Refused(\"its validator `sh` refused it (exit 2): 0123456789abcdef | 0123456789",
        );
        check("kill -9 $$", "NotYet(\"its validator `sh` was killed");
        let missing = [OsString::from("/no/such/program")];
        let verdict = validate(&missing, Path::new("/"), &AtomicBool::new(false));
        assert!(matches!(verdict, Verdict::NotYet(why) if why.contains("can't be started")));
    }
}
