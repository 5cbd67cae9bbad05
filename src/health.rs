//! The health of the parts, as `status` lists it.

use serde::{Deserialize, Serialize};

/// One line of `status`'s `health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Check {
    pub what: What,
    pub state: Condition,
    pub message: String,
}

impl Check {
    pub fn ok(what: What) -> Check {
        Check { what, state: Condition::Ok, message: String::new() }
    }

    pub fn degraded(what: What, message: impl Into<String>) -> Check {
        Check { what, state: Condition::Degraded, message: message.into() }
    }

    pub fn failed(what: What, message: impl Into<String>) -> Check {
        Check { what, state: Condition::Failed, message: message.into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    Inbox,
    Watch,
    Spool,
    Space,
    Devices,
    Ledger,
    Config,
    LeaseTest,
    /// Whether those can be told who want to be.
    Notify,
}

impl What {
    /// The word of `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            What::Inbox => "inbox",
            What::Watch => "watch",
            What::Spool => "spool",
            What::Space => "space",
            What::Devices => "devices",
            What::Ledger => "ledger",
            What::Config => "config",
            What::LeaseTest => "lease-test",
            What::Notify => "notify",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    Ok,
    Degraded,
    Failed,
}
