//! Reads an OpenMetrics exposition and refuses everything that the format doesn't allow: an order, a name, a type, an escape,
//! a value, a histogram that doesn't add up. Stricter than the format where we promise more: no NaN, help for everything.

#![allow(unreachable_pub, reason = "a test's own module")]

use std::collections::{BTreeMap, BTreeSet};

/// Sorted by their names.
pub type Labels = BTreeMap<String, String>;

#[derive(Debug)]
pub struct Family {
    pub name: String,
    pub kind: String,
    /// By the sample's whole name and labels.
    pub samples: BTreeMap<(String, Labels), f64>,
}

/// A whole scrape.
#[derive(Debug, Default)]
pub struct Exposition(pub BTreeMap<String, Family>);

impl Exposition {
    pub fn parse(text: &str) -> Result<Exposition, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("no `# EOF` at its end")?;
        let mut families = Exposition::default();
        let mut lines = body.lines().peekable();
        while let Some(line) = lines.next() {
            let wrong = |why: &str| format!("{why}: {line}");
            let (name, help) = comment(line, "HELP").ok_or_else(|| wrong("a family begins with its help"))?;
            let of_family = |line: Option<&str>, what| {
                let (of, word) = comment(line?, what)?;
                (of == name).then(|| word.to_owned())
            };
            let kind = of_family(lines.next(), "TYPE").ok_or_else(|| wrong("no type after it"))?;
            let unit = lines.next_if(|line| line.starts_with("# UNIT ")).map(|line| of_family(Some(line), "UNIT"));
            let is_name = |name: &str| {
                let letters =
                    name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
                letters && !name.starts_with(|first: char| first.is_ascii_digit())
            };
            if !is_name(name) || help.is_empty() || help.ends_with('.') {
                return Err(wrong("a name or a help that isn't one"));
            }
            if let Some(unit) = unit {
                let unit = unit.ok_or_else(|| wrong("another family's unit"))?;
                if !name.ends_with(&format!("_{unit}")) {
                    return Err(wrong("a name without its unit"));
                }
            }
            let mut family = Family { name: name.to_owned(), kind, samples: BTreeMap::new() };
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (key, value) = sample(line)?;
                family.admit(&key, value).map_err(|why| format!("{why}: {line}"))?;
                if family.samples.insert(key, value).is_some() {
                    return Err(format!("told twice: {line}"));
                }
            }
            family.check()?;
            if families.0.insert(name.to_owned(), family).is_some() {
                return Err(wrong("a family that was there before"));
            }
        }
        Ok(families)
    }

    /// The value of a sample; its labels as `key=value`, in any order.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let key = (name.to_owned(), labels);
        self.0.values().find_map(|family| family.samples.get(&key)).copied()
    }

    /// The sum of all samples of this name with these labels among theirs.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |of: &Labels| labels.iter().all(|(key, value)| of.get(*key).is_some_and(|it| it == value));
        let samples = self.0.values().flat_map(|family| &family.samples);
        samples.filter(|((of, its), _)| of == name && fits(its)).map(|(_, value)| value).sum()
    }

    /// Every name that a query can ask for.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.values().flat_map(|family| family.samples.keys()).map(|(name, _)| name.clone()).collect()
    }

    /// What only ever grows, and what became of it since.
    pub fn fell_since(&self, before: &Exposition) -> Vec<String> {
        let grows = |family: &&Family| matches!(family.kind.as_str(), "counter" | "histogram");
        let mut fell = Vec::new();
        for family in before.0.values().filter(grows) {
            for (key, was) in &family.samples {
                let now = self.0.get(&family.name).and_then(|family| family.samples.get(key));
                if now.is_none_or(|now| now < was) {
                    fell.push(format!("{key:?} was {was}, is {now:?}"));
                }
            }
        }
        fell
    }
}

impl Family {
    /// Whether a sample of this name and value can be the family's.
    fn admit(&self, (name, labels): &(String, Labels), value: f64) -> Result<(), String> {
        let end = name.strip_prefix(&self.name).ok_or("a sample of another family")?;
        let (ends, labelled): (&[&str], bool) = match self.kind.as_str() {
            "gauge" => (&[""], false),
            "counter" => (&["_total"], false),
            "info" => (&["_info"], false),
            "histogram" => (&["_sum", "_count", "_bucket"], end == "_bucket"),
            kind => return Err(format!("a type `{kind}`")),
        };
        if !ends.contains(&end) || labels.contains_key("le") != labelled {
            return Err(format!("no sample of a {}", self.kind));
        }
        if !value.is_finite() || (self.kind != "gauge" && value < 0.0) || (self.kind == "info" && value != 1.0) {
            return Err("a value that can't be".to_owned());
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.samples.is_empty() {
            return Err(format!("{} has no samples", self.name));
        }
        if self.kind != "histogram" {
            return Ok(());
        }
        let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), value) in &self.samples {
            let mut labels = labels.clone();
            let bound = labels.remove("le");
            let buckets = series.entry(labels).or_default();
            if name.ends_with("_bucket") {
                let bound = bound.ok_or("no bound")?;
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().map_err(|_| bound.clone())? };
                buckets.push((bound, *value));
            }
        }
        for (labels, mut buckets) in series {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            let of = |end: &str| self.samples.get(&(format!("{}{end}", self.name), labels.clone())).copied();
            let grow = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
            let last = buckets.last().copied();
            if !grow || last.map(|(bound, _)| bound) != Some(f64::INFINITY) || last.map(|(_, all)| all) != of("_count")
            {
                return Err(format!("{} {labels:?} doesn't add up: {buckets:?}", self.name));
            }
            if of("_sum").is_none() {
                return Err(format!("{} {labels:?} has no sum", self.name));
            }
        }
        Ok(())
    }
}

/// `# WHAT name rest`.
fn comment<'l>(line: &'l str, what: &str) -> Option<(&'l str, &'l str)> {
    line.strip_prefix("# ")?.strip_prefix(what)?.strip_prefix(' ')?.split_once(' ')
}

/// `name{key="value",…} value`, to the letter.
fn sample(line: &str) -> Result<((String, Labels), f64), String> {
    let wrong = || format!("no sample: {line}");
    let end = line.find(['{', ' ']).ok_or_else(wrong)?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (key, after) = rest.split_once("=\"").ok_or_else(wrong)?;
            let (value, after) = quoted(after).ok_or_else(wrong)?;
            let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if !is_key || labels.insert(key.to_owned(), value).is_some() {
                return Err(wrong());
            }
            match after.as_bytes().first() {
                Some(b',') => rest = &after[1..],
                Some(b'}') => {
                    rest = &after[1..];
                    break;
                }
                _ => return Err(wrong()),
            }
        }
    }
    let value = rest.strip_prefix(' ').and_then(|value| value.parse().ok()).ok_or_else(wrong)?;
    Ok(((name.to_owned(), labels), value))
}

/// A label's value, and what follows its closing quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}
