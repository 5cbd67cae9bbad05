//! Workers that do their worst to their own job's directory: the item ends once, its payload is whole, and the others'
//! work goes on.

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::World;

const CPU: &str = "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 4\n";

/// What the worker does (`$1` the item, `$2` its `out/`, `$j` its job's directory), what the route says beside that, and
/// how the item ends.
const MISDEEDS: &[(&str, &str, &str, &str)] = &[
    ("result-dir", "mkdir -p $j/result.json/x $j/result.json.tmp/x", "", "done"),
    ("result-link", "ln -s /etc/passwd $j/result.json.tmp; ln -s /etc/passwd $j/result.json", "", "done"),
    ("result-fifo", "mkfifo $j/result.json.tmp $j/result.json", "", "done"),
    ("result-hard-link", "ln $1 $j/result.json.tmp", "", "done"),
    ("result-forged", "echo '{}' >$j/result.json", "", "done"),
    ("record-dir", "rm $j/job.json; mkdir -p $j/job.json/x $j/job.json.tmp/x; exit 1", "", "failed exit"),
    ("record-fifo", "mkfifo $j/job.json.tmp; exit 1", "", "failed exit"),
    ("record-hard-link", "ln $1 $j/job.json.tmp; exit 1", "", "failed exit"),
    ("lock-fifo", "rm $j/lock; mkfifo $j/lock", "", "done"),
    ("lock-gone", "rm $j/lock; exit 1", "", "failed exit"),
    ("log-dir", "mkdir $j/attempt-2.log; exit 1", "", "failed exit"),
    ("log-fifo", "mkfifo $j/attempt-2.log; exit 1", "", "failed exit"),
    ("log-link", "ln -s /etc/passwd $j/attempt-2.log; exit 1", "", "failed exit"),
    ("log-short-fifo", "mkfifo $j/attempt-1.log.tmp; head -c 300000 /dev/zero", "", "done"),
    ("out-gone", "rmdir $2", "", "done"),
    ("out-gone-declared", "rmdir $2", "outputs = [\"x\"]", "failed missing-output"),
    ("out-link", "rmdir $2; ln -s /etc $2", "", "done"),
    ("dir-declared", "mkdir $2/x", "outputs = [\"x\"]", "failed missing-output"),
    ("fifo-declared", "mkfifo $2/x", "outputs = [\"x\"]", "failed missing-output"),
    ("out-link-declared", "rmdir $2; ln -s /etc $2", "outputs = [\"passwd\"]", "failed missing-output"),
    ("link-declared", "ln -s /etc/passwd $2/x", "outputs = [\"x\"]", "failed missing-output"),
    ("path-declared", "ln -s /etc $2/x", "outputs = [\"x/passwd\"]", "failed missing-output"),
    ("out-no-rights", "chmod 000 $2; exit 1", "", "failed exit"),
    ("out-few-rights", "chmod 444 $2; exit 1", "", "failed exit"),
    ("out-few-rights-done", "echo x >$2/x; chmod 444 $2", "", "done"),
    ("out-half-rights", "mkdir $2/d; echo x >$2/d/f; chmod 444 $2/d", "", "done"),
    ("job-no-rights", "chmod 000 $j", "", "done"),
    ("job-few-rights", "chmod 500 $j; exit 1", "", "failed exit"),
    ("job-replaced", "mv $j $j.gone; ln -s /etc $j", "", "done"),
];

fn route(name: &str, body: &str, extra: &str) -> String {
    let body = format!("j=$(dirname \"$2\"); {body}");
    let command = json!(["sh", "-c", body.replace('{', "{{").replace('}', "}}"), "sh", "{item}", "{out}"]);
    let fixed = "retries = 1\nbackoff = \"10ms\"\nkill_grace = \"100ms\"";
    format!("[[route]]\nname = \"{name}\"\nmatch = [\"{name}.item\"]\n{fixed}\ncommand = {command}\n{extra}\n")
}

#[test]
fn whatever_a_worker_does_to_its_directory_its_item_ends_and_the_others_go_on() {
    let passwd = fs::read("/etc/passwd").expect("a file of the system");
    let routes: String = MISDEEDS.iter().map(|(name, body, extra, _)| route(name, body, extra)).collect();
    let world = World::with(CPU, &format!("[history]\nmax_log = \"64KiB\"\n{routes}"));
    for (name, ..) in MISDEEDS {
        world.drop_file(format!("{name}.item"), name.as_bytes());
    }
    let service = world.start();
    world.until("all have ended", |status| {
        let ended = ["done", "failed"].map(|state| status["counts"][state].as_u64().unwrap_or(0));
        ended.iter().sum::<u64>() == MISDEEDS.len() as u64
    });
    for (name, _, _, expected) in MISDEEDS {
        let (dir, result) = world.result(&format!("{name}.item"));
        let words = [&result["outcome"], &result["reason"]].map(|it| it.as_str().unwrap_or_default().to_owned());
        assert_eq!(words.join(" ").trim(), *expected, "{name}: {result:#}");
        if *name != "job-replaced" {
            assert_eq!(payload(&dir, name), name.as_bytes(), "{name}");
        }
    }
    let status = world.status();
    let unwell = |it: &&Value| it["what"] == "spool" && it["state"] != "ok";
    assert!(status["health"].as_array().expect("health").iter().find(unwell).is_none(), "{status:#}");
    assert!(!service.log().contains("panicked"), "{}", service.log());
    assert_eq!(service.stop(), 0);
    assert_eq!(fs::read("/etc/passwd").expect("that file"), passwd);
    // What the workers locked goes with the folder; links aren't followed.
    let unlocked = std::process::Command::new("chmod").args(["-R", "u+rwX"]).arg(&world.root).status();
    assert!(unlocked.expect("run chmod").success());
}

fn payload(dir: &Path, name: &str) -> Vec<u8> {
    fs::read(dir.join(format!("item/{name}.item"))).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn nobody_waits_for_what_a_worker_put_in_place_of_a_record_or_a_log() {
    let body = "rm $j/attempt-1.log $j/job.json; mkfifo $j/attempt-1.log $j/job.json $j/result.json; touch $j/ready; \
                while test -e $j/ready; do sleep 0.01; done";
    let world = World::with(CPU, &route("odd", body, ""));
    world.drop_file("odd.item", b"x");
    let service = world.start();
    let status = world.until("it has done so", |status| {
        let job = status["running"][0]["job"].as_str().unwrap_or_default();
        !job.is_empty() && world.root.join("claimed").join(job).join("ready").exists()
    });
    let job = status["running"][0]["job"].as_str().expect("a job").to_owned();
    world.ok(&["list"]);
    world.ok(&["show", "odd.item"]);
    world.code(&["logs", "odd.item"], 1);
    fs::remove_file(world.root.join("claimed").join(job).join("ready")).expect("let it go on");
    world.until("it has ended", |status| status["counts"]["done"] == 1);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_record_that_was_refused_doesnt_bring_an_ended_job_back() {
    // The first record after the failed attempt isn't written at once; meanwhile the item runs again and ends.
    let body = "test \"$GAMDOK_ATTEMPT\" = 2";
    let mut world = World::with(CPU, &route("twice", body, ""));
    world.set("GAMDOK_FAULT_ERR", "record.written:5:1");
    world.drop_file("twice.item", b"x");
    world.drop_file("held", b"no route takes it");
    let service = world.start();
    world.wait();
    world.until("well again", |status| {
        status["health"].as_array().expect("health").iter().all(|it| it["what"] != "spool" || it["state"] == "ok")
    });
    assert_eq!(world.outcomes(), ["twice.item done -"]);
    assert_eq!(support::names(&world.root.join("claimed")).len(), 0);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_second_signal_ends_a_director_whose_disk_refuses_everything() {
    let mut world = World::with(CPU, &route("again", "exit 1", ""));
    // Attempt 2 is never made durable.
    world.set("GAMDOK_FAULT_ERR", "record.written:5:1+");
    world.drop_file("again.item", b"x");
    let mut service = world.start();
    world.until("attempt 2 is planned", |status| {
        status["running"][0]["attempt"] == 2 && status["running"][0]["pid"].is_null()
    });
    service.signal(15);
    world.until("draining", |status| status["state"] == "draining");
    service.signal(15);
    assert_eq!(service.wait(), 130);
    assert!(!service.log().contains("panicked"), "{}", service.log());
    world.unset("GAMDOK_FAULT_ERR");
    world.once();
    assert_eq!(world.outcomes(), ["again.item failed exit"]);
}
