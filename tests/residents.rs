//! Resident workers against the built binary: one process for many items, batches, and every way in which a worker can
//! let its items down. The workers are Python, with the helper that people are given or bare on fd 3.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{HELPER, World};

/// What each item says decides what becomes of it.
const BARE: &str = r#"
def take(items):
    texts = [open(os.fsencode(item["item"])).read() for item in items]
    if "crash" in texts: os.kill(os.getpid(), 11)
    for what, id in zip(texts, [item["id"] for item in items]):
        if did(what, id): pass
        elif what == "long": channel.write(b"x" * (2 << 20) + b"\n")
        elif what == "hang":
            open(at + "/pid.new", "w").write(str(os.getpid())); os.rename(at + "/pid.new", at + "/pid")
            time.sleep(600)
        elif what == "oom": say(type="failed", id=id, error="CUDA out of memory. Tried to allocate 2 GiB")
        elif what == "print":
            print("to stdout", flush=True); print("to stderr", file=sys.stderr, flush=True); say(type="done", id=id)
        elif what == "twice": say(type="done", id=id, result=1); say(type="done", id=id, result=2)
        elif what == "reads on":
            import select; select.select([channel], [], [], 5)
            channel.read(65536); say(type="done", id=id); sys.exit(0)
        else: say(type="done", id=id, result={"pid": os.getpid(), "batch": len(items)})
"#;

fn bare(extra: &str, slots: usize) -> World {
    let settings = format!("[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = {slots}\n");
    let world = World::with(&settings, "");
    fs::write(world.scratch("worker.py"), support::bare_worker(BARE)).expect("write the worker");
    let route = format!(
        "[[route]]\nname = \"r\"\nmode = \"resident\"\ngpus = 0\nretries = 1\nbackoff = \"10ms\"\nkill_grace = \"200ms\"\n\
         command = [\"python3\", {:?}]\nenv = {{ AT = {:?} }}\n{extra}\n",
        world.scratch("worker.py"),
        world.dir.path()
    );
    world.configure(&settings, &route);
    world
}

/// The processes that were started.
fn processes(world: &World) -> usize {
    support::processes(world).len()
}

fn pids(world: &World) -> BTreeSet<i64> {
    world.results().iter().filter_map(|(_, result)| result["result"]["pid"].as_i64()).collect()
}

fn log(dir: &Path, attempt: u32) -> String {
    fs::read_to_string(dir.join(format!("attempt-{attempt}.log"))).unwrap_or_default()
}

#[test]
fn one_process_takes_many_items_and_is_told_to_stop_at_the_end() {
    let world = bare("", 1);
    for n in 0..40 {
        world.drop_file(format!("item-{n}"), b"fine");
    }
    for name in support::hostile_names() {
        world.drop_file(name, b"fine");
    }
    world.once();
    world.assert_empty();
    let results = world.results();
    assert_eq!(results.len(), 40 + support::hostile_names().len());
    assert!(results.iter().all(|(_, result)| result["outcome"] == "done"), "{:?}", world.outcomes());
    assert_eq!((processes(&world), pids(&world).len()), (1, 1));
    assert_eq!(support::names(&world.root.join(".gamdok/residents")).len(), 0, "nothing of it is left");
}

/// What an item says, how it ends, and what its message holds; between two that must not suffer.
#[test]
fn whatever_a_worker_does_its_item_gets_a_reason_and_no_other_suffers() {
    let check = |what: &str, outcome: &str, message: &str| {
        let world = bare("timeout = \"1s\"", 1);
        world.drop_file("a", b"fine");
        world.drop_file("b", what.as_bytes());
        world.drop_file("c", b"fine");
        world.drop_file("d", b"fine");
        world.once();
        world.assert_empty();
        let expected: Vec<String> =
            vec!["a done -".into(), format!("b {outcome}"), "c done -".into(), "d done -".into()];
        assert_eq!(world.outcomes(), expected, "{what}");
        eprintln!("{what}");
        let (_, result) = world.result("b");
        let found = result["message"].as_str().unwrap_or("-");
        assert!(found.contains(message), "{what}: {found}");
        for other in ["a", "c", "d"] {
            let (_, result) = world.result(other);
            let attempts = result["attempts"].as_array().expect("attempts");
            assert!(attempts.iter().all(|it| it["reason"].is_null()), "{what}: {other} was blamed: {attempts:?}");
        }
    };
    check("nonsense", "failed protocol", "not a JSON object: `hello`");
    check("long", "failed protocol", "a line of more than 1048576 bytes");
    check("stranger", "failed protocol", "which it wasn't given");
    check("crash", "failed signal", "signal 11 (SIGSEGV)");
    check("leave", "failed protocol", "without an answer");
    check("hang", "failed timeout", "over its time of 1s");
    check("fail", "failed reported", "cannot do that");
    check("refuse", "failed reported", "not a word");
    check("oom", "failed out-of-memory", "out of memory");
    check("print", "done -", "-");
    check("unknown", "done -", "-");
    check("twice", "done -", "-");
    check("last", "done -", "-");
    // With the next message read already.
    check("reads on", "done -", "-");
}

#[test]
fn what_is_printed_over_an_item_is_that_items_log() {
    let world = bare("", 1);
    world.drop_file("quiet", b"fine");
    world.drop_file("loud", b"print");
    world.once();
    let (dir, _) = world.result("loud");
    assert_eq!(log(&dir, 1), "to stdout\nto stderr\n");
    let (dir, _) = world.result("quiet");
    assert!(!dir.join("attempt-1.log").exists(), "nothing is made for nothing");
}

#[test]
fn a_failure_replaces_the_worker_unless_it_says_that_the_item_is_bad_for_good() {
    let check = |what: &str, same: bool| {
        let world = bare("", 1);
        world.drop_file("a", b"fine");
        world.drop_file("b", what.as_bytes());
        world.drop_file("c", b"fine");
        world.once();
        let pid = |name: &str| world.result(name).1["result"]["pid"].as_i64().expect("its process");
        assert_eq!(pid("a") == pid("c"), same, "{what}");
    };
    check("refuse", true);
    check("fail", false);
}

#[test]
fn a_worker_that_never_gets_ready_fails_the_item_it_was_started_for() {
    let check = |sign: &str, within: &str, outcome: &str, message: &str| {
        let world = bare(&format!("resident = {{ ready_timeout = \"{within}\" }}"), 1);
        fs::write(world.scratch(sign), "").expect("a sign for the worker");
        world.drop_file("a", b"fine");
        world.once();
        assert_eq!(world.outcomes(), [format!("a {outcome}")]);
        let (_, result) = world.result("a");
        assert!(result["message"].as_str().expect("a message").contains(message), "{result}");
        assert_eq!(result["attempts"].as_array().map(Vec::len), Some(2), "{result}");
        assert!(result["attempts"][0]["pid"].as_i64().is_some(), "{result}");
    };
    check("never", "300ms", "failed timeout", "not ready within 300ms");
    check("exits", "1m", "failed exit", "exit code 3");
    let world = bare("", 1);
    let text = fs::read_to_string(world.root.join("gamdok.toml")).expect("read");
    fs::write(world.root.join("gamdok.toml"), text.replace("\"python3\"", "\"no-such-program\"")).expect("write");
    world.drop_file("a", b"fine");
    world.once();
    assert_eq!(world.outcomes(), ["a failed spawn"]);
}

#[test]
fn a_batch_is_handed_over_as_one_message_and_halved_until_the_poison_stands_alone() {
    let world = bare("batch = { max_items = 16, max_wait = \"60s\" }", 1);
    for n in 0..15 {
        world.drop_file(format!("item-{n:02}"), b"fine");
    }
    world.drop_file("item-07b", b"crash");
    world.once();
    world.assert_empty();
    let failed: Vec<String> = world.outcomes().into_iter().filter(|line| !line.contains(" done ")).collect();
    assert_eq!(failed, ["item-07b failed signal"]);
    for (_, result) in world.results().iter().filter(|(_, result)| result["outcome"] == "done") {
        let attempts = result["attempts"].as_array().expect("attempts");
        assert!(attempts.iter().all(|it| it["reason"].is_null()), "an innocent item was blamed: {result}");
    }
}

#[test]
fn a_full_batch_goes_at_once_and_a_short_one_when_its_time_is_over() {
    let world = bare("batch = { max_items = 4, max_wait = \"400ms\" }", 1);
    for n in 0..6 {
        world.drop_file(format!("item-{n}"), b"fine");
    }
    world.once();
    let sizes = |(_, result): &(std::path::PathBuf, Value)| result["result"]["batch"].as_i64().expect("a size");
    let mut found: Vec<i64> = world.results().iter().map(sizes).collect();
    found.sort_unstable();
    assert_eq!(found, [2, 2, 4, 4, 4, 4]);
}

#[test]
fn a_worker_is_replaced_after_max_items_and_gone_after_its_idle_timeout() {
    let world = bare("resident = { max_items = 3 }", 1);
    for n in 0..7 {
        world.drop_file(format!("item-{n}"), b"fine");
    }
    world.once();
    assert_eq!((processes(&world), pids(&world).len()), (3, 3));

    let world = bare("resident = { idle_timeout = \"200ms\" }", 1);
    let service = world.start();
    world.drop_file("a", b"fine");
    world.wait();
    let idle = world.until("it is idle", |status| status["residents"][0]["state"] != "busy");
    assert_eq!(idle["devices"][0]["leases"].as_array().map(Vec::len), Some(0), "{idle}");
    let gone = world.until("it is gone", |status| status["residents"].as_array().is_some_and(Vec::is_empty));
    assert_eq!(gone["counters"], serde_json::json!({"stops": 1}), "no item's, and not lost");
    world.drop_file("b", b"fine");
    world.wait();
    assert_eq!(processes(&world), 2);
    assert_eq!(service.stop(), 0);
}

#[test]
fn another_routes_item_gets_the_slot_of_a_worker_that_has_nothing_to_do() {
    let world = bare("match = [\"r-*\"]", 1);
    let text = fs::read_to_string(world.root.join("gamdok.toml")).expect("read");
    let other = "[[route]]\nname = \"other\"\ngpus = 0\ncommand = [\"true\"]\n";
    fs::write(world.root.join("gamdok.toml"), format!("{text}{other}")).expect("write");
    let service = world.start();
    for n in 0..3 {
        world.drop_file(format!("r-{n}"), b"fine");
        world.wait();
        world.drop_file(format!("o-{n}"), b"");
        world.wait();
    }
    assert_eq!(world.results().len(), 6);
    assert!(world.results().iter().all(|(_, result)| result["outcome"] == "done"));
    assert_eq!(processes(&world), 3, "each made room for the other route's");
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_cancelled_item_ends_and_the_next_one_gets_a_new_worker() {
    let world = bare("", 1);
    world.drop_file("a", b"hang");
    support::cancel_at_work(&world, "a");
    let service = world.start();
    world.drop_file("b", b"hang");
    world.until("it runs", |status| status["running"].as_array().is_some_and(|running| !running.is_empty()));
    world.drop_file("c", b"fine");
    world.ok(&["cancel", "b"]);
    world.wait();
    assert_eq!(world.outcomes(), ["a cancelled cancelled", "b cancelled cancelled", "c done -"]);
    assert_eq!((processes(&world), service.stop()), (3, 0));
}

#[test]
fn a_second_signal_ends_the_workers_and_their_items_run_again() {
    let world = bare("", 1);
    let mut service = world.start();
    world.drop_file("a", b"hang");
    world.until("it runs", |status| status["running"].as_array().is_some_and(|running| !running.is_empty()));
    service.signal(15);
    world.until("it drains", |status| status["state"] == "draining");
    service.signal(15);
    assert_eq!(service.wait(), 130);
    let claimed = support::subdirs(&world.root.join("claimed"));
    assert_eq!(claimed.len(), 1);
    fs::write(claimed[0].join("item/a"), b"fine").expect("let it succeed");
    world.once();
    assert_eq!(world.outcomes(), ["a done -"]);
}

#[test]
fn a_killed_director_leaves_no_worker_and_each_item_has_one_outcome() {
    let world = bare("", 2);
    world.drop_file("hangs", b"hang");
    let service = world.start();
    world.until("it runs", |status| status["running"].as_array().is_some_and(|running| !running.is_empty()));
    for n in 0..50 {
        world.drop_file(format!("item-{n:02}"), b"fine");
    }
    world.until("some are done", |status| status["counts"]["done"].as_u64() > Some(5));
    service.kill();
    let old = fs::read_to_string(world.scratch("processes")).expect("the processes");
    let lives = |pid: &str| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&cmdline).contains("worker.py")
    };
    assert!(old.lines().any(lives), "the one that hangs outlives its director");
    let job = support::subdirs(&world.root.join("claimed")).into_iter().find(|job| job.join("item/hangs").exists());
    fs::write(job.expect("it was claimed").join("item/hangs"), b"fine").expect("let it succeed");
    // Its attempt had begun, so the item is the worker's since then: it runs as it is now.
    world.once();
    world.assert_empty();
    assert_eq!(world.results().len(), 51);
    assert!(!old.lines().any(lives), "an old worker lives");
    assert_eq!(support::names(&world.root.join(".gamdok/residents")).len(), 0);
    assert!(world.results().iter().all(|(_, result)| result["outcome"] == "done"), "{:?}", world.outcomes());
    assert_eq!(world.result("hangs").1["attempts"].as_array().map(Vec::len), Some(2), "the one that was cut is told");
}

/// The helper that people are given.
#[test]
fn the_python_helper_serves_items_and_batches() {
    let script =
        |body: &str| format!("import sys\nsys.path.insert(0, {HELPER:?})\nfrom gamdok_worker import *\n{body}");
    let world = World::with("[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 1\n", "");
    let one = script(
        "def handle(item):\n    text = item.path.read_text()\n    if text == 'bad': raise Refused('not a text')\n    \
         if text == 'fail': raise ValueError('no')\n    item.progress(0.5, 'half')\n    item.count('letters', len(text))\n    \
         print('seen', item.name)\n    (item.out / 'copy').write_text(text)\n    return {'letters': len(text)}\nserve(handle)\n",
    );
    let many = script(
        "serve_batches(lambda items: [ValueError('odd') if 'odd' in it.name else len(items) for it in items])\n",
    );
    fs::write(world.scratch("one.py"), one).expect("write");
    fs::write(world.scratch("many.py"), many).expect("write");
    let common = "mode = \"resident\"\ngpus = 0\nretries = 0\n";
    let routes = format!(
        "[[route]]\nname = \"one\"\nmatch = [\"one*\"]\noutputs = [\"copy\"]\n{common}command = [\"python3\", {:?}]\n\
         [[route]]\nname = \"many\"\nbatch = {{ max_items = 4, max_wait = \"60s\" }}\n{common}command = [\"python3\", {:?}]\n",
        world.scratch("one.py"),
        world.scratch("many.py")
    );
    world.configure("[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 1\n", &routes);
    for (name, text) in [("one-a", "abc"), ("one-b", "bad"), ("one-c", "fail"), ("one-d", "abcd")] {
        world.drop_file(name, text.as_bytes());
    }
    for name in ["m1", "m2", "odd", "m3"] {
        world.drop_file(name, b"");
    }
    world.once();
    let expected = [
        "m1 done -",
        "m2 done -",
        "m3 done -",
        "odd failed reported",
        "one-a done -",
        "one-b failed reported",
        "one-c failed reported",
        "one-d done -",
    ];
    assert_eq!(world.outcomes(), expected);
    let (dir, result) = world.result("one-d");
    assert_eq!((result["result"]["letters"].as_i64(), log(&dir, 1).as_str()), (Some(4), "seen one-d\n"));
    assert_eq!(world.result("m1").1["result"], 4);
    let (dir, result) = world.result("one-c");
    assert_eq!(result["message"], "ValueError: no");
    assert!(log(&dir, 1).contains("Traceback"), "{}", log(&dir, 1));
}

#[test]
fn the_helper_is_written_out_and_nothing_is_overwritten() {
    let world = World::new("");
    let dir = world.scratch("side");
    let dir = dir.to_str().expect("a plain path");
    world.ok(&["init", "--python", dir]);
    let file = Path::new(dir).join("gamdok_worker.py");
    assert_eq!(
        fs::read(&file).expect("written"),
        fs::read(format!("{HELPER}/gamdok_worker.py")).expect("the original")
    );
    assert!(world.ok(&["init", "--python", dir]).starts_with("nothing to do"));
    fs::write(&file, "# mine\n").expect("write");
    let output = world.code(&["init", "--python", dir], 1);
    assert!(support::text(&output.stderr).contains("another version"), "{}", support::text(&output.stderr));
    assert_eq!(fs::read(&file).expect("still there"), b"# mine\n");
}

/// The examples with a real model. They need scikit-learn, which a machine that only builds gamdok may lack.
#[test]
fn the_examples_with_a_model_say_what_is_right() {
    let found = std::process::Command::new("python3").args(["-c", "import sklearn"]).output().expect("python3");
    if !found.status.success() {
        assert!(std::env::var_os("CI").is_none(), "CI has scikit-learn: {}", support::text(&found.stderr));
        eprintln!("skipped: python3 has no scikit-learn here");
        return;
    }
    let world = World::new("");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/resident");
    for folder in ["digits", "topics"] {
        for name in support::names(&examples.join(folder)) {
            world.drop_file(&name, &fs::read(examples.join(folder).join(&name)).expect("an example's item"));
        }
    }
    world.drop_file("broken.pgm", b"P2 8 8 16 1 2 3");
    world.drop_file("nothing.txt", b"qwertz");
    let config = examples.join("gamdok.toml");
    world.code(&["run", "--once", "--config", config.to_str().expect("a plain path")], 1);
    let expected = [
        "3.pgm done -",
        "5.pgm done -",
        "8.pgm done -",
        "broken.pgm failed reported",
        "cellar.txt done -",
        "clinic.txt done -",
        "flowers.txt done -",
        "nothing.txt failed reported",
    ];
    assert_eq!(world.outcomes(), expected);
    for digit in [3, 5, 8] {
        assert_eq!(world.result(&format!("{digit}.pgm")).1["result"]["digit"], digit);
    }
    for (name, topic) in [("cellar.txt", "wine"), ("clinic.txt", "cancer"), ("flowers.txt", "iris")] {
        assert_eq!(world.result(name).1["result"]["topic"], topic);
    }
}
