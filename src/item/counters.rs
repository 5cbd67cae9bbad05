//! What workers count: sums by name. Pure. Whole numbers are exact up to 2^53, and are written without a fraction.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};

/// Sums by name, in the order of the names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Counters(BTreeMap<String, f64>);

impl Counters {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, sum)| (name.as_str(), *sum))
    }

    pub fn add(&mut self, name: &str, by: f64) {
        match self.0.get_mut(name) {
            Some(sum) => *sum = plus(*sum, by),
            None => drop(self.0.insert(name.to_owned(), by)),
        }
    }

    pub fn add_all(&mut self, other: &Counters) {
        other.iter().for_each(|(name, by)| self.add(name, by));
    }

    /// The opposite of [`Counters::add_all`].
    pub fn take_all(&mut self, other: &Counters) {
        other.iter().for_each(|(name, by)| self.add(name, -by));
    }

    /// Keeps the first so many names.
    pub fn truncate(&mut self, names: usize) {
        while self.0.len() > names {
            self.0.pop_last();
        }
    }
}

impl FromIterator<(String, f64)> for Counters {
    fn from_iter<T: IntoIterator<Item = (String, f64)>>(sums: T) -> Counters {
        let mut counters = Counters::default();
        sums.into_iter().for_each(|(name, by)| counters.add(&name, by));
        counters
    }
}

/// JSON has no infinity: a record that held one could not be read again.
pub fn plus(sum: f64, by: f64) -> f64 {
    (sum + by).clamp(f64::MIN, f64::MAX)
}

/// Whole numbers up to here are exact.
const EXACT: f64 = (1_u64 << 53) as f64;

fn whole(sum: f64) -> Option<i64> {
    (sum.fract() == 0.0 && sum.abs() <= EXACT).then_some(sum as i64)
}

impl Serialize for Counters {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(Some(self.0.len()))?;
        for (name, sum) in self.iter() {
            match whole(sum) {
                Some(sum) => map.serialize_entry(name, &sum)?,
                None => map.serialize_entry(name, &sum)?,
            }
        }
        map.end()
    }
}

/// A sum as people read it.
#[derive(Clone, Copy, Debug)]
pub struct Sum(pub f64);

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match whole(self.0) {
            Some(sum) => sum.fmt(f),
            // Written out it could have three hundred digits.
            None if self.0.abs() > EXACT => write!(f, "{:.3e}", self.0),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(sums: &[(&str, f64)]) -> Counters {
        sums.iter().map(|(name, by)| ((*name).to_owned(), *by)).collect()
    }

    #[test]
    fn whole_numbers_stay_whole_and_everything_is_read_back() {
        let check = |sums: &[(&str, f64)], json: &str| {
            let made = counters(sums);
            assert_eq!(serde_json::to_string(&made).unwrap(), json);
            assert_eq!(serde_json::from_str::<Counters>(json).unwrap(), made);
        };
        check(&[], "{}");
        check(&[("b", 3.0), ("a", -2.0), ("b", 4.0)], r#"{"a":-2,"b":7}"#);
        check(&[("half", 0.5), ("half", 0.25)], r#"{"half":0.75}"#);
        check(&[("most", EXACT - 1.0), ("most", 1.0)], r#"{"most":9007199254740992}"#);
        check(&[("huge", f64::MAX), ("huge", f64::MAX)], r#"{"huge":1.7976931348623157e+308}"#);
    }

    #[test]
    fn what_is_taken_back_leaves_what_was() {
        let mut sums = counters(&[("a", 5.0), ("b", 1.0)]);
        let more = counters(&[("a", 2.0), ("c", 7.0)]);
        sums.add_all(&more);
        assert_eq!(sums, counters(&[("a", 7.0), ("b", 1.0), ("c", 7.0)]));
        sums.take_all(&more);
        assert_eq!((sums.get("a"), sums.get("b"), sums.get("c")), (Some(5.0), Some(1.0), Some(0.0)));
        sums.truncate(2);
        assert_eq!(sums, counters(&[("a", 5.0), ("b", 1.0)]));
    }

    #[test]
    fn a_million_steps_of_one_are_a_million() {
        let mut sums = Counters::default();
        (0..1_000_000).for_each(|_| sums.add("n", 1.0));
        assert_eq!(Sum(sums.get("n").unwrap()).to_string(), "1000000");
        assert_eq!(Sum(0.1).to_string(), "0.1");
    }
}
