//! A director that never waits for a worker: workers end by themselves, in an order of their own, and are reaped while
//! the director goes on with its rounds.
//!
//! `cargo run --example nonblocking_reap`

use std::error::Error;
use std::sync::mpsc::channel;

use gamdok::{Pool, Ticket};

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().slots(3).name("worker").build()?;
    // Each worker ends when it is given its word, which here stands for the end of its work.
    let mut words = Vec::new();
    let mut running: Vec<(usize, Ticket<String>)> = Vec::new();
    for worker in 0..3 {
        let (word, heard) = channel::<&str>();
        words.push(word);
        running.push((worker, pool.submit(move || heard.recv().unwrap_or("nothing").to_owned())));
    }

    let (mut rounds, mut reaped) = (0_u64, Vec::new());
    for next in [2, 0, 1] {
        words[next].send("done")?;
        // The director's own work: it looks at each worker and waits for none.
        let before = reaped.len();
        while reaped.len() == before {
            rounds += 1;
            for (worker, ticket) in std::mem::take(&mut running) {
                match ticket.try_wait() {
                    Ok(said) => {
                        println!("worker {worker} ended by itself and said `{}`", said?);
                        reaped.push(worker);
                    }
                    Err(still) => running.push((worker, still)),
                }
            }
            std::thread::yield_now();
        }
        println!("{} still run", running.len());
    }
    println!("the director made {rounds} rounds meanwhile");
    assert_eq!(reaped, [2, 0, 1]);
    println!("ok: reaped in the order in which they ended, [2, 0, 1]");
    Ok(())
}
