//! Why a command didn't do what was asked: for people two lines, for programs one JSON object, and the exit code.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde_json::json;

use super::output::width_of_errors;
use super::table::wrap;
use crate::api::client::ClientError;
use crate::api::reference::Unresolved;
use crate::root::RootError;

/// Exit codes; a contract.
pub(super) mod exit {
    pub(in crate::cli) const OK: u8 = 0;
    pub(in crate::cli) const FAILED: u8 = 1;
    pub(in crate::cli) const USAGE: u8 = 2;
    pub(in crate::cli) const NO_DIRECTOR: u8 = 3;
    pub(in crate::cli) const ROOT: u8 = 5;
    /// The second signal ended it.
    pub(in crate::cli) const SIGNALLED: u8 = 130;
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trouble {
    exit: u8,
    code: String,
    message: String,
    help: String,
    /// A longer picture for people.
    report: Option<String>,
}

impl Trouble {
    pub(super) fn new(exit: u8, code: &str, message: impl Into<String>, help: impl Into<String>) -> Trouble {
        Trouble { exit, code: code.to_owned(), message: message.into(), help: help.into(), report: None }
    }

    pub(super) fn with_report(self, report: impl FnOnce() -> Option<String>) -> Trouble {
        Trouble { report: report(), ..self }
    }

    /// The reader of our output left; nobody is there to be told.
    pub(super) fn reader_left() -> Trouble {
        Trouble::new(exit::OK, "", "", "")
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (u8, &str, &str) {
        (self.exit, &self.code, &self.message)
    }

    /// Prints it to stderr and answers the exit code.
    pub(super) fn tell(&self, as_json: bool) -> ExitCode {
        let mut to = io::stderr().lock();
        let _ = match &self.report {
            _ if self.message.is_empty() => Ok(()),
            _ if as_json => {
                let error = json!({ "code": self.code, "message": self.message, "help": self.help });
                writeln!(to, "{}", json!({ "error": error }))
            }
            Some(report) => write!(to, "{report}"),
            None => {
                let (red, off) = if colours() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
                let told = lines(&format!("error: {}", self.message), width_of_errors());
                write!(to, "{red}error{off}{}", told.trim_start_matches("error")).and_then(|()| {
                    let help = lines(&format!("help: {}", self.help), width_of_errors());
                    if self.help.is_empty() { Ok(()) } else { write!(to, "{help}") }
                })
            }
        };
        ExitCode::from(self.exit)
    }
}

/// Our own messages may have lines; nothing else passes. Broken between words where people read them.
fn lines(text: &str, width: Option<usize>) -> String {
    text.lines().map(|line| wrap(line, "", width.unwrap_or(usize::MAX))).collect()
}

/// Whether stderr is a terminal whose owner wants colours.
pub(super) fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

pub(super) fn of_root(wrong: &RootError) -> Trouble {
    Trouble::new(wrong.exit_code(), wrong.code(), wrong.message(), wrong.help())
}

impl From<ClientError> for Trouble {
    fn from(wrong: ClientError) -> Trouble {
        match wrong {
            ClientError::NoDirector { .. } => {
                let help = "start one with `gamdok run`, or name its root with `--root DIR`";
                Trouble::new(exit::NO_DIRECTOR, "no-director", wrong.to_string(), help)
            }
            ClientError::Unreachable { .. } => {
                let help = "it makes its socket again within 10 s: ask again then";
                Trouble::new(exit::FAILED, "unreachable", wrong.to_string(), help)
            }
            ClientError::Silent { .. } => {
                let help = "look whether it is stopped (`ps`: state T) or waits for a disk (D); `kill -CONT` wakes one that is stopped";
                Trouble::new(exit::FAILED, "silent", wrong.to_string(), help)
            }
            ClientError::Refused { refusal, .. } => {
                Trouble::new(exit::FAILED, &refusal.code, refusal.message, refusal.help)
            }
            ClientError::Lost(_) => {
                Trouble::new(exit::FAILED, "lost", wrong.to_string(), "look at the director's log, and ask again")
            }
        }
    }
}

impl From<Unresolved> for Trouble {
    fn from(wrong: Unresolved) -> Trouble {
        let exit = if matches!(wrong, Unresolved::Empty) { exit::USAGE } else { exit::FAILED };
        Trouble::new(exit, wrong.code(), wrong.to_string(), wrong.help())
    }
}

/// Reading under the root failed.
impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Trouble::reader_left();
        }
        Trouble::new(exit::FAILED, "io", error.to_string(), "look at the root's directories and their permissions")
    }
}

/// An error that only says its story: the part behind `help: ` is the help.
pub(super) fn of_text(exit: u8, code: &str, text: &str) -> Trouble {
    let (message, help) = text.split_once("\nhelp: ").unwrap_or((text, ""));
    Trouble::new(exit, code, message, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Refusal;

    #[test]
    fn each_trouble_has_its_exit_code() {
        let check =
            |trouble: Trouble, exit: u8, code: &str| assert_eq!((trouble.parts().0, trouble.parts().1), (exit, code));
        check(ClientError::NoDirector { root: "/r".into() }.into(), 3, "no-director");
        let refusal = Refusal { code: "not-found".to_owned(), message: "no".to_owned(), help: String::new() };
        check(ClientError::Refused { status: 404, refusal }.into(), 1, "not-found");
        check(ClientError::Lost("cut".to_owned()).into(), 1, "lost");
        check(io::Error::from(io::ErrorKind::BrokenPipe).into(), 0, "");
        check(of_text(4, "root-held", "held\nhelp: wait"), 4, "root-held");
    }
}
