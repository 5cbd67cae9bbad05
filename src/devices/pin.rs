//! How a worker is confined to its devices: the environment that shows it those and hides all others, and the cores near
//! them. It is advice to frameworks, not isolation.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::{DeviceKind, Reading};
use crate::config::Visible;

/// What a worker is told of its devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Pin {
    /// `{device}`: `cuda:0,cuda:1`, as a framework calls them inside the process, or `cpu`.
    pub device: String,
    /// `{device_id}`: their UUIDs, or `cpu`.
    pub device_id: String,
    /// `{gpu}`: their indexes on the host; empty on the CPU.
    pub indexes: String,
    /// How many GPUs; 0 on the CPU.
    pub gpus: usize,
    /// What to set in the environment, `GAMDOK_DEVICE`, `GAMDOK_DEVICE_ID` and `GAMDOK_GPUS` included.
    pub env: Vec<(&'static str, String)>,
}

impl Pin {
    /// An environment as a confined process gets it: what confines it wins over what it inherits.
    pub(crate) fn over(&self, env: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
        let is_pinned = |key: &OsString| self.env.iter().any(|(pinned, _)| key == pinned);
        let inherited = env.iter().filter(|(key, _)| !is_pinned(key)).cloned();
        inherited.chain(self.env.iter().map(|(key, value)| (key.into(), value.into()))).collect()
    }
}

/// Pins a worker to these devices; to the CPU when none of them is a GPU.
pub fn pin(on: &[&Reading], visible: Visible) -> Pin {
    let gpus: Vec<&Reading> = on.iter().copied().filter(|reading| reading.kind.is_gpu()).collect();
    let join = |parts: Vec<String>| parts.join(",");
    let uuids = join(gpus.iter().map(|reading| reading.id.0.clone()).collect());
    let indexes = join(gpus.iter().filter_map(|reading| reading.index).map(|index| index.to_string()).collect());
    let (device, device_id) = if gpus.is_empty() {
        ("cpu".to_owned(), "cpu".to_owned())
    } else {
        (join((0..gpus.len()).map(|n| format!("cuda:{n}")).collect()), uuids.clone())
    };
    // An index can't name a MIG instance, and a list mustn't mix the two forms.
    let by_index = visible == Visible::Index && gpus.iter().all(|r| r.kind != DeviceKind::Mig && r.index.is_some());
    let seen = if by_index { indexes.clone() } else { uuids.clone() };
    let mut env = vec![("CUDA_VISIBLE_DEVICES", seen)];
    if !gpus.is_empty() {
        // CUDA's own order is "fastest first"; indexes are the driver's.
        env.push(("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()));
        env.push(("NVIDIA_VISIBLE_DEVICES", uuids));
    }
    env.push(("GAMDOK_DEVICE", device.clone()));
    env.push(("GAMDOK_DEVICE_ID", device_id.clone()));
    env.push(("GAMDOK_GPUS", gpus.len().to_string()));
    Pin { device, device_id, indexes, gpus: gpus.len(), env }
}

/// The cores near a device, from sysfs. They don't change, so each is read once.
#[derive(Debug)]
pub struct Cores {
    pci_devices: PathBuf,
    /// The cores this process may use.
    own: BTreeSet<usize>,
    local: HashMap<String, BTreeSet<usize>>,
}

impl Default for Cores {
    fn default() -> Cores {
        let own = rustix::thread::sched_getaffinity(None).map_or_else(
            |_| BTreeSet::new(),
            |set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        );
        Cores { pci_devices: super::host::path("/sys/bus/pci/devices"), own, local: HashMap::new() }
    }
}

impl Cores {
    /// The cores for a worker on these devices; empty = stay as the director is.
    pub fn near(&mut self, on: &[&Reading]) -> Vec<usize> {
        let mut near = BTreeSet::new();
        for reading in on {
            let Some(pci) = &reading.pci else { return Vec::new() };
            near.extend(self.local(pci));
        }
        near.retain(|core| self.own.contains(core));
        if near == self.own { Vec::new() } else { near.into_iter().collect() }
    }

    fn local(&mut self, pci: &str) -> BTreeSet<usize> {
        if let Some(cores) = self.local.get(pci) {
            return cores.clone();
        }
        let file = self.pci_devices.join(pci).join("local_cpulist");
        let cores = fs::read_to_string(file).map(|text| cpu_list(&text)).unwrap_or_default();
        self.local.insert(pci.to_owned(), cores.clone());
        cores
    }
}

/// Reads `0-3,8,10-11`; what isn't a range of numbers is left out.
fn cpu_list(text: &str) -> BTreeSet<usize> {
    let mut cores = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            cores.extend(first..=last.min(first.saturating_add(4096)));
        }
    }
    cores
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceId, blank, cpu};
    use super::*;
    use crate::units::Moment;

    fn device(id: &str, index: u32, kind: DeviceKind) -> Reading {
        Reading { index: Some(index), ..blank(DeviceId(id.into()), kind, Moment::default()) }
    }

    #[test]
    fn a_worker_sees_its_devices_and_no_others() {
        let check = |on: &[Reading], visible, expected: &str| {
            let on: Vec<&Reading> = on.iter().collect();
            let pin = pin(&on, visible);
            let env: Vec<String> = pin.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(format!("{} | {}", pin.indexes, env.join(" ")), expected);
        };
        let two = [device("GPU-a", 3, DeviceKind::Gpu), device("GPU-b", 1, DeviceKind::Gpu)];
        check(
            &two,
            Visible::Uuid,
            "3,1 | CUDA_VISIBLE_DEVICES=GPU-a,GPU-b CUDA_DEVICE_ORDER=PCI_BUS_ID NVIDIA_VISIBLE_DEVICES=GPU-a,GPU-b \
             GAMDOK_DEVICE=cuda:0,cuda:1 GAMDOK_DEVICE_ID=GPU-a,GPU-b GAMDOK_GPUS=2",
        );
        check(
            &two,
            Visible::Index,
            "3,1 | CUDA_VISIBLE_DEVICES=3,1 CUDA_DEVICE_ORDER=PCI_BUS_ID NVIDIA_VISIBLE_DEVICES=GPU-a,GPU-b \
             GAMDOK_DEVICE=cuda:0,cuda:1 GAMDOK_DEVICE_ID=GPU-a,GPU-b GAMDOK_GPUS=2",
        );
        check(
            &[device("MIG-a", 0, DeviceKind::Mig)],
            Visible::Index,
            "0 | CUDA_VISIBLE_DEVICES=MIG-a CUDA_DEVICE_ORDER=PCI_BUS_ID NVIDIA_VISIBLE_DEVICES=MIG-a \
             GAMDOK_DEVICE=cuda:0 GAMDOK_DEVICE_ID=MIG-a GAMDOK_GPUS=1",
        );
        check(
            &[cpu::reading(Moment::default())],
            Visible::Uuid,
            " | CUDA_VISIBLE_DEVICES= GAMDOK_DEVICE=cpu GAMDOK_DEVICE_ID=cpu GAMDOK_GPUS=0",
        );
    }

    #[test]
    fn cpu_lists_are_read() {
        let check =
            |text: &str, expected: &[usize]| assert_eq!(cpu_list(text).into_iter().collect::<Vec<_>>(), expected);
        check("0-3,8,10-11\n", &[0, 1, 2, 3, 8, 10, 11]);
        check("", &[]);
        check("x,3-,5", &[5]);
    }

    #[test]
    fn cores_near_a_device_stay_within_our_own() {
        let sysfs = tempfile::tempdir().unwrap();
        for (pci, list) in
            [("0000:01:00.0", "0-1"), ("0000:02:00.0", "2-9"), ("0000:03:00.0", "0-9"), ("0000:04:00.0", "8")]
        {
            fs::create_dir(sysfs.path().join(pci)).unwrap();
            fs::write(sysfs.path().join(pci).join("local_cpulist"), list).unwrap();
        }
        let mut cores = Cores { pci_devices: sysfs.path().to_owned(), own: (0..4).collect(), local: HashMap::new() };
        let mut check = |on: &[&str], expected: &[usize]| {
            let on: Vec<Reading> = on
                .iter()
                .map(|pci| Reading { pci: Some((*pci).to_owned()), ..device("GPU-a", 0, DeviceKind::Gpu) })
                .collect();
            assert_eq!(cores.near(&on.iter().collect::<Vec<_>>()), expected);
        };
        check(&["0000:01:00.0"], &[0, 1]);
        check(&["0000:02:00.0"], &[2, 3]);
        check(&["0000:01:00.0", "0000:02:00.0"], &[]);
        check(&["0000:03:00.0"], &[]);
        check(&["0000:04:00.0"], &[]);
        check(&["0000:05:00.0"], &[]);
    }
}
