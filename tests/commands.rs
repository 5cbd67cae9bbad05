//! The command line's contract: shapes, exit codes, names of jobs, with a director and without.

mod support;

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{World, names, text};

fn shell(body: &str, extra: &str) -> String {
    let command = json!(["sh", "-c", body, "sh", "{item}", "{out}"]);
    format!("[[route]]\nname = \"work\"\nbackoff = \"10ms\"\nretries = 0\ncommand = {command}\n{extra}")
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map_or_else(Vec::new, |object| object.keys().map(String::as_str).collect())
}

#[track_caller]
fn assert_keys(value: &Value, expected: &[&str]) {
    for key in expected {
        assert!(keys(value).contains(key), "no `{key}` in {value:#}");
    }
}

#[test]
fn status_and_list_have_their_shape_with_and_without_a_director() {
    let world = World::new(&shell("case $1 in *bad) exit 1;; esac", ""));
    for name in ["good", "bad"] {
        world.drop_file(name, b"x");
    }
    world.once();
    let service = world.start();
    let running = world.until("ready", |status| status["counts"]["done"] == 1);
    assert_eq!(service.stop(), 0);
    let stopped = world.status();
    for (status, state, pid) in [(&running, "running", true), (&stopped, "stopped", false)] {
        assert_keys(
            status,
            &["version", "pid", "root", "mode", "state", "uptime_s", "counts", "devices", "running", "held", "health"],
        );
        let counts = ["arriving", "ready", "held", "claimed", "running", "retrying", "done", "failed", "cancelled"];
        assert_keys(&status["counts"], &counts);
        assert_eq!((&status["state"], status["pid"].is_number()), (&json!(state), pid));
        assert_eq!((&status["counts"]["done"], &status["counts"]["failed"]), (&json!(1), &json!(1)));
    }
    let device = &running["devices"][0];
    assert_keys(
        device,
        &[
            "id",
            "index",
            "kind",
            "name",
            "verdict",
            "reason",
            "slots",
            "leases",
            "memory_total",
            "memory_used",
            "utilization",
            "temperature",
            "power_w",
        ],
    );
    assert_eq!((&device["id"], &device["verdict"], &device["slots"]), (&json!("cpu"), &json!("free"), &json!(2)));
    let rows = world.json(&["list"]);
    assert_eq!(rows.as_array().map(Vec::len), Some(2));
    for row in rows.as_array().expect("rows") {
        assert_keys(
            row,
            &["id", "job", "name", "route", "state", "attempts", "devices", "arrived_at", "finished_at", "reason"],
        );
    }
    assert_eq!(world.json(&["list", "--state", "failed"])[0]["name"], "bad");
    assert_eq!(world.json(&["list", "--route", "nobody"]), json!([]));
}

#[test]
fn a_job_is_named_by_directory_ulid_prefix_or_item() {
    let world = World::new(&shell("echo said", ""));
    world.drop_file("one.txt", b"x");
    world.once();
    let (dir, result) = world.result("one.txt");
    let id = result["id"].as_str().expect("an id");
    let job = dir.file_name().and_then(|name| name.to_str()).expect("a name");
    for reference in [job, id, &id[..20], &id.to_lowercase(), "one.txt", &job[..12]] {
        let shown = world.json(&["show", reference]);
        assert_eq!(shown["id"], id, "{reference}");
        assert_keys(&shown, &["paths", "result"]);
        assert_keys(&shown["paths"], &["dir", "item", "out", "logs"]);
        assert_eq!(world.ok(&["logs", reference]), "said\n");
    }
    let missing = world.code(&["show", "nothing", "--json"], 1);
    let error: Value = serde_json::from_slice(&missing.stderr).expect("JSON on stderr");
    assert_keys(&error["error"], &["code", "message", "help"]);
}

#[test]
fn all_that_lies_in_the_inbox_is_listed_with_and_without_a_director() {
    // More than the director lists of either.
    const READY: usize = 1_400;
    const HELD: usize = 1_100;
    let world =
        World::with("[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\n", &shell(":", "match = [\"*.txt\"]\n"));
    let service = world.start();
    world.ok(&["pause"]);
    for n in 0..READY {
        world.drop_file(format!("{n}.txt"), b"x");
    }
    for n in 0..HELD {
        world.drop_file(format!("{n}.pdf"), b"x");
    }
    let counted = |status: &Value, state: &str| status["counts"][state].as_u64() == Some(READY as u64);
    world.until("all are counted", |status| counted(status, "ready") && status["counts"]["held"] == HELD);
    let check = |of_txt: &str| {
        let rows = world.json(&["list"]);
        let rows = rows.as_array().expect("rows");
        for (end, state, n) in [(".txt", of_txt, READY), (".pdf", "held", HELD)] {
            let names: std::collections::BTreeSet<&str> =
                rows.iter().filter(|row| row["state"] == state).filter_map(|row| row["name"].as_str()).collect();
            assert_eq!((names.len(), names.iter().all(|name| name.ends_with(end))), (n, true), "{state}");
        }
        assert_eq!(rows.len(), READY + HELD);
        let held = world.json(&["list", "--state", "held", "--limit", "1050"]);
        assert_eq!(held.as_array().map(Vec::len), Some(1050));
        let route = world.json(&["list", "--route", "work"]);
        assert_eq!(route.as_array().map(Vec::len), Some(READY));
    };
    check("ready");
    service.kill();
    let status = world.status();
    assert!(counted(&status, "arriving") && status["counts"]["held"] == HELD, "{status:#}");
    check("arriving");
    let waiting = &world.json(&["list", "--state", "arriving", "--limit", "1"])[0]["reason"];
    assert_eq!(waiting, "not judged: no director runs");
}

#[test]
fn what_run_once_leaves_held_is_said() {
    let world = World::new(&shell(":", "match = [\"*.txt\"]\n"));
    for name in ["a.txt", "b.pdf", "c.pdf"] {
        world.drop_file(name, b"x");
    }
    let output = world.code(&["run", "--once", "--json"], 0);
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&said["done"], &said["held"]), (&json!(1), &json!(2)));
    let log = text(&output.stderr);
    assert!(log.contains("held items stay in the inbox") && log.contains("no route matches it"), "{log}");
}

#[test]
fn what_is_piped_is_not_cut() {
    let world = World::new(&shell(":", "match = [\"*.txt\"]\n"));
    let name = format!("{}.pdf", "a-long-name-".repeat(15));
    world.drop_file(&name, b"x");
    world.once();
    for (args, columns) in [(["list"], None), (["status"], None), (["list"], Some("80"))] {
        let mut command = world.command(&args);
        if let Some(columns) = columns {
            command.env("COLUMNS", columns);
        }
        let printed = text(&command.output().expect("run gamdok").stdout);
        assert_eq!(printed.contains(&name), columns.is_none(), "{printed}");
    }
}

#[test]
fn a_start_with_too_few_open_files_says_that() {
    let world = World::new(&shell(":", ""));
    for limit in ["14", "25", "40"] {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n \"$1\" && exec \"$0\" run --once", env!("CARGO_BIN_EXE_gamdok"), limit]);
        let output = command.env("GAMDOK_ROOT", &world.root).output().expect("run gamdok");
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.starts_with("error: too few files can be opened") && told.contains("raise the limit"), "{told}");
    }
}

#[test]
fn items_of_one_name_are_told_apart_by_their_folders() {
    let route = |folder: &str| {
        format!(
            "{}folder = \"{folder}\"\nmatch = [\"*.txt\"]\n",
            shell(":", "").replace("name = \"", &format!("name = \"{folder}"))
        )
    };
    let world = World::new(&format!("{}{}", route("high"), route("low")));
    let service = world.start();
    for path in ["same", "high/same", "low/same", "low/same.part"] {
        world.drop_file(path, b"x");
    }
    world.until("they are held", |status| status["counts"]["held"] == 3 && status["counts"]["ignored"] == 1);
    let told = text(&world.code(&["show", "same"], 1).stderr);
    for path in ["./same", "high/same", "low/same"] {
        assert!(told.contains(path), "{told}");
        assert_eq!(world.json(&["show", path])["state"], "held", "{path}");
    }
    world.ok(&["cancel", "low/same"]);
    world.until("it is cancelled", |status| status["counts"]["cancelled"] == 1);
    assert_eq!(world.json(&["show", "low/same"])["state"], "cancelled");
    assert_eq!(names(&world.inbox().join("low")), ["same.part"]);
    // What is no item isn't cancelled.
    let told = text(&world.code(&["cancel", "same.part"], 1).stderr);
    assert!(told.contains("temporary name"), "{told}");
    assert_eq!(service.stop(), 0);
    assert_eq!(world.json(&["show", "low/same"])["state"], "cancelled");
    for command in ["show", "logs", "cancel", "retry", "wait"] {
        let told = text(&world.code(&[command, ""], 2).stderr);
        assert!(told.contains("an empty name names nothing"), "{command}: {told}");
    }
}

#[test]
fn control_commands_need_a_director() {
    let world = World::new(&shell(":", ""));
    for args in [
        &["pause"][..],
        &["resume"],
        &["drain"],
        &["cancel", "x"],
        &["retry", "--failed"],
        &["cordon", "cpu"],
        &["release"],
    ] {
        world.code(args, 3);
    }
    world.code(&["frobnicate"], 2);
    world.code(&["run", "--no-such-flag"], 2);
}

#[test]
fn retry_brings_failed_items_back_under_the_same_id() {
    let world = World::new(&shell("test -e \"$GAMDOK_OUT/../../../allowed\"", ""));
    for name in ["a", "b"] {
        world.drop_file(name, b"x");
    }
    let service = world.start();
    world.wait();
    assert_eq!(world.outcomes(), ["a failed exit", "b failed exit"]);
    let id = world.result("a").1["id"].clone();
    fs::write(world.root.join("allowed"), b"").expect("allow it");
    world.ok(&["retry", "a"]);
    world.ok(&["wait", id.as_str().expect("an id")]);
    assert_eq!(world.outcomes(), ["a done -", "b failed exit"]);
    let (dir, result) = world.result("a");
    assert_eq!(result["id"], id);
    let numbers: Vec<&Value> = result["attempts"].as_array().expect("attempts").iter().map(|it| &it["n"]).collect();
    assert_eq!(numbers, [1, 2]);
    assert!(dir.join("result.1.json").exists(), "{:?}", names(&dir));
    world.ok(&["retry", "--failed"]);
    world.wait();
    assert_eq!(world.outcomes(), ["a done -", "b done -"]);
    let status = world.status();
    assert_eq!((&status["counts"]["done"], &status["counts"]["failed"]), (&json!(2), &json!(0)));
    assert_eq!(service.stop(), 0);
}

#[test]
fn cancel_ends_waiting_running_and_unclaimed_items() {
    let world = World::new(&shell("exec sleep 1000", "kill_grace = \"100ms\"\n"));
    for n in 0..9 {
        world.drop_file(format!("item-{n}"), b"x");
    }
    let service = world.start();
    world.until("two run", |status| status["running"].as_array().map(Vec::len) == Some(2));
    let all: Vec<String> = (0..9).map(|n| format!("item-{n}")).collect();
    let mut args = vec!["cancel"];
    args.extend(all.iter().map(String::as_str));
    world.ok(&args);
    world.until("all are cancelled", |status| status["counts"]["cancelled"] == 9);
    assert!(world.outcomes().iter().all(|it| it.ends_with("cancelled cancelled")), "{:?}", world.outcomes());
    assert_eq!(names(&world.root.join("done")).len(), 0);
    world.assert_empty();
    world.code(&["cancel", "item-1"], 1);
    assert_eq!(service.stop(), 0);
}

#[test]
fn pause_holds_starts_and_resume_lets_them_go() {
    let world = World::new(&shell(":", ""));
    let service = world.start();
    world.ok(&["pause"]);
    world.drop_file("one", b"x");
    let status = world.until("ready", |status| status["counts"]["ready"] == 1);
    assert_eq!(status["state"], "paused");
    let why = world.json(&["list"])[0]["reason"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains("paused")), "{why}");
    world.ok(&["resume"]);
    world.ok(&["wait"]);
    assert_eq!(world.outcomes(), ["one done -"]);
    world.ok(&["drain"]);
    let mut service = service;
    assert_eq!(service.wait(), 0);
}

#[test]
fn a_cordoned_device_takes_nothing_until_uncordoned() {
    let world = World::with(
        "[devices]\nuse = \"sim\"\nsim = { gpus = 2, memory = \"8GiB\" }\n",
        &shell("echo $GAMDOK_DEVICE_ID", ""),
    );
    let service = world.start();
    let gpus = world.json(&["gpus"]);
    let ids: Vec<&str> = gpus
        .as_array()
        .expect("devices")
        .iter()
        .filter(|it| it["kind"] == "sim")
        .filter_map(|it| it["id"].as_str())
        .collect();
    assert_eq!(ids.len(), 2, "{gpus:#}");
    world.ok(&["cordon", "0"]);
    for n in 0..6 {
        world.drop_file(format!("item-{n}"), b"x");
    }
    world.wait();
    let used: Vec<String> =
        world.results().iter().map(|(_, result)| result["attempts"][0]["devices"][0].to_string()).collect();
    assert!(used.iter().all(|id| id.contains(ids[1])), "{used:?}");
    let cordoned = world.json(&["gpus"]);
    assert_eq!(cordoned[0]["verdict"], "unhealthy", "{cordoned:#}");
    assert!(cordoned[0]["reason"].as_str().is_some_and(|why| why.contains("cordon")));
    world.ok(&["uncordon", "0"]);
    assert_eq!(world.json(&["gpus"])[0]["verdict"], "free");
    world.code(&["cordon", "17"], 1);
    assert_eq!(service.stop(), 0);
}

#[test]
fn logs_can_be_followed_to_the_end() {
    let world = World::new(&shell(
        "echo first; while ! test -e \"$GAMDOK_OUT/../../../go\"; do sleep 0.01; done; echo last",
        "",
    ));
    let service = world.start();
    world.drop_file("one", b"x");
    world.until("it runs", |status| status["running"][0]["pid"].is_number());
    let follower = world.command(&["logs", "-f", "one"]).stdout(Stdio::piped()).spawn().expect("follow");
    fs::write(world.root.join("go"), b"").expect("let it go on");
    let output = follower.wait_with_output().expect("its end");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "first\nlast\n"));
    assert_eq!(service.stop(), 0);
}

#[test]
fn wait_tells_by_its_exit_code_whether_any_failed() {
    let world = World::new(&shell(
        "case $1 in *bad) while ! test -e \"$GAMDOK_OUT/../../../go\"; do sleep 0.01; done; exit 1;; esac",
        "",
    ));
    let service = world.start();
    world.drop_file("good", b"x");
    world.code(&["wait"], 0);
    world.drop_file("bad", b"x");
    world.until("it runs", |status| status["running"][0]["pid"].is_number());
    fs::write(world.root.join("go"), b"").expect("let it end");
    world.until("it has failed", |status| status["counts"]["failed"] == 1);
    world.code(&["wait", "good"], 0);
    world.code(&["wait", "bad"], 1);
    assert_eq!(world.json(&["wait", "good"])[0]["state"], "done");
    assert_eq!(service.stop(), 0);
}

#[test]
fn init_never_overwrites() {
    let world = World::new(&shell(":", ""));
    let before = fs::read(world.root.join("gamdok.toml")).expect("the configuration");
    let uuid = fs::read(world.root.join(".gamdok/root.json")).expect("the sentinel");
    world.ok(&["init"]);
    assert_eq!(fs::read(world.root.join("gamdok.toml")).expect("the configuration"), before);
    assert_eq!(fs::read(world.root.join(".gamdok/root.json")).expect("the sentinel"), uuid);
    let fresh = world.scratch("fresh");
    world.ok(&["init", fresh.to_str().expect("text")]);
    world.ok(&["check", "--root", fresh.to_str().expect("text")]);
    let mode = |path: &str| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(fresh.join(path)).expect(path).permissions()) & 0o777
    };
    assert_eq!((mode(""), mode("inbox"), mode("claimed")), (0o750, 0o770, 0o700));
}

#[test]
fn a_changed_configuration_applies_without_a_restart_and_a_wrong_one_changes_nothing() {
    const CPU: &str = "[devices]\nuse = \"cpu\"\n";
    let world = World::with(CPU, &shell("echo old", ""));
    let service = world.start();
    let health = |status: &Value| {
        let checks = status["health"].as_array().expect("health");
        checks.iter().find(|it| it["what"] == "config").map(|it| it["state"].clone())
    };
    world.drop_file("held.wav", b"x");
    world.wait();
    world.configure(CPU, "[[route]]\nname = \"wrong\"\ncomand = [\"true\"]\n");
    world.until("the wrong one is reported", |status| health(status) == Some(json!("failed")));
    world.drop_file("two", b"x");
    world.wait();
    assert_eq!(fs::read_to_string(world.result("two").0.join("attempt-1.log")).expect("log"), "old\n");
    world.configure(CPU, &shell("echo new", ""));
    world.until("the right one is in force", |status| health(status) == Some(json!("ok")));
    world.drop_file("three", b"x");
    world.wait();
    assert_eq!(fs::read_to_string(world.result("three").0.join("attempt-1.log")).expect("log"), "new\n");
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_wrong_configuration_shows_its_line_and_exits_2() {
    let world = World::new("[[route]]\nname = \"x\"\ncommand = [\"true\"]\ntimeout = \"soon\"\n");
    for command in [&["check"][..], &["run", "--once"]] {
        let said = text(&world.code(command, 2).stderr);
        assert!(said.contains("timeout") && said.contains("soon"), "{said}");
    }
}

#[test]
fn a_retry_by_hand_has_tries_of_its_own() {
    let world = World::new(&shell("exit 1", "").replace("retries = 0", "retries = 1"));
    let service = world.start();
    world.drop_file("one", b"x");
    world.code(&["wait", "one"], 1);
    world.ok(&["retry", "one"]);
    world.code(&["wait", "one"], 1);
    let result = &world.json(&["show", "one"])["result"];
    let numbers: Vec<&Value> = result["attempts"].as_array().expect("attempts").iter().map(|it| &it["n"]).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    let dir = world.result("one").0;
    assert!(dir.join("result.1.json").exists() && dir.join("attempt-4.log").exists());
    assert_eq!(service.stop(), 0);
}

#[test]
fn run_init_makes_all_that_init_makes() {
    let world = World::new("");
    for extra in [&[][..], &["--", "true"]] {
        let fresh = world.scratch(&format!("fresh-{}", extra.len()));
        let root = fresh.to_str().expect("text");
        world.ok(&[&["run", "--init", "--once", "--root", root][..], extra].concat());
        for name in ["inbox", "claimed", "done", "failed", ".gamdok/root.json", "gamdok.toml"] {
            assert!(fresh.join(name).exists(), "no {name}");
        }
        let config = fs::metadata(fresh.join("gamdok.toml")).expect("the configuration");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&config.permissions()) & 0o777, 0o600);
    }
}

#[test]
fn old_jobs_are_removed_when_the_configuration_says_so() {
    let settings = "[devices]\nuse = \"cpu\"\n[history]\nkeep_done = \"1s\"\n";
    let world = World::with(settings, &shell("case $1 in *bad) exit 1;; esac", ""));
    let service = world.start();
    for name in ["good", "bad"] {
        world.drop_file(name, b"x");
    }
    world.wait();
    world.until("the good one is gone", |status| status["counts"]["done"] == 0);
    assert_eq!(world.status()["counts"]["failed"], 1);
    let listed = world.json(&["list"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed:#}");
    world.code(&["show", "good"], 1);
    assert_eq!(world.outcomes(), ["bad failed exit"]);
    assert_eq!(service.stop(), 0);
}

#[test]
fn what_keeps_the_interface_from_opening_has_its_exit_code() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let listen = |listen: &str| format!("[devices]\nuse = \"cpu\"\n[api]\n{listen}\n");
    let world = World::with(&listen(&format!("listen = \"127.0.0.1:{port}\"")), "");
    world.code(&["run", "--once"], 1);
    world.configure(&listen("listen = \"0.0.0.0:0\"\ntoken_file = \"missing\""), "");
    let said = text(&world.code(&["run", "--once"], 2).stderr);
    assert!(said.contains("token_file") && said.contains("missing"), "{said}");
}

#[test]
fn the_uptime_is_that_of_the_moment() {
    let world = World::new(&shell(":", ""));
    let service = world.start();
    let first = world.status()["uptime_s"].as_f64().expect("a number");
    world.until("it grows", |status| status["uptime_s"].as_f64().is_some_and(|now| now > first + 0.1));
    assert_eq!(service.stop(), 0);
}

#[test]
fn missing_intake_folders_are_made_at_the_start_and_for_a_changed_configuration() {
    let route =
        |name: &str| format!("[[route]]\nname = \"{name}\"\nfolder = \"{name}\"\ncommand = [\"true\"]\ngpus = 0\n");
    let world = World::new(&route("audio"));
    let service = world.start();
    assert_eq!(names(&world.inbox()), ["audio"]);
    fs::remove_dir(world.inbox().join("audio")).expect("it vanishes");
    let settings = "[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";
    world.until("it is told", |status| {
        let health = status["health"].as_array().expect("health");
        health.iter().any(|it| {
            it["message"].as_str().is_some_and(|text| text.contains("inbox/audio") && text.contains("missing"))
        })
    });
    assert!(names(&world.inbox()).is_empty(), "what vanished isn't made again by itself");
    world.configure(settings, &[route("audio"), route("images")].concat());
    world.until("both are there", |_| names(&world.inbox()) == ["audio", "images"]);
    // The interface goes by the new one too.
    world.ok(&["pause"]);
    world.drop_file("images/a", b"x");
    world.until("it is ready", |status| status["counts"]["ready"] == 1);
    assert_eq!(world.json(&["show", "images/a"])["state"], "ready");
    world.ok(&["resume"]);
    world.wait();
    assert_eq!(world.outcomes(), ["a done -"]);
    assert_eq!(service.stop(), 0);

    fs::remove_dir(world.inbox().join("images")).expect("empty");
    let made = world.ok(&["init"]);
    assert!(made.contains("inbox/images"), "{made}");
}

#[test]
fn an_empty_command_behind_the_dashes_is_no_command() {
    let world = World::new("[[route]]\nname = \"r\"\ncommand = [\"true\"]\ngpus = 0\n");
    world.drop_file("a", b"x");
    let output = world.code(&["run", "--once", "--"], 2);
    assert!(text(&output.stderr).contains("no command behind `--`"), "{}", text(&output.stderr));
    assert_eq!(names(&world.inbox()), ["a"]);
}

#[test]
fn a_removed_socket_is_made_again_and_meanwhile_nobody_hears_that_no_director_runs() {
    let world = World::new("[[route]]\nname = \"r\"\ncommand = [\"true\"]\n");
    let service = world.start();
    // The director has had its first look.
    world.status();
    fs::remove_file(world.root.join(".gamdok/sock")).expect("remove the socket");
    let output = world.code(&["status"], 1);
    let said = text(&output.stderr);
    assert!(said.contains("its socket is gone") && said.contains(&service.pid().to_string()), "{said}");
    let deadline = std::time::SystemTime::now() + support::LIMIT;
    while !world.gamdok(&["status"]).status.success() {
        assert!(std::time::SystemTime::now() < deadline, "the socket is never made again");
        world.pause();
    }
    world.ok(&["drain"]);
    let mut service = service;
    assert_eq!(service.wait(), 0);
    world.code(&["pause"], 3);
}
