//! Results as rows of cells: the keys of all result objects become columns, in the order in which they are first seen.
//! Pure. Memory is bounded by the number of columns, not of rows.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::api::results::Reported;

/// What every row has.
pub(super) const FIXED: [&str; 5] = ["id", "name", "route", "outcome", "finished_at"];
/// For what has no column of its own: a result that isn't an object, and the keys beyond [`MAX_KEYS`].
const REST: &str = "result";
/// More keys are words of the data, and no columns.
const MAX_KEYS: usize = 1000;

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Nothing,
    /// Somebody's words.
    Text(String),
    /// A number, `true`, `false`, or nested JSON.
    Json(String),
}

impl Cell {
    pub(super) fn text(&self) -> &str {
        match self {
            Cell::Nothing => "",
            Cell::Text(text) | Cell::Json(text) => text,
        }
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Cell::Json(json) if json.starts_with(|c: char| c == '-' || c.is_ascii_digit()))
    }

    /// As a spreadsheet may read it: words that it would take for a formula are marked as words.
    pub(super) fn for_spreadsheet(&self) -> Cow<'_, str> {
        match self {
            Cell::Text(text) => words(text),
            Cell::Nothing | Cell::Json(_) => Cow::Borrowed(self.text()),
        }
    }

    fn of(raw: &RawValue) -> Cell {
        let json = raw.get();
        match json.as_bytes().first() {
            Some(b'n') | None => Cell::Nothing,
            // A text with half a character (a lone surrogate) stays as it was written.
            Some(b'"') => serde_json::from_str(json).map_or_else(|_| Cell::Json(json.to_owned()), Cell::Text),
            Some(_) => Cell::Json(json.to_owned()),
        }
    }
}

/// Text that a spreadsheet takes for text.
pub(super) fn words(text: &str) -> Cow<'_, str> {
    let formula = |c: char| matches!(c, '=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠');
    let number = || {
        let of_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
        text.chars().all(of_number) && text.parse::<f64>().is_ok()
    };
    if text.starts_with(formula) && !number() { Cow::Owned(format!("'{text}")) } else { Cow::Borrowed(text) }
}

/// The columns behind the fixed ones.
#[derive(Debug, Default)]
pub(super) struct Columns {
    keys: Vec<String>,
    at: HashMap<String, usize>,
    rest: bool,
}

impl Columns {
    /// Makes room for what this row has.
    pub(super) fn note(&mut self, row: &Reported) {
        match Flat::of(row.result.as_deref()) {
            Flat::Nothing => {}
            Flat::One(_) => self.rest = true,
            Flat::Pairs(pairs) => {
                for (key, _) in pairs {
                    if self.at.contains_key(&key) {
                        continue;
                    }
                    if self.keys.len() == MAX_KEYS {
                        self.rest = true;
                        return;
                    }
                    self.at.insert(key.clone(), self.keys.len());
                    self.keys.push(key);
                }
            }
        }
    }

    /// Whether there is a column for what has none of its own.
    pub(super) fn has_rest(&self) -> bool {
        self.rest
    }

    /// The heads of all columns, each another: a key that is named like a fixed column gets a `result.` before it.
    pub(super) fn heads(&self) -> Vec<String> {
        let mut taken: HashSet<String> = FIXED.iter().chain([&REST]).map(|head| (*head).to_owned()).collect();
        let mut heads: Vec<String> = FIXED.iter().map(|head| (*head).to_owned()).collect();
        for key in &self.keys {
            let mut head = key.clone();
            while !taken.insert(head.clone()) {
                head.insert_str(0, "result.");
            }
            heads.push(head);
        }
        heads.extend(self.rest.then(|| REST.to_owned()));
        heads
    }

    /// The cells of a row under these heads; none when it has more than there is room for: it came later.
    pub(super) fn cells(&self, row: &Reported) -> Option<Vec<Cell>> {
        let text = |text: &str| if text.is_empty() { Cell::Nothing } else { Cell::Text(text.to_owned()) };
        let mut cells = vec![
            text(&row.id.to_string()),
            text(&row.name),
            text(row.route.as_deref().unwrap_or_default()),
            text(&row.outcome),
            text(&row.finished_at.map(|at| at.to_string()).unwrap_or_default()),
        ];
        cells.resize(FIXED.len() + self.keys.len() + usize::from(self.rest), Cell::Nothing);
        let rest = FIXED.len() + self.keys.len();
        match Flat::of(row.result.as_deref()) {
            Flat::Nothing => {}
            Flat::One(cell) => *cells.get_mut(rest)? = cell,
            Flat::Pairs(pairs) => {
                let mut more = Vec::new();
                for (key, raw) in pairs {
                    match self.at.get(&key) {
                        Some(at) => cells[FIXED.len() + at] = Cell::of(raw),
                        None => more.push(format!("{}:{raw}", serde_json::Value::from(key))),
                    }
                }
                if !more.is_empty() {
                    *cells.get_mut(rest)? = Cell::Json(format!("{{{}}}", more.join(",")));
                }
            }
        }
        Some(cells)
    }
}

/// A result, one level deep.
enum Flat<'a> {
    Nothing,
    One(Cell),
    Pairs(Vec<(String, &'a RawValue)>),
}

impl Flat<'_> {
    fn of(result: Option<&RawValue>) -> Flat<'_> {
        let Some(raw) = result else { return Flat::Nothing };
        if raw.get().starts_with('{')
            && let Ok(Pairs(pairs)) = serde_json::from_str(raw.get())
        {
            return Flat::Pairs(pairs);
        }
        match Cell::of(raw) {
            Cell::Nothing => Flat::Nothing,
            cell => Flat::One(cell),
        }
    }
}

/// An object's pairs in their order; of a key that stands there twice the last value, as everywhere in JSON.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Pairs<'a>, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs: Vec<(String, &'de RawValue)> = Vec::new();
                let mut at: HashMap<String, usize> = HashMap::new();
                while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                    match at.get(&key) {
                        Some(&at) => pairs[at].1 = value,
                        None => {
                            at.insert(key.clone(), pairs.len());
                            pairs.push((key, value));
                        }
                    }
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(result: &str) -> Reported {
        Reported {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            name: "a".to_owned(),
            route: None,
            outcome: "done".to_owned(),
            finished_at: "2026-11-22T10:00:00Z".parse().ok(),
            result: (!result.is_empty()).then(|| RawValue::from_string(result.to_owned()).unwrap()),
            counters: Default::default(),
        }
    }

    /// The heads and then the rows, without what every row has.
    fn check(results: &[&str], expected: &[&str]) {
        let mut columns = Columns::default();
        let rows: Vec<Reported> = results.iter().map(|result| row(result)).collect();
        rows.iter().for_each(|row| columns.note(row));
        let line = |cells: Vec<String>| cells[FIXED.len()..].join("|");
        let mut found = vec![line(columns.heads())];
        for row in &rows {
            found.push(line(columns.cells(row).unwrap().iter().map(|cell| cell.text().to_owned()).collect()));
        }
        assert_eq!(found, expected, "{results:?}");
    }

    #[test]
    fn keys_become_columns_in_the_order_they_are_seen() {
        check(&[], &[""]);
        check(&["", "null"], &["", "", ""]);
        check(&[r#"{"z":1,"a":"x"}"#, r#"{"b":true,"z":-2.50}"#], &["z|a|b", "1|x|", "-2.50||true"]);
        check(&[r#"{"deep":{"b":[1, 2]},"none":null}"#], &["deep|none", r#"{"b":[1, 2]}|"#]);
        check(&["3", r#""x""#, r#"{"a":1}"#, "[1]"], &["a|result", "|3", "|x", "1|", "|[1]"]);
        check(&[r#"{"a":1,"b":2,"a":3}"#, "{}"], &["a|b", "3|2", "|"]);
        check(
            &[r#"{"name":"n","result":1,"result.name":2}"#, "7"],
            &["result.name|result.result|result.result.name|result", "n|1|2|", "|||7"],
        );
        check(&[r#"{"half":"\ud800"}"#], &["half", r#""\ud800""#]);
    }

    #[test]
    fn keys_beyond_the_bound_stay_together() {
        let many: Vec<String> = (0..MAX_KEYS).map(|n| format!("\"{n}\":{n}")).collect();
        let first = row(&format!("{{{}}}", many.join(",")));
        let second = row(r#"{"7":1,"more":2,"\"":[]}"#);
        let mut columns = Columns::default();
        columns.note(&first);
        assert_eq!(columns.cells(&second), None, "it came later");
        columns.note(&second);
        assert_eq!(columns.heads().len(), FIXED.len() + MAX_KEYS + 1);
        assert_eq!(columns.cells(&first).unwrap().pop(), Some(Cell::Nothing));
        assert_eq!(columns.cells(&second).unwrap().pop().unwrap().text(), r#"{"more":2,"\"":[]}"#);
    }

    #[test]
    fn words_are_no_formulas() {
        let check = |text: &str, expected: &str| assert_eq!(words(text), expected);
        check("plain", "plain");
        check("", "");
        check("=1+1", "'=1+1");
        check("@SUM(A1)", "'@SUM(A1)");
        check("-rf", "'-rf");
        check("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0");
        check("＝1", "'＝1");
        check("\t=1", "'\t=1");
        check("-2.5e3", "-2.5e3");
        check("+49 30 1", "'+49 30 1");
        assert_eq!(Cell::Json("-2".to_owned()).for_spreadsheet(), "-2");
    }
}
