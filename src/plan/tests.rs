mod residents;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::config::Policy;
use crate::devices::{Cordon, CordonBy, Reading};
use crate::item::{Step, StopWhy};
use crate::state::Job;
use crate::units::Bytes;
use crate::world::fixtures::{candidate, gib, job_id, key, reading, record, route, rules, seconds};

/// Long enough after the start for everything to be old.
const NOW: f64 = 1000.0;

/// A host in a few words. Rules: `slots=2 policy=pack cpu=4 mode=cpu trouble paused noclaims away last=gpu1`.
/// A device a line: `gpu0 total=80 used=1 resting temp=40 stale asked exited cordoned locked others excluded lost nomemory`, also `mig0`, `sim0`,
/// `gone0`.
/// A job a line, in the order of arrival: `a gpus=2 mem=20 prio=1 route=x max=1 nofallback avoid=gpu0,gpu1` and one of
/// `on=gpu0,gpu1` (runs), `stopping=gpu0`, `claiming`, `offered`, `later`, `due`; without one it waits. One that runs may be a line
/// file: `ahead further=gpu1,gpu2 recalled=1`.
struct Host {
    state: State,
    snapshot: Snapshot,
    names: BTreeMap<JobId, String>,
}

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str) -> Option<u64> {
    value(words, key).map(|text| text.parse().expect(text))
}

fn device_id(name: &str) -> DeviceId {
    if name == "cpu" {
        DeviceId::cpu()
    } else {
        DeviceId(
            name.to_uppercase().replace("U", "U-").replace("G-", "G").replace("SIM", "SIM-").replace("MIG", "MIG-"),
        )
    }
}

fn device_ids(text: &str) -> Vec<DeviceId> {
    text.split(',').map(device_id).collect()
}

fn short(id: &DeviceId) -> String {
    id.to_string().to_lowercase().replace('-', "")
}

impl Host {
    fn new(rule: &str, devices: &[&str], jobs: &[&str]) -> Host {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let mut rules = rules();
        rules.slots = number(&words, "slots").unwrap_or(1) as u32;
        rules.cpu_slots = Some(number(&words, "cpu").unwrap_or(2) as u32);
        rules.policy = match value(&words, "policy") {
            Some("pack") => Policy::Pack,
            Some("round-robin") => Policy::RoundRobin,
            _ => Policy::LeastConnections,
        };
        let mut state = State::new(rules);
        state.now = seconds(NOW);
        state.may_claim = !words.contains(&"noclaims");
        state.may_start = !words.contains(&"away");
        state.last_given = value(&words, "last").map(device_id);
        let mut readings = vec![reading(DeviceKind::Cpu, 0, seconds(NOW))];
        for text in devices {
            let words: Vec<&str> = text.split_whitespace().collect();
            readings.extend(Host::device(&mut state, &words));
        }
        let snapshot = Snapshot {
            taken_at: seconds(NOW),
            number: 1,
            mode: if words.contains(&"mode=cpu") { HostMode::Cpu } else { HostMode::Gpu },
            devices: readings,
            trouble: words.contains(&"trouble").then(|| "the driver doesn't answer".to_owned()),
        };
        let mut host = Host { state, snapshot, names: BTreeMap::new() };
        for (n, text) in jobs.iter().enumerate() {
            let words: Vec<&str> = text.split_whitespace().collect();
            host.job(n as u64, &words);
        }
        if words.contains(&"paused") {
            host.state.phase = Phase::Paused;
        }
        host.state.check().expect("the test's own state holds");
        host
    }

    fn device(state: &mut State, words: &[&str]) -> Option<Reading> {
        let (kind, index) = words[0].split_at(words[0].len() - 1);
        let kind = match kind {
            "gpu" => DeviceKind::Gpu,
            "mig" => DeviceKind::Mig,
            "sim" => DeviceKind::Sim,
            _ => return None,
        };
        let mut reading = reading(kind, index.parse().expect("an index"), seconds(NOW));
        reading.memory_total = Some(number(words, "total").map_or(gib(80), gib));
        reading.memory_used = Some(number(words, "used").map_or(Bytes(0), gib));
        if words.contains(&"resting") {
            reading.memory_used = Some(Bytes(500 << 20));
        }
        reading.temperature = number(words, "temp").map(|degrees| degrees as u32);
        let device = state.device_mut(&reading.id);
        for word in words {
            match *word {
                "stale" => reading.processes_at = seconds(NOW - 1.5),
                "asked" => device.asked_at = Some(seconds(NOW - 0.1)),
                "exited" => {
                    reading.processes_at = seconds(NOW - 0.2);
                    device.leases.last_exit = Some(seconds(NOW - 0.1));
                }
                "cordoned" => {
                    let reason = "by hand".to_owned();
                    device.cordon = Some(Cordon { by: CordonBy::Hand, since: seconds(1.0), reason });
                }
                "locked" => {
                    let (since, reason) = (seconds(NOW), "pid 9".to_owned());
                    device.cordon = Some(Cordon { by: CordonBy::OtherDirector, since, reason });
                }
                "others" => {
                    reading.processes = Some(vec![crate::devices::GpuProcess {
                        pid: 411,
                        kind: crate::devices::ProcessKind::Compute,
                        memory: None,
                        name: Some("jupyter".to_owned()),
                        user: None,
                        group: Some(411),
                        job: None,
                    }]);
                }
                "excluded" => reading.excluded = Some("excluded by the configuration".to_owned()),
                "lost" => reading.health.lost = true,
                "nomemory" => (reading.memory_total, reading.memory_used) = (None, None),
                _ => {}
            }
        }
        Some(reading)
    }

    fn job(&mut self, n: u64, words: &[&str]) {
        let mut route = route(value(words, "route").unwrap_or(words[0]));
        route.gpus = number(words, "gpus").unwrap_or(1) as u32;
        route.gpu_memory = number(words, "mem").map(gib);
        route.priority = value(words, "prio").map_or(0, |text| text.parse().expect(text));
        route.max_running = number(words, "max").map(|most| most as u32);
        route.cpu_fallback = !words.contains(&"nofallback");
        residents::of_route(&mut route, words);
        let route = Arc::new(route);
        self.names.insert(job_id(n), words[0].to_owned());
        if words.contains(&"offered") {
            self.state.offer(candidate(n, route));
            return;
        }
        let mut record = record(n, route);
        record.avoid = value(words, "avoid").map(device_ids).unwrap_or_default();
        let job = Job::new(Arc::new(record), Stage::Claiming);
        self.state.insert(job);
        let on = value(words, "on").or(value(words, "stopping")).map(device_ids);
        let mut steps = vec![Step::Claimed];
        match on {
            Some(on) => steps.extend([Step::Lease { on }, Step::Launch]),
            None if words.contains(&"due") || words.contains(&"later") => {
                let at = seconds(if words.contains(&"due") { NOW } else { NOW + 12.0 });
                steps.extend([
                    Step::Lease { on: vec![DeviceId("GPU-9".to_owned())] },
                    Step::Launch,
                    Step::Retry { at },
                ]);
            }
            None if words.contains(&"claiming") => steps.clear(),
            None => {}
        }
        if value(words, "stopping").is_some() {
            steps.push(Step::Stop { why: StopWhy::Cancelled });
        }
        for step in steps {
            self.state.step(job_id(n), step).expect("a legal step");
        }
        self.state.set_ahead(job_id(n), words.contains(&"ahead"));
        for device in value(words, "further").map(device_ids).unwrap_or_default() {
            self.state.grow(job_id(n), vec![device]).expect("it runs");
        }
        if let Some(slot) = number(words, "recalled") {
            self.state.recall(job_id(n), slot as u32);
        }
    }

    fn plan(&self) -> String {
        let name = |job: &JobId| self.names[job].clone();
        let item = |wanted: &CandidateKey| {
            let n = (0..self.names.len() as u64).find(|n| key(*n) == *wanted).expect("an item of this test");
            name(&job_id(n))
        };
        let list = |ids: &[DeviceId]| ids.iter().map(short).collect::<Vec<_>>().join("+");
        let decisions = plan(&self.state, &self.snapshot);
        let words = decisions.iter().map(|decision| match decision {
            Decision::Check { devices } => format!("check {}", list(devices)),
            Decision::Claim { key } => format!("claim {}", item(key)),
            Decision::Refuse { key, reason } => format!("refuse {}: {reason}", item(key)),
            Decision::Start { job, on } => format!("{} on {}", name(job), list(on)),
            Decision::Warm { job, on } => format!("warm {} on {}", name(job), list(on)),
            Decision::Hand { jobs, to } => {
                format!("{} to r{}", jobs.iter().map(name).collect::<Vec<_>>().join("+"), to.0.timestamp_ms())
            }
            Decision::Retire { resident, .. } => format!("retire r{}", resident.0.timestamp_ms()),
            Decision::Grow { job, on } => format!("{} also on {}", name(job), list(on)),
            Decision::Shrink { job, slot } => format!("{} leaves slot {slot}", name(job)),
            Decision::Stop { job } => format!("stop {}", name(job)),
            Decision::Due { job } => format!("due {}", name(job)),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

#[track_caller]
fn check(rules: &str, devices: &[&str], jobs: &[&str], expected: &str) {
    assert_eq!(Host::new(rules, devices, jobs).plan(), expected);
}

/// What the explanation of the first job named `name` says.
#[track_caller]
fn check_why(rules: &str, devices: &[&str], jobs: &[&str], name: &str, expected: &str) {
    let host = Host::new(rules, devices, jobs);
    let (id, _) = host.names.iter().find(|(_, known)| *known == name).expect("a job of this test");
    let found = match host.state.job(*id) {
        Some(job) => why_waiting(&host.state, &host.snapshot, job),
        None => {
            let mut offers = host.state.offers().flat_map(|(_, line)| line);
            let offer = offers.find(|offer| offer.route.name == name).expect("an offer of a route of this name");
            why_offer_waits(&host.state, &host.snapshot, offer)
        }
    };
    assert_eq!(found, expected);
}

/// Which devices are missed by what waits.
#[track_caller]
fn check_wanted(rules: &str, devices: &[&str], jobs: &[&str], expected: &[&str]) {
    let host = Host::new(rules, devices, jobs);
    let found: Vec<String> = wanted(&host.state, &host.snapshot).iter().map(short).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_others_use_is_wanted_by_what_waits_and_could_have_it() {
    check_wanted("", &["gpu0 others"], &["a"], &["gpu0"]);
    check_wanted("", &["gpu0 locked"], &["a"], &["gpu0"]);
    check_wanted("", &["gpu0 locked"], &["a offered"], &["gpu0"]);
    check_wanted("", &["gpu0 locked", "gpu1 others"], &["a"], &["gpu0", "gpu1"]);
    check_wanted("", &["gpu0 locked"], &[], &[]);
    // It has another one, needs none, may not yet, or isn't the first in its route's limit.
    check_wanted("", &["gpu0 locked", "gpu1"], &["a"], &[]);
    check_wanted("", &["gpu0 locked", "gpu1 stale"], &["a"], &[]);
    check_wanted("", &["gpu0 locked", "gpu1"], &["a", "b"], &["gpu0"]);
    check_wanted("", &["gpu0 locked"], &["a gpus=0"], &[]);
    check_wanted("", &["gpu0 locked"], &["a later"], &[]);
    check_wanted("", &["gpu0 locked", "gpu1"], &["a max=1 on=gpu1", "b route=a max=1"], &[]);
    check_wanted("", &["gpu0 locked", "gpu1"], &["a gpus=2"], &["gpu0"]);
    // Too small, avoided, out for another reason, or ours with somebody else beside us.
    check_wanted("", &["gpu0 locked total=24"], &["a mem=30"], &[]);
    check_wanted("", &["gpu0 others", "gpu1 others"], &["a avoid=gpu0"], &["gpu1"]);
    check_wanted("", &["gpu0 cordoned", "gpu1 lost", "gpu2 excluded"], &["a"], &[]);
    check_wanted("slots=2", &["gpu0 others"], &["a on=gpu0", "b"], &[]);
    let mut paused = Host::new("", &["gpu0 locked"], &["a"]);
    paused.state.phase = Phase::Paused;
    assert!(wanted(&paused.state, &paused.snapshot).is_empty());
}

#[test]
fn an_idle_gpu_takes_the_first_that_waits() {
    check("", &["gpu0"], &["a", "b"], "a on gpu0");
    check("", &["gpu0", "gpu1"], &["a", "b"], "a on gpu0, b on gpu1");
    check("", &["gpu0"], &["a on=gpu0", "b"], "");
    check("", &[], &["a"], "");
}

#[test]
fn least_connections_then_most_memory_then_coolest_then_lowest() {
    check("slots=2", &["gpu0", "gpu1"], &["a on=gpu0", "b"], "b on gpu1");
    check("slots=2", &["gpu0 used=1", "gpu1"], &["a"], "a on gpu1");
    check("", &["gpu0 temp=50", "gpu1 temp=40"], &["a"], "a on gpu1");
    check("", &["gpu0", "gpu1 temp=40"], &["a"], "a on gpu1");
    check("", &["gpu1", "gpu0"], &["a"], "a on gpu0");
    check("slots=2", &["gpu0", "gpu1"], &["a", "b", "c"], "a on gpu0, b on gpu1, c on gpu0");
}

#[test]
fn pack_fills_a_device_before_the_next() {
    check("slots=2 policy=pack", &["gpu0", "gpu1"], &["a", "b", "c"], "a on gpu0, b on gpu0, c on gpu1");
    check("slots=3 policy=pack", &["gpu0", "gpu1"], &["a on=gpu1", "b"], "b on gpu1");
}

#[test]
fn round_robin_goes_on_after_the_last() {
    let devices = ["gpu0", "gpu1", "gpu2"];
    check("policy=round-robin", &devices, &["a", "b"], "a on gpu0, b on gpu1");
    check("policy=round-robin last=gpu1", &devices, &["a", "b"], "a on gpu2, b on gpu0");
    check("policy=round-robin last=gpu2", &devices, &["a"], "a on gpu0");
    check("policy=round-robin last=gpu9", &devices, &["a"], "a on gpu0");
}

#[test]
fn priority_goes_before_arrival() {
    check("", &["gpu0"], &["a", "b prio=1"], "b on gpu0");
    check("", &["gpu0"], &["a prio=-1", "b"], "b on gpu0");
    check("", &["gpu0"], &["a", "b", "c"], "a on gpu0");
}

#[test]
fn cpu_items_have_slots_of_their_own() {
    check("", &["gpu0"], &["a gpus=0", "b", "c gpus=0", "d gpus=0"], "a on cpu, b on gpu0, c on cpu");
    check("cpu=1", &[], &["a gpus=0 on=cpu", "b gpus=0"], "");
}

#[test]
fn without_gpus_items_fall_back_to_the_cpu_where_they_may() {
    check("mode=cpu", &[], &["a gpus=4 mem=900", "b", "c"], "a on cpu, b on cpu");
    check("mode=cpu", &[], &["a nofallback"], "");
}

#[test]
fn memory_is_shared_by_what_is_declared_and_what_is_used() {
    check("slots=4", &["gpu0"], &["a mem=40", "b mem=30", "c mem=20", "d mem=10"], "a on gpu0, b on gpu0");
    check("slots=4", &["gpu0"], &["a mem=40", "b mem=30", "d mem=10"], "a on gpu0, b on gpu0, d on gpu0");
    check("slots=4", &["gpu0 used=45"], &["a mem=40 on=gpu0", "b mem=40"], "");
    check("slots=4", &["gpu0 used=39"], &["a mem=40 on=gpu0", "b mem=40"], "b on gpu0");
    // What an idle device holds was let pass by the verdict.
    check("slots=4", &["gpu0 resting"], &["a mem=80"], "a on gpu0");
    check("slots=4", &["gpu0"], &["a mem=81"], "");
    // Without a declaration an item counts for its part of the slots.
    check("slots=2", &["gpu0"], &["a on=gpu0", "b mem=41"], "");
    check("slots=2", &["gpu0"], &["a on=gpu0", "b mem=40"], "b on gpu0");
    check("slots=2", &["gpu0"], &["a mem=41 on=gpu0", "b"], "");
    check("slots=2", &["gpu0 used=40"], &["a on=gpu0", "b"], "b on gpu0");
    check("slots=2", &["gpu0 used=60"], &["a on=gpu0", "b"], "");
    // Where the driver tells no sizes, slots decide.
    check("slots=2", &["gpu0 nomemory"], &["a mem=90", "b", "c"], "a on gpu0, b on gpu0");
    // An item goes where it fits.
    check("", &["gpu0 total=24", "gpu1"], &["a mem=30", "b mem=20"], "a on gpu1, b on gpu0");
}

#[test]
fn several_gpus_are_several_devices() {
    check("", &["gpu0", "gpu1", "gpu2"], &["a gpus=2", "b"], "a on gpu0+gpu1, b on gpu2");
    check("slots=4", &["gpu0"], &["a gpus=2"], "");
    check("slots=2", &["gpu0", "gpu1"], &["a on=gpu0", "b gpus=2"], "b on gpu1+gpu0");
    check("", &["gpu0 total=24", "gpu1", "gpu2"], &["a gpus=2 mem=30"], "a on gpu1+gpu2");
}

#[test]
fn devices_are_kept_for_the_first_that_needs_several() {
    // gpu1 is free and kept; gpu0 is the other one.
    check("", &["gpu0", "gpu1"], &["a on=gpu0", "b gpus=2", "c"], "");
    // Behind it others take what isn't kept.
    check("", &["gpu0", "gpu1", "gpu2"], &["a on=gpu0", "b gpus=3", "c", "d gpus=2"], "");
    check("", &["gpu0", "gpu1", "gpu2", "gpu3"], &["x on=gpu0", "y on=gpu1", "b gpus=3", "c"], "");
    check(
        "slots=2",
        &["gpu0", "gpu1", "gpu2"],
        &["v on=gpu0", "w on=gpu0", "x on=gpu1", "y on=gpu1", "z on=gpu2", "b gpus=2", "c"],
        "",
    );
    check("slots=2", &["gpu0", "gpu1", "gpu2"], &["x mem=80 on=gpu0", "y mem=80 on=gpu1", "b gpus=2", "c"], "");
    // Only one has devices kept: the second doesn't hold up others.
    check("", &["gpu0", "gpu1", "gpu2"], &["a on=gpu0", "e on=gpu1", "b gpus=2", "c gpus=2", "d"], "");
    check("", &["gpu0", "gpu1", "gpu2 cordoned"], &["a on=gpu0", "b gpus=3", "c"], "c on gpu1");
    // What has been excluded, lost or cordoned is waited for by nobody.
    check("", &["gpu0", "gpu1 lost"], &["b gpus=2", "c"], "c on gpu0");
    // What comes before it in rank isn't held up either.
    check("", &["gpu0", "gpu1"], &["a on=gpu0", "b gpus=2", "c prio=1"], "c on gpu1");
}

#[test]
fn a_large_part_of_a_shared_device_is_kept_too() {
    check("slots=4", &["gpu0"], &["a mem=40 on=gpu0", "b mem=60", "c mem=10"], "");
    check("slots=4", &["gpu0", "gpu1"], &["a mem=40 on=gpu0", "d mem=40 on=gpu1", "b mem=60", "c mem=10"], "c on gpu1");
}

#[test]
fn mig_instances_are_never_joined() {
    check("", &["mig0", "mig1"], &["a gpus=2", "b"], "b on mig0");
    check("", &["mig0", "gpu1", "gpu2"], &["a gpus=2"], "a on gpu1+gpu2");
}

#[test]
fn a_route_runs_no_more_than_its_limit() {
    check(
        "cpu=4",
        &[],
        &["a gpus=0 route=x max=2", "b gpus=0 route=x max=2", "c gpus=0 route=x max=2", "d gpus=0"],
        "a on cpu, b on cpu, d on cpu",
    );
    check("cpu=4", &[], &["a gpus=0 route=x max=1 on=cpu", "b gpus=0 route=x max=1"], "");
    check("cpu=4", &[], &["a gpus=0 route=x max=1 stopping=cpu", "b gpus=0 route=x max=1"], "");
}

#[test]
fn devices_are_avoided_while_others_exist() {
    check("", &["gpu0", "gpu1"], &["a avoid=gpu0"], "a on gpu1");
    check("", &["gpu0", "gpu1"], &["x on=gpu1", "a avoid=gpu0", "b"], "b on gpu0");
    check("", &["gpu0"], &["a avoid=gpu0"], "a on gpu0");
    check("", &["gpu0", "gpu1 cordoned"], &["a avoid=gpu0"], "a on gpu0");
    check("", &["gpu0", "gpu1 total=24"], &["a mem=40 avoid=gpu0"], "a on gpu0");
    check("", &["gpu0", "gpu1", "gpu2"], &["a gpus=2 avoid=gpu0"], "a on gpu1+gpu2");
    check("", &["gpu0", "gpu1"], &["a gpus=2 avoid=gpu0"], "a on gpu0+gpu1");
}

#[test]
fn nothing_starts_where_the_verdict_forbids_it() {
    check("", &["gpu0 cordoned", "gpu1 excluded", "gpu2 lost", "gpu3"], &["a", "b"], "a on gpu3");
    // Its own lease doesn't make a cordoned device take more.
    check("slots=2", &["gpu0 cordoned"], &["a on=gpu0", "b"], "");
    check("trouble", &["gpu0"], &["a"], "");
}

#[test]
fn an_old_look_is_renewed_before_a_start() {
    check("", &["gpu0 stale"], &["a"], "check gpu0");
    check("", &["gpu0 exited"], &["a"], "check gpu0");
    check("", &["gpu0 stale asked"], &["a"], "");
    // Its device is taken for it meanwhile, and others go elsewhere.
    check("", &["gpu0 stale", "gpu1"], &["a", "b", "c"], "b on gpu1, check gpu0");
    check("", &["gpu0 stale", "gpu1 stale"], &["a", "b"], "check gpu0+gpu1");
    check("", &["gpu0 stale", "gpu1"], &["a gpus=2"], "check gpu0");
    check("", &["gpu0 stale"], &[], "");
    // A script is always as it says.
    check("", &["sim0 stale"], &["a"], "a on sim0");
}

#[test]
fn lost_and_vanished_devices_stop_what_runs_there() {
    check("", &["gpu0 lost", "gpu1"], &["a on=gpu0", "b on=gpu1"], "stop a");
    check("", &["gpu1"], &["a on=gpu0"], "stop a");
    check("trouble", &["gpu1"], &["a on=gpu0"], "");
    check("", &["gpu0 lost"], &["a stopping=gpu0"], "");
    check("", &[], &["a gpus=2 on=gpu0,gpu1"], "stop a");
    check("paused", &["gpu0 lost"], &["a on=gpu0"], "stop a");
}

#[test]
fn retries_come_back_in_their_time() {
    check("", &["gpu0"], &["a due", "b later", "c"], "due a, a on gpu0");
    check("", &["gpu0"], &["c", "a due"], "due a, c on gpu0");
    check("paused", &["gpu0"], &["a due"], "due a");
    check("away", &["gpu0"], &["a due", "b", "c offered"], "due a");
}

#[test]
fn claims_go_as_far_ahead_as_slots_can_soon_use() {
    // A slot for the first, and one more for the device.
    check("", &["gpu0"], &["a offered", "b offered", "c offered"], "claim a, claim b");
    check("", &["gpu0"], &["x on=gpu0", "a offered", "b offered"], "claim a");
    check("", &["gpu0"], &["x on=gpu0", "y", "a offered"], "");
    check("", &["gpu0"], &["x claiming", "y claiming", "a offered"], "");
    check(
        "cpu=2",
        &[],
        &["a gpus=0 offered", "b gpus=0 offered", "c gpus=0 offered", "d gpus=0 offered"],
        "claim a, claim b, claim c",
    );
    // What starts now makes no room: its slot is gone too.
    check("", &["gpu0"], &["x", "a offered", "b offered"], "x on gpu0, claim a");
    check("noclaims", &["gpu0"], &["a offered"], "");
    check("paused", &["gpu0"], &["a offered"], "");
    check("trouble", &["gpu0"], &["a offered"], "");
    check("", &["gpu0 cordoned"], &["a offered"], "");
}

#[test]
fn a_burst_of_ends_widens_the_claims() {
    let offers: Vec<String> = (0..100).map(|n| format!("o{n} route=o gpus=0 offered")).collect();
    let mut jobs: Vec<&str> = vec!["x gpus=0"];
    jobs.extend(offers.iter().map(String::as_str));
    let mut host = Host::new("cpu=1", &[], &jobs);
    let count = |host: &Host| host.plan().matches("claim").count();
    assert_eq!(count(&host), 1, "the device's one; the slot is x's");
    for n in 1000..1080 {
        host.names.insert(job_id(n), format!("e{n}"));
        host.job(n, &["e", "gpus=0", "on=cpu"]);
        host.state.step(job_id(n), Step::Commit { outcome: crate::item::Outcome::Done }).unwrap();
    }
    assert_eq!(count(&host), MAX_AHEAD, "as many as ended, up to the bound");
    host.state.now = seconds(NOW + 0.2);
    assert_eq!(count(&host), 1, "those ends are long past");
}

#[test]
fn offers_are_claimed_by_priority_then_arrival_across_routes() {
    let jobs = ["a route=y offered", "b route=x offered", "c route=y offered", "d route=z prio=1 offered"];
    check("", &["gpu0", "gpu1"], &jobs, "claim d, claim a, claim b, claim c");
    check("", &["gpu0"], &jobs, "claim d, claim a");
}

#[test]
fn a_route_at_its_limit_claims_one_ahead() {
    let jobs = ["x route=m max=1 on=gpu0", "a route=m max=1 offered", "b route=m max=1 offered", "c offered"];
    check("", &["gpu0", "gpu1", "gpu2"], &jobs, "claim a, claim c");
    check("", &["gpu0", "gpu1"], &["a route=m gpus=2 offered", "b route=m gpus=2 offered"], "claim a");
    // Several GPUs that aren't there yet leave the item where people can see it.
    check("", &["gpu0", "gpu1 cordoned"], &["a gpus=2 offered"], "");
    // A part of a device larger than what fits beside the others.
    let jobs = ["a route=m mem=70 offered", "b route=m mem=70 offered", "c route=m mem=70 offered"];
    check("slots=8", &["gpu0"], &jobs, "claim a, claim b");
}

#[test]
fn what_waits_for_something_else_holds_up_no_claim() {
    let jobs = ["x on=gpu0", "a gpus=2", "b gpus=2", "c gpus=2", "d offered"];
    check("", &["gpu0", "gpu1", "gpu2 cordoned"], &jobs, "");
    let jobs = ["a gpus=2", "b gpus=2", "c gpus=2", "d offered", "e offered"];
    check("", &["gpu0", "gpu1 cordoned"], &jobs, "claim d");
}

#[test]
fn a_claim_for_a_device_long_not_looked_at_asks_for_a_look() {
    check("", &["gpu0 stale"], &["a offered"], "claim a, check gpu0");
}

#[test]
fn what_can_never_run_here_is_refused() {
    let check = |rules: &str, devices: &[&str], job: &str, reason: &str| {
        let expected = if reason.is_empty() { String::new() } else { format!("refuse a: {reason}") };
        let found = Host::new(rules, devices, &[&format!("a {job} offered")]).plan();
        assert_eq!(found.replace("claim a", ""), expected);
    };
    check("mode=cpu", &[], "nofallback", "route `a` needs a GPU, this host has none, and its cpu_fallback is false");
    check("mode=cpu", &[], "gpus=9", "");
    check("", &["gpu0"], "gpus=2", "route `a` needs 2 GPUs, this host has 1 that can be used together");
    check(
        "",
        &["gpu0", "gpu1 excluded"],
        "gpus=2",
        "route `a` needs 2 GPUs, this host has 1 that can be used together",
    );
    check("", &["gpu0", "mig1"], "gpus=2", "route `a` needs 2 GPUs, this host has 1 that can be used together");
    check("", &["gpu0", "gpu1 lost"], "gpus=2", "");
    check("", &["gpu0 excluded"], "", "route `a` needs 1 GPU, this host has 0 that can be used");
    check("trouble", &[], "", "");
    check(
        "",
        &["gpu0 total=24"],
        "mem=40",
        "route `a` needs 40.0 GiB of GPU memory, the largest GPU here has 24.0 GiB",
    );
    check("", &["gpu0 nomemory"], "mem=400", "");
    check(
        "",
        &["gpu0", "gpu1 total=24"],
        "gpus=2 mem=40",
        "route `a` needs 2 GPUs with 40.0 GiB of memory each, this host has 1",
    );
}

#[test]
fn waiting_is_explained_by_the_rules_themselves() {
    check_why("paused", &["gpu0"], &["a"], "a", "paused");
    check_why("away", &["gpu0"], &["a"], "a", "the root isn't at its path: see the health of spool");
    check_why("", &["gpu0"], &["a"], "a", "it is about to start");
    check_why("", &["gpu0"], &["a on=gpu0"], "a", "it runs");
    check_why("", &["gpu0"], &["x on=gpu0", "a"], "a", "GPU 0 is taken");
    check_why("slots=2", &["gpu0"], &["x on=gpu0", "y on=gpu0", "a"], "a", "all 2 slots of GPU 0 are taken");
    check_why("cpu=2", &[], &["x gpus=0 on=cpu", "y gpus=0 on=cpu", "a gpus=0"], "a", "all 2 CPU slots are taken");
    check_why("", &["gpu0", "gpu1"], &["x on=gpu0", "a gpus=2"], "a", "needs 2 GPUs; 1 is free: GPU 0 is taken");
    check_why(
        "",
        &["gpu0", "gpu1"],
        &["x on=gpu0", "a gpus=2", "b"],
        "b",
        &format!("GPU 0 is taken; GPU 1 is kept for {}, which needs more than is free", job_id(1)),
    );
    check_why(
        "slots=2",
        &["gpu0"],
        &["x mem=60 on=gpu0", "a mem=30"],
        "a",
        "GPU 0 has 20.0 GiB of memory left for the 30.0 GiB it needs",
    );
    check_why(
        "",
        &["gpu0"],
        &["x route=m max=1 on=gpu0", "a route=m max=1"],
        "a",
        "route `m` already runs its 1 (max_running)",
    );
    check_why("", &["gpu0"], &["a later"], "a", "waits until its retry in 12s (attempt 2)");
    check_why("", &["gpu0 stale"], &["a"], "a", "a fresh look at GPU 0 is under way");
    check_why("trouble", &["gpu0"], &["a"], "a", "the GPUs can't be asked: the driver doesn't answer");
    check_why("", &[], &["a"], "a", "there is no GPU");
    check_why(
        "",
        &["gpu0", "gpu1"],
        &["x on=gpu1", "a avoid=gpu0"],
        "a",
        "GPU 0 is avoided after a failed attempt; GPU 1 is taken",
    );
    check_why("", &["gpu0"], &["a claiming"], "a", "it is being claimed");
    check_why("", &["gpu0"], &["x on=gpu0", "y", "o offered"], "o", "1 item is ahead of it; GPU 0 is taken");
    check_why(
        "noclaims",
        &["gpu0"],
        &["o offered"],
        "o",
        "nothing is claimed at present: see the health of spool and space",
    );
    check_why(
        "mode=cpu",
        &[],
        &["o nofallback offered"],
        "o",
        "route `o` needs a GPU, this host has none, and its cpu_fallback is false",
    );
}

#[test]
fn a_verdict_gives_its_own_reason() {
    let host = Host::new("", &["gpu0 cordoned", "gpu1"], &["x on=gpu1", "a"]);
    let job = host.state.waiting().next().expect("a waits");
    let why = why_waiting(&host.state, &host.snapshot, job);
    assert!(why.starts_with("GPU 0 is unhealthy: cordoned") && why.ends_with("; GPU 1 is taken"), "{why}");
}

#[test]
fn a_line_file_takes_what_nothing_else_can_use() {
    check("cpu=4", &[], &["s gpus=0 on=cpu"], "");
    check("cpu=4", &[], &["s gpus=0 on=cpu ahead"], "s also on cpu, s also on cpu, s also on cpu");
    check("cpu=4", &[], &["s gpus=0 on=cpu ahead", "a gpus=0"], "a on cpu, s also on cpu, s also on cpu");
    check("cpu=3", &[], &["s gpus=0 on=cpu ahead", "a gpus=0 claiming"], "s also on cpu");
    check("cpu=3", &[], &["s gpus=0 on=cpu ahead", "a gpus=0 offered"], "claim a, s also on cpu");
    check("cpu=3 noclaims", &[], &["s gpus=0 on=cpu ahead", "a gpus=0 offered"], "s also on cpu, s also on cpu");
    // What waits and can't start anyway holds nothing up.
    check("cpu=2", &[], &["s gpus=0 on=cpu ahead", "a gpus=0 route=r max=1 later", "b"], "s also on cpu");
    check(
        "cpu=3",
        &[],
        &["x gpus=0 route=r max=1 on=cpu", "s gpus=0 on=cpu ahead", "a gpus=0 route=r max=1"],
        "s also on cpu",
    );
    check("cpu=3", &[], &["s gpus=0 on=cpu ahead", "a gpus=0 claiming prio=-3"], "s also on cpu");
    // Two share: who has least is next.
    check(
        "cpu=5",
        &[],
        &["s gpus=0 on=cpu ahead", "t gpus=0 on=cpu ahead"],
        "s also on cpu, t also on cpu, s also on cpu",
    );
    check("cpu=4", &[], &["s gpus=0 on=cpu ahead further=cpu", "t gpus=0 on=cpu ahead"], "t also on cpu");
    check("cpu=2 paused", &[], &["s gpus=0 on=cpu ahead"], "");
    check("cpu=2", &[], &["s gpus=0 stopping=cpu ahead"], "");
    check("", &["gpu0 lost", "gpu1"], &["s on=gpu0 ahead"], "stop s");
    check("", &["gpu0", "gpu1 lost", "gpu2"], &["s on=gpu0 ahead further=gpu1", "a"], "stop s, a on gpu2");
    // What it gives back isn't given to it.
    check("cpu=3", &[], &["s gpus=0 on=cpu ahead further=cpu recalled=1"], "");
}

#[test]
fn a_line_file_takes_gpus_as_any_item_does() {
    check("", &["gpu0", "gpu1", "gpu2"], &["s on=gpu0 ahead"], "s also on gpu1, s also on gpu2");
    check("", &["gpu0", "gpu1 stale"], &["s on=gpu0 ahead"], "check gpu1");
    check("", &["gpu0", "gpu1 cordoned"], &["s on=gpu0 ahead"], "");
    check("", &["gpu0", "gpu1 total=24"], &["s mem=30 on=gpu0 ahead"], "");
    check("slots=2", &["gpu0"], &["s mem=30 on=gpu0 ahead"], "s also on gpu0");
    check("slots=2", &["gpu0"], &["s mem=50 on=gpu0 ahead"], "");
    check("", &["gpu0", "gpu1", "gpu2", "gpu3", "gpu4"], &["s gpus=2 on=gpu0,gpu1 ahead"], "s also on gpu2+gpu3");
    // Kept for one that needs several.
    check("", &["gpu0", "gpu1", "gpu2"], &["s on=gpu0 ahead", "x on=gpu1", "b gpus=2"], "");
}

#[test]
fn a_line_file_gives_back_what_something_as_urgent_needs() {
    let grown = "s gpus=0 on=cpu ahead further=cpu,cpu";
    check("cpu=3", &[], &[grown, "a gpus=0"], "s leaves slot 2");
    check("cpu=3", &[], &[grown, "a gpus=0", "b gpus=0 route=a"], "s leaves slot 2, s leaves slot 1");
    check("cpu=3", &[], &[grown, "a gpus=0", "b gpus=0 route=a", "c gpus=0"], "s leaves slot 2, s leaves slot 1");
    check("cpu=3", &[], &[grown, "a gpus=0 prio=1"], "s leaves slot 2");
    check("cpu=3", &[], &[grown, "a gpus=0 prio=-1"], "");
    check("cpu=3", &[], &[grown, "a gpus=0 claiming"], "s leaves slot 2");
    check("cpu=3", &[], &[grown, "a gpus=0 offered"], "claim a, s leaves slot 2");
    check("cpu=3", &[], &[grown, "a"], "");
    check("cpu=3", &[], &[grown, "a gpus=0 route=r max=1", "b gpus=0 route=r max=1"], "s leaves slot 2");
    // It is on its way already.
    check("cpu=3", &[], &["s gpus=0 on=cpu ahead further=cpu,cpu recalled=2", "a gpus=0"], "");
    check(
        "cpu=3",
        &[],
        &["s gpus=0 on=cpu further=cpu,cpu recalled=1", "a gpus=0", "b gpus=0 route=a"],
        "s leaves slot 2",
    );
    // The least urgent first, then who has most.
    check(
        "cpu=5",
        &[],
        &["s gpus=0 on=cpu further=cpu,cpu prio=1", "t gpus=0 on=cpu further=cpu", "a gpus=0 prio=1"],
        "t leaves slot 1",
    );
    check(
        "cpu=5",
        &[],
        &["s gpus=0 on=cpu further=cpu,cpu", "t gpus=0 on=cpu further=cpu", "a gpus=0"],
        "s leaves slot 2",
    );
    check(
        "",
        &["gpu0", "gpu1", "gpu2"],
        &["s on=gpu0 ahead further=gpu1,gpu2", "a gpus=2"],
        "s leaves slot 2, s leaves slot 1",
    );
    check(
        "",
        &["gpu0", "gpu1", "gpu2 total=24"],
        &["s on=gpu0 ahead further=gpu1,gpu2", "a mem=30"],
        "s leaves slot 1",
    );
    check("slots=2", &["gpu0"], &["s mem=30 on=gpu0 further=gpu0", "a mem=30"], "s leaves slot 1");
}
