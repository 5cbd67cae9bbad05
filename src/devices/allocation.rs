//! Which devices this director may use at all: those of the allocation it was started in, and of them those that the
//! configuration includes. Pure. An inherited `CUDA_VISIBLE_DEVICES` is read as CUDA itself reads it, since the driver's
//! management library ignores it.

use std::collections::BTreeSet;

use super::{DeviceId, DeviceKind, Reading};
use crate::config;

/// The rules in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Allocation {
    /// None: not inside an allocation. Entries of the list as they were found.
    inherited: Option<Vec<String>>,
    include: Vec<String>,
    exclude: Vec<String>,
}

impl Allocation {
    /// `visible` is the value of `CUDA_VISIBLE_DEVICES` this process was started with.
    pub(super) fn new(visible: Option<&str>, rules: &config::Devices) -> Allocation {
        let split = |list: &str| list.split(',').map(|entry| entry.trim().to_owned()).collect();
        Allocation { inherited: visible.map(split), include: rules.include.clone(), exclude: rules.exclude.clone() }
    }

    /// Whether the allocation is one without any GPU, whatever there is: an empty list, or one that starts with a word
    /// that names none (`-1`, Slurm's `NoDevFiles`).
    pub(super) fn names_no_gpu(&self) -> bool {
        let names = |entry: &String| Entry::parse(entry).is_some();
        self.inherited.as_ref().is_some_and(|list| !list.first().is_some_and(names))
    }

    /// The entries of an inherited list in the older MIG form, `MIG-GPU-<uuid>/<gi>/<ci>`: only the driver can tell the
    /// UUID behind one, and `resolve` asks it.
    pub(super) fn resolve(&mut self, resolve: impl Fn(&str) -> Option<String>) {
        for entry in self.inherited.iter_mut().flatten().filter(|entry| entry.starts_with("MIG-GPU-")) {
            if let Some(uuid) = resolve(entry) {
                *entry = uuid;
            }
        }
    }

    /// For each device the words for why it is left out, or nothing.
    pub(super) fn exclusions(&self, devices: &[Reading]) -> Vec<Option<String>> {
        let allocated = self.inherited.as_ref().map(|list| allocated(list, devices));
        let words = |device: &Reading| {
            if device.kind == DeviceKind::Cpu {
                return None;
            }
            if allocated.as_ref().is_some_and(|ids| !ids.contains(&device.id)) {
                return Some("outside the CUDA_VISIBLE_DEVICES this director was started with".to_owned());
            }
            if self.exclude.iter().any(|entry| names(entry, device, devices)) {
                return Some("left out by devices.exclude".to_owned());
            }
            let included = self.include.is_empty() || self.include.iter().any(|entry| names(entry, device, devices));
            (!included).then(|| "not in devices.include".to_owned())
        };
        devices.iter().map(words).collect()
    }

    /// Entries of the configuration that name no device, for a warning.
    pub(super) fn unmatched(&self, devices: &[Reading]) -> Vec<&str> {
        let known = |entry: &&String| !devices.iter().any(|device| names(entry, device, devices));
        self.include.iter().chain(&self.exclude).filter(known).map(String::as_str).collect()
    }
}

/// One entry of a list of devices.
enum Entry<'a> {
    Index(u32),
    /// A UUID or the beginning of one.
    Uuid(&'a str),
}

impl Entry<'_> {
    fn parse(text: &str) -> Option<Entry<'_>> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().ok().map(Entry::Index);
        }
        let uuid = ["GPU-", "MIG-", "SIM-"].iter().any(|kind| text.len() > kind.len() && text.starts_with(kind));
        uuid.then_some(Entry::Uuid(text))
    }
}

/// The devices that a `CUDA_VISIBLE_DEVICES` list gives: reading stops at the first entry that names no device or is of
/// the other kind, a device named twice voids the list, and a GPU in MIG mode stands for its first instance. A process
/// sees one MIG instance at most; a director may be given several, and hands each to another process.
fn allocated(list: &[String], devices: &[Reading]) -> BTreeSet<DeviceId> {
    let mut given = BTreeSet::new();
    let mut by_index = None;
    for text in list {
        let Some(entry) = Entry::parse(text) else { break };
        let is_index = matches!(entry, Entry::Index(_));
        if *by_index.get_or_insert(is_index) != is_index {
            break;
        }
        let found = match entry {
            Entry::Index(index) => {
                devices.iter().find(|d| d.kind.is_gpu() && d.kind != DeviceKind::Mig && d.index == Some(index))
            }
            Entry::Uuid(prefix) => the_one(prefix, devices),
        };
        let Some(found) = found else { break };
        let first_instance = devices.iter().find(|d| d.kind == DeviceKind::Mig && d.parent.as_ref() == Some(&found.id));
        if !given.insert(first_instance.unwrap_or(found).id.clone()) {
            return BTreeSet::new();
        }
    }
    given
}

/// The only device whose UUID begins so.
fn the_one<'a>(prefix: &str, devices: &'a [Reading]) -> Option<&'a Reading> {
    let begins = |device: &&Reading| {
        let id = device.id.0.as_bytes();
        id.len() >= prefix.len() && id[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
    };
    let mut found = devices.iter().filter(begins);
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// Whether an entry of `include` or `exclude` names the device, by itself or through its GPU.
fn names(entry: &str, device: &Reading, devices: &[Reading]) -> bool {
    match Entry::parse(entry) {
        Some(Entry::Index(index)) => device.index == Some(index),
        Some(Entry::Uuid(prefix)) => the_one(prefix, devices)
            .is_some_and(|found| found.id == device.id || device.parent.as_ref() == Some(&found.id)),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::blank;
    use super::*;
    use crate::units::Moment;

    /// `0 GPU-aa`, `1 GPU-ab` (MIG mode with two instances), `2 GPU-bb`.
    fn devices() -> Vec<Reading> {
        let device = |id: &str, index, kind, parent: Option<&str>| Reading {
            index: Some(index),
            parent: parent.map(|id| DeviceId(id.into())),
            ..blank(DeviceId(id.into()), kind, Moment::default())
        };
        vec![
            device("GPU-aa", 0, DeviceKind::Gpu, None),
            device("GPU-ab", 1, DeviceKind::Gpu, None),
            device("MIG-1", 1, DeviceKind::Mig, Some("GPU-ab")),
            device("MIG-2", 1, DeviceKind::Mig, Some("GPU-ab")),
            device("GPU-bb", 2, DeviceKind::Gpu, None),
            super::super::cpu::reading(Moment::default()),
        ]
    }

    fn kept(allocation: &Allocation) -> String {
        let devices = devices();
        let exclusions = allocation.exclusions(&devices);
        let kept = devices.iter().zip(exclusions).filter(|(_, words)| words.is_none());
        kept.map(|(device, _)| device.id.0.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_inherited_list_is_read_as_cuda_reads_it() {
        let check = |list: &str, expected: &str| {
            let inherited = Some(list.split(',').map(|entry| entry.trim().to_owned()).collect());
            assert_eq!(kept(&Allocation { inherited, ..Allocation::default() }), expected, "{list}");
        };
        check("0", "GPU-aa cpu");
        check("2,0", "GPU-aa GPU-bb cpu");
        check(" 2 , 0 ", "GPU-aa GPU-bb cpu");
        check("", "cpu");
        check("-1", "cpu");
        check("NoDevFiles", "cpu");
        check("0,-1,2", "GPU-aa cpu");
        check("0,7,2", "GPU-aa cpu");
        check("0,0", "cpu");
        check("0,GPU-bb", "GPU-aa cpu");
        check("GPU-bb,0", "GPU-bb cpu");
        check("GPU-b", "GPU-bb cpu");
        check("gpu-bb", "cpu");
        check("GPU-BB", "GPU-bb cpu");
        check("GPU-a", "cpu");
        check("GPU-", "cpu");
        check("GPU-bb,GPU-b", "cpu");
        check("1", "MIG-1 cpu");
        check("GPU-ab", "MIG-1 cpu");
        check("MIG-2", "MIG-2 cpu");
        check("MIG-1,MIG-2", "MIG-1 MIG-2 cpu");
        check("MIG-GPU-ab/1/0", "cpu");
        assert_eq!(kept(&Allocation::default()), "GPU-aa GPU-ab MIG-1 MIG-2 GPU-bb cpu");
    }

    #[test]
    fn the_older_mig_form_is_resolved_by_the_driver() {
        let inherited = Some(vec!["MIG-GPU-ab/2/0".to_owned()]);
        let mut allocation = Allocation { inherited, ..Allocation::default() };
        allocation.resolve(|entry| (entry == "MIG-GPU-ab/2/0").then(|| "MIG-2".to_owned()));
        assert_eq!(kept(&allocation), "MIG-2 cpu");
    }

    #[test]
    fn an_allocation_may_name_no_gpu_at_all() {
        let check = |list: Option<&str>, expected: bool| {
            let inherited = list.map(|list| list.split(',').map(str::to_owned).collect());
            assert_eq!(Allocation { inherited, ..Allocation::default() }.names_no_gpu(), expected, "{list:?}");
        };
        check(None, false);
        check(Some(""), true);
        check(Some("-1"), true);
        check(Some("NoDevFiles"), true);
        check(Some("0"), false);
        check(Some("MIG-x"), false);
    }

    #[test]
    fn rules_include_and_exclude_by_index_and_uuid() {
        let check = |include: &[&str], exclude: &[&str], expected: &str| {
            let owned = |list: &[&str]| list.iter().map(|&entry| entry.to_owned()).collect();
            let allocation = Allocation { inherited: None, include: owned(include), exclude: owned(exclude) };
            assert_eq!(kept(&allocation), expected, "{include:?} {exclude:?}");
        };
        check(&["0"], &[], "GPU-aa cpu");
        check(&["1"], &[], "GPU-ab MIG-1 MIG-2 cpu");
        check(&["GPU-ab"], &["MIG-1"], "GPU-ab MIG-2 cpu");
        check(&[], &["0", "GPU-bb"], "GPU-ab MIG-1 MIG-2 cpu");
        check(&["0", "2"], &["2"], "GPU-aa cpu");
        let allocation = Allocation { include: vec!["9".into(), "0".into(), "x".into()], ..Allocation::default() };
        assert_eq!(allocation.unmatched(&devices()), ["9", "x"]);
    }
}
