//! What both kinds of pool are made of, and what nobody can make one of.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{Devices, PoolError};
use crate::item::escape;
use crate::lender::{self, Ground, Lender, Terms};

/// Each is a thread; more than this no host starts.
const MOST_SLOTS: usize = 1 << 16;
/// Tasks in line, each with its room set aside; whoever wants more means no bound, and waits a little at this one.
const MOST_IN_LINE: usize = 1 << 20;

/// What a pool stands on: who lends it GPUs, if anybody does, and how many slots it has.
pub(super) fn ground(devices: Devices, name: &str, slots: Option<usize>) -> Result<(Option<Lender>, usize), PoolError> {
    if slots == Some(0) {
        return Err(PoolError::NoSlots);
    }
    if name.contains('\0') {
        let what = format!("the name `{}` has a NUL byte, which no thread's name may have", escape(name.as_bytes()));
        return Err(PoolError::Settings(what));
    }
    let Devices { gpus, cpu_fallback, rules } = devices;
    let terms = Terms { name: format!("pool `{}`", escape(name.as_bytes())), rules, gpus, cpu_fallback };
    let (lender, most) = match lender::open(terms).map_err(|none| PoolError::Devices(none.to_string()))? {
        Ground::Cpu(cores) => (None, slots.unwrap_or(cores)),
        Ground::Gpus(lender, most) => (Some(lender), slots.map_or(most, |slots| slots.min(most))),
    };
    if most > MOST_SLOTS {
        let what = format!("{most} slots are a thread each: ask for at most {MOST_SLOTS}, or leave `slots` out");
        return Err(PoolError::Settings(what));
    }
    Ok((lender, most))
}

/// Where tasks wait for a slot.
pub(super) fn line<T>(queue: Option<usize>) -> (Sender<T>, Receiver<T>) {
    queue.map_or_else(unbounded, |most| bounded(most.min(MOST_IN_LINE)))
}
