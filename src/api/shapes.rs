//! What requests are answered with, beside the view: contract shapes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Refusal;
use super::view::Listed;

/// How every refusal looks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: Refusal,
}

/// One page of items.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page {
    pub items: Vec<Listed>,
    /// For the next page; null when this is the last.
    pub next: Option<String>,
}

/// Attempts, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Attempts {
    pub attempts: Vec<AttemptView>,
    /// There are older ones within the time.
    pub more: bool,
    /// False while the ledger can't tell.
    pub whole: bool,
}

/// One try at one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    pub id: String,
    pub job: String,
    pub name: String,
    pub route: Option<String>,
    pub n: u32,
    pub devices: Vec<String>,
    pub arrived_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// running, done, failed, cancelled, or cut: ended by the director's own end.
    pub outcome: String,
    pub reason: Option<String>,
}

impl From<crate::ledger::Try> for AttemptView {
    fn from(it: crate::ledger::Try) -> AttemptView {
        let crate::ledger::Try { id, job, name, route, attempt: n, devices, .. } = it;
        let (arrived_at, started_at, ended_at) = (it.arrived_at, it.started_at, it.ended_at);
        AttemptView {
            id,
            job,
            name,
            route,
            n,
            devices,
            arrived_at,
            started_at,
            ended_at,
            outcome: it.outcome,
            reason: it.reason,
        }
    }
}

/// What ended in equal parts of a time.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Trend {
    pub buckets: Vec<TrendBucket>,
    /// False while the ledger can't tell.
    pub whole: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrendBucket {
    /// When it begins.
    pub at: Timestamp,
    pub done: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Seconds from the arrival to the first start that half of them waited at most; null where nothing started.
    pub waited_p50_s: Option<f64>,
    pub waited_p95_s: Option<f64>,
}

/// Items of one route that wait for the same reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaitingView {
    pub route: Option<String>,
    /// claimed, ready, retrying or held.
    pub state: String,
    /// The planner's own words.
    pub reason: Option<String>,
    pub items: u64,
    /// When the one that waits longest arrived.
    pub since: Option<Timestamp>,
}

/// An item that was uploaded: it lies in the inbox, whole, and is claimed from there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Uploaded {
    pub name: String,
    pub folder: String,
    pub name_b64: String,
    /// The route that its name leads to.
    pub route: Option<String>,
    pub bytes: u64,
}

/// The director's state from here on.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StateAnswer {
    pub state: super::view::DirectorState,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReleaseAnswer {
    pub released: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CordonAnswer {
    pub cordoned: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UncordonAnswer {
    pub uncordoned: String,
}

/// A job, or an item in the inbox, for which it can't be done.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NotDone {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_b64: Option<String>,
    pub message: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CancelAnswer {
    /// Ids of jobs, names of items in the inbox.
    pub cancelled: Vec<String>,
    pub refused: Vec<NotDone>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RetryAnswer {
    /// The jobs' directories.
    pub retried: Vec<String>,
    pub refused: Vec<NotDone>,
}
