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
