//! Big line files against the built binary: a process for each batch, the parts in order in `out/`, and what a kill, a
//! failing batch or an odd file makes of it.

mod support;

use std::fs;
use std::io::Read as _;
use std::path::Path;

use support::World;

/// A root with CPU slots and one route whose command is this script, run once for each batch.
fn world(slots: usize, split: &str, script: &str, extra: &str) -> World {
    let settings = format!("[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = {slots}\n");
    let world = World::with(&settings, "");
    configure(&world, &settings, split, script, extra);
    world
}

fn configure(world: &World, settings: &str, split: &str, script: &str, extra: &str) {
    let script = support::script(world.dir.path(), "batch.sh", script);
    let route = format!(
        "[[route]]\nname = \"r\"\ngpus = 0\nretries = 1\nbackoff = \"10ms\"\nkill_grace = \"200ms\"\n\
         command = [\"sh\", {script:?}]\nsplit = {{ {split} }}\nenv = {{ AT = {:?} }}\n{extra}\n",
        world.dir.path()
    );
    world.configure(settings, &route);
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).expect("gzip");
    plain
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut packed).expect("gzip");
    packed
}

fn output(dir: &Path, name: &str) -> Vec<u8> {
    assert_eq!(support::names(&dir.join("out")), [name], "one output, and nothing beside it");
    assert!(!dir.join("split").exists(), "what it grew from is gone");
    fs::read(dir.join("out").join(name)).expect("the output")
}

fn lines(world: &World, name: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        fs::read_to_string(world.scratch(name)).unwrap_or_default().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn numbered(count: usize) -> String {
    (1..=count).map(|n| format!("line {n}\n")).collect()
}

#[test]
fn whatever_is_in_a_file_comes_out_in_order() {
    let megabytes = [vec![b'm'; 3 << 20], b"\nshort\n".to_vec(), vec![b'n'; 2 << 20]].concat();
    let odd: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\n".to_vec(),
        b"no newline at its end".to_vec(),
        b"one\r\ntwo\r\n\r\n".to_vec(),
        b"\xff\xfe\n\xc3\x28\n\0\0\n".to_vec(),
        numbered(1000).into_bytes(),
        megabytes,
    ];
    for compress in [false, true] {
        let split = if compress { "lines = 7, compress = \"gzip\"" } else { "lines = 7" };
        let world = world(2, split, "exec cat\n", "");
        for (n, content) in odd.iter().enumerate() {
            world.drop_file(format!("{n}.txt"), content);
            world.drop_file(format!("{n}.packed.gz"), &gzip(content));
        }
        world.once();
        world.assert_empty();
        for (n, content) in odd.iter().enumerate() {
            for (item, plain) in
                [(format!("{n}.txt"), format!("{n}.txt")), (format!("{n}.packed.gz"), format!("{n}.packed"))]
            {
                let (dir, result) = world.result(&item);
                assert_eq!(result["outcome"], "done", "{result:#}");
                let found = if compress { gunzip(&output(&dir, &format!("{plain}.gz"))) } else { output(&dir, &plain) };
                assert!(found == *content, "{item}: {} bytes instead of {}", found.len(), content.len());
                let whole = content.split_inclusive(|byte| *byte == b'\n').count();
                assert_eq!(result["result"]["lines"], whole, "{result:#}");
                assert_eq!(result["attempts"][0]["pid"], serde_json::Value::Null);
            }
        }
    }
}

#[test]
fn a_batch_is_told_of_its_item_and_what_it_prints_stands_for_it() {
    let script = "test \"${GAMDOK_FD-none}\" = none\ncmp -s \"$GAMDOK_ITEM\" \"$1\"\necho \"$2 $GAMDOK_ROUTE $GAMDOK_DEVICE\" >&2\n\
                  tr a-z A-Z\necho hello >&3\n";
    let world = world(1, "lines = 2", script, "");
    let command = format!(
        "[[route]]\nname = \"r\"\ngpus = 0\ncommand = [\"sh\", {:?}, \"{{item}}\", \"{{name}}\"]\nsplit = {{ lines = 2 }}\noutputs = [\"*.txt\"]\n",
        world.scratch("batch.sh")
    );
    world.configure("[devices]\nuse = \"cpu\"\ncpu_slots = 1\n", &command);
    world.drop_file("a.txt", b"one\ntwo\nthree\n");
    world.once();
    let (dir, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert_eq!(output(&dir, "a.txt"), b"ONE\nTWO\nTHREE\n");
    assert_eq!(fs::read_to_string(dir.join("attempt-1.log")).expect("the log"), "a.txt r cpu\na.txt r cpu\n");
    assert_eq!((&result["result"]["batches"], &result["result"]["input_bytes"]), (&2.into(), &14.into()));
}

#[test]
fn a_batch_that_fails_is_tried_again_alone_and_then_fails_the_item_with_its_words() {
    let script = "text=$(cat)\necho \"$text\" >> \"$AT/seen\"\ncase $text in *bad*) echo \"no such word\" >&2; exit 3;; esac\necho \"$text\"\n";
    let world = world(1, "lines = 1", script, "");
    world.drop_file("a.txt", b"one\ntwo\nbad\nfour\n");
    world.once();
    world.assert_empty();
    let (dir, result) = world.result("a.txt");
    assert_eq!((&result["outcome"], &result["reason"]), (&"failed".into(), &"exit".into()), "{result:#}");
    let message = result["message"].as_str().expect("a message");
    assert_eq!(message, "batch 2 (lines 3-3): exit code 3: no such word (tried 2 times)");
    assert_eq!(result["attempts"].as_array().expect("attempts").len(), 1, "{result:#}");
    assert_eq!(lines(&world, "seen").iter().filter(|line| *line == "bad").count(), 2);
    assert!(dir.join("out").read_dir().expect("out").next().is_none(), "half of an output is none");

    // What was merged stays: a retry by hand goes on behind it.
    fs::write(world.scratch("batch.sh"), script.replace("exit 3", "exit 0")).expect("put the script right");
    fs::remove_file(world.scratch("seen")).expect("count again");
    let mut service = world.start();
    world.ok(&["retry", "a.txt"]);
    world.wait();
    service.signal(15);
    service.wait();
    let (dir, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert_eq!(output(&dir, "a.txt"), b"one\ntwo\nfour\n");
    let seen = lines(&world, "seen");
    assert!(!seen.contains(&"one".to_owned()) && !seen.contains(&"two".to_owned()), "{seen:?}");
}

#[test]
fn what_cannot_be_cut_or_run_is_said_clearly() {
    let check = |name: &str, content: &[u8], command: &str, reason: &str, words: &str| {
        let world = world(1, "lines = 2", "exec cat\n", "retries = 0");
        let text = fs::read_to_string(world.root.join("gamdok.toml")).expect("the configuration");
        let text = text.replace("retries = 1\n", "");
        let text = if command.is_empty() { text } else { text.replace("command = [\"sh\"", command) };
        world.configure("", &text);
        world.drop_file(name, content);
        world.once();
        world.assert_empty();
        let (_, result) = world.result(name);
        assert_eq!((&result["outcome"], &result["reason"]), (&"failed".into(), &reason.into()), "{result:#}");
        let message = result["message"].as_str().expect("a message");
        assert!(message.contains(words), "{message}");
    };
    let packed = gzip(numbered(1000).as_bytes());
    check("cut.gz", &packed[..packed.len() / 2], "", "invalid", "cannot read");
    check("a.txt", b"x\n", "command = [\"no-such-program\"", "spawn", "no-such-program");
    check("a.txt", b"x\n", "command = [\"sh\", \"-c\", \"exit 65\"", "exit", "batch 0 (lines 1-1): exit code 65");
    check("a.txt", b"x\n", "command = [\"sh\", \"-c\", \"kill -9 $$\"", "exit", "ended by signal 9");
    check("0.txt", b"", "outputs = [\"b.txt\"]\ncommand = [\"sh\"", "missing-output", "b.txt");
    check("a.txt", b"x\n", "outputs = [\"b.txt\"]\ncommand = [\"sh\"", "missing-output", "b.txt");
    check(
        "a.txt",
        b"x\n",
        "timeout = \"300ms\"\ncommand = [\"sh\", \"-c\", \"sleep 600\"",
        "timeout",
        "over its time of 300ms",
    );
}

/// What each batch says is written down; `here` waits until the test lets it go on.
const WAITS: &str = "text=$(cat)\necho \"$text\" >> \"$AT/seen\"\n\
    case $text in here) if test ! -e \"$AT/go\"; then echo $$ > \"$AT/pid.new\"; mv \"$AT/pid.new\" \"$AT/pid\"; exec sleep 600; fi;; esac\n\
    echo \"$text\"\n";

#[test]
fn after_a_kill_no_finished_batch_is_repeated() {
    let world = world(1, "lines = 1, compress = \"gzip\"", WAITS, "");
    world.drop_file("a.txt", b"one\ntwo\nthree\nhere\nfive\n");
    let service = world.start();
    world.until("the fourth batch runs", |status| {
        let message = &status["running"][0]["progress"]["message"];
        *message == "3 lines in 3 batches" && world.scratch("pid").exists()
    });
    service.kill();
    fs::write(world.scratch("go"), "").expect("let it go on");
    world.once();
    world.assert_empty();
    let (dir, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert_eq!(gunzip(&output(&dir, "a.txt.gz")), b"one\ntwo\nthree\nhere\nfive\n");
    assert_eq!(lines(&world, "seen"), ["five", "here", "here", "one", "three", "two"]);
    let attempts = result["attempts"].as_array().expect("attempts");
    assert_eq!((attempts.len(), &attempts[0]["counted"]), (2, &false.into()), "{result:#}");
    assert!(is_gone(&world), "the batch that outlived the director was ended first");
}

fn is_gone(world: &World) -> bool {
    let pid: i32 = fs::read_to_string(world.scratch("pid")).expect("its number").trim().parse().expect("a number");
    // Dead, though nobody may have waited for it.
    fs::read_to_string(format!("/proc/{pid}/stat")).ok().is_none_or(|stat| stat.contains(") Z "))
}

#[test]
fn a_stop_ends_the_batch_and_what_was_done_is_kept() {
    let world = world(1, "lines = 1", WAITS, "");
    world.drop_file("a.txt", b"one\ntwo\nhere\nfour\n");
    let mut service = world.start();
    world.until("the third batch runs", |status| {
        status["running"][0]["progress"]["message"] == "2 lines in 2 batches" && world.scratch("pid").exists()
    });
    service.signal(15);
    world.until("it drains", |status| status["state"] == "draining");
    service.signal(15);
    assert_eq!(service.wait(), 130);
    assert!(is_gone(&world));
    fs::write(world.scratch("go"), "").expect("let it go on");
    world.once();
    let (dir, _) = world.result("a.txt");
    assert_eq!(output(&dir, "a.txt"), b"one\ntwo\nhere\nfour\n");
    assert_eq!(lines(&world, "seen"), ["four", "here", "here", "one", "two"]);
}

#[test]
fn cancelling_ends_the_batch_and_the_item() {
    let world = world(1, "lines = 1", WAITS, "");
    world.drop_file("a.txt", b"one\nhere\nthree\n");
    let service = world.start();
    world.until("the second batch runs", |_| world.scratch("pid").exists());
    world.ok(&["cancel", "a.txt"]);
    world.wait();
    assert_eq!(world.outcomes(), ["a.txt cancelled cancelled"]);
    assert!(is_gone(&world));
    assert_eq!(service.stop(), 0);
    world.assert_empty();
}

/// Two batches meet: each waits until the other one is there, through a pair of FIFOs.
const MEETS: &str = "text=$(cat)\n\
    if mkdir \"$AT/first\" 2> /dev/null; then echo hello > \"$AT/there\"; read -r _ < \"$AT/back\"\n\
    elif mkdir \"$AT/second\" 2> /dev/null; then read -r _ < \"$AT/there\"; echo hello > \"$AT/back\"; fi\n\
    echo \"$text\" | tr a-z A-Z\n";

fn fifo(world: &World, name: &str) {
    let path = world.scratch(name);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a FIFO");
}

#[test]
fn free_slots_are_used_at_once_and_the_order_stays() {
    let text = numbered(200);
    let serial = text.to_uppercase().into_bytes();
    for (slots, compress) in [(2, ""), (3, ", compress = \"gzip\", level = 1")] {
        // With one slot the first batch would wait for the second for ever.
        let world = world(slots, &format!("lines = 10{compress}"), MEETS, "timeout = \"60s\"");
        fifo(&world, "there");
        fifo(&world, "back");
        world.drop_file("a.txt", text.as_bytes());
        world.once();
        let (dir, result) = world.result("a.txt");
        assert_eq!(result["outcome"], "done", "{result:#}");
        assert!(world.scratch("second").exists());
        match compress {
            "" => assert!(output(&dir, "a.txt") == serial),
            _ => assert!(gunzip(&output(&dir, "a.txt.gz")) == serial),
        }
    }
}

/// Each batch says that it is there, and waits for its FIFO.
const GATED: &str = "text=$(cat)\ntouch \"$AT/at-$text\"\nread -r _ < \"$AT/gate-$text\"\necho \"$text\"\n";

fn let_through(world: &World, batch: &str) {
    world.until("the batch runs", |_| world.scratch(&format!("at-{batch}")).exists());
    fs::write(world.scratch(&format!("gate-{batch}")), "go\n").expect("open its gate");
}

#[test]
fn a_slot_is_given_back_between_batches_when_something_else_waits() {
    let settings = "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";
    let world = world(2, "lines = 1", GATED, "match = [\"*.txt\"]");
    let routes = fs::read_to_string(world.root.join("gamdok.toml")).expect("the configuration");
    let routes = routes.replace(settings, "");
    world.configure(settings, &format!("{routes}\n[[route]]\nname = \"small\"\ngpus = 0\ncommand = [\"true\"]\n"));
    for batch in ["a", "b", "c", "d"] {
        fifo(&world, &format!("gate-{batch}"));
    }
    world.drop_file("lines.txt", b"a\nb\nc\nd\n");
    let service = world.start();
    world.until("two batches run", |status| {
        let leases = status["devices"][0]["leases"].as_array().map_or(0, Vec::len);
        let jobs = status["running"].as_array().map_or(0, Vec::len);
        (leases, jobs) == (2, 1) && world.scratch("at-a").exists() && world.scratch("at-b").exists()
    });
    world.drop_file("small", b"");
    world.until("it waits", |status| status["counts"]["claimed"] == 1);
    // Both go on after their batches, but one place is wanted: the small item runs before the file is done.
    let_through(&world, "a");
    let_through(&world, "b");
    world.until("the small item is done", |status| status["counts"]["done"] == 1);
    let_through(&world, "c");
    let_through(&world, "d");
    world.wait();
    assert_eq!(service.stop(), 0);
    assert_eq!(world.outcomes(), ["lines.txt done -", "small done -"]);
    assert_eq!(output(&world.result("lines.txt").0, "lines.txt"), b"a\nb\nc\nd\n");
}

#[test]
fn each_slot_has_a_gpu_of_its_own() {
    let settings = "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"sim\"\nsim = { gpus = 3, memory = \"8GiB\" }\n";
    let world = world(1, "lines = 1", "", "");
    let script = GATED.replace("touch", "echo \"$CUDA_VISIBLE_DEVICES $GAMDOK_DEVICE $GAMDOK_DEVICE_ID\" >>");
    configure(&world, settings, "lines = 1", &script, "");
    let text = fs::read_to_string(world.root.join("gamdok.toml")).expect("the configuration");
    world.configure("", &text.replace("gpus = 0", "gpus = 1"));
    for batch in ["a", "b", "c"] {
        fifo(&world, &format!("gate-{batch}"));
    }
    world.drop_file("lines.txt", b"a\nb\nc\n");
    let service = world.start();
    let at = |batch: &str| world.scratch(&format!("at-{batch}"));
    world.until("three batches run", |status| {
        let devices = status["running"][0]["devices"].as_array().map_or(0, Vec::len);
        devices == 3 && ["a", "b", "c"].iter().all(|batch| at(batch).exists())
    });
    for batch in ["a", "b", "c"] {
        let_through(&world, batch);
    }
    world.wait();
    assert_eq!(service.stop(), 0);
    let said: std::collections::BTreeSet<String> =
        ["a", "b", "c"].iter().map(|batch| fs::read_to_string(at(batch)).expect("what it saw")).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said.iter().all(|words| words.contains(" cuda:0 SIM-") && words.starts_with("SIM-")), "{said:?}");
    let (_, result) = world.result("lines.txt");
    assert_eq!(result["attempts"][0]["devices"].as_array().expect("devices").len(), 3, "{result:#}");
}
