//! TOML with spans: typed values out of one table, each problem noted at its place. Invariants: a key that isn't asked
//! for by name is unknown; a wrong value is noted once and then treated as absent, so that the reader goes on.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::{Problem, Problems, nearest};
use super::schema;
use crate::item::escape;
use crate::units::Bytes;

/// One table of the text.
pub(super) struct Table<'t> {
    text: &'t str,
    problems: &'t Problems,
    entries: &'t DeTable<'t>,
    /// Its name in [`schema`].
    schema: &'static str,
    /// How messages call it: `[devices]`, "route `x`".
    owner: String,
    /// What stands before a key in messages: `idle.` for a table within a table.
    prefix: String,
    pub(super) span: Range<usize>,
}

/// What is wrong with a value, seen from the value.
pub(super) struct Fault {
    label: String,
    help: Option<String>,
    /// A part of the decoded string; none: all of it.
    within: Option<Range<usize>>,
}

impl Fault {
    pub(super) fn new(label: impl Into<String>) -> Fault {
        Fault { label: label.into(), help: None, within: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Fault {
        self.help = Some(help.into());
        self
    }

    pub(super) fn within(mut self, within: Range<usize>) -> Fault {
        self.within = Some(within);
        self
    }

    fn found(value: &DeValue<'_>) -> Fault {
        Fault::new(format!("found {}", describe(value)))
    }
}

/// A value as people call it.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{}\"", escape(text.as_bytes())),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(items) if items.is_empty() => "an empty list".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

impl<'t> Table<'t> {
    pub(super) fn document(text: &'t str, entries: &'t Spanned<DeTable<'t>>, problems: &'t Problems) -> Table<'t> {
        let table = Table {
            text,
            problems,
            entries: entries.get_ref(),
            schema: "",
            owner: "the top level".to_owned(),
            prefix: String::new(),
            span: 0..0,
        };
        table.refuse_unknown();
        table
    }

    /// Notes a problem at a place in the text.
    pub(super) fn problem(&self, at: Range<usize>, message: impl Into<String>, fault: Fault) {
        let Fault { label, help, .. } = fault;
        self.problems.add(Problem { at, message: message.into(), label, help, also: None });
    }

    /// Notes that two places contradict each other.
    pub(super) fn contradiction(
        &self,
        at: Range<usize>,
        also: (Range<usize>, &str),
        message: impl Into<String>,
        fault: Fault,
    ) {
        let also = Some((also.0, also.1.to_owned()));
        self.problems.add(Problem { at, message: message.into(), label: fault.label, help: fault.help, also });
    }

    /// Notes a problem with the value of `key`.
    pub(super) fn refuse<T>(&self, key: &str, value: &Spanned<T>, must: &str, fault: Fault) {
        self.refuse_at(key, value.span(), None, must, fault);
    }

    /// Notes a problem with a part of a text.
    pub(super) fn refuse_part(&self, text: &Spanned<String>, message: String, fault: Fault) {
        let at = match &fault.within {
            Some(within) => self.within(&text.span(), text.get_ref(), within),
            None => text.span(),
        };
        self.problem(at, message, fault);
    }

    fn refuse_at(&self, key: &str, span: Range<usize>, decoded: Option<&str>, must: &str, fault: Fault) {
        let at = match (&fault.within, decoded) {
            (Some(within), Some(decoded)) => self.within(&span, decoded, within),
            _ => span,
        };
        self.problem(at, format!("{} must be {must}", self.called(key)), fault);
    }

    /// The place of a part of a string, where the string stands in the text as it is.
    fn within(&self, span: &Range<usize>, decoded: &str, part: &Range<usize>) -> Range<usize> {
        let inside = span.start + 1..span.end.saturating_sub(1);
        let same = self.text.get(inside.clone()) == Some(decoded) && part.end <= decoded.len();
        if same { inside.start + part.start..inside.start + part.end } else { span.clone() }
    }

    /// A key as messages call it.
    pub(super) fn called(&self, key: &str) -> String {
        match self.owner.as_str() {
            "the top level" => format!("`{key}`"),
            owner => format!("`{}{key}` in {owner}", self.prefix),
        }
    }

    /// The table as messages call it.
    fn name(&self) -> String {
        match self.prefix.strip_suffix('.') {
            Some(inner) => format!("`{inner}` of {}", self.owner),
            None => self.owner.clone(),
        }
    }

    fn refuse_unknown(&self) {
        let known = schema::keys(self.schema);
        for (key, value) in self.entries.iter() {
            let word: &str = key.get_ref();
            if known.contains(&word) {
                continue;
            }
            let shown = escape(word.as_bytes());
            let (message, fault) = if schema::is_later(self.schema, word) {
                let help = "leave it out: a key that would be ignored is refused instead";
                (
                    format!("{} is not available yet", self.called(&shown)),
                    Fault::new("comes with a later version").help(help),
                )
            } else {
                let fault =
                    Fault::new(format!("not a key of {}", self.name())).help(self.advise(word, value.get_ref()));
                (
                    format!(
                        "unknown key `{shown}` {} {}",
                        if self.schema.is_empty() { "at" } else { "in" },
                        self.name()
                    ),
                    fault,
                )
            };
            self.problem(key.span(), message, fault);
        }
    }

    /// What to do about an unknown key.
    fn advise(&self, word: &str, value: &DeValue<'_>) -> String {
        let known = schema::keys(self.schema);
        if let Some(key) = schema::alias(self.schema, word).or_else(|| nearest(word, known.iter().copied())) {
            return format!("did you mean `{key}`?");
        }
        match schema::home(word) {
            Some(home) if home != self.schema && !value.is_table() => match home {
                "" => format!("`{word}` stands at the top of the file, before the first [table]"),
                "route" => format!("`{word}` is a key of a [[route]]"),
                home => format!("`{word}` is a key of [{home}]"),
            },
            _ => format!("the keys of {} are {}", self.name(), known.join(", ")),
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether it says anything: an empty text or list doesn't.
    pub(super) fn is_filled(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|value| match value.get_ref() {
            DeValue::String(text) => !text.is_empty(),
            DeValue::Array(items) => !items.is_empty(),
            _ => true,
        })
    }

    pub(super) fn is_integer(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|value| value.get_ref().is_integer())
    }

    /// The value of `key`, unless it is absent or wrong.
    pub(super) fn read<T>(
        &self,
        key: &'static str,
        must: &str,
        parse: impl FnOnce(&'t DeValue<'t>) -> Result<T, Fault>,
    ) -> Option<Spanned<T>> {
        debug_assert!(schema::keys(self.schema).contains(&key), "{key} is missing in the schema of {}", self.owner);
        let value = self.entries.get(key)?;
        match parse(value.get_ref()) {
            Ok(parsed) => Some(Spanned::new(value.span(), parsed)),
            Err(fault) => {
                self.refuse_at(key, value.span(), value.get_ref().as_str(), must, fault);
                None
            }
        }
    }

    pub(super) fn boolean(&self, key: &'static str) -> Option<Spanned<bool>> {
        self.read(key, "true or false", |value| value.as_bool().ok_or_else(|| Fault::found(value)))
    }

    pub(super) fn integer<N>(&self, key: &'static str, range: RangeInclusive<N>) -> Option<Spanned<N>>
    where
        N: TryFrom<i64> + PartialOrd + Display,
    {
        let must = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(key, &must, |value| {
            let DeValue::Integer(number) = value else { return Err(Fault::found(value)) };
            let number = i64::from_str_radix(number.as_str(), number.radix()).ok().and_then(|n| N::try_from(n).ok());
            number.filter(|number| range.contains(number)).ok_or_else(|| Fault::found(value))
        })
    }

    pub(super) fn text(&self, key: &'static str) -> Option<Spanned<String>> {
        self.read(key, "a text", string)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<Spanned<T>> {
        let listed: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.read(key, &one_of(&listed), |value| {
            let DeValue::String(found) = value else { return Err(Fault::found(value)) };
            let chosen = words.iter().find(|(word, _)| word == found).map(|(_, choice)| *choice);
            chosen.ok_or_else(|| match nearest(found, words.iter().map(|(word, _)| *word)) {
                Some(word) => Fault::found(value).help(format!("did you mean \"{word}\"?")),
                None => Fault::found(value),
            })
        })
    }

    pub(super) fn duration(&self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Spanned<Duration>> {
        self.read(key, &duration_words(&range), |value| duration(value, &range))
    }

    /// A duration, or `word` for none.
    pub(super) fn duration_or(
        &self,
        key: &'static str,
        word: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Spanned<Option<Duration>>> {
        self.read(key, &format!("\"{word}\" or {}", duration_words(&range)), |value| match value.as_str() {
            Some(found) if found == word => Ok(None),
            _ => duration(value, &range).map(Some),
        })
    }

    pub(super) fn size(&self, key: &'static str, least: Bytes) -> Option<Spanned<Bytes>> {
        let must = match least {
            Bytes(0) => "a size".to_owned(),
            Bytes(1) => "a size above zero".to_owned(),
            least => format!("a size of at least {least}"),
        };
        self.read(key, &must, |value| {
            size(value).and_then(|size| if size < least { Err(Fault::found(value)) } else { Ok(size) })
        })
    }

    /// A list of texts, each with its place.
    pub(super) fn texts(&self, key: &'static str) -> Option<Spanned<Vec<Spanned<String>>>> {
        self.texts_from(key, "a list of texts", string)
    }

    /// A list of texts that `word` makes of each entry.
    pub(super) fn texts_from(
        &self,
        key: &'static str,
        must: &str,
        word: impl Fn(&DeValue<'_>) -> Result<String, Fault>,
    ) -> Option<Spanned<Vec<Spanned<String>>>> {
        let list: Spanned<&DeArray<'t>> = self.read(key, must, |value| match value {
            DeValue::Array(items) => Ok(items),
            DeValue::String(text) => {
                let words: Vec<String> = text.split_whitespace().map(|word| format!("{word:?}")).collect();
                Err(Fault::found(value).help(format!("write a list: {key} = [{}]", words.join(", "))))
            }
            value => Err(Fault::found(value)),
        })?;
        let mut texts = Vec::new();
        for value in list.get_ref().iter() {
            match word(value.get_ref()) {
                Ok(text) => texts.push(Spanned::new(value.span(), text)),
                Err(fault) => self.refuse_at(key, value.span(), value.get_ref().as_str(), must, fault),
            }
        }
        let complete = texts.len() == list.get_ref().len();
        complete.then(|| Spanned::new(list.span(), texts))
    }

    /// A table whose keys are free: their names and texts.
    pub(super) fn map(&self, key: &'static str) -> Vec<(Spanned<String>, Spanned<String>)> {
        let must = "a table of texts";
        let Some(table) = self.read(key, must, |value| value.as_table().ok_or_else(|| Fault::found(value))) else {
            return Vec::new();
        };
        let mut pairs = Vec::new();
        for (name, value) in table.get_ref().iter() {
            match string(value.get_ref()) {
                Ok(text) => {
                    let name = Spanned::new(name.span(), name.get_ref().clone().into_owned());
                    pairs.push((name, Spanned::new(value.span(), text)));
                }
                Err(fault) => {
                    let key = format!("{key}.{}", escape(name.get_ref().as_bytes()));
                    let help = fault.help.clone().unwrap_or_else(|| "write the value as a text, in quotes".to_owned());
                    self.refuse_at(&key, value.span(), None, "a text", fault.help(help));
                }
            }
        }
        pairs
    }

    /// A table in this one. `[name]` at the top is called that; deeper ones are called by their path.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'t>> {
        let schema = schema::inner(self.schema, key);
        let entries = self.read(key, "a table", |value| match value {
            DeValue::Table(entries) => Ok(entries),
            DeValue::Array(_) if self.schema.is_empty() => {
                Err(Fault::new("found a list of tables").help(format!("there is one: write [{key}], not [[{key}]]")))
            }
            value => Err(Fault::found(value)),
        })?;
        let (owner, prefix) = match self.schema {
            "" => (format!("[{key}]"), String::new()),
            _ => (self.owner.clone(), format!("{}{key}.", self.prefix)),
        };
        let table = Table { entries: entries.get_ref(), schema, owner, prefix, span: entries.span(), ..*self };
        table.refuse_unknown();
        Some(table)
    }

    /// The tables of a `[[key]]` list; `name` gives each its name in messages.
    pub(super) fn tables(&self, key: &'static str, name: impl Fn(usize, &DeTable<'_>) -> String) -> Vec<Table<'t>> {
        let schema = schema::inner(self.schema, key);
        let help = format!("there may be many: write [[{key}]], not [{key}]");
        let list = self.read(key, "a list of tables", |value| match value {
            DeValue::Array(items) => Ok(items),
            DeValue::Table(_) => Err(Fault::new("found one table").help(help.clone())),
            value => Err(Fault::found(value).help(help.clone())),
        });
        let mut tables = Vec::new();
        for (place, value) in list.iter().flat_map(|list| list.get_ref().iter()).enumerate() {
            let DeValue::Table(entries) = value.get_ref() else {
                self.refuse_at(key, value.span(), None, "a list of tables", Fault::found(value.get_ref()));
                continue;
            };
            let (owner, prefix) = (name(place, entries), String::new());
            let table = Table { entries, schema, owner, prefix, span: value.span(), ..*self };
            table.refuse_unknown();
            tables.push(table);
        }
        tables
    }
}

/// `"a", "b" or "c"`.
fn one_of(words: &[String]) -> String {
    match words {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        words => words.concat(),
    }
}

/// A text; NUL can't be part of a path, an argument or a variable.
pub(super) fn string(value: &DeValue<'_>) -> Result<String, Fault> {
    match value {
        DeValue::String(text) if text.contains('\0') => Err(Fault::new("holds a NUL character")),
        DeValue::String(text) => Ok(text.clone().into_owned()),
        value => Err(Fault::found(value)),
    }
}

const DURATION_HELP: &str = "write a number with a unit, such as \"500ms\", \"2s\", \"30m\", \"1h 30m\" or \"7d\"";

fn duration_words(range: &RangeInclusive<Duration>) -> String {
    let shown = humantime::format_duration;
    match (*range.start(), *range.end()) {
        (Duration::ZERO, Duration::MAX) => "a duration".to_owned(),
        (least, Duration::MAX) => format!("a duration of at least {}", shown(least)),
        (Duration::ZERO, most) => format!("a duration of at most {}", shown(most)),
        (least, most) => format!("a duration from {} to {}", shown(least), shown(most)),
    }
}

fn duration(value: &DeValue<'_>, range: &RangeInclusive<Duration>) -> Result<Duration, Fault> {
    use humantime::DurationError as Wrong;
    let text = match value {
        DeValue::String(text) => text,
        DeValue::Integer(number) => {
            return Err(Fault::found(value).help(format!("a duration has a unit: write \"{number}s\" for seconds")));
        }
        value => return Err(Fault::found(value).help(DURATION_HELP)),
    };
    let parsed = humantime::parse_duration(text).map_err(|wrong| match wrong {
        Wrong::UnknownUnit { unit, value, .. } if unit.is_empty() => {
            Fault::new("the unit is missing").help(format!("write \"{value}s\" for seconds, \"{value}m\" for minutes"))
        }
        Wrong::UnknownUnit { start, end, unit, .. } => {
            Fault::new(format!("`{}` is no unit of time", escape(unit.as_bytes())))
                .within(start..end)
                .help(DURATION_HELP)
        }
        Wrong::InvalidCharacter(at) | Wrong::NumberExpected(at)
            if text.get(at..).is_some_and(|rest| rest.starts_with('-')) =>
        {
            Fault::new("found a negative duration").help(DURATION_HELP)
        }
        Wrong::NumberOverflow => Fault::new("the number is too large, or too exact"),
        _ => Fault::found(value).help(DURATION_HELP),
    })?;
    // Where a clock is added to it, a length that no one means must not overflow.
    let most = (*range.end()).min(Duration::from_secs(100 * 365 * 86_400));
    if (*range.start()..=most).contains(&parsed) { Ok(parsed) } else { Err(Fault::found(value)) }
}

fn size(value: &DeValue<'_>) -> Result<Bytes, Fault> {
    let help = "write a number with a unit, such as \"512KiB\", \"600MiB\" or \"8GiB\"";
    let text = match value {
        DeValue::String(text) => text.trim(),
        DeValue::Integer(number) if number.as_str() == "0" => return Ok(Bytes(0)),
        DeValue::Integer(number) => {
            return Err(Fault::found(value).help(format!("a size has a unit: {}", with_units(number))));
        }
        value => return Err(Fault::found(value).help(help)),
    };
    match text.parse::<u64>() {
        Ok(0) => Ok(Bytes(0)),
        Ok(number) => Err(Fault::new("the unit is missing").help(with_units(number))),
        Err(_) => text.parse().map_err(|_| Fault::found(value).help(help)),
    }
}

fn with_units(number: impl Display) -> String {
    format!("write \"{number}B\" for bytes, \"{number}MiB\" or \"{number}GiB\"")
}
