//! `gamdok top`: the live view in a terminal.

use clap::Args;

use super::trouble::{Trouble, exit};
use super::{Global, output};
use crate::api::directories::Directories;
use crate::top::{self, Paint, Source};

/// The size of a frame that is printed where nothing tells of another.
const FRAME: (u16, u16) = (120, 40);

#[derive(Debug, Args)]
pub(super) struct Top {
    /// Print one frame as text, and end
    #[arg(long)]
    once: bool,
    /// Without colours, as with NO_COLOR
    #[arg(long)]
    no_color: bool,
}

impl Top {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        if global.json {
            let help = "`gamdok status --json` and `gamdok list --json` tell the same to programs";
            return Err(Trouble::new(exit::USAGE, "usage", "`top` is for people: it has no JSON", help));
        }
        let root = global.root()?;
        // A broken configuration keeps nobody from looking.
        let config = global.config().ok().map(|(config, _)| config);
        let source = Source::new(Directories::new(&root, config.as_ref()), config);
        if self.once {
            output::print(&top::once(&source, frame())?)?;
            return Ok(exit::OK);
        }
        if !output::is_terminal() {
            let help = "`gamdok top --once` prints one frame, `gamdok status` the state";
            return Err(Trouble::new(exit::USAGE, "no-terminal", "`top` needs a terminal, and stdout is none", help));
        }
        let paint = Paint { colour: !self.no_color && output::colours() };
        top::run(&source, paint).map_err(|wrong| {
            let help = "`gamdok top --once` prints one frame, `gamdok status` the state";
            Trouble::new(exit::FAILED, "terminal", format!("`top` can't go on: {wrong}"), help)
        })?;
        Ok(exit::OK)
    }
}

/// The terminal's size, else what the environment tells.
fn frame() -> (u16, u16) {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let size = size.map(|size| (size.ws_col, size.ws_row)).filter(|size| size.0 > 0 && size.1 > 0);
    let told = |variable: &str, usual: u16| {
        let told = std::env::var(variable).ok().and_then(|text| text.parse().ok());
        // A larger screen can't be meant.
        told.filter(|it| (1..=1000).contains(it)).unwrap_or(usual)
    };
    size.unwrap_or_else(|| (told("COLUMNS", FRAME.0), told("LINES", FRAME.1)))
}
