//! How people name a job: its directory, its ULID, a unique prefix of either, or the item's name when only one has it.
//! What lies in the inbox has a path there: `<folder>/<name>`, or `./<name>` in the inbox itself. Pure.

use super::view::Listed;
use crate::item::escape;

/// How well a row fits; better ones come first, and only the best class counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// Its directory's name or its whole ULID.
    Job,
    /// Its path in the inbox, where it lies.
    Path,
    /// The item's name, as it is or escaped; or the path that it had.
    Name,
    /// The beginning of the directory's name or of the ULID.
    Prefix,
}

/// The folder and the name in a path below the inbox; the folder is empty for the inbox itself.
pub fn split(text: &str) -> Option<(&str, &str)> {
    let (folder, name) = text.rsplit_once('/').filter(|(folder, name)| !folder.is_empty() && !name.is_empty())?;
    Some((if folder == "." { "" } else { folder }, name))
}

/// Whether `text` could mean this row.
pub fn fit(text: &str, row: &Listed) -> Option<Fit> {
    let starts = |whole: &Option<String>| {
        // ULIDs are the same in lower case; what people copy from a path has the directory's case.
        whole
            .as_ref()
            .is_some_and(|whole| whole.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text)))
    };
    let is = |whole: &Option<String>| whole.as_ref().is_some_and(|whole| whole.eq_ignore_ascii_case(text));
    if is(&row.id) || row.job.as_deref() == Some(text) {
        Some(Fit::Job)
    } else if let Some((folder, name)) = split(text) {
        let there = is_same(&row.folder, folder) && is_same(&row.name, name);
        there.then_some(if row.id.is_none() { Fit::Path } else { Fit::Name })
    } else if is_same(&row.name, text) {
        Some(Fit::Name)
    } else if !text.is_empty() && (starts(&row.id) || starts(&row.job)) {
        Some(Fit::Prefix)
    } else {
        None
    }
}

fn is_same(shown: &str, text: &str) -> bool {
    shown == text || shown == escape(text.as_bytes())
}

/// So many candidates are named; more make a reference no clearer.
const NAMED: usize = 10;

/// A reference that names no single job.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unresolved {
    #[error("an empty name names nothing")]
    Empty,
    #[error("no job or item is called `{0}`")]
    Unknown(String),
    /// With what to write instead.
    #[error("`{text}` could be any of these: {}{}", candidates.join(", "), if *more { ", and others" } else { "" })]
    Ambiguous { text: String, candidates: Vec<String>, more: bool },
}

impl Unresolved {
    pub fn code(&self) -> &'static str {
        match self {
            Unresolved::Empty => "bad-request",
            Unresolved::Unknown(_) => "not-found",
            Unresolved::Ambiguous { .. } => "ambiguous",
        }
    }

    pub fn help(&self) -> &'static str {
        match self {
            Unresolved::Empty => {
                "give a job, its id, a unique beginning of either, or an item's name: `gamdok list` shows them"
            }
            Unresolved::Unknown(_) => "`gamdok list` shows what there is",
            Unresolved::Ambiguous { .. } => "write one of them instead, or more letters of an id",
        }
    }
}

/// The one row that `text` means among all that are known.
pub fn resolve(text: &str, rows: impl IntoIterator<Item = Listed>) -> Result<Listed, Unresolved> {
    if text.is_empty() {
        return Err(Unresolved::Empty);
    }
    let mut best: Vec<Listed> = Vec::new();
    let mut class = Fit::Prefix;
    for row in rows {
        let Some(fit) = fit(text, &row) else { continue };
        if best.is_empty() || fit < class {
            best.clear();
            class = fit;
        }
        // A job that ended a moment ago may be known twice, as running and as ended: the later row stands.
        let same = |known: &Listed| known.id == row.id && (row.id.is_some() || known.folder == row.folder);
        if fit == class {
            best.retain(|known| !(same(known) && known.name == row.name));
            best.push(row);
        }
    }
    match best.len() {
        0 => Err(Unresolved::Unknown(escape(text.as_bytes()))),
        1 => Ok(best.remove(0)),
        n => Err(Unresolved::Ambiguous {
            text: escape(text.as_bytes()),
            candidates: best.iter().take(NAMED).map(written).collect(),
            more: n > NAMED,
        }),
    }
}

/// What names this row and hardly any other: the job, else the path in the inbox.
pub fn written(row: &Listed) -> String {
    match &row.job {
        Some(job) => job.clone(),
        None if row.folder.is_empty() => format!("./{}", row.name),
        None => format!("{}/{}", row.folder, row.name),
    }
}

/// What to call a row in a message: the job, else the name with its folder.
pub fn label(row: &Listed) -> String {
    match &row.job {
        Some(job) => job.clone(),
        None if row.folder.is_empty() => format!("{} ({})", row.name, row.state),
        None => format!("{}/{} ({})", row.folder, row.name, row.state),
    }
}

/// The bytes behind an escaped name; nothing when it isn't one.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let code = rest[at + 1..].chars().next()?;
        rest = &rest[at + 1 + code.len_utf8()..];
        match code {
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            '\\' => bytes.push(b'\\'),
            'x' => {
                bytes.push(u8::from_str_radix(rest.get(..2)?, 16).ok()?);
                rest = &rest[2..];
            }
            'u' => {
                let (digits, after) = rest.strip_prefix('{')?.split_once('}')?;
                let c = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
            }
            _ => return None,
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, name: &str, state: &str) -> Listed {
        let known = !id.is_empty();
        Listed {
            id: known.then(|| id.to_owned()),
            job: known.then(|| format!("{}~{id}", name.split('.').next().unwrap_or(name))),
            name: name.to_owned(),
            state: state.to_owned(),
            ..Listed::empty()
        }
    }

    #[test]
    fn a_reference_means_one_job_or_says_why_not() {
        let rows = [
            row("01ARZ3NDEKTSV4RRFFQ69G5FAV", "a.wav", "done"),
            row("01ARZ3NDEKTSV4RRFFQ69G5FAW", "b.wav", "failed"),
            row("01BRZ3NDEKTSV4RRFFQ69G5FAX", "b.wav", "running"),
            row("", "c.wav", "ready"),
            row("", "e\\nf", "held"),
            row("01CRZ3NDEKTSV4RRFFQ69G5FAX", "01B", "done"),
        ];
        let check = |text: &str, expected: &str| {
            let found = match resolve(text, rows.clone()) {
                Ok(row) => row.id.unwrap_or(row.name),
                Err(wrong) => format!("{}: {wrong}", wrong.code()),
            };
            assert_eq!(found, expected, "{text}");
        };
        check("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        check("01arz3ndektsv4rrffq69g5fav", "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        check("a~01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        check("a~", "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        check("a.wav", "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        check("c.wav", "c.wav");
        // As it is shown, and as it is.
        check("e\\nf", "e\\nf");
        check("e\nf", "e\\nf");
        // A name beats a prefix.
        check("01B", "01CRZ3NDEKTSV4RRFFQ69G5FAX");
        check("01BR", "01BRZ3NDEKTSV4RRFFQ69G5FAX");
        check("", "bad-request: an empty name names nothing");
        check("x.wav", "not-found: no job or item is called `x.wav`");
        check(
            "01A",
            "ambiguous: `01A` could be any of these: a~01ARZ3NDEKTSV4RRFFQ69G5FAV, b~01ARZ3NDEKTSV4RRFFQ69G5FAW",
        );
        check(
            "b.wav",
            "ambiguous: `b.wav` could be any of these: b~01ARZ3NDEKTSV4RRFFQ69G5FAW, b~01BRZ3NDEKTSV4RRFFQ69G5FAX",
        );
    }

    #[test]
    fn what_lies_in_the_inbox_has_a_path() {
        let within = |folder: &str, row: Listed| Listed { folder: folder.to_owned(), ..row };
        let rows = [
            row("", "b.wav", "held"),
            within("low", row("", "b.wav", "held")),
            within("e\\nf", row("", "b\\nc", "held")),
            within("low", row("01ARZ3NDEKTSV4RRFFQ69G5FAV", "b.wav", "done")),
            within("low", row("01BRZ3NDEKTSV4RRFFQ69G5FAV", "c.wav", "done")),
        ];
        let check = |text: &str, expected: &str| {
            let found = match resolve(text, rows.clone()) {
                Ok(row) => written(&row),
                Err(wrong) => wrong.to_string(),
            };
            assert_eq!(found, expected, "{text}");
        };
        check("./b.wav", "./b.wav");
        check("low/b.wav", "low/b.wav");
        check("low/c.wav", "c~01BRZ3NDEKTSV4RRFFQ69G5FAV");
        check("e\nf/b\nc", "e\\nf/b\\nc");
        check("e\\nf/b\\nc", "e\\nf/b\\nc");
        check("high/b.wav", "no job or item is called `high/b.wav`");
        check("/b.wav", "no job or item is called `/b.wav`");
        check("low/", "no job or item is called `low/`");
        check("b.wav", "`b.wav` could be any of these: ./b.wav, low/b.wav, b~01ARZ3NDEKTSV4RRFFQ69G5FAV");
    }

    #[test]
    fn of_many_that_it_could_be_ten_are_named() {
        let check = |n: u32, others: bool| {
            let rows = (0..n).map(|n| row(&format!("01ARZ3NDEKTSV4RRFFQ69G5F{n:02}"), "a", "done"));
            let Err(Unresolved::Ambiguous { candidates, more, .. }) = resolve("01ARZ", rows) else { panic!("{n}") };
            assert_eq!((candidates.len(), more), (10.min(n as usize), others), "{n}");
        };
        check(10, false);
        check(11, true);
        check(99, true);
    }

    #[test]
    fn a_job_known_twice_is_one_job() {
        let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let found = resolve("a.wav", [row(id, "a.wav", "running"), row(id, "a.wav", "done")]);
        assert_eq!(found.map(|row| row.state), Ok("done".to_owned()));
    }

    proptest::proptest! {
        #[test]
        fn escaping_can_be_undone(bytes: Vec<u8>) {
            proptest::prop_assert_eq!(unescape(&escape(&bytes)), Some(bytes));
        }
    }

    #[test]
    fn what_is_no_escaped_text_is_refused() {
        let check = |text: &str| assert_eq!(unescape(text), None, "{text}");
        check("\\");
        check("\\q");
        check("\\x4");
        check("\\xzz");
        check("\\u{d800}");
        check("\\u41");
        check("\\é");
    }
}
