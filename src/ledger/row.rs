//! One job as the ledger keeps it: made from the records that the director sends, or read from a job's directory. Both
//! ways lead to the same row.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api::view::Listed;
use crate::item::{self, Attempt, ItemName, JobDir, JobId, JobRecord, Outcome, ResultRecord};

/// One job.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub id: JobId,
    /// The directory's name.
    pub job: String,
    /// What the directory lies in, under the root: `claimed`, `done/2026-11-22`, `failed/2026-11-22`.
    pub place: String,
    pub name: ItemName,
    /// The intake folder under `inbox/`; empty for the inbox itself.
    pub folder: String,
    pub route: Option<String>,
    /// The word of `list`.
    pub state: String,
    pub attempts: u32,
    /// Of the last attempt.
    pub devices: Vec<String>,
    pub arrived_at: Option<Timestamp>,
    pub claimed_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub reason: Option<String>,
    pub message: Option<String>,
    /// What its route declares for each GPU, in bytes.
    pub gpu_memory: Option<u64>,
}

/// All that the ledger keeps of one job.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) row: Row,
    pub(super) attempts: Vec<Attempt>,
    /// Once it has ended.
    pub(super) result: Option<Arc<ResultRecord>>,
}

/// The place of jobs that haven't ended.
pub(super) const CLAIMED: &str = "claimed";

impl Row {
    /// The job's directory.
    pub fn dir(&self, root: &Path) -> PathBuf {
        root.join(&self.place).join(&self.job)
    }

    /// As `list --json` shows it.
    pub fn listed(&self) -> Listed {
        Listed {
            id: Some(self.id.to_string()),
            job: Some(self.job.clone()),
            name: self.name.escaped(),
            route: self.route.clone(),
            state: self.state.clone(),
            attempts: self.attempts,
            devices: self.devices.clone(),
            arrived_at: self.arrived_at,
            finished_at: self.finished_at,
            reason: self.reason.clone(),
            folder: self.folder.clone(),
            name_b64: Some(self.name.base64()),
            estimate: None,
        }
    }
}

impl Account {
    /// A job in `claimed/`.
    pub(super) fn live(record: &JobRecord, job: String, state: &str) -> Account {
        Account::new(record.id, job, CLAIMED.to_owned(), Some(Brief::of(record)), Told::Live(state))
    }

    /// A job with its outcome.
    pub(super) fn ended(record: &JobRecord, result: &Arc<ResultRecord>, job: String, place: String) -> Account {
        Account::new(record.id, job, place, Some(Brief::of(record)), Told::Result(result.clone()))
    }

    /// Reads a job's directory; nothing when it is gone or not whole yet. In an ended job's, files that are missing or
    /// broken leave blanks: what the directory's name and place tell is always there.
    pub(super) fn read(root: &Path, place: &str, job: &JobDir, id: JobId) -> io::Result<Option<Account>> {
        let path = root.join(place).join(job.as_str());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let brief: Option<Brief> = read_json(&dir, "job.json");
        if place == CLAIMED && brief.is_none() {
            // A claim in the making: its entry follows.
            return Ok(None);
        }
        let result: Option<ResultRecord> = (place != CLAIMED).then(|| read_json(&dir, "result.json")).flatten();
        let told = match result {
            _ if place == CLAIMED => Told::Live(CLAIMED),
            Some(result) => Told::Result(Arc::new(result)),
            None => Told::Nothing,
        };
        Ok(Some(Account::new(id, job.as_str().to_owned(), place.to_owned(), brief, told)))
    }

    fn new(id: JobId, job: String, place: String, brief: Option<Brief>, told: Told<'_>) -> Account {
        let stem = job.rsplit_once('~').map_or(job.as_str(), |(stem, _)| stem);
        let mut brief = brief.unwrap_or_else(|| Brief::blank(stem));
        let mut row = Row {
            id,
            name: brief.item_name(),
            folder: brief.folder,
            route: Some(brief.route.name).filter(|route| !route.is_empty()),
            state: String::new(),
            attempts: 0,
            devices: Vec::new(),
            arrived_at: brief.arrived_at,
            claimed_at: brief.claimed_at,
            finished_at: None,
            reason: None,
            message: None,
            gpu_memory: brief.route.gpu_memory,
            job,
            place,
        };
        let mut ended = None;
        match told {
            Told::Live(state) => row.state = state.to_owned(),
            Told::Result(result) => {
                if let Some(name) = ItemName::from_base64(&result.name_b64) {
                    row.name = name;
                }
                row.route = result.route.clone();
                row.state = result.outcome.as_str().to_owned();
                row.arrived_at = result.arrived_at;
                row.claimed_at = result.claimed_at;
                row.finished_at = Some(result.finished_at);
                row.reason = result.reason.map(|reason| reason.as_str().to_owned());
                row.message = result.message.clone();
                brief.attempts = result.attempts.clone();
                ended = Some(result);
            }
            Told::Nothing => {
                let done = row.place.starts_with("done/");
                row.state = if done { Outcome::Done } else { Outcome::Failed }.as_str().to_owned();
                row.message = Some("its result.json is missing or can't be read".to_owned());
            }
        }
        row.attempts = brief.attempts.last().map_or(0, |attempt| attempt.n);
        let devices = brief.attempts.last().map(|attempt| attempt.devices.as_slice()).unwrap_or_default();
        row.devices = devices.iter().map(|device| device.0.clone()).collect();
        Account { row, attempts: brief.attempts, result: ended }
    }
}

/// What is known of how the job stands.
enum Told<'a> {
    /// It hasn't ended; the word for it.
    Live(&'a str),
    Result(Arc<ResultRecord>),
    /// It lies among the ended ones without a readable result.
    Nothing,
}

/// What the ledger takes from job.json: few fields, so that a job.json of another version is still understood.
#[derive(Deserialize)]
struct Brief {
    #[serde(default)]
    name: String,
    #[serde(default)]
    name_b64: String,
    #[serde(default)]
    folder: String,
    #[serde(default)]
    route: BriefRoute,
    arrived_at: Option<Timestamp>,
    claimed_at: Option<Timestamp>,
    #[serde(default)]
    attempts: Vec<Attempt>,
}

#[derive(Default, Deserialize)]
struct BriefRoute {
    #[serde(default)]
    name: String,
    #[serde(default)]
    gpu_memory: Option<u64>,
}

impl Brief {
    fn of(record: &JobRecord) -> Brief {
        Brief {
            name: record.name.clone(),
            name_b64: record.name_b64.clone(),
            folder: record.folder.clone(),
            route: BriefRoute {
                name: record.route.name.clone(),
                gpu_memory: record.route.gpu_memory.map(|bytes| bytes.0),
            },
            arrived_at: record.arrived_at,
            claimed_at: Some(record.claimed_at),
            attempts: record.attempts.clone(),
        }
    }

    fn blank(stem: &str) -> Brief {
        Brief {
            name: stem.to_owned(),
            name_b64: String::new(),
            folder: String::new(),
            route: BriefRoute::default(),
            arrived_at: None,
            claimed_at: None,
            attempts: Vec::new(),
        }
    }

    fn item_name(&self) -> ItemName {
        ItemName::from_base64(&self.name_b64).unwrap_or_else(|| ItemName::new(&self.name))
    }
}

/// More than any record the spool writes; a larger file is not one of them.
const LARGEST: u64 = 64 << 20;

/// Reads one of a job's records, which a worker may have replaced by anything: nothing is followed, nothing blocks.
fn read_json<T: DeserializeOwned>(dir: &OwnedFd, name: &str) -> Option<T> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?);
    if !file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= LARGEST) {
        return None;
    }
    let mut text = Vec::new();
    file.take(LARGEST).read_to_end(&mut text).ok()?;
    match serde_json::from_slice(&text) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::debug!(file = name, error = %item::escape(error.to_string().as_bytes()), "not readable");
            None
        }
    }
}
