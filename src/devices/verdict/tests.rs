use std::time::Duration;

use super::super::*;
use super::*;
use crate::config::{Backend, Idle};
use crate::units::Bytes;

const GIB: u64 = 1 << 30;

fn rules(slots: u32) -> config::Devices {
    let idle = Idle { ignore_processes: vec!["Xorg".into(), "nvidia-cuda-mps-server".into()], ..Idle::default() };
    config::Devices { backend: Backend::Gpu, slots, cpu_slots: Some(2), idle, ..config::Devices::default() }
}

fn at(seconds: f64) -> Moment {
    Moment(Duration::from_secs_f64(seconds))
}

fn job(n: u128) -> JobId {
    JobId(ulid::Ulid(n))
}

fn process(pid: u32, name: &str) -> GpuProcess {
    GpuProcess {
        pid,
        kind: ProcessKind::Compute,
        memory: Some(Bytes(3 * GIB + GIB / 10)),
        name: Some(name.into()),
        user: Some("bob".into()),
        group: Some(pid as i32),
        job: None,
    }
}

fn lease(n: u128) -> Lease {
    Lease { job: job(n), memory: None, since: at(0.0), group: Some(100 + n as i32) }
}

/// An idle GPU, read at this moment.
fn idle(seconds: f64) -> Reading {
    Reading {
        id: DeviceId("GPU-a".into()),
        index: Some(0),
        kind: DeviceKind::Gpu,
        name: "H200".into(),
        parent: None,
        pci: None,
        memory_total: Some(Bytes(80 * GIB)),
        memory_used: Some(Bytes(4 << 20)),
        memory_at: at(seconds),
        utilization: vec![0, 0, 0],
        processes: Some(vec![]),
        processes_at: at(seconds),
        pids_match: true,
        compute_mode: Some(ComputeMode::Default),
        health: Health::default(),
        temperature: None,
        power_w: None,
        energy_millijoules: None,
        energy_at: at(seconds),
        failures: 0,
        failure: None,
        excluded: None,
    }
}

/// One device through its sweeps; the world outside the pure functions.
struct Device {
    rules: config::Devices,
    history: History,
    leases: Leases,
    cordon: Option<Cordon>,
    trouble: Option<String>,
    last: Reading,
}

impl Device {
    fn new() -> Device {
        Device {
            rules: rules(1),
            history: History::default(),
            leases: Leases::default(),
            cordon: None,
            trouble: None,
            last: idle(0.0),
        }
    }

    fn slots(mut self, slots: u32) -> Device {
        self.rules.slots = slots;
        self
    }

    fn lease(mut self, lease: Lease) -> Device {
        self.leases.held.push(lease);
        self
    }

    /// Our own last worker ended.
    fn exit(mut self, seconds: f64) -> Device {
        self.leases.held.pop();
        self.leases.last_exit = Some(at(seconds));
        self
    }

    fn sweep(mut self, seconds: f64, change: impl FnOnce(&mut Reading)) -> Device {
        let mut reading = idle(seconds);
        change(&mut reading);
        self.history.observe(&reading, &self.leases, &self.rules);
        self.last = reading;
        self
    }

    fn judge(&self, now: f64) -> Verdict {
        let snapshot = Snapshot {
            taken_at: at(now),
            number: 1,
            mode: HostMode::Gpu,
            devices: vec![self.last.clone()],
            trouble: self.trouble.clone(),
        };
        verdict(&self.last, &self.history, &self.leases, self.cordon.as_ref(), &snapshot, &self.rules, at(now))
    }

    /// The verdict right after the last sweep.
    #[track_caller]
    fn check(self, expected: &str) -> Device {
        let now = self.last.memory_at.max(self.last.processes_at).0.as_secs_f64();
        self.check_at(now, expected)
    }

    #[track_caller]
    fn check_at(self, now: f64, expected: &str) -> Device {
        let verdict = self.judge(now);
        assert_eq!(format!("{}: {verdict}", verdict.word()), expected);
        self
    }
}

/// One first sweep of an otherwise unknown device.
#[track_caller]
fn check(change: impl FnOnce(&mut Reading), expected: &str) {
    Device::new().sweep(1.0, change).check(expected);
}

#[test]
fn one_clean_sweep_frees_a_device_at_the_start() {
    check(|_| {}, "free: idle");
}

#[test]
fn foreign_processes_are_named() {
    check(|r| r.processes = Some(vec![process(411, "jupyter")]), "busy: 3.1 GiB held by pid 411 jupyter (bob)");
    check(
        |r| r.processes = Some(vec![process(411, "jupyter"), process(412, "python3")]),
        "busy: 3.1 GiB held by pid 411 jupyter (bob) and 1 more",
    );
    let unknown = || GpuProcess { memory: None, user: None, ..process(7, "x") };
    check(|r| r.processes = Some(vec![unknown()]), "busy: in use by pid 7 x");
    let hostile = || GpuProcess { name: Some("a\x1b[2Jb\n".into()), ..unknown() };
    check(|r| r.processes = Some(vec![hostile()]), "busy: in use by pid 7 a\\u{1b}[2Jb\\n");
    let gone = || GpuProcess { name: None, group: None, ..unknown() };
    check(|r| r.processes = Some(vec![gone()]), "busy: in use by pid 7, which has ended or is hidden");
    let mps = || GpuProcess { kind: ProcessKind::Mps, ..unknown() };
    check(|r| r.processes = Some(vec![mps()]), "busy: in use by pid 7 x, of an MPS server");
}

#[test]
fn ignored_processes_and_their_memory_count_for_nothing() {
    let desktop = |name: &str| GpuProcess { kind: ProcessKind::Graphics, ..process(9, name) };
    check(
        |r| (r.processes, r.memory_used) = (Some(vec![desktop("Xorg")]), Some(Bytes(3 * GIB + GIB / 10))),
        "free: idle",
    );
    check(|r| r.processes = Some(vec![desktop("nvidia-cuda-mps")]), "free: idle");
    check(|r| r.processes = Some(vec![desktop("blender")]), "busy: 3.1 GiB held by pid 9 blender (bob)");
    check(
        |r| (r.processes, r.memory_used) = (Some(vec![desktop("Xorg")]), Some(Bytes(5 * GIB))),
        "busy: memory held by nobody: 1.9 GiB, no process listed",
    );
}

#[test]
fn memory_counts_where_no_process_shows() {
    check(|r| r.memory_used = Some(Bytes(GIB + GIB / 5)), "busy: memory held by nobody: 1.2 GiB, no process listed");
    check(|r| r.memory_used = Some(Bytes(600 << 20)), "free: idle");
    check(
        |r| (r.processes, r.memory_used) = (None, Some(Bytes(2 * GIB))),
        "busy: 2.0 GiB of its memory are held, and its processes can't be listed here",
    );
}

#[test]
fn utilisation_counts_by_the_median_of_enough_samples() {
    check(|r| r.utilization = vec![72, 72, 72], "busy: 72 % busy");
    check(|r| r.utilization = vec![0, 99, 0], "free: idle");
    check(|r| r.utilization = vec![99, 99], "busy: 99 % busy");
    check(|r| r.utilization = vec![99, 0], "free: idle");
    check(|r| r.utilization = vec![99], "busy: 99 % busy");
    check(|r| r.utilization = vec![], "free: idle");
    check(|r| r.utilization = vec![90, 90, 90, 0, 0, 0, 0, 90], "free: idle");
    check(|r| r.utilization = vec![15, 15, 15], "free: idle");
}

#[test]
fn what_cannot_be_said_is_left_to_the_next_layer() {
    let mute = |r: &mut Reading| {
        r.memory_used = None;
        r.memory_total = None;
        r.processes = None;
        r.utilization.clear();
        r.compute_mode = None;
    };
    check(mute, "free: idle");
    check(
        |r| {
            mute(r);
            r.utilization = vec![80, 80, 80];
        },
        "busy: 80 % busy",
    );
}

#[test]
fn foreign_use_must_be_gone_for_two_sweeps() {
    let device = Device::new()
        .sweep(1.0, |r| r.processes = Some(vec![process(411, "jupyter")]))
        .sweep(2.0, |_| {})
        .check("busy: others used it until a moment ago")
        // The same sweep seen again is no second one, and one too early doesn't count either.
        .sweep(2.0, |_| {})
        .check("busy: others used it until a moment ago")
        .sweep(2.5, |_| {})
        .check("busy: others used it until a moment ago")
        .sweep(3.0, |_| {})
        .check("free: idle");
    // Busy at once on a single busy sweep.
    device.sweep(4.0, |r| r.utilization = vec![50, 50, 50]).check("busy: 50 % busy");
}

#[test]
fn a_failed_query_is_no_clean_sweep() {
    Device::new()
        .sweep(1.0, |r| r.processes = Some(vec![process(411, "jupyter")]))
        .sweep(2.0, |_| {})
        .sweep(4.0, |r| r.failures = 1)
        .check("busy: others used it until a moment ago");
}

#[test]
fn one_look_is_enough_after_our_own_worker() {
    Device::new()
        .sweep(1.0, |_| {})
        .lease(lease(1))
        .sweep(2.0, |r| (r.processes, r.utilization) = (Some(vec![process(101, "python3")]), vec![99, 99, 99]))
        .check("leased: ours")
        .exit(3.0)
        .check_at(3.0, "busy: its last worker has just ended, and it wasn't looked at since")
        // The utilisation still speaks of our worker.
        .sweep(3.01, |r| r.utilization = vec![99, 99, 99])
        .check("free: idle")
        .check_at(9.0, "busy: 99 % busy");
}

#[test]
fn both_memory_and_processes_must_be_read_after_the_exit() {
    Device::new()
        .lease(lease(1))
        .exit(3.0)
        .sweep(3.5, |r| r.processes_at = at(2.9))
        .check("busy: its last worker has just ended, and it wasn't looked at since")
        .sweep(3.6, |r| (r.processes, r.processes_at) = (None, at(2.9)))
        .check("free: idle");
}

#[test]
fn lingering_memory_is_ours_for_a_while() {
    Device::new()
        .lease(lease(1))
        .exit(3.0)
        .sweep(3.1, |r| r.memory_used = Some(Bytes(20 * GIB)))
        .check("busy: its memory is still being given back: 20.0 GiB")
        .sweep(3.2, |_| {})
        .check("free: idle")
        .sweep(33.5, |r| r.memory_used = Some(Bytes(20 * GIB)))
        .check("busy: memory held by nobody: 20.0 GiB, no process listed")
        .sweep(34.0, |_| {})
        .check("busy: others used it until a moment ago");
}

#[test]
fn lingering_processes_of_ours_need_no_second_sweep() {
    let gone = |pid| GpuProcess { name: None, group: None, user: None, ..process(pid, "") };
    let of_a_job = |pid, n| GpuProcess { job: Some(job(n)), ..process(pid, "python3") };
    Device::new()
        .lease(lease(1))
        .exit(3.0)
        .sweep(3.1, |r| r.processes = Some(vec![gone(101), of_a_job(102, 1)]))
        .check("busy: its last worker is still leaving it: pid 101, which has ended or is hidden")
        .sweep(3.2, |_| {})
        .check("free: idle")
        .sweep(3.3, |r| r.processes = Some(vec![of_a_job(102, 1), process(411, "jupyter")]))
        .check("busy: 3.1 GiB held by pid 411 jupyter (bob) and 1 more")
        .sweep(60.0, |r| r.processes = Some(vec![of_a_job(102, 1)]))
        .check("busy: 3.1 GiB held by pid 102 python3 (bob)");
}

#[test]
fn our_lease_outranks_what_the_driver_shows() {
    let leased = || Device::new().lease(lease(1));
    leased().sweep(1.0, |r| r.processes = Some(vec![process(411, "jupyter")])).check("leased: ours");
    leased().sweep(1.0, |r| r.failures = 9).check("leased: ours");
    leased()
        .sweep(1.0, |r| r.health.lost = true)
        .check("unhealthy: lost: fell off the bus, or no longer listed by the driver");
}

#[test]
fn a_shared_device_passes_every_layer() {
    let shared = || Device::new().slots(2).lease(lease(1));
    let own = |pid| GpuProcess { group: Some(101), ..process(pid, "python3") };
    let child = |pid| GpuProcess { job: Some(job(1)), ..process(pid, "loader") };
    shared().sweep(1.0, |r| r.processes = Some(vec![own(101), own(150), child(151)])).check("leased: ours");
    shared()
        .sweep(1.0, |r| r.processes = Some(vec![own(101), process(411, "jupyter")]))
        .check("busy: 3.1 GiB held by pid 411 jupyter (bob)");
    shared().sweep(1.0, |r| r.utilization = vec![99, 99, 99]).check("leased: ours");
    shared()
        .sweep(1.0, |r| r.health.recovery_action = Some(RecoveryAction::Reset))
        .check("unhealthy: the driver asks for a reset (GPU_RECOVERY_ACTION)");
    shared()
        .sweep(1.0, |r| r.compute_mode = Some(ComputeMode::ExclusiveProcess))
        .check("busy: compute mode exclusive: one process at a time, and ours is on it");
}

#[test]
fn on_a_shared_device_memory_is_held_against_what_was_declared() {
    let declared = |n, gib| Lease { memory: Some(Bytes(gib * GIB)), ..lease(n) };
    let uses = |gib| move |r: &mut Reading| r.memory_used = Some(Bytes(gib * GIB));
    let shared = || Device::new().slots(4).lease(declared(1, 8)).lease(declared(2, 8));
    shared().sweep(1.0, uses(16)).check("leased: ours");
    shared()
        .sweep(1.0, uses(24))
        .check("busy: 24.0 GiB of its memory are held, 16.0 GiB were declared for what runs on it");
    // What its process is seen to hold is explained; what nobody declared can't be judged.
    let big = || GpuProcess { memory: Some(Bytes(16 * GIB)), group: Some(101), ..process(101, "python3") };
    shared()
        .sweep(1.0, |r| (r.memory_used, r.processes) = (Some(Bytes(24 * GIB)), Some(vec![big()])))
        .check("leased: ours");
    shared().lease(lease(3)).sweep(1.0, uses(70)).check("leased: ours");
    // One of two ends: what it held must come back before another is added.
    let one_ended =
        shared().exit(2.0).check_at(2.0, "busy: its last worker has just ended, and it wasn't looked at since");
    one_ended
        .sweep(2.1, uses(16))
        .check("busy: 16.0 GiB of its memory are held, 8.0 GiB were declared for what runs on it")
        .sweep(2.2, uses(8))
        .check("leased: ours");
}

#[test]
fn hidden_pids_are_counted_not_matched() {
    let hidden = |count: u32| {
        move |r: &mut Reading| {
            r.pids_match = false;
            r.processes = Some((0..count).map(|n| process(411 + n, "whatever")).collect());
        }
    };
    check(hidden(0), "free: idle");
    check(hidden(1), "busy: in use by 1 other process (of another PID namespace, so without a name here)");
    let leased = || Device::new().slots(4).lease(lease(1));
    leased().sweep(1.0, hidden(1)).check("leased: ours");
    leased()
        .sweep(1.0, hidden(3))
        .check("busy: in use by 2 other processes (of another PID namespace, so without a name here)");
    Device::new()
        .lease(lease(1))
        .exit(1.0)
        .sweep(1.1, hidden(1))
        .check("busy: its last worker is still listed on it")
        .sweep(1.2, hidden(0))
        .check("free: idle");
    // Desktops are never counted where they can't be told by name.
    check(
        |r| {
            hidden(1)(r);
            r.processes.iter_mut().flatten().for_each(|p| p.kind = ProcessKind::Graphics);
        },
        "free: idle",
    );
}

#[test]
fn compute_modes() {
    check(
        |r| r.compute_mode = Some(ComputeMode::Prohibited),
        "excluded: compute mode prohibited: the driver refuses every process",
    );
    check(|r| r.compute_mode = Some(ComputeMode::ExclusiveProcess), "free: idle");
}

#[test]
fn a_standing_fault_keeps_a_device_out_and_is_watched_afterwards() {
    let lost = |r: &mut Reading| r.health.lost = true;
    let out = "unhealthy: lost: fell off the bus, or no longer listed by the driver";
    let watched = |span| format!("{out}; kept out until nothing has happened for {span}");
    Device::new()
        .sweep(1.0, lost)
        .check(out)
        .sweep(2.0, |_| {})
        .check(&watched("5m"))
        .sweep(300.0, |_| {})
        .check(&watched("5m"))
        .sweep(301.0, |_| {})
        .check("free: idle")
        // The second spell takes twice as long.
        .sweep(400.0, lost)
        .sweep(701.0, |_| {})
        .check(&watched("10m"))
        .sweep(1000.0, |_| {})
        .check("free: idle");
    check(
        |r| r.health.recovery_action = Some(RecoveryAction::DrainAndReset),
        "unhealthy: the driver asks for draining and a reset (GPU_RECOVERY_ACTION)",
    );
    check(|r| r.health.row_remap_failed = true, "unhealthy: row remapping failed: its memory is worn out");
}

#[test]
fn a_passing_fault_counts_once() {
    let xid = |n, seconds| move |r: &mut Reading| (r.health.xid, r.health.xid_at) = (Some(n), Some(at(seconds)));
    let out = "unhealthy: Xid 74: NVLink error; kept out until nothing has happened for 5m";
    Device::new()
        .sweep(1.0, xid(74, 1.0))
        .check(out)
        .sweep(200.0, xid(74, 1.0))
        .check(out)
        .sweep(301.0, xid(74, 1.0))
        .check("free: idle")
        .sweep(302.0, xid(74, 302.0))
        .check("unhealthy: Xid 74: NVLink error; kept out until nothing has happened for 10m");
    let ecc = |n| move |r: &mut Reading| r.health.new_uncorrected_ecc = n;
    Device::new()
        .sweep(1.0, ecc(2))
        .check("unhealthy: 2 new uncorrected memory errors (ECC); kept out until nothing has happened for 5m")
        .sweep(100.0, ecc(3))
        .check("unhealthy: 1 new uncorrected memory error (ECC); kept out until nothing has happened for 5m")
        .sweep(301.0, ecc(3))
        .check("unhealthy: 1 new uncorrected memory error (ECC); kept out until nothing has happened for 5m")
        .sweep(400.0, ecc(3))
        .check("free: idle");
}

#[test]
fn a_slowed_device_rests_for_a_minute() {
    let out = "unhealthy: slowed down by its hardware (too hot): no new work for a minute";
    Device::new()
        .sweep(1.0, |r| r.health.slowed = Some("too hot".into()))
        .check(out)
        .sweep(30.0, |_| {})
        .check(out)
        .sweep(61.0, |_| {})
        .check("free: idle");
}

#[test]
fn unreadable_devices_are_unknown() {
    let failed = |n| move |r: &mut Reading| (r.failures, r.failure) = (n, Some("memory: odd".to_owned()));
    check(failed(1), "unknown: the driver hasn't told anything of it yet: memory: odd");
    Device::new()
        .sweep(1.0, |_| {})
        .sweep(2.0, failed(2))
        .check("free: idle")
        .sweep(3.0, failed(3))
        .check("unknown: the driver failed to answer 3 times in a row: memory: odd")
        .sweep(4.0, |_| {})
        .check("free: idle");
    let mut device = Device::new().sweep(1.0, |_| {});
    device.trouble = Some("the driver went away".into());
    device.check("unknown: the driver went away").lease(lease(1)).check("leased: ours");
}

#[test]
fn cordons_and_rules_take_a_device_out() {
    let cordoned = |by, reason: &str, expected: &str| {
        let mut device = Device::new().sweep(1.0, |_| {});
        device.cordon = Some(Cordon { by, since: at(0.0), reason: reason.into() });
        device.check(expected);
    };
    cordoned(CordonBy::Hand, "fan\x07 noise", "unhealthy: cordoned by hand: fan\\u{7} noise");
    cordoned(CordonBy::Hand, "", "unhealthy: cordoned by hand");
    cordoned(CordonBy::Failures, "a, b", "unhealthy: cordoned, since several items failed fast on it: a, b");
    cordoned(CordonBy::OtherDirector, "", "busy: another director of this host uses it");
    check(|r| r.excluded = Some("excluded by devices.exclude".into()), "excluded: excluded by devices.exclude");
}

#[test]
fn the_cpu_pool_is_only_ever_free_leased_or_cordoned() {
    let cpu = |r: &mut Reading| (r.kind, r.memory_used, r.failures) = (DeviceKind::Cpu, Some(Bytes(9 * GIB)), 9);
    check(cpu, "free: idle");
    Device::new().lease(lease(1)).exit(5.0).sweep(1.0, cpu).check("free: idle");
    Device::new().lease(lease(1)).sweep(1.0, cpu).check("leased: ours");
}

#[test]
fn an_untouched_device_teaches_its_idle_memory() {
    let holds = |mib: u64| move |r: &mut Reading| r.memory_used = Some(Bytes(mib << 20));
    let nobody = |size: &str| format!("busy: memory held by nobody: {size}, no process listed");
    Device::new()
        .sweep(1.0, holds(1600))
        .check(&nobody("1.6 GiB"))
        .sweep(200.0, holds(1610))
        .check(&nobody("1.6 GiB"))
        .sweep(301.0, holds(1600))
        .sweep(302.0, holds(1600))
        .sweep(303.0, holds(1600))
        .check("free: idle")
        .sweep(304.0, holds(1900))
        .check(&nobody("1.9 GiB"));
    // Too much to be an idle value, too restless, or after somebody was on it.
    Device::new().sweep(1.0, holds(9000)).sweep(400.0, holds(9000)).check(&nobody("8.8 GiB"));
    let restless = Device::new().sweep(1.0, holds(1600)).sweep(200.0, holds(1200)).sweep(310.0, holds(1200));
    restless.check(&nobody("1.2 GiB"));
    Device::new()
        .sweep(0.5, |r| r.processes = Some(vec![process(411, "jupyter")]))
        .sweep(1.0, holds(1600))
        .sweep(400.0, holds(1600))
        .sweep(402.0, holds(1600))
        .check(&nobody("1.6 GiB"));
}
