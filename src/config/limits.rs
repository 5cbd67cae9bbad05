//! How much may be asked of devices: the bounds that the text of a configuration is read with, and the check of rules that
//! a program made itself.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Devices;
use crate::item::escape;
use crate::units::Bytes;

/// More workers than this on one device are a slip of the keyboard.
pub(super) const SLOTS: RangeInclusive<u32> = 1..=1024;
/// Made-up devices.
pub(super) const SIM_GPUS: RangeInclusive<u32> = 1..=1024;
pub(super) const SIM_MEMORY: Bytes = Bytes(1 << 20);
/// Percent.
pub(super) const UTILIZATION: RangeInclusive<u32> = 0..=100;
/// For two looks at a device that others use.
pub(super) const IDLE_SETTLE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
/// GPUs for one item.
pub(crate) const GPUS: RangeInclusive<u32> = 0..=256;

impl Devices {
    /// The first thing that can't be, for rules that no configuration was read for; in the words of the keys.
    pub(crate) fn check(&self) -> Result<(), String> {
        let count = |key: &str, number: u32, range: &RangeInclusive<u32>| match range.contains(&number) {
            true => Ok(()),
            false => Err(format!("`{key}` is {number}: it must be from {} to {}", range.start(), range.end())),
        };
        count("slots", self.slots, &SLOTS)?;
        self.cpu_slots.map_or(Ok(()), |slots| count("cpu_slots", slots, &SLOTS))?;
        count("sim.gpus", self.sim.gpus, &SIM_GPUS)?;
        count("idle.max_utilization", self.idle.max_utilization, &UTILIZATION)?;
        if self.sim.memory < SIM_MEMORY {
            return Err(format!("`sim.memory` is {}: it must be at least {SIM_MEMORY}", self.sim.memory));
        }
        if !IDLE_SETTLE.contains(&self.idle.settle) {
            return Err("`idle.settle` is longer than ten minutes".to_owned());
        }
        for (key, names) in [("include", &self.include), ("exclude", &self.exclude)] {
            if let Some(name) = names.iter().find(|name| !is_device(name)) {
                let name = escape(name.as_bytes());
                return Err(format!("`{key}` has `{name}`, which is neither an index nor a UUID"));
            }
        }
        match self.exclude.iter().find(|name| self.include.contains(name)) {
            Some(name) => Err(format!("device {} is both included and excluded", escape(name.as_bytes()))),
            None => Ok(()),
        }
    }
}

/// An index or a UUID.
pub(super) fn is_device(text: &str) -> bool {
    let uuid = ["GPU-", "MIG-", "SIM-"].iter().find_map(|kind| text.strip_prefix(kind));
    match uuid {
        Some(rest) => !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/')),
        None => text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u32>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_cannot_be_are_told() {
        let check = |change: fn(&mut Devices), words: &str| {
            let mut rules = Devices::default();
            change(&mut rules);
            let said = rules.check().err().unwrap_or_default();
            assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{said}, not {words}");
        };
        check(|_| {}, "");
        check(|rules| rules.slots = 0, "`slots` is 0: it must be from 1 to 1024");
        check(|rules| rules.slots = u32::MAX, "`slots` is 4294967295");
        check(|rules| rules.cpu_slots = Some(0), "`cpu_slots` is 0");
        check(|rules| rules.cpu_slots = Some(1025), "`cpu_slots` is 1025");
        check(|rules| rules.sim.gpus = u32::MAX, "`sim.gpus` is 4294967295");
        check(|rules| rules.sim.memory = Bytes(0), "`sim.memory` is 0 B");
        check(|rules| rules.idle.max_utilization = 101, "`idle.max_utilization` is 101");
        check(|rules| rules.idle.settle = Duration::MAX, "longer than ten minutes");
        check(|rules| rules.include = vec!["0".to_owned(), "GPU-\0".to_owned()], "`include` has `GPU-\\u{0}`");
        check(|rules| rules.exclude = vec!["first".to_owned()], "`exclude` has `first`");
        check(
            |rules| (rules.include, rules.exclude) = (vec!["1".to_owned()], vec!["1".to_owned()]),
            "device 1 is both included and excluded",
        );
    }
}
