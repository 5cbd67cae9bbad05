//! The text of a route with its placeholders: `{item}`, `{out}` and so on; `{{` and `}}` are the braces themselves.
//! Pure. What is put in are raw bytes, since an item's name is any bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    Item,
    Name,
    Stem,
    Ext,
    Out,
    Id,
    Route,
    Attempt,
    Device,
    DeviceId,
    Gpu,
}

impl Placeholder {
    pub const ALL: [(&'static str, Placeholder); 11] = [
        ("item", Placeholder::Item),
        ("name", Placeholder::Name),
        ("stem", Placeholder::Stem),
        ("ext", Placeholder::Ext),
        ("out", Placeholder::Out),
        ("id", Placeholder::Id),
        ("route", Placeholder::Route),
        ("attempt", Placeholder::Attempt),
        ("device", Placeholder::Device),
        ("device_id", Placeholder::DeviceId),
        ("gpu", Placeholder::Gpu),
    ];

    fn named(name: &str) -> Option<Placeholder> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, placeholder)| *placeholder)
    }
}

/// Where a template is wrong, in bytes from its start, and how.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message} (at byte {offset} of `{template}`)")]
pub struct TemplateError {
    pub template: String,
    pub offset: usize,
    pub message: String,
}

/// Says whether a text can be filled in: for the configuration, which shows the place.
pub fn check_template(text: &str) -> Result<(), (usize, String)> {
    pieces(text).try_for_each(|piece| piece.map(drop))
}

/// Whether a text has any placeholder in it; a broken text has none.
pub fn has_placeholder(text: &str) -> bool {
    pieces(text).any(|piece| matches!(piece, Ok(Piece::Placeholder(_))))
}

/// Fills in a text.
pub(super) fn fill(text: &str, value: impl Fn(Placeholder) -> Vec<u8>) -> Result<OsString, TemplateError> {
    let mut filled = Vec::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Ok(Piece::Text(text)) => filled.extend_from_slice(text.as_bytes()),
            Ok(Piece::Placeholder(placeholder)) => filled.extend(value(placeholder)),
            Err((offset, message)) => return Err(TemplateError { template: text.to_owned(), offset, message }),
        }
    }
    Ok(OsString::from_vec(filled))
}

enum Piece<'a> {
    Text(&'a str),
    Placeholder(Placeholder),
}

/// The pieces in their order; nothing after the first that is wrong.
fn pieces(text: &str) -> impl Iterator<Item = Result<Piece<'_>, (usize, String)>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        let (piece, length) = match rest.find(['{', '}']) {
            None => (Ok(Piece::Text(rest)), rest.len()),
            Some(0) => brace(rest, at),
            Some(length) => (Ok(Piece::Text(&rest[..length])), length),
        };
        at = if piece.is_ok() { at + length } else { text.len() };
        Some(piece)
    })
}

/// The piece at a brace, and its length.
fn brace(rest: &str, at: usize) -> (Result<Piece<'_>, (usize, String)>, usize) {
    if rest.starts_with("{{") || rest.starts_with("}}") {
        return (Ok(Piece::Text(&rest[..1])), 2);
    }
    if rest.starts_with('}') {
        return (Err((at, "a lone `}`; write `}}` for the character itself".to_owned())), 1);
    }
    let Some(end) = rest.find('}') else {
        return (Err((at, "`{` without its `}`; write `{{` for the character itself".to_owned())), 1);
    };
    let name = &rest[1..end];
    match Placeholder::named(name) {
        Some(placeholder) => (Ok(Piece::Placeholder(placeholder)), end + 1),
        None => {
            let known: Vec<String> = Placeholder::ALL.iter().map(|(name, _)| format!("{{{name}}}")).collect();
            let message =
                format!("unknown placeholder `{{{name}}}`; known are {}, and `{{{{` for a brace", known.join(" "));
            (Err((at, message)), end + 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(placeholder: Placeholder) -> Vec<u8> {
        match placeholder {
            Placeholder::Item => b"/r/item/a\xff{out}.wav".to_vec(),
            other => format!("<{other:?}>").into_bytes(),
        }
    }

    #[test]
    fn placeholders_are_filled_in_once_and_with_raw_bytes() {
        let check = |text: &str, filled: &[u8]| {
            assert_eq!(fill(text, value).unwrap().into_vec(), filled, "{text}");
            assert_eq!(check_template(text), Ok(()));
        };
        check("", b"");
        check("plain", b"plain");
        check("{item}", b"/r/item/a\xff{out}.wav");
        check("--x={out}/{stem}.{ext}", b"--x=<Out>/<Stem>.<Ext>");
        check("{{item}} {{{id}}}", b"{item} {<Id>}");
        check("\u{e4}{device_id}\u{e4}", "\u{e4}<DeviceId>\u{e4}".as_bytes());
        for (name, placeholder) in Placeholder::ALL {
            assert_eq!(fill(&format!("{{{name}}}"), value).unwrap().into_vec(), value(placeholder));
        }
    }

    #[test]
    fn what_is_wrong_has_a_place_and_words() {
        let check = |text: &str, offset: usize, word: &str| {
            let (at, message) = check_template(text).unwrap_err();
            assert_eq!(at, offset, "{text}: {message}");
            assert!(message.contains(word), "{text}: {message}");
            assert!(fill(text, value).is_err());
        };
        check("{itm}", 0, "{itm}");
        check("a {out} {}", 8, "{}");
        check("ab{item", 2, "without");
        check("ab}", 2, "lone");
        check("{ item }", 0, "{ item }");
        check("\u{e4}{x}", 2, "{x}");
    }

    #[test]
    fn a_text_with_and_without_placeholders() {
        assert!(has_placeholder("a{item}"));
        assert!(!has_placeholder("a {{item}}"));
        assert!(!has_placeholder("sed"));
    }
}
