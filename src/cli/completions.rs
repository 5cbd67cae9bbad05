//! `gamdok completions SHELL`.

use clap::Args;
use clap_complete::Shell;

use super::trouble::{Trouble, exit};
use super::{command_line, output};

#[derive(Debug, Args)]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<u8, Trouble> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command_line(), "gamdok", &mut script);
        output::bytes(&script)?;
        Ok(exit::OK)
    }
}
