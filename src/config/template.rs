//! Placeholders in `command`, `env`, `cwd` and `validator`: `{item}` and its like, `{{` and `}}` for the braces
//! themselves. One parser serves the check of the configuration and the filling before a start, so that what passed the
//! one can't fail the other.

use std::ffi::{OsStr, OsString};

use super::error::nearest;

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placeholder {
    /// The item's absolute path.
    Item,
    /// Its name, without the folder.
    Name,
    /// Its name without the last extension.
    Stem,
    /// Its last extension, without the dot.
    Ext,
    /// The directory for outputs, absolute.
    Out,
    /// The job's ULID.
    Id,
    /// The route's name.
    Route,
    /// The attempt's number, from 1.
    Attempt,
    /// What a framework calls the devices inside: `cuda:0,cuda:1`, or `cpu`.
    Device,
    /// The devices' UUIDs, or `cpu`.
    DeviceId,
    /// The devices' indexes; empty on the CPU.
    Gpu,
}

impl Placeholder {
    pub const ALL: [Placeholder; 11] = [
        Placeholder::Item,
        Placeholder::Name,
        Placeholder::Stem,
        Placeholder::Ext,
        Placeholder::Out,
        Placeholder::Id,
        Placeholder::Route,
        Placeholder::Attempt,
        Placeholder::Device,
        Placeholder::DeviceId,
        Placeholder::Gpu,
    ];

    /// The word between the braces.
    pub fn as_str(self) -> &'static str {
        match self {
            Placeholder::Item => "item",
            Placeholder::Name => "name",
            Placeholder::Stem => "stem",
            Placeholder::Ext => "ext",
            Placeholder::Out => "out",
            Placeholder::Id => "id",
            Placeholder::Route => "route",
            Placeholder::Attempt => "attempt",
            Placeholder::Device => "device",
            Placeholder::DeviceId => "device_id",
            Placeholder::Gpu => "gpu",
        }
    }

    fn named(word: &str) -> Option<Placeholder> {
        Self::ALL.into_iter().find(|placeholder| placeholder.as_str() == word)
    }
}

/// A piece of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'t> {
    Text(&'t str),
    Value(Placeholder),
}

/// Something between braces that stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake<'t> {
    /// Where its brace stands, in bytes.
    pub(super) offset: usize,
    /// From the brace to its end, braces included.
    pub(super) found: &'t str,
    pub(super) what: String,
    pub(super) help: String,
}

/// The pieces of a template in order; the first mistake ends them.
fn parts(text: &str) -> impl Iterator<Item = Result<Part<'_>, Mistake<'_>>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let offset = text.len() - rest.len();
        let mut take = |length: usize| {
            let (taken, after) = rest.split_at(length);
            rest = after;
            taken
        };
        match text[offset..].find(['{', '}']) {
            None if offset == text.len() => None,
            None => Some(Ok(Part::Text(take(text.len() - offset)))),
            Some(0) if text[offset..].starts_with("{{") || text[offset..].starts_with("}}") => {
                Some(Ok(Part::Text(&take(2)[1..])))
            }
            Some(0) => {
                let found = take(text[offset..].find('}').map_or(text.len() - offset, |end| end + 1));
                Some(value(found).map(Part::Value).map_err(|(what, help)| {
                    rest = "";
                    Mistake { offset, found, what, help }
                }))
            }
            Some(plain) => Some(Ok(Part::Text(take(plain)))),
        }
    })
}

/// `found` starts with a single brace.
fn value(found: &str) -> Result<Placeholder, (String, String)> {
    let Some(word) = found.strip_prefix('{') else {
        return Err(("a `}` with no `{` before it".to_owned(), "write `}}` for the character itself".to_owned()));
    };
    let Some(word) = word.strip_suffix('}') else {
        let help = "close it with `}`, or write `{{` for the character itself";
        return Err(("a `{` that is never closed".to_owned(), help.to_owned()));
    };
    Placeholder::named(word).ok_or_else(|| {
        let known = Placeholder::ALL.map(Placeholder::as_str);
        let list = known.map(|word| format!("{{{word}}}")).join(" ");
        let meant = nearest(word, known).map(|word| format!("did you mean `{{{word}}}`? ")).unwrap_or_default();
        let help = format!("{meant}there are {list}; write `{{{{` and `}}}}` for the characters themselves");
        ("an unknown placeholder".to_owned(), help)
    })
}

/// Whether every brace of `text` means something; else where it stands (in bytes) and what is wrong with it.
pub fn check(text: &str) -> Result<(), (usize, String)> {
    match first_mistake(text) {
        None => Ok(()),
        Some(mistake) => Err((mistake.offset, format!("{} `{}`", mistake.what, mistake.found))),
    }
}

pub(super) fn first_mistake(text: &str) -> Option<Mistake<'_>> {
    parts(text).find_map(Result::err)
}

/// The placeholders that `text` names, in order.
pub fn placeholders(text: &str) -> impl Iterator<Item = Placeholder> {
    parts(text).filter_map(|part| match part {
        Ok(Part::Value(placeholder)) => Some(placeholder),
        _ => None,
    })
}

/// Whether `text` is the same for every item.
pub fn is_constant(text: &str) -> bool {
    placeholders(text).next().is_none()
}

/// `text` with its braces doubled, so that filling gives it back.
pub(super) fn literal(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

/// Puts values in for the placeholders. Values are raw bytes and aren't looked into: an item called `{id}` stays that.
pub fn fill<V: AsRef<OsStr>>(text: &str, value: impl Fn(Placeholder) -> V) -> OsString {
    let mut filled = OsString::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Ok(Part::Text(plain)) => filled.push(plain),
            Ok(Part::Value(placeholder)) => filled.push(value(placeholder).as_ref()),
            // Checked templates have none; what an older job.json may carry is passed on as it stands.
            Err(mistake) => {
                filled.push(&text[mistake.offset..]);
                break;
            }
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_checked_and_filled() {
        let check = |text: &str, expected: &str| {
            let value = |placeholder: Placeholder| match placeholder {
                Placeholder::Item => OsStr::new("/i/a{id}.wav"),
                Placeholder::Gpu => OsStr::new(""),
                other => OsStr::new(other.as_str()),
            };
            assert_eq!(super::check(text), Ok(()), "{text}");
            assert_eq!(fill(text, value), expected, "{text}");
        };
        check("", "");
        check("plain", "plain");
        check("{item}", "/i/a{id}.wav");
        check("--in={item},{out}/x", "--in=/i/a{id}.wav,out/x");
        check("{{item}}", "{item}");
        check("{{{stem}}}", "{stem}");
        check("{gpu}{device}{device_id}", "devicedevice_id");
        check("é{ext}é", "éexté");
        check("}}{{", "}{");
        check("a}}b", "a}b");
        check("$'{{print $1}}' {name}", "$'{print $1}' name");
    }

    #[test]
    fn a_mistake_has_a_place_and_a_name() {
        let check = |text: &str, offset: usize, message: &str| {
            assert_eq!(super::check(text), Err((offset, message.to_owned())), "{text}");
        };
        check("{input}", 0, "an unknown placeholder `{input}`");
        check("x {item} {}", 9, "an unknown placeholder `{}`");
        check("{ item }", 0, "an unknown placeholder `{ item }`");
        check("é{out", 2, "a `{` that is never closed `{out`");
        check("out}", 3, "a `}` with no `{` before it `}`");
        check("{Item}", 0, "an unknown placeholder `{Item}`");
    }

    #[test]
    fn every_placeholder_is_known_by_its_word() {
        for placeholder in Placeholder::ALL {
            let text = format!("{{{}}}", placeholder.as_str());
            assert_eq!(placeholders(&text).collect::<Vec<_>>(), [placeholder]);
        }
        assert!(is_constant("{{item}} plain"));
        assert!(!is_constant("a {ext}"));
    }

    #[test]
    fn a_literal_is_given_back() {
        for text in ["/srv/{a}/b}", "{{", "plain"] {
            assert_eq!(fill(&literal(text), |_| OsStr::new("?")), text);
        }
    }
}
