//! What `/proc` tells of processes and of this boot.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use ulid::Ulid;

use crate::item::JobId;

/// The fields of `/proc/<pid>/stat` that tell whose a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcStat {
    pub(crate) pid: i32,
    pub(crate) state: u8,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    /// Since the boot: with the number, what tells a process from a later one.
    pub(crate) start_ticks: u64,
}

impl ProcStat {
    /// Nothing when there is no such process.
    pub(crate) fn read(pid: i32) -> Option<ProcStat> {
        let mut line = [0; 1024];
        // In one go: the line is made once, when it is first read, and is never this long.
        let length = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut line)).ok()?;
        Self::parse(pid, &line[..length]).map(|(stat, _)| stat)
    }

    /// With the process's name.
    pub(crate) fn parse(pid: i32, line: &[u8]) -> Option<(ProcStat, &[u8])> {
        // The name, in parentheses, may hold anything, parentheses and spaces too.
        let (start, end) = (line.iter().position(|byte| *byte == b'(')?, line.iter().rposition(|byte| *byte == b')')?);
        let name = line.get(start + 1..end)?;
        let rest = std::str::from_utf8(&line[end + 1..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        // The 22nd field of the line; the state was the third.
        let start_ticks = fields.nth(22 - 6)?.parse().ok()?;
        Some((ProcStat { pid, state, parent, group, start_ticks }, name))
    }

    /// Ended, and not yet waited for.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Whose a process is: a job's; and which of its runs', where it has several side by side, such as the batches of a big line file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) job: JobId,
    pub(crate) run: Option<Ulid>,
}

impl Owner {
    /// Where a run stands in the environment.
    pub(crate) const RUN: &str = "GAMDOK_RUN";

    /// By the environment that the process was started with. `process` is its directory in `/proc`.
    pub(crate) fn of(process: &Path) -> Option<Owner> {
        Owner::within(&fs::read(process.join("environ")).ok()?)
    }

    fn within(environment: &[u8]) -> Option<Owner> {
        Some(Owner { job: job_in(environment)?, run: value_in(environment, Owner::RUN) })
    }

    /// Whether all that is the other's is this one's, too.
    pub(crate) fn includes(&self, other: Owner) -> bool {
        self.job == other.job && (self.run.is_none() || self.run == other.run)
    }
}

impl From<JobId> for Owner {
    fn from(job: JobId) -> Owner {
        Owner { job, run: None }
    }
}

/// The job whose `GAMDOK_ID` stands in the environment a process was started with; nothing where that can't be read.
/// `process` is its directory in `/proc`.
pub(crate) fn job_of(process: &Path) -> Option<JobId> {
    job_in(&fs::read(process.join("environ")).ok()?)
}

fn job_in(environment: &[u8]) -> Option<JobId> {
    value_in(environment, "GAMDOK_ID")
}

fn value_in<T: FromStr>(environment: &[u8], key: &str) -> Option<T> {
    let of_key = |entry: &&[u8]| entry.strip_prefix(key.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    let entry = environment.split(|byte| *byte == 0).find(of_key)?;
    std::str::from_utf8(&entry[key.len() + 1..]).ok()?.parse().ok()
}

/// Which boot this is: no process of another one can be alive. Empty where the system doesn't say.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}

/// Every process there is, but this one.
pub(crate) fn all_pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id() as i32;
    let pid = |name: &OsStr| std::str::from_utf8(name.as_bytes()).ok()?.parse().ok();
    entries.flatten().filter_map(|entry| pid(&entry.file_name())).filter(|pid| *pid != own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let check = |line: &str, expected: Option<(&[u8], u8, i32, i32, u64)>| {
            let stat = ProcStat::parse(7, line.as_bytes());
            let stat = stat.map(|(stat, name)| (name, stat.state, stat.parent, stat.group, stat.start_ticks));
            assert_eq!(stat, expected, "{line}");
        };
        let rest = "S 1 5 6 34816 9 4194304 90 0 0 0 0 0 0 0 20 0 1 0 12345 2596864 223";
        check(&format!("7 (sh) {rest}"), Some((b"sh", b'S', 1, 5, 12345)));
        check(&format!("7 (a) Z 9 (b)) {rest}"), Some((b"a) Z 9 (b)", b'S', 1, 5, 12345)));
        check("7 (sh) S 1", None);
        check("7 )( S 1", None);
        check("", None);
    }

    #[test]
    fn this_process_is_told_of() {
        let own = std::process::id() as i32;
        let stat = ProcStat::read(own).unwrap();
        assert!(!stat.is_dead() && stat.start_ticks > 0 && stat.parent > 0);
        assert!(!all_pids().contains(&own));
        assert!(!boot_id().is_empty());
    }

    #[test]
    fn a_job_is_found_in_an_environment() {
        let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let check = |environment: String, expected: Option<&str>| {
            assert_eq!(job_in(environment.as_bytes()).map(|job| job.to_string()).as_deref(), expected, "{environment}");
        };
        check(format!("A=1\0GAMDOK_ID={id}\0B=2\0"), Some(id));
        check(format!("XGAMDOK_ID={id}\0"), None);
        check("GAMDOK_ID=nonsense\0".to_owned(), None);
        check(String::new(), None);
    }

    #[test]
    fn a_jobs_runs_are_told_apart() {
        let (id, run) = ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01BX5ZZKBKACTAV9WEVGEMMVRZ");
        let owner = |environment: String| Owner::within(environment.as_bytes());
        let whole = owner(format!("GAMDOK_ID={id}\0"));
        let one = owner(format!("GAMDOK_RUN={run}\0A=1\0GAMDOK_ID={id}\0"));
        assert_eq!(whole, Some(Owner { job: id.parse().unwrap(), run: None }));
        assert_eq!(one, Some(Owner { run: Some(run.parse().unwrap()), ..whole.unwrap() }));
        assert_eq!(owner(format!("GAMDOK_RUN={run}\0")), None);
        let another = Owner { run: Some(Ulid::nil()), ..one.unwrap() };
        let includes = |one: Owner, other: Owner| (one.includes(other), other.includes(one));
        assert_eq!(includes(whole.unwrap(), one.unwrap()), (true, false));
        assert_eq!(includes(one.unwrap(), another), (false, false));
        assert_eq!(includes(whole.unwrap(), Owner { job: JobId(Ulid::nil()), ..whole.unwrap() }), (false, false));
    }
}
