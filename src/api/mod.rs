//! The interface: HTTP on the root's Unix socket. It reads the published view and sends requests to the director
//! through a channel; no client can slow the director.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::Config;
use crate::item::JobId;

pub mod client;
pub mod cursor;
mod diff;
pub mod directories;
pub mod ended;
mod feed;
mod guard;
mod incoming;
pub mod indexed;
mod journal;
mod mask;
mod page;
mod patient;
mod pipe;
pub mod reference;
pub mod results;
mod ring;
mod routes;
pub mod server;
pub mod shapes;
mod socket;
pub mod tally;
#[cfg(test)]
mod tests;
pub mod told;
pub mod unlisted;
pub mod view;

pub use ended::{Ended, Query};
pub use indexed::Indexed;
pub use server::{Patience, Server, ServerSetup, serve};
pub use view::View;

/// What a client asks of the director; answered through `reply`, exactly once.
#[derive(Debug)]
pub struct Request {
    pub what: Command,
    pub reply: tokio::sync::oneshot::Sender<Result<serde_json::Value, Refusal>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Command {
    Pause,
    Resume,
    Drain,
    Release,
    /// By id, index or UUID.
    Cordon {
        device: String,
    },
    Uncordon {
        device: String,
    },
    /// Jobs in `claimed/`, by id.
    Cancel {
        jobs: Vec<JobId>,
        inbox: Vec<InboxRef>,
    },
    /// Ended jobs, by id.
    Retry {
        jobs: Vec<JobId>,
    },
}

/// Where the socket lies under the root.
pub const SOCKET: &str = ".gamdok/sock";

/// An item that still lies in the inbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InboxRef {
    pub folder: String,
    pub name_b64: String,
}

/// `{"jobs"}`, named as people name them; for `retry` also `{"failed":true,"route"?}`.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobsBody {
    #[serde(default)]
    pub jobs: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
}

/// `{"device"}`: an id or an index.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceBody {
    pub device: String,
}

/// A refused request; the command line prints it and exits 1 or 2.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{message}")]
pub struct Refusal {
    pub code: String,
    pub message: String,
    pub help: String,
}

/// Where the director publishes and everyone else reads. Numbered, so that a reader can wait for what comes after.
#[derive(Clone, Debug)]
pub struct Board {
    current: watch::Sender<Arc<View>>,
    config: watch::Sender<Option<Arc<serde_json::Value>>>,
    journal: Arc<journal::Journal>,
}

impl Board {
    pub fn new(first: View) -> Board {
        Board {
            current: watch::Sender::new(Arc::new(first)),
            config: watch::Sender::new(None),
            journal: Arc::default(),
        }
    }

    /// The configuration in force from here on.
    pub fn configure(&self, config: &Config) {
        self.config.send_replace(Some(Arc::new(mask::masked(config))));
    }

    /// With every secret masked; none before the director has told it.
    pub fn config(&self) -> Option<Arc<serde_json::Value>> {
        self.config.borrow().clone()
    }

    /// A job that ended: it may have come and gone between two publications. Costs nothing when nobody follows the events.
    pub fn ended(&self, row: impl FnOnce() -> view::Listed) {
        self.journal.note(row);
    }

    pub fn publish(&self, view: View) {
        self.current.send_replace(Arc::new(view));
    }

    pub fn read(&self) -> Arc<View> {
        self.current.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.current.subscribe()
    }
}
