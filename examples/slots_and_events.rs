//! Three ways to hold somebody back: two slots for five tasks, an event that releases whoever waits for it, and a buffer
//! of ten places between a fast producer and a slow consumer.
//!
//! `cargo run --example slots_and_events`

use std::collections::VecDeque;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use gamdok::Pool;

const PLACES: usize = 10;
const ITEMS: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().slots(2).name("slot").build()?;
    two_slots(&pool);
    event(&pool)?;
    buffer(&pool)?;
    Ok(())
}

fn two_slots(pool: &Pool) {
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = |task: usize| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::yield_now();
        now.fetch_sub(1, Ordering::SeqCst);
        task
    };
    let ended: Vec<usize> = pool.scope(|scope| scope.map_unordered(0..5, work).flatten().collect());
    let most = most.into_inner();
    assert!(ended.len() == 5 && (1..=2).contains(&most));
    println!("ok: five tasks ended, never more than two at a time");
}

/// Set once; everybody who waits for it goes on.
#[derive(Default)]
struct Event {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn set(&self) {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(set, |set| !*set));
    }
}

fn event(pool: &Pool) -> Result<(), Box<dyn Error>> {
    let (event, log) = (Event::default(), Mutex::new(Vec::new()));
    let note = |what| log.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    pool.scope(|scope| {
        scope.submit(|| {
            event.wait();
            note("the waiter goes on");
        });
        scope.submit(|| {
            note("the event is set");
            event.set();
        });
    });
    let log = log.into_inner()?;
    assert_eq!(log, ["the event is set", "the waiter goes on"]);
    println!("ok: {}", log.join(", then "));
    Ok(())
}

/// Whoever finds it full waits, and whoever finds it empty.
#[derive(Default)]
struct Buffer {
    items: Mutex<VecDeque<usize>>,
    changed: Condvar,
}

impl Buffer {
    /// Answers how many lie there now.
    fn put(&self, item: usize) -> usize {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |items: &mut VecDeque<usize>| items.len() == PLACES;
        let mut items = self.changed.wait_while(items, full).unwrap_or_else(PoisonError::into_inner);
        items.push_back(item);
        self.changed.notify_all();
        items.len()
    }

    fn take(&self) -> Option<usize> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = |items: &mut VecDeque<usize>| items.is_empty();
        let mut items = self.changed.wait_while(items, empty).unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
        items.pop_front()
    }
}

fn buffer(pool: &Pool) -> Result<(), Box<dyn Error>> {
    let buffer = Buffer::default();
    let (most, taken) = pool.scope(|scope| {
        let producer = scope.submit(|| (0..ITEMS).map(|item| buffer.put(item)).max());
        let consumer = scope.submit(|| (0..ITEMS).filter_map(|_| buffer.take()).collect::<Vec<_>>());
        (producer.wait(), consumer.wait())
    });
    let (most, taken) = (most?.unwrap_or(0), taken?);
    assert!(most <= PLACES && taken.into_iter().eq(0..ITEMS));
    println!("ok: {ITEMS} items went through {PLACES} places in order");
    Ok(())
}
