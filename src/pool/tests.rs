use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;
use crate::config::{self, Backend};

/// Reached only when something hangs.
const LIMIT: Duration = Duration::from_secs(60);

fn pool(slots: usize) -> Pool {
    Pool::builder().slots(slots).build().unwrap()
}

/// A pool of one slot that runs a task until it is told to end it.
fn busy() -> (Pool, std::sync::mpsc::Sender<()>, Ticket<bool>) {
    let pool = pool(1);
    let ((go, wait), (begun, begins)) = (channel(), channel());
    let ticket = pool.submit(move || begun.send(()).is_ok() && wait.recv().is_ok());
    begins.recv_timeout(LIMIT).unwrap();
    (pool, go, ticket)
}

#[test]
fn results_come_back_whatever_the_slots() {
    let check = |slots: usize| {
        let pool = pool(slots);
        let tickets: Vec<_> = (0..200).map(|n| pool.submit(move || n * 2)).collect();
        let results: Vec<i32> = tickets.into_iter().map(|ticket| ticket.wait().unwrap()).collect();
        assert_eq!(results, (0..200).map(|n| n * 2).collect::<Vec<_>>());
    };
    [1, 2, 7].into_iter().for_each(check);
}

#[test]
fn a_panic_is_its_tickets_and_the_slot_goes_on() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("in the end of what it captured");
            }
        }
    }
    let pool = pool(1);
    let text = pool.submit(|| -> () { panic!("{} of {}", 1, 2) });
    let odd = pool.submit(|| -> () { std::panic::panic_any(7) });
    // The result is dropped by the worker, since nobody has its ticket.
    drop(pool.submit(|| Bomb));
    let cancelled_bomb = Bomb;
    let never = pool.submit(move || {
        let _bomb = &cancelled_bomb;
    });
    never.cancel();
    assert_eq!(text.wait(), Err(TaskError::Panicked("1 of 2".to_owned())));
    assert_eq!(odd.wait(), Err(TaskError::Panicked("no message".to_owned())));
    assert_eq!(pool.submit(|| 1).wait(), Ok(1));
}

#[test]
fn only_what_has_not_begun_is_cancelled() {
    let (pool, go, first) = busy();
    let second = pool.submit(|| 2);
    let third = pool.submit(|| 3);
    assert_eq!((first.cancel(), second.cancel(), second.cancel()), (false, true, false));
    go.send(()).unwrap();
    assert_eq!((first.wait(), second.wait(), third.wait()), (Ok(true), Err(TaskError::Cancelled), Ok(3)));
}

#[test]
fn a_wait_with_a_limit_gives_the_ticket_back() {
    let (_pool, go, ticket) = busy();
    let ticket = ticket.try_wait().unwrap_err();
    let ticket = ticket.wait_timeout(Duration::from_millis(1)).unwrap_err();
    assert!(!ticket.is_done());
    go.send(()).unwrap();
    assert_eq!(ticket.wait_timeout(LIMIT).unwrap(), Ok(true));
}

#[test]
fn tickets_are_told_of_in_the_order_of_their_ends() {
    let pool = pool(3);
    let (release, gates): (Vec<_>, Vec<_>) = (0..3).map(|_| channel::<()>()).unzip();
    let tickets: Vec<_> = gates.into_iter().map(|gate| pool.submit(move || gate.recv().is_ok())).collect();
    let mut done = as_completed(tickets);
    for place in [2, 0, 1] {
        release[place].send(()).unwrap();
        assert_eq!(done.next(), Some((place, Ok(true))));
    }
    assert_eq!(done.next(), None);
    // Those that had ended before count, too.
    let ended = pool.submit(|| 5);
    while !ended.is_done() {
        thread::yield_now();
    }
    assert_eq!(as_completed([ended]).collect::<Vec<_>>(), [(0, Ok(5))]);
}

#[test]
fn a_map_keeps_the_order_and_never_pulls_far_ahead() {
    let check = |slots: usize, most: usize| {
        let pool = pool(slots);
        let pulled = Arc::new(AtomicUsize::new(0));
        let count = pulled.clone();
        let items = (0..500).inspect(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let results = pool.map(items, |n| if n % 100 == 7 { panic!("{n}") } else { n }).in_flight(most);
        for (n, result) in results.enumerate() {
            let ahead = pulled.load(Ordering::Relaxed) - n;
            assert!(ahead <= most, "{ahead} pulled and not given");
            assert_eq!(result, if n % 100 == 7 { Err(TaskError::Panicked(n.to_string())) } else { Ok(n) });
        }
        assert_eq!(pulled.load(Ordering::Relaxed), 500);
    };
    check(1, 1);
    check(2, 3);
    check(4, 64);
}

#[test]
fn an_unordered_map_waits_for_nobody() {
    let pool = pool(2);
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let mut results = pool.map_unordered(0..20, move |n| {
        if n == 0 {
            wait.lock().unwrap().recv().unwrap();
        }
        n
    });
    let mut first: Vec<i32> = results.by_ref().take(19).flatten().collect();
    first.sort_unstable();
    assert_eq!(first, (1..20).collect::<Vec<_>>());
    go.send(()).unwrap();
    assert_eq!(results.collect::<Vec<_>>(), [Ok(0)]);
}

#[test]
fn results_that_nobody_reads_on_are_given_up() {
    let (pool, go, first) = busy();
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let mut results = pool.map(0..1_000, move |_| count.fetch_add(1, Ordering::Relaxed));
    results.flow.fill();
    drop(results);
    go.send(()).unwrap();
    assert_eq!(first.wait(), Ok(true));
    pool.join();
    assert_eq!(ran.load(Ordering::Relaxed), 0);
}

#[test]
fn a_bounded_line_holds_its_producer_back() {
    let pool = Pool::builder().slots(1).queue(2).build().unwrap();
    let ((go, wait), (begun, begins)) = (channel::<()>(), channel());
    let first = pool.submit(move || begun.send(()).is_ok() && wait.recv().is_ok());
    begins.recv_timeout(LIMIT).unwrap();
    let line: Vec<_> = (0..2).map(|n| pool.try_submit(move || n).unwrap()).collect();
    assert!(pool.try_submit(|| 9).is_none());
    thread::scope(|threads| {
        let waiting = threads.spawn(|| pool.submit(|| 3).wait());
        go.send(()).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(3));
    });
    assert_eq!(first.wait(), Ok(true));
    assert!(line.into_iter().enumerate().all(|(n, ticket)| ticket.wait() == Ok(n)));
}

#[test]
fn the_end_waits_for_what_runs_and_cancels_the_rest() {
    let (pool, go, first) = busy();
    let line: Vec<_> = (0..3).map(|n| pool.submit(move || n)).collect();
    let results = pool.map(0..3, |n| n);
    pool.shutdown();
    assert_eq!(pool.submit(|| 1).wait(), Err(TaskError::Cancelled));
    assert!(pool.try_submit(|| 1).is_none());
    assert!(results.into_iter().all(|result| result == Err(TaskError::Cancelled)));
    go.send(()).unwrap();
    drop(pool);
    assert!(first.is_done());
    assert!(line.into_iter().all(|ticket| ticket.wait() == Err(TaskError::Cancelled)));
}

#[test]
fn the_last_of_a_pool_may_go_in_one_of_its_tasks() {
    let pool = Arc::new(pool(2));
    let (own, (told, tells)) = (pool.clone(), channel());
    let barrier = Arc::new(Barrier::new(2));
    let meet = barrier.clone();
    pool.submit(move || {
        meet.wait();
        drop(own);
        told.send(()).unwrap();
    });
    drop(pool);
    barrier.wait();
    tells.recv_timeout(LIMIT).unwrap();
}

#[test]
fn a_scope_borrows_and_ends_when_its_tasks_have() {
    let pool = Pool::builder().slots(3).name("own").build().unwrap();
    let words: Vec<String> = (0..50).map(|n| "x".repeat(n)).collect();
    let ran = AtomicUsize::new(0);
    let (total, name) = pool.scope(|scope| {
        for _ in 0..100 {
            scope.submit(|| ran.fetch_add(1, Ordering::Relaxed));
        }
        let name = scope.submit(|| thread::current().name().map(str::to_owned)).wait().unwrap().unwrap();
        let in_order: Vec<usize> = scope.map(&words, |word| word.len()).flatten().collect();
        assert!(in_order.is_sorted());
        (scope.map_unordered(&words, |word| word.len()).flatten().sum::<usize>(), name)
    });
    assert_eq!((total, ran.into_inner()), (1225, 100));
    assert!(name.starts_with("own-scope-"), "{name}");
    let panicked = pool.scope(|scope| scope.submit(|| -> u8 { panic!("inside") }).wait());
    assert_eq!(panicked, Err(TaskError::Panicked("inside".to_owned())));
}

fn simulated(gpus: u32, slots: u32) -> config::Devices {
    let sim = config::Sim { gpus, ..config::Sim::default() };
    config::Devices { backend: Backend::Sim, sim, slots, ..config::Devices::default() }
}

#[test]
fn a_gpu_is_one_tasks_at_a_time() {
    let check = |gpus: u32, slots: u32, each: u32, at_a_time: usize| {
        let rules = simulated(gpus, slots);
        let pool = Pool::builder().devices(Devices::gpus(each).rules(rules)).build().unwrap();
        assert_eq!(pool.slots(), at_a_time);
        // All slots at once, on different devices: as many tasks as slots wait for each other.
        let meet = Arc::new(Barrier::new(at_a_time));
        let tickets: Vec<_> = (0..at_a_time)
            .map(|_| {
                let meet = meet.clone();
                pool.submit_with(move |slot| {
                    meet.wait();
                    let visible =
                        slot.device().env().find(|(key, _)| *key == "CUDA_VISIBLE_DEVICES").unwrap().1.to_owned();
                    assert_eq!((slot.device().gpus(), visible), (each as usize, slot.device().ids().join(",")));
                    slot.device().indexes()
                })
            })
            .collect();
        let mut given: Vec<u32> = tickets.into_iter().flat_map(|ticket| ticket.wait().unwrap()).collect();
        given.sort_unstable();
        let mut all: Vec<u32> = (0..gpus).flat_map(|index| std::iter::repeat_n(index, slots as usize)).collect();
        all.truncate(at_a_time * each as usize);
        assert_eq!(given, all);
    };
    check(3, 1, 1, 3);
    check(2, 2, 1, 4);
    check(4, 1, 2, 2);
}

#[test]
fn gpus_are_shared_with_the_pools_scopes_and_go_round() {
    let pool = Pool::builder().devices(Devices::gpus(1).rules(simulated(1, 1))).build().unwrap();
    let busy = Arc::new(AtomicUsize::new(0));
    let alone = |busy: &AtomicUsize| {
        assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0);
        thread::yield_now();
        busy.fetch_sub(1, Ordering::SeqCst);
    };
    let own: Vec<_> = (0..20)
        .map(|_| {
            let busy = busy.clone();
            pool.submit(move || alone(&busy))
        })
        .collect();
    pool.scope(|scope| assert!(scope.map(0..20, |_| alone(&busy)).all(|result| result.is_ok())));
    assert!(own.into_iter().all(|ticket| ticket.wait().is_ok()));
}

#[test]
fn who_waits_for_a_gpu_hears_of_the_end() {
    let pool = Pool::builder().devices(Devices::gpus(1).rules(simulated(1, 1))).build().unwrap();
    let lender = pool.lender.clone().unwrap();
    let loan = lender.wish(Vec::new()).granted.recv_timeout(LIMIT).unwrap();
    let ticket = pool.submit(|| 1);
    drop(pool);
    assert_eq!(ticket.wait(), Err(TaskError::Cancelled));
    drop(loan);
}

#[test]
fn devices_that_are_not_there_are_told_of() {
    let check = |devices: Devices, words: &str| {
        let wrong = Pool::builder().name("train").devices(devices).build().unwrap_err().to_string();
        assert!(wrong.contains(words), "{wrong}");
    };
    check(Devices::gpus(3).rules(simulated(2, 1)), "pool `train` needs 3 GPUs, this host has 2");
    let cpu = config::Devices { backend: Backend::Cpu, ..config::Devices::default() };
    check(Devices::gpus(1).rules(cpu.clone()).cpu_fallback(false), "needs a GPU, this host has none");
    let pool = Pool::builder().slots(1).devices(Devices::gpus(1).rules(cpu)).build().unwrap();
    assert_eq!(pool.submit_with(|slot| slot.device().gpus()).wait(), Ok(0));
}

#[test]
fn what_no_pool_can_be_is_an_error_and_never_a_panic() {
    let check = |change: fn(Builder) -> Builder, words: &str| {
        let wrong = change(Pool::builder()).build().map(drop).unwrap_err().to_string();
        assert!(wrong.contains(words), "{wrong}, not {words}");
    };
    check(|it| it.name("a\0b"), "the name `a\\u{0}b` has a NUL byte");
    check(|it| it.slots(0), "at least one slot");
    check(|it| it.slots(usize::MAX), "18446744073709551615 slots are a thread each: ask for at most 65536");
    let gpus = |each, rules: config::Devices| move |it: Builder| it.devices(Devices::gpus(each).rules(rules.clone()));
    let check = |change: &dyn Fn(Builder) -> Builder, words: &str| {
        let wrong = change(Pool::builder()).build().map(drop).unwrap_err().to_string();
        assert!(wrong.contains(words) && wrong.contains("help: "), "{wrong}, not {words}");
    };
    check(&gpus(1, simulated(2, 0)), "`slots` is 0");
    check(&gpus(1, simulated(2, u32::MAX)), "`slots` is 4294967295");
    check(&gpus(1, simulated(u32::MAX, 1)), "`sim.gpus` is 4294967295");
    check(&gpus(u32::MAX, simulated(2, 1)), "asks for 4294967295 GPUs at a time");
    for cpu_slots in [0, u32::MAX] {
        let rules = config::Devices { cpu_slots: Some(cpu_slots), ..config::Devices::default() };
        check(&|it| it.devices(Devices::cpu().rules(rules.clone())), "`cpu_slots` is ");
    }
}

#[test]
fn huge_numbers_are_as_good_as_none() {
    let pool = Pool::builder().slots(2).queue(usize::MAX).name("").build().unwrap();
    assert_eq!(pool.submit(|| 1).wait_timeout(Duration::MAX).unwrap(), Ok(1));
    assert_eq!(pool.map(0..100, |n| n).in_flight(usize::MAX).flatten().count(), 100);
    assert_eq!(pool.map_unordered(0..100, |n| n).in_flight(usize::MAX).flatten().count(), 100);
    pool.scope(|scope| assert_eq!(scope.submit(|| 2).wait(), Ok(2)));
    let two = Pool::builder().slots(usize::MAX).devices(Devices::gpus(1).rules(simulated(2, 1))).build().unwrap();
    assert_eq!(two.slots(), 2);
}
