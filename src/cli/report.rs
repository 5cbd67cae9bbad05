//! `gamdok report --html FILE`: one page with the plots of all that was.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::Global;
use super::fresh::Fresh;
use super::output;
use super::source::Source;
use super::trouble::{Trouble, exit};
use super::window::{When, when};
use crate::report::{self, ReportError};

#[derive(Debug, Args)]
pub(super) struct Report {
    /// The page: one file that needs no other
    #[arg(long, value_name = "FILE", required = true)]
    html: PathBuf,
    /// Only of what ended since then: `24h`, `7d`, or a date or a time (UTC) as 2026-11-22 or 2026-11-22T10:00
    #[arg(long, value_name = "DUR|DATE", value_parser = when)]
    since: Option<When>,
    /// Replace FILE where it exists
    #[arg(long)]
    force: bool,
}

impl Report {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let now = Timestamp::now();
        let mut file = Fresh::create(&self.html, self.force)?;
        let source = Source::open(global)?;
        let title = crate::root::shown(source.directories.root());
        let past = source.past()?;
        match report::write(&mut file, &past, &title, self.since.map(|it| it.moment(now)), now) {
            Ok(()) => file.finish()?,
            Err(ReportError::Write(error)) => return Err(file.trouble(&error)),
            Err(ReportError::Read(wrong)) => return Err(wrong.into()),
        }
        if global.json {
            output::json(&serde_json::json!({ "html": crate::root::shown(&self.html) }))?;
        }
        Ok(exit::OK)
    }
}
