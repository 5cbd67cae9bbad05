use super::*;
use crate::devices::{DeviceKind, GpuProcess, ProcessKind};
use crate::units::Bytes;
use crate::world::fixtures;

const LIMIT: Duration = Duration::from_secs(60);

fn simulated(gpus: u32) -> Lender {
    let sim = config::Sim { gpus, ..config::Sim::default() };
    let rules = config::Devices { backend: Backend::Sim, sim, ..config::Devices::default() };
    match open(Terms { name: "test".to_owned(), rules, gpus: 1, cpu_fallback: true }).unwrap() {
        Ground::Gpus(lender, most) if most == gpus as usize => lender,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_loan_is_nobody_elses_until_it_comes_back() {
    let lender = simulated(2);
    let granted = |wish: &Wish| wish.granted.recv_timeout(LIMIT).unwrap();
    let (first, second) = (lender.wish(Vec::new()), lender.wish(Vec::new()));
    let (first, second) = (granted(&first), granted(&second));
    assert_ne!(first.on, second.on);
    let third = lender.wish(Vec::new());
    let given_up = lender.wish(Vec::new());
    let fourth = lender.wish(Vec::new());
    assert!(third.granted.is_empty());
    drop(given_up);
    let on = first.on.clone();
    drop(first);
    let third = granted(&third);
    assert_eq!(third.on, on);
    drop(second);
    assert_eq!(granted(&fourth).pin.device, "cuda:0");
}

#[test]
fn a_device_to_avoid_is_the_last_choice() {
    let lender = simulated(2);
    let take = |avoid: Vec<DeviceId>| lender.wish(avoid).granted.recv_timeout(LIMIT).unwrap();
    let first = take(Vec::new()).on.clone();
    assert_ne!(take(first.clone()).on, first);
    let other = take(first.clone());
    let again = lender.wish(first.clone());
    assert!(again.granted.recv_timeout(Duration::from_millis(1)).is_err(), "it waits for the other one");
    drop(other);
    assert_ne!(again.granted.recv_timeout(LIMIT).unwrap().on, first);
}

#[test]
fn this_process_is_no_stranger() {
    let process = |pid: u32, memory: u64| GpuProcess {
        pid,
        kind: ProcessKind::Compute,
        memory: Some(Bytes(memory)),
        name: Some("x".to_owned()),
        user: None,
        group: None,
        job: None,
    };
    let check = |pids_match: bool, left: &[u32], used: u64| {
        let reading = Reading {
            pids_match,
            memory_used: Some(Bytes(100)),
            processes: Some(vec![process(7, 60), process(8, 30)]),
            ..fixtures::reading(DeviceKind::Gpu, 0, Moment::default())
        };
        let snapshot = Snapshot {
            taken_at: Moment::default(),
            number: 1,
            mode: HostMode::Gpu,
            devices: vec![reading],
            trouble: None,
        };
        let seen = without_own(snapshot, 7);
        let pids: Vec<u32> = seen.devices[0].processes.iter().flatten().map(|process| process.pid).collect();
        assert_eq!((pids.as_slice(), seen.devices[0].memory_used), (left, Some(Bytes(used))));
    };
    check(true, &[8], 40);
    // A number of another namespace may be anybody's.
    check(false, &[7, 8], 100);
}
