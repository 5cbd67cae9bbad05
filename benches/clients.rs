//! Whether people who watch slow the director down: 50 clients of the event stream, 5 of which never read. First what is paid
//! on the director's own thread at 10,000 events a second, then how long a real director takes for the same items with
//! and without them, on as many cores as there are.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gamdok::api::directories::Directories;
use gamdok::api::view::{Counts, DirectorState, Listed, Status, View};
use gamdok::api::{Board, Patience, ServerSetup, serve};
use gamdok::devices::HostMode;
use gamdok::service::Route;

mod common;

use common::{median, number, pause};

const CLIENTS: usize = 50;
const STALLED: usize = 5;
const EVENTS: u64 = 10_000;
/// As the director publishes.
const ROUND: Duration = Duration::from_millis(20);

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let rounds = number("GAMDOK_BENCH_ROUNDS", 3);
    let bench = common::Bench::new("clients");
    let cores = gamdok::Slots::cpu_count();
    println!("{cores} cores, {CLIENTS} clients, {STALLED} of them stalled, {rounds} rounds in turns, medians");
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        alone.push(published(0));
        watched.push(published(CLIENTS));
    }
    let (alone, watched) = (median(&mut alone), median(&mut watched));
    println!("the director's thread, to publish {EVENTS} events a second, in % of its time");
    println!("  alone    {alone:>6.2}\n  watched  {watched:>6.2}   {:+.2} points", watched - alone);
    let items = number("GAMDOK_BENCH_ITEMS", 5000);
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        alone.push(worked(&bench.dir, items, 0));
        watched.push(worked(&bench.dir, items, CLIENTS));
    }
    let (alone, watched) = (median(&mut alone), median(&mut watched));
    println!("a director with {items} items of a closure that does nothing, in µs an item");
    println!("  alone    {alone:>6.1}\n  watched  {watched:>6.1}   {:.3} x", watched / alone);
}

/// Clients that follow until they are dropped.
struct Clients {
    over: Arc<AtomicBool>,
    read: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    _stalled: Vec<UnixStream>,
}

impl Clients {
    fn follow(root: &Path, clients: usize) -> Clients {
        let open = || {
            let mut stream = UnixStream::connect(root.join(".gamdok/sock")).expect("the socket");
            stream.write_all(b"GET /v1/events HTTP/1.0\r\n\r\n").expect("to ask");
            let mut first = [0; 16];
            stream.read_exact(&mut first).expect("an answer");
            stream
        };
        let (over, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let reads = |mut stream: UnixStream| {
            let (over, read) = (over.clone(), read.clone());
            stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a limit");
            thread::spawn(move || {
                let mut part = vec![0; 64 << 10];
                while !over.load(Ordering::Relaxed) {
                    read.fetch_add(stream.read(&mut part).unwrap_or(0) as u64, Ordering::Relaxed);
                }
            })
        };
        let stalled = clients.min(STALLED);
        let threads = (stalled..clients).map(|_| reads(open())).collect();
        Clients { threads, _stalled: (0..stalled).map(|_| open()).collect(), over, read }
    }

    /// How many bytes were read.
    fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|it| it.join().expect("a client"));
        self.read.load(Ordering::Relaxed)
    }
}

fn row(n: u64, state: &str) -> Listed {
    let id = ulid::Ulid::from_parts(n, n.into()).to_string();
    Listed {
        job: Some(format!("recording-{n}~{id}")),
        id: Some(id),
        name: format!("recording-{n}.wav"),
        route: Some("transcribe".to_owned()),
        state: state.to_owned(),
        attempts: 1,
        devices: vec!["GPU-00000000-0000-0000-0000-000000000000".to_owned()],
        ..Listed::empty()
    }
}

/// The share of the director's time that five seconds of publishing take, in percent.
fn published(clients: usize) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join(".gamdok")).expect("a root");
    let status = |number: u64| Status {
        counts: Counts { done: number, ..Counts::default() },
        ..Status::empty(String::new(), HostMode::Sim, DirectorState::Running)
    };
    let view =
        |number: u64, live: Vec<Listed>| View { number, status: status(number), live, tallies: Default::default() };
    let board = Board::new(view(1, Vec::new()));
    let directories = Directories::new(folder.path(), None);
    let (requests, _director) = crossbeam_channel::bounded(1);
    let server = serve(ServerSetup {
        directories: directories.clone(),
        board: board.clone(),
        requests,
        ended: Arc::new(directories),
        metrics: Arc::new(gamdok::metrics::Metrics::new(Default::default())),
        listen: None,
        token: None,
        max_upload: 0,
        patience: Patience::default(),
    });
    let server = server.expect("a server");
    let followers = Clients::follow(folder.path(), clients);
    let each = EVENTS / (1000 / ROUND.as_millis() as u64);
    let rounds = 5000 / ROUND.as_millis() as u64;
    let mut spent = Duration::ZERO;
    for number in 2..rounds + 2 {
        // Half of the events are ends, the others changes of what lives.
        let live = (0..each / 2).map(|n| row(number * each + n, if n % 2 == 0 { "running" } else { "claimed" }));
        let (view, began) = (view(number, live.collect()), thread_time());
        for n in 0..each / 2 {
            board.ended(|| row((number - 1) * each + n, "done"));
        }
        board.publish(view);
        spent += thread_time() - began;
        pause(ROUND);
    }
    let read = followers.end();
    assert!(clients == 0 || read > 100_000, "{read} bytes: nobody followed");
    drop(server);
    100.0 * spent.as_secs_f64() / (ROUND * rounds as u32).as_secs_f64()
}

fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// µs an item.
fn worked(dir: &Path, items: usize, clients: usize) -> f64 {
    let folder = tempfile::tempdir_in(dir).expect("a folder");
    let root = folder.path().join("root");
    let route = Route::closure("nothing", |_| Ok(())).cpu();
    let director = gamdok::Director::builder().root(&root).init().route(route).start().expect("a director");
    let followers = Clients::follow(&root, clients);
    director.pause().expect("to pause");
    for n in 0..items {
        let from = folder.path().join("next");
        std::fs::write(&from, "").expect("an item");
        std::fs::rename(from, root.join("inbox").join(n.to_string())).expect("to drop it");
    }
    let began = Instant::now();
    director.resume().expect("to go on");
    // What was dropped is seen by and by.
    while done(&root) < items {
        pause(Duration::from_millis(5));
    }
    let took = began.elapsed();
    if clients > 0 {
        println!("  the server's thread: {:.1} µs an item", api_time().as_secs_f64() * 1e6 / items as f64);
    }
    followers.end();
    director.join().expect("an end");
    took.as_secs_f64() * 1e6 / items as f64
}

/// What the server's thread has used: its share of a core shows however busy the machine is.
fn api_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let text = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let server = tasks.filter(|task| text(task.path().join("comm")).trim() == "api");
    let spent = server.filter_map(|task| text(task.path().join("schedstat")).split(' ').next()?.parse::<u64>().ok());
    Duration::from_nanos(spent.sum())
}

fn done(root: &Path) -> usize {
    let days = std::fs::read_dir(root.join("done")).into_iter().flatten().flatten();
    days.map(|day| std::fs::read_dir(day.path()).map_or(0, Iterator::count)).sum()
}
