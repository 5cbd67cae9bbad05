//! Batches that wait for a slot, and the bounds on memory: the producer waits for room among the lines, slots wait for
//! room among the finished parts. What the merge waits for is never held back, so nothing can wait for ever.
//!
//! Invariants: the batch with the lowest index goes first, also one that comes back; what is counted in is counted out
//! again, once.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::consumer::Batch;

/// What a batch or a part costs beside its bytes; bounds how many tiny ones there may be.
const OVERHEAD: u64 = 4 << 10;

/// A batch and how it went so far.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) batch: Batch,
    /// Failures of its own.
    pub(super) counted: u32,
    pub(super) uncounted: u32,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something changed for the producer.
    room: Condvar,
    /// Something changed for the slots.
    work: Condvar,
    /// For lines and for parts, each.
    limit: u64,
    /// Larger buffers aren't kept.
    usual: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<u64, Task>,
    /// The bytes of batches that wait or are worked on.
    lines: u64,
    /// The bytes of parts that aren't merged yet.
    parts: u64,
    /// What is merged next.
    next: u64,
    halted: bool,
    /// How often slots were called to ask their consumers whether they want more.
    calls: u64,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
}

impl Queue {
    pub(super) fn new(limit: u64, usual: usize, next: u64) -> Queue {
        let state = Mutex::new(State { next, ..State::default() });
        Queue { state, room: Condvar::new(), work: Condvar::new(), limit, usual }
    }

    /// Adds a new batch as soon as there is room. A break: it was halted.
    pub(super) fn send(&self, batch: Batch) -> ControlFlow<()> {
        let cost = cost(batch.bytes.len());
        let is_full = |state: &mut State| !state.halted && state.lines > 0 && state.lines + cost > self.limit;
        let mut state = self.room.wait_while(self.state(), is_full).unwrap_or_else(PoisonError::into_inner);
        if state.halted {
            return ControlFlow::Break(());
        }
        state.lines += cost;
        state.waiting.insert(batch.index, Task { batch, counted: 0, uncounted: 0 });
        self.work.notify_one();
        ControlFlow::Continue(())
    }

    /// Takes the next batch as soon as there is one and room for what becomes of it; none once it was halted, or when
    /// there were other calls than those seen.
    pub(super) fn take(&self, seen: u64) -> Option<Task> {
        let must_wait = |state: &mut State| {
            let first = state.waiting.first_key_value().map(|(index, _)| *index);
            let nothing = first.is_none_or(|first| first != state.next && state.parts >= self.limit);
            !state.halted && state.calls == seen && nothing
        };
        let mut state = self.work.wait_while(self.state(), must_wait).unwrap_or_else(PoisonError::into_inner);
        if state.halted || state.calls != seen {
            return None;
        }
        state.waiting.pop_first().map(|(_, task)| task)
    }

    /// Has every slot that waits ask its consumer whether it wants more.
    pub(super) fn call(&self) {
        self.state().calls += 1;
        self.work.notify_all();
    }

    /// How often that was; none once it was halted.
    pub(super) fn calls(&self) -> Option<u64> {
        let state = self.state();
        (!state.halted).then_some(state.calls)
    }

    /// Whether no batch waits for a slot.
    pub(super) fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// A batch that was taken is wanted again.
    pub(super) fn put_back(&self, task: Task) {
        self.state().waiting.insert(task.batch.index, task);
        self.work.notify_all();
    }

    /// A batch that was taken has become a part of so many bytes.
    pub(super) fn finished(&self, batch: Batch, part: usize) {
        let mut state = self.state();
        state.lines -= cost(batch.bytes.len());
        state.parts += cost(part);
        self.keep(&mut state, batch.bytes);
        self.room.notify_one();
    }

    /// Parts were merged; `next` is now waited for.
    pub(super) fn merged(&self, next: u64, buffers: impl Iterator<Item = Vec<u8>>) {
        let mut state = self.state();
        state.next = next;
        for buffer in buffers {
            state.parts -= cost(buffer.len());
            self.keep(&mut state, buffer);
        }
        self.work.notify_all();
    }

    /// Nobody gets a batch from now on, and none is taken in.
    pub(super) fn halt(&self) {
        self.state().halted = true;
        self.room.notify_all();
        self.work.notify_all();
    }

    pub(super) fn is_halted(&self) -> bool {
        self.state().halted
    }

    /// An empty buffer.
    pub(super) fn buffer(&self) -> Vec<u8> {
        let mut state = self.state();
        let buffer = state.spare.pop().unwrap_or_default();
        state.spare_bytes -= buffer.capacity();
        buffer
    }

    fn keep(&self, state: &mut State, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        // As many as a few batches take: most are in use.
        let most = (self.limit / 4).try_into().unwrap_or(usize::MAX);
        if 0 < capacity && capacity <= self.usual && capacity.saturating_add(state.spare_bytes) <= most {
            buffer.clear();
            state.spare_bytes += capacity;
            state.spare.push(buffer);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(bytes: usize) -> u64 {
    OVERHEAD + bytes as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn batch(index: u64, size: usize) -> Batch {
        Batch {
            index,
            bytes: vec![b'x'; size],
            lines: 1,
            first_line: index + 1,
            offset: 0,
            attempt: 1,
            file_bytes: 0,
            file_end: 0,
        }
    }

    fn taken(queue: &Queue) -> u64 {
        queue.take(0).map(|task| task.batch.index).unwrap()
    }

    #[test]
    fn the_producer_waits_for_room_and_a_large_batch_passes_alone() {
        let queue = Queue::new(100_000, 1000, 0);
        thread::scope(|scope| {
            let (sent, seen) = mpsc::channel();
            let queue = &queue;
            scope.spawn(move || {
                for (index, size) in [(0, 40_000), (1, 40_000), (2, 500_000), (3, 1)] {
                    assert!(queue.send(batch(index, size)).is_continue());
                    sent.send(index).unwrap();
                }
            });
            assert_eq!([seen.recv_timeout(LIMIT), seen.recv_timeout(LIMIT)], [Ok(0), Ok(1)]);
            for index in 0..2 {
                assert!(seen.try_recv().is_err(), "2 has no room before {index} is done");
                let task = queue.take(0).unwrap();
                assert_eq!(task.batch.index, index);
                queue.finished(task.batch, 0);
            }
            assert_eq!(seen.recv_timeout(LIMIT), Ok(2));
            let large = queue.take(0).unwrap();
            assert!(seen.try_recv().is_err(), "it passes alone");
            queue.finished(large.batch, 0);
            assert_eq!(seen.recv_timeout(LIMIT), Ok(3));
        });
    }

    #[test]
    fn parts_hold_slots_back_but_never_what_the_merge_waits_for() {
        let queue = Queue::new(100_000, 1000, 0);
        for index in 0..4 {
            assert!(queue.send(batch(index, 10)).is_continue());
        }
        let first = queue.take(0).unwrap();
        let second = queue.take(0).unwrap();
        queue.finished(second.batch, 200_000);
        thread::scope(|scope| {
            let (sent, seen) = mpsc::channel();
            let queue = &queue;
            scope.spawn(move || {
                for _ in 0..3 {
                    sent.send(taken(queue)).unwrap();
                }
            });
            queue.put_back(first);
            assert_eq!(seen.recv_timeout(LIMIT), Ok(0), "it comes back first, though there is no room");
            assert!(seen.try_recv().is_err(), "2 waits for room");
            queue.merged(2, [vec![0; 200_000]].into_iter());
            assert_eq!([seen.recv_timeout(LIMIT), seen.recv_timeout(LIMIT)], [Ok(2), Ok(3)]);
        });
    }

    #[test]
    fn a_halt_wakes_all_who_wait() {
        let queue = Queue::new(10_000, 1000, 0);
        thread::scope(|scope| {
            let (taker, producer) = (
                scope.spawn(|| queue.take(0).is_none()),
                scope.spawn(|| (0..10).any(|index| queue.send(batch(index + 1, 9000)).is_break())),
            );
            // Either may wait already, or find it halted.
            queue.halt();
            assert!(producer.join().unwrap());
            let _took_or_not = taker.join().unwrap();
        });
        assert!(queue.take(0).is_none());
    }

    #[test]
    fn buffers_are_used_again_unless_they_are_large() {
        let queue = Queue::new(100_000, 1000, 0);
        for size in [500, 5000] {
            assert!(queue.send(batch(0, size)).is_continue());
            let task = queue.take(0).unwrap();
            queue.finished(task.batch, 0);
        }
        let buffer = queue.buffer();
        assert!(buffer.is_empty() && buffer.capacity() == 500);
        assert_eq!(queue.buffer().capacity(), 0);
    }
}
