//! A director, a dictionary of workers, and tasks that pass a check before anybody gets them. The same tasks are dealt out
//! twice: in turn (round-robin, the older way), and to whoever has the fewest (least connections). One of the three
//! workers is slow: dealt out in turn it gets a third of the tasks all the same, and everybody waits for it.
//!
//! `cargo run --example director_worker`

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gamdok::Director;
use gamdok::rules::{Backend, Policy, Rules, Sim};
use gamdok::service::{Failure, Route};

/// Does one task at a time, in its own time.
struct Worker {
    pace: u32,
    done: usize,
}

impl Worker {
    fn work(&mut self, cost: Duration) {
        // Stands for work: a wait that nobody ends earlier.
        let _ = crossbeam_channel::never::<()>().recv_timeout(cost * self.pace);
        self.done += 1;
    }
}

/// By the index of their devices.
type Workers = BTreeMap<u32, Mutex<Worker>>;

fn main() -> Result<(), Box<dyn Error>> {
    // In milliseconds; what takes no time, or for ever, is no task.
    let offered: Vec<i64> = (0..30).map(|n| 6 + n % 3).chain([0, -5, i64::MAX]).collect();
    let (tasks, refused): (Vec<i64>, Vec<i64>) = offered.into_iter().partition(|cost| (1..1_000).contains(cost));
    println!("{} tasks pass the check, {} don't", tasks.len(), refused.len());

    let (turn, in_turn) = makespan(Policy::RoundRobin, &tasks)?;
    let (least, by_load) = makespan(Policy::LeastConnections, &tasks)?;
    println!("round-robin:       {:>5.0} ms, tasks by worker {in_turn:?}", turn.as_secs_f64() * 1e3);
    println!("least connections: {:>5.0} ms, tasks by worker {by_load:?}", least.as_secs_f64() * 1e3);
    let all = |dealt: &[usize]| dealt.iter().sum::<usize>() == tasks.len();
    assert!(all(&in_turn) && all(&by_load));
    println!("ok: the same {} tasks both ways, each done once", tasks.len());
    Ok(())
}

/// How long the tasks take with this policy, and how many each worker did.
fn makespan(policy: Policy, tasks: &[i64]) -> Result<(Duration, Vec<usize>), Box<dyn Error>> {
    let workers = [1, 1, 8].into_iter().map(|pace| Mutex::new(Worker { pace, done: 0 }));
    let workers: Arc<Workers> = Arc::new((0..).zip(workers).collect());
    let theirs = workers.clone();
    let route = Route::closure("task", move |job| {
        let cost: u64 = std::fs::read_to_string(job.item())?.parse()?;
        let worker = job.device().indexes().first().and_then(|index| theirs.get(index));
        let worker = worker.ok_or_else(|| Failure::for_good("nobody has this device"))?;
        worker.lock().unwrap_or_else(PoisonError::into_inner).work(Duration::from_millis(cost));
        Ok(())
    });

    // Each worker is a simulated GPU; six tasks are on their way at a time, each with one of the workers.
    let sim = Sim { gpus: workers.len() as u32, ..Sim::default() };
    let rules = Rules { backend: Backend::Sim, sim, slots: 6, policy, ..Rules::default() };
    let folder = tempfile::tempdir()?;
    let builder = Director::builder().root(folder.path().join("root")).init().devices(rules);
    let director = builder.route(route.max_running(6)).start()?;
    director.pause()?;
    for (n, cost) in tasks.iter().enumerate() {
        director.submit_bytes(&format!("{n}.task"), cost.to_string().as_bytes())?;
    }
    let begun = Instant::now();
    director.resume()?;
    director.wait()?;
    let took = begun.elapsed();
    director.join()?;
    let done = |worker: &Mutex<Worker>| worker.lock().unwrap_or_else(PoisonError::into_inner).done;
    Ok((took, workers.values().map(done).collect()))
}
