//! A judge that is a model on a server: several requests at once, scores in the order of the cases.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::http::Client;
use super::{Case, Endpoint, JudgeError, OnScore};

/// The index of a case, and its score or why there is none.
type Scored = (usize, Result<u8, JudgeError>);

/// Scores every case with an endpoint. See [`super::Judge::judge`].
pub(super) fn judge(
    endpoint: &Endpoint,
    cases: &[Case<'_>],
    on_score: OnScore<'_>,
) -> Result<bool, JudgeError> {
    let (found, maximum) = (endpoint.parallel, Endpoint::MAX_PARALLEL);
    if !(1..=maximum).contains(&found) {
        return Err(JudgeError::Parallel { found, maximum });
    }
    judge_with(&Client::new(endpoint)?, found, cases, on_score)
}

/// Scores every case with up to `parallel` requests at once.
pub(super) fn judge_with(
    client: &Client<'_>,
    parallel: usize,
    cases: &[Case<'_>],
    on_score: OnScore<'_>,
) -> Result<bool, JudgeError> {
    let queue = Queue { cases, next: AtomicUsize::new(0), failed: AtomicBool::new(false) };
    let stop = Stop::default();
    thread::scope(|scope| {
        // The threads end soon after the caller stops. This also holds if `on_score` panics.
        let _stop = StopOnDrop(&stop);
        let (sender, receiver) = mpsc::channel();
        for _ in 0..parallel.min(cases.len()) {
            let (sender, queue, stop) = (sender.clone(), &queue, &stop);
            scope.spawn(move || work(client, queue, stop, &sender));
        }
        drop(sender);
        deliver(&receiver, on_score)
    })
}

/// Cases that are taken in order.
struct Queue<'a> {
    cases: &'a [Case<'a>],
    next: AtomicUsize,
    /// Whether a case has no score. No other one is taken then, but those taken before are finished: the
    /// error of the first of them is the one that is reported.
    failed: AtomicBool,
}

/// Asks for one score after another.
fn work(client: &Client<'_>, queue: &Queue<'_>, stop: &Stop, sender: &Sender<Scored>) {
    while !stop.is_set() && !queue.failed.load(Ordering::Relaxed) {
        let index = queue.next.fetch_add(1, Ordering::Relaxed);
        let Some(case) = queue.cases.get(index) else { return };
        let Some(scored) = client.ask(index, case, stop).transpose() else { return };
        queue.failed.fetch_or(scored.is_err(), Ordering::Relaxed);
        if sender.send((index, scored)).is_err() {
            return;
        }
    }
}

/// Hands scores over in order, whatever their order of arrival. Returns whether the caller let it finish.
fn deliver(receiver: &Receiver<Scored>, on_score: OnScore<'_>) -> Result<bool, JudgeError> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (index, scored) in receiver {
        early.insert(index, scored);
        while let Some(scored) = early.remove(&next) {
            if on_score(next, scored?).is_break() {
                return Ok(false);
            }
            next += 1;
        }
    }
    Ok(true)
}

/// Tells threads to stop, also in a pause.
#[derive(Default)]
pub(super) struct Stop {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn set(&self) {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits. Returns whether to stop, at once if so.
    pub(super) fn pause(&self, length: Duration) -> bool {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(set, length, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Stops the threads when it is dropped.
struct StopOnDrop<'a>(&'a Stop);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}

#[cfg(test)]
mod tests;
