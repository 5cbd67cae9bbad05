//! `gamdok retry JOB… | --failed`: gives ended jobs another try, under the same ids.

use std::ffi::OsString;

use clap::Args;
use serde_json::Value;

use super::trouble::Trouble;
use super::{Global, control, source};
use crate::api::JobsBody;

#[derive(Debug, Args)]
pub(super) struct Retry {
    /// A job, its id, a unique beginning of either, or an item's name
    #[arg(required_unless_present = "failed", conflicts_with = "failed", value_name = "JOB")]
    jobs: Vec<OsString>,
    /// Every failed job
    #[arg(long)]
    failed: bool,
    /// Of this route only
    #[arg(long, requires = "failed", value_name = "ROUTE")]
    route: Option<String>,
}

impl Retry {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let body = JobsBody {
            jobs: self.jobs.iter().map(|job| source::named(job)).collect::<Result<_, _>>()?,
            failed: self.failed,
            route: self.route,
        };
        let answer: Value = control::director(global)?.post("/v1/retry", &body)?;
        control::tell_of_each(global, &answer, "retried", "to be tried again")
    }
}
