//! The process of one attempt: started, signalled with its whole group, waited for. Dropped while it runs (a panic), it
//! is killed: nobody would be left to wait for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpgid, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};

use super::strays::Registered;
use crate::proc::{Owner, ProcStat};
use crate::sys::spawn::{NotStarted, Spawn};

#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    /// Readable once it has ended.
    handle: OwnedFd,
    pub(crate) start_ticks: u64,
    waited_for: bool,
    _registered: Registered,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

impl Process {
    pub(crate) fn start(order: &Spawn, owner: impl Into<Owner>) -> Result<Process, NotStarted> {
        let pid = order.start().map_err(|error| order.why_not(&error))?;
        // Read before anyone could wait for it, so it is there even when it has ended.
        let start_ticks = ProcStat::read(pid.as_raw_pid()).map_or(0, |stat| stat.start_ticks);
        let registered = Registered::new(pid.as_raw_pid(), owner.into(), start_ticks);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Ok(Process { pid, handle, start_ticks, waited_for: false, _registered: registered }),
            Err(error) => {
                let _gone = kill_process_group(pid, Signal::KILL);
                let _status = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                Err(NotStarted::by_host(format!("no handle on the process: {error}")))
            }
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Asks the whole group to end.
    pub(crate) fn ask(&self) {
        self.signal(Signal::TERM);
        // One that was stopped can't hear before it goes on.
        self.signal(Signal::CONT);
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // It isn't waited for yet, so its number is its own still. A process that has ended doesn't mind.
        let _gone = kill_process_group(self.pid, signal);
        // It may have moved to another group.
        if getpgid(Some(self.pid)) != Ok(self.pid) {
            let _gone = pidfd_send_signal(&self.handle, signal);
        }
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> io::Result<Exit> {
        let status = loop {
            match waitid(WaitId::PidFd(self.handle.as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                status => break status,
            }
        };
        self.waited_for = true;
        let status = status?.ok_or(Errno::CHILD)?;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ok(Exit::Code(code)),
            (None, Some(signal)) => Ok(Exit::Signal(signal)),
            (None, None) => Err(io::Error::other("the process ended in no known way")),
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.waited_for {
            self.kill();
            let _exit = self.wait();
        }
    }
}
