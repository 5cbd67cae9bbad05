//! `run -- COMMAND…`: a command line in place of the file's routes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use super::error::{Problem, Problems};
use super::template::{self, Placeholder};
use super::{Config, ConfigError, Route, RouteKind};
use crate::item::escape;

impl Config {
    /// The same configuration with one route that takes everything, named `command`. The command runs in `cwd`; with no
    /// placeholder in it, `{item}` is appended.
    pub fn with_command(mut self, argv: &[OsString], cwd: &Path) -> Result<Config, ConfigError> {
        let mut command = Vec::with_capacity(argv.len() + 1);
        for (place, argument) in argv.iter().enumerate() {
            let Some(text) = argument.to_str() else {
                let shown = escape(argument.as_bytes());
                let message = format!("argument {} of the command isn't UTF-8: `{shown}`", place + 1);
                return Err(ConfigError::plain(
                    message,
                    "put the command into a script with a plain name, and run that",
                ));
            };
            command.push(text.to_owned());
        }
        if command.first().is_none_or(String::is_empty) {
            let help = "write it behind `--`, such as `gamdok run -- python3 infer.py {item}`";
            return Err(ConfigError::plain("the command is empty", help));
        }
        if let Some(error) = wrong_placeholder(&command) {
            return Err(error);
        }
        if command.iter().all(|argument| template::is_constant(argument)) {
            command.push(format!("{{{}}}", Placeholder::Item.as_str()));
        }
        self.routes = vec![Arc::new(Route { kind: RouteKind::Any, ..Route::new("command", command, cwd) })];
        Ok(self)
    }
}

/// Points at the placeholder on the command line as it was given.
fn wrong_placeholder(command: &[String]) -> Option<ConfigError> {
    let problems = Problems::default();
    let mut line = String::new();
    for argument in command {
        if let Some(mistake) = template::first_mistake(argument) {
            let start = line.len() + mistake.offset;
            problems.add(Problem {
                at: start..start + mistake.found.len(),
                message: format!("the command holds {}: `{}`", mistake.what, escape(mistake.found.as_bytes())),
                label: "means nothing here".to_owned(),
                help: Some(mistake.help),
                also: None,
            });
        }
        line.push_str(argument);
        line.push(' ');
    }
    problems.into_error("command line", line.trim_end())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;
    use crate::config::{Overrides, Source};

    fn with(argv: &[&str]) -> Result<Config, ConfigError> {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        Config::builtin(Path::new("/etc"), Path::new("/srv")).with_command(&argv, Path::new("/home/me"))
    }

    #[test]
    fn a_command_takes_everything_and_gets_the_item() {
        let check = |argv: &[&str], expected: &[&str]| {
            let config = with(argv).expect("a route");
            let [route] = config.routes.as_slice() else { panic!("one route") };
            assert_eq!(route.command, expected);
            assert_eq!((route.name.as_str(), route.kind), ("command", RouteKind::Any));
            assert_eq!(route.dir, Path::new("/home/me"));
            assert!(route.patterns.is_empty() && route.folder.is_empty());
        };
        check(&["./infer.sh"], &["./infer.sh", "{item}"]);
        check(&["python3", "x.py", "--quiet"], &["python3", "x.py", "--quiet", "{item}"]);
        check(&["cp", "{item}", "{out}"], &["cp", "{item}", "{out}"]);
        check(&["tool", "--to={out}/x"], &["tool", "--to={out}/x"]);
        check(&["awk", "{{print $1}}"], &["awk", "{{print $1}}", "{item}"]);
    }

    #[test]
    fn a_command_that_cannot_run_is_refused() {
        let check = |argv: &[&str], summary: &str| {
            assert_eq!(with(argv).expect_err("refused").summary(), summary, "{argv:?}");
        };
        check(&[], "the command is empty");
        check(&["", "x"], "the command is empty");
        check(
            &["awk", "{print $1}", "{item}"],
            "command line:1:5: the command holds an unknown placeholder: `{print $1}` (means nothing here)",
        );
        check(
            &["x", "{imte}", "{"],
            "command line:1:3: the command holds an unknown placeholder: `{imte}` (means nothing here), and 1 more",
        );
        let argv = [OsString::from("x"), OsString::from_vec(b"a\xff".to_vec())];
        let error = Config::builtin(Path::new("/"), Path::new("/")).with_command(&argv, Path::new("/"));
        assert_eq!(error.expect_err("refused").summary(), "argument 2 of the command isn't UTF-8: `a\\xff`");
    }

    #[test]
    fn a_source_with_a_command_needs_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gamdok.toml");
        let command = Some((vec![OsString::from("true")], folder.path().to_owned()));
        let source = Source { file: file.clone(), may_be_absent: true, overrides: Overrides::default(), command };
        let (config, warnings) = source.load().expect("the defaults");
        assert_eq!((config.file, config.routes.len(), warnings), (None, 1, Vec::new()));
        assert_eq!(config.root, folder.path());
        assert!(Source { may_be_absent: false, ..source.clone() }.load().is_err());

        // The file's other settings hold, its routes don't.
        std::fs::write(&file, "devices.slots = 2\n[[route]]\nname = 'a'\ncommand = ['true']").expect("written");
        let (config, _) = source.load().expect("valid");
        let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
        assert_eq!((config.devices.slots, names), (2, vec!["command"]));
    }
}
