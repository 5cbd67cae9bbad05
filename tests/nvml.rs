//! Devices through nvml-wrapper's real loading path, against a stand-in library that is driven live. Each test starts
//! itself again with the library in its path, since a process can't change where it looks for libraries.

// Only builds with debug assertions let a test describe the host's /proc and /sys.
#![cfg(debug_assertions)]

mod standin;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gamdok::config::{self, Backend, Idle};
use gamdok::devices::{self, Ask, DeviceId, DeviceKind, History, HostMode, Lease, Leases, Prober, Reading, Snapshot};
use gamdok::item::JobId;
use gamdok::units::{Bytes, Clock};
use standin::*;

/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a scenario's process is started.
struct Setup {
    driver: Driver,
    library: bool,
    gpu_in_pci: bool,
    visible: Option<&'static str>,
    state: State,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { driver: Driver::Current, library: true, gpu_in_pci: true, visible: None, state: State::default() }
    }
}

fn gpus(gpus: &[Gpu]) -> Setup {
    Setup { state: State { gpus: gpus.to_vec(), ..State::default() }, ..Setup::default() }
}

/// Runs the body in a process of its own, where the library is found.
#[track_caller]
fn scenario(setup: Setup, body: impl FnOnce(&mut World)) {
    if let Some(dir) = std::env::var_os("NVML_TEST_DIR") {
        return body(&mut World::new(Path::new(&dir), setup.state));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let host = Host::at(dir.path());
    if setup.gpu_in_pci {
        host.gpu();
    }
    let standin = StandIn::at(dir.path());
    standin.set(&setup.state);
    let name = std::thread::current().name().expect("tests have names").to_owned();
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", &name, "--nocapture", "--include-ignored"]).stdin(Stdio::null());
    child.env_remove("CUDA_VISIBLE_DEVICES").env("NVML_TEST_DIR", dir.path()).envs([host.env()]);
    if setup.library {
        child.envs(standin.env(setup.driver));
    } else {
        child.env("LD_LIBRARY_PATH", dir.path());
    }
    if let Some(visible) = setup.visible {
        child.env("CUDA_VISIBLE_DEVICES", visible);
    }
    let output = child.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    standin.assert_no_setter();
}

fn rules() -> config::Devices {
    let idle = Idle { ignore_processes: vec!["Xorg".into()], ..Idle::default() };
    config::Devices { cpu_slots: Some(2), idle, ..config::Devices::default() }
}

/// The part of a director that looks after devices.
struct World {
    standin: StandIn,
    host: Host,
    state: State,
    rules: config::Devices,
    clock: Clock,
    prober: Option<Prober>,
    histories: HashMap<DeviceId, History>,
    leases: HashMap<DeviceId, Leases>,
    last: Option<Snapshot>,
}

impl World {
    fn new(dir: &Path, state: State) -> World {
        World {
            standin: StandIn::at(dir),
            host: Host::at(dir),
            state,
            rules: rules(),
            clock: Clock::start(),
            prober: None,
            histories: HashMap::new(),
            leases: HashMap::new(),
            last: None,
        }
    }

    fn prober(&mut self) -> &Prober {
        let (rules, clock) = (Arc::new(self.rules.clone()), self.clock);
        self.prober.get_or_insert_with(|| devices::prober::start(rules, clock))
    }

    fn ask(&mut self, ask: Ask) {
        self.prober().asks.send(ask).expect("the prober listens");
    }

    /// Changes what the driver says, and has every device looked at.
    fn change(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
        self.standin.set(&self.state);
        self.check();
    }

    fn check(&mut self) {
        let ids = self.last.iter().flat_map(|snapshot| &snapshot.devices).map(|reading| reading.id.clone()).collect();
        self.ask(Ask::Check(ids));
    }

    fn next(&mut self, deadline: Instant) -> bool {
        let Ok(snapshot) = self.prober().snapshots.recv_deadline(deadline) else { return false };
        for reading in &snapshot.devices {
            let leases = self.leases.entry(reading.id.clone()).or_default();
            self.histories.entry(reading.id.clone()).or_default().observe(reading, leases, &self.rules);
        }
        self.last = Some(snapshot);
        true
    }

    /// Every device but the CPU pool, a line each.
    fn shown(&self) -> Vec<String> {
        let Some(snapshot) = &self.last else { return Vec::new() };
        let none = (History::default(), Leases::default());
        let gpus = snapshot.devices.iter().filter(|reading| reading.kind != DeviceKind::Cpu);
        gpus.map(|reading| {
            let history = self.histories.get(&reading.id).unwrap_or(&none.0);
            let leases = self.leases.get(&reading.id).unwrap_or(&none.1);
            let now = self.clock.now();
            let verdict = devices::verdict(reading, history, leases, None, snapshot, &self.rules, now);
            format!("{} {}: {verdict}", &reading.id.0[..5], verdict.word())
        })
        .collect()
    }

    /// Waits until the devices are judged like this.
    #[track_caller]
    fn until(&mut self, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while self.last.is_none() || self.shown() != expected {
            if !self.next(deadline) {
                panic!("expected {expected:#?}, and the last was {:#?}", self.shown());
            }
        }
    }

    /// Changes what the driver says, and nobody asks for a look.
    fn change_unseen(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
        self.standin.set(&self.state);
    }

    /// The first other verdict than now is this one, and it comes within so many looks.
    #[track_caller]
    fn turns(&mut self, looks: usize, expected: &[&str]) {
        let before = self.shown();
        for _ in 0..looks {
            assert!(self.next(Instant::now() + PATIENCE), "no look at all");
            if self.shown() != before {
                return assert_eq!(self.shown(), expected);
            }
        }
        panic!("expected {expected:#?}, and after {looks} looks it is still {before:#?}");
    }

    #[track_caller]
    fn reading(&self, id: &str) -> &Reading {
        let devices = &self.last.as_ref().expect("a snapshot").devices;
        devices.iter().find(|reading| reading.id.0.starts_with(id)).expect("the device")
    }

    fn lease(&mut self, id: &str) {
        let id = self.reading(id).id.clone();
        let lease = Lease { job: JobId(ulid::Ulid(1)), memory: None, since: self.clock.now(), group: Some(1) };
        self.leases.entry(id.clone()).or_default().held.push(lease);
        self.ask(Ask::Attend { leased: vec![id], work_waits: true });
    }

    /// Our worker on the device ends.
    fn exit(&mut self, id: &str) {
        let id = self.reading(id).id.clone();
        let leases = self.leases.entry(id.clone()).or_default();
        leases.held.clear();
        leases.last_exit = Some(self.clock.now());
        self.ask(Ask::Attend { leased: vec![], work_waits: true });
        self.ask(Ask::Check(vec![id]));
    }
}

const FREE: &str = "GPU-1 free: idle";

#[test]
fn idle_gpus_are_free_and_described() {
    scenario(gpus(&[Gpu::idle(1), Gpu::idle(2)]), |world| {
        world.until(&[FREE, "GPU-2 free: idle"]);
        let snapshot = world.last.clone().unwrap();
        assert_eq!((snapshot.mode, snapshot.devices.len(), snapshot.trouble), (HostMode::Gpu, 3, None));
        let second = world.reading("GPU-2");
        assert_eq!((second.index, second.pci.as_deref()), (Some(1), Some("0000:02:00.0")));
        assert_eq!((second.memory_total, second.memory_used), (Some(Bytes(80 * GIB)), Some(Bytes(4 << 20))));
        assert_eq!((second.temperature, second.power_w), (Some(40), Some(50.0)));
        assert_eq!(second.name, "Stand-in GPU");
    });
}

#[test]
fn a_stranger_is_named_with_its_memory_and_missed_once_it_ends() {
    scenario(gpus(&[Gpu::idle(1)]), |world| {
        world.host.process(411, "jupyter");
        world.until(&[FREE]);
        world.ask(Ask::Attend { leased: vec![], work_waits: true });
        // The memory is looked at each second, the list every ten.
        world.change_unseen(|state| {
            state.gpus[0].processes = vec![("compute", 411, 3 * GIB)];
            state.gpus[0].used = 3 * GIB;
        });
        world.turns(4, &["GPU-1 busy: 3.0 GiB held by pid 411 jupyter (tester)"]);
        world.change(|state| state.gpus[0].used = 4 << 20);
        world.until(&["GPU-1 busy: 3.0 GiB held by pid 411 jupyter (tester)"]);
        // Its context was small: nothing but the end of the process shows that it is gone.
        world.change_unseen(|state| state.gpus[0].processes.clear());
        world.host.ended(411);
        world.turns(4, &["GPU-1 busy: others used it until a moment ago"]);
        world.turns(4, &[FREE]);
    });
}

#[test]
fn a_foreign_process_is_named_and_must_be_gone_twice() {
    scenario(gpus(&[Gpu::idle(1)]), |world| {
        world.host.process(411, "jupyter");
        world.until(&[FREE]);
        world.change(|state| state.gpus[0].processes = vec![("compute", 411, 3 * GIB)]);
        world.until(&["GPU-1 busy: 3.0 GiB held by pid 411 jupyter (tester)"]);
        world.change(|state| state.gpus[0].processes.clear());
        world.until(&["GPU-1 busy: others used it until a moment ago"]);
        // The second look comes by itself.
        world.ask(Ask::Attend { leased: vec![], work_waits: true });
        world.until(&[FREE]);
    });
}

#[test]
fn graphics_processes_are_ignored_by_name_only() {
    scenario(gpus(&[Gpu::idle(1), Gpu::idle(2)]), |world| {
        world.host.process(9, "Xorg");
        world.host.process(10, "blender");
        world.until(&[FREE, "GPU-2 free: idle"]);
        world.change(|state| {
            state.gpus[0].processes = vec![("graphics", 9, GIB)];
            state.gpus[0].used = GIB;
            state.gpus[1].processes = vec![("graphics", 10, GIB)];
        });
        world.until(&[FREE, "GPU-2 busy: 1.0 GiB held by pid 10 blender (tester)"]);
    });
}

#[test]
fn an_mps_client_is_seen() {
    let gpu = Gpu { processes: vec![("mps", 9, GIB)], ..Gpu::idle(1) };
    scenario(gpus(&[gpu]), |world| {
        world.host.process(9, "client");
        world.until(&["GPU-1 busy: 1.0 GiB held by pid 9 client (tester), of an MPS server"]);
    });
}

#[test]
fn pids_of_another_namespace_are_counted() {
    let gpu = Gpu { processes: vec![("compute", 9, GIB)], ..Gpu::idle(1) };
    scenario(gpus(&[gpu]), |world| {
        world.host.pid_namespace(4_026_532_281);
        world.until(&["GPU-1 busy: in use by 1 other process (of another PID namespace, so without a name here)"]);
        world.change(|state| state.gpus[0].processes.clear());
        world.ask(Ask::Attend { leased: vec![], work_waits: true });
        world.until(&[FREE]);
        world.lease("GPU-1");
        world.change(|state| state.gpus[0].processes = vec![("compute", 9, GIB)]);
        world.until(&["GPU-1 leased: ours"]);
    });
}

#[test]
fn memory_held_by_nobody_keeps_a_device_out() {
    let gpu = Gpu { used: 2 * GIB, ..Gpu::idle(1) };
    scenario(gpus(&[gpu]), |world| {
        world.until(&["GPU-1 busy: memory held by nobody: 2.0 GiB, no process listed"]);
    });
}

#[test]
fn a_lost_gpu_is_out_at_once_and_leaves_the_others_alone() {
    scenario(gpus(&[Gpu::idle(1), Gpu::idle(2)]), |world| {
        world.until(&[FREE, "GPU-2 free: idle"]);
        world.change(|state| state.gpus[0].errors = vec![("all", LOST)]);
        let lost = "GPU-1 unhealthy: lost: fell off the bus, or no longer listed by the driver";
        world.until(&[lost, "GPU-2 free: idle"]);
        // Even while it is ours.
        world.lease("GPU-1");
        world.check();
        world.until(&[lost, "GPU-2 free: idle"]);
    });
}

#[test]
fn a_gpu_that_cannot_say_who_it_is_is_shown_all_the_same() {
    let lost = Gpu { errors: vec![("all", LOST)], ..Gpu::idle(1) };
    let silent = Gpu { errors: vec![("uuid", UNKNOWN)], ..Gpu::idle(3) };
    scenario(gpus(&[lost, Gpu::idle(2), silent]), |world| {
        // By the index that the driver counts it at: GPU-at-index-0 and -2.
        let off = "GPU-a unhealthy: lost: fell off the bus, or no longer listed by the driver";
        let unknown = "GPU-a unknown: the driver hasn't told anything of it yet: NVML: an internal driver \
                       error occurred";
        world.until(&["GPU-2 free: idle", off, unknown]);
    });
}

#[test]
fn a_refused_gpu_is_left_out() {
    let refused = Gpu { errors: vec![("handle", NO_PERMISSION)], ..Gpu::idle(1) };
    scenario(gpus(&[refused, Gpu::idle(2)]), |world| world.until(&["GPU-2 free: idle"]));
}

#[test]
fn compute_mode_prohibited_excludes() {
    let gpu = Gpu { mode: 2, ..Gpu::idle(1) };
    scenario(gpus(&[gpu]), |world| {
        world.until(&["GPU-1 excluded: compute mode prohibited: the driver refuses every process"]);
    });
}

#[test]
fn mig_instances_are_devices_and_their_gpu_is_not() {
    let instances = vec![Gpu::instance(3), Gpu::instance(4)];
    let errors = vec![("memory", NO_PERMISSION), ("compute", NO_PERMISSION), ("util", NOT_SUPPORTED)];
    let board = Gpu { instances: Some(instances), errors, ..Gpu::idle(1) };
    scenario(gpus(&[board, Gpu::idle(2)]), |world| {
        let parent = "GPU-1 excluded: in MIG mode: its instances take the work";
        world.until(&[parent, "MIG-3 free: idle", "MIG-4 free: idle", "GPU-2 free: idle"]);
        let instance = world.reading("MIG-4");
        assert_eq!((instance.index, instance.kind), (Some(0), DeviceKind::Mig));
        assert_eq!(instance.parent, Some(world.reading("GPU-1").id.clone()));
        assert_eq!(instance.memory_total, Some(Bytes(10 * GIB)));
        // Re-partitioned: the event brings it up at once.
        world.change(|state| {
            state.gpus[0].instances = Some(vec![Gpu::instance(5)]);
            state.gpus[0].events = vec![(1, MIG_CHANGE, 0)];
        });
        world.ask(Ask::Attend { leased: vec![], work_waits: true });
        world.until(&[parent, "MIG-5 free: idle", "GPU-2 free: idle"]);
        world.change(|state| {
            state.gpus[0].instances = Some(vec![]);
            state.gpus[0].events = vec![(2, MIG_CHANGE, 0)];
        });
        world.until(&[
            "GPU-1 excluded: in MIG mode without an instance: create one, or switch MIG off",
            "GPU-2 free: idle",
        ]);
    });
}

#[test]
fn mig_instances_are_lost_with_their_gpu() {
    let board = Gpu { instances: Some(vec![Gpu::instance(3)]), ..Gpu::idle(1) };
    scenario(gpus(&[board, Gpu::idle(2)]), |world| {
        let parent = "GPU-1 excluded: in MIG mode: its instances take the work";
        world.until(&[parent, "MIG-3 free: idle", "GPU-2 free: idle"]);
        world.change(|state| {
            let lost = vec![("all", LOST)];
            state.gpus[0].errors = lost.clone();
            state.gpus[0].instances.iter_mut().flatten().for_each(|instance| instance.errors = lost.clone());
        });
        let lost = "MIG-3 unhealthy: lost: fell off the bus, or no longer listed by the driver";
        world.until(&[parent, lost, "GPU-2 free: idle"]);
    });
}

#[test]
fn a_lost_gpu_that_comes_back_is_watched_first() {
    scenario(gpus(&[Gpu::idle(1), Gpu::idle(2)]), |world| {
        world.until(&[FREE, "GPU-2 free: idle"]);
        let out = "GPU-1 unhealthy: lost: fell off the bus, or no longer listed by the driver";
        world.change(|state| drop(state.gpus.remove(0)));
        world.until(&[out, "GPU-2 free: idle"]);
        world.change(|state| state.gpus.insert(0, Gpu::idle(1)));
        world.ask(Ask::Reconfigure(Arc::new(rules())));
        let watched = format!("{out}; kept out until nothing has happened for 5m");
        world.until(&[&watched, "GPU-2 free: idle"]);
        assert!(!world.reading("GPU-1").health.lost);
    });
}

#[test]
fn a_gpu_that_shares_the_hosts_memory_is_no_fault() {
    let gpu = Gpu { errors: vec![("memory", NOT_SUPPORTED)], ..Gpu::idle(1) };
    scenario(gpus(&[gpu]), |world| {
        world.until(&[FREE]);
        let reading = world.reading("GPU-1");
        assert_eq!((reading.memory_total, reading.memory_used), (Some(Bytes(GIB / 2)), None));
        assert_eq!(reading.health.notes, ["it shares the host's memory"]);
        // What isn't supported is asked for once.
        world.check();
        world.next(Instant::now() + PATIENCE);
        let asked = world.standin.calls().iter().filter(|call| *call == "nvmlDeviceGetMemoryInfo_v2").count();
        assert_eq!(asked, 1);
    });
}

#[test]
fn memory_that_lingers_after_an_exit_is_waited_for() {
    scenario(gpus(&[Gpu::idle(1)]), |world| {
        world.until(&[FREE]);
        world.lease("GPU-1");
        world.change(|state| {
            state.gpus[0].used = 20 * GIB;
            state.gpus[0].processes = vec![("compute", 77, 20 * GIB)];
        });
        world.until(&["GPU-1 leased: ours"]);
        world.exit("GPU-1");
        world.until(&["GPU-1 busy: its last worker is still leaving it: pid 77, which has ended or is hidden"]);
        world.change(|state| state.gpus[0].processes.clear());
        world.until(&["GPU-1 busy: its memory is still being given back: 20.0 GiB"]);
        // Nobody asks from here on: the prober watches by itself, and one clean look is enough.
        world.state.gpus[0].used = 4 << 20;
        world.standin.set(&world.state);
        world.until(&[FREE]);
    });
}

#[test]
fn a_driver_that_hangs_is_noticed_and_recovers() {
    scenario(gpus(&[Gpu::idle(1)]), |world| {
        world.until(&[FREE]);
        let (clock, now) = (world.clock, world.clock.now());
        assert_eq!(world.prober().silent_for(now), None);
        world.change(|state| state.hang = true);
        // An hour later by the director's clock it would still hang; no test waits for that.
        let later = clock.now() + Duration::from_secs(3600);
        let deadline = Instant::now() + PATIENCE;
        while world.prober().silent_for(later).is_none() {
            world.next(Instant::now() + Duration::from_millis(10));
            assert!(Instant::now() < deadline, "the check isn't under way");
        }
        world.state.hang = false;
        world.standin.set(&world.state);
        world.until(&[FREE]);
        while world.prober().silent_for(later).is_some() {
            world.next(Instant::now() + Duration::from_millis(10));
            assert!(Instant::now() < deadline, "the heart doesn't rest again");
        }
    });
}

#[test]
fn a_reloaded_driver_is_opened_again() {
    scenario(gpus(&[Gpu::idle(1)]), |world| {
        world.until(&[FREE]);
        world.change(|state| (state.generation, state.init) = (1, VERSION_MISMATCH));
        let reason = "the NVIDIA driver and its library have different versions: reload the driver, or reboot";
        let unknown = format!(
            "GPU-1 unknown: this host has an NVIDIA GPU that can't be reached: {reason}; set devices.use = \"cpu\" to \
             run on CPU slots instead"
        );
        world.until(&["GPU-1 unknown: the NVIDIA driver was reloaded"]);
        world.until(&[&unknown]);
        world.state.init = 0;
        world.standin.set(&world.state);
        world.until(&[FREE]);
    });
}

#[test]
fn all_gpus_failing_at_once_is_the_drivers_fault() {
    scenario(gpus(&[Gpu::idle(1), Gpu::idle(2)]), |world| {
        world.until(&[FREE, "GPU-2 free: idle"]);
        let fail = |state: &mut State, errors: &[(&'static str, i32)]| {
            state.gpus.iter_mut().for_each(|gpu| gpu.errors = errors.to_vec());
        };
        world.change(|state| fail(state, &[("memory", UNKNOWN)]));
        world.ask(Ask::Attend { leased: vec![], work_waits: true });
        let why = "unknown: every GPU fails to answer: memory: NVML: an internal driver error occurred";
        world.until(&[&format!("GPU-1 {why}"), &format!("GPU-2 {why}")]);
        world.change(|state| fail(state, &[]));
        world.until(&[FREE, "GPU-2 free: idle"]);
    });
}

#[test]
fn one_failing_gpu_is_unknown_after_three_failures() {
    scenario(gpus(&[Gpu::idle(1), Gpu::idle(2)]), |world| {
        world.until(&[FREE, "GPU-2 free: idle"]);
        world.ask(Ask::Attend { leased: vec![], work_waits: true });
        world.change(|state| state.gpus[0].errors = vec![("compute", UNKNOWN)]);
        for _ in 0..2 {
            world.next(Instant::now() + PATIENCE);
            world.check();
        }
        let deadline = Instant::now() + PATIENCE;
        while !world.shown()[0].starts_with("GPU-1 unknown: the driver failed to answer 3 times in a row: compute") {
            assert!(world.next(deadline), "{:?}", world.shown());
        }
        assert_eq!(world.shown()[1], "GPU-2 free: idle");
        world.change(|state| state.gpus[0].errors.clear());
        world.until(&[FREE, "GPU-2 free: idle"]);
    });
}

#[test]
fn without_the_library_a_host_with_a_gpu_holds() {
    scenario(Setup { library: false, ..Setup::default() }, |world| {
        world.next(Instant::now() + PATIENCE);
        let snapshot = world.last.clone().expect("a snapshot");
        assert_eq!((snapshot.mode, snapshot.devices.len()), (HostMode::Gpu, 1));
        let trouble = snapshot.trouble.expect("trouble");
        assert!(
            trouble.starts_with("this host has an NVIDIA GPU that can't be reached: libnvidia-ml.so.1"),
            "{trouble}"
        );
    });
}

#[test]
fn without_the_library_a_host_without_a_gpu_runs_on_its_cpu() {
    scenario(Setup { library: false, gpu_in_pci: false, ..Setup::default() }, |world| {
        world.next(Instant::now() + PATIENCE);
        let snapshot = world.last.clone().expect("a snapshot");
        assert_eq!((snapshot.mode, snapshot.devices.len(), snapshot.trouble), (HostMode::Cpu, 1, None));
        // It says nothing more until it is asked.
        world.check();
        assert!(world.next(Instant::now() + PATIENCE));
        assert_eq!(world.last.as_ref().map(|snapshot| snapshot.number), Some(2));
    });
}

#[test]
fn an_old_driver_is_asked_in_its_own_way() {
    let gpu = Gpu { processes: vec![("compute", 411, GIB)], ..Gpu::idle(1) };
    scenario(Setup { driver: Driver::Old, ..gpus(&[gpu]) }, |world| {
        world.host.process(411, "jupyter");
        world.until(&["GPU-1 busy: 1.0 GiB held by pid 411 jupyter (tester)"]);
        assert_eq!(world.reading("GPU-1").memory_used, Some(Bytes(4 << 20)));
    });
}

#[test]
fn a_garbled_process_list_is_not_believed() {
    let gpu = Gpu { processes: vec![("compute", 411, GIB), ("compute", 0, 7)], ..Gpu::idle(1) };
    scenario(gpus(&[gpu]), |world| {
        world.until(&[FREE]);
        assert_eq!(world.reading("GPU-1").processes, None);
        assert_eq!(world.reading("GPU-1").health.notes.len(), 1);
    });
}

#[test]
fn health_is_read_at_the_start() {
    let reset = Gpu { recovery: 1, ..Gpu::idle(1) };
    let worn = Gpu { row_remap_failed: true, ..Gpu::idle(2) };
    let hot = Gpu { throttle: 64, ..Gpu::idle(3) };
    scenario(gpus(&[reset, worn, hot]), |world| {
        world.until(&[
            "GPU-1 unhealthy: the driver asks for a reset (GPU_RECOVERY_ACTION)",
            "GPU-2 unhealthy: row remapping failed: its memory is worn out",
            "GPU-3 unhealthy: slowed down by its hardware (too hot): no new work for a minute",
        ]);
    });
}

#[test]
fn an_xid_brings_up_what_the_driver_asks_for() {
    let silent = Gpu { errors: vec![("recovery", NOT_SUPPORTED)], ..Gpu::idle(2) };
    scenario(gpus(&[Gpu::idle(1), silent]), |world| {
        world.until(&[FREE, "GPU-2 free: idle"]);
        world.ask(Ask::Attend { leased: vec![], work_waits: true });
        // An application's fault, on both.
        world.change(|state| state.gpus.iter_mut().for_each(|gpu| gpu.events = vec![(1, XID, 31)]));
        world.change(|state| {
            state.gpus[0].recovery = 2;
            state.gpus.iter_mut().for_each(|gpu| gpu.events.push((2, XID, 74)));
        });
        world.until(&[
            "GPU-1 unhealthy: the driver asks for a reboot of the host (GPU_RECOVERY_ACTION)",
            "GPU-2 unhealthy: Xid 74: NVLink error; kept out until nothing has happened for 5m",
        ]);
    });
}

#[test]
fn an_inherited_allocation_is_kept_to() {
    let setup = Setup { visible: Some("1"), ..gpus(&[Gpu::idle(1), Gpu::idle(2)]) };
    scenario(setup, |world| {
        world.until(&[
            "GPU-1 excluded: outside the CUDA_VISIBLE_DEVICES this director was started with",
            "GPU-2 free: idle",
        ]);
    });
}

#[test]
fn an_empty_allocation_runs_on_the_cpu() {
    scenario(Setup { visible: Some(""), ..gpus(&[Gpu::idle(1)]) }, |world| {
        world.next(Instant::now() + PATIENCE);
        assert_eq!(world.last.as_ref().expect("a snapshot").mode, HostMode::Cpu);
        assert!(world.standin.calls().is_empty());
    });
}

#[test]
fn rules_may_change_while_it_runs() {
    scenario(gpus(&[Gpu::idle(1), Gpu::idle(2)]), |world| {
        world.until(&[FREE, "GPU-2 free: idle"]);
        let exclude = vec!["0".to_owned()];
        world.ask(Ask::Reconfigure(Arc::new(config::Devices { exclude, ..rules() })));
        world.until(&["GPU-1 excluded: left out by devices.exclude", "GPU-2 free: idle"]);
    });
}

#[test]
fn release_closes_the_driver_until_resume() {
    scenario(gpus(&[Gpu::idle(1)]), |world| {
        world.until(&[FREE]);
        world.ask(Ask::Release);
        world.until(&["GPU-1 unknown: released by hand: `gamdok resume` takes the driver back"]);
        let calls = world.standin.calls();
        assert_eq!(calls.last().map(String::as_str), Some("nvmlShutdown"), "{calls:?}");
        world.check();
        world.next(Instant::now() + PATIENCE);
        assert_eq!(world.standin.calls().len(), calls.len(), "a released driver was asked");
        world.ask(Ask::Resume);
        world.until(&[FREE]);
    });
}

#[test]
fn a_gpu_that_appears_is_taken_in_on_the_next_enumeration() {
    scenario(gpus(&[Gpu::idle(1)]), |world| {
        world.until(&[FREE]);
        world.change(|state| state.gpus.push(Gpu::idle(2)));
        // Enumeration comes each minute, and with every change of the rules.
        world.ask(Ask::Reconfigure(Arc::new(rules())));
        world.until(&[FREE, "GPU-2 free: idle"]);
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_real_driver_tells_of_its_gpus() {
    let prober = devices::prober::start(Arc::new(config::Devices { backend: Backend::Gpu, ..rules() }), Clock::start());
    let snapshot = prober.snapshots.recv_timeout(PATIENCE).expect("a snapshot");
    assert_eq!(snapshot.trouble, None);
    let gpus: Vec<&Reading> = snapshot.devices.iter().filter(|reading| reading.kind.is_gpu()).collect();
    assert!(!gpus.is_empty());
    for gpu in gpus {
        assert!(gpu.id.0.starts_with("GPU-") || gpu.id.0.starts_with("MIG-"), "{gpu:?}");
        assert!(gpu.excluded.is_some() || gpu.memory_total > Some(Bytes(0)), "{gpu:?}");
    }
}
