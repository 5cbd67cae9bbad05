//! What producers do to an inbox, against the built binary: nothing half-read, nothing lost, nothing ignored silently.

mod support;

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::symlink;

use serde_json::json;
use support::{World, names};

const QUICK: &str = "[inbox]\nsettle = \"300ms\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";

fn copying() -> String {
    let command = json!(["sh", "-c", "cp -r \"$1\" \"$2/copy\"", "sh", "{item}", "{out}"]);
    format!("[[route]]\nname = \"copy\"\nkind = \"any\"\nbackoff = \"10ms\"\ncommand = {command}\n")
}

#[test]
fn an_open_writer_is_waited_for() {
    let world = World::with(QUICK, &copying());
    let service = world.start();
    let mut file = File::create(world.inbox().join("slow")).expect("create it in place");
    file.write_all(b"first half, ").expect("write");
    world.until("arriving", |status| status["counts"]["arriving"] == 1);
    // Longer than the settle time, by the clock of another item that arrived later and passes it.
    world.drop_file("other", b"x");
    fs::write(world.inbox().join("whole"), b"y").expect("a whole file in place");
    world.until("the others are done", |status| status["counts"]["done"] == 2);
    assert_eq!(names(&world.inbox()), ["slow"]);
    file.write_all(b"second half").expect("write");
    drop(file);
    world.until("it is done", |status| status["counts"]["done"] == 3);
    let (dir, _) = world.result("slow");
    assert_eq!(fs::read(dir.join("out/copy")).expect("the copy"), b"first half, second half");
    assert_eq!(service.stop(), 0);
}

#[test]
fn what_is_renamed_in_under_an_open_writer_waits_for_it() {
    let world = World::with(QUICK, &copying());
    let service = world.start();
    let outside = world.scratch("early");
    let mut file = File::create(&outside).expect("create it");
    file.write_all(b"first, ").expect("write");
    fs::rename(&outside, world.inbox().join("early")).expect("rename it in too early");
    world.drop_file("other", b"x");
    world.until("the other is done", |status| status["counts"]["done"] == 1);
    assert_eq!(names(&world.inbox()), ["early"]);
    file.write_all(b"last").expect("write");
    file.rewind().expect("rewind");
    drop(file);
    world.until("it is done", |status| status["counts"]["done"] == 2);
    let (dir, _) = world.result("early");
    assert_eq!(fs::read(dir.join("out/copy")).expect("the copy"), b"first, last");
    assert_eq!(service.stop(), 0);
}

#[test]
fn links_special_files_and_temporary_names_are_told_of_and_left_alone() {
    let world = World::with(QUICK, &copying());
    let secret = world.scratch("secret");
    fs::write(&secret, b"secret").expect("write");
    symlink(&secret, world.inbox().join("link")).expect("a symlink");
    symlink("/nonexistent", world.inbox().join("dangling")).expect("a dangling symlink");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        world.inbox().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("a FIFO");
    for name in [".hidden", "upload.part", "film.crdownload", "draft~", ".~lock.x#"] {
        world.drop_file(name, b"x");
    }
    world.drop_file("fine", b"x");
    let service = world.start();
    let status = world.until("all is judged", |status| status["counts"]["done"] == 1 && status["counts"]["held"] == 3);
    for it in status["held"].as_array().expect("held") {
        assert!(it["reason"].as_str().is_some_and(|why| !why.is_empty()), "{it}");
    }
    assert_eq!(status["counts"]["ignored"], 5, "{status:#}");
    assert_eq!(world.outcomes(), ["fine done -"]);
    assert_eq!(names(&world.inbox()).len(), 8);
    assert_eq!(fs::read(&secret).expect("the link's target"), b"secret");
    assert_eq!(service.stop(), 0);
}

#[test]
fn an_inbox_renamed_away_and_made_again_goes_on() {
    let world = World::with(QUICK, &copying());
    let service = world.start();
    world.drop_file("before", b"1");
    world.until("the first is done", |status| status["counts"]["done"] == 1);
    let away = world.root.join("inbox.away");
    fs::rename(world.inbox(), &away).expect("rename it away");
    world.until("noticed", |status| health(status, "inbox") == "failed");
    fs::create_dir(world.inbox()).expect("make it again");
    world.until("well again", |status| health(status, "inbox") == "ok");
    world.drop_file("after", b"2");
    world.until("the second is done", |status| status["counts"]["done"] == 2);
    fs::write(away.join("elsewhere"), b"x").expect("the old inbox is nobody's");
    world.drop_file("third", b"3");
    world.until("the third is done", |status| status["counts"]["done"] == 3);
    assert_eq!(names(&away), ["elsewhere"]);
    assert_eq!(service.stop(), 0);
}

fn health(status: &serde_json::Value, what: &str) -> String {
    let checks = status["health"].as_array().expect("health");
    let check = checks.iter().find(|it| it["what"] == what).unwrap_or_else(|| panic!("{what} in {status:#}"));
    check["state"].as_str().expect("a state").to_owned()
}

#[test]
fn without_events_polling_finds_everything() {
    let settings = "[inbox]\nsettle = \"100ms\"\nwatch = \"poll\"\npoll_interval = \"100ms\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";
    let world = World::with(settings, &copying());
    let service = world.start();
    world.drop_file("renamed", b"x");
    fs::write(world.inbox().join("written"), b"x").expect("write in place");
    world.drop_dir("dir", &[("a", b"x")]);
    world.until("all are done", |status| status["counts"]["done"] == 3);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_marker_a_size_and_a_manifest_are_waited_for() {
    let route = |name: &str, ready: &str| {
        format!("[[route]]\nname = \"{name}\"\nfolder = \"{name}\"\nready = {{ {ready} }}\ncommand = [\"true\"]\n")
    };
    let routes =
        [route("marked", "marker = \".done\""), route("sized", "min_bytes = 3"), route("listed", "manifest = true")]
            .concat();
    let world = World::with(QUICK, &routes);
    for folder in ["marked", "sized", "listed"] {
        fs::create_dir(world.inbox().join(folder)).expect("an intake folder");
        fs::write(world.inbox().join(folder).join("it"), b"12").expect("an item");
    }
    let service = world.start();
    world.until("none is taken", |status| {
        let counts = &status["counts"];
        counts["arriving"].as_u64().unwrap_or(0) + counts["held"].as_u64().unwrap_or(0) == 3
    });
    assert!(world.results().is_empty());
    fs::write(world.inbox().join("marked/it.done"), b"").expect("the marker");
    world.until("the marked one is done", |status| status["counts"]["done"] == 1);
    fs::write(world.inbox().join("sized/it"), b"123").expect("grown");
    world.until("the sized one is done", |status| status["counts"]["done"] == 2);
    let manifest = json!({ "bytes": 2, "sha256": "6b51d431df5d7f141cbececcf79edf3dd861c3b4069f0b11661a3eefacbba918" });
    fs::write(world.inbox().join("listed/it.manifest.json"), manifest.to_string()).expect("the manifest");
    world.until("the listed one is done", |status| status["counts"]["done"] == 3);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_withdrawn_item_is_gone_without_a_trace() {
    let world = World::with(QUICK, &copying());
    let service = world.start();
    world.ok(&["pause"]);
    world.drop_file("regret", b"x");
    world.until("ready", |status| status["counts"]["ready"] == 1);
    fs::remove_file(world.inbox().join("regret")).expect("withdraw it");
    world.until("forgotten", |status| status["counts"]["ready"] == 0);
    world.ok(&["resume"]);
    world.drop_file("other", b"x");
    world.until("the other is done", |status| status["counts"]["done"] == 1);
    assert_eq!(world.outcomes(), ["other done -"]);
    assert_eq!(service.stop(), 0);
}

#[test]
fn an_empty_directory_is_an_item_too() {
    let route = "[[route]]\nname = \"any\"\nkind = \"any\"\nready = { settle = \"200ms\" }\ncommand = [\"true\"]\n";
    let world = World::with(QUICK, route);
    let service = world.start();
    world.drop_dir("renamed", &[]);
    fs::create_dir(world.inbox().join("made")).expect("one made in place");
    world.until("both have ended", |status| {
        status["counts"]["done"].as_u64().unwrap_or(0) + status["counts"]["failed"].as_u64().unwrap_or(0) == 2
    });
    assert_eq!(world.outcomes(), ["made done -", "renamed done -"]);
    assert_eq!(service.stop(), 0);
}
