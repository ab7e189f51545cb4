//! One CUDA graph per token: views and caps captured as one, and replayed when llama.cpp computes the same
//! graph again.
//!
//! [`cache`] decides when a graph is captured and replayed, [`digest`] recognises graphs that llama.cpp has
//! rebuilt, and [`blocker`] finds graphs that must not be captured.

mod blocker;
pub(super) mod cache;
pub(super) mod digest;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use super::driver::{Attempt, Driver};
use super::planner::{CutAction, ELSEWHERE, Plan};
use crate::by_uid::ByUid;
use crate::error::HookError;
use crate::host::Graph;
use crate::report::GraphCounts;
use crate::route::{ComputeError, GraphCall, Outcome, Result, Route};
use blocker::{CaptureBlocker, CaptureBlockers, temporary};
use cache::{Action, GraphCache, GraphKey};
use digest::GraphDigests;

/// Graphs with more rows are not captured. They keep the GPU busy for longer than their launches take, and
/// would evict those that do not.
const MAX_CAPTURED_ROWS: usize = 128;

/// Read-locked by captures, write-locked while a backend is freed. Freeing a backend destroys its
/// cuBLAS handle, which invalidates a capture in progress on another thread. ggml's own lock covers its own
/// captures only.
static CAPTURING: RwLock<()> = RwLock::new(());

/// Waits until nothing is being captured. Captures wait until the guard is dropped.
pub(crate) fn between_captures() -> RwLockWriteGuard<'static, ()> {
    CAPTURING.write().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the views and launches of a graph.
pub(super) type Views<'a> = &'a mut dyn FnMut(&mut GraphCall<'_>, &mut dyn Driver, &mut Outcome) -> Result;

/// Captures and replays the graphs of one backend.
#[derive(Debug, Default)]
pub(super) struct Capturer {
    cache: GraphCache,
    blockers: CaptureBlockers,
    digests: GraphDigests,
    /// Keys, with the plans that they were made from.
    keys: ByUid<(Arc<Plan>, GraphKey)>,
}

impl Capturer {
    /// Computes a graph as a replay where it can, else by `views`.
    pub(super) fn run(
        &mut self,
        call: &mut GraphCall<'_>,
        driver: &mut dyn Driver,
        plan: &Arc<Plan>,
        outcome: &mut Outcome,
        views: Views<'_>,
    ) -> Result {
        let key = self.key(call.graph, plan);
        if let Some(blocker) = key.blocker.filter(|blocker| blocker.permanent) {
            let reason = format!("its graphs are not captured as one: {}", blocker.reason);
            outcome.slow.push(reason.into());
        }
        let mut action = self.cache.begin(&key);
        loop {
            action = match action {
                Action::Eager => return views(call, driver, outcome),
                Action::BeginCapture => {
                    let captured = self.capture(call, driver, plan, views);
                    self.cache.capture_ended(captured)
                }
                Action::Instantiate(slot) => self.cache.instantiated(driver.instantiate(slot)),
                Action::Update(slot) => self.cache.instantiated(driver.update_graph(slot)),
                Action::Replay(slot) => {
                    let pair = plan.pairs + 1;
                    driver.hand_to_cap_stream(pair)?;
                    // SAFETY: nodes, launches and addresses are those of the capture. `discard` is called
                    // before anything else that it uses is freed.
                    unsafe { driver.replay(slot)? };
                    driver.hand_to_backend(pair)?;
                    outcome.took(Route::OneGraph);
                    return Ok(());
                }
            };
        }
    }

    /// Captures the work of `views`, none of which runs. An error is the reason why it cannot be captured.
    fn capture(
        &mut self,
        call: &mut GraphCall<'_>,
        driver: &mut dyn Driver,
        plan: &Plan,
        views: Views<'_>,
    ) -> Attempt {
        let text = |error: HookError| error.to_string();
        let _no_backend_is_freed = CAPTURING.read().unwrap_or_else(PoisonError::into_inner);
        driver.begin_capture()?;
        // The backend's stream joins the capture, and is joined back at its end.
        let join = plan.pairs;
        call.capturing = true;
        let ran = catch_unwind(AssertUnwindSafe(|| {
            driver.hand_to_backend(join)?;
            Outcome::of(|outcome| views(call, driver, outcome)).ended?;
            driver.hand_to_cap_stream(join)?;
            Ok(())
        }));
        call.capturing = false;
        // The capture must end in any case. Both streams refuse other work until then, and ggml aborts.
        let ended = driver.end_capture();
        let ran = ran.unwrap_or_else(|panic| {
            self.cache.capture_ended(Err("axiscap panicked in the capture".into()));
            resume_unwind(panic)
        });
        ended?;
        ran.map_err(|error| match error {
            ComputeError::Graph(status) => format!("ggml could not compute into a capture (status {status})"),
            ComputeError::Hook(error) => text(error),
        })
    }

    /// Returns what identifies a graph with its launches.
    fn key(&mut self, graph: &Graph, plan: &Arc<Plan>) -> GraphKey {
        let uid = graph.uid();
        if let Some((of, key)) = self.keys.get(uid)
            && Arc::ptr_eq(of, plan)
        {
            return *key;
        }
        let mut launches = DefaultHasher::new();
        let mut blocker = None;
        for planned in plan.outputs.iter().filter(|planned| planned.cut().is_some()) {
            match &planned.action {
                _ if planned.shown => blocker = Some(temporary("a tap waits for the rows")),
                CutAction::Host => blocker = Some(temporary(ELSEWHERE)),
                CutAction::Launch { unproven: Some(_), .. } => {
                    blocker = Some(temporary("the first rows are compared with the CPU's"));
                }
                CutAction::Launch { launch, .. } if launch.rows() > MAX_CAPTURED_ROWS => {
                    blocker = Some(temporary("it has so many rows that its launches do not matter"));
                }
                CutAction::Launch { launch, .. } => (planned.output.node, launch).hash(&mut launches),
                CutAction::Nothing => {}
            }
        }
        let blocker: Option<CaptureBlocker> = blocker.or_else(|| self.blockers.of(graph));
        let eager = blocker.is_some() || self.cache.broken().is_some();
        let content = if eager { None } else { self.digests.of(graph) };
        let key = GraphKey { content, launches: launches.finish(), blocker };
        self.keys.insert(uid, (Arc::clone(plan), key));
        key
    }

    /// Discards all executable graphs, because memory that they use is about to be freed.
    pub(super) fn discard(&mut self, driver: &mut dyn Driver, reason: &'static str) {
        if self.cache.reset(reason) {
            driver.discard_graphs();
        }
    }

    pub(super) fn counts(&self) -> GraphCounts {
        self.cache.counts()
    }

    /// Logs how graphs were run.
    pub(super) fn log(&self, device: &str) {
        let GraphCounts { captures, updates, replays, eager, resets } = self.counts();
        let reason = self.cache.broken();
        tracing::debug!(device, captures, updates, replays, eager, resets, reason, "graphs of this context");
    }
}
