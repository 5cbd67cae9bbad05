//! Rules, routes, records and readings for tests, plain until a test says otherwise.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use ulid::Ulid;

use crate::config::{self, Idle, Route, RouteKind};
use crate::devices::{DeviceId, DeviceKind, Reading, blank};
use crate::inbox::{Candidate, CandidateKey};
use crate::item::{Attempt, ItemKind, ItemName, JobId, JobRecord, Signature};
use crate::units::{Bytes, Moment};

pub(crate) fn seconds(seconds: f64) -> Moment {
    Moment(Duration::from_secs_f64(seconds))
}

pub(crate) fn gib(size: u64) -> Bytes {
    Bytes(size << 30)
}

pub(crate) fn rules() -> config::Devices {
    let idle = Idle { ignore_processes: Vec::new(), ..Idle::default() };
    config::Devices { cpu_slots: Some(2), idle, ..config::Devices::default() }
}

pub(crate) fn route(name: &str) -> Route {
    Route { kind: RouteKind::Any, ..Route::new(name, vec!["true".to_owned()], "/") }
}

pub(crate) fn job_id(n: u64) -> JobId {
    JobId(Ulid::from_parts(n, 0))
}

/// The n-th to arrive.
pub(crate) fn arrival(n: u64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + n as i64).expect("a time of this century")
}

pub(crate) fn record(n: u64, route: Arc<Route>) -> JobRecord {
    let name = ItemName::new(format!("item-{n}"));
    JobRecord {
        id: job_id(n),
        name: name.escaped(),
        name_b64: name.base64(),
        folder: String::new(),
        kind: ItemKind::File,
        route,
        arrived_at: Some(arrival(n)),
        claimed_at: arrival(n),
        boot_id: String::new(),
        signature: None,
        attempts: vec![Attempt::planned(1)],
        avoid: Vec::new(),
        cancelled: false,
        revived_after: 0,
        batch_limit: None,
        counters: Default::default(),
    }
}

pub(crate) fn candidate(n: u64, route: Arc<Route>) -> Candidate {
    let signature =
        Signature { dev: 1, ino: n, size: 1, mtime_ns: 0, ctime_ns: 0, blocks: 8, nlink: 1, digest: 0, entries: 0 };
    Candidate {
        key: key(n),
        kind: ItemKind::File,
        signature,
        arrived_at: arrival(n),
        route,
        lease_tested: true,
        companions: Vec::new(),
    }
}

pub(crate) fn key(n: u64) -> CandidateKey {
    CandidateKey { folder: String::new(), name: ItemName::new(format!("item-{n}")) }
}

/// An idle device of 80 GiB; the CPU pool has no memory to speak of.
pub(crate) fn reading(kind: DeviceKind, index: u32, now: Moment) -> Reading {
    let gpu = kind.is_gpu();
    let prefix = match kind {
        DeviceKind::Gpu => "GPU-",
        DeviceKind::Mig => "MIG-",
        DeviceKind::Sim => "SIM-",
        DeviceKind::Cpu => "",
    };
    Reading {
        index: gpu.then_some(index),
        name: "a device".to_owned(),
        memory_total: gpu.then_some(gib(80)),
        memory_used: gpu.then_some(Bytes(0)),
        utilization: if gpu { vec![0, 0, 0] } else { Vec::new() },
        processes: gpu.then(Vec::new),
        ..blank(if gpu { DeviceId(format!("{prefix}{index}")) } else { DeviceId::cpu() }, kind, now)
    }
}
