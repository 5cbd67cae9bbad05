//! One item, one outcome: the built binary from the drop to `done/` or `failed/`.

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use serde_json::{Value, json};
use support::{World, hostile_names, names, text};

fn route(command: &str) -> String {
    format!("[[route]]\nname = \"all\"\nkind = \"any\"\nbackoff = \"10ms\"\ncommand = {command}\n")
}

fn sh(body: &str) -> String {
    route(&json!(["sh", "-c", body, "sh", "{item}", "{out}"]).to_string())
}

#[test]
fn a_dropped_file_ends_in_done_with_all_that_belongs_to_it() {
    let world = World::new(&sh("echo heard; echo trouble >&2; tr a-z A-Z <\"$1\" >\"$2/loud.txt\""));
    world.drop_file("hello.txt", b"hello");
    assert_eq!(world.once().status.code(), Some(0));

    let (dir, result) = world.result("hello.txt");
    let day = dir.parent().and_then(|day| day.file_name()).expect("a day").to_string_lossy().into_owned();
    let job = dir.file_name().expect("a job").to_string_lossy().into_owned();
    assert_eq!(fs::read(dir.join("item/hello.txt")).expect("the item"), b"hello");
    assert_eq!(fs::read(dir.join("out/loud.txt")).expect("the output"), b"HELLO");
    assert_eq!(fs::read_to_string(dir.join("attempt-1.log")).expect("the log"), "heard\ntrouble\n");
    assert!(job.starts_with("hello~") && job.len() == "hello~".len() + 26, "{job}");
    assert_eq!(result["id"], job["hello~".len()..]);
    assert_eq!(result["finished_at"].as_str().map(|at| at[..10].to_owned()), Some(day));
    for (key, value) in [
        ("name", json!("hello.txt")),
        ("name_b64", json!("aGVsbG8udHh0")),
        ("route", json!("all")),
        ("outcome", json!("done")),
        ("reason", Value::Null),
        ("outputs", json!([{ "path": "loud.txt", "bytes": 5 }])),
        ("result", Value::Null),
    ] {
        assert_eq!(result[key], value, "{key}");
    }
    let attempt = &result["attempts"][0];
    assert_eq!(attempt["n"], 1);
    assert_eq!(attempt["devices"], json!(["cpu"]));
    assert_eq!(attempt["exit_code"], 0);
    assert_eq!(attempt["signal"], Value::Null);
    assert_eq!(attempt["counted"], true);
    assert_eq!(attempt["peak_gpu_memory"], Value::Null);
    assert!(attempt["pid"].is_number() && attempt["started_at"].is_string() && attempt["ended_at"].is_string());
    world.assert_empty();
}

#[test]
fn every_way_to_end_has_its_outcome_and_reason() {
    let body = "case $(basename \"$1\") in
        three) exit 3;; final) exit 65;; killed) kill -9 $$;; slow) sleep 100;; fine) : ;;
        outless) : ;; esac; case $1 in *fine) echo x >\"$2/needed\";; esac";
    let routes =
        format!("{}retries = 1\ntimeout = \"400ms\"\nkill_grace = \"200ms\"\noutputs = [\"needed\"]\n", sh(body));
    let world = World::new(&routes);
    for name in ["three", "final", "killed", "slow", "fine", "outless"] {
        world.drop_file(name, b"x");
    }
    assert_eq!(world.once().status.code(), Some(1));
    assert_eq!(
        world.outcomes(),
        [
            "final failed exit",
            "fine done -",
            "killed failed signal",
            "outless failed missing-output",
            "slow failed timeout",
            "three failed exit"
        ]
    );
    let attempts = |name: &str| world.result(name).1["attempts"].as_array().map_or(0, Vec::len);
    assert_eq!((attempts("three"), attempts("final"), attempts("fine"), attempts("slow")), (2, 1, 1, 2));
    let (_, killed) = world.result("killed");
    assert_eq!((&killed["attempts"][0]["signal"], &killed["attempts"][0]["exit_code"]), (&json!(9), &Value::Null));
    world.assert_empty();
}

#[test]
fn an_item_that_succeeds_at_the_third_try_is_done() {
    let world = World::new(&sh("test \"$GAMDOK_ATTEMPT\" = 3 && echo \"try $GAMDOK_ATTEMPT\" >\"$2/which\""));
    world.drop_file("stubborn", b"x");
    world.once();
    let (dir, result) = world.result("stubborn");
    let counted: Vec<&Value> =
        result["attempts"].as_array().expect("attempts").iter().map(|it| &it["counted"]).collect();
    assert_eq!(counted, [true, true, true]);
    assert_eq!(fs::read_to_string(dir.join("out/which")).expect("the output"), "try 3\n");
    assert!(dir.join("attempt-1.log").exists() && dir.join("attempt-3.log").exists());
}

#[test]
fn try_later_isnt_counted() {
    let world = World::new(&sh("test \"$GAMDOK_ATTEMPT\" -ge 5 || exit 75"));
    world.drop_file("patient", b"x");
    world.once();
    let (_, result) = world.result("patient");
    assert_eq!(result["outcome"], "done");
    let counted: Vec<bool> =
        result["attempts"].as_array().expect("attempts").iter().map(|it| it["counted"] == true).collect();
    assert_eq!(counted, [false, false, false, false, true]);
}

#[test]
fn hostile_names_arrive_byte_by_byte() {
    let world = World::new(&sh("cat \"$1\" >\"$2/copy\"; printf %s \"$GAMDOK_NAME\" >\"$2/name\""));
    for name in hostile_names() {
        world.drop_file(name, name.as_bytes());
    }
    assert_eq!(world.once().status.code(), Some(0));
    let results = world.results();
    assert_eq!(results.len(), hostile_names().len());
    for (dir, result) in &results {
        let name = names(&dir.join("item")).remove(0);
        assert_eq!(fs::read(dir.join("out/copy")).expect("the copy"), name.as_bytes(), "{result}");
        assert_eq!(fs::read(dir.join("out/name")).expect("the name"), name.as_bytes(), "{result}");
        assert!(result["name"].as_str().is_some_and(|shown| !shown.chars().any(char::is_control)), "{result}");
    }
    world.assert_empty();
    assert!(!world.scratch("pwned").exists() && !world.root.join("pwned").exists());
}

#[test]
fn a_directory_is_one_item() {
    let world = World::new(&sh("find \"$1\" -type f | wc -l >\"$2/files\""));
    world.drop_dir("scan", &[("a/1.dcm", b"1"), ("a/2.dcm", b"2"), ("b/3.dcm", b"3")]);
    world.once();
    let (dir, _) = world.result("scan");
    assert_eq!(fs::read_to_string(dir.join("out/files")).expect("the output").trim(), "3");
    assert!(dir.join("item/scan/b/3.dcm").exists());
}

#[test]
fn what_no_route_matches_is_held_and_doesnt_block() {
    let world = World::new("[[route]]\nname = \"wav\"\nmatch = [\"*.wav\"]\ncommand = [\"true\"]\n");
    world.drop_file("song.wav", b"x");
    world.drop_file("notes.txt", b"x");
    assert_eq!(world.once().status.code(), Some(0));
    assert_eq!(world.outcomes(), ["song.wav done -"]);
    assert_eq!(names(&world.inbox()), ["notes.txt"]);
    let service = world.start();
    let status = world.until("held", |status| status["counts"]["held"] == 1);
    assert!(status["held"][0]["reason"].as_str().is_some_and(|why| why.contains("route")), "{status}");
    assert_eq!(service.stop(), 0);
}

#[test]
fn the_report_channel_bears_on_the_outcome() {
    let body = r#"id=$GAMDOK_ID
        case $(basename "$1") in
          good) printf '{"type":"progress","fraction":0.5}\n{"type":"done","id":"%s","result":{"words":[1,2.50]}}\n' "$id" >&3;;
          bad) printf '{"type":"failed","id":"%s","error":"no speech","retry":false}\n' "$id" >&3;;
          liar) printf '{"type":"done","id":"%s"}\n' "$id" >&3; exit 4;;
          babble) echo 'hello there' >&3;;
          unknown) echo '{"type":"weather"}' >&3;;
        esac"#;
    // Braces are doubled: single ones would be placeholders.
    let body = body.replace('{', "{{").replace('}', "}}");
    let world = World::new(&format!("{}retries = 0\n", sh(&body)));
    for name in ["good", "bad", "liar", "babble", "unknown"] {
        world.drop_file(name, b"x");
    }
    world.once();
    assert_eq!(
        world.outcomes(),
        ["babble failed protocol", "bad failed reported", "good done -", "liar failed exit", "unknown done -"]
    );
    let raw = fs::read_to_string(world.result("good").0.join("result.json")).expect("result.json");
    assert!(raw.contains("2.50"), "numbers stay as they were reported: {raw}");
    assert_eq!(world.result("good").1["result"], json!({ "words": [1, 2.5] }));
    assert!(world.result("bad").1["message"].as_str().is_some_and(|it| it.contains("no speech")));
}

#[test]
fn placeholders_and_environment_say_the_same() {
    let command = json!([
        "sh",
        "-c",
        "printf '%s\\n' \"$@\" >\"$GAMDOK_OUT/args\"; env | grep -E '^(GAMDOK|CUDA|NVIDIA)' | sort >\"$GAMDOK_OUT/env\"",
        "sh",
        "{item}",
        "{name}",
        "{stem}",
        "{ext}",
        "{out}",
        "{id}",
        "{route}",
        "{attempt}",
        "{device}",
        "{device_id}",
        "[{gpu}]",
        "{{x}}"
    ]);
    let world = World::new(&format!("{}env = {{ EXTRA = \"{{stem}}\" }}\n", route(&command.to_string())));
    world.drop_file("a.b.wav", b"x");
    world.once();
    let (dir, result) = world.result("a.b.wav");
    let args = fs::read_to_string(dir.join("out/args")).expect("the arguments");
    let args: Vec<&str> = args.lines().collect();
    let id = result["id"].as_str().expect("an id");
    assert!(args[0].ends_with("/item/a.b.wav") && args[0].starts_with('/'), "{args:?}");
    assert!(args[4].ends_with("/out"), "{args:?}");
    assert_eq!(args[1..4], ["a.b.wav", "a.b", "wav"]);
    assert_eq!(args[5..], [id, "all", "1", "cpu", "cpu", "[]", "{x}"]);
    let env = fs::read_to_string(dir.join("out/env")).expect("the environment");
    for line in [
        "CUDA_VISIBLE_DEVICES=",
        "GAMDOK_ATTEMPT=1",
        "GAMDOK_DEVICE=cpu",
        "GAMDOK_DEVICE_ID=cpu",
        "GAMDOK_FD=3",
        "GAMDOK_GPUS=0",
        "GAMDOK_NAME=a.b.wav",
        "GAMDOK_ROUTE=all",
        &format!("GAMDOK_ID={id}"),
    ] {
        assert!(env.lines().any(|it| it == line), "no {line} in {env}");
    }
}

#[test]
fn a_command_on_the_line_is_the_one_route() {
    let world = World::new("[[route]]\nname = \"never\"\ncommand = [\"false\"]\n");
    world.drop_file("one", b"1");
    let output = world.gamdok(&["run", "--once", "--", "cat"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let (dir, _) = world.result("one");
    assert_eq!(fs::read_to_string(dir.join("attempt-1.log")).expect("the log"), "1");
}

#[test]
fn two_items_of_one_name_are_two_jobs() {
    let world = World::new(&sh("cat \"$1\" >\"$2/copy\""));
    let service = world.start();
    for content in [b"first", b"other"] {
        world.drop_file("same", content);
        world.wait();
    }
    let mut copies: Vec<String> =
        world.results().iter().map(|(dir, _)| fs::read_to_string(dir.join("out/copy")).expect("the copy")).collect();
    copies.sort();
    assert_eq!(copies, ["first", "other"]);
    assert_eq!(service.stop(), 0);
}

#[test]
fn an_empty_directory_and_an_empty_output_are_something() {
    let world = World::new(&format!(
        "{}retries = 0\noutputs = [\"marker\", \"*.d\"]\n",
        sh("mkdir \"$2/x.d\"; : >\"$2/marker\"")
    ));
    world.drop_dir("empty", &[]);
    world.drop_dir("full", &[("a", b"1")]);
    assert_eq!(world.once().status.code(), Some(0));
    assert_eq!(world.outcomes(), ["empty done -", "full done -"]);
    assert_eq!(world.result("full").1["outputs"], json!([{ "path": "marker", "bytes": 0 }]));
}

#[test]
fn a_directory_whose_inside_changed_after_its_claim_has_failed() {
    let world = World::with(
        "[devices]\nuse = \"cpu\"\ncpu_slots = 1\n",
        &sh("while ! test -e \"$GAMDOK_OUT/../../../go\"; do sleep 0.01; done"),
    );
    let service = world.start();
    world.drop_dir("first", &[("a/b", b"1")]);
    world.until("it runs", |status| status["counts"]["running"] == 1);
    world.drop_dir("second", &[("a/b", b"1")]);
    world.until("it is claimed", |status| status["counts"]["claimed"] == 1);
    let item = world.json(&["show", "second"])["paths"]["item"].as_str().expect("its item").to_owned();
    fs::write(std::path::Path::new(&item).join("a/b"), b"22").expect("change it");
    fs::write(world.root.join("go"), b"").expect("let them go on");
    world.wait();
    assert_eq!(world.outcomes(), ["first done -", "second failed changed"]);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_program_that_isnt_there_is_not_held_against_the_item() {
    let world = World::new(&format!("{}retries = 1\n", route("[\"/no/such/program\"]")));
    world.drop_file("one", b"x");
    assert_eq!(world.once().status.code(), Some(1));
    let (_, result) = world.result("one");
    assert_eq!((&result["outcome"], &result["reason"]), (&json!("failed"), &json!("spawn")));
    let attempts = result["attempts"].as_array().expect("attempts");
    assert_eq!(attempts.len(), 2);
    for attempt in attempts {
        assert_eq!((&attempt["reason"], &attempt["counted"]), (&json!("spawn"), &json!(false)));
        assert_eq!((&attempt["pid"], &attempt["started_at"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn what_is_always_put_off_fails_after_ten_attempts_and_says_how_the_last_ended() {
    let world = World::new(&sh("exit 75").replace("10ms", "1ms"));
    world.drop_file("never", b"x");
    assert_eq!(world.once().status.code(), Some(1));
    let (_, result) = world.result("never");
    assert_eq!((&result["outcome"], &result["reason"]), (&json!("failed"), &json!("exit")));
    assert_eq!(result["attempts"].as_array().map(Vec::len), Some(10));
}

#[test]
fn a_retry_by_hand_starts_with_an_empty_out_and_keeps_what_lay_there() {
    let body = "if [ $GAMDOK_ATTEMPT = 1 ]; then echo half >$GAMDOK_OUT/x.json; exit 1; fi";
    let command = json!(["sh", "-c", body, "sh", "{item}"]);
    let extra = "gpus = 0\nretries = 0\noutputs = [\"x.json\"]";
    let world = World::new(&format!("[[route]]\nname = \"r\"\ncommand = {command}\n{extra}\n"));
    let service = world.start();
    world.drop_file("a", b"x");
    world.wait();
    world.ok(&["retry", "a"]);
    world.wait();
    let (dir, result) = world.result("a");
    assert_eq!((&result["outcome"], &result["reason"]), (&json!("failed"), &json!("missing-output")), "{result}");
    assert_eq!(result["outputs"], json!([]));
    assert_eq!(fs::read(dir.join("out.aborted.1/x.json")).expect("it is kept"), b"half\n");
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_special_file_that_was_cancelled_is_never_retried() {
    let world = World::new("[[route]]\nname = \"r\"\ncommand = [\"cat\", \"{item}\"]\ngpus = 0\n");
    let service = world.start();
    let fifo = world.scratch("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a FIFO");
    fs::rename(&fifo, world.inbox().join("fifo")).expect("drop it");
    world.until("it is held", |status| status["counts"]["held"] == 1);
    world.ok(&["cancel", "fifo"]);
    world.until("it ended", |status| status["counts"]["cancelled"] == 1);
    let output = world.code(&["retry", "fifo"], 1);
    assert!(text(&output.stderr).contains("neither a file nor a directory"), "{}", text(&output.stderr));
    assert_eq!(world.outcomes(), ["fifo cancelled cancelled"]);
    assert_eq!(service.stop(), 0);
}

#[test]
fn an_item_is_in_one_count_at_a_time() {
    let world = World::new("[[route]]\nname = \"r\"\ncommand = [\"true\"]\ngpus = 0\n");
    let service = world.start();
    let mut dropped = 0;
    let counted = |status: &Value| {
        let counts = &status["counts"];
        let words = ["arriving", "ready", "held", "claimed", "running", "retrying", "done", "failed", "cancelled"];
        words.iter().map(|word| counts[word].as_u64().expect("a count")).sum::<u64>()
    };
    for _ in 0..30 {
        for _ in 0..10 {
            world.drop_file(format!("item-{dropped}"), b"x");
            dropped += 1;
        }
        let status = world.status();
        assert!(counted(&status) <= dropped, "{dropped} were dropped: {}", status["counts"]);
    }
    world.wait();
    let status = world.until("all are done", |status| status["counts"]["done"] == dropped);
    assert_eq!(counted(&status), dropped, "{}", status["counts"]);
    assert_eq!(service.stop(), 0);
}
