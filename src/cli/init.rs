//! `gamdok init [DIR]`: the folders, the sentinel and an annotated gamdok.toml; with `--python DIR`, the Python side of
//! resident workers instead. Overwrites nothing.

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
    /// Make no root: write gamdok_worker.py, the Python side of resident workers, into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    python: Option<PathBuf>,
}

/// What `--python` writes: one file without dependencies.
const HELPER: &str = include_str!("../../examples/python/gamdok_worker.py");
const HELPER_NAME: &str = "gamdok_worker.py";

impl Init {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        if let Some(dir) = &self.python {
            return helper(dir, global);
        }
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

/// Writes the helper into a folder, which is made if need be.
fn helper(dir: &Path, global: &Global) -> Result<u8, Trouble> {
    let file = dir.join(HELPER_NAME);
    let unwritable = |error: io::Error| {
        let message = format!("cannot write `{}`: {error}", shown(&file));
        Trouble::new(exit::FAILED, "not-written", message, "choose a folder you may write to")
    };
    std::fs::create_dir_all(dir).map_err(unwritable)?;
    let made = match OpenOptions::new().write(true).create_new(true).open(&file) {
        Ok(mut fresh) => fresh.write_all(HELPER.as_bytes()).map(|()| true).map_err(unwritable)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(unwritable(error)),
    };
    if !made && std::fs::read(&file).map_err(unwritable)? != HELPER.as_bytes() {
        let message = format!("`{}` is another version, or somebody's own", shown(&file));
        return Err(Trouble::new(exit::FAILED, "exists", message, "move it away, then write it anew"));
    }
    if global.json {
        let list = if made { vec![path_text(&file)] } else { Vec::new() };
        output::json(&json!({ "file": path_text(&file), "made": list }))?;
        return Ok(exit::OK);
    }
    output::print(&match made {
        true => format!("made    {}\n", shown(&file)),
        false => format!("nothing to do: {} is there already\n", shown(&file)),
    })?;
    Ok(exit::OK)
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
