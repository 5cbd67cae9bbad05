use super::*;
use std::time::Duration;

fn at(seconds: u64) -> Moment {
    Moment(Duration::from_secs(seconds))
}

fn gpu() -> Vec<DeviceId> {
    vec![DeviceId("GPU-0".to_owned())]
}

const NOW: u64 = 100;

/// Stages by the names of the table's columns.
fn stage(name: &str) -> Stage {
    let stopping = |why| Stage::Stopping { n: 2, on: gpu(), why, since: at(1) };
    match name {
        "claiming" => Stage::Claiming,
        "claimed" => Stage::Claimed { next: 2, since: at(1) },
        "preparing" => Stage::Preparing { n: 2, on: gpu(), since: at(1) },
        "running" => Stage::Running { n: 2, on: gpu(), since: at(1) },
        "cancelling" => stopping(StopWhy::Cancelled),
        "shutting" => stopping(StopWhy::Shutdown),
        "losing" => stopping(StopWhy::DeviceLost),
        "early" => Stage::Retrying { next: 2, at: at(NOW + 1) },
        "due" => Stage::Retrying { next: 2, at: at(NOW) },
        "committing" => Stage::Committing { outcome: Outcome::Failed },
        "ended" => Stage::Ended { outcome: Outcome::Failed },
        "withdrawn" => Stage::Withdrawn,
        other => panic!("no stage `{other}`"),
    }
}

/// Steps by the names of the table's rows.
fn step(name: &str) -> Step {
    match name {
        "Claimed" => Step::Claimed,
        "Withdraw" => Step::Withdraw,
        "Lease" => Step::Lease { on: gpu() },
        "Launch" => Step::Launch,
        "Unlease" => Step::Unlease,
        "Cancel" => Step::Stop { why: StopWhy::Cancelled },
        "Shutdown" => Step::Stop { why: StopWhy::Shutdown },
        "Lose" => Step::Stop { why: StopWhy::DeviceLost },
        "Retry" => Step::Retry { at: at(NOW + 9) },
        "Due" => Step::Due,
        "Commit" => Step::Commit { outcome: Outcome::Done },
        "Requeue" => Step::Requeue,
        "Filed" => Step::Filed,
        other => panic!("no step `{other}`"),
    }
}

/// What came of it, in a cell's words; the number is the attempt's.
fn cell(result: Result<Stage, IllegalStep>) -> String {
    match result {
        Err(_) => "-".to_owned(),
        Ok(Stage::Claiming) => "claiming".to_owned(),
        Ok(Stage::Claimed { next, since }) => {
            assert_eq!(since, at(NOW));
            format!("claimed{next}")
        }
        Ok(Stage::Preparing { n, on, since }) => {
            assert_eq!((on, since), (gpu(), at(NOW)));
            format!("prepare{n}")
        }
        Ok(Stage::Running { n, on, since }) => {
            assert_eq!((on, since), (gpu(), at(NOW)));
            format!("run{n}")
        }
        Ok(Stage::Stopping { n, on, why, since }) => {
            assert_eq!((on, since), (gpu(), at(1)), "how long it ran is not forgotten");
            match why {
                StopWhy::Cancelled => format!("cancel{n}"),
                StopWhy::Shutdown => format!("shut{n}"),
                StopWhy::DeviceLost => format!("lose{n}"),
            }
        }
        Ok(Stage::Retrying { next, at: time }) => {
            assert_eq!(time, at(NOW + 9));
            format!("retry{next}")
        }
        Ok(Stage::Committing { outcome }) => format!("commit:{}", outcome.as_str()),
        Ok(Stage::Ended { outcome }) => format!("end:{}", outcome.as_str()),
        Ok(Stage::Withdrawn) => "gone".to_owned(),
    }
}

/// Every stage by every step; `-` is refused.
const LIFECYCLE: &str = "
          claiming claimed     preparing   running     cancelling  shutting    losing      early       due         committing ended withdrawn
Claimed   claimed1 -           -           -           -           -           -           -           -           -          -     -
Withdraw  gone     -           -           -           -           -           -           -           -           -          -     -
Lease     -        prepare2    -           -           -           -           -           -           -           -          -     -
Launch    -        -           run2        -           -           -           -           -           -           -          -     -
Unlease   -        -           claimed2    claimed2    -           claimed2    claimed2    -           -           -          -     -
Cancel    -        -           cancel2     cancel2     cancel2     cancel2     cancel2     -           -           -          -     -
Shutdown  -        -           shut2       shut2       cancel2     shut2       lose2       -           -           -          -     -
Lose      -        -           lose2       lose2       cancel2     shut2       lose2       -           -           -          -     -
Retry     -        retry3      retry3      retry3      retry3      retry3      retry3      -           -           -          -     -
Due       -        -           -           -           -           -           -           -           claimed2    -          -     -
Commit    -        commit:done commit:done commit:done commit:done commit:done commit:done commit:done commit:done -          -     -
Requeue   -        -           claimed2    claimed3    claimed3    claimed3    claimed3    -           -           -          -     -
Filed     -        -           -           -           -           -           -           -           -           end:failed -     -
";

#[test]
fn the_lifecycle_is_this_table() {
    let mut lines = LIFECYCLE.lines().filter(|line| !line.is_empty());
    let stages: Vec<&str> = lines.next().map(|line| line.split_whitespace().collect()).unwrap_or_default();
    let mut cells = 0;
    for line in lines {
        let mut words = line.split_whitespace();
        let row = words.next().unwrap_or_default();
        let expected: Vec<&str> = words.collect();
        assert_eq!(expected.len(), stages.len(), "{row}");
        for (column, expected) in stages.iter().zip(expected) {
            let found = cell(stage(column).after(step(row), at(NOW)));
            assert_eq!(found, expected, "{row} in {column}");
            cells += 1;
        }
    }
    assert_eq!(cells, 13 * 12, "each step in each stage");
}

#[test]
fn a_refused_step_names_both_sides() {
    let refused = stage("ended").after(Step::Launch, at(NOW)).expect_err("nothing follows the end");
    assert_eq!(refused, IllegalStep { stage: stage("ended"), step: Step::Launch });
    assert_eq!(refused.to_string(), "no step Launch from Ended { outcome: Failed }");
}

#[test]
fn only_stages_with_a_worker_hold_devices() {
    let check = |name: &str, holds: bool, word: &str| {
        assert_eq!((!stage(name).leased().is_empty(), stage(name).word()), (holds, word), "{name}");
    };
    check("claiming", false, "claimed");
    check("claimed", false, "claimed");
    check("preparing", true, "running");
    check("running", true, "running");
    check("cancelling", true, "running");
    check("losing", true, "running");
    check("due", false, "retrying");
    check("committing", false, "running");
    check("ended", false, "failed");
    check("withdrawn", false, "ready");
}

fn id() -> JobId {
    JobId(Ulid::from_parts(1_700_000_000_000, 7))
}

#[test]
fn a_job_directory_is_named_after_its_item() {
    let check = |name: &[u8], readable: &str| {
        let dir = JobDir::new(&ItemName::new(OsStr::from_bytes(name)), id());
        assert_eq!(dir.as_str(), format!("{readable}~{}", id()));
        assert_eq!(JobDir::parse(OsStr::new(dir.as_str())), Some((dir.clone(), id())), "it is read back");
        assert!(dir.as_str().len() <= JobDir::STEM + 27 && !dir.as_str().starts_with('.'));
    };
    check(b"song.wav", "song");
    check(b"archive.tar.gz", "archive.tar");
    check(b"no extension", "no_extension");
    check(b"a~b.txt", "a_b");
    check(b"-rf.txt", "rf");
    check(b".hidden", "hidden");
    check(b"...", "");
    check("감독.wav".as_bytes(), "______");
    check(b"new\nline\xff.bin", "new_line_");
    check(&[b'x'; 255], &"x".repeat(64));
}

#[test]
fn a_directory_that_is_no_jobs_isnt_taken_for_one() {
    let check = |name: &[u8]| assert_eq!(JobDir::parse(OsStr::from_bytes(name)), None);
    check(b"");
    check(b"song");
    check(b"song~");
    check(b"song~01ARZ3NDEKTSV4RRFFQ69G5FA");
    check(b"song~01ARZ3NDEKTSV4RRFFQ69G5FAVX");
    check(b"song~01arz3ndektsv4rrffq69g5fav");
    check(b"song~ZZZZZZZZZZZZZZZZZZZZZZZZZZ");
    check(b"\xff~01ARZ3NDEKTSV4RRFFQ69G5FAV");
    assert!(JobDir::parse(OsStr::new("a~b~01ARZ3NDEKTSV4RRFFQ69G5FAV")).is_some());
}

#[test]
fn names_are_escaped_for_people_and_kept_whole_for_machines() {
    let check = |name: &[u8], escaped: &str, base64: &str| {
        let name = ItemName::new(OsStr::from_bytes(name));
        assert_eq!((name.escaped().as_str(), name.base64().as_str()), (escaped, base64));
        assert_eq!(ItemName::from_base64(base64), Some(name));
    };
    check(b"a.wav", "a.wav", "YS53YXY=");
    check(b"two words", "two words", "dHdvIHdvcmRz");
    check("감독".as_bytes(), "감독", "6rCQ64+F");
    check(b"a\nb\tc\rd", "a\\nb\\tc\\rd", "YQpiCWMNZA==");
    check(b"back\\slash", "back\\\\slash", "YmFja1xzbGFzaA==");
    check(b"\x1b[31mred", "\\u{1b}[31mred", "G1szMW1yZWQ=");
    check("cod\u{202e}gpj.exe".as_bytes(), "cod\\u{202e}gpj.exe", "Y29k4oCuZ3BqLmV4ZQ==");
    check("zero\u{200b}width".as_bytes(), "zero\\u{200b}width", "emVyb+KAi3dpZHRo");
    check(b"\xff\xfe", "\\xff\\xfe", "//4=");
    check(b"cut\xe2\x82", "cut\\xe2\\x82", "Y3V04oI=");
    check("c1\u{9b}".as_bytes(), "c1\\u{9b}", "YzHCmw==");
}

#[test]
fn a_name_that_could_leave_its_folder_isnt_read_back() {
    let check = |bytes: &[u8]| assert_eq!(ItemName::from_base64(&BASE64.encode(bytes)), None);
    check(b"");
    check(b".");
    check(b"..");
    check(b"a/b");
    check(b"a\0b");
    assert_eq!(ItemName::from_base64("not base64!"), None);
}

#[test]
fn stems_and_extensions_are_the_names_last() {
    let check = |name: &str, stem: &str, extension: &str| {
        let name = ItemName::new(name);
        assert_eq!((name.stem(), name.extension()), (OsStr::new(stem), OsStr::new(extension)));
    };
    check("a.wav", "a", "wav");
    check("a.tar.gz", "a.tar", "gz");
    check("a", "a", "");
    check(".hidden", ".hidden", "");
    check("a.", "a", "");
}

#[test]
fn the_words_of_reasons_and_outcomes_are_those_of_the_contract() {
    for reason in Reason::ALL {
        assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{reason}\""));
        assert_eq!(serde_json::from_str::<Reason>(&format!("\"{reason}\"")).unwrap(), reason);
    }
    let all: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let contract = "exit signal timeout spawn missing-output out-of-memory reported protocol poison invalid changed \
                    item-missing device-lost orphaned io cancelled unrecognised";
    assert_eq!(all.join(" "), contract);
    for outcome in [Outcome::Done, Outcome::Failed, Outcome::Cancelled] {
        assert_eq!(serde_json::to_string(&outcome).unwrap(), format!("\"{}\"", outcome.as_str()));
    }
}

#[test]
fn ids_are_ulids_in_text() {
    let text = serde_json::to_string(&id()).unwrap();
    assert_eq!(text, format!("\"{}\"", id()));
    assert_eq!(serde_json::from_str::<JobId>(&text).unwrap(), id());
    assert!("nonsense".parse::<JobId>().is_err());
}

#[test]
fn what_was_escaped_once_is_shown_as_it_is() {
    let check = |text: &str, expected: &str| {
        assert_eq!(shown(text), expected);
        assert_eq!(shown(&shown(text)), expected, "twice");
    };
    check("C:\\models", "C:\\models");
    check("a\nb\x1b[2J", "a\\nb\\u{1b}[2J");
    check("\u{202e}", "\\u{202e}");
    check(&escape(b"a\\\xff\n"), "a\\\\\\xff\\n");
}
