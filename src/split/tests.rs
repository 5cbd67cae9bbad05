//! Whole runs: odd files, failing consumers, kills at every named point, damage; always against the serial run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::unbounded;
use tempfile::TempDir;

use super::fault_points::FAULT_POINTS;
use super::fault_points::armed::{What, arm, disarm};
use super::*;
use crate::item::Counters;

type Boxed<'a> = Box<dyn Consumer + Send + 'a>;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    let mut packed = Vec::new();
    encoder.read_to_end(&mut packed).unwrap();
    packed
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

/// What the tests' consumers make of lines: each begins with `>`.
fn marked(bytes: &[u8], out: &mut Vec<u8>) {
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        out.push(b'>');
        out.extend_from_slice(line);
    }
}

fn serial(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    marked(bytes, &mut out);
    out
}

fn mark(batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError> {
    marked(&batch.bytes, out);
    Ok(())
}

/// A folder with an item.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(item: &[u8]) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.jsonl"), item).unwrap();
        Place { dir }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// A setup with these slots, and none to come.
    fn setup<'a>(&self, lines: u64, compress: Option<u8>, slots: Vec<Boxed<'a>>) -> Setup<'a> {
        let (give, taken) = unbounded();
        slots.into_iter().for_each(|slot| give.send(slot).unwrap());
        let setup = Setup::new(&self.dir.path().join("x.jsonl"), &self.out(), "x.jsonl", taken).unwrap();
        Setup { lines, compress, ..setup }
    }

    /// The output, uncompressed; nothing else may lie beside it.
    fn output(&self, compress: Option<u8>) -> Vec<u8> {
        let name = if compress.is_some() { "x.jsonl.gz" } else { "x.jsonl" };
        let names: Vec<_> = fs::read_dir(self.out()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [name]);
        let bytes = fs::read(self.out().join(name)).unwrap();
        if compress.is_some() { gunzip(&bytes) } else { bytes }
    }
}

fn odd_files() -> Vec<Vec<u8>> {
    let numbered: String = (0..1000).map(|n| format!("{{\"line\": {n}}}\n")).collect();
    let megabytes = [vec![b'm'; 3 << 20], b"\nshort\n".to_vec(), vec![b'n'; 2 << 20]].concat();
    let odd = [&b""[..], b"\n", b"no newline", b"a\r\nb\r\n\r\n", b"\xff\xfe\n\xc3\x28", b"\0\0\n\0"];
    odd.iter().map(|bytes| bytes.to_vec()).chain([numbered.into_bytes(), megabytes]).collect()
}

#[test]
fn whatever_is_in_a_file_comes_out_in_order() {
    for content in odd_files() {
        for (packed, compress, lines) in [(false, None, 3), (false, Some(6), 7), (true, None, 5000), (true, Some(1), 1)]
        {
            let place = Place::new(&if packed { gzip(&content) } else { content.clone() });
            let told = Mutex::new(Vec::new());
            let mut setup = place.setup(lines, compress, vec![Box::new(mark), Box::new(mark), Box::new(mark)]);
            setup.memory = 0;
            setup.progress = Box::new(|progress| told.lock().unwrap().push(progress));
            let summary = run(setup).unwrap();
            assert!(place.output(compress) == serial(&content));
            let whole = content.split_inclusive(|byte| *byte == b'\n').count() as u64;
            assert_eq!((summary.lines, summary.input_bytes), (whole, content.len() as u64));
            assert_eq!(summary.output_bytes, fs::metadata(&summary.output).unwrap().len());
            let told = told.into_inner().unwrap();
            assert!(told.is_sorted_by(|before, after| before.lines <= after.lines && before.bytes <= after.bytes));
            assert_eq!(told.last().map_or(0, |progress| progress.lines), whole);
            assert!(whole == 0 || told.last().is_some_and(|progress| progress.bytes == progress.bytes_total));
        }
    }
}

#[test]
fn any_gunzip_reads_the_members() {
    for content in [serial(&vec![b'\n'; 5000]), vec![]] {
        let place = Place::new(&content);
        let summary = run(place.setup(100, Some(12), vec![Box::new(Identity), Box::new(Identity)])).unwrap();
        assert_eq!(summary.batches, (content.len() / 2).div_ceil(100) as u64);
        let Ok(told) = Command::new("gzip").arg("-dc").arg(&summary.output).output() else { continue };
        assert!(told.status.success() && told.stdout == content);
    }
}

#[test]
fn consumers_that_leave_everything_out_make_an_empty_file() {
    let nothing = |_: &Batch, _: &mut Vec<u8>| Ok(());
    for compress in [None, Some(6)] {
        let place = Place::new(b"a\nb\n");
        run(place.setup(1, compress, vec![Box::new(nothing)])).unwrap();
        assert_eq!(place.output(compress), b"");
    }
}

#[test]
fn a_batch_that_fails_for_good_fails_the_run_in_words() {
    let check = |kind: Kind, retries: u32, words: &str| {
        let place = Place::new(b"1\n2\n3\n4\n5\n");
        let consumer = move |batch: &Batch, out: &mut Vec<u8>| match batch.index {
            1 => Err(BatchError::new(kind, "exit code 3: no such colour")),
            _ => mark(batch, out),
        };
        let setup = Setup { retries, ..place.setup(2, None, vec![Box::new(consumer), Box::new(consumer)]) };
        assert_eq!(run(setup).unwrap_err().to_string(), words);
        // What is done stays for the next run.
        let summary = run(place.setup(2, None, vec![Box::new(mark)])).unwrap();
        assert_eq!((summary.resumed, summary.batches), (1, 3));
        assert_eq!(place.output(None), serial(b"1\n2\n3\n4\n5\n"));
    };
    check(Kind::Failed, 0, "batch 1 (lines 3-4): exit code 3: no such colour");
    check(Kind::Failed, 2, "batch 1 (lines 3-4): exit code 3: no such colour (tried 3 times)");
    check(Kind::Final, 2, "batch 1 (lines 3-4): exit code 3: no such colour");
}

#[test]
fn a_panic_is_a_failure_and_a_retry_may_succeed() {
    let place = Place::new(b"1\n2\n3\n");
    let tries = AtomicU64::new(0);
    let consumer = |batch: &Batch, out: &mut Vec<u8>| {
        out.extend_from_slice(b"half of it");
        assert!(tries.fetch_add(1, Ordering::Relaxed) != 1, "the second call panics");
        out.clear();
        mark(batch, out)
    };
    let summary =
        run(Setup { backoff: Duration::from_millis(1), ..place.setup(1, None, vec![Box::new(consumer)]) }).unwrap();
    assert_eq!((summary.retried, place.output(None)), (1, serial(b"1\n2\n3\n")));
    let broken = |_: &Batch, _: &mut Vec<u8>| panic!("no {}", "luck");
    let place = Place::new(b"1\n");
    let error = run(Setup { retries: 0, ..place.setup(1, None, vec![Box::new(broken)]) }).unwrap_err();
    assert_eq!(error.to_string(), "batch 0 (lines 1-1): the consumer panicked: no luck");
}

#[test]
fn without_slots_it_says_so_and_slots_may_come_later() {
    let place = Place::new(b"1\n2\n3\n");
    let lost = |_: &Batch, _: &mut Vec<u8>| Err(BatchError::new(Kind::SlotLost, "the device fell off the bus"));
    let error = run(place.setup(1, None, vec![Box::new(lost)])).unwrap_err().to_string();
    assert!(error.contains("no slot is left") && error.contains("fell off the bus"), "{error}");
    assert!(run(place.setup(1, None, vec![])).is_err());

    let (give, taken) = unbounded::<Boxed>();
    give.send(Box::new(lost)).unwrap();
    let (next, wish) = unbounded();
    let waiting = move |batch: &Batch, out: &mut Vec<u8>| {
        next.send(()).map_err(|error| BatchError::failed(error.to_string()))?;
        mark(batch, out)
    };
    std::thread::scope(|scope| {
        let setup = place.setup(1, None, vec![]);
        let running = scope.spawn(move || run(Setup { slots: taken, ..setup }));
        give.send(Box::new(waiting)).unwrap();
        wish.recv_timeout(Duration::from_secs(60)).unwrap();
        give.send(Box::new(mark)).unwrap();
        drop(give);
        assert_eq!(running.join().unwrap().unwrap().batches, 3);
    });
    assert_eq!(place.output(None), serial(b"1\n2\n3\n"));
}

#[test]
fn a_stop_keeps_what_is_merged() {
    let place = Place::new(b"1\n2\n3\n4\n");
    let mut setup = place.setup(1, None, vec![]);
    let stop = setup.stop.clone();
    let consumer = move |batch: &Batch, out: &mut Vec<u8>| {
        if batch.index == 2 {
            stop.order();
            return Err(BatchError::new(Kind::Stopped, "stopped"));
        }
        mark(batch, out)
    };
    let (give, taken) = unbounded::<Boxed>();
    give.send(Box::new(consumer)).unwrap();
    setup.slots = taken;
    assert!(matches!(run(setup), Err(Error::Stopped)));
    let summary = run(place.setup(1, None, vec![Box::new(mark)])).unwrap();
    assert_eq!((summary.resumed, summary.batches, place.output(None)), (2, 4, serial(b"1\n2\n3\n4\n")));
}

#[test]
fn what_lies_under_the_outputs_name_is_replaced_only_where_nothing_is_kept() {
    let place = Place::new(b"1\n2\n");
    let output = place.out().join("x.jsonl");
    let once = |keep_state: bool| run(Setup { keep_state, ..place.setup(1, None, vec![Box::new(mark)]) });
    fs::create_dir(place.out()).unwrap();
    fs::write(&output, b"mine").unwrap();
    assert!(matches!(once(true), Err(Error::Taken { path }) if path == output));
    assert_eq!(fs::read(&output).unwrap(), b"mine");
    fs::remove_file(&output).unwrap();
    // Once it is whole, it is named again as often as it takes; its own name isn't taken.
    for _ in 0..2 {
        assert_eq!(once(true).unwrap().batches, 2);
        assert_eq!(fs::read(&output).unwrap(), serial(b"1\n2\n"));
    }
    fs::remove_file(&output).unwrap();
    fs::write(&output, b"mine").unwrap();
    assert!(matches!(once(true), Err(Error::Taken { .. })));
    assert_eq!(fs::read(&output).unwrap(), b"mine");
    assert_eq!(once(false).unwrap().batches, 2);
    assert_eq!(place.output(None), serial(b"1\n2\n"));
}

/// Counts each batch, and its own end.
struct Late {
    fails_at: u64,
}

impl Consumer for Late {
    fn consume(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<(), BatchError> {
        if batch.index == self.fails_at { Err(BatchError::new(Kind::Final, "no")) } else { mark(batch, out) }
    }
    fn counted(&mut self) -> Counters {
        [("parts".to_owned(), 1.0)].into_iter().collect()
    }
    fn finish(&mut self) -> Counters {
        [("ends".to_owned(), 1.0)].into_iter().collect()
    }
}

#[test]
fn what_a_slot_counts_at_its_end_is_on_record_too() {
    let place = Place::new(b"1\n2\n3\n4\n");
    let once = |fails_at: u64| {
        let told = Mutex::new(Counters::default());
        let mut setup = place.setup(1, None, vec![Box::new(Late { fails_at })]);
        setup.counted = Box::new(|all| *told.lock().unwrap() = all.clone());
        let end = run(setup).map(|summary| summary.counters);
        (end, told.into_inner().unwrap())
    };
    let of = |parts: f64, ends: f64| [("parts".to_owned(), parts), ("ends".to_owned(), ends)].into_iter().collect();
    for (fails_at, parts, ends) in [(2, 2.0, 1.0), (3, 3.0, 2.0)] {
        let (end, told) = once(fails_at);
        assert_eq!((end.is_err(), told), (true, of(parts, ends)));
    }
    let (end, told) = once(9);
    assert_eq!((end.unwrap(), told), (of(4.0, 3.0), of(4.0, 3.0)));
    assert_eq!(place.output(None), serial(b"1\n2\n3\n4\n"));
}

#[test]
fn bad_input_and_settings_get_clear_errors() {
    let place = Place::new(&gzip(b"1\n2\n3\n")[..15]);
    let error = run(place.setup(1, None, vec![Box::new(mark)])).unwrap_err();
    assert!(matches!(error, Error::Input { damaged: true, .. }));
    let words = error.to_string();
    assert!(
        words.contains("x.jsonl`: the gzip file breaks off") && words.contains("whole lines came before"),
        "{words}"
    );
    let check = |setup: Setup, words: &str| {
        let error = run(setup).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    check(place.setup(0, None, vec![]), "`lines` is 0");
    check(place.setup(1, Some(13), vec![]), "no compression level 13");
    let setup = place.setup(1, None, vec![]);
    check(Setup { input: place.dir.path().join("absent"), ..setup }, "absent`: No such file");
}

#[test]
fn another_command_or_input_begins_anew() {
    let place = Place::new(b"1\n2\n3\n");
    let fail_late = |batch: &Batch, out: &mut Vec<u8>| match batch.index {
        2 => Err(BatchError::new(Kind::Final, "no")),
        _ => mark(batch, out),
    };
    let begin = || run(Setup { tag: "a".into(), ..place.setup(1, None, vec![Box::new(fail_late)]) }).unwrap_err();
    let go_on = |tag: &str| run(Setup { tag: tag.into(), ..place.setup(1, None, vec![Box::new(mark)]) }).unwrap();
    begin();
    assert_eq!(go_on("a").resumed, 2);
    begin();
    assert_eq!(go_on("b").resumed, 0);
    begin();
    fs::write(place.dir.path().join("x.jsonl"), b"4\n5\n6\n7\n").unwrap();
    assert_eq!(go_on("a").resumed, 0);
    assert_eq!(place.output(None), serial(b"4\n5\n6\n7\n"));
}

/// Numbers that are the same in every run of a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn lines(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        for _ in 0..self.roll(120) {
            let length = if self.roll(20) == 0 { self.roll(200_000) } else { self.roll(40) };
            let byte = self.roll(256) as u8;
            content.extend((0..length).map(|n| byte.wrapping_add(n as u8)));
            content.extend_from_slice([&b"\n"[..], b"\r\n", b"\0\n"][self.roll(3) as usize]);
        }
        if self.roll(2) == 0 {
            content.pop();
        }
        content
    }
}

/// A consumer that fails, panics, gives up its slot and dawdles, by the dice.
fn unreliable<'a>(seed: u64, seen: &'a Mutex<BTreeMap<u64, u32>>) -> Boxed<'a> {
    let mut dice = Dice(seed);
    Box::new(move |batch: &Batch, out: &mut Vec<u8>| {
        *seen.lock().unwrap().entry(batch.index).or_default() += 1;
        (0..dice.roll(10)).for_each(|_| std::thread::yield_now());
        marked(&batch.bytes, out);
        match dice.roll(40) {
            0 | 1 => Err(BatchError::failed("bad luck")),
            2 => Err(BatchError::new(Kind::SlotLost, "gone")),
            3 => std::panic::resume_unwind(Box::new("no message of the hook's")),
            _ => Ok(()),
        }
    })
}

/// What a power cut or a bad disk may do to the state.
fn damage(state: &Path, dice: &mut Dice) -> bool {
    let file = state.join(["partial", "journal"][dice.roll(2) as usize]);
    let Ok(mut bytes) = fs::read(&file) else { return false };
    match dice.roll(4) {
        0 => bytes.truncate(dice.roll(bytes.len() as u64 + 1) as usize),
        1 => bytes.extend_from_slice(b"{\"batches\":9} 00000000\n"),
        2 if !bytes.is_empty() => {
            let at = dice.roll(bytes.len() as u64) as usize;
            bytes[at] ^= 0x10;
        }
        _ => {
            let from = dice.roll(bytes.len() as u64 + 1) as usize;
            bytes[from..].fill(0);
        }
    }
    fs::write(&file, bytes).unwrap();
    true
}

#[test]
fn kills_failures_and_damage_never_show_in_the_output() {
    let mut passed = BTreeMap::new();
    for seed in 0..30 {
        let mut dice = Dice(seed);
        let content = dice.lines();
        let (lines, compress) = (1 + dice.roll(12), (dice.roll(2) == 0).then_some(1));
        let packed = dice.roll(3) == 0;
        let place = Place::new(&if packed { gzip(&content) } else { content.clone() });
        let mut merged = 0;
        for round in 0.. {
            assert!(round < 60, "seed {seed} comes to no end");
            if round < 6 {
                let point = FAULT_POINTS[dice.roll(FAULT_POINTS.len() as u64) as usize];
                // Only merging happens more than once in a run.
                let passes = if point.starts_with("merge.") { dice.roll(8) } else { 0 };
                arm(point, passes as u32, What::Fail);
            } else {
                disarm();
            }
            let seen = Mutex::default();
            let slots = (0..2 + dice.roll(8)).map(|n| unreliable(seed * 1000 + round * 50 + n, &seen)).collect();
            let told = AtomicU64::new(merged);
            let mut setup = Setup { retries: 9, memory: 0, ..place.setup(lines, compress, slots) };
            setup.progress = Box::new(|progress| told.store(progress.batches, Ordering::Relaxed));
            let end = run(setup);
            let first = seen.into_inner().unwrap().first_key_value().map(|(index, _)| *index);
            if let Some(first) = first {
                assert!(merged <= first, "seed {seed}: batch {first} again, {merged} were merged");
            }
            merged = told.into_inner();
            match end {
                Ok(summary) => {
                    assert!(place.output(compress) == serial(&content), "seed {seed}");
                    assert_eq!(summary.lines, content.split_inclusive(|byte| *byte == b'\n').count() as u64);
                    break;
                }
                Err(Error::Output { source, .. }) => *passed.entry(source.to_string()).or_insert(0) += 1,
                Err(Error::NoSlots { .. } | Error::Batch { .. }) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
            if dice.roll(4) == 0 && damage(&place.out().join(".parts"), &mut dice) {
                merged = 0;
            }
        }
    }
    let reached: Vec<_> =
        FAULT_POINTS.iter().filter(|point| !passed.contains_key(&format!("stopped at {point}"))).collect();
    assert!(reached.is_empty(), "never stopped at {reached:?}: {passed:?}");
}

/// Named by the parent test: the folder, the point, and how often it is passed before.
const CHILD: &str = "GAMDOK_TEST_SPLIT";

fn killed_content() -> Vec<u8> {
    (0..2000).map(|n| format!("line {n}\n")).collect::<String>().into_bytes()
}

#[test]
#[ignore = "the process that another test kills"]
fn the_process_that_is_killed() {
    let told = std::env::var(CHILD).expect("only its parent starts it");
    let [dir, point, passes] = told.splitn(3, ':').collect::<Vec<_>>().try_into().unwrap();
    arm(point, passes.parse().unwrap(), What::Kill);
    let (merged, told) = unbounded();
    // One batch after another, so that each is a group of its own.
    let consumer = move |batch: &Batch, out: &mut Vec<u8>| {
        if 0 < batch.index {
            told.recv().map_err(|error| BatchError::failed(error.to_string()))?;
        }
        mark(batch, out)
    };
    let (give, taken) = unbounded::<Boxed>();
    give.send(Box::new(consumer)).unwrap();
    drop(give);
    let dir = Path::new(dir);
    let mut setup = Setup::new(&dir.join("x.jsonl"), &dir.join("out"), "x.jsonl", taken).unwrap();
    setup.progress = Box::new(move |_| merged.send(()).unwrap());
    run(Setup { lines: 50, compress: Some(6), ..setup }).unwrap();
}

#[test]
fn a_real_kill_at_every_point_repeats_nothing_that_is_on_record() {
    for (point, passes) in FAULT_POINTS.iter().flat_map(|point| [(point, 0), (point, 5)]) {
        let place = Place::new(&killed_content());
        let told = format!("{}:{point}:{passes}", place.dir.path().display());
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "split::tests::the_process_that_is_killed", "--ignored"]).env(CHILD, told);
        let ended = child.output().unwrap().status;
        let is_once = !point.starts_with("merge.");
        let state = place.out().join(".parts");
        if is_once && passes > 0 {
            assert!(ended.success() && !state.exists(), "{point} is passed once");
            assert!(place.output(Some(6)) == serial(&killed_content()));
            continue;
        }
        assert_eq!(ended.signal(), Some(9), "{point} {passes}");
        let journal = fs::read_to_string(state.join("journal")).unwrap();
        let on_record = journal.lines().skip(1).last().map_or(0, |line| {
            let (record, _) = line.rsplit_once(' ').unwrap();
            serde_json::from_str::<serde_json::Value>(record).unwrap()["batches"].as_u64().unwrap()
        });
        let seen = Mutex::new(Vec::new());
        let consumer = |batch: &Batch, out: &mut Vec<u8>| {
            seen.lock().unwrap().push(batch.index);
            mark(batch, out)
        };
        let summary = run(place.setup(50, Some(6), vec![Box::new(consumer)])).unwrap();
        assert_eq!(summary.resumed, on_record, "{point} {passes}");
        assert_eq!(seen.into_inner().unwrap(), (on_record..40).collect::<Vec<_>>(), "{point} {passes}");
        assert!(place.output(Some(6)) == serial(&killed_content()), "{point} {passes}");
    }
}

#[test]
fn processes_serve_as_consumers() {
    let place = Place::new(&killed_content());
    let setup = place.setup(100, None, vec![]);
    let program = |script: &str| Program {
        program: "/bin/sh".into(),
        argv: ["sh", "-c", script].map(Into::into).into(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        cwd: "/".into(),
        log: None,
        descriptors: vec![],
        timeout: None,
        kill_grace: Duration::from_secs(10),
        max_output: 1 << 20,
    };
    let (give, taken) = unbounded::<Boxed>();
    for _ in 0..2 {
        give.send(Box::new(ProcessConsumer::new(program("sed 's/^/>/'"), setup.stop.clone()))).unwrap();
    }
    drop(give);
    assert_eq!(run(Setup { slots: taken, ..setup }).unwrap().batches, 20);
    assert!(place.output(None) == serial(&killed_content()));

    let script = "if grep -q 'line 150$'; then echo the line is odd >&2; exit 3; fi";
    let place = Place::new(&killed_content());
    let setup = place.setup(100, None, vec![]);
    let (give, taken) = unbounded::<Boxed>();
    give.send(Box::new(ProcessConsumer::new(program(script), setup.stop.clone()))).unwrap();
    let error = run(Setup { slots: taken, retries: 1, ..setup }).unwrap_err().to_string();
    assert_eq!(error, "batch 1 (lines 101-200): exit code 3: the line is odd (tried 2 times)");
}

#[test]
fn a_slot_that_waits_leaves_when_it_is_called_and_no_longer_wanted() {
    let place = Place::new(b"a\nb\n");
    let (give, slots) = unbounded::<Boxed>();
    let (call, calls) = unbounded();
    let (began, first_began) = unbounded::<()>();
    let (go_on, may_go_on) = unbounded::<()>();
    let (left, has_left) = unbounded::<()>();
    struct Idle {
        wanted: std::sync::Arc<std::sync::atomic::AtomicBool>,
        asked: crossbeam_channel::Sender<()>,
        _left: crossbeam_channel::Sender<()>,
    }
    impl Consumer for Idle {
        fn consume(&mut self, _: &Batch, _: &mut Vec<u8>) -> Result<(), BatchError> {
            Err(BatchError::failed("it was to get none"))
        }
        fn wants_more(&mut self) -> bool {
            let _heard = self.asked.send(());
            self.wanted.load(Ordering::Relaxed)
        }
    }
    let limit = Duration::from_secs(60);
    std::thread::scope(|scope| {
        let setup = Setup { lines: 2, calls, ..place.setup(2, None, vec![]) };
        let setup = Setup { slots, ..setup };
        let running = scope.spawn(move || run(setup));
        give.send(Box::new(move |batch: &Batch, out: &mut Vec<u8>| {
            began.send(()).unwrap();
            may_go_on.recv_timeout(limit).unwrap();
            mark(batch, out)
        }))
        .unwrap();
        // The only batch is taken: the second slot has nothing to do.
        first_began.recv_timeout(limit).unwrap();
        let wanted = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (asked, was_asked) = unbounded();
        give.send(Box::new(Idle { wanted: wanted.clone(), asked, _left: left })).unwrap();
        was_asked.recv_timeout(limit).unwrap();
        wanted.store(false, Ordering::Relaxed);
        call.send(()).unwrap();
        assert_eq!(has_left.recv_timeout(limit), Err(crossbeam_channel::RecvTimeoutError::Disconnected));
        go_on.send(()).unwrap();
        running.join().unwrap().unwrap();
    });
    assert_eq!(place.output(None), b">a\n>b\n");
}

#[test]
fn it_is_told_whether_more_slots_would_have_something_to_do() {
    let check = |batches: usize, expected: &[bool]| {
        let place = Place::new("x\n".repeat(batches).as_bytes());
        let told = Mutex::new(Vec::new());
        let mut setup = place.setup(1, None, vec![Box::new(mark)]);
        setup.ahead = Box::new(|ahead| told.lock().unwrap().push(ahead));
        run(setup).unwrap();
        assert_eq!(told.into_inner().unwrap(), expected, "{batches} batches");
    };
    check(0, &[]);
    check(1, &[]);
    check(2, &[true, false]);
    check(100, &[true, false]);
}

#[test]
fn a_name_that_no_file_can_have_is_told_at_once() {
    let place = Place::new(b"a\n");
    for name in ["", ".", "..", "a/b", "/a", "a/", "a\0b"] {
        let setup = Setup { name: name.into(), ..place.setup(1, None, vec![Box::new(mark)]) };
        let wrong = run(setup).unwrap_err().to_string();
        assert!(wrong.contains("can't be a file's name"), "{name:?}: {wrong}");
    }
    let setup = Setup { memory: u64::MAX, retries: u32::MAX, ..place.setup(u64::MAX, None, vec![Box::new(mark)]) };
    assert_eq!(run(setup).unwrap().lines, 1);
}
