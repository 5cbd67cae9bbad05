//! Big line files against the built binary: a process for each batch, or a resident one for each slot, the parts in order
//! in `out/`, and what a kill, a failing batch or an odd file makes of it.

mod support;

use std::fs;
use std::io::Read as _;
use std::path::Path;

use support::{HELPER, World, is_gone};

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

/// The same with a resident worker in Python for each slot.
fn resident(slots: usize, split: &str, script: &str, extra: &str) -> World {
    let settings = format!("[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = {slots}\n");
    let world = World::with(&settings, "");
    configure_resident(&world, &settings, "gpus = 0", split, script, extra);
    world
}

fn configure_resident(world: &World, settings: &str, gpus: &str, split: &str, script: &str, extra: &str) {
    fs::write(world.scratch("worker.py"), script).expect("write the worker");
    let route = format!(
        "[[route]]\nname = \"r\"\nmode = \"resident\"\n{gpus}\nretries = 1\nbackoff = \"10ms\"\nkill_grace = \"5s\"\n\
         command = [\"python3\", {:?}]\nsplit = {{ {split} }}\nenv = {{ PYTHONPATH = {HELPER:?}, AT = {:?} }}\n{extra}\n",
        world.scratch("worker.py"),
        world.dir.path()
    );
    world.configure(settings, &route);
}

/// For workers that don't end when they are asked.
fn hurry(world: &World) {
    let text = fs::read_to_string(world.root.join("gamdok.toml")).expect("the configuration");
    world.configure("", &text.replace("kill_grace = \"5s\"", "kill_grace = \"200ms\""));
}

/// Hands lines on as they are. Each process writes its number down, and counts what it saw.
const SERVES: &str = r#"
import os
from gamdok_worker import serve_lines
at = os.environ["AT"]
open(at + "/processes", "a").write(f"{os.getpid()}\n")
assert "GAMDOK_ITEM" not in os.environ
def handle(batch):
    assert len(batch) == len(list(batch)) and not batch.name.endswith(".gz")
    batch.count("lines", len(batch))
    batch.count("last line", 0 if batch.first_line else 1)
    yield from batch
serve_lines(handle)
"#;

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
        let worlds = [world(2, split, "exec cat\n", ""), resident(2, split, SERVES, "")];
        for (world, (n, content)) in worlds.iter().flat_map(|world| odd.iter().enumerate().map(move |it| (world, it))) {
            world.drop_file(format!("{n}.txt"), content);
            world.drop_file(format!("{n}.packed.gz"), &gzip(content));
        }
        for world in &worlds {
            world.once();
            world.assert_empty();
        }
        for (world, (n, content)) in worlds.iter().flat_map(|world| odd.iter().enumerate().map(move |it| (world, it))) {
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
    let script = "set -e\ntest \"$GAMDOK_FD\" = 3\ncmp -s \"$GAMDOK_ITEM\" \"$1\"\necho \"$2 $GAMDOK_ROUTE $GAMDOK_DEVICE\" >&2\n\
                  tr a-z A-Z\necho '{\"type\":\"done\",\"result\":1}' >&3\n";
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

#[test]
fn a_program_that_cannot_start_ends_big_line_files_as_it_ends_any_item() {
    let check = |command: &str, cwd: &str, message: &str| {
        let world = world(2, "lines = 1", "exec cat\n", "");
        let kinds = [
            ("plain", ""),
            ("lines", "split = { lines = 1 }\n"),
            ("kept", "split = { lines = 1 }\nmode = \"resident\"\n"),
        ];
        let route = |(name, kind): &(&str, &str)| {
            let route = format!(
                "[[route]]\nname = {name:?}\nmatch = [\"{name}.*\"]\ngpus = 0\nretries = 1\nbackoff = \"10ms\"\n"
            );
            format!("{route}command = {command}\ncwd = {cwd:?}\n{kind}")
        };
        world.configure(
            "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 2\n",
            &kinds.iter().map(route).collect::<String>(),
        );
        kinds.iter().for_each(|(name, _)| world.drop_file(format!("{name}.txt"), b"1\n2\n3\n"));
        world.once();
        world.assert_empty();
        let told = |name: &str| {
            let (_, result) = world.result(&format!("{name}.txt"));
            let attempts = result["attempts"].as_array().expect("attempts").iter();
            let attempts: Vec<_> = attempts.map(|it| (it["reason"].clone(), it["counted"].clone())).collect();
            (result["outcome"].clone(), result["reason"].clone(), result["message"].clone(), attempts)
        };
        let expected = ("failed".into(), "spawn".into(), message.into(), vec![("spawn".into(), false.into()); 2]);
        for (name, _) in kinds {
            assert_eq!(told(name), expected, "{name}");
        }
    };
    let folder =
        "can't start: cannot start `/bin/cat`: its folder `/nonexistent` isn't there (see `cwd`) after attempt 2 of 2";
    check("[\"/bin/cat\"]", "/nonexistent", folder);
    let program =
        "can't start: cannot start `/nonexistent/cat`: No such file or directory (os error 2) after attempt 2 of 2";
    check("[\"/nonexistent/cat\"]", "/", program);
}

#[test]
fn what_a_command_writes_under_the_outputs_name_is_never_replaced() {
    let check = |compress: &str, name: &str, write: &str, is_kept: fn(&Path) -> bool| {
        let script =
            format!("text=$(cat)\necho \"$text\" >> \"$AT/seen\"\ncase $text in two) {write};; esac\necho \"$text\"\n");
        let world = world(1, &format!("lines = 1{compress}"), &script, "");
        world.drop_file("a.txt", b"one\ntwo\nthree\n");
        world.once();
        world.assert_empty();
        let (dir, result) = world.result("a.txt");
        assert_eq!((&result["outcome"], &result["reason"]), (&"failed".into(), &"missing-output".into()), "{result:#}");
        let message = result["message"].as_str().expect("a message");
        let what =
            format!("its command wrote `{name}` into {{out}} itself, which is the name of what its batches print");
        assert!(message.starts_with(&what) && message.contains("neither was replaced"), "{message}");
        assert_eq!(support::names(&dir.join("out")), [name]);
        assert!(is_kept(&dir.join("out").join(name)), "{write}");

        // What was merged stays too: a retry by hand goes on behind it, and sets the file aside.
        fs::write(world.scratch("batch.sh"), script.replace(write, ":")).expect("put the script right");
        fs::remove_file(world.scratch("seen")).expect("count again");
        let service = world.start();
        world.ok(&["retry", "a.txt"]);
        world.wait();
        assert_eq!(service.stop(), 0);
        let (dir, result) = world.result("a.txt");
        assert_eq!(result["outcome"], "done", "{result:#}");
        let found = output(&dir, name);
        assert_eq!(if compress.is_empty() { found } else { gunzip(&found) }, b"one\ntwo\nthree\n");
        assert!(is_kept(&dir.join("out.aborted.1").join(name)), "{write}: {:?}", support::names(&dir));
        assert!(!lines(&world, "seen").contains(&"one".to_owned()));
    };
    let mine = |path: &Path| fs::read(path).expect("it is there") == b"mine\n";
    check("", "a.txt", "echo mine > \"$GAMDOK_OUT/a.txt\"", mine);
    check(", compress = \"gzip\"", "a.txt.gz", "echo mine > \"$GAMDOK_OUT/a.txt.gz\"", mine);
    check("", "a.txt", "mkdir \"$GAMDOK_OUT/a.txt\"", Path::is_dir);
    check("", "a.txt", "ln -s /dev/null \"$GAMDOK_OUT/a.txt\"", Path::is_symlink);
}

#[test]
fn a_batch_without_memory_is_tried_once_more_elsewhere_and_then_says_so() {
    let one_shot = |fails: &str| {
        let script = format!(
            "text=$(cat)\necho \"$text\" >> \"$AT/seen\"\nif test \"$text\" = two; then {fails}; fi\necho \"$text\"\n"
        );
        world(1, "lines = 1", &script, "")
    };
    let kept = |fails: &str| {
        let script =
            KEPT.replace("batch.progress(0.5)", &format!("batch.progress(0.5)\n    if line == b\"two\\n\": {fails}"));
        resident(1, "lines = 1", &script, "")
    };
    let check = |world: World, ends: Option<&str>| {
        world.drop_file("a.txt", b"one\ntwo\nthree\n");
        world.once();
        world.assert_empty();
        let (dir, result) = world.result("a.txt");
        let attempts = result["attempts"].as_array().expect("attempts");
        let told: Vec<_> = attempts.iter().map(|it| (it["reason"].as_str(), it["counted"] == true)).collect();
        let memory = Some("out-of-memory");
        match ends {
            None => {
                assert_eq!(
                    (&result["outcome"], told),
                    (&"done".into(), vec![(memory, false), (None, true)]),
                    "{result:#}"
                );
                assert_eq!(output(&dir, "a.txt"), b"one\ntwo\nthree\n");
            }
            Some(words) => {
                assert_eq!(
                    (result["reason"].as_str(), told),
                    (memory, vec![(memory, false), (memory, true)]),
                    "{result:#}"
                );
                let expected = format!("out of memory: batch 1 (lines 2-2): {words} (tried 2 times)");
                assert_eq!(result["message"].as_str(), Some(&*expected));
            }
        }
        let seen = lines(&world, "seen");
        assert_eq!(seen.iter().filter(|line| *line == "one").count(), 1, "what was merged stays: {seen:?}");
        let tries = seen.iter().filter(|line| *line == "two").count();
        assert_eq!(tries, if ends.is_none() { 3 } else { 4 }, "{seen:?}");
    };
    let cuda = "echo 'RuntimeError: CUDA out of memory.' >&2; seq -f 'and on, line %g' 99 >&2; exit 1";
    let words = "exit code 1: and on, line 95 | and on, line 96 | and on, line 97 | and on, line 98 | and on, line 99";
    check(one_shot(cuda), Some(words));
    check(one_shot(&format!("mkdir \"$AT/1\" 2> /dev/null || mkdir \"$AT/2\" 2> /dev/null && {{ {cuda}; }}")), None);
    check(one_shot("echo '{\"type\":\"failed\",\"error\":\"std::bad_alloc\"}' >&3"), Some("std::bad_alloc"));
    check(kept("raise MemoryError(\"no\")"), Some("MemoryError: no"));
    let dies = "import sys; print(\"CUDA out of memory\", file=sys.stderr, flush=True); os._exit(3)";
    check(kept(dies), Some("its resident worker ended with exit code 3 without an answer for it: CUDA out of memory"));
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
    support::cancel_at_work(&world, "a.txt");
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

/// Each leaves a daemon. The one of `a` answers when `c` asks it, which looks for the one of `b` first.
const LEAVES: &str = "text=$(cat)\n\
    leave() { setsid sh -c \"echo \\$\\$ > '$AT/born-$1'; $2\" < /dev/null > /dev/null 2>&1 3>&- & read -r pid < \"$AT/born-$1\"; }\n\
    case $text in\n\
    a) leave a 'read -r word < $AT/ask; echo $word > $AT/answer'; touch \"$AT/at-a\"; read -r text < \"$AT/answer\";;\n\
    b) leave b 'exec sleep 600'; echo \"$pid\" > \"$AT/pid\"; touch \"$AT/at-b\"; read -r _ < \"$AT/gate-b\";;\n\
    c) pid=$(cat \"$AT/pid\"); text=gone\n\
       if test -e /proc/$pid && ! grep -q ') Z ' /proc/$pid/stat; then text=lives; fi; echo well > \"$AT/ask\";;\n\
    esac\n\
    echo \"$text\"\n";

#[test]
fn what_a_batch_leaves_behind_ends_with_it_and_not_what_others_have() {
    let world = world(2, "lines = 1", LEAVES, "timeout = \"60s\"");
    ["born-a", "born-b", "ask", "answer", "gate-b"].iter().for_each(|name| fifo(&world, name));
    world.drop_file("x.txt", b"a\nb\nc\n");
    let service = world.start();
    world.until("the first batch waits", |_| world.scratch("at-a").exists());
    let_through(&world, "b");
    world.wait();
    assert_eq!(service.stop(), 0);
    let (dir, result) = world.result("x.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert_eq!(String::from_utf8_lossy(&output(&dir, "x.txt")), "well\nb\ngone\n");
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

#[test]
fn a_kill_on_the_way_out_repeats_nothing_either() {
    for point in
        ["finish.begun", "finish.staged", "finish.outputs-synced", "finish.named", "finish.committed", "finish.moved"]
    {
        for compress in ["", ", compress = \"gzip\""] {
            let script = "text=$(cat)\necho \"$text\" >> \"$AT/seen\"\necho '{\"type\":\"count\",\"name\":\"n\",\"by\":1}' >&3\necho \"$text\"\n";
            let mut world = world(1, &format!("lines = 1{compress}"), script, "");
            world.drop_file("a.txt", b"one\ntwo\nthree\n");
            world.set("GAMDOK_FAULT", point);
            world.gamdok(&["run", "--once"]);
            world.unset("GAMDOK_FAULT");
            assert_eq!(lines(&world, "seen").len(), 3, "{point} comes after the work");
            world.once();
            world.assert_empty();
            let (dir, result) = world.result("a.txt");
            assert_eq!(
                (&result["outcome"], &result["counters"]["n"]),
                (&"done".into(), &3.into()),
                "{point}: {result:#}"
            );
            assert_eq!(lines(&world, "seen"), ["one", "three", "two"], "{point}");
            let name = if compress.is_empty() { "a.txt" } else { "a.txt.gz" };
            let found = output(&dir, name);
            assert_eq!(if compress.is_empty() { found } else { gunzip(&found) }, b"one\ntwo\nthree\n", "{point}");
        }
    }
}

/// Counts its line, says that it is halfway, and fails when it comes for the first time.
const COUNTS: &str = "text=$(cat)\n\
    echo '{\"type\":\"count\",\"name\":\"lines\",\"by\":1}' >&3\n\
    echo '{\"type\":\"count\",\"name\":\"weight\",\"by\":0.25}' >&3\n\
    echo '{\"type\":\"progress\",\"fraction\":0.5}' >&3\n\
    mkdir \"$AT/tried-$text\" 2> /dev/null && exit 1\n\
    echo \"$text\" >> \"$AT/seen\"\n\
    if test \"$text\" = here && test ! -e \"$AT/go\"; then echo $$ > \"$AT/pid.new\"; mv \"$AT/pid.new\" \"$AT/pid\"; exec sleep 600; fi\n\
    echo \"$text\"\n";

#[test]
fn what_batches_say_is_summed_exactly_whatever_failed_and_after_a_kill() {
    let world = world(1, "lines = 1", COUNTS, "");
    world.drop_file("a.txt", b"one1\ntwo2\nhere\nfour\nfive\n");
    let service = world.start();
    let status = world.until("the third batch is halfway", |status| {
        status["running"][0]["progress"]["fraction"] == 0.5 && world.scratch("pid").exists()
    });
    // Two of five lines, and half of the third; those of tries that failed count for nothing.
    assert_eq!(status["running"][0]["progress"]["message"], "2 lines in 2 batches");
    world.until("they are counted", |status| status["counters"] == serde_json::json!({"lines": 2, "weight": 0.5}));
    service.kill();
    fs::write(world.scratch("go"), "").expect("let it go on");
    // What the first attempt merged is counted before anything of the second.
    world.once();
    world.assert_empty();
    let (dir, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert_eq!(result["counters"], serde_json::json!({"lines": 5, "weight": 1.25}), "{result:#}");
    assert_eq!(lines(&world, "seen"), ["five", "four", "here", "here", "one1", "two2"]);
    assert_eq!(output(&dir, "a.txt"), b"one1\ntwo2\nhere\nfour\nfive\n");
}

#[test]
fn counters_of_a_failed_item_are_those_of_its_parts_and_a_retry_goes_on_from_there() {
    let refuses = "if test \"$text\" = here && test ! -e \"$AT/go\"; then exit 65; fi\nif test";
    let script = COUNTS.replace("mkdir", "false mkdir").replace("if test", refuses);
    let world = world(1, "lines = 1", &script, "");
    world.drop_file("a.txt", b"one\ntwo\nhere\nfour\n");
    world.once();
    let (_, result) = world.result("a.txt");
    assert_eq!((&result["outcome"], &result["counters"]["lines"]), (&"failed".into(), &2.into()), "{result:#}");
    fs::write(world.scratch("go"), "").expect("put it right");
    let service = world.start();
    world.ok(&["retry", "a.txt"]);
    world.wait();
    let status = world.status();
    assert_eq!(status["counters"], serde_json::json!({"lines": 4, "weight": 1}));
    assert_eq!(service.stop(), 0);
    let (_, result) = world.result("a.txt");
    assert_eq!((&result["outcome"], &result["counters"]["lines"]), (&"done".into(), &4.into()), "{result:#}");
}

#[test]
fn a_word_on_descriptor_3_decides_over_exit_code_0() {
    let check = |words: &str, message: &str| {
        let world = world(1, "lines = 1", &format!("cat\necho '{words}' >&3\n"), "retries = 0");
        let text = fs::read_to_string(world.root.join("gamdok.toml")).expect("the configuration");
        world.configure("", &text.replace("retries = 1\n", ""));
        world.drop_file("a.txt", b"x\n");
        world.once();
        let (_, result) = world.result("a.txt");
        assert_eq!((&result["outcome"], &result["reason"]), (&"failed".into(), &"exit".into()), "{result:#}");
        assert_eq!(result["message"], message);
    };
    check("{\"type\":\"failed\",\"error\":\"no such word\"}", "batch 0 (lines 1-1): no such word");
    check("hello", "batch 0 (lines 1-1): broke the protocol of fd 3: not a JSON object: `hello`");
    check(
        "{\"type\":\"done\",\"id\":\"01ARZ3NDEKTSV4RRFFQ69G5FAV\"}",
        "batch 0 (lines 1-1): broke the protocol of fd 3: it spoke of item 01ARZ3NDEKTSV4RRFFQ69G5FAV, which it wasn't given",
    );
}

#[test]
fn a_resident_worker_takes_one_batch_after_another() {
    let world = resident(1, "lines = 10, compress = \"gzip\"", SERVES, "");
    let text = numbered(2005);
    world.drop_file("a.txt", text.as_bytes());
    world.once();
    world.assert_empty();
    let (dir, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert!(gunzip(&output(&dir, "a.txt.gz")) == text.as_bytes());
    assert_eq!((&result["result"]["batches"], &result["counters"]["lines"]), (&201.into(), &2005.into()));
    assert_eq!(support::processes(&world).len(), 1, "one process for all of it");
    assert!(!dir.join("batches").exists(), "nothing of the batches is left");

    // After so many batches it is replaced.
    let world = resident(1, "lines = 1", SERVES, "resident = { max_items = 3 }");
    world.drop_file("a.txt", b"1\n2\n3\n4\n5\n6\n7\n");
    world.once();
    assert_eq!(output(&world.result("a.txt").0, "a.txt"), b"1\n2\n3\n4\n5\n6\n7\n");
    assert_eq!(support::processes(&world).len(), 3);
}

/// What a line says decides what becomes of its batch; a word with `once` does so the first time.
const BARE: &str = r#"
def take(items):
    [item] = items
    assert set(item) == {"id", "item", "name", "out", "attempt", "first_line", "lines"}, item
    text, id, out = open(item["item"]).read(), item["id"], item["out"]
    what = text.strip()
    if what.startswith("once ") and item["attempt"] > 1: what = ""
    what = what.removeprefix("once ")
    say(type="count", name="tries", by=1)
    with open(out + "/part", "w") as part: part.write(text)
    if did(what, id): pass
    elif what == "code": print("no more\nof this", flush=True); sys.exit(4)
    elif what == "closes": channel.close(); time.sleep(600)
    elif what == "nothing": os.remove(out + "/part"); say(type="done", id=id)
    elif what == "folder": os.remove(out + "/part"); os.mkdir(out + "/x"); say(type="done", id=id)
    elif what == "two": open(out + "/more", "w").close(); say(type="done", id=id)
    elif what == "link": os.remove(out + "/part"); os.symlink("/etc/passwd", out + "/part"); say(type="done", id=id)
    elif what == "prints": sys.stdout.write("to stdout\n" * 20000); sys.stdout.flush(); say(type="done", id=id)
    else: say(type="done", id=id)
"#;

#[test]
fn whatever_a_resident_worker_does_only_its_batch_is_tried_again() {
    let all = "1\nonce nonsense\n2\nonce stranger\n3\nonce leave\n4\nonce code\n5\nonce crash\n6\nonce closes\n7\nonce fail\n8\n\
               once nothing\n9\nonce two\nlast\nunknown\nprints\n10\n";
    let world = resident(1, "lines = 1", &support::bare_worker(BARE), "");
    hurry(&world);
    world.drop_file("a.txt", all.as_bytes());
    world.once();
    world.assert_empty();
    let (dir, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert_eq!(String::from_utf8_lossy(&output(&dir, "a.txt")), all);
    assert_eq!(result["result"]["retried"], 9, "{result:#}");
    let batches = all.lines().count();
    assert_eq!(result["counters"]["tries"], batches, "a try that failed counts for nothing");
    assert_eq!(support::processes(&world).len(), 1 + 9 + 1, "each failure and the one that left had a new worker");
    let log = fs::read_to_string(dir.join("attempt-1.log")).expect("the log");
    assert_eq!(log.matches("to stdout\n").count(), 20000, "what it prints is in the attempt's log");
}

#[test]
fn what_a_resident_worker_counts_while_it_stops_is_its_items() {
    let world = resident(1, "lines = 1", &support::bare_worker(BARE), "resident = { max_items = 2 }");
    world.drop_file("a.txt", b"1\n2\n3\n4\n5\n");
    let service = world.start();
    world.wait();
    let status = world.status();
    assert_eq!(service.stop(), 0);
    let (_, result) = world.result("a.txt");
    assert_eq!(result["counters"], serde_json::json!({"stops": 3, "tries": 5}), "{result:#}");
    assert_eq!(status["counters"], result["counters"]);
    // One that fails says nothing more that counts; the next attempt's adds to what stands.
    let world = resident(1, "lines = 1", &support::bare_worker(BARE), "");
    world.drop_file("a.txt", b"1\nrefuse\n3\n");
    world.once();
    let (_, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "failed", "{result:#}");
    assert_eq!(result["counters"], serde_json::json!({"stops": 1, "tries": 1}), "{result:#}");
}

/// Each process leaves a daemon, and looks for the one of the process before.
const LEAVES_TOO: &str = r#"
import os, subprocess
from gamdok_worker import serve_lines
daemon = os.environ["AT"] + "/daemon"
def lives(pid):
    try: return ") Z " not in open(f"/proc/{pid}/stat").read()
    except FileNotFoundError: return False
found = lives(open(daemon).read()) if os.path.exists(daemon) else None
left = subprocess.Popen(["sleep", "600"], stdin=-3, stdout=-3, stderr=-3, start_new_session=True)
open(daemon, "w").write(str(left.pid))
serve_lines(lambda batch: [f"{found}\n"])
"#;

#[test]
fn what_a_resident_worker_leaves_behind_ends_with_it() {
    let world = resident(1, "lines = 1", LEAVES_TOO, "resident = { max_items = 2 }");
    world.drop_file("a.txt", b"1\n2\n3\n4\n5\n");
    world.once();
    let (dir, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert_eq!(String::from_utf8_lossy(&output(&dir, "a.txt")), "None\nNone\nFalse\nFalse\nFalse\n");
}

#[test]
fn what_a_resident_worker_cannot_do_is_said_clearly() {
    let check = |what: &str, extra: &str, message: &str| {
        let world = resident(1, "lines = 1", &support::bare_worker(BARE), extra);
        let text = fs::read_to_string(world.root.join("gamdok.toml")).expect("the configuration");
        let text = text.replace("retries = 1", "retries = 0").replace("kill_grace = \"5s\"", "kill_grace = \"200ms\"");
        world.configure("", &text);
        let sign = what.strip_prefix('@');
        if let Some(sign) = sign {
            fs::write(world.scratch(sign), "").expect("a sign for the worker");
        }
        world.drop_file("a.txt", format!("fine\n{}\n", sign.map_or(what, |_| "fine")).as_bytes());
        world.once();
        world.assert_empty();
        let (dir, result) = world.result("a.txt");
        assert_eq!((&result["outcome"], &result["reason"]), (&"failed".into(), &"exit".into()), "{what}: {result:#}");
        let number = if sign.is_some() { 0 } else { 1 };
        let place = format!("batch {number} (lines {0}-{0}): ", number + 1);
        let found = result["message"].as_str().expect("a message");
        assert_eq!(found.strip_prefix(&place), Some(message), "{what}: {found}");
        assert!(!dir.join("batches").exists());
    };
    check("nonsense", "", "its resident worker broke the protocol of fd 3: not a JSON object: `hello`");
    check("leave", "", "its resident worker ended with exit code 0 without an answer for it");
    check("code", "", "its resident worker ended with exit code 4 without an answer for it: no more | of this");
    check("crash", "", "its resident worker was ended by signal 11 without an answer for it");
    check("closes", "", "its resident worker broke the protocol of fd 3: it closed its end");
    check("fail", "", "cannot do that");
    check("refuse", "", "not a word");
    let expected = "one file is expected, an empty one where nothing stands for its lines";
    check("nothing", "", &format!("it left nothing in `out`: {expected}"));
    check("two", "", &format!("it left more than one thing in `out`: {expected}"));
    check("folder", "", "what it left in `out` is no file");
    check("link", "", "what it left in `out` can't be read: Too many levels of symbolic links (os error 40)");
    check("@exits", "", "its resident worker ended with exit code 3 before it was ready: no model here");
    check("@never", "resident = { ready_timeout = \"300ms\" }", "its resident worker was not ready within 300ms");
}

/// The third batch waits until the test lets it go on.
const KEPT: &str = r#"
import os, pathlib, time
from gamdok_worker import serve_lines
at = pathlib.Path(os.environ["AT"])
with (at / "devices").open("a") as seen: seen.write(os.environ["GAMDOK_DEVICE_ID"] + "\n")
def handle(batch):
    [line] = batch
    with (at / "seen").open("ab") as seen: seen.write(line)
    batch.count("lines")
    batch.progress(0.5)
    text = line.decode().strip()
    if text in ("here", "there") and not (at / "go").exists():
        (at / "pid.new").write_text(str(os.getpid())); (at / "pid.new").rename(at / ("pid" if text == "here" else "pid2"))
        while not (at / "go").exists(): time.sleep(0.01)
    return [line]
serve_lines(handle)
"#;

#[test]
fn after_a_kill_a_resident_worker_is_gone_and_no_finished_batch_is_repeated() {
    let world = resident(1, "lines = 1, compress = \"gzip\"", KEPT, "");
    hurry(&world);
    world.drop_file("a.txt", b"one1\ntwo2\nhere\nfour\nfive\n");
    let service = world.start();
    world.until("the third batch runs", |status| {
        status["running"][0]["progress"]["fraction"] == 0.5 && world.scratch("pid").exists()
    });
    service.kill();
    fs::rename(world.scratch("pid"), world.scratch("first")).expect("remember its number");
    let mut service = world.start();
    world.until("the batch runs again", |_| world.scratch("pid").exists());
    fs::rename(world.scratch("first"), world.scratch("pid")).expect("its number");
    assert!(is_gone(&world), "it was ended first");
    fs::write(world.scratch("go"), "").expect("let it go on");
    world.wait();
    service.signal(15);
    service.wait();
    let (dir, result) = world.result("a.txt");
    assert_eq!(result["outcome"], "done", "{result:#}");
    assert_eq!(gunzip(&output(&dir, "a.txt.gz")), b"one1\ntwo2\nhere\nfour\nfive\n");
    assert_eq!(lines(&world, "seen"), ["five", "four", "here", "here", "one1", "two2"]);
    assert_eq!(result["counters"], serde_json::json!({"lines": 5}), "each batch counts once");
    assert!(!dir.join("batches").exists());
}

#[test]
fn cancelling_ends_a_resident_worker_in_the_middle_of_a_batch() {
    let world = resident(1, "lines = 1", KEPT, "");
    hurry(&world);
    world.drop_file("a.txt", b"one\nhere\nthree\n");
    support::cancel_at_work(&world, "a.txt");
}

#[test]
fn each_slots_resident_worker_has_a_gpu_of_its_own_and_is_held_to_it() {
    let settings = "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"sim\"\nsim = { gpus = 2, memory = \"8GiB\" }\n";
    let world = World::with(settings, "");
    let own = KEPT.replace("serve_lines(handle)", "serve_lines(handle, device_uuid=os.environ[\"GAMDOK_DEVICE_ID\"])");
    configure_resident(&world, settings, "gpus = 1", "lines = 1", &own, "");
    world.drop_file("a.txt", b"here\nthere\nlast\n");
    let service = world.start();
    world.until("two batches run", |_| world.scratch("pid").exists() && world.scratch("pid2").exists());
    fs::write(world.scratch("go"), "").expect("let them go on");
    world.wait();
    assert_eq!(service.stop(), 0);
    let (dir, result) = world.result("a.txt");
    assert_eq!(output(&dir, "a.txt"), b"here\nthere\nlast\n");
    let devices = lines(&world, "devices");
    assert!(devices.len() == 2 && devices[0] != devices[1], "{devices:?}");
    assert_eq!(result["attempts"][0]["devices"], serde_json::json!(devices), "{result:#}");

    let wrong = own.replace("device_uuid=os.environ[\"GAMDOK_DEVICE_ID\"]", "device_uuid=\"GPU-another\"");
    fs::write(world.scratch("worker.py"), wrong).expect("a worker that is mistaken");
    world.drop_file("b.txt", b"x\n");
    world.once();
    let (_, result) = world.result("b.txt");
    let message = result["message"].as_str().expect("a message");
    assert!(message.contains("it says that it runs on GPU-another, and was given SIM-"), "{message}");
}

/// Each batch says that it is there, and waits for its FIFO.
const GATED_RESIDENT: &str = r#"
import os, pathlib
from gamdok_worker import serve_lines
at = pathlib.Path(os.environ["AT"])
with (at / "processes").open("a") as seen: seen.write(f"{os.getpid()}\n")
def handle(batch):
    [line] = batch
    text = line.decode().strip()
    (at / f"at-{text}").touch()
    (at / f"gate-{text}").read_text()
    return [line]
serve_lines(handle)
"#;

#[test]
fn a_resident_worker_goes_with_its_slot() {
    let settings = "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";
    let world = World::with(settings, "");
    let small = "match = [\"*.txt\"]\n[[route]]\nname = \"small\"\ngpus = 0\ncommand = [\"true\"]\n";
    configure_resident(&world, settings, "gpus = 0", "lines = 1", GATED_RESIDENT, small);
    for batch in ["a", "b", "c", "d"] {
        fifo(&world, &format!("gate-{batch}"));
    }
    world.drop_file("lines.txt", b"a\nb\nc\nd\n");
    let service = world.start();
    world.until("two batches run", |_| world.scratch("at-a").exists() && world.scratch("at-b").exists());
    world.drop_file("small", b"");
    world.until("it waits", |status| status["counts"]["claimed"] == 1);
    let_through(&world, "a");
    let_through(&world, "b");
    world.until("the small item is done", |status| status["counts"]["done"] == 1);
    let is_alive =
        |pid: &String| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    let pids = support::processes(&world);
    assert!(pids.iter().any(|pid| !is_alive(pid)), "the one whose slot it got is gone");
    assert!(pids.iter().any(is_alive), "the other one goes on");
    let_through(&world, "c");
    let_through(&world, "d");
    world.wait();
    assert_eq!(service.stop(), 0);
    assert_eq!(world.outcomes(), ["lines.txt done -", "small done -"]);
    assert_eq!(output(&world.result("lines.txt").0, "lines.txt"), b"a\nb\nc\nd\n");
}
