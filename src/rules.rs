//! Which devices count, how many tasks share one, when one is idle, and which of them is next: what `[devices]` says in a
//! configuration, for [`Devices::rules`](crate::Devices::rules) and [`Builder::devices`](crate::service::Builder::devices).
//!
//! ```
//! use gamdok::rules::{Backend, Bytes, Policy, Rules, Sim};
//!
//! let sim = Sim { gpus: 2, memory: Bytes(24 << 30) };
//! let rules = Rules { backend: Backend::Sim, sim, slots: 3, policy: Policy::Pack, ..Rules::default() };
//! let pool = gamdok::Pool::builder().devices(gamdok::Devices::gpus(1).rules(rules)).build()?;
//! assert_eq!(pool.slots(), 6);
//! # Ok::<(), gamdok::pool::PoolError>(())
//! ```

#[doc(inline)]
pub use crate::config::{Backend, Devices as Rules, Idle, Policy, Sim, Visible};
#[doc(inline)]
pub use crate::units::Bytes;
