//! Resident workers: small files through one Python process for each of two slots, by the helper in `examples/python`;
//! beside it the floor (the same process fed over a socket, each file claimed and filed by rename, a line in a journal)
//! and the same script started anew for each file.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod common;

use common::{Bench, drop_into, median, number, stage, until};

const HELPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python");

/// What stands for a model: an import that takes a while.
const RESIDENT: &str = "import sys\nsys.path.insert(0, HELPER)\ntry:\n    import numpy\nexcept ImportError:\n    import \
                        unittest.mock, xml.dom.minidom, http.server\nfrom gamdok_worker import serve\nopen(sys.argv[1], \
                        'a').write('.')\nserve(lambda item: {'bytes': item.path.stat().st_size})\n";
const ONESHOT: &str = "import sys, os\ntry:\n    import numpy\nexcept ImportError:\n    import unittest.mock, \
                       xml.dom.minidom, http.server\nprint(os.path.getsize(sys.argv[1]))\n";

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let (items, rounds) = (number("GAMDOK_BENCH_ITEMS", 5000), number("GAMDOK_BENCH_ROUNDS", 3));
    let bench = Bench::new("resident");
    let scripts =
        [("resident.py", RESIDENT.replace("HELPER", &format!("{HELPER:?}"))), ("oneshot.py", ONESHOT.to_owned())];
    for (name, text) in &scripts {
        fs::write(bench.dir.join(name), text).expect("written");
    }
    let (mut floors, mut single, mut batched, mut oneshot) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        floors.push(each(floor(&bench, round, items), items));
        single.push(each(gamdok(&bench, &format!("single-{round}"), items, 1), items));
        batched.push(each(gamdok(&bench, &format!("batched-{round}"), items, 16), items));
        let few = (items / 100).max(20);
        oneshot.push(each(gamdok(&bench, &format!("oneshot-{round}"), few, 0), few));
    }
    let floor = median(&mut floors);
    println!("\n{items} items, {rounds} rounds, medians");
    let lines = [
        ("floor: a socket, renames, a journal", floor),
        ("gamdok, one item a message", median(&mut single)),
        ("gamdok, batches of 16", median(&mut batched)),
        ("gamdok, the script for each item", median(&mut oneshot)),
    ];
    for (name, median) in lines {
        println!("{name:<36} {:>9.1} µs an item   {:>6.2} x floor", median, median / floor);
    }
}

fn each(took: Duration, items: usize) -> f64 {
    took.as_secs_f64() * 1e6 / items as f64
}

/// `batch` 0: one process for each item.
fn gamdok(bench: &Bench, name: &str, items: usize, batch: u32) -> Duration {
    let (script, started) = (bench.dir.join("resident.py"), bench.dir.join(format!("{name}.started")));
    let route = match batch {
        0 => format!("command = [\"python3\", {:?}, \"{{item}}\"]", bench.dir.join("oneshot.py")),
        _ => format!(
            "mode = \"resident\"\nbatch = {{ max_items = {batch} }}\ncommand = [\"python3\", {script:?}, {started:?}]"
        ),
    };
    let config = format!(
        "[devices]\nuse = \"cpu\"\ncpu_slots = 2\n[[route]]\nname = \"r\"\nkind = \"any\"\ngpus = 0\n{route}\n"
    );
    let root = bench.root(name, &config);
    let staged = root.stage(items + 2);
    let director = root.start();
    // Two first, so that both workers are there: what they load is paid once, and told apart.
    staged[..2].iter().for_each(|item| root.drop_in(item));
    until("the workers", Duration::from_secs(60), || root.done() >= 2);
    let began = Instant::now();
    staged[2..].iter().for_each(|item| root.drop_in(item));
    until("the work", Duration::from_secs(600), || root.done() >= items as u64 + 2);
    let took = began.elapsed();
    director.stop();
    if batch > 0 {
        let processes = fs::read(&started).map_or(0, |marks| marks.len());
        assert!(processes <= 2, "{processes} processes were started for two slots");
    }
    took
}

/// The least: two workers fed in turn over sockets, one message ahead.
fn floor(bench: &Bench, round: usize, items: usize) -> Duration {
    let dir = bench.dir.join(format!("floor-{round}"));
    let made = |name: &str| {
        let path = dir.join(name);
        fs::create_dir_all(&path).expect("made");
        path
    };
    let (inbox, claimed, done) = (made("inbox"), made("claimed"), made("done"));
    let staged = stage(&dir.join("staging"), items);
    let mut workers: Vec<Fed> = (0..2).map(|_| Fed::start(bench)).collect();
    let mut journal = File::create(dir.join("journal")).expect("made");
    let began = Instant::now();
    staged.iter().for_each(|item| drop_into(&inbox, item));
    let names: Vec<PathBuf> = staged.iter().map(|item| PathBuf::from(item.file_name().expect("a name"))).collect();
    let mut next = names.iter();
    let mut unsynced = 0;
    loop {
        let mut busy = false;
        for worker in &mut workers {
            while worker.queue.len() < 2
                && let Some(name) = next.next()
            {
                let item = claimed.join(name);
                fs::rename(inbox.join(name), &item).expect("claimed");
                worker.send(&item);
                worker.queue.push(name.clone());
            }
            if !worker.queue.is_empty() {
                busy = true;
                let answer = worker.receive();
                let name = worker.queue.remove(0);
                journal.write_all(answer.as_bytes()).expect("written");
                unsynced += 1;
                if unsynced == 64 {
                    journal.sync_data().expect("synced");
                    unsynced = 0;
                }
                fs::rename(claimed.join(&name), done.join(&name)).expect("moved");
            }
        }
        if !busy {
            break;
        }
    }
    journal.sync_data().expect("synced");
    began.elapsed()
}

struct Fed {
    channel: UnixStream,
    reader: BufReader<UnixStream>,
    queue: Vec<PathBuf>,
    _child: Child,
}

struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Fed {
    fn start(bench: &Bench) -> Fed {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        // Its standard input is the channel.
        let child = Command::new("python3")
            .arg(bench.dir.join("resident.py"))
            .arg(bench.dir.join("floor.started"))
            .env("GAMDOK_FD", "0")
            .stdin(Stdio::from(theirs.as_fd().try_clone_to_owned().expect("shared")))
            .spawn()
            .expect("python3 starts");
        let reader = BufReader::new(ours.try_clone().expect("shared"));
        let mut fed = Fed { channel: ours, reader, queue: Vec::new(), _child: Child(child) };
        assert!(fed.receive().contains("ready"));
        fed
    }

    fn send(&mut self, item: &Path) {
        let message = format!(
            "{{\"type\":\"items\",\"items\":[{{\"id\":\"x\",\"item\":{item:?},\"name\":\"x\",\"out\":\"/\",\"attempt\":1}}]}}\n"
        );
        self.channel.write_all(message.as_bytes()).expect("sent");
    }

    fn receive(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("an answer");
        line
    }
}
