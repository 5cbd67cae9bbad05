//! What the event stream tells: contract shapes. Each event carries the whole of what changed, as `/v1/…` shows it, so
//! that one that is missed is made good by the next.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::view::{Counts, DeviceView, DirectorState, Listed, ResidentView, RunningView};
use crate::devices::HostMode;
use crate::health::Check;
use crate::item::Counters;

/// `event` is the event's name, `data` its JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", content = "data", rename_all = "kebab-case")]
pub enum Told {
    /// Read everything again; the events that follow go on from there.
    Reset(Reset),
    /// The director's state.
    Director(Director),
    Counts(Counts),
    /// A device is new, or anything about it has changed.
    Device(DeviceView),
    /// It is no longer there.
    DeviceGone(Id),
    /// An item is new, or anything about it has changed: as a row of `/v1/items`.
    Item(Listed),
    /// An item no longer lies in the inbox: claimed (then it has an id from here on), or taken back.
    Gone(InInbox),
    /// So many more items changed than are told one by one: read the list again.
    Items(More),
    /// How far a running item is, and by which process.
    Running(RunningView),
    /// All resident workers.
    Residents(Vec<ResidentView>),
    /// The health of one part.
    Health(Check),
    /// What workers counted.
    Counters(Counters),
    /// Another configuration is in force.
    Config(Empty),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Reset {
    pub why: Why,
    /// Of the publication that the events go on from.
    pub number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The stream was asked for without `Last-Event-ID`.
    New,
    /// That event is one of an earlier director.
    Restarted,
    /// That event is too old, or none of ours.
    TooOld,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Director {
    pub state: DirectorState,
    pub mode: HostMode,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Id {
    pub id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InInbox {
    pub folder: String,
    pub name: String,
    pub name_b64: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct More {
    pub more: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Empty {}

impl Told {
    /// The event's name, and its data as one line of JSON.
    pub(super) fn frame(&self) -> (String, String) {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let name = value["event"].as_str().unwrap_or_default().to_owned();
        (name, value["data"].take().to_string())
    }
}
