//! One process from its start to its end: what it is told, what it answers, and whose task it was when it ended.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde_json::Value;

use super::Order;
use super::carrier::{Carrier, Place, WINDOW};
use crate::item::JobId;
use crate::pool::TaskError;
use crate::sys::spawn::Spawn;
use crate::worker::channel::{Broken, Message, Reader};
use crate::worker::message;
use crate::worker::process::{Exit, Process};
use crate::worker::strays::{self, Trail};

/// From the request to end to the kill.
const GRACE: Duration = Duration::from_secs(10);
/// Tasks quicker than this are handed over several at a time.
const SHORT: Duration = Duration::from_millis(2);

pub(super) struct Course<'a> {
    carrier: &'a Carrier,
    id: JobId,
    process: Process,
    channel: OwnedFd,
    reader: Reader,
    /// What couldn't be sent yet.
    outgoing: Vec<u8>,
    /// Tasks that it was given, in the order of their answers.
    handed: VecDeque<(JobId, Order)>,
    number: u128,
    /// It has ended or closed its side while messages were still to be sent.
    deaf: bool,
    /// How many tasks the last message had, and how many answers came in all.
    in_last: usize,
    served: u64,
    ready: bool,
    /// It gets no more tasks.
    retiring: bool,
    /// When it began what it does now: loading, or the first of `handed`.
    since: Instant,
    /// How long a task takes it, lately.
    pace: Option<Duration>,
}

/// Why a process is left.
enum Over {
    /// It has done what it had, and may go.
    Done,
    /// It is of no more use; the words for the task that it was at.
    Lost(String),
}

impl<'a> Course<'a> {
    pub(super) fn start(carrier: &'a Carrier, place: &Place) -> Result<Course<'a>, String> {
        let plan = &carrier.plan;
        let program = plan.find()?;
        let cannot = |error: std::io::Error| format!("no worker can be started: {error}");
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|e| cannot(e.into()))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|e| cannot(e.into()))?;
        let null = File::open("/dev/null").map_err(cannot)?;
        let (out, err) = (std::io::stdout(), std::io::stderr());
        let mut descriptors: Vec<BorrowedFd> = vec![null.as_fd(), out.as_fd(), err.as_fd(), theirs.as_fd()];
        // Inherited, they keep the devices locked should this process be killed.
        descriptors.extend(place.loan.iter().flat_map(|loan| &loan.locks).map(|lock| lock.as_fd()));
        let order =
            Spawn { program: &program, argv: &plan.argv, env: &place.env, cwd: &plan.cwd, descriptors: &descriptors };
        let process = Process::start(&order, place.id).map_err(|not| not.error)?;
        if let Some(loan) = &place.loan {
            loan.runs(process.pid());
        }
        Ok(Course {
            carrier,
            id: place.id,
            process,
            channel: ours,
            reader: Reader::default(),
            outgoing: Vec::new(),
            handed: VecDeque::new(),
            number: 0,
            deaf: false,
            in_last: 0,
            served: 0,
            ready: false,
            retiring: false,
            since: Instant::now(),
            pace: None,
        })
    }

    /// Has it work on these, and on what comes, until it is no longer wanted or of use. Answers what it hadn't come to.
    pub(super) fn run(mut self, mut left: VecDeque<Order>) -> VecDeque<Order> {
        let why = match self.work(&mut left) {
            Over::Done => None,
            Over::Lost(why) => Some(why),
        };
        let exit = self.end(why.is_none());
        if let Some(why) = why {
            let why = if why.is_empty() { ended(exit) } else { why };
            // The first that is unanswered is the one it was at; before it was ready, that is the first it was started for.
            // One that ended between two messages never read the last: its tasks go to the next process. That one has served
            // nothing, so this ends.
            let unread = self.deaf && self.served > 0 && self.handed.len() == self.in_last;
            let at = if unread {
                None
            } else {
                self.handed.pop_front().map(|(_, order)| order).or_else(|| left.pop_front())
            };
            at.into_iter().for_each(|order| order.promise.settle(Err(TaskError::Lost(why.clone()))));
        }
        for (_, order) in self.handed.drain(..).rev() {
            left.push_front(order);
        }
        left
    }

    fn work(&mut self, left: &mut VecDeque<Order>) -> Over {
        loop {
            self.hand_over(left);
            if self.ready && self.handed.is_empty() {
                if self.retiring {
                    return Over::Done;
                }
                if left.is_empty() {
                    match self.carrier.orders.recv_timeout(self.carrier.plan.idle_timeout) {
                        Ok(order) => left.extend(self.carrier.begun(order)),
                        Err(_) => return Over::Done,
                    }
                }
                // One that ended while it had nothing to do costs no task.
                if self.has_ended() {
                    return Over::Done;
                }
                continue;
            }
            if let Err(why) = self.exchange() {
                return Over::Lost(why);
            }
        }
    }

    fn has_ended(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Gives it what it may have in hand.
    fn hand_over(&mut self, left: &mut VecDeque<Order>) {
        if !self.ready || self.retiring {
            return;
        }
        let window = if self.pace.is_some_and(|pace| pace < SHORT) { WINDOW } else { 1 };
        let before = self.handed.len();
        while self.handed.len() < window {
            let next = left.pop_front().or_else(|| {
                let order = self.carrier.orders.try_recv().ok()?;
                self.carrier.begun(order)
            });
            let Some(order) = next else { break };
            let opening: &[u8] = if self.handed.len() == before { b"{\"type\":\"items\",\"items\":[" } else { b"," };
            self.number += 1;
            let id = JobId(ulid::Ulid(self.number));
            self.outgoing.extend_from_slice(opening);
            self.outgoing.extend_from_slice(format!("{{\"id\":\"{id}\",\"attempt\":1,\"task\":").as_bytes());
            self.outgoing.extend_from_slice(&order.json);
            self.outgoing.push(b'}');
            self.handed.push_back((id, order));
        }
        if self.handed.len() > before {
            self.outgoing.extend_from_slice(b"]}\n");
            self.in_last = self.handed.len() - before;
        }
        if before == 0 {
            self.since = Instant::now();
        }
    }

    /// Sends and receives once there is something to; the words are for the task that it is at.
    fn exchange(&mut self) -> Result<(), String> {
        let plan = &self.carrier.plan;
        let limit = if self.ready { plan.timeout } else { Some(plan.ready_timeout) };
        let deadline = limit.and_then(|limit| self.since.checked_add(limit));
        self.send()?;
        let span = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let span = span.and_then(|span| Timespec::try_from(span).ok());
        let wanted = if self.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = [PollFd::new(&self.channel, wanted), PollFd::new(&self.process, PollFlags::IN)];
        match poll(&mut fds, span.as_ref()) {
            Ok(0) if self.ready => {
                Err(format!("over its time of {}", humantime::format_duration(limit.unwrap_or_default())))
            }
            Ok(0) => {
                let limit = humantime::format_duration(limit.unwrap_or_default());
                Err(format!("the worker didn't say within {limit} that it is ready"))
            }
            Ok(_) => {
                let (heard, ended) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
                if heard {
                    self.receive()?;
                }
                // What it left behind may hold its channel open; its last words were read.
                if ended && (self.handed.front().is_some() || !self.ready) { Err(String::new()) } else { Ok(()) }
            }
            Err(Errno::INTR) => Ok(()),
            Err(error) => Err(format!("cannot wait for the worker: {error}")),
        }
    }

    fn send(&mut self) -> Result<(), String> {
        while !self.outgoing.is_empty() {
            match send(&self.channel, &self.outgoing, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.outgoing.drain(..sent)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // It has gone: its last words are read first.
                Err(_) => {
                    self.deaf = true;
                    self.outgoing.clear();
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), String> {
        let mut chunk = [0; 1 << 16];
        loop {
            let read = match recv(&self.channel, &mut chunk, RecvFlags::empty()) {
                Ok((0, _)) => return Err(String::new()),
                // What it was sent lay unread when it closed (unix(7)).
                Err(Errno::CONNRESET) => {
                    self.deaf = true;
                    return Err(String::new());
                }
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(format!("the worker's channel can't be read: {error}")),
            };
            let mut reader = std::mem::take(&mut self.reader);
            let outcome = reader.feed(&chunk[..read], &mut |message| self.hear(message));
            self.reader = reader;
            outcome.map_err(|Broken(what)| format!("the worker broke the protocol: {what}"))?;
        }
    }

    fn hear(&mut self, message: Message) -> Result<(), Broken> {
        match message {
            Message::Ready { .. } => self.ready = true,
            Message::Done { id, result } => {
                let promise = self.answered(id)?;
                let value = result.map_or(Ok(Value::Null), |result| serde_json::from_str(result.get()));
                promise.settle(value.map_err(|error| TaskError::Failed(format!("its result can't be read: {error}"))));
            }
            Message::Failed { id, error, retry } => {
                // A failure may have left it in a bad way; what it has in hand it finishes.
                self.retiring |= retry;
                self.answered(id)?.settle(Err(TaskError::Failed(error)));
            }
            Message::Progress { .. } | Message::Count { .. } | Message::Heartbeat | Message::Unknown { .. } => {}
        }
        Ok(())
    }

    /// The task that an answer is for: the first in hand.
    fn answered(&mut self, id: Option<JobId>) -> Result<crate::pool::ticket::Promise<Value>, Broken> {
        let Some((first, _)) = self.handed.front() else {
            return Err(Broken("an answer, and no task is in hand".to_owned()));
        };
        // Without an id nobody could tell an answer that comes twice from the next one's.
        let Some(id) = id else { return Err(Broken("an answer without an `id`".to_owned())) };
        if id != *first {
            return Err(Broken(format!("an answer for `{id}`, and the next in line is `{first}`")));
        }
        self.served += 1;
        let now = Instant::now();
        let took = now.saturating_duration_since(self.since);
        self.pace = Some(self.pace.map_or(took, |pace| (pace * 7 + took) / 8));
        self.since = now;
        self.handed.pop_front().map(|(_, order)| order.promise).ok_or_else(|| Broken(String::new()))
    }

    /// Ends the process: by its own leave where it may go, else at once. What it leaves behind is ended with it.
    fn end(&mut self, may_go: bool) -> std::io::Result<Exit> {
        if may_go {
            self.outgoing.extend_from_slice(message::STOP);
            let _ = self.send();
            // A worker that reads no more sees the end of its channel.
            let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Write);
        } else {
            self.process.ask();
        }
        let until = Instant::now() + GRACE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let span = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&self.process, PollFlags::IN)], span.as_ref()) {
                Err(Errno::INTR) => {}
                _ => break,
            }
        }
        self.process.kill();
        let exit = self.process.wait();
        let leader = Some((self.process.pid(), self.process.start_ticks));
        strays::end(&Trail { owner: self.id.into(), leader, dir: None }, GRACE);
        exit
    }
}

fn ended(exit: std::io::Result<Exit>) -> String {
    match exit {
        Ok(Exit::Code(code)) => format!("the worker ended with exit code {code}"),
        Ok(Exit::Signal(signal)) => format!("the worker was ended by signal {signal}"),
        Err(error) => format!("the worker ended: {error}"),
    }
}
