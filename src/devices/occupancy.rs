//! Who uses a device beside our live leases, as far as one reading tells. Pure. Each layer decides only what it can see:
//! processes, then memory, then utilisation; what the driver can't say is left to the next.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{GpuProcess, Lease, Leases, ProcessKind, Reading};
use crate::config;
use crate::item;
use crate::units::{Bytes, Moment};

/// How long a driver may take to give back what our own ended worker held.
pub(super) const GIVING_BACK: Duration = Duration::from_secs(30);

/// How long after our own worker's end the utilisation still speaks of it.
const UTILIZATION_STALE: Duration = Duration::from_secs(5);

/// Fewer samples have no median: one can be a spike, or the driver's own start-up.
const ENOUGH_SAMPLES: usize = 3;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Occupancy {
    Clean,
    /// What our own workers hold or left behind: it goes away by itself, and one clean look is enough then.
    Ours(String),
    /// Somebody else's use; `listed` when a process shows it.
    Others {
        why: String,
        listed: bool,
    },
}

/// The moment since which nothing of the reading is older.
pub(super) fn looked_at(reading: &Reading) -> Moment {
    match reading.processes {
        Some(_) => reading.memory_at.min(reading.processes_at),
        None => reading.memory_at,
    }
}

/// Judges one reading at the moment `at`.
pub(super) fn occupancy(
    reading: &Reading,
    leases: &Leases,
    baseline: Bytes,
    rules: &config::Devices,
    at: Moment,
) -> Occupancy {
    let since_exit = leases.last_exit.map(|exit| at.since(exit));
    let recent = since_exit.is_some_and(|span| span < GIVING_BACK);
    let by_process = processes(reading, leases, rules, recent);
    if by_process != Occupancy::Clean {
        return by_process;
    }
    let by_memory = memory(reading, leases, baseline, rules, recent);
    if by_memory != Occupancy::Clean {
        return by_memory;
    }
    let stale = since_exit.is_some_and(|span| span < UTILIZATION_STALE);
    if leases.held.is_empty() && !stale { utilization(reading, rules) } else { Occupancy::Clean }
}

fn processes(reading: &Reading, leases: &Leases, rules: &config::Devices, recent: bool) -> Occupancy {
    let Some(listed) = &reading.processes else { return Occupancy::Clean };
    if !reading.pids_match {
        return counted(listed, leases.held.len(), recent);
    }
    // One process may be listed for compute and for graphics.
    let mut seen = BTreeSet::new();
    let strangers: Vec<&GpuProcess> = listed
        .iter()
        .filter(|process| !leases.held.iter().any(|lease| is_of(process, lease)))
        .filter(|process| !is_ignored(process, rules))
        .filter(|process| seen.insert(process.pid))
        .collect();
    if strangers.is_empty() {
        return Occupancy::Clean;
    }
    // A job's process that no lease explains, or one that is gone from /proc, right after our own worker's end: its own.
    let leaves = |process: &&GpuProcess| recent && (process.job.is_some() || is_gone(process));
    match strangers.iter().find(|process| !leaves(process)) {
        None => Occupancy::Ours(format!("its last worker is still leaving it: {}", shown(strangers[0]))),
        Some(first) => {
            let more = match strangers.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            Occupancy::Others { why: format!("{}{more}", held_by(first)), listed: true }
        }
    }
}

/// Where PIDs can't be matched, a process more than we started is somebody else's.
fn counted(listed: &[GpuProcess], expected: usize, recent: bool) -> Occupancy {
    let compute = listed.iter().filter(|process| process.kind != ProcessKind::Graphics);
    let count = compute.map(|process| process.pid).collect::<BTreeSet<_>>().len();
    if count <= expected {
        return Occupancy::Clean;
    }
    if recent {
        return Occupancy::Ours("its last worker is still listed on it".to_owned());
    }
    let others = count - expected;
    let noun = if others == 1 { "process" } else { "processes" };
    let why = format!("in use by {others} other {noun} (of another PID namespace, so without a name here)");
    Occupancy::Others { why, listed: true }
}

fn memory(reading: &Reading, leases: &Leases, baseline: Bytes, rules: &config::Devices, recent: bool) -> Occupancy {
    let Some(used) = reading.memory_used else { return Occupancy::Clean };
    let listed = reading.processes.as_deref().unwrap_or_default();
    let ignored = listed.iter().filter(|process| reading.pids_match && is_ignored(process, rules));
    let used = used.saturating_sub(ignored.filter_map(|process| process.memory).sum());
    if !leases.held.is_empty() {
        return shared(used, listed, &leases.held, baseline);
    }
    if used <= baseline {
        return Occupancy::Clean;
    }
    if recent {
        return Occupancy::Ours(format!("its memory is still being given back: {used}"));
    }
    let why = match &reading.processes {
        Some(_) => format!("memory held by nobody: {used}, no process listed"),
        None => format!("{used} of its memory are held, and its processes can't be listed here"),
    };
    Occupancy::Others { why, listed: false }
}

/// On a device with leases the memory is held against what they declared, or were seen to hold.
fn shared(used: Bytes, listed: &[GpuProcess], held: &[Lease], baseline: Bytes) -> Occupancy {
    let allowance = held.iter().map(|lease| {
        let seen: Bytes = listed.iter().filter(|process| is_of(process, lease)).filter_map(|p| p.memory).sum();
        lease.memory.map(|declared| declared.max(seen))
    });
    // A worker that declared nothing may hold everything.
    let Some(allowance) = allowance.sum::<Option<Bytes>>() else { return Occupancy::Clean };
    if used <= allowance + baseline {
        return Occupancy::Clean;
    }
    Occupancy::Ours(format!("{used} of its memory are held, {allowance} were declared for what runs on it"))
}

fn utilization(reading: &Reading, rules: &config::Devices) -> Occupancy {
    // Of too few for a median the least: idle isn't said of what was busy at every look.
    match median(&reading.utilization).or_else(|| reading.utilization.iter().min().copied()) {
        Some(percent) if percent > rules.idle.max_utilization => {
            Occupancy::Others { why: format!("{percent} % busy"), listed: false }
        }
        _ => Occupancy::Clean,
    }
}

/// The median of the latest samples; nothing where there are too few.
pub(super) fn median(samples: &[u32]) -> Option<u32> {
    let mut latest: Vec<u32> = samples.iter().rev().take(5).copied().collect();
    if latest.len() < ENOUGH_SAMPLES {
        return None;
    }
    latest.sort_unstable();
    latest.get(latest.len() / 2).copied()
}

/// Whether the process belongs to the lease's worker: by the job in its environment, or by its group.
fn is_of(process: &GpuProcess, lease: &Lease) -> bool {
    process.job == Some(lease.job) || (process.group.is_some() && process.group == lease.group)
}

/// Dead or on its way out: the driver still lists it, `/proc` doesn't know it.
fn is_gone(process: &GpuProcess) -> bool {
    process.name.is_none()
}

fn is_ignored(process: &GpuProcess, rules: &config::Devices) -> bool {
    let Some(name) = &process.name else { return false };
    // The kernel cuts a command's name after 15 bytes.
    rules
        .idle
        .ignore_processes
        .iter()
        .any(|entry| entry == name || (name.len() == 15 && entry.starts_with(name.as_str())))
}

fn held_by(process: &GpuProcess) -> String {
    match process.memory {
        Some(held) => format!("{held} held by {}", shown(process)),
        None => format!("in use by {}", shown(process)),
    }
}

/// `pid 411 jupyter (bob)`, with what is known of it.
fn shown(process: &GpuProcess) -> String {
    let mut words = format!("pid {}", process.pid);
    if let Some(name) = &process.name {
        words.push(' ');
        words.push_str(&item::escape(name.as_bytes()));
    } else if is_gone(process) {
        words.push_str(", which has ended or is hidden");
    }
    if let Some(user) = &process.user {
        words.push_str(&format!(" ({})", item::escape(user.as_bytes())));
    }
    if process.kind == ProcessKind::Mps || process.name.as_deref().is_some_and(|n| n.starts_with("nvidia-cuda-mps")) {
        words.push_str(", of an MPS server");
    }
    words
}
