//! Jobs over threads that live as long as one call.
//!
//! The threads take jobs from a shared counter and send the results to the calling thread, which
//! puts them in order. So neither the result nor the error depends on the number of threads.
//!
//! No pool outlives the call, so a process may fork between calls. The calling thread does no job
//! itself and is free to ask for interrupts. How large a job should be is
//! the matter of [`crate::jobs`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::{Error, Interrupt};

/// How often the calling thread asks whether to stop.
///
/// The promise is an answer to Ctrl-C within 100 ms, and workers take a few ms more to stop.
const PATIENCE: Duration = Duration::from_millis(20);

/// The number of threads that `threads` means: 0 is one for each core.
pub(crate) fn resolve(threads: usize) -> usize {
    match threads {
        // One thread if the system does not say how many cores there are.
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// `work(job, state, interrupt)` for each of `jobs`, in job order, over one thread per state.
///
/// A job gets one of the states to itself while it runs, so a state needs no lock. With one state
/// or one job everything runs on the calling thread.
///
/// # Errors
///
/// The error of the failed job with the lowest number; before that, what `interrupt` returns.
pub(crate) fn map<J: Sync, S: Send, R: Send>(
    jobs: &[J],
    states: &mut [S],
    interrupt: &mut Interrupt<'_>,
    work: impl Fn(&J, &mut S, &mut Interrupt<'_>) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let mut results = Vec::with_capacity(jobs.len());
    each(jobs, states, interrupt, work, |_, result| {
        results.push(result);
    })?;
    Ok(results)
}

/// As [`map`], but `give` gets each result as soon as those before it are there: what is joined
/// need not be kept twice. After an error it may have had some of them.
///
/// # Errors
///
/// As [`map`].
pub(crate) fn each<J: Sync, S: Send, R: Send>(
    jobs: &[J],
    states: &mut [S],
    interrupt: &mut Interrupt<'_>,
    work: impl Fn(&J, &mut S, &mut Interrupt<'_>) -> Result<R, Error> + Sync,
    mut give: impl FnMut(&J, R),
) -> Result<(), Error> {
    let workers = states.len().min(jobs.len());
    // Without threads, interrupts come from the work itself.
    if workers <= 1 {
        let Some(state) = states.first_mut() else {
            return Ok(());
        };
        for job in jobs {
            give(job, work(job, state, interrupt)?);
        }
        return Ok(());
    }
    // Relaxed is enough for both: they carry no data, and the results go through the channel.
    let stop = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for state in &mut states[..workers] {
            let (sender, work, stop, next) = (sender.clone(), &work, &stop, &next);
            scope.spawn(move || {
                // Workers never call the caller's interrupt: it may need the thread that called.
                let mut stopped = || {
                    if stop.load(Ordering::Relaxed) {
                        Err(Error::Interrupted)
                    } else {
                        Ok(())
                    }
                };
                while let Some((index, job)) = take(jobs, next) {
                    let result = work(job, state, &mut stopped);
                    // Nobody needs the jobs that are not begun.
                    if result.is_err() {
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                    // The receiver is gone only when the call is over.
                    if sender.send((index, result)).is_err() {
                        return;
                    }
                }
            });
        }
        // With this one left, the channel would never close and `collect` never end.
        drop(sender);
        let outcome = collect(&receiver, jobs, interrupt, &mut give);
        // After an interrupt the others must end too, before the scope does.
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

/// The next job and its number. Threads take one at a time, so a slow job delays only its own.
fn take<'a, J>(jobs: &'a [J], next: &AtomicUsize) -> Option<(usize, &'a J)> {
    // No overflow: each thread passes the end of the jobs once and then stops.
    let index = next.fetch_add(1, Ordering::Relaxed);
    jobs.get(index).map(|job| (index, job))
}

/// Hands the results on in the order of the jobs; the calling thread waits here.
fn collect<J, R>(
    receiver: &mpsc::Receiver<(usize, Result<R, Error>)>,
    jobs: &[J],
    interrupt: &mut Interrupt<'_>,
    give: &mut impl FnMut(&J, R),
) -> Result<(), Error> {
    let mut results: Vec<Option<R>> = jobs.iter().map(|_| None).collect();
    let mut given = 0;
    // Jobs are taken in order and those begun are finished, so the earliest failure is
    // always seen: which error a caller gets does not depend on the threads.
    let mut failure: Option<(usize, Error)> = None;
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok((index, Ok(result))) => {
                results[index] = Some(result);
                while let Some(result) = results.get_mut(given).and_then(Option::take) {
                    give(&jobs[given], result);
                    given += 1;
                }
            }
            Ok((index, Err(error))) => {
                if failure.as_ref().is_none_or(|(first, _)| index < *first) {
                    failure = Some((index, error));
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        // Also after a result: results that come quickly must not keep an interrupt waiting.
        interrupt()?;
    }
    match failure {
        Some((_, error)) => Err(error),
        None if given < jobs.len() => Err(Error::Interrupted),
        None => Ok(()),
    }
}
