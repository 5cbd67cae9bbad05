//! The limit on open files. One process holds them all: where the intake, the spool or a worker runs out of them, so do
//! the others soon.

use std::io;
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// What this process began with, where that was raised.
static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// Enough for thousands of workers.
const ENOUGH: u64 = 65_536;

/// Raises this process' limit to the most that it may have, as far as that is of use: some hosts allow a billion, and a
/// program that closes all numbers up to its limit takes minutes then, if it asks before its own is restored. The usual
/// 1024 is meant for programs that still use `select`, which can't count further; a worker takes some seven. For the
/// binary: a library leaves its process' limits alone.
pub fn raise_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(ENOUGH, |hard| hard.min(ENOUGH));
    if limit.current.is_none_or(|soft| most <= soft) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit })?;
    let _first = INHERITED.set(limit);
    Ok(())
}

/// Gives a process that was just started the limit that this one began with: a program may use `select`, or close all
/// numbers up to its limit one by one. `posix_spawn` can't do it before the program runs, and to lower our own limit for
/// that moment would fail our other threads; so in its first instructions a program may still see the higher one. On a
/// busy core one shell in three did.
pub fn restore_limit(pid: Pid) {
    if let Some(limit) = INHERITED.get() {
        // Fails for a process that has ended, or runs as another user; the higher limit does it no harm in itself.
        let _before = prlimit(Some(pid), Resource::Nofile, *limit);
    }
}

/// Whether so many more files could be opened now; else why not.
pub fn are_free(count: usize) -> Result<(), String> {
    let opened: Result<Vec<_>, Errno> =
        (0..count).map(|_| rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())).collect();
    match opened {
        Err(error) if has_run_out(error) => Err(shortage(error)),
        _ => Ok(()),
    }
}

pub fn has_run_out(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE)
}

/// In words for people.
pub fn shortage(error: Errno) -> String {
    if error == Errno::NFILE {
        return "the host is out of file handles: others have too many files open, or raise `sysctl fs.file-max`"
            .to_owned();
    }
    let limit = getrlimit(Resource::Nofile).current.map_or_else(|| "any".to_owned(), |limit| limit.to_string());
    format!(
        "too many open files: the director may have {limit}; raise the limit (LimitNOFILE= in the systemd unit, or \
         `ulimit -Hn` where it is started), or lower `slots`"
    )
}
