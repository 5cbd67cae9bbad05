//! The command with its placeholders: `{}` the argument, `{1}` `{2}` its columns, `{device}` and its like. Pure. Words and
//! arguments are bytes: what isn't UTF-8 goes through as it is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::Refused;
use crate::devices::Pin;
use crate::item::escape;

/// What a run is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    Argument,
    /// Lines on its stdin, so no argument stands for anything.
    Lines,
}

/// What a placeholder may stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    pub(super) argument: &'a [u8],
    pub(super) pin: &'a Pin,
    pub(super) number: u64,
    pub(super) attempt: u32,
}

#[derive(Debug)]
pub(super) struct Template {
    words: Vec<Vec<Part>>,
}

#[derive(Debug, PartialEq)]
enum Part {
    Text(Vec<u8>),
    Whole,
    /// From 1.
    Column(usize),
    Device,
    DeviceId,
    Gpu,
    Number,
    Attempt,
}

impl Part {
    fn named(word: &[u8]) -> Option<Part> {
        Some(match word {
            b"" => Part::Whole,
            b"device" => Part::Device,
            b"device_id" => Part::DeviceId,
            b"gpu" => Part::Gpu,
            b"n" => Part::Number,
            b"attempt" => Part::Attempt,
            digits => {
                let number: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
                // `{01}` and `{+1}` are more likely a mistake than a column.
                (number > 0 && number.to_string().as_bytes() == digits).then_some(Part::Column(number))?
            }
        })
    }

    fn is_of_argument(&self) -> bool {
        matches!(self, Part::Whole | Part::Column(_))
    }
}

impl Template {
    /// With no `{}` and no column in it, the argument is appended.
    pub(super) fn parse(command: &[OsString], feed: Feed) -> Result<Template, Refused> {
        if command.first().is_none_or(|program| program.is_empty()) {
            let help = "write it behind `--`, such as `gamdok map -- gzip -9 {} ::: *.log`".to_owned();
            return Err(Refused::Command { message: "the command is empty".to_owned(), help });
        }
        let mut words = command.iter().map(|word| parts(word.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let has_argument = words.iter().flatten().any(Part::is_of_argument);
        match feed {
            Feed::Lines if has_argument => {
                let message = "with --stdin-lines the lines come on the command's stdin, and `{}` stands for nothing";
                let help = "leave `{}` and the columns out of the command, or --stdin-lines".to_owned();
                return Err(Refused::Command { message: message.to_owned(), help });
            }
            Feed::Argument if !has_argument => words.push(vec![Part::Whole]),
            Feed::Lines | Feed::Argument => {}
        }
        Ok(Template { words })
    }

    /// The program, where it is the same for every run.
    pub(super) fn program(&self) -> Option<OsString> {
        match self.words[0].as_slice() {
            [Part::Text(name)] => Some(OsString::from_vec(name.clone())),
            _ => None,
        }
    }

    /// The words of one run; or why there are none.
    pub(super) fn fill(&self, values: Values) -> Result<Vec<OsString>, String> {
        self.words.iter().map(|word| fill(word, values)).collect()
    }
}

fn fill(word: &[Part], values: Values) -> Result<OsString, String> {
    let mut filled = Vec::new();
    for part in word {
        match part {
            Part::Text(text) => filled.extend_from_slice(text),
            Part::Whole => filled.extend_from_slice(values.argument),
            Part::Column(number) => {
                let columns = || values.argument.split(|byte| *byte == b',');
                let column = columns().nth(number - 1).ok_or_else(|| {
                    let there = columns().count();
                    format!(
                        "it has {there} column{}, and the command wants {{{number}}}",
                        if there == 1 { "" } else { "s" }
                    )
                })?;
                filled.extend_from_slice(column);
            }
            Part::Device => filled.extend_from_slice(values.pin.device.as_bytes()),
            Part::DeviceId => filled.extend_from_slice(values.pin.device_id.as_bytes()),
            Part::Gpu => filled.extend_from_slice(values.pin.indexes.as_bytes()),
            Part::Number => filled.extend_from_slice(values.number.to_string().as_bytes()),
            Part::Attempt => filled.extend_from_slice(values.attempt.to_string().as_bytes()),
        }
    }
    Ok(OsString::from_vec(filled))
}

fn parts(word: &[u8]) -> Result<Vec<Part>, Refused> {
    let mut parts = Vec::new();
    let mut text = Vec::new();
    let mut rest = word;
    while let Some(byte) = rest.first() {
        if rest.starts_with(b"{{") || rest.starts_with(b"}}") {
            text.push(*byte);
            rest = &rest[2..];
        } else if *byte == b'{' {
            let end = rest.iter().position(|byte| *byte == b'}');
            let end = end.ok_or_else(|| mistake(word, "a `{` that is never closed"))?;
            let part = Part::named(&rest[1..end]);
            let part =
                part.ok_or_else(|| mistake(word, &format!("an unknown placeholder `{}`", escape(&rest[..=end]))))?;
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(part);
            rest = &rest[end + 1..];
        } else if *byte == b'}' {
            return Err(mistake(word, "a `}` with no `{` before it"));
        } else {
            text.push(*byte);
            rest = &rest[1..];
        }
    }
    if !text.is_empty() || parts.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

fn mistake(word: &[u8], what: &str) -> Refused {
    Refused::Command {
        message: format!("the command holds {what}: `{}`", escape(OsStr::from_bytes(word).as_bytes())),
        help:
            "there are {} {1} {2} … {device} {device_id} {gpu} {n} {attempt}; write `{{` and `}}` for the characters \
               themselves"
                .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Visible;
    use crate::devices::pin;

    fn words(command: &[&str]) -> Vec<OsString> {
        command.iter().map(OsString::from).collect()
    }

    #[test]
    fn a_command_is_filled_in() {
        let check = |command: &[&str], argument: &[u8], expected: &[&[u8]]| {
            let template = Template::parse(&words(command), Feed::Argument).unwrap();
            let pin = pin(&[], Visible::Uuid);
            let filled = template.fill(Values { argument, pin: &pin, number: 7, attempt: 2 }).unwrap();
            let filled: Vec<&[u8]> = filled.iter().map(|word| word.as_bytes()).collect();
            assert_eq!(filled, expected, "{command:?}");
        };
        check(&["c"], b"a b", &[b"c", b"a b"]);
        check(&["c", "{}", "-o", "{}.out"], b"x", &[b"c", b"x", b"-o", b"x.out"]);
        check(&["c", "{2}/{1}"], b"a,b,c", &[b"c", b"b/a"]);
        check(&["c", "{2}", "{}"], b"a,", &[b"c", b"", b"a,"]);
        check(&["c", "{n}.{attempt}", "{device}", "{gpu}"], b"x", &[b"c", b"7.2", b"cpu", b"", b"x"]);
        check(&["awk", "{{print $1}}", "{}"], b"x", &[b"awk", b"{print $1}", b"x"]);
        check(&["c", "", "{}"], b"", &[b"c", b"", b""]);
        // An argument is never looked into.
        check(&["c", "{}"], b"{1}\xff{{", &[b"c", b"{1}\xff{{"]);
        check(&["{}", "x"], b"prog", &[b"prog", b"x"]);
    }

    #[test]
    fn mistakes_are_told_of() {
        let check = |command: &[&str], feed: Feed, expected: &str| {
            let wrong = Template::parse(&words(command), feed).unwrap_err().to_string();
            assert!(wrong.contains(expected), "{wrong}");
        };
        check(&[], Feed::Argument, "the command is empty");
        check(&["", "x"], Feed::Argument, "the command is empty");
        check(&["c", "{item}"], Feed::Argument, "an unknown placeholder `{item}`");
        check(&["c", "{0}"], Feed::Argument, "unknown placeholder `{0}`");
        check(&["c", "{01}"], Feed::Argument, "unknown placeholder `{01}`");
        check(&["c", "{"], Feed::Argument, "never closed");
        check(&["c", "a}b"], Feed::Argument, "no `{` before it: `a}b`");
        check(&["c", "{}"], Feed::Lines, "--stdin-lines");
    }

    #[test]
    fn a_column_that_is_not_there_is_that_runs_trouble() {
        let template = Template::parse(&words(&["c", "{3}"]), Feed::Argument).unwrap();
        let pin = pin(&[], Visible::Uuid);
        let why = template.fill(Values { argument: b"a,b", pin: &pin, number: 1, attempt: 1 }).unwrap_err();
        assert_eq!(why, "it has 2 columns, and the command wants {3}");
    }

    #[test]
    fn the_program_is_known_unless_it_comes_from_the_argument() {
        let check = |command: &[&str], expected: Option<&str>| {
            let template = Template::parse(&words(command), Feed::Argument).unwrap();
            assert_eq!(template.program(), expected.map(OsString::from));
        };
        check(&["true"], Some("true"));
        check(&["a{{b"], Some("a{b"));
        check(&["{}"], None);
        check(&["bin/{1}"], None);
    }
}
