//! What workers report, against the built binary: counters that are exact whatever happens, and all results as one table.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::World;

const HELPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python");

fn oneshot(more: &str, script: &str) -> String {
    let script = script.replace('{', "{{").replace('}', "}}");
    format!("[[route]]\nname = \"r\"\n{more}\ncommand = [\"sh\", \"-euc\", '''{script}''']\n")
}

fn counters(world: &World) -> Value {
    world.status()["counters"].clone()
}

/// The counters of each result.json, by the item's name.
fn of_items(world: &World) -> Vec<String> {
    let line = |(_, result): &(_, Value)| format!("{} {}", result["name"].as_str().unwrap_or("?"), result["counters"]);
    let mut lines: Vec<String> = world.results().iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn counters_of_all_workers_are_summed_exactly_and_kept() {
    const ITEMS: usize = 40;
    let script = r#"i=0; while [ $i -lt 25 ]; do i=$((i+1)); echo '{"type":"count","name":"n","by":1}
{"type":"count","name":"half","by":0.5}'; done >&3"#;
    let world = World::new(&oneshot("", script));
    // Whole sums are printed as whole numbers.
    let all = json!({ "n": ITEMS * 25, "half": ITEMS * 25 / 2 });
    assert_eq!(counters(&world), json!({}));
    for n in 0..ITEMS {
        world.drop_file(format!("{n:02}"), b"x");
    }
    let service = world.start();
    let mut most = 0;
    world.until("everything is done", |status| {
        let n = status["counters"]["n"].as_u64().unwrap_or(0);
        assert!(most <= n && n <= ITEMS as u64 * 25, "{most} then {n}");
        most = n;
        status["counts"]["done"] == ITEMS
    });
    assert_eq!(counters(&world), all);
    let text = world.ok(&["status"]);
    assert!(text.lines().any(|line| line.split_whitespace().eq(["n", "1000"])), "{text}");
    assert!(of_items(&world).iter().all(|line| line.ends_with(r#" {"half":12.5,"n":25}"#)), "{:?}", of_items(&world));

    service.kill();
    assert_eq!(counters(&world), all, "from the directories: the ledger was cut off");
    let service = world.start();
    world.until("they are read", |status| status["counters"] == all);
    assert_eq!(service.stop(), 0);
    assert_eq!(counters(&world), all, "from the ledger");
    fs::remove_file(world.root.join(".gamdok/ledger.sqlite")).expect("the ledger");
    assert_eq!(counters(&world), all, "without a ledger");
    let service = world.start();
    world.until("they are read anew", |status| status["counters"] == all);
    assert_eq!(service.stop(), 0);
    // Old files know no counters.
    let (dir, mut result) = world.result("00");
    result.as_object_mut().expect("an object").remove("counters");
    fs::write(dir.join("result.json"), result.to_string()).expect("as it was of old");
    fs::remove_file(world.root.join(".gamdok/ledger.sqlite")).expect("the ledger");
    assert_eq!(counters(&world)["n"], ITEMS * 25 - 25);
    assert_eq!(world.json(&["show", "00"])["state"], "done");
}

#[test]
fn what_failed_attempts_counted_counts_also_over_a_kill_and_a_retry_by_hand() {
    // Attempt 1 fails after it counted; the next one waits for its time when the director is killed.
    let script = r#"echo '{"type":"count","name":"tries","by":1}' >&3
[ $GAMDOK_ATTEMPT -gt 2 ]"#;
    let world = World::new(&oneshot("retries = 1\nbackoff = \"3s\"", script));
    world.drop_file("a", b"x");
    let service = world.start();
    world.until("attempt 1 has failed", |status| status["counts"]["retrying"] == 1);
    assert_eq!(counters(&world), json!({ "tries": 1 }));
    // The spool writes it down while it waits.
    let job = support::subdirs(&world.root.join("claimed")).remove(0);
    world.until("it is written down", |_| {
        let record: Value = serde_json::from_slice(&fs::read(job.join("job.json")).expect("a record")).expect("JSON");
        record["counters"]["tries"] == 1
    });
    service.kill();
    assert_eq!(counters(&world), json!({ "tries": 1 }));
    let service = world.start();
    assert_eq!(counters(&world), json!({ "tries": 1 }));
    world.wait();
    assert_eq!((of_items(&world), counters(&world)), (vec![r#"a {"tries":2}"#.to_owned()], json!({ "tries": 2 })));
    world.ok(&["retry", "a"]);
    world.until("it is done", |status| {
        let tries = status["counters"]["tries"].as_u64();
        assert!(matches!(tries, Some(2 | 3)), "{tries:?}");
        status["counts"]["done"] == 1
    });
    assert_eq!((of_items(&world), counters(&world)), (vec![r#"a {"tries":3}"#.to_owned()], json!({ "tries": 3 })));
    assert_eq!(service.stop(), 0);
    assert_eq!(counters(&world), json!({ "tries": 3 }));
}

#[test]
fn counters_are_shown_while_their_item_runs() {
    let script = r#"echo '{"type":"count","name":"pages","by":7}' >&3; until [ -e gate ]; do sleep 0.02; done"#;
    let world = World::new(&oneshot("", script));
    world.drop_file("a", b"x");
    let service = world.start();
    let status = world.until("it has counted", |status| status["counters"]["pages"] == 7);
    assert_eq!((&status["counts"]["running"], &status["counts"]["done"]), (&json!(1), &json!(0)));
    fs::write(world.root.join("gate"), b"").expect("the gate");
    world.wait();
    assert_eq!(counters(&world), json!({ "pages": 7 }));
    assert_eq!(service.stop(), 0);
}

/// A resident that counts while it loads and over its items, and dies of some.
const COUNTER: &str = r#"
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from gamdok_worker import serve

def handle(item):
    for _ in range(100):
        item.count("n")
    if item.path.read_text() == "dies" and item.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"n": 100}

os.write(int(os.environ["GAMDOK_FD"]), b'{"type":"count","name":"loads","by":1}\n')
serve(handle)
"#;

fn resident(slots: usize, more: &str) -> World {
    let world = World::new("");
    let worker = world.scratch("worker.py");
    fs::write(&worker, COUNTER).expect("the worker");
    let command = format!("command = [\"python3\", {worker:?}, {HELPER:?}]\n");
    let route = format!("[[route]]\nname = \"r\"\nmode = \"resident\"\nbackoff = \"10ms\"\n{more}\n{command}");
    world.configure(&format!("[devices]\nuse = \"cpu\"\ncpu_slots = {slots}\n"), &route);
    world
}

#[test]
fn what_a_resident_counted_before_its_death_counts() {
    for batch in ["", "batch = { max_items = 4 }"] {
        let world = resident(2, batch);
        for n in 0..30 {
            world.drop_file(format!("{n:02}"), if n % 10 == 3 { b"dies" } else { b"well" });
        }
        assert!(world.once().status.success());
        assert_eq!(world.results().len(), 30);
        // Each of the attempts that began counted 100, the three that died too.
        let sum = counters(&world)["n"].as_u64().expect("a sum");
        let of_items: u64 = world.results().iter().filter_map(|(_, result)| result["counters"]["n"].as_u64()).sum();
        assert_eq!(sum, of_items);
        if batch.is_empty() {
            let (_, died) = world.result("03");
            assert_eq!((sum, &died["counters"]["n"]), (3300, &json!(200)));
        } else {
            assert_eq!((sum >= 3300, sum % 100), (true, 0), "{sum}");
        }
    }
}

#[test]
fn what_a_resident_counts_without_an_item_is_the_next_ones() {
    let world = resident(1, "");
    world.drop_file("a", b"well");
    let service = world.start();
    world.wait();
    world.drop_file("b", b"well");
    world.wait();
    assert_eq!(service.stop(), 0);
    assert_eq!(counters(&world), json!({ "loads": 1, "n": 200 }));
    assert_eq!(of_items(&world), [r#"a {"loads":1,"n":100}"#, r#"b {"n":100}"#]);
}
