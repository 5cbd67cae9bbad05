//! A big line file: JSON lines in batches of 5,000, gzip 6, order kept. gamdok's engine against a bare program with the same
//! compressor (threads, channels and nothing else), pigz, a Python process pool and GNU parallel, on as many cores; and a
//! Python command that looks at each line, in batches against one process. Whatever each writes is unpacked and compared.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use gamdok::split::{Batch, Consumer, Identity, ProcessConsumer, Program, Setup, run};
use libdeflater::{CompressionLvl, Compressor, Crc};

mod common;

use common::{Bench, asked_to_measure, median, number, until};

const LINES: usize = 5000;
const LEVEL: u8 = 6;

/// A window of futures twice as wide as the pool: `map` alone would read the whole file first.
const POOL: &str = r#"
import collections, concurrent.futures, gzip, itertools, os, sys
source, target = sys.argv[1:]
def main():
    cores = os.cpu_count()
    with open(source, "rb") as lines, open(target, "wb") as out, concurrent.futures.ProcessPoolExecutor(cores) as pool:
        waiting = collections.deque()
        while batch := b"".join(itertools.islice(lines, 5000)):
            waiting.append(pool.submit(gzip.compress, batch, 6))
            if len(waiting) > 2 * cores:
                out.write(waiting.popleft().result())
        for future in waiting:
            out.write(future.result())
main()
"#;

const PER_LINE: &str = r#"
import json, sys
for line in sys.stdin.buffer:
    record = json.loads(line)
    record["words"] = len(record["text"].split())
    sys.stdout.write(json.dumps(record) + "\n")
"#;

const SERVE_LINES: &str = r#"
import json
from gamdok_worker import serve_lines
def handle(batch):
    for line in batch:
        record = json.loads(line)
        record["words"] = len(record["text"].split())
        yield json.dumps(record) + "\n"
serve_lines(handle)
"#;

fn main() {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let [flag, contender, source, target] = &words[..]
        && flag == "--contender"
    {
        contend(&contender.to_string_lossy(), Path::new(source), Path::new(target));
        return;
    }
    if !asked_to_measure() {
        return;
    }
    let (bytes, rounds) = (number("GAMDOK_BENCH_BYTES", 1 << 30), number("GAMDOK_BENCH_ROUNDS", 3));
    let bench = Bench::new("split");
    let source = bench.dir.join("lines.jsonl");
    let lines = make(&source, bytes);
    println!("{:.0} MiB, {lines} lines, batches of {LINES}, gzip {LEVEL}, {rounds} rounds", mib(bytes as f64));
    compressing(&bench, &source, bytes, rounds);
    alone("cutting alone, nothing comes of it", "cut", &source, bytes, &bench);
    let large = bench.dir.join("large.jsonl");
    make_large(&large, bytes / 2);
    alone("gzip of lines of up to 4 MiB", "gamdok", &large, bytes / 2, &bench);
    let part = bench.dir.join("part.jsonl");
    let part_bytes = bytes / 8;
    make(&part, part_bytes);
    println!("a Python command that looks at each line, {:.0} MiB:", mib(part_bytes as f64));
    // Each batch pays for a start of the interpreter.
    for lines in [LINES, 6 * LINES] {
        per_line(&bench, &part, part_bytes, rounds, lines);
    }
    through_the_service(&bench, &part, part_bytes, rounds);
}

fn compressing(bench: &Bench, source: &Path, bytes: usize, rounds: usize) {
    let expected = checksum(File::open(source).expect("opened"));
    let contenders = ["gamdok", "bare", "pigz", "python", "parallel"];
    let mut seconds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut peaks: BTreeMap<&str, f64> = BTreeMap::new();
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for round in 0..rounds {
        for name in contenders {
            let target = bench.dir.join(format!("{name}-{round}.gz"));
            let Some(mut command) = command(name, source, &target) else { continue };
            let started = Instant::now();
            let output = command.stderr(Stdio::inherit()).output().expect("it starts");
            seconds.entry(name).or_default().push(started.elapsed().as_secs_f64());
            assert!(output.status.success(), "{name} ended with {}", output.status);
            if let Ok(peak) = String::from_utf8_lossy(&output.stdout).trim().parse::<f64>() {
                peaks.entry(name).and_modify(|most| *most = most.max(peak)).or_insert(peak);
            }
            let packed = File::open(&target).expect("its output");
            sizes.insert(name, packed.metadata().expect("its size").len());
            let unpacked = checksum(flate2::read::MultiGzDecoder::new(packed));
            assert_eq!(unpacked, expected, "{name} changed the lines");
            // Emptied, not deleted: ext4 is slow after deletes.
            File::create(&target).expect("emptied");
        }
    }
    let ours = median(seconds.get_mut("gamdok").expect("measured"));
    println!("{:<10} {:>8} {:>8} {:>8} {:>10} {:>9}", "", "s", "MB/s", "size", "VmHWM MiB", "gamdok is");
    for name in contenders {
        let Some(samples) = seconds.get_mut(name) else {
            println!("{name:<10} isn't installed");
            continue;
        };
        let theirs = median(samples);
        let rate = bytes as f64 / theirs / 1e6;
        let size = mib(sizes[name] as f64);
        let peak = peaks.get(name).map_or(String::new(), |peak| format!("{:.1}", peak / 1024.0));
        println!("{name:<10} {theirs:>8.2} {rate:>8.1} {size:>8.1} {peak:>10} {:>7.2} x", theirs / ours);
    }
}

/// One run of the engine that has no rival here.
fn alone(what: &str, contender: &str, source: &Path, bytes: usize, bench: &Bench) {
    let target = bench.dir.join(format!("alone-{contender}"));
    let started = Instant::now();
    let output = myself(contender, source, &target).stderr(Stdio::inherit()).output().expect("it starts");
    let seconds = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{contender} ended with {}", output.status);
    let peak: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a peak");
    println!("{what}: {:.0} MB/s, VmHWM {:.1} MiB", bytes as f64 / seconds / 1e6, peak / 1024.0);
}

/// Python looks at each line: one process over the whole file, and one for each batch.
fn per_line(bench: &Bench, source: &Path, bytes: usize, rounds: usize, lines: usize) {
    let Some(python) = python() else { return println!("python3 isn't installed") };
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let targets = ["one", "batches"].map(|name| bench.dir.join(format!("{name}-{round}.jsonl")));
        let started = Instant::now();
        let mut alone = Command::new(&python);
        alone.args(["-c", PER_LINE]).stdin(File::open(source).expect("opened"));
        let status = alone.stdout(File::create(&targets[0]).expect("made")).status().expect("it starts");
        assert!(status.success(), "python ended with {status}");
        one.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let contender = format!("gamdok-python-{lines}");
        let status = myself(&contender, source, &targets[1]).stdout(Stdio::null()).status().expect("it starts");
        assert!(status.success(), "gamdok ended with {status}");
        many.push(started.elapsed().as_secs_f64());
        let [first, second] = targets.map(|target| checksum(File::open(target).expect("its output")));
        assert_eq!(first, second, "batches make the same of the lines");
    }
    let (one, many) = (median(&mut one), median(&mut many));
    let rate = |seconds: f64| bytes as f64 / seconds / 1e6;
    let ratio = one / many;
    println!("one process {:.1} MB/s, in batches of {lines} {:.1} MB/s: {ratio:.2} x", rate(one), rate(many));
}

/// The same work by resident workers of the service, a process for each core, with all that makes it safe: from the drop
/// to the outcome.
fn through_the_service(bench: &Bench, source: &Path, bytes: usize, rounds: usize) {
    let Some(python) = python() else { return };
    let script = bench.dir.join("lines.py");
    fs::write(&script, SERVE_LINES).expect("written");
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python");
    let config = format!(
        "[devices]\nuse = \"cpu\"\ncpu_slots = {}\n[[route]]\nname = \"lines\"\ngpus = 0\nmode = \"resident\"\n\
         command = [{python:?}, {script:?}]\nenv = {{ PYTHONPATH = {helper:?} }}\nsplit = {{ lines = {LINES}, \
         compress = \"none\" }}\n",
        cores()
    );
    let root = bench.root("service", &config);
    let director = root.start();
    let (mut one, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let alone = bench.dir.join(format!("alone-{round}.jsonl"));
        let started = Instant::now();
        let mut command = Command::new(&python);
        command.args(["-c", PER_LINE]).stdin(File::open(source).expect("opened"));
        let status = command.stdout(File::create(&alone).expect("made")).status().expect("it starts");
        assert!(status.success(), "python ended with {status}");
        one.push(started.elapsed().as_secs_f64());
        let item = root.staging.join(format!("item-{round}.jsonl"));
        fs::copy(source, &item).expect("copied");
        let started = Instant::now();
        root.drop_in(&item);
        until("the outcome", Duration::from_secs(600), || root.done() > round as u64);
        ours.push(started.elapsed().as_secs_f64());
        let made = root.outputs(&format!("item-{round}"));
        assert_eq!(made.len(), 1, "{made:?}");
        let [first, second] = [&alone, &made[0]].map(|file| checksum(File::open(file).expect("its output")));
        assert_eq!(first, second, "residents make the same of the lines");
    }
    director.stop();
    let (one, ours) = (median(&mut one), median(&mut ours));
    let rate = |seconds: f64| bytes as f64 / seconds / 1e6;
    println!(
        "one process {:.1} MB/s, {} resident workers of the service {:.1} MB/s: {:.2} x",
        rate(one),
        cores(),
        rate(ours),
        one / ours
    );
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

fn myself(contender: &str, source: &Path, target: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this executable has a path"));
    command.args(["--contender", contender]).arg(source).arg(target);
    command
}

fn command(name: &str, source: &Path, target: &Path) -> Option<Command> {
    let into = |mut command: Command| {
        command.stdin(File::open(source).expect("opened")).stdout(File::create(target).expect("made"));
        command
    };
    let level = format!("-{LEVEL}");
    match name {
        "pigz" => {
            let mut pigz = Command::new(installed("pigz")?);
            pigz.args(["-c", &level, "-p", &cores().to_string()]);
            Some(into(pigz))
        }
        "python" => {
            let mut pool = Command::new(python()?);
            pool.args(["-c", POOL]).arg(source).arg(target);
            Some(pool)
        }
        "parallel" => {
            let mut parallel = Command::new(installed("parallel")?);
            parallel.args(["--pipe", "-k", "-N", &LINES.to_string(), "-j", &cores().to_string(), "gzip", &level]);
            Some(into(parallel))
        }
        name => Some(myself(name, source, target)),
    }
}

fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The interpreter itself: what stands in PATH may be a script that looks for it, which takes longer than a batch.
fn python() -> Option<PathBuf> {
    let said = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    Some(PathBuf::from(String::from_utf8(said.stdout).ok()?.trim()))
}

/// A contender that is a process of this executable; says its peak memory in KiB.
fn contend(name: &str, source: &Path, target: &Path) {
    match name {
        "gamdok" => gamdok(source, target, LINES, Some(LEVEL), |_| Box::new(Identity)),
        "cut" => gamdok(source, target, LINES, None, |_| Box::new(|_: &Batch, _: &mut Vec<u8>| Ok(()))),
        "bare" => bare(source, target),
        other => {
            let lines = other.strip_prefix("gamdok-python-").and_then(|lines| lines.parse().ok());
            gamdok(source, target, lines.expect("a contender"), None, python_slot);
        }
    }
    let status = fs::read_to_string("/proc/self/status").expect("read");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    println!("{}", peak.trim().trim_end_matches(" kB"));
}

type Slot = Box<dyn Consumer + Send>;

fn python_slot(setup: &Setup<'static>) -> Slot {
    let program = python().expect("it was there");
    let program = Program {
        argv: vec![program.clone().into(), "-c".into(), PER_LINE.into()],
        program,
        env: std::env::vars_os().collect(),
        cwd: "/".into(),
        log: None,
        descriptors: vec![],
        timeout: None,
        kill_grace: Duration::from_secs(10),
        max_output: 256 << 20,
    };
    Box::new(ProcessConsumer::new(program, setup.stop.clone()))
}

fn gamdok(source: &Path, target: &Path, lines: usize, compress: Option<u8>, slot: impl Fn(&Setup<'static>) -> Slot) {
    let out = target.with_extension("out");
    let (give, slots) = crossbeam_channel::unbounded();
    let setup = Setup::new(source, &out, "lines", slots).expect("set up");
    (0..cores()).for_each(|_| give.send(slot(&setup)).expect("given"));
    drop(give);
    let summary = run(Setup { lines: lines as u64, compress, ..setup }).expect("it succeeds");
    fs::rename(summary.output, target).expect("moved");
}

/// The least it takes: one thread reads and cuts, as many as there are cores compress, one writes in order. Remembers
/// nothing, retries nothing, syncs nothing.
fn bare(source: &Path, target: &Path) {
    let (cut, batches) = bounded::<(usize, Vec<u8>)>(2 * cores());
    let (packed, parts) = bounded::<(usize, Vec<u8>)>(2 * cores());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut file = File::open(source).expect("opened");
            let (mut rest, mut index) = (Vec::new(), 0);
            let mut send = |batch: Vec<u8>| {
                cut.send((index, batch)).expect("wanted");
                index += 1;
            };
            loop {
                if (&mut file).take(1 << 20).read_to_end(&mut rest).expect("read") == 0 {
                    break;
                }
                while let Some(end) = memchr::memchr_iter(b'\n', &rest).nth(LINES - 1) {
                    let after = rest.split_off(end + 1);
                    send(std::mem::replace(&mut rest, after));
                }
            }
            if !rest.is_empty() {
                send(rest);
            }
        });
        for _ in 0..cores() {
            let (batches, packed) = (batches.clone(), packed.clone());
            scope.spawn(move || {
                let level = CompressionLvl::new(i32::from(LEVEL)).expect("a level");
                let mut compressor = Compressor::new(level);
                for (index, batch) in batches {
                    let mut part = vec![0; compressor.gzip_compress_bound(batch.len())];
                    let length = compressor.gzip_compress(&batch, &mut part).expect("room");
                    part.truncate(length);
                    packed.send((index, part)).expect("wanted");
                }
            });
        }
        drop((batches, packed));
        let mut out = File::create(target).expect("made");
        let (mut early, mut next) = (BTreeMap::new(), 0);
        for (index, part) in parts {
            early.insert(index, part);
            while let Some(part) = early.remove(&next) {
                out.write_all(&part).expect("written");
                next += 1;
            }
        }
    });
}

/// Few lines, long ones.
fn make_large(path: &Path, bytes: usize) {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).expect("made"));
    let (mut written, mut next) = (0, 0);
    while written < bytes {
        let length = 1 + (next * 1_234_567) % (4 << 20);
        let numbers = (0..length / 8).map(|n| format!("{:>7} ", (n * next) % 999_983));
        numbers.for_each(|number| out.write_all(number.as_bytes()).expect("written"));
        out.write_all(b"\n").expect("written");
        (written, next) = (written + length, next + 1);
    }
    out.flush().expect("written");
}

fn checksum(mut bytes: impl Read) -> (u64, u32) {
    let (mut crc, mut length, mut chunk) = (Crc::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = bytes.read(&mut chunk).expect("read");
        if read == 0 {
            return (length, crc.sum());
        }
        crc.update(&chunk[..read]);
        length += read as u64;
    }
}

/// Makes up JSON lines, the same each time. Answers how many.
fn make(path: &Path, bytes: usize) -> usize {
    const WORDS: &str = "a after all and any are as at back be because but by can come could day do even first for from \
        get give go good have he her him his how i if in into it its just know like look make me most my new no not now of \
        on one only or other our out over people say see she so some take than that the their them then there these they \
        think this time to two up us use want way we well what when which who will with work would year you your";
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).expect("made"));
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut roll = |sides: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % sides
    };
    let (mut written, mut lines) = (0, 0);
    while written < bytes {
        let text: Vec<&str> = (0..20 + roll(40)).map(|_| words[roll(words.len())]).collect();
        let (user, score) = (roll(100_000), roll(1_000_000));
        let line = format!(
            "{{\"id\": {lines}, \"user\": \"u{user:05}\", \"score\": 0.{score:06}, \"text\": \"{}\"}}\n",
            text.join(" ")
        );
        out.write_all(line.as_bytes()).expect("written");
        written += line.len();
        lines += 1;
    }
    out.flush().expect("written");
    lines
}
