//! Simulated GPUs, for trying out a configuration and for tests. They are always free, unless a script says otherwise: a
//! JSON file named by `GAMDOK_SIM_SCRIPT`, read again whenever it changes, such as
//! `{"0": {"busy": "jupyter"}, "1": {"lost": true}, "2": {"memory_used": "3GiB"}}`.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::allocation::Allocation;
use super::backend::{Backend, Gone, Looks, Pace};
use super::{ComputeMode, DeviceId, DeviceKind, GpuProcess, HostMode, ProcessKind, Reading, blank};
use crate::config;
use crate::units::{Bytes, Clock, Moment};

const SCRIPT_VARIABLE: &str = "GAMDOK_SIM_SCRIPT";
const SCRIPT_PERIOD: Duration = Duration::from_millis(100);

pub(super) struct Sim {
    devices: Vec<Reading>,
    script: Option<Script>,
    allocation: Allocation,
}

struct Script {
    file: PathBuf,
    /// Of the version last read.
    stamp: Option<(SystemTime, u64)>,
    acts: HashMap<String, Act>,
}

/// What the script makes of one device, by its index or id.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Act {
    /// The name of a foreign process.
    busy: Option<String>,
    lost: bool,
    memory_used: Option<Size>,
    utilization: Option<u32>,
    temperature: Option<u32>,
    failures: u32,
    prohibited: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

impl Size {
    fn bytes(&self) -> Bytes {
        match self {
            Size::Bytes(bytes) => Bytes(*bytes),
            Size::Text(text) => text.parse().unwrap_or_default(),
        }
    }
}

/// A UUID's shape, the same at each start.
fn id(index: u32) -> DeviceId {
    DeviceId(format!("SIM-00000000-0000-0000-0000-{index:012}"))
}

impl Sim {
    /// Plays the script that the environment names.
    pub(super) fn open(rules: &config::Devices, now: Moment) -> Sim {
        Sim::new(rules, std::env::var_os(SCRIPT_VARIABLE).map(PathBuf::from), now)
    }

    fn new(rules: &config::Devices, script: Option<PathBuf>, now: Moment) -> Sim {
        tracing::warn!(
            gpus = rules.sim.gpus,
            script = script.as_ref().map(|file| file.display().to_string()),
            "SIMULATED GPUs: nothing here is real hardware; set devices.use to change that"
        );
        let script = script.map(|file| Script { file, stamp: None, acts: HashMap::new() });
        let allocation = Allocation::new(None, rules);
        let mut sim = Sim { devices: Vec::new(), script, allocation };
        sim.set(rules, now);
        sim
    }

    fn set(&mut self, rules: &config::Devices, now: Moment) {
        let device = |index| Reading {
            index: Some(index),
            name: "Simulated GPU".to_owned(),
            memory_total: Some(rules.sim.memory),
            ..blank(id(index), DeviceKind::Sim, now)
        };
        self.devices = (0..rules.sim.gpus).map(device).collect();
        self.allocation = Allocation::new(None, rules);
        let exclusions = self.allocation.exclusions(&self.devices);
        for (device, words) in self.devices.iter_mut().zip(exclusions) {
            device.excluded = words;
        }
        self.play(now);
    }

    /// Sets every device as the script has it now.
    fn play(&mut self, now: Moment) {
        if let Some(script) = &mut self.script {
            script.read();
        }
        for (index, device) in self.devices.iter_mut().enumerate() {
            let act = self.script.as_ref().and_then(|script| {
                script.acts.get(&index.to_string()).or_else(|| script.acts.get(&device.id.0)).cloned()
            });
            act.unwrap_or_default().play(device, index as u32, now);
        }
    }
}

impl Script {
    fn read(&mut self) {
        let stamp = fs::metadata(&self.file).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        let parsed = fs::read(&self.file)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
        match parsed {
            Ok(acts) => self.acts = acts,
            Err(error) => {
                tracing::warn!(file = %self.file.display(), error, "the simulation's script can't be read; going on as before")
            }
        }
    }
}

impl Act {
    fn play(self, device: &mut Reading, index: u32, now: Moment) {
        let stranger = |name: String| GpuProcess {
            pid: 100_000 + index,
            kind: ProcessKind::Compute,
            memory: self.memory_used.as_ref().map(Size::bytes),
            name: Some(name),
            user: Some("simulated".to_owned()),
            group: Some(100_000),
            job: None,
        };
        device.processes = Some(self.busy.clone().map(stranger).into_iter().collect());
        device.memory_used = Some(self.memory_used.as_ref().map(Size::bytes).unwrap_or_default());
        device.utilization = vec![self.utilization.unwrap_or(0); 3];
        device.temperature = self.temperature;
        device.health.lost = self.lost;
        device.failures = self.failures;
        device.failure = (self.failures > 0).then(|| "as scripted".to_owned());
        device.compute_mode = Some(if self.prohibited { ComputeMode::Prohibited } else { ComputeMode::Default });
        device.memory_at = now;
        device.processes_at = now;
    }
}

impl Backend for Sim {
    fn mode(&self) -> HostMode {
        HostMode::Sim
    }

    fn pace(&self) -> Pace {
        if self.script.is_some() { Pace::Every(SCRIPT_PERIOD) } else { Pace::Still }
    }

    fn enumerate(&mut self, clock: &Clock) -> Result<(), Gone> {
        self.play(clock.now());
        Ok(())
    }

    fn look(&mut self, _id: &DeviceId, _looks: Looks, clock: &Clock) -> Result<(), Gone> {
        self.play(clock.now());
        Ok(())
    }

    fn forget_activity(&mut self, _id: &DeviceId) {}

    fn readings(&self) -> Vec<Reading> {
        self.devices.clone()
    }

    fn reconfigure(&mut self, rules: &Arc<config::Devices>, _allocation: Allocation) {
        let now = self.devices.first().map_or(Moment::default(), |device| device.memory_at);
        self.set(rules, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(gpus: u32) -> config::Devices {
        let sim = config::Sim { gpus, memory: Bytes(80 << 30) };
        config::Devices { sim, ..super::super::prober::tests::rules(config::Backend::Sim) }
    }

    #[test]
    fn simulated_gpus_are_idle_and_keep_their_ids() {
        let sim = Sim::new(&rules(2), None, Moment::default());
        assert_eq!(sim.pace(), Pace::Still);
        let shown: Vec<_> = sim.readings().iter().map(|r| (r.id.0.clone(), r.index, r.memory_used)).collect();
        assert_eq!(
            shown,
            [
                ("SIM-00000000-0000-0000-0000-000000000000".to_owned(), Some(0), Some(Bytes(0))),
                ("SIM-00000000-0000-0000-0000-000000000001".to_owned(), Some(1), Some(Bytes(0))),
            ]
        );
    }

    #[test]
    fn a_script_is_followed_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script.json");
        let clock = Clock::start();
        let mut sim = Sim::new(&rules(3), Some(file.clone()), clock.now());
        let mut check = |script: &str, expected: &str| {
            fs::write(&file, script).unwrap();
            sim.enumerate(&clock).unwrap();
            let shown: Vec<String> = sim
                .readings()
                .iter()
                .map(|r| {
                    let names = r.processes.iter().flatten().filter_map(|p| p.name.clone()).collect::<Vec<_>>();
                    let used = r.memory_used.map_or(0, |used| used.0 >> 30);
                    format!("{}:{used}{}", names.join(","), if r.health.lost { " lost" } else { "" })
                })
                .collect();
            assert_eq!(shown.join(" | "), expected, "{script}");
        };
        let script = r#"{"0": {"busy": "jupyter", "memory_used": "3GiB"}, "2": {"lost": true}}"#;
        check(script, "jupyter:3 | :0 | :0 lost");
        check(r#"{"0": {"busy": "#, "jupyter:3 | :0 | :0 lost");
        check(r#"{"SIM-00000000-0000-0000-0000-000000000001": {"memory_used": 5368709120}}"#, ":0 | :5 | :0");
        check(r#"{"0": {"bussy": "x"}}"#, ":0 | :5 | :0");
        check("{}", ":0 | :0 | :0");
    }

    #[test]
    fn rules_take_simulated_gpus_out() {
        let rules = config::Devices { exclude: vec!["1".into()], ..rules(2) };
        let excluded: Vec<bool> =
            Sim::new(&rules, None, Moment::default()).readings().iter().map(|r| r.excluded.is_some()).collect();
        assert_eq!(excluded, [false, true]);
    }
}
