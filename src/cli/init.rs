//! `gamdok init [DIR]`: the folders, the sentinel and an annotated gamdok.toml. Overwrites nothing.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::trouble::{Trouble, exit, of_root};
use super::{Global, output};
use crate::api::view::path_text;
use crate::config;
use crate::root::{Root, shown};

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Where [default: --root]
    dir: Option<PathBuf>,
}

impl Init {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let dir = match self.dir {
            Some(dir) => dir,
            None => global.root.clone().unwrap_or_else(|| PathBuf::from(".")),
        };
        let report = Root::init(&dir).map_err(|wrong| of_root(&wrong))?;
        let mut made = report.made;
        let file = report.root.join("gamdok.toml");
        if annotate(&file)? {
            made.push(file.clone());
        }
        // What lies there may be somebody's own, and wrong: `check` and `run` say so.
        let source = config::Source { file: file.clone(), ..global.source() };
        if let Ok((config, _)) = source.load()
            && config.root == report.root
        {
            let root = Root::open_for_reading(&report.root).map_err(|wrong| of_root(&wrong))?;
            let (folders, _) = root.make_folders(config.routes.iter().map(|route| route.folder.as_str()));
            made.extend(folders.iter().map(|folder| report.root.join("inbox").join(folder)));
        }
        if global.json {
            let made: Vec<String> = made.iter().map(|path| path_text(path)).collect();
            output::json(&json!({ "root": path_text(&report.root), "made": made }))?;
            return Ok(exit::OK);
        }
        let mut text = String::new();
        for path in &made {
            text += &format!("made    {}\n", shown(path));
        }
        if made.is_empty() {
            text += &format!("nothing to do: {} is a root already\n", shown(&report.root));
        } else {
            text += &format!("\nnext: put your command into {}, then `gamdok run`,\n", shown(&file));
            text += &format!("      and drop files into {}\n", shown(&report.root.join("inbox")));
        }
        output::print(&text)?;
        Ok(exit::OK)
    }
}

/// Writes the annotated configuration, unless something is there already. Whether it was written.
pub(super) fn annotate(file: &Path) -> Result<bool, Trouble> {
    // For the owner, as all of the root is but its inbox: routes' environments may hold secrets.
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).and_then(|mut file| {
        file.write_all(config::ANNOTATED.as_bytes())?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => {
            let message = format!("cannot write `{}`: {error}", shown(file));
            Err(Trouble::new(exit::ROOT, "root-unavailable", message, "choose a folder you may write to"))
        }
    }
}
