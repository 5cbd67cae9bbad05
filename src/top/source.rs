//! Where the facts come from: the director's interface when one listens, the directories when none does. All that is
//! known here of the interface stands in this file.

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::ask::Ask;
use super::facts::{FAILED, Facts, HELD, WAITING};
use crate::api::client::{Client, ClientError, encoded};
use crate::api::directories::Directories;
use crate::api::ended::Query;
use crate::api::reference;
use crate::api::shapes::Page;
use crate::api::view::{Listed, Shown, Status};
use crate::api::{DeviceBody, JobsBody};
use crate::config::Config;

/// What waits, in the words of the interface.
const WAITS: [&str; 4] = ["claimed", "retrying", "ready", "arriving"];

/// See the module.
#[derive(Clone, Debug)]
pub struct Source {
    directories: Directories,
    config: Option<Config>,
}

impl Source {
    /// A root that exists; a broken configuration keeps nobody from looking.
    pub fn new(directories: Directories, config: Option<Config>) -> Source {
        Source { directories, config }
    }

    pub(super) fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(self.directories.root())
    }

    /// Waits until something newer than `after` is published, for a moment at most: a director that took another's
    /// place in between counts from the beginning.
    pub(super) fn changed(&self, client: &Client, after: u64) -> Result<u64, ClientError> {
        client.changed(after, 2).map(|change| change.number)
    }

    /// All that is shown. What failed is read again when the counts of what has ended aren't those of `before`.
    pub(super) fn look(&self, client: &Client, before: Option<&Facts>) -> Result<Facts, ClientError> {
        let status: Status = client.get("/v1/status")?;
        let rows = |states: &str, limit: usize| -> Result<Vec<Listed>, ClientError> {
            let page: Page = client.get(&format!("/v1/items?state={}&limit={limit}", encoded(states)))?;
            Ok(page.items)
        };
        let ended = |it: &Status| (it.pid, it.counts.done, it.counts.failed, it.counts.cancelled);
        let failed = match before.filter(|before| ended(&before.status) == ended(&status)) {
            Some(before) => before.failed.clone(),
            None if status.counts.failed == 0 => Vec::new(),
            None => rows("failed", FAILED)?,
        };
        let mut held = if status.counts.held == 0 { Vec::new() } else { rows("held", HELD)? };
        for row in held.iter_mut().filter(|row| row.arrived_at.is_none()) {
            row.arrived_at = status.held.iter().find(|held| held.name == row.name).map(|held| held.since);
        }
        let waiting = rows(&WAITS.join(","), WAITING)?;
        Ok(Facts { at: Timestamp::now(), status, waiting, held, failed })
    }

    /// What the directories tell while no director runs.
    pub(super) fn without(&self) -> std::io::Result<Facts> {
        let rows = |states: &[&str], limit: usize| {
            let states = states.iter().map(|state| (*state).to_owned()).collect();
            self.directories.rows(&Query { states, limit: Some(limit), ..Query::default() })
        };
        Ok(Facts {
            at: Timestamp::now(),
            status: self.directories.status(self.config.as_ref())?,
            waiting: rows(&WAITS, WAITING)?,
            held: rows(&["held"], HELD)?,
            failed: rows(&["failed"], FAILED)?,
        })
    }

    /// One job or waiting item.
    pub(super) fn show(&self, name: &str) -> Result<Shown, String> {
        match self.connect() {
            Ok(client) => client.get(&format!("/v1/items/{}", encoded(name))).map_err(|wrong| wrong.to_string()),
            Err(ClientError::NoDirector { .. }) => {
                let rows = self.directories.candidates(name).map_err(|wrong| wrong.to_string())?;
                let row = reference::resolve(name, rows).map_err(|wrong| wrong.to_string())?;
                Ok(self.directories.show(row))
            }
            Err(wrong) => Err(wrong.to_string()),
        }
    }

    /// Where a job lies now.
    pub(super) fn dir(&self, row: &Listed) -> Option<PathBuf> {
        self.directories.dir(row)
    }

    /// Asks, and says what came of it.
    pub(super) fn ask(&self, ask: &Ask) -> Result<String, String> {
        let client = self.connect().map_err(told)?;
        let post = |path: &str| client.post::<Value>(path, &json!({})).map_err(told);
        let jobs = |path: &str, job: &String| {
            let body = JobsBody { jobs: vec![job.clone()], ..JobsBody::default() };
            let answer: Value = client.post(path, &body).map_err(told)?;
            refused(&answer).map_or(Ok(()), Err)
        };
        let device = |path: &str, device: &String| {
            client.post::<Value>(path, &DeviceBody { device: device.clone() }).map_err(told)
        };
        match ask {
            Ask::Pause => post("/v1/pause").map(|_| "paused: nothing new starts until p".to_owned()),
            Ask::Resume => post("/v1/resume").map(|_| "running again".to_owned()),
            Ask::Drain => post("/v1/drain").map(|_| "draining: what runs ends, then the director does".to_owned()),
            Ask::Retry(job) => jobs("/v1/retry", job).map(|()| format!("{job} is to be tried again")),
            Ask::Cancel(job) => jobs("/v1/cancel", job).map(|()| format!("{job} is cancelled")),
            Ask::Cordon(id) => device("/v1/cordon", id).map(|_| format!("cordoned: {id} takes no more work until o")),
            Ask::Uncordon(id) => device("/v1/uncordon", id).map(|_| format!("{id} takes work again")),
        }
    }
}

/// Why an answer that went well as a whole did nothing for the one job.
fn refused(answer: &Value) -> Option<String> {
    let first = answer.get("refused")?.as_array()?.first()?;
    Some(first.get("message").and_then(Value::as_str).unwrap_or("refused").to_owned())
}

/// An error and what to do about it, in one line.
fn told(wrong: ClientError) -> String {
    match wrong {
        ClientError::Refused { refusal, .. } if !refusal.help.is_empty() => {
            format!("{}: {}", refusal.message, refusal.help)
        }
        wrong => wrong.to_string(),
    }
}
