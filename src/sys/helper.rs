//! A program that helps the director (a validator, a notification's command): run to its end within a time, in a process
//! group of its own, with its last words. Invariant: it never makes its caller wait longer than it was given, neither by
//! what it reads and writes nor by what it leaves behind.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::files;

/// Between two looks at the wish to end.
const SLICE: Duration = Duration::from_millis(250);
/// What it said last is told: so many bytes, and so many lines of them.
const SAID: usize = 512;
const SAID_LINES: usize = 3;

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub how: How,
    /// The last lines of its stderr behind `: `, escaped; empty when it said nothing.
    pub said: String,
}

#[derive(Debug)]
pub enum How {
    Exit(i32),
    /// By somebody's signal.
    Killed(ExitStatus),
    /// Its time was over, or the caller's: killed with its group.
    Late,
    Unknown(io::Error),
}

/// Runs a program (the first word) in `cwd`, with `input` on its stdin, for at most `limit` or until `stop`. An error: it
/// couldn't be started.
pub fn run(
    argv: &[OsString],
    cwd: &Path,
    input: Option<&[u8]>,
    limit: Duration,
    stop: &AtomicBool,
) -> io::Result<Ended> {
    let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(cwd).process_group(0);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    files::restore_limit(Pid::from_child(&child));
    let mut told = Told::of(child.stdin.take(), input.unwrap_or_default());
    let mut said = LastWords::of(child.stderr.take());
    let in_time = await_end(&child, &mut told, &mut said, limit, stop);
    if !in_time {
        // The group, since it may be a script; it can't be reaped before the wait below.
        let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    drop(told);
    let how = match child.wait() {
        Ok(_) if !in_time => How::Late,
        Ok(status) => status.code().map_or(How::Killed(status), How::Exit),
        Err(error) => How::Unknown(error),
    };
    Ok(Ended { how, said: said.words() })
}

/// What it is told on its stdin, as far as it listens.
struct Told<'a> {
    /// None once all is written, or it has closed it.
    pipe: Option<ChildStdin>,
    left: &'a [u8],
}

impl Told<'_> {
    fn of(pipe: Option<ChildStdin>, left: &[u8]) -> Told<'_> {
        Told { pipe: pipe.filter(|pipe| never_waits(pipe)), left }
    }

    fn go_on(&mut self) {
        while let Some(pipe) = &self.pipe {
            match rustix::io::write(pipe, self.left) {
                Ok(n) if n < self.left.len() => self.left = &self.left[n..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Told, or it doesn't want to know.
                _ => self.pipe = None,
            }
        }
    }
}

/// The end of what it writes to its stderr, which is read all the while so that it never waits for us.
struct LastWords {
    /// None once everybody has closed it.
    pipe: Option<ChildStderr>,
    tail: Vec<u8>,
}

impl LastWords {
    fn of(pipe: Option<ChildStderr>) -> LastWords {
        // What it leaves behind may hold the pipe open: its end isn't waited for.
        LastWords { pipe: pipe.filter(|pipe| never_waits(pipe)), tail: Vec::new() }
    }

    /// Reads what lies there, a pipe's worth at most: it may never fall silent.
    fn listen(&mut self) {
        let mut chunk = [0; 4096];
        for _ in 0..16 {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    self.tail.extend_from_slice(&chunk[..n]);
                    let over = self.tail.len().saturating_sub(SAID);
                    self.tail.drain(..over);
                    if n < chunk.len() {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn words(mut self) -> String {
        self.listen();
        let lines: Vec<&[u8]> = self.tail.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(SAID_LINES)..];
        let last: Vec<String> = last.iter().map(|line| crate::item::escape(line.trim_ascii())).collect();
        if last.is_empty() { String::new() } else { format!(": {}", last.join(" | ")) }
    }
}

fn never_waits(pipe: impl AsFd) -> bool {
    rustix::io::ioctl_fionbio(pipe, true).is_ok()
}

/// Waits for the child's end; false when its time is over, or ours.
fn await_end(child: &Child, told: &mut Told<'_>, said: &mut LastWords, limit: Duration, stop: &AtomicBool) -> bool {
    let Ok(handle) = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return true };
    let began = Instant::now();
    loop {
        told.go_on();
        said.listen();
        let left = limit.saturating_sub(began.elapsed()).min(SLICE);
        if left.is_zero() || stop.load(Ordering::Acquire) {
            return false;
        }
        let slice = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = vec![PollFd::new(&handle, PollFlags::IN)];
        fds.extend(said.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        fds.extend(told.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        let woken = rustix::event::poll(&mut fds, Some(&slice)).is_ok_and(|ready| ready > 0);
        if woken && !fds[0].revents().is_empty() {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: Option<&[u8]>, limit: Duration) -> String {
        let argv = ["sh", "-c", script].map(OsString::from);
        let Ended { how, said } = run(&argv, Path::new("/"), input, limit, &AtomicBool::new(false)).unwrap();
        format!("{how:?}{said}")
    }

    #[test]
    fn it_is_told_all_it_wants_to_know_and_ends_in_time() {
        let check = |script: &str, input: &[u8], expected: &str| {
            let ended = sh(script, Some(input), Duration::from_secs(60));
            assert!(ended.starts_with(expected), "{script}: {ended}");
        };
        check("cat >&2; exit 3", b"told", "Exit(3): told");
        // More than a pipe holds, all of it, some of it, none.
        let much = vec![b'x'; 1 << 20];
        check("[ $(wc -c) = 1048576 ]", &much, "Exit(0)");
        check("head -c 10 >/dev/null; exit 4", &much, "Exit(4)");
        check("exec <&-; exit 5", &much, "Exit(5)");
        check("exit 6", b"", "Exit(6)");
        check("kill -9 $$", b"", "Killed");
    }

    #[test]
    fn it_is_ended_with_its_group_when_its_time_is_over() {
        let began = Instant::now();
        assert_eq!(sh("echo here >&2; sleep 600", Some(b"x"), Duration::from_millis(300)), "Late: here");
        assert_eq!(sh("sleep 600 & cat; sleep 600", None, Duration::from_millis(1)), "Late");
        assert!(began.elapsed() < Duration::from_secs(300));
    }
}
