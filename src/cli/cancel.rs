//! `gamdok cancel JOB…`: ends jobs, also running ones, and refuses items that still wait in the inbox.

use std::ffi::OsString;

use clap::Args;
use serde_json::Value;

use super::trouble::Trouble;
use super::{Global, control, source};
use crate::api::JobsBody;

#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// A job, its id, a unique beginning of either, or an item's name
    #[arg(required = true, value_name = "JOB")]
    jobs: Vec<OsString>,
}

impl Cancel {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let jobs: Vec<String> = self.jobs.iter().map(|job| source::named(job)).collect::<Result<_, _>>()?;
        let body = JobsBody { jobs, ..JobsBody::default() };
        let answer: Value = control::director(global)?.post("/v1/cancel", &body)?;
        control::tell_of_each(global, &answer, "cancelled", "cancelled")
    }
}
