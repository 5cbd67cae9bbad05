//! GPUs end to end: the built binary with nvml-wrapper's real loading path, against a stand-in library that is driven
//! live, on a host whose /proc and /sys the test describes.

// Only builds with debug assertions let a test describe the host.
#![cfg(debug_assertions)]

mod standin;
mod support;

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use standin::{Driver, GIB, Gpu, Host, LOST, NO_PERMISSION, NOT_SUPPORTED, StandIn, State, VERSION_MISMATCH, library};
use support::{Service, World, text};

const ONE: &str = "GPU-10000000-0000-0000-0000-000000000000";
const TWO: &str = "GPU-20000000-0000-0000-0000-000000000000";

/// A world with GPUs. Workers wait for their gate: a file of the item's name.
struct Farm {
    world: World,
    standin: StandIn,
    host: Host,
    state: State,
}

impl Farm {
    fn new(gpus: &[Gpu], settings: &str, routes: &str) -> Farm {
        let state = State { gpus: gpus.to_vec(), ..State::default() };
        let mut world = World::with(&format!("[devices]\n{settings}\n"), routes);
        let dir = world.dir.path().to_owned();
        let (host, standin) = (Host::at(&dir.join("host")), StandIn::at(&dir));
        host.gpu();
        standin.set(&state);
        world.set("GAMDOK_SYSFS", host.env().1).set("GATES", dir.join("gates"));
        for (key, value) in standin.env(Driver::Current) {
            world.set(key, value);
        }
        fs::create_dir(dir.join("gates")).expect("the gates");
        Farm { world, standin, host, state }
    }

    fn change(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
        self.standin.set(&self.state);
    }

    fn drop_all(&self, names: &[&str]) {
        names.iter().for_each(|name| self.world.drop_file(name, b"x"));
    }

    /// Lets the item's worker end, with the code that the word is.
    fn open(&self, name: &str, exit: u8) {
        let gates = self.world.scratch("gates");
        fs::write(gates.join(format!("{name}.new")), exit.to_string()).expect("the gate");
        fs::rename(gates.join(format!("{name}.new")), gates.join(name)).expect("the gate opens");
    }

    /// Waits until the devices, without the CPU pool, are told like this: `1 free: idle` for `GPU-1…`.
    #[track_caller]
    fn until_devices(&self, expected: &[&str]) {
        let mut last = Vec::new();
        self.world.until(&format!("{expected:?}"), |status| {
            last = devices(&status["devices"]);
            last == expected
        });
    }

    /// Waits until exactly these run, each with its devices: `a on 1`.
    #[track_caller]
    fn until_running(&self, expected: &[&str]) -> Value {
        self.world.until(&format!("running {expected:?}"), |status| running(status) == expected)
    }

    #[track_caller]
    fn until_done(&self, count: u64) {
        self.world.until("done", |status| status["counts"]["done"] == count);
    }

    /// What the worker of an item saw of its environment, as it wrote it down.
    fn seen(&self, name: &str) -> BTreeMap<String, String> {
        let (dir, _) = self.world.result(name);
        let written = fs::read_to_string(dir.join("out/env")).expect("its environment");
        written.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    /// Why an item waits.
    fn reason(&self, name: &str) -> String {
        let rows = self.world.json(&["list"]);
        let row = rows.as_array().into_iter().flatten().find(|row| row["name"] == name);
        row.and_then(|row| row["reason"].as_str()).unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn until_reason(&self, name: &str, expected: &str) {
        let mut last = String::new();
        self.world.until(expected, |_| {
            last = self.reason(name);
            last.contains(expected)
        });
    }

    #[track_caller]
    fn end(self, service: Service) {
        assert_eq!(service.stop(), 0);
        self.standin.assert_no_setter();
    }
}

/// A device's short name: the digit after `GPU-`, `M` and the digit for an instance.
fn short(id: &str) -> String {
    match id.split_once('-') {
        Some(("GPU", rest)) => rest[..1].to_owned(),
        Some(("MIG", rest)) => format!("M{}", &rest[..1]),
        _ => id.to_owned(),
    }
}

fn devices(list: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let gpus = list.as_array().into_iter().flatten().filter(|device| device["kind"] != "cpu");
    gpus.map(|it| format!("{} {}: {}", short(&word(&it["id"])), word(&it["verdict"]), word(&it["reason"]))).collect()
}

fn running(status: &Value) -> Vec<String> {
    let row = |it: &Value| {
        let on: Vec<String> =
            it["devices"].as_array().into_iter().flatten().filter_map(Value::as_str).map(short).collect();
        // Without a PID its process hasn't started.
        it["pid"].as_i64().map(|_| format!("{} on {}", it["name"].as_str().unwrap_or_default(), on.join("+")))
    };
    let mut rows: Vec<String> = status["running"].as_array().into_iter().flatten().filter_map(row).collect();
    rows.sort();
    rows
}

/// A route whose worker writes its environment down, waits for its gate, and exits as the gate says. It shuts the gate
/// behind it: the next attempt waits again.
fn gated(name: &str, extra: &str) -> String {
    let script = "env >\"$GAMDOK_OUT/env\"; until [ -e \"$GATES/$GAMDOK_NAME\" ]; do sleep 0.01; done; \
                  code=$(cat \"$GATES/$GAMDOK_NAME\"); rm \"$GATES/$GAMDOK_NAME\"; exit \"$code\"";
    let command = json!(["sh", "-c", script, "sh", "{item}"]);
    format!("[[route]]\nname = \"{name}\"\nmatch = [\"{name}*\"]\nbackoff = \"10ms\"\ncommand = {command}\n{extra}\n")
}

/// A route that runs a shell script on each item.
fn scripted(name: &str, script: &str, extra: &str) -> String {
    let command = json!(["sh", "-c", script, "sh", "{item}"]);
    format!("[[route]]\nname = \"{name}\"\nmatch = [\"{name}*\"]\nbackoff = \"10ms\"\ncommand = {command}\n{extra}\n")
}

#[test]
fn gpus_tells_the_truth_with_and_without_a_director() {
    let busy = Gpu { processes: vec![("compute", 411, 3 * GIB)], used: 3 * GIB, ..Gpu::idle(2) };
    let prohibited = Gpu { mode: 2, ..Gpu::idle(3) };
    let farm = Farm::new(&[Gpu::idle(1), busy, prohibited], "cpu_slots = 2", &gated("a", ""));
    farm.host.process(411, "jupyter");
    let told = [
        "1 free: idle",
        "2 busy: 3.0 GiB held by pid 411 jupyter (tester)",
        "3 excluded: compute mode prohibited: the driver refuses every process",
    ];
    let without = farm.world.json(&["gpus"]);
    assert_eq!(devices(&without), told);
    let service = farm.world.start();
    farm.until_devices(&told);
    let mut with = farm.world.json(&["gpus"]);
    assert_eq!(with, farm.world.status()["devices"]);
    // The one and the other differ in nothing but what takes more than one look.
    let mut without = without;
    for list in [&mut with, &mut without] {
        list.as_array_mut().expect("a list").iter_mut().for_each(|device| device["utilization"] = Value::Null);
    }
    assert_eq!(with, without);
    assert_eq!(with[0]["memory_total"], 80 * GIB);
    assert_eq!(farm.world.status()["mode"], "gpu");
    let shown = farm.world.command(&["gpus"]).env("COLUMNS", "80").output().expect("run gamdok").stdout;
    let shown = text(&shown);
    assert!(shown.contains("jupyter") && shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    farm.end(service);
}

#[test]
fn an_item_sees_its_gpu_and_no_other() {
    let index = gated("index", "visible = \"index\"");
    let farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &(gated("uuid", "") + &index + &gated("cpu", "gpus = 0")));
    let service = farm.world.start();
    farm.drop_all(&["uuid"]);
    farm.until_running(&["uuid on 1"]);
    farm.until_devices(&["1 leased: 1 of 1 slot taken", "2 free: idle"]);
    farm.drop_all(&["index", "cpu"]);
    farm.until_running(&["cpu on cpu", "index on 2", "uuid on 1"]);
    ["uuid", "index", "cpu"].iter().for_each(|name| farm.open(name, 0));
    farm.until_done(3);
    let check = |name: &str, expected: [Option<&str>; 7]| {
        let seen = farm.seen(name);
        let keys = [
            "CUDA_VISIBLE_DEVICES",
            "CUDA_DEVICE_ORDER",
            "NVIDIA_VISIBLE_DEVICES",
            "GAMDOK_DEVICE",
            "GAMDOK_DEVICE_ID",
            "GAMDOK_GPUS",
            "GAMDOK_ATTEMPT",
        ];
        assert_eq!(keys.map(|key| seen.get(key).map(String::as_str)), expected, "{name}");
    };
    let gpu = Some("cuda:0");
    check("uuid", [Some(ONE), Some("PCI_BUS_ID"), Some(ONE), gpu, Some(ONE), Some("1"), Some("1")]);
    check("index", [Some("1"), Some("PCI_BUS_ID"), Some(TWO), gpu, Some(TWO), Some("1"), Some("1")]);
    check("cpu", [Some(""), None, None, Some("cpu"), Some("cpu"), Some("0"), Some("1")]);
    assert_eq!(farm.world.result("uuid").1["attempts"][0]["devices"], json!([ONE]));
    farm.end(service);
}

#[test]
fn a_foreign_process_keeps_a_gpu_out_until_it_is_gone_for_good() {
    let mut farm = Farm::new(&[Gpu::idle(1)], "", &gated("a", ""));
    farm.host.process(411, "jupyter");
    farm.change(|state| state.gpus[0].processes = vec![("compute", 411, 3 * GIB)]);
    let service = farm.world.start();
    farm.drop_all(&["a"]);
    let why = "GPU 0 is busy: 3.0 GiB held by pid 411 jupyter (tester)";
    farm.until_reason("a", why);
    farm.change(|state| state.gpus[0].processes.clear());
    farm.until_running(&["a on 1"]);
    farm.open("a", 0);
    farm.until_done(1);
    let looks = farm.standin.calls().iter().filter(|it| *it == "nvmlDeviceGetComputeRunningProcesses_v3").count();
    // With it (twice: the size, then the list), clean, and clean again before the start.
    assert!(looks >= 4, "{looks}");
    farm.end(service);
}

#[test]
fn the_next_item_waits_for_the_memory_of_the_last() {
    let mut farm = Farm::new(&[Gpu::idle(1)], "", &gated("a", ""));
    let service = farm.world.start();
    farm.drop_all(&["a-1"]);
    let status = farm.until_running(&["a-1 on 1"]);
    let pid = status["running"][0]["pid"].as_u64().expect("its pid") as u32;
    farm.change(|state| {
        state.gpus[0].used = 20 * GIB;
        state.gpus[0].processes = vec![("compute", pid, 20 * GIB)];
    });
    farm.drop_all(&["a-2"]);
    farm.open("a-1", 0);
    farm.until_devices(&[&format!(
        "1 busy: its last worker is still leaving it: pid {pid}, which has ended or is hidden"
    )]);
    farm.until_reason("a-2", "GPU 0 is busy: its last worker is still leaving it");
    farm.change(|state| {
        state.gpus[0].used = 4 << 20;
        state.gpus[0].processes.clear();
    });
    farm.until_running(&["a-2 on 1"]);
    farm.open("a-2", 0);
    farm.until_done(2);
    farm.end(service);
}

#[test]
fn an_item_gets_several_gpus_and_small_ones_cannot_starve_it() {
    let farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &(gated("big", "gpus = 2") + &gated("small", "")));
    let service = farm.world.start();
    farm.drop_all(&["small-1", "small-2"]);
    farm.world.until("two run", |status| running(status).len() == 2);
    farm.drop_all(&["big"]);
    farm.until_reason("big", "needs 2 GPUs; 0 are free");
    farm.drop_all(&["small-3", "small-4"]);
    farm.open("small-1", 0);
    farm.until_done(1);
    // The freed one is kept for it.
    farm.until_reason("small-3", "which needs more than is free");
    farm.open("small-2", 0);
    farm.until_running(&["big on 1+2"]);
    farm.open("big", 0);
    farm.world.until("the small ones run", |status| running(status).len() == 2);
    farm.open("small-3", 0);
    farm.open("small-4", 0);
    farm.until_done(5);
    let seen = farm.seen("big");
    assert_eq!(seen["CUDA_VISIBLE_DEVICES"], format!("{ONE},{TWO}"));
    assert_eq!((seen["GAMDOK_DEVICE"].as_str(), seen["GAMDOK_GPUS"].as_str()), ("cuda:0,cuda:1", "2"));
    farm.end(service);
}

#[test]
fn items_share_a_gpu_as_far_as_its_memory_goes() {
    let routes = gated("half", "gpu_memory = \"40GiB\"") + &gated("rest", "gpu_memory = \"39GiB\"");
    let farm = Farm::new(&[Gpu::idle(1)], "slots = 3", &routes);
    let service = farm.world.start();
    farm.drop_all(&["half-1"]);
    farm.until_running(&["half-1 on 1"]);
    farm.drop_all(&["rest-1"]);
    farm.until_running(&["half-1 on 1", "rest-1 on 1"]);
    farm.until_devices(&["1 leased: 2 of 3 slots taken"]);
    farm.drop_all(&["half-2"]);
    farm.until_reason("half-2", "of memory left for the 40.0 GiB it needs");
    farm.open("rest-1", 0);
    farm.open("half-1", 0);
    farm.until_running(&["half-2 on 1"]);
    farm.open("half-2", 0);
    farm.until_done(3);
    farm.end(service);
}

#[test]
fn an_attempt_whose_gpu_is_lost_runs_again_elsewhere() {
    let mut farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &gated("a", "retries = 0\nkill_grace = \"1s\""));
    let service = farm.world.start();
    farm.drop_all(&["a"]);
    farm.until_running(&["a on 1"]);
    farm.change(|state| state.gpus[0].errors = vec![("all", LOST)]);
    farm.until_running(&["a on 2"]);
    farm.open("a", 0);
    farm.until_done(1);
    let attempts = &farm.world.result("a").1["attempts"];
    let told: Vec<String> = attempts
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| {
            format!("{} {} {}", it["devices"][0].as_str().map(short).unwrap_or_default(), it["reason"], it["counted"])
        })
        .collect();
    assert_eq!(told, ["1 \"device-lost\" false", "2 null true"]);
    farm.end(service);
}

#[test]
fn a_worker_that_dies_of_its_lost_gpu_is_not_blamed() {
    let mut farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &gated("a", "retries = 0"));
    let service = farm.world.start();
    farm.drop_all(&["a"]);
    farm.until_running(&["a on 1"]);
    // It hears of the loss first, and dies.
    farm.change(|state| state.gpus[0].errors = vec![("all", LOST)]);
    farm.open("a", 1);
    farm.until_running(&["a on 2"]);
    farm.open("a", 0);
    farm.until_done(1);
    let first = &farm.world.result("a").1["attempts"][0];
    assert_eq!((&first["reason"], &first["counted"]), (&json!("device-lost"), &json!(false)));
    farm.end(service);
}

#[test]
fn a_hanging_driver_stops_new_work_only() {
    let mut farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &gated("a", ""));
    let service = farm.world.start();
    farm.drop_all(&["a-1"]);
    farm.until_running(&["a-1 on 1"]);
    farm.change(|state| state.hang = true);
    let status = farm.world.until("unknown", |status| {
        devices(&status["devices"])
            .get(1)
            .is_some_and(|it| it.starts_with("2 unknown: the driver hasn't answered for 1"))
    });
    assert_eq!(running(&status), ["a-1 on 1"]);
    let health = status["health"].as_array().into_iter().flatten().find(|it| it["what"] == "devices");
    assert_eq!(health.map(|it| &it["state"]), Some(&json!("failed")));
    farm.drop_all(&["a-2"]);
    farm.until_reason("a-2", "the GPUs can't be asked: the driver hasn't answered");
    // What runs goes on, to its end.
    farm.open("a-1", 0);
    farm.until_done(1);
    farm.change(|state| state.hang = false);
    farm.world.until("it goes on", |status| running(status).len() == 1);
    farm.open("a-2", 0);
    farm.until_done(2);
    farm.world.until("well", |status| {
        status["health"].as_array().into_iter().flatten().any(|it| it["what"] == "devices" && it["state"] == "ok")
    });
    farm.end(service);
}

#[test]
fn a_reloaded_driver_is_followed() {
    let mut farm = Farm::new(&[Gpu::idle(1)], "", &gated("a", ""));
    let service = farm.world.start();
    farm.drop_all(&["a-1"]);
    farm.until_running(&["a-1 on 1"]);
    farm.change(|state| (state.generation, state.init) = (1, VERSION_MISMATCH));
    farm.drop_all(&["a-2"]);
    farm.until_reason("a-2", "have different versions");
    farm.change(|state| state.init = 0);
    farm.open("a-1", 0);
    farm.until_running(&["a-2 on 1"]);
    farm.open("a-2", 0);
    farm.until_done(2);
    farm.end(service);
}

#[test]
fn mig_instances_take_the_work_and_their_gpu_does_not() {
    let errors = vec![("memory", NO_PERMISSION), ("compute", NO_PERMISSION)];
    let board = Gpu { instances: Some(vec![Gpu::instance(3), Gpu::instance(4)]), errors, ..Gpu::idle(1) };
    let farm = Farm::new(&[board], "", &(gated("a", "") + &gated("two", "gpus = 2")));
    let service = farm.world.start();
    farm.drop_all(&["two", "a-1", "a-2", "a-3"]);
    farm.world.until("both run", |status| running(status).len() == 2);
    farm.world.until("held", |status| {
        let held = status["held"].as_array().into_iter().flatten().next();
        held.is_some_and(|it| {
            text(it["reason"].as_str().unwrap_or_default().as_bytes()).contains("needs 2 GPUs, this host has 0")
        })
    });
    ["a-1", "a-2", "a-3"].iter().for_each(|name| farm.open(name, 0));
    farm.until_done(3);
    for name in ["a-1", "a-2", "a-3"] {
        let seen = farm.seen(name);
        assert!(seen["CUDA_VISIBLE_DEVICES"].starts_with("MIG-"), "{seen:?}");
        assert_eq!(seen["GAMDOK_DEVICE"], "cuda:0");
    }
    // The GPU stands for its instances.
    farm.world.ok(&["cordon", "0"]);
    farm.until_devices(&[
        "1 excluded: in MIG mode: its instances take the work",
        "M3 unhealthy: cordoned by hand",
        "M4 unhealthy: cordoned by hand",
    ]);
    farm.end(service);
}

/// Another root on the same host.
fn neighbour(farm: &Farm, settings: &str, routes: &str) -> World {
    let mut world = World::with(&format!("[devices]\n{settings}\n"), routes);
    for (key, value) in farm.standin.env(Driver::Current) {
        world.set(key, value);
    }
    world.set("GAMDOK_SYSFS", farm.host.env().1).set("GATES", farm.world.scratch("gates"));
    world.set("GAMDOK_LOCK_DIR", farm.world.scratch("locks"));
    world
}

#[test]
fn two_directors_never_use_one_gpu_at_the_same_time() {
    // Each worker makes a folder named after its GPU: that fails while another one has it.
    let own = "mkdir \"$GATES/$GAMDOK_DEVICE_ID\" && sleep 0.05 && rmdir \"$GATES/$GAMDOK_DEVICE_ID\"";
    let route = scripted("a", own, "retries = 0");
    let farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &route);
    let other = neighbour(&farm, "", &route);
    let names: Vec<String> = (0..20).map(|n| format!("a-{n:02}")).collect();
    for world in [&farm.world, &other] {
        names.iter().for_each(|name| world.drop_file(name, b"x"));
    }
    let (first, second) = (farm.world.start(), other.start());
    for world in [&farm.world, &other] {
        world.until("all is done", |status| status["counts"]["done"] == 20 && status["counts"]["failed"] == 0);
    }
    assert_eq!(second.stop(), 0);
    farm.end(first);
}

#[test]
fn a_director_leaves_a_gpu_to_another_after_its_turn() {
    let route = scripted("a", "sleep 0.2", "");
    let farm = Farm::new(&[Gpu::idle(1)], "", &route);
    let other = neighbour(&farm, "", &route);
    let names: Vec<String> = (0..400).map(|n| format!("a-{n:03}")).collect();
    names.iter().for_each(|name| farm.world.drop_file(name, b"x"));
    let first = farm.world.start();
    farm.world.until("it is at work", |status| status["counts"]["done"].as_u64() > Some(0));
    let second = other.start();
    other.drop_file("a-one", b"x");
    other.until("the other has its turn", |status| status["counts"]["done"] == 1);
    let left = farm.world.status()["counts"]["done"].as_u64();
    assert!(left < Some(390), "{left:?} were done before");
    drop((first, second));
    farm.standin.assert_no_setter();
}

/// A route whose worker stays, for as long as nobody else needs its GPU; each item takes it so many seconds.
fn resident(name: &str, seconds: f32) -> String {
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python");
    let script = format!(
        "import sys, time\nsys.path.insert(0, {helper:?})\nfrom gamdok_worker import serve\n\
         serve(lambda item: time.sleep({seconds}))\n"
    );
    let command = json!(["python3", "-c", script]);
    format!(
        "[[route]]\nname = \"{name}\"\nmatch = [\"{name}*\"]\nmode = \"resident\"\nkill_grace = \"5s\"\n\
         resident = {{ idle_timeout = \"1h\" }}\ncommand = {command}\n"
    )
}

/// Has one item done by a worker that stays.
fn warm_up(farm: &Farm) -> u32 {
    farm.drop_all(&["w-first"]);
    farm.until_done(1);
    let status = farm.world.until("it is idle", |status| status["residents"][0]["state"] == "idle");
    status["residents"][0]["pid"].as_u64().expect("its pid") as u32
}

const FOR_ANOTHER: &str = "another director of this host waits for its device";

#[test]
fn an_idle_worker_leaves_its_gpu_to_another_director() {
    let mut farm = Farm::new(&[Gpu::idle(1)], "", &resident("w", 0.0));
    let other = neighbour(&farm, "", &gated("b", ""));
    let (first, second) = (farm.world.start(), other.start());
    let pid = warm_up(&farm);
    // What the model holds is all that the other one sees, and it waits for that before it ever tries the lock.
    farm.host.process(pid, "python3");
    farm.change(|state| {
        state.gpus[0].used = 20 * GIB;
        state.gpus[0].processes = vec![("compute", pid, 20 * GIB)];
    });
    other.until("it sees that", |status| devices(&status["devices"])[0].starts_with("1 busy: 20.0 GiB held by pid"));
    assert!(!first.log().contains(FOR_ANOTHER), "nothing waits yet");
    other.drop_file("b", b"x");
    farm.world.until("the worker is gone", |status| status["residents"].as_array().is_some_and(Vec::is_empty));
    assert!(first.log().contains(FOR_ANOTHER), "{}", first.log());
    farm.host.ended(pid);
    farm.change(|state| state.gpus[0] = Gpu::idle(1));
    other.until("it runs", |status| running(status) == ["b on 1"]);
    farm.open("b", 0);
    other.until("it is done", |status| status["counts"]["done"] == 1);
    assert_eq!(second.stop(), 0);
    farm.end(first);
}

#[test]
fn an_idle_worker_leaves_its_gpu_to_a_map() {
    let farm = Farm::new(&[Gpu::idle(1)], "", &resident("w", 0.0));
    let other = neighbour(&farm, "", "");
    let first = farm.world.start();
    warm_up(&farm);
    assert_eq!(other.ok(&["map", "--gpus", "1", "--", "echo", "{}", ":::", "one"]), "one\n");
    assert!(first.log().contains(FOR_ANOTHER), "{}", first.log());
    farm.end(first);
}

#[test]
fn workers_of_two_directors_take_turns() {
    let farm = Farm::new(&[Gpu::idle(1)], "", &resident("w", 0.2));
    let other = neighbour(&farm, "", &resident("w", 0.2));
    let names: Vec<String> = (0..300).map(|n| format!("w-{n:03}")).collect();
    names.iter().for_each(|name| farm.world.drop_file(name, b"x"));
    let first = farm.world.start();
    let done = |world: &World| world.status()["counts"]["done"].as_u64().expect("a count");
    farm.world.until("it is at work", |status| status["counts"]["done"].as_u64() > Some(0));
    let second = other.start();
    other.drop_file("w-other", b"x");
    other.until("the other has its turn", |status| status["counts"]["done"] == 1);
    let left = done(&farm.world);
    assert!(left < 290, "{left} were done before");
    farm.world.until("the first has its turn again", |status| status["counts"]["done"].as_u64() > Some(left));
    for world in [&farm.world, &other] {
        assert_eq!(world.status()["counts"]["failed"], 0);
    }
    drop((first, second));
    farm.standin.assert_no_setter();
}

#[test]
fn a_worker_that_outlives_its_director_keeps_the_gpu() {
    let farm = Farm::new(&[Gpu::idle(1)], "", &gated("a", ""));
    let other = neighbour(&farm, "", &gated("b", ""));
    let first = farm.world.start();
    farm.drop_all(&["a"]);
    farm.until_running(&["a on 1"]);
    first.kill();
    let second = other.start();
    other.drop_file("b", b"x");
    other.until("it is kept out", |status| {
        devices(&status["devices"])[0].starts_with("1 busy: another director of this host uses it: its lock in")
    });
    farm.open("a", 0);
    other.until("it runs", |status| running(status) == ["b on 1"]);
    farm.open("b", 0);
    other.until("it is done", |status| status["counts"]["done"] == 1);
    assert_eq!(second.stop(), 0);
    // The next start finds the orphan's end.
    let first = farm.world.start();
    farm.until_running(&["a on 1"]);
    farm.open("a", 0);
    farm.until_done(1);
    farm.end(first);
}

#[test]
fn without_a_gpu_items_fall_back_or_are_held() {
    let mut world =
        World::with("[devices]\ncpu_slots = 2", &(gated("may", "") + &gated("must", "cpu_fallback = false")));
    let host = Host::at(&world.scratch("host"));
    let nowhere = world.scratch("nowhere");
    fs::create_dir(&nowhere).expect("a folder without the library");
    let gates = world.scratch("gates");
    fs::create_dir(&gates).expect("the gates");
    world.set("LD_LIBRARY_PATH", nowhere).set("GAMDOK_SYSFS", host.env().1).set("GATES", gates);
    let service = world.start();
    world.drop_file("may", b"x");
    world.drop_file("must", b"x");
    let status = world
        .until("one runs, one is held", |status| running(status) == ["may on cpu"] && status["counts"]["held"] == 1);
    assert_eq!(status["mode"], "cpu");
    assert_eq!(status["held"][0]["name"], "must");
    let why = "route `must` needs a GPU, this host has none, and its cpu_fallback is false";
    assert_eq!(status["held"][0]["reason"], why);
    fs::write(world.scratch("gates/may"), "0").expect("open the gate");
    world.until("done", |status| status["counts"]["done"] == 1);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_gpu_without_its_library_holds_until_the_library_is_there() {
    let mut farm = Farm::new(&[Gpu::idle(1)], "", &(gated("a", "") + &gated("cpu", "gpus = 0")));
    let libraries = farm.world.scratch("libraries");
    fs::create_dir(&libraries).expect("a folder for the library");
    farm.world.set("LD_LIBRARY_PATH", libraries.clone());
    let service = farm.world.start();
    farm.drop_all(&["a", "cpu"]);
    // CPU slots need no driver.
    let status = farm.until_running(&["cpu on cpu"]);
    assert_eq!(status["mode"], "gpu");
    farm.until_reason("a", "this host has an NVIDIA GPU that can't be reached: libnvidia-ml.so.1");
    let health = status["health"].as_array().into_iter().flatten().find(|it| it["what"] == "devices");
    assert_eq!(health.map(|it| &it["state"]), Some(&json!("failed")));
    fs::copy(library(Driver::Current).join("libnvidia-ml.so.1"), libraries.join("new")).expect("copy the library");
    fs::rename(libraries.join("new"), libraries.join("libnvidia-ml.so.1")).expect("install it");
    farm.until_running(&["a on 1", "cpu on cpu"]);
    farm.open("a", 0);
    farm.open("cpu", 0);
    farm.until_done(2);
    farm.end(service);
}

#[test]
fn asked_for_gpus_there_must_be_some() {
    let mut farm = Farm::new(&[], "use = \"gpu\"", &gated("a", ""));
    let service = farm.world.start();
    farm.drop_all(&["a"]);
    farm.until_reason("a", "the NVIDIA driver works, but lists no GPU");
    farm.change(|state| state.gpus = vec![Gpu::idle(1)]);
    farm.until_running(&["a on 1"]);
    farm.open("a", 0);
    farm.until_done(1);
    farm.end(service);
}

#[test]
fn simulated_gpus_run_what_gpus_would() {
    let settings = "[devices]\nuse = \"sim\"\nsim = { gpus = 2 }";
    let world = World::with(settings, &scripted("a", "env >\"$GAMDOK_OUT/env\"", ""));
    ["a-1", "a-2", "a-3"].iter().for_each(|name| world.drop_file(name, b"x"));
    let output = world.once();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("SIMULATED GPUs"), "{}", text(&output.stderr));
    let (dir, result) = world.result("a-1");
    let id = result["attempts"][0]["devices"][0].as_str().expect("its device");
    assert!(id.starts_with("SIM-"), "{id}");
    let seen = fs::read_to_string(dir.join("out/env")).expect("its environment");
    assert!(seen.lines().any(|line| line == format!("CUDA_VISIBLE_DEVICES={id}")), "{seen}");
}

#[test]
fn a_cordon_by_hand_lasts_until_a_hand_ends_it() {
    let farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &gated("a", ""));
    let service = farm.world.start();
    farm.drop_all(&["a-1"]);
    farm.until_running(&["a-1 on 1"]);
    farm.world.ok(&["cordon", "0"]);
    farm.world.ok(&["cordon", TWO]);
    // What runs on it goes on, and nobody is left in the dark.
    let cordoned = "2 unhealthy: cordoned by hand";
    farm.until_devices(&["1 leased: 1 of 1 slot taken, takes no more: cordoned by hand", cordoned]);
    farm.drop_all(&["a-2"]);
    farm.until_reason("a-2", "cordoned by hand");
    farm.open("a-1", 0);
    farm.until_done(1);
    assert_eq!(service.stop(), 0);
    let both = ["1 unhealthy: cordoned by hand", cordoned];
    assert_eq!(devices(&farm.world.json(&["gpus"])), both);
    let service = farm.world.start();
    farm.until_devices(&both);
    farm.world.ok(&["uncordon", "GPU-2"]);
    farm.until_running(&["a-2 on 2"]);
    farm.open("a-2", 0);
    farm.until_done(2);
    service.kill();
    let service = farm.world.start();
    farm.until_devices(&[both[0], "2 free: idle"]);
    farm.world.ok(&["uncordon", ONE]);
    farm.until_devices(&["1 free: idle", "2 free: idle"]);
    farm.world.code(&["cordon", "7"], 1);
    farm.end(service);
}

#[test]
fn a_released_driver_is_left_alone_until_it_is_taken_back() {
    let farm = Farm::new(&[Gpu::idle(1)], "", &gated("a", ""));
    let service = farm.world.start();
    farm.until_devices(&["1 free: idle"]);
    farm.world.ok(&["release"]);
    // Whoever asked may unload the driver now.
    assert_eq!(farm.standin.calls().last().map(String::as_str), Some("nvmlShutdown"));
    let released = "1 unknown: released by hand: `gamdok resume` takes the driver back";
    assert_eq!(devices(&farm.world.json(&["gpus"])), [released]);
    farm.drop_all(&["a"]);
    farm.until_reason("a", "released by hand");
    assert_eq!(farm.standin.calls().last().map(String::as_str), Some("nvmlShutdown"));
    farm.world.ok(&["resume"]);
    farm.until_running(&["a on 1"]);
    farm.open("a", 0);
    farm.until_done(1);
    farm.end(service);
}

#[test]
fn inside_an_allocation_only_its_gpus_exist() {
    let mut farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &gated("a", ""));
    farm.world.set("CUDA_VISIBLE_DEVICES", TWO);
    let outside = "1 excluded: outside the CUDA_VISIBLE_DEVICES this director was started with";
    assert_eq!(devices(&farm.world.json(&["gpus"])), [outside, "2 free: idle"]);
    let service = farm.world.start();
    farm.drop_all(&["a-1", "a-2"]);
    farm.until_running(&["a-1 on 2"]);
    farm.until_devices(&[outside, "2 leased: 1 of 1 slot taken"]);
    farm.open("a-1", 0);
    farm.open("a-2", 0);
    farm.until_done(2);
    assert_eq!(farm.seen("a-2")["CUDA_VISIBLE_DEVICES"], TWO);
    farm.end(service);
}

#[test]
fn a_gpu_that_fails_everything_is_cordoned() {
    let sick = format!("[ \"$GAMDOK_DEVICE_ID\" != {ONE} ]");
    let farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &scripted("a", &sick, ""));
    let names: Vec<String> = (0..12).map(|n| format!("a-{n:02}")).collect();
    names.iter().for_each(|name| farm.world.drop_file(name, b"x"));
    let service = farm.world.start();
    farm.until_done(12);
    let status = farm.world.status();
    let first = &devices(&status["devices"])[0];
    assert!(first.starts_with("1 unhealthy: cordoned, since several items failed fast on it: "), "{first}");
    // A hand's word goes before the rule's.
    farm.world.ok(&["uncordon", "0"]);
    farm.until_devices(&["1 free: idle", "2 free: idle"]);
    farm.end(service);
}

#[test]
fn a_script_that_fails_everywhere_cordons_nothing() {
    let farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &scripted("a", "exit 3", "retries = 1"));
    let names: Vec<String> = (0..8).map(|n| format!("a-{n}")).collect();
    names.iter().for_each(|name| farm.world.drop_file(name, b"x"));
    let service = farm.world.start();
    farm.world.until("all have failed", |status| status["counts"]["failed"] == 8);
    farm.until_devices(&["1 free: idle", "2 free: idle"]);
    farm.end(service);
}

#[test]
fn an_item_that_fails_on_every_gpu_is_poison() {
    let farm = Farm::new(&[1, 2, 3].map(Gpu::idle), "", &scripted("a", "kill -SEGV $$", "retries = 9"));
    let service = farm.world.start();
    farm.drop_all(&["a"]);
    farm.world.until("it has failed", |status| status["counts"]["failed"] == 1);
    let (_, result) = farm.world.result("a");
    assert_eq!((&result["reason"], result["attempts"].as_array().map(Vec::len)), (&json!("poison"), Some(3)));
    let on: Vec<String> =
        (0..3).map(|n| short(result["attempts"][n]["devices"][0].as_str().unwrap_or_default())).collect();
    assert_eq!(on, ["1", "2", "3"]);
    farm.end(service);
}

#[test]
fn the_first_lack_of_memory_is_not_counted() {
    let script = "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB' >&2; exit 1";
    let farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &scripted("a", script, "retries = 0"));
    let service = farm.world.start();
    farm.drop_all(&["a"]);
    farm.world.until("it has failed", |status| status["counts"]["failed"] == 1);
    let (_, result) = farm.world.result("a");
    let told: Vec<(&Value, &Value)> =
        result["attempts"].as_array().into_iter().flatten().map(|it| (&it["reason"], &it["counted"])).collect();
    let memory = json!("out-of-memory");
    assert_eq!(told, [(&memory, &json!(false)), (&memory, &json!(true))]);
    farm.end(service);
}

#[test]
fn what_a_worker_used_is_written_down() {
    let mut farm = Farm::new(&[Gpu::idle(1), Gpu::idle(2)], "", &gated("a", "gpus = 2"));
    farm.change(|state| state.gpus.iter_mut().for_each(|gpu| gpu.energy_mj = 1_000));
    let service = farm.world.start();
    farm.drop_all(&["a"]);
    let status = farm.until_running(&["a on 1+2"]);
    let pid = status["running"][0]["pid"].as_i64().expect("its pid");
    farm.host.process(pid as u32, "python3");
    let asked = |farm: &Farm, call: &str| farm.standin.calls().iter().filter(|it| *it == call).count();
    farm.world.until("the counters were read", |_| asked(&farm, "nvmlDeviceGetTotalEnergyConsumption") >= 2);
    farm.change(|state| {
        for gpu in &mut state.gpus {
            gpu.processes = vec![("compute", pid as u32, 3 * GIB)];
            gpu.used = 3 * GIB;
            gpu.energy_mj = 501_000;
        }
    });
    // The memory that moved has the lists read at once; the counters are read each second or two.
    let before = ["nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetTotalEnergyConsumption"]
        .map(|it| (it, asked(&farm, it)));
    farm.world.until("they were read again", |_| before.iter().all(|(call, count)| asked(&farm, call) >= count + 4));
    farm.change(|state| state.gpus.iter_mut().for_each(|gpu| (gpu.processes, gpu.used) = (Vec::new(), 4 << 20)));
    farm.open("a", 0);
    farm.until_done(1);
    let attempt = &farm.world.result("a").1["attempts"][0];
    assert_eq!(attempt["peak_gpu_memory"], 6 * GIB);
    // 500 J on each, and at the same rate for as long as nobody read the counters.
    let joules = attempt["energy_joules"].as_f64().expect("the energy");
    assert!((1000.0..2000.0).contains(&joules), "{joules}");
    farm.end(service);
}

#[test]
fn what_gpus_do_is_sampled_and_what_they_can_not_say_is_absent() {
    let busy = Gpu { util: 55, power_mw: 250_000, ..Gpu::idle(1) };
    let silent = Gpu { errors: vec![("temperature", NOT_SUPPORTED), ("power", NOT_SUPPORTED)], ..Gpu::idle(2) };
    let farm = Farm::new(&[busy, silent], "", "");
    let service = farm.world.start();
    farm.world.until("they are read", |status| {
        let read = |n: usize| !status["devices"][n]["utilization"].is_null();
        read(0) && read(1)
    });
    assert_eq!(service.stop(), 0);
    farm.standin.assert_no_setter();
    let ledger = rusqlite::Connection::open(farm.world.root.join(".gamdok/ledger.sqlite")).expect("the ledger");
    let mut query = ledger
        .prepare(
            "SELECT id || ' ' || max(utilization_max) || ' ' || coalesce(max(temperature_max), '-') || ' '
                 || coalesce(max(power_max), '-') || ' ' || max(memory_max)
             FROM sample_minutes JOIN sample_devices ON device = n GROUP BY id ORDER BY id",
        )
        .expect("a query");
    let rows = query.query_map([], |row| row.get(0)).expect("rows");
    let told: Vec<String> = rows.collect::<Result<_, _>>().expect("rows");
    let used = 4 << 20;
    assert_eq!(told, [format!("{ONE} 55 40 250.0 {used}"), format!("{TWO} 0 - - {used}")]);
}
