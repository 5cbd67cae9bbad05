//! `gamdok gpus`: every device, whether it may take work, and the reason. Asks the director, or looks itself.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::status;
use super::table::wrap;
use super::trouble::{Trouble, exit, of_root};
use super::{Global, output};
use crate::api::client::{Client, ClientError};
use crate::api::view::DeviceView;
use crate::config::Config;
use crate::devices::{Cordon, CordonBy, HostMode, Snapshot, prober, resolved};
use crate::spool;
use crate::state::State;
use crate::units::Clock;

/// A driver that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(super) struct Gpus {}

impl Gpus {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let place = global.place()?;
        let (devices, trouble) = match Client::connect(&place) {
            Ok(client) => (client.get("/v1/devices")?, None),
            Err(ClientError::NoDirector { .. }) => {
                let (config, _) = global.config()?;
                let probed = probe(&config)?;
                (probed.devices, probed.trouble)
            }
            Err(wrong) => return Err(wrong.into()),
        };
        if global.json {
            output::json(&devices)?;
        } else {
            output::print(&render(&devices, trouble.as_deref(), output::width()))?;
        }
        Ok(exit::OK)
    }
}

/// What one look at this host's devices tells.
pub(super) struct Probed {
    pub(super) mode: HostMode,
    pub(super) devices: Vec<DeviceView>,
    /// Why the driver as a whole can't answer.
    pub(super) trouble: Option<String>,
    pub(super) snapshot: Snapshot,
}

/// Looks once, as a director that starts would.
pub(super) fn probe(config: &Config) -> Result<Probed, Trouble> {
    let clock = Clock::start();
    let prober = prober::start(Arc::new(config.devices.clone()), clock);
    let snapshot = prober.snapshots.recv_timeout(PATIENCE).map_err(|_| {
        let message = format!("the GPU driver doesn't answer within {} s", PATIENCE.as_secs());
        Trouble::new(
            exit::FAILED,
            "driver-hangs",
            message,
            "see whether `nvidia-smi` answers; look at `dmesg` for Xid lines",
        )
    })?;
    let mut state = State::new(resolved(&config.devices));
    state.now = clock.now();
    for device in spool::cordons::read(&config.root.join(".gamdok")).map_err(|wrong| of_root(&wrong))? {
        state.device_mut(&device).cordon = Some(Cordon { by: CordonBy::Hand, since: state.now, reason: String::new() });
    }
    state.observe(&snapshot);
    let devices = snapshot.devices.iter().map(|reading| DeviceView::new(&state, reading, &snapshot)).collect();
    Ok(Probed { mode: snapshot.mode, devices, trouble: snapshot.trouble.clone(), snapshot })
}

fn render(devices: &[DeviceView], trouble: Option<&str>, width: usize) -> String {
    let mut text = String::new();
    if let Some(trouble) = trouble {
        text += &wrap(&format!("warning: {trouble}"), "", width);
        text.push('\n');
    }
    text += &status::devices(devices, width);
    let known: Vec<&DeviceView> = devices.iter().filter(|device| device.index.is_some()).collect();
    if !known.is_empty() {
        text.push('\n');
        for device in known {
            let _ = writeln!(text, "{:>3}  {}", device.index.unwrap_or_default(), crate::logging::plain(&device.id));
        }
    }
    text
}
