//! `gamdok map` as people use it: order, failures, columns, lines on stdin, devices, and its end.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{World, code, hostile_names, names, text};

/// Runs it with this on its stdin.
#[track_caller]
fn fed(world: &World, args: &[&str], stdin: &[u8]) -> Output {
    let mut command = world.command(&[&["map"], args].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    let mut pipe = child.stdin.take().expect("its stdin");
    let stdin = stdin.to_vec();
    let writer = std::thread::spawn(move || {
        // It may end before it has read everything.
        let _ = pipe.write_all(&stdin);
    });
    let output = child.wait_with_output().expect("wait");
    writer.join().expect("written");
    output
}

/// What it printed, its exit code and what it said.
#[track_caller]
fn check(world: &World, args: &[&str], stdin: &str, expected: (&str, i32, &str)) {
    let output = fed(world, args, stdin.as_bytes());
    let found = (text(&output.stdout), code(output.status), text(&output.stderr));
    assert_eq!((found.0.as_str(), found.1, found.2.as_str()), expected, "{args:?}");
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a fifo");
}

/// Waits for so many lines from whoever writes to it.
fn lines_of(fifo: &Path, mut count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while count > 0 {
        let mut said = String::new();
        fs::File::open(fifo).expect("open").read_to_string(&mut said).expect("read");
        count = count.saturating_sub(said.lines().count());
        lines.extend(said.lines().map(str::to_owned));
    }
    lines
}

fn spawned(world: &World, args: &[&str]) -> Child {
    let mut command = world.command(&[&["map"], args].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start")
}

fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).expect("signalled");
}

#[test]
fn arguments_come_from_the_command_line_or_stdin() {
    let world = World::new("");
    check(&world, &["-k", "--", "echo", "got", ":::", "a b", "", "-c"], "unread\n", ("got a b\ngot \ngot -c\n", 0, ""));
    check(&world, &["-k", "--", "echo"], "one\n\n two \nlast", ("one\n\n two \nlast\n", 0, ""));
    check(&world, &["-k", "-0", "--", "echo", "<{}>"], "new\nline\0b", ("<new\nline>\n<b>\n", 0, ""));
    check(&world, &["-k", "--", "echo", "{2}-{1}", "{{}}", "{}"], "a,b\n,x,\n", ("b-a {} a,b\nx- {} ,x,\n", 0, ""));
    check(&world, &["-k", "--", "echo", "{n}", "{device}", "{}"], "a\nb\n", ("1 cpu a\n2 cpu b\n", 0, ""));
    check(&world, &["--", "false"], "", ("", 0, ""));
    check(&world, &["--", "false", ":::"], "unread\n", ("", 0, ""));
    // The pinning that every worker gets.
    let script = "echo $CUDA_VISIBLE_DEVICES,$GAMDOK_DEVICE,$GAMDOK_DEVICE_ID,$GAMDOK_GPUS";
    check(&world, &["--", "sh", "-c", script, ":::", "x"], "", (",cpu,cpu,0\n", 0, ""));
}

#[test]
fn bytes_of_every_kind_go_through() {
    let world = World::new("");
    let names: Vec<&[u8]> = hostile_names().into_iter().map(|name| name.as_bytes()).collect();
    let stdin = [names.join(&0), b"\0".to_vec()].concat();
    let output = fed(&world, &["-k", "-0", "--", "printf", "%s\\0"], &stdin);
    assert!(output.status.success() && output.stdout == stdin, "{}", text(&output.stderr));
    let output = fed(&world, &["-k", "-0", "--json", "--", "printf", "%s"], &stdin);
    for (line, name) in text(&output.stdout).lines().zip(names) {
        let object: Value = serde_json::from_str(line).expect("JSON");
        let printed = std::str::from_utf8(name).map_or(Value::Null, Value::from);
        assert_eq!(object["stdout"], printed);
        use base64::Engine as _;
        assert_eq!(object["argument_b64"], base64::engine::general_purpose::STANDARD.encode(name));
    }
    let long = "x".repeat(200_000);
    let output = fed(&world, &["--", "echo"], format!("a\0b\n{long}\n{}\nwell\n", long.repeat(6)).as_bytes());
    assert_eq!((text(&output.stdout).as_str(), code(output.status)), ("well\n", 1));
    let said = text(&output.stderr);
    for words in
        ["run 1 (`a\\u{0}b`) failed: it has a NUL byte", "Argument list too long", "run 3 failed: it has 1200000 bytes"]
    {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
}

#[test]
fn output_is_whole_and_in_order_when_asked_for() {
    let world = World::new("");
    let gate = world.scratch("gate");
    fifo(&gate);
    // The first run ends only after the last has: each opens the gate for the other.
    let script = "echo $0 a; case $0 in 1) read x < gate;; 20) echo x > gate;; esac; echo $0 b; echo $0 c >&2";
    let numbers: String = (1..=20).map(|n| format!("{n}\n")).collect();
    let lines = |order: &[u32], per: fn(u32) -> String| order.iter().map(|n| per(*n)).collect::<String>();
    let kept = fed(&world, &["-k", "--slots", "2", "--", "sh", "-c", script], numbers.as_bytes());
    let order: Vec<u32> = (1..=20).collect();
    assert_eq!(text(&kept.stdout), lines(&order, |n| format!("{n} a\n{n} b\n")));
    assert_eq!(text(&kept.stderr), lines(&order, |n| format!("{n} c\n")));
    let output = fed(&world, &["--slots", "2", "--", "sh", "-c", script], numbers.as_bytes());
    let printed = text(&output.stdout);
    let order: Vec<u32> =
        printed.lines().step_by(2).map(|line| line[..line.len() - 2].parse().expect("a number")).collect();
    assert_eq!(printed, lines(&order, |n| format!("{n} a\n{n} b\n")));
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert!(order != sorted && sorted.into_iter().eq(1..=20), "{order:?}");
}

#[test]
fn output_larger_than_any_buffer_is_whole() {
    let world = World::new("");
    let gate = world.scratch("gate");
    fifo(&gate);
    let script = "case $0 in 1) read x < gate;; 4) echo x > gate;; esac; head -c 9000000 /dev/zero | tr '\\0' $0";
    let expected: Vec<u8> = (b'1'..=b'4').flat_map(|digit| vec![digit; 9_000_000]).collect();
    let output = fed(&world, &["-k", "--slots", "2", "--", "sh", "-c", script], b"1\n2\n3\n4\n");
    assert!(output.stdout == expected && output.status.success(), "{}", text(&output.stderr));
    let objects = fed(&world, &["--json", "--slots", "2", "--", "sh", "-c", script], b"1\n4\n");
    let lines = text(&objects.stdout);
    for line in lines.lines() {
        let object: Value = serde_json::from_str(line).expect("JSON");
        let digit = object["argument"].as_str().expect("text");
        assert!(object["stdout"].as_str() == Some(&digit.repeat(9_000_000)));
    }
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn failures_are_told_of_and_tried_again() {
    let world = World::new("");
    let script = "echo $1.$0; [ $1 = 3 ] || [ $0 = good ]";
    let run = |retries: &str| {
        let args = ["-k", "--retries", retries, "--", "sh", "-c", script, "{}", "{attempt}", ":::", "good", "bad"];
        let output = fed(&world, &args, b"");
        (text(&output.stdout), code(output.status), text(&output.stderr))
    };
    assert_eq!(run("2"), ("1.good\n3.bad\n".to_owned(), 0, String::new()));
    let (printed, exit, said) = run("1");
    assert_eq!((printed.as_str(), exit), ("1.good\n2.bad\n", 1));
    assert_eq!(said, "gamdok: run 2 (`bad`) failed: exit code 1, after 2 attempts\ngamdok: 1 of 2 runs failed\n");
    let signalled = "gamdok: run 1 (`x`) failed: signal 9\ngamdok: 1 of 1 run failed\n";
    check(&world, &["--", "sh", "-c", "kill -9 $$", ":::", "x"], "", ("", 1, signalled));
    check(&world, &["-q", "--", "false", ":::", "x"], "", ("", 1, ""));
    let column = "gamdok: run 2 (`b`) failed: it has 1 column, and the command wants {2}\ngamdok: 1 of 2 runs failed\n";
    check(&world, &["--retries", "3", "--", "echo", "{2}"], "a,1\nb\n", ("1\n", 1, column));
}

#[test]
fn lines_of_stdin_are_dealt_out() {
    let world = World::new("");
    let check = |stdin: &[u8], lines: &str, extra: &[&str]| {
        let command = ["-k", "--stdin-lines", lines, "--retries", "1", "--", "sh", "-c"];
        let output = fed(&world, &[&command[..], extra].concat(), stdin);
        assert!(output.stdout == stdin && output.status.success(), "{}", text(&output.stderr));
    };
    let many: Vec<u8> = (0..200_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    check(&many, "30000", &["cat"]);
    check(b"", "3", &["cat"]);
    check(b"a\r\n\xff\xfe\n\nlast", "2", &["cat"]);
    check(&[vec![b'x'; 3_000_000], b"\ny".to_vec()].concat(), "1", &["cat"]);
    // A second try reads the same lines.
    check(b"a\nb\nc\n", "1", &["cat; exit $((2 - $0))", "{attempt}"]);
    // One that doesn't read them disturbs nobody.
    let output = fed(&world, &["--stdin-lines", "1000", "--", "true"], &many);
    assert_eq!((code(output.status), text(&output.stderr).as_str()), (0, ""));
    let objects = fed(&world, &["-k", "--json", "--stdin-lines", "2", "--", "cat"], b"a\nb\nc\n");
    let found: Vec<Value> =
        text(&objects.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let found: Vec<_> = found.iter().map(|it| (&it["n"], &it["lines"], &it["argument"], &it["stdout"])).collect();
    let (one, two) = (json!(1), json!(2));
    assert_eq!(found, [(&one, &two, &Value::Null, &json!("a\nb\n")), (&two, &one, &Value::Null, &json!("c\n"))]);
}

#[test]
fn a_gpu_is_one_runs_at_a_time() {
    let world = World::new("");
    // Fails when another one is on its GPU.
    let script =
        "mkdir busy-$CUDA_VISIBLE_DEVICES || exit 9; echo $0 $1 $GAMDOK_GPUS; rmdir busy-$CUDA_VISIBLE_DEVICES";
    let numbers: String = (1..=12).map(|n| format!("{n}\n")).collect();
    let args = ["--devices", "sim:3", "--gpus", "1", "--json", "--", "sh", "-c", script, "{device}", "{gpu}", "{}"];
    let output = fed(&world, &args, numbers.as_bytes());
    assert!(output.status.success(), "{}", text(&output.stdout));
    let mut used = std::collections::BTreeSet::new();
    for line in text(&output.stdout).lines() {
        let object: Value = serde_json::from_str(line).expect("JSON");
        let id = object["device_id"].as_str().expect("an id").to_owned();
        let index = id.rsplit('0').next().filter(|digits| !digits.is_empty()).unwrap_or("0").to_owned();
        assert_eq!((&object["device"], &object["stdout"]), (&json!("cuda:0"), &json!(format!("cuda:0 {index} 1\n"))));
        used.insert(id);
    }
    assert!(used.iter().all(|id| id.starts_with("SIM-")) && !used.is_empty(), "{used:?}");
    assert!(text(&output.stderr).contains("SIMULATED"));
    let both = ["--devices", "sim:2", "--gpus", "2", "-q", "--", "echo", "{device}", "{gpu}", ":::", "x"];
    check(&world, &both, "", ("cuda:0,cuda:1 0,1 x\n", 0, ""));
    // A second try is on another one.
    let retried = ["--devices", "sim:2", "--gpus", "1", "-q", "--retries", "1", "--json", "--", "false", ":::", "x"];
    let once = ["--devices", "sim:2", "--gpus", "1", "-q", "--json", "--", "false", ":::", "x"];
    let device = |args: &[&str]| {
        let object: Value = serde_json::from_slice(&fed(&world, args, b"").stdout).expect("JSON");
        (object["device_id"].clone(), object["attempts"].clone())
    };
    let (first, second) = (device(&once), device(&retried));
    assert!(first.0 != second.0 && second.1 == 2, "{first:?} {second:?}");
    let lacking = world.gamdok(&["map", "--devices", "sim:2", "--gpus", "3", "--", "true", ":::", "x"]);
    assert_eq!(code(lacking.status), 1);
    assert!(text(&lacking.stderr).contains("gamdok map needs 3 GPUs, this host has 2"), "{}", text(&lacking.stderr));
    let fallback = fed(&world, &["--devices", "cpu", "--gpus", "1", "--", "echo", "{device}", ":::", "x"], b"");
    assert_eq!(text(&fallback.stdout), "cpu x\n");
    assert!(text(&fallback.stderr).contains("this host has no GPU"), "{}", text(&fallback.stderr));
}

#[test]
fn the_devices_of_a_configuration_count() {
    let world = World::new("");
    let file = world.scratch("devices.toml");
    fs::write(&file, "[devices]\nuse = \"sim\"\nvisible = \"index\"\nexclude = [\"0\"]\nsim = { gpus = 2 }\n")
        .expect("written");
    let file = file.display().to_string();
    let args = ["-q", "--config", &file, "--gpus", "1", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES", ":::", "x"];
    check(&world, &args, "", ("1\n", 0, ""));
}

#[test]
fn a_command_that_cannot_be_started_is_said_once() {
    let world = World::new("");
    let script = world.scratch("script");
    fs::write(&script, "#!/nonexistent/interpreter\n").expect("written");
    let make_executable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    };
    let numbers: String = (1..=50).map(|n| format!("{n}\n")).collect();
    let check = |program: &str, words: &str| {
        for args in [vec!["--"], vec!["-k", "--retries", "3", "--"]] {
            let output = fed(&world, &[&args[..], &[program]].concat(), numbers.as_bytes());
            let said = text(&output.stderr);
            assert_eq!((code(output.status), said.matches(words).count(), said.lines().count()), (2, 1, 2), "{said}");
        }
    };
    check("no-such-program", "the program `no-such-program` is in none of the folders of PATH");
    check("./nothing", "cannot start `./nothing`: No such file");
    check("./script", "`./script` may not be executed");
    make_executable(&script);
    check("./script", "the interpreter that it names in its first line isn't there");
    check("/", "it is a directory");
    // Where the program is the argument, it is that run's trouble.
    let output = fed(&world, &["-k", "--", "{}"], b"true\nno-such-program\n./script\ntrue\n");
    let said = text(&output.stderr);
    assert_eq!(code(output.status), 1);
    assert!(said.contains("2 of 4 runs failed") && said.contains("run 2 (`no-such-program`) failed"), "{said}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let world = World::new("");
    let check = |args: &[&str], words: &str| {
        let output = world.code(&[&["map"], args].concat(), 2);
        let said = text(&output.stderr);
        assert!(said.contains(words) && output.stdout.is_empty(), "no `{words}` in {said}");
    };
    check(&[], "COMMAND");
    check(&["--"], "COMMAND");
    check(&["--", ":::", "a"], "the command is empty");
    check(&["--", "echo", ":::", "a", ":::", "b"], "one `:::`");
    check(&["--", "echo", "{item}", ":::", "a"], "an unknown placeholder `{item}`");
    check(&["--stdin-lines", "0", "--", "cat"], "--stdin-lines");
    check(&["--stdin-lines", "2", "--", "cat", ":::", "a"], "--stdin-lines");
    check(&["--stdin-lines", "2", "--", "cat", "{}"], "--stdin-lines");
    check(&["--slots", "0", "--", "cat"], "--slots");
    check(&["--devices", "tpu", "--", "cat"], "auto, gpu, cpu, sim");
    check(&["-0", "--", "cat", ":::", "a"], "--null");
    check(&["--config", "nothing.toml", "--", "cat", ":::", "a"], "nothing.toml");
    let output = world.code(&["map", "--json", "--", "echo", "{item}", ":::", "a"], 2);
    let error: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains("{item}")), "{error}");
    let directory = fs::File::open(world.dir.path()).expect("open");
    let output = world.command(&["map", "--", "echo"]).stdin(directory).output().expect("run");
    assert_eq!(code(output.status), 1);
    assert!(text(&output.stderr).contains("stdin can't be read"), "{}", text(&output.stderr));
}

#[test]
fn an_interrupt_ends_what_runs() {
    let world = World::new("");
    let begun = world.scratch("begun");
    fifo(&begun);
    let script = "trap 'echo > ended-$0; exit 0' TERM; echo $0 > begun; while :; do sleep 1000 & wait; done";
    let child = spawned(&world, &["--slots", "2", "--", "sh", "-c", script, ":::", "1", "2", "3"]);
    assert_eq!(lines_of(&begun, 2).len(), 2);
    interrupt(&child);
    let output = child.wait_with_output().expect("wait");
    assert_eq!((code(output.status), text(&output.stdout).as_str()), (130, ""));
    let ended = names(world.dir.path()).iter().filter(|name| name.as_bytes().starts_with(b"ended-")).count();
    assert_eq!(ended, 2, "each was asked to end, and the third never began");
    assert!(text(&output.stderr).contains("stopped: 0 runs had ended"), "{}", text(&output.stderr));
}

#[test]
fn a_second_interrupt_kills_what_does_not_listen() {
    let world = World::new("");
    let (begun, asked) = (world.scratch("begun"), world.scratch("asked"));
    fifo(&begun);
    fifo(&asked);
    // It answers the request, and goes on.
    let script = "trap 'echo x > asked' TERM; echo $$ > begun; while :; do sleep 1000 & wait; done";
    let child = spawned(&world, &["--", "sh", "-c", script, ":::", "1"]);
    let pid: i32 = lines_of(&begun, 1)[0].parse().expect("a number");
    interrupt(&child);
    lines_of(&asked, 1);
    interrupt(&child);
    let output = child.wait_with_output().expect("wait");
    assert_eq!(code(output.status), 130);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn nobody_is_waited_for_who_does_not_read() {
    let world = World::new("");
    let begun = world.scratch("begun");
    fifo(&begun);
    // More than a pipe holds: it waits for its reader, who is this test and never reads.
    let script = "head -c 1000000 /dev/zero; if [ $0 = 2 ]; then echo x > begun; exec sleep 1000; fi";
    let mut child = spawned(&world, &["-k", "--slots", "2", "--", "sh", "-c", script, ":::", "1", "2"]);
    lines_of(&begun, 1);
    interrupt(&child);
    assert_eq!(code(child.wait().expect("wait")), 130);
}

#[test]
fn a_closed_stdout_ends_it_quietly() {
    let world = World::new("");
    let mut yes = std::process::Command::new("yes").stdout(Stdio::piped()).spawn().expect("start");
    let mut command = world.command(&["map", "--slots", "2", "--", "echo"]);
    command.stdin(yes.stdout.take().expect("its output")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start");
    let mut first = [0; 2];
    child.stdout.take().expect("its output").read_exact(&mut first).expect("read");
    let output = child.wait_with_output().expect("wait");
    assert_eq!((&first, code(output.status), text(&output.stderr).as_str()), (b"y\n", 0, ""));
    yes.kill().expect("killed");
    yes.wait().expect("waited for");
}

#[test]
fn what_a_run_leaves_behind_holds_up_nobody() {
    let world = World::new("");
    let script = "sleep 1000 & echo $!";
    let output = fed(&world, &["--", "sh", "-c", script, ":::", "x"], b"");
    let pid = text(&output.stdout).trim().to_owned();
    assert!(output.status.success() && !pid.is_empty());
    // It has its SIGKILL, and dies when it next gets a core.
    let deadline = std::time::SystemTime::now() + support::LIMIT;
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if status.is_empty() || status.contains(") Z ") {
            break;
        }
        assert!(std::time::SystemTime::now() < deadline, "it was never killed: {status}");
        world.pause();
    }
}
