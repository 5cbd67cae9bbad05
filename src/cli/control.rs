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

/// Says what came of each job that was named: `done` is the field with those for which it worked. Exit 1 if one was
/// refused.
pub(super) fn tell_of_each(global: &Global, answer: &Value, done: &str, said: &str) -> Result<u8, Trouble> {
    let all = |field: &str| answer.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    tell(global, answer, &format!("{said}: {}", output::count(all(done).len(), "job")))?;
    let why = |it: &Value| {
        let text = |field: &str| it.get(field).and_then(Value::as_str);
        format!("{}: {}", text("id").or(text("name_b64")).unwrap_or("?"), text("message").unwrap_or_default())
    };
    match all("refused") {
        [] => Ok(exit::OK),
        // The answer tells programs.
        _ if global.json => Ok(exit::FAILED),
        refused => {
            let message = refused.iter().map(why).collect::<Vec<_>>().join("\n");
            Err(Trouble::new(exit::FAILED, "refused", message, "`gamdok show JOB` tells how it stands"))
        }
    }
}
