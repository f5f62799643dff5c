//! Threads that go through a step together, and the buffers that they share.
//!
//! Every worker runs the same phases, each on its own share of the work, and waits for the others
//! between two of them. No `unsafe` is needed: a buffer has a part per worker behind a lock, which
//! nobody ever waits for, because the phases keep writers and readers apart.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;

/// Turns of a worker that waits before it lets another thread have the core.
const SPINS: usize = 10_000;

/// Where workers wait for each other.
#[derive(Debug)]
pub(crate) struct Team {
    workers: usize,
    arrived: AtomicUsize,
    phase: AtomicUsize,
    broken: AtomicBool,
}

/// One of a team, by its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worker<'a> {
    team: &'a Team,
    pub(crate) number: usize,
}

/// Tells the others of a panic, who would wait for ever.
struct Alarm<'a>(&'a Team);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.broken.store(true, Ordering::Release);
        }
    }
}

/// Runs `work` on as many threads as there are `workers`, of which the caller's is one.
pub(crate) fn together(workers: usize, work: impl Fn(Worker<'_>) + Sync) {
    let team = Team {
        workers,
        arrived: AtomicUsize::new(0),
        phase: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    };
    let run = |number| {
        let _alarm = Alarm(&team);
        work(Worker {
            team: &team,
            number,
        });
    };
    thread::scope(|scope| {
        for number in 1..workers {
            let run = &run;
            scope.spawn(move || run(number));
        }
        run(0);
    });
}

impl Worker<'_> {
    /// Waits until every worker is here.
    pub(crate) fn wait(self) {
        let team = self.team;
        if team.workers == 1 {
            return;
        }
        let phase = team.phase.load(Ordering::Acquire);
        if team.arrived.fetch_add(1, Ordering::AcqRel) + 1 == team.workers {
            // The order matters: whom the phase releases may arrive again at once.
            team.arrived.store(0, Ordering::Relaxed);
            team.phase.store(phase + 1, Ordering::Release);
            return;
        }
        let mut turns = 0;
        while team.phase.load(Ordering::Acquire) == phase {
            assert!(
                !team.broken.load(Ordering::Acquire),
                "another thread of the step panicked"
            );
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }

    /// This worker's share of `units`.
    pub(crate) fn share(self, units: usize) -> Range<usize> {
        let per = units.div_ceil(self.team.workers);
        (self.number * per).min(units)..((self.number + 1) * per).min(units)
    }
}

/// A buffer of units, of which each worker writes its share and all read all.
#[derive(Debug)]
pub(crate) struct Parts<T> {
    unit: usize,
    per: usize,
    each: Vec<RwLock<Vec<T>>>,
}

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self {
            unit: 0,
            per: 0,
            each: Vec::new(),
        }
    }
}

impl<T: Copy> Parts<T> {
    /// Makes it `units` of `unit` values each, which hold anything; memory that is there is used.
    pub(crate) fn shape(&mut self, units: usize, unit: usize, workers: usize, fill: T) {
        self.unit = unit;
        self.per = units.div_ceil(workers);
        self.each.resize_with(workers, Default::default);
        for (number, part) in self.each.iter_mut().enumerate() {
            let start = (number * self.per).min(units);
            let end = ((number + 1) * self.per).min(units);
            let part = part.get_mut().unwrap_or_else(PoisonError::into_inner);
            part.resize((end - start) * unit, fill);
        }
    }

    /// Values of a unit.
    pub(crate) fn unit(&self) -> usize {
        self.unit
    }

    /// The units of a worker's share, to write to.
    pub(crate) fn mine(&self, worker: Worker<'_>) -> RwLockWriteGuard<'_, Vec<T>> {
        write(&self.each[worker.number])
    }

    /// All units, to read.
    pub(crate) fn all(&self) -> View<'_, T> {
        View {
            unit: self.unit,
            per: self.per,
            parts: self.each.iter().map(read).collect(),
        }
    }
}

/// All units of a buffer.
pub(crate) struct View<'a, T> {
    unit: usize,
    per: usize,
    parts: Vec<RwLockReadGuard<'a, Vec<T>>>,
}

impl<T> View<'_, T> {
    /// The values of one unit.
    #[inline(always)]
    pub(crate) fn unit(&self, number: usize) -> &[T] {
        // With one part, as most often, there is nothing to divide.
        let (part, at) = match &self.parts[..] {
            [part] => (part, number),
            parts => (&parts[number / self.per], number % self.per),
        };
        &part[at * self.unit..][..self.unit]
    }
}

/// Locks that are poisoned are of a step that panicked, and what they hold is written anew.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// As `write`, to read.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each phase adds up what all wrote in the one before.
    #[test]
    fn every_phase_sees_all_of_the_one_before() {
        for workers in 1..5 {
            let (mut a, mut b) = (Parts::default(), Parts::default());
            a.shape(7, 2, workers, 1u64);
            b.shape(7, 2, workers, 0u64);
            together(workers, |worker| {
                for (from, to) in [(&a, &b), (&b, &a), (&a, &b)] {
                    let view = from.all();
                    let sum: u64 = (0..7).flat_map(|unit| view.unit(unit)).sum();
                    let share = worker.share(7);
                    for (unit, values) in share.zip(to.mine(worker).chunks_mut(2)) {
                        values.fill(sum + unit as u64);
                    }
                    drop(view);
                    worker.wait();
                }
            });
            // 14; then 2 (7 * 14 + 21) = 238; then 2 (7 * 238 + 21) = 3374.
            let view = b.all();
            let found: Vec<u64> = (0..7).map(|unit| view.unit(unit)[1]).collect();
            assert_eq!(found, (3374..3381).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_of_one_ends_all() {
        let all = std::panic::catch_unwind(|| {
            together(3, |worker| {
                assert!(worker.number != 1, "on purpose");
                worker.wait();
            });
        });
        assert!(all.is_err());
    }
}
