//! What `/proc` tells of one process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

/// The fields of `/proc/<pid>/stat` that tell whose a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcStat {
    pub(super) pid: i32,
    pub(super) state: u8,
    pub(super) parent: i32,
    pub(super) group: i32,
    /// Since the boot: with the number, what tells a process from a later one.
    pub(super) start_ticks: u64,
}

impl ProcStat {
    /// Nothing when there is no such process.
    pub(super) fn read(pid: i32) -> Option<ProcStat> {
        let mut line = [0; 1024];
        // In one go: the line is made once, when it is first read, and is never this long.
        let length = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut line)).ok()?;
        Self::parse(pid, &line[..length])
    }

    fn parse(pid: i32, line: &[u8]) -> Option<ProcStat> {
        // The name, in parentheses, may hold anything, parentheses and spaces too.
        let after_name = line.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(&line[after_name..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        // The 22nd field of the line; the state was the third.
        let start_ticks = fields.nth(22 - 6)?.parse().ok()?;
        Some(ProcStat { pid, state, parent, group, start_ticks })
    }

    /// Ended, and not yet waited for.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// One variable of the environment a process was started with; nothing where that can't be read.
pub(super) fn environment_variable(pid: i32, key: &str) -> Option<Vec<u8>> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(key.as_bytes())?.strip_prefix(b"=")?;
        Some(value.to_vec())
    })
}

/// Every process there is, but this one.
pub(super) fn all_pids() -> Vec<i32> {
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
        let check = |line: &str, expected: Option<(u8, i32, i32, u64)>| {
            let stat = ProcStat::parse(7, line.as_bytes());
            assert_eq!(stat.map(|stat| (stat.state, stat.parent, stat.group, stat.start_ticks)), expected, "{line}");
        };
        let rest = "S 1 5 6 34816 9 4194304 90 0 0 0 0 0 0 0 20 0 1 0 12345 2596864 223";
        check(&format!("7 (sh) {rest}"), Some((b'S', 1, 5, 12345)));
        check(&format!("7 (a) Z 9 (b)) {rest}"), Some((b'S', 1, 5, 12345)));
        check("7 (sh) S 1", None);
        check("", None);
    }

    #[test]
    fn this_process_is_told_of() {
        let own = std::process::id() as i32;
        let stat = ProcStat::read(own).unwrap();
        assert!(!stat.is_dead() && stat.start_ticks > 0 && stat.parent > 0);
        assert!(!all_pids().contains(&own));
        assert_eq!(environment_variable(own, "GAMDOK_SURELY_NOT_SET"), None);
    }
}
