use super::*;
use crate::config::{Backend, Idle, Sim};

/// Only a failing test waits this long.
const LONG: Duration = Duration::from_secs(20);

pub(in super::super) fn rules(backend: Backend) -> config::Devices {
    let idle = Idle { ignore_processes: vec![], ..Idle::default() };
    let sim = Sim { gpus: 2, ..Sim::default() };
    config::Devices { backend, cpu_slots: Some(2), idle, sim, ..config::Devices::default() }
}

fn started(backend: Backend) -> (Prober, Clock) {
    let clock = Clock::start();
    (start(Arc::new(rules(backend)), clock), clock)
}

fn next(prober: &Prober) -> Snapshot {
    prober.snapshots.recv_timeout(LONG).expect("a snapshot")
}

#[test]
fn the_cpu_pool_is_always_a_device() {
    let (prober, _) = started(Backend::Cpu);
    let snapshot = next(&prober);
    assert_eq!((snapshot.mode, snapshot.number, snapshot.trouble), (HostMode::Cpu, 1, None));
    assert_eq!(snapshot.devices.iter().map(|device| device.id.clone()).collect::<Vec<_>>(), [DeviceId::cpu()]);
    let (prober, _) = started(Backend::Sim);
    let snapshot = next(&prober);
    assert_eq!((snapshot.mode, snapshot.devices.len()), (HostMode::Sim, 3));
}

#[test]
fn a_check_is_answered_with_something_newer() {
    for backend in [Backend::Cpu, Backend::Sim] {
        let (prober, clock) = started(backend);
        let first = next(&prober);
        let asked = clock.now();
        prober.asks.send(Ask::Check(first.devices.iter().map(|device| device.id.clone()).collect())).unwrap();
        let answer = next(&prober);
        assert!(answer.number > first.number);
        for device in &answer.devices {
            assert!(device.processes_at >= asked && device.memory_at >= asked, "{device:?}");
        }
    }
}

#[test]
fn releasing_keeps_the_devices_in_view() {
    let (prober, _) = started(Backend::Sim);
    next(&prober);
    prober.asks.send(Ask::Release).unwrap();
    let released = next(&prober);
    assert!(released.trouble.is_some_and(|why| why.contains("released")));
    assert_eq!((released.mode, released.devices.len()), (HostMode::Sim, 3));
    prober.asks.send(Ask::Resume).unwrap();
    assert_eq!(next(&prober).trouble, None);
}

#[test]
fn changed_rules_are_followed_but_for_the_backend() {
    let (prober, _) = started(Backend::Sim);
    next(&prober);
    let changed = config::Devices { exclude: vec!["1".into()], ..rules(Backend::Cpu) };
    prober.asks.send(Ask::Reconfigure(Arc::new(changed))).unwrap();
    let snapshot = next(&prober);
    assert_eq!(snapshot.mode, HostMode::Sim);
    let excluded: Vec<bool> = snapshot.devices.iter().map(|device| device.excluded.is_some()).collect();
    assert_eq!(excluded, [false, true, false]);
}

#[test]
fn a_dropped_prober_ends_its_thread() {
    let (prober, _) = started(Backend::Cpu);
    next(&prober);
    let snapshots = prober.snapshots.clone();
    drop(prober);
    // The thread's end of the channel closes with the thread.
    while snapshots.recv_timeout(LONG).is_ok() {}
    assert_eq!(snapshots.recv_timeout(LONG).map(|_| ()), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_heart_is_silent_only_when_it_beats_too_long() {
    let heart = Heart::default();
    let prober = Prober { asks: unbounded().0, snapshots: bounded(0).1, heart: Arc::new(heart) };
    let at = |seconds| Moment(Duration::from_secs(seconds));
    assert_eq!(prober.silent_for(at(100)), None);
    prober.heart.begin(at(100));
    assert_eq!(prober.silent_for(at(109)), None);
    assert_eq!(prober.silent_for(at(112)), Some(Duration::from_secs(12)));
    prober.heart.rest();
    assert_eq!(prober.silent_for(at(200)), None);
}
