//! Three producers and six consumers on one bounded queue, and a whole shutdown: when the last producer leaves, the
//! consumers empty the queue and end. Nothing is lost, nothing is taken twice.
//!
//! `cargo run --example producer_consumer`

use std::error::Error;

use crossbeam_channel::bounded;
use gamdok::{Pool, Ticket};

const PRODUCERS: u64 = 3;
const CONSUMERS: usize = 6;
const EACH: u64 = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    // A slot for each of them: who waits for the queue must not stand in line behind whom it waits for.
    let pool = Pool::builder().slots(PRODUCERS as usize + CONSUMERS).name("line").build()?;
    let (queue, taken) = bounded::<u64>(16);

    let producers: Vec<Ticket<u64>> = (0..PRODUCERS)
        .map(|producer| {
            let queue = queue.clone();
            pool.submit(move || (0..EACH).filter(|n| queue.send(producer * EACH + n).is_ok()).count() as u64)
        })
        .collect();
    // The queue ends with the last of its senders, and this is one.
    drop(queue);
    let consumers: Vec<Ticket<Vec<u64>>> = (0..CONSUMERS)
        .map(|_| {
            let taken = taken.clone();
            pool.submit(move || taken.iter().collect())
        })
        .collect();

    let mut made = 0;
    for producer in producers {
        made += producer.wait()?;
    }
    let mut all = Vec::new();
    for (consumer, ticket) in consumers.into_iter().enumerate() {
        let its = ticket.wait()?;
        println!("consumer {consumer} took {} items", its.len());
        all.extend(its);
    }
    pool.join();
    all.sort_unstable();
    assert_eq!(made, PRODUCERS * EACH);
    assert!(all.into_iter().eq(0..made), "each item exactly once");
    println!("ok: {made} items made by {PRODUCERS} producers, each taken exactly once by {CONSUMERS} consumers");
    Ok(())
}
