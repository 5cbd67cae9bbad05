//! What a run is given, what it tells while it runs, and how it ends.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Receiver, never};

use super::consumer::{Consumer, Kind};
use super::stop::StopFlag;
use crate::item::{Counters, escape};

/// One file to split, work on and put together again.
pub struct Setup<'a> {
    /// A file of lines, plain or gzip (known by its first bytes).
    pub input: PathBuf,
    /// Where the output appears, named by [`super::output_name`]. One that lies there already is replaced, but see `keep_state`.
    pub out_dir: PathBuf,
    /// The item's name, which the output's is made from.
    pub name: OsString,
    /// Where what was merged grows until it is whole, and its journal; made here, gone after success (see `keep_state`). On the same file
    /// system as `out_dir`, and used by no other run. What an earlier run left here is gone on with.
    pub state_dir: PathBuf,
    /// The state stays after success too, and another run of the same only names the output again, whatever has become of its
    /// name: until the caller, who has noted the success, removes it. Whatever else lies under the name is never replaced, and
    /// ends the run with [`Error::Taken`].
    pub keep_state: bool,
    /// The most lines in a batch; fewer when they take more than a sixth of `memory`.
    pub lines: u64,
    /// The level of gzip, 0 (stored) to 12; none writes plain.
    pub compress: Option<u8>,
    /// How often a batch is tried again after a failure of its own.
    pub retries: u32,
    /// The wait before the first retry; doubles up to ten minutes.
    pub backoff: Duration,
    /// The most bytes of lines and of finished parts that wait in memory. Takes effect from 1 MiB; for all slots to have
    /// work, about four batches a slot.
    pub memory: u64,
    /// What else the output depends on, such as the command. State with another tag is not gone on with.
    pub tag: String,
    /// Consumers, each a slot of its own, which may come and go while it runs. While nobody can come any more and none is
    /// left, a run with work left fails.
    pub slots: Receiver<Box<dyn Consumer + Send + 'a>>,
    /// A message has consumers that wait for a batch asked whether they want more.
    pub calls: Receiver<()>,
    /// Ends the run with [`Error::Stopped`]; consumers that can should heed it too.
    pub stop: StopFlag,
    /// Called on the calling thread at the start, and whenever a batch was finished.
    pub progress: Box<dyn FnMut(Progress) + Send + 'a>,
    /// Called there with all that was counted over what is merged: at the start, by earlier runs, and whenever it changes.
    pub counted: Box<dyn FnMut(&Counters) + Send + 'a>,
    /// Called there too: with true once further slots would have something to do, with false when all batches are taken.
    pub ahead: Box<dyn FnMut(bool) + Send + 'a>,
}

impl<'a> Setup<'a> {
    /// Batches of 5,000 lines, plain output, two retries, 48 MiB.
    pub fn new(
        input: &Path,
        out_dir: &Path,
        name: impl Into<OsString>,
        slots: Receiver<Box<dyn Consumer + Send + 'a>>,
    ) -> io::Result<Setup<'a>> {
        Ok(Setup {
            input: input.to_owned(),
            out_dir: out_dir.to_owned(),
            name: name.into(),
            state_dir: out_dir.join(".parts"),
            keep_state: false,
            lines: 5000,
            compress: None,
            retries: 2,
            backoff: Duration::ZERO,
            memory: 48 << 20,
            tag: String::new(),
            slots,
            stop: StopFlag::new()?,
            calls: never(),
            progress: Box::new(|_| ()),
            counted: Box::new(|_| ()),
            ahead: Box::new(|_| ()),
        })
    }

    /// The first thing that makes no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.lines == 0 {
            return Err(Error::Setup("`lines` is 0: a batch needs at least one line".to_owned()));
        }
        if Path::new(&self.name).file_name() != Some(&self.name) || self.name.as_encoded_bytes().contains(&0) {
            let shown = escape(self.name.as_encoded_bytes());
            return Err(Error::Setup(format!("`{shown}` can't be a file's name: the output is called after it")));
        }
        match self.compress {
            Some(level) if 12 < level => {
                Err(Error::Setup(format!("there is no compression level {level}: 0 (stored) to 12 (small)")))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup { input, out_dir, state_dir, lines, compress, retries, memory, .. } = self;
        let mut shown = f.debug_struct("Setup");
        shown.field("input", input).field("out_dir", out_dir).field("state_dir", state_dir).field("lines", lines);
        shown.field("compress", compress).field("retries", retries).field("memory", memory).finish_non_exhaustive()
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Lines whose part stands in the output.
    pub lines: u64,
    /// Batches whose part does.
    pub batches: u64,
    /// Of the input as it lies on the disk, what finished batches stand for.
    pub bytes: u64,
    /// All of it.
    pub bytes_total: u64,
}

/// What a run that succeeded did.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The finished file.
    pub output: PathBuf,
    /// Its size.
    pub output_bytes: u64,
    /// All batches of the input, in however many runs.
    pub batches: u64,
    /// All its lines.
    pub lines: u64,
    /// Uncompressed.
    pub input_bytes: u64,
    /// Batches that an earlier run had done.
    pub resumed: u64,
    /// How often a batch was tried again.
    pub retried: u64,
    /// What was counted over all batches, each once.
    pub counters: Counters,
}

/// Why a run ended without its output. What was merged stays in the state directory in every case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was asked for something impossible.
    #[error("{0}")]
    Setup(String),
    /// The input can't be read, or isn't what it says it is.
    #[error("cannot read `{}`: {message}", escape(path.as_os_str().as_encoded_bytes()))]
    Input {
        /// The input.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
        /// It is the file's fault: reading it again won't help.
        damaged: bool,
    },
    /// A batch failed for good: `batch 17 (lines 85001-90000): exit code 3: …`.
    #[error("{batch}: {message}{}", after(*attempts))]
    Batch {
        /// `batch 17 (lines 85001-90000)`.
        batch: String,
        /// 17.
        index: u64,
        /// What its last failure said.
        message: String,
        /// How often it was tried.
        attempts: u32,
        /// What its last failure was.
        kind: Kind,
    },
    /// The output or its journal can't be written: the host's fault.
    #[error("cannot {what} `{}`: {source}", escape(path.as_os_str().as_encoded_bytes()))]
    Output {
        /// What was tried: a verb.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something else lies where the output is to appear: what the consumers left there, say.
    #[error("`{}` is there already, and is the name of the output: it was not replaced", escape(path.as_os_str().as_encoded_bytes()))]
    Taken {
        /// The output's name.
        path: PathBuf,
    },
    /// There is work left, and nobody to do it.
    #[error("no slot is left to work on the batches, and none can come any more{}", because(last))]
    NoSlots {
        /// What the last slot that was lost said.
        last: Option<String>,
    },
    /// A part of the run itself gave up: the host's fault, or ours.
    #[error("{0}")]
    Broken(String),
    /// By [`Setup::stop`].
    #[error("stopped")]
    Stopped,
}

fn after(attempts: u32) -> String {
    if attempts > 1 { format!(" (tried {attempts} times)") } else { String::new() }
}

fn because(last: &Option<String>) -> String {
    last.as_ref().map_or(String::new(), |last| format!("; the last one ended with: {last}"))
}
