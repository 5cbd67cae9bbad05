//! What workers report, against the built binary: counters that are exact whatever happens, and all results as one table.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{HELPER, World, text};

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

/// Waits until so many items have ended.
fn ended(world: &World, items: usize) {
    let count = |status: &Value, what: &str| status["counts"][what].as_u64().unwrap_or(0);
    world.until("they have ended", |status| count(status, "done") + count(status, "failed") == items as u64);
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
fn an_attempt_that_died_with_its_director_is_not_counted_twice() {
    const ITEMS: usize = 60;
    let script = r#"i=0; while [ $i -lt 25 ]; do i=$((i+1)); echo '{"type":"count","name":"n","by":1}'; done >&3"#;
    let world = World::new(&oneshot("", script));
    for n in 0..ITEMS {
        world.drop_file(format!("{n:02}"), b"x");
    }
    for killed_at in [5, 20, 40] {
        let service = world.start();
        world.until("some are done", |status| status["counts"]["done"].as_u64() >= Some(killed_at));
        service.kill();
    }
    let service = world.start();
    ended(&world, ITEMS);
    let all = json!({ "n": ITEMS * 25 });
    world.until("all is counted", |status| status["counters"] == all);
    assert_eq!(service.stop(), 0);
    assert_eq!((world.results().len(), counters(&world)), (ITEMS, all));
    assert!(of_items(&world).iter().all(|line| line.ends_with(r#" {"n":25}"#)), "{:?}", of_items(&world));
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
    ended(&world, 1);
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
    ended(&world, 1);
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
    with open(sys.argv[2], "a") as counted:
        counted.write("x")
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
    let counted = world.scratch("counted");
    let command = format!("command = [\"python3\", {worker:?}, {HELPER:?}, {counted:?}]\n");
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
        // The worker itself has noted each time it had counted a hundred, before it died of it.
        let counted = fs::read(world.scratch("counted")).expect("what was counted").len();
        assert!(counted > 30, "{counted}: none has died");
        assert_eq!(counters(&world)["n"], counted * 100);
        let of_items: u64 = world.results().iter().filter_map(|(_, result)| result["counters"]["n"].as_u64()).sum();
        assert_eq!(of_items, counted as u64 * 100);
        if batch.is_empty() {
            assert_eq!((counted, &world.result("03").1["counters"]["n"]), (33, &json!(200)));
        }
    }
}

#[test]
fn what_a_resident_counts_without_an_item_is_the_next_ones() {
    let world = resident(1, "");
    let service = world.start();
    for (n, name) in ["a", "b"].iter().enumerate() {
        world.drop_file(name, b"well");
        ended(&world, n + 1);
    }
    assert_eq!(service.stop(), 0);
    assert_eq!(counters(&world), json!({ "loads": 1, "n": 200 }));
    assert_eq!(of_items(&world), [r#"a {"loads":1,"n":100}"#, r#"b {"n":100}"#]);
}

/// A route whose items say what their worker reports.
fn reporting() -> World {
    let script = r#"printf '{"type":"done","result":%s}\n' "$(cat "$GAMDOK_ITEM")" >&3"#;
    World::new(&oneshot("retries = 0", script))
}

/// Every row of the plain table, without its heads.
fn rows(world: &World, args: &[&str]) -> Vec<Vec<String>> {
    // As on a terminal of this width: the id gives way there.
    let output = world.command(&[&["results"], args].concat()).env("COLUMNS", "80").output().expect("run gamdok");
    let text = text(&output.stdout);
    text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn results_are_one_table_with_and_without_a_director_and_a_ledger() {
    let world = reporting();
    assert_eq!(world.ok(&["results"]), "nothing\n");
    assert_eq!(world.json(&["results"]), json!([]));
    assert_eq!(world.ok(&["results", "--csv"]), "id,name,route,outcome,finished_at\r\n");
    let service = world.start();
    let items = [
        ("a", r#"{"words":3,"by":"=me"}"#),
        ("b", r#"{"deep":{"x":[1]},"words":-4}"#),
        ("c", "7"),
        ("-bad\n", "this is no JSON"),
    ];
    for (n, (name, result)) in items.iter().enumerate() {
        world.drop_file(name, result.as_bytes());
        ended(&world, n + 1);
    }
    let check = |when: &str| {
        let all = world.json(&["results"]);
        let line = |row: &Value| {
            assert_eq!(row["route"], "r");
            assert!(row["finished_at"].is_string() && row["id"].as_str().is_some_and(|id| id.len() == 26), "{row}");
            format!(
                "{} {} {}",
                row["name"].as_str().unwrap_or("?"),
                row["outcome"].as_str().unwrap_or("?"),
                row["result"]
            )
        };
        let lines: Vec<String> = all.as_array().expect("an array").iter().map(line).collect();
        let expected = [
            r#"a done {"by":"=me","words":3}"#,
            r#"b done {"deep":{"x":[1]},"words":-4}"#,
            "c done 7",
            r"-bad\n failed null",
        ];
        assert_eq!(lines, expected, "{when}");
        let keys: Vec<&String> = all[0].as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["counters", "finished_at", "id", "name", "outcome", "result", "route"]);

        let csv = world.ok(&["results", "--csv"]);
        let (heads, lines) = csv.split_once("\r\n").expect("lines");
        assert_eq!(heads, "id,name,route,outcome,finished_at,words,by,deep,result");
        let tails: Vec<String> = lines
            .split_terminator("\r\n")
            .map(|line| {
                let cells: Vec<&str> = line.splitn(6, ',').collect();
                format!("{},{},{}", cells[1], cells[3], cells[5])
            })
            .collect();
        let expected = ["a,done,3,'=me,,", r#"b,done,-4,,"{""x"":[1]}","#, "c,done,,,,7", r"'-bad\n,failed,,,,"];
        assert_eq!(tails, expected, "{when}");

        let plain = rows(&world, &[]);
        let names: Vec<&str> = plain.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(names, ["a", "b", "c", r"-bad\n"], "{when}");
        assert_eq!(plain[0][4..], ["3", "=me"], "{when}");
        assert_eq!(rows(&world, &["--since", "1h", "--route", "r"]).len(), 4);
        assert_eq!(world.json(&["results", "--since", "2999-01-01"]), json!([]));
        assert_eq!(world.json(&["results", "--route", "other"]), json!([]));
    };
    check("with a director");
    service.kill();
    check("its ledger was cut off");
    assert_eq!(world.start().stop(), 0);
    check("from the ledger");
    fs::remove_file(world.root.join(".gamdok/ledger.sqlite")).expect("the ledger");
    check("from the directories");
    // The directories are the truth also where the ledger knows more.
    assert_eq!(world.start().stop(), 0);
    let (dir, _) = world.result("a");
    fs::remove_dir_all(dir).expect("removed");
    assert_eq!(world.json(&["results"]).as_array().map(Vec::len), Some(3));
    let (dir, _) = world.result("b");
    fs::write(dir.join("result.json"), b"{").expect("torn");
    fs::remove_file(world.root.join(".gamdok/ledger.sqlite")).expect("the ledger");
    let torn = |world: &World| world.json(&["results"])[0].clone();
    let told = torn(&world);
    assert_eq!((&told["name"], &told["finished_at"], &told["result"]), (&json!("b"), &Value::Null, &Value::Null));
    assert_eq!(world.start().stop(), 0);
    assert_eq!(torn(&world), told, "from the ledger");

    let wrong = world.code(&["results", "--since", "yesterday"], 2);
    assert!(support::text(&wrong.stderr).contains("2026-11-22"), "{}", support::text(&wrong.stderr));
    world.code(&["results", "--csv", "--json"], 2);
    world.code(&["results", "--root", "/nonexistent"], 5);
}

/// More rows than a page of the ledger holds, each once and in order.
#[test]
fn thousands_of_results_pass_by_in_order() {
    const ITEMS: usize = 3000;
    let world = reporting();
    let day = world.root.join("done/2026-11-22");
    for n in 0..ITEMS {
        let id = ulid::Ulid::from_parts(1_764_000_000_000, ((n * 7919) % ITEMS) as u128);
        let job = day.join(format!("{n}~{id}"));
        fs::create_dir_all(&job).expect("a job");
        // Three at a time end in the same moment.
        let result = json!({
            "id": id.to_string(), "name": n.to_string(), "name_b64": "eA==", "route": "r", "outcome": "done",
            "reason": null, "message": null, "arrived_at": null, "claimed_at": null,
            "finished_at": format!("2026-11-22T10:{:02}:{:02}Z", n / 180, n / 3 % 60),
            "attempts": [], "outputs": [], "result": { "n": n }, "counters": { "n": 1 },
        });
        fs::write(job.join("result.json"), result.to_string()).expect("a result");
    }
    let read = || -> Vec<(String, String, u64)> {
        let all = world.json(&["results"]);
        let row = |row: &Value| {
            let text = |key: &str| row[key].as_str().expect("a text").to_owned();
            (text("finished_at"), text("id"), row["result"]["n"].as_u64().expect("a number"))
        };
        all.as_array().expect("an array").iter().map(row).collect()
    };
    let told = read();
    assert!(told.is_sorted() && told.len() == ITEMS);
    let service = world.start();
    world.until("all are read", |status| status["counters"]["n"] == ITEMS);
    assert_eq!(read(), told, "with a director");
    assert_eq!(service.stop(), 0);
    assert_eq!(read(), told, "from the ledger");
    assert_eq!(world.ok(&["results", "--csv"]).matches("\r\n").count(), ITEMS + 1);
    assert_eq!(rows(&world, &[]).len(), ITEMS);
    assert_eq!(world.json(&["results", "--since", "2026-11-22T10:10"]).as_array().map(Vec::len), Some(ITEMS - 1800));
}
