//! What this host says of a process that a driver lists: its name, its user, its group, and the job in its environment.
//! A PID means something here only in the host's own PID namespace, since drivers know no other.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::host;
use crate::item::JobId;
use crate::proc::{self, ProcStat};

/// The inode of the first PID namespace: fixed by the kernel.
const HOST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What is known of one process; all absent when it is gone or hidden.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Known {
    /// None for a process that is gone, or dead and not yet waited for.
    pub(super) name: Option<String>,
    pub(super) user: Option<String>,
    pub(super) group: Option<i32>,
    pub(super) job: Option<JobId>,
}

#[derive(Debug)]
pub(super) struct Procfs {
    root: PathBuf,
    passwd: PathBuf,
    /// User names, read once per number.
    users: HashMap<u32, String>,
}

impl Default for Procfs {
    fn default() -> Procfs {
        Procfs { root: host::path("/proc"), passwd: host::path("/etc/passwd"), users: HashMap::new() }
    }
}

impl Procfs {
    /// Whether a driver's PIDs are this host's: not in a container's namespace, not under WSL.
    pub(super) fn pids_match(&self) -> bool {
        let namespace = fs::read_link(self.root.join("self/ns/pid"));
        namespace.is_ok_and(|link| link == Path::new(HOST_PID_NAMESPACE)) && !self.is_wsl()
    }

    /// Windows' subsystem for Linux: the driver lists no processes there.
    pub(super) fn is_wsl(&self) -> bool {
        let release = fs::read_to_string(self.root.join("sys/kernel/osrelease")).unwrap_or_default();
        release.to_ascii_lowercase().contains("microsoft")
    }

    /// `(total, available)` of the host's memory in bytes, for parts that share it with their GPU.
    pub(super) fn memory(&self) -> Option<(u64, u64)> {
        let text = fs::read_to_string(self.root.join("meminfo")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some((field("MemTotal")?, field("MemAvailable")?))
    }

    pub(super) fn look_up(&mut self, pid: u32) -> Known {
        let dir = self.root.join(pid.to_string());
        let line = fs::read(dir.join("stat")).unwrap_or_default();
        let Some((stat, name)) = i32::try_from(pid).ok().and_then(|pid| ProcStat::parse(pid, &line)) else {
            return Known::default();
        };
        let user = fs::metadata(&dir).ok().map(|meta| self.user(meta.uid()));
        let name = (!stat.is_dead()).then(|| full_name(&dir, name));
        Known { name, user, group: Some(stat.group), job: proc::job_of(&dir) }
    }

    /// Whether a process of this number runs: not gone, and not merely waiting to be reaped.
    pub(super) fn is_alive(&self, pid: u32) -> bool {
        let line = fs::read(self.root.join(pid.to_string()).join("stat")).unwrap_or_default();
        let stat = i32::try_from(pid).ok().and_then(|pid| ProcStat::parse(pid, &line));
        stat.is_some_and(|(stat, _)| !stat.is_dead())
    }

    fn user(&mut self, uid: u32) -> String {
        if let Some(name) = self.users.get(&uid) {
            return name.clone();
        }
        let text = fs::read(&self.passwd).unwrap_or_default();
        let name = String::from_utf8_lossy(&text).lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        });
        let name = name.unwrap_or_else(|| format!("user {uid}"));
        self.users.insert(uid, name.clone());
        name
    }
}

/// The kernel keeps 15 bytes of a name; the command line has the whole of it, and may also have been overwritten.
fn full_name(dir: &Path, name: &[u8]) -> String {
    let short = String::from_utf8_lossy(name).into_owned();
    if name.len() < 15 {
        return short;
    }
    let command = fs::read(dir.join("cmdline")).unwrap_or_default();
    let program = command.split(|&b| b == 0).next().unwrap_or_default();
    let program = program.rsplit(|&b| b == b'/').next().unwrap_or_default();
    if program.starts_with(name) { String::from_utf8_lossy(program).into_owned() } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(dir: &Path) -> Procfs {
        Procfs { root: dir.to_owned(), passwd: dir.join("passwd"), users: HashMap::new() }
    }

    #[test]
    fn a_process_is_told_by_name_group_and_job() {
        let check = |stat: &[u8], cmdline: &[u8], environ: &[u8], name: Option<&str>, group, job: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("411")).unwrap();
            let stat = [stat, b" 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345"].concat();
            for (file, bytes) in [("stat", &stat[..]), ("cmdline", cmdline), ("environ", environ)] {
                fs::write(dir.path().join("411").join(file), bytes).unwrap();
            }
            let known = proc(dir.path()).look_up(411);
            let known_job = known.job.map(|job| job.to_string());
            assert_eq!((known.name.as_deref(), known.group, known_job.as_deref()), (name, group, job));
        };
        let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let environ = format!("A=1\0GAMDOK_ID={id}\0B=2\0");
        check(b"411 (python3) S 1 400 400", b"", environ.as_bytes(), Some("python3"), Some(400), Some(id));
        check(b"411 (a) (b)) S 1 400 400", b"", b"", Some("a) (b)"), Some(400), None);
        check(b"411 (x\xff) R 1 7 7", b"", b"GAMDOK_ID=nonsense\0", Some("x\u{fffd}"), Some(7), None);
        check(b"411 (python3) Z 1 400 400", b"", b"", None, Some(400), None);
        check(
            b"411 (nvidia-cuda-mps) S 1 9 9",
            b"/usr/bin/nvidia-cuda-mps-server\0-f\0",
            b"",
            Some("nvidia-cuda-mps-server"),
            Some(9),
            None,
        );
        check(b"411 (nvidia-cuda-mps) S 1 9 9", b"renamed\0", b"", Some("nvidia-cuda-mps"), Some(9), None);
        check(b"garbage", b"", b"", None, None, None);
    }

    #[test]
    fn users_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("passwd"), "root:x:0:0::/root:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n").unwrap();
        let mut procfs = proc(dir.path());
        assert_eq!([procfs.user(1001), procfs.user(0), procfs.user(77)], ["bob", "root", "user 77"]);
    }

    #[test]
    fn pids_mean_something_only_in_the_hosts_namespace() {
        let check = |link: &str, release: &str, expected: bool| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("self/ns")).unwrap();
            fs::create_dir_all(dir.path().join("sys/kernel")).unwrap();
            std::os::unix::fs::symlink(link, dir.path().join("self/ns/pid")).unwrap();
            fs::write(dir.path().join("sys/kernel/osrelease"), release).unwrap();
            assert_eq!(proc(dir.path()).pids_match(), expected, "{link} {release}");
        };
        check("pid:[4026531836]", "6.8.0-45-generic", true);
        check("pid:[4026532281]", "6.8.0-45-generic", false);
        check("pid:[4026531836]", "5.15.153.1-microsoft-standard-WSL2", false);
    }

    #[test]
    fn host_memory_is_read_in_bytes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("meminfo"), "MemTotal:       16 kB\nMemFree: 1 kB\nMemAvailable:   8 kB\n").unwrap();
        assert_eq!(proc(dir.path()).memory(), Some((16384, 8192)));
        assert_eq!(proc(Path::new("/nonexistent")).memory(), None);
    }
}
