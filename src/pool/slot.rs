//! Where a task runs: a slot of the pool, and the device that it has there.

use crate::config;
use crate::devices::DeviceId;
use crate::devices::pin::{Pin, pin};
use crate::lender::Loan;
use crate::rules::Rules;

/// How many slots a pool may have.
///
/// ```
/// let pool = gamdok::Pool::builder().slots(gamdok::Slots::cpu_count()).build()?;
/// assert!(pool.slots() >= 1);
/// # Ok::<(), gamdok::pool::PoolError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Slots;

impl Slots {
    /// The CPUs this process may use: its affinity and its cgroup's quota counted, never 0.
    ///
    /// ```
    /// assert!(gamdok::Slots::cpu_count() >= 1);
    /// ```
    pub fn cpu_count() -> usize {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}

/// What a pool's tasks run on.
///
/// ```
/// use gamdok::{Devices, Pool};
///
/// // One GPU for each task; on a host without GPUs, CPU slots.
/// let pool = Pool::builder().devices(Devices::gpus(1)).build();
/// # drop(pool);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Devices {
    pub(super) gpus: u32,
    pub(super) cpu_fallback: bool,
    pub(super) rules: Rules,
}

impl Devices {
    /// CPU slots; the driver isn't touched.
    ///
    /// ```
    /// let pool = gamdok::Pool::builder().devices(gamdok::Devices::cpu()).build()?;
    /// assert_eq!(pool.submit_with(|slot| slot.device().name().to_owned()).wait(), Ok("cpu".to_owned()));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn cpu() -> Devices {
        Devices { gpus: 0, cpu_fallback: true, rules: Rules::default() }
    }

    /// So many idle GPUs for each task, CPU slots where the host has no GPU at all.
    ///
    /// A GPU is lent only while its verdict allows it (nobody else uses it, its driver calls it well), and under the
    /// lock that keeps the directors of this host apart.
    ///
    /// ```
    /// let two_each = gamdok::Devices::gpus(2);
    /// # drop(two_each);
    /// ```
    pub fn gpus(each: u32) -> Devices {
        Devices { gpus: each, cpu_fallback: true, rules: Rules::default() }
    }

    /// Whether CPU slots do on a host without GPUs; they do unless this says `false`.
    ///
    /// ```
    /// use gamdok::{Devices, Pool};
    ///
    /// let pool = Pool::builder().devices(Devices::gpus(1).cpu_fallback(false)).build();
    /// // Without a GPU, `build` says so.
    /// # drop(pool);
    /// ```
    pub fn cpu_fallback(mut self, allowed: bool) -> Devices {
        self.cpu_fallback = allowed;
        self
    }

    /// Which GPUs count, how many tasks share one, when one is idle: what `[devices]` says in a configuration.
    ///
    /// ```
    /// use gamdok::rules::{Backend, Rules, Sim};
    /// use gamdok::{Devices, Pool};
    ///
    /// let sim = Sim { gpus: 2, ..Sim::default() };
    /// let rules = Rules { backend: Backend::Sim, sim, ..Rules::default() };
    /// let pool = Pool::builder().devices(Devices::gpus(1).rules(rules)).build()?;
    /// assert_eq!(pool.slots(), 2);
    /// assert_eq!(pool.submit_with(|slot| slot.device().name().to_owned()).wait(), Ok("cuda:0".to_owned()));
    /// # Ok::<(), gamdok::pool::PoolError>(())
    /// ```
    pub fn rules(mut self, rules: Rules) -> Devices {
        self.rules = rules;
        self
    }
}

/// The slot a task runs on, for tasks that want to know: see [`Pool::submit_with`](super::Pool::submit_with).
#[derive(Debug)]
pub struct Slot {
    pub(super) index: usize,
    pub(super) device: Device,
}

impl Slot {
    /// Which of the pool's slots it is, from 0. At one moment no two tasks have the same, so it may choose a scratch
    /// folder or a port.
    ///
    /// ```
    /// let pool = gamdok::Pool::builder().slots(3).build()?;
    /// assert!(pool.submit_with(|slot| slot.index()).wait()? < 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn index(&self) -> usize {
        self.index
    }

    /// What the task has to itself while it runs.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// assert_eq!(pool.submit_with(|slot| slot.device().gpus()).wait()?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// The device of a task: GPUs that were lent to it, or the CPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    pin: Pin,
    on: Vec<DeviceId>,
}

impl Device {
    pub(super) fn cpu() -> Device {
        Device { pin: pin(&[], config::Visible::Uuid), on: vec![DeviceId::cpu()] }
    }

    pub(super) fn of(loan: &Loan) -> Device {
        Device::new(loan.pin.clone(), loan.on.clone())
    }

    pub(crate) fn new(pin: Pin, on: Vec<DeviceId>) -> Device {
        Device { pin, on }
    }

    /// What a framework calls it in a process that has [`env`](Device::env) set: `cuda:0`, `cuda:0,cuda:1`, or `cpu`.
    /// This process sees all GPUs; in here, take [`indexes`](Device::indexes).
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// assert_eq!(pool.submit_with(|slot| slot.device().name().to_owned()).wait()?, "cpu");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.pin.device
    }

    /// The GPUs' UUIDs, or `cpu`.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// assert_eq!(pool.submit_with(|slot| slot.device().ids().join(",")).wait()?, "cpu");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ids(&self) -> Vec<&str> {
        self.on.iter().map(|id| id.0.as_str()).collect()
    }

    /// The GPUs' numbers on this host, as the driver counts; none on the CPU.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// assert!(pool.submit_with(|slot| slot.device().indexes()).wait()?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn indexes(&self) -> Vec<u32> {
        self.pin.indexes.split(',').filter_map(|index| index.parse().ok()).collect()
    }

    /// How many GPUs it is; 0 on the CPU.
    ///
    /// ```
    /// let pool = gamdok::Pool::new()?;
    /// assert_eq!(pool.submit_with(|slot| slot.device().gpus()).wait()?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn gpus(&self) -> usize {
        self.pin.gpus
    }

    /// What confines a child process to this device: `CUDA_VISIBLE_DEVICES` and its like, and the `GAMDOK_…` that tell
    /// it what it has.
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// let pool = gamdok::Pool::builder().devices(gamdok::Devices::gpus(1)).build()?;
    /// let trained = pool.submit_with(|slot| Command::new("./train").envs(slot.device().env()).status());
    /// assert!(trained.wait()??.success());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn env(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.pin.env.iter().map(|(key, value)| (*key, value.as_str()))
    }
}
