//! The commands that only pass a word on to the director: pause, resume, drain, release, cordon, uncordon.

use clap::Args;
use serde_json::{Value, json};

use super::trouble::{Trouble, exit};
use super::{Global, output};
use crate::api::DeviceBody;
use crate::api::client::Client;
use crate::logging::plain;

#[derive(Debug, Args)]
pub(super) struct Plain {}

impl Plain {
    pub(super) fn run(self, global: &Global, what: &str, said: &str) -> Result<u8, Trouble> {
        let answer: Value = director(global)?.post(&format!("/v1/{what}"), &json!({}))?;
        tell(global, &answer, said)
    }
}

#[derive(Debug, Args)]
pub(super) struct OfDevice {
    /// An index or an id, as `gamdok gpus` shows them
    device: String,
}

impl OfDevice {
    pub(super) fn run(self, global: &Global, what: &str, said: &str) -> Result<u8, Trouble> {
        let body = DeviceBody { device: self.device.clone() };
        let answer: Value = director(global)?.post(&format!("/v1/{what}"), &body)?;
        tell(global, &answer, &format!("{} {said}", plain(&self.device)))
    }
}

/// The director of the root; exit 3 when none listens.
pub(super) fn director(global: &Global) -> Result<Client, Trouble> {
    Ok(Client::connect(&global.root()?)?)
}

/// Says what came of it.
pub(super) fn tell(global: &Global, answer: &Value, said: &str) -> Result<u8, Trouble> {
    if global.json {
        output::json(answer)?;
    } else {
        output::print(&format!("{said}\n"))?;
    }
    Ok(exit::OK)
}
