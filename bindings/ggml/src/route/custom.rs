//! The route of a compute hook: code outside this crate that computes graphs with their caps.

use std::ffi::c_void;
use std::fmt::Debug;

use axiscap::CapTable;

use super::host::show_computed;
use super::{BlockDone, ComputeError, Cut, GraphCall, Outcome, Route, check, compute_in_views};
use crate::error::HookError;
use crate::graph::find::Output;
use crate::host::Graph;
use crate::host::uid::own_uid;
use crate::report::NotFused;

/// Computes graphs of a session in the place of the hook's own routes ([`Session::set_compute_hook`]).
///
/// It is trusted to cap. The blocks of a graph that it computed count as seen, without statistics.
///
/// [`Session::set_compute_hook`]: crate::Session::set_compute_hook
#[doc(hidden)]
pub trait ComputeHook: Send + Sync + Debug {
    /// Returns a short sentence for reports, which becomes [`Route::Custom`].
    fn describe(&self) -> &'static str;

    /// Computes one graph with its caps.
    ///
    /// # Errors
    /// Those of the methods of [`GraphCall`], or any error of the hook.
    fn compute(&self, call: &mut GraphCall<'_>) -> std::result::Result<(), ComputeError>;

    /// Releases what belongs to a backend, a `ggml_backend_t`, that is about to be freed.
    fn close(&self, backend: *mut c_void);
}

/// A capped block output with rows.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct BlockOutput(Output);

impl BlockOutput {
    /// Returns the block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.0.block
    }

    /// Returns the number of rows, at least one.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// Returns the `ggml_tensor`: f32, `[width, rows]`. It is valid while its graph is computed.
    #[must_use]
    pub fn tensor(&self) -> *mut c_void {
        self.0.tensor.raw().cast()
    }
}

/// A `ggml_cgraph` of a compute hook, with a uid that no other graph has.
#[doc(hidden)]
#[derive(Debug)]
pub struct OwnedGraph(Graph);

// SAFETY: the caller of `GraphCall::own_graph` promises that the graph is used through this value alone.
unsafe impl Send for OwnedGraph {}

impl<'a> GraphCall<'a> {
    /// Returns ggml's name of the device.
    #[must_use]
    pub fn device(&self) -> &'a str {
        self.device
    }

    /// Returns the `ggml_backend_t` that computes the graph.
    #[must_use]
    pub fn backend(&self) -> *mut c_void {
        self.backend.cast()
    }

    /// Returns a number that changes whenever caps, bounds or strengths of the session change.
    #[must_use]
    pub fn caps_revision(&self) -> u64 {
        self.config.revision()
    }

    /// Returns the caps of a block.
    #[must_use]
    pub fn caps(&self, block: usize) -> Option<&'a CapTable> {
        let config = self.config;
        config.caps_of(block).map(|caps| &caps.table)
    }

    /// Computes the graph in views. Each ends at a capped or tapped block output with rows. Shows the output
    /// to its tap, then calls `at_cut` if it is capped. Where there is no tap, the backend may still be at
    /// work in `at_cut`.
    ///
    /// # Errors
    /// The status of a view, an error of the tap, the error of `at_cut`.
    pub fn compute_in_views(
        &mut self,
        mut at_cut: impl FnMut(&mut GraphCall<'_>, BlockOutput) -> std::result::Result<(), ComputeError>,
    ) -> std::result::Result<(), ComputeError> {
        let outputs = self.outputs.iter().enumerate().filter(|(_, output)| output.rows() > 0);
        let cuts = outputs.map(|(i, output)| (Cut::after(output), (i, *output)));
        compute_in_views(self, cuts, |call, (index, output)| {
            if call.config.tap_of(output.block).is_some() {
                call.synchronize();
                show_computed(call, index, output)?;
            }
            if call.is_capped(&output) { at_cut(call, BlockOutput(output)) } else { Ok(()) }
        })
    }

    /// Takes over a graph of the caller's and gives it a uid that no other graph has.
    ///
    /// # Safety
    /// `graph` must be a `ggml_cgraph` of the ggml that `backend` belongs to. It must stay valid, and be used
    /// through the returned value alone, while that value lives.
    #[must_use]
    pub unsafe fn own_graph(&self, graph: *mut c_void) -> OwnedGraph {
        // SAFETY: the caller promises a valid graph of this ggml, which no scheduler has seen.
        unsafe {
            let graph = Graph::new(graph.cast());
            graph.set_uid(own_uid());
            OwnedGraph(graph)
        }
    }

    /// Computes another graph on the same backend, after everything that the backend was given so far.
    ///
    /// # Errors
    /// The status that ggml returns.
    ///
    /// # Safety
    /// The backend must be able to compute the graph, and its tensors must stay valid until the backend is
    /// done.
    pub unsafe fn compute_owned(&self, graph: &OwnedGraph) -> std::result::Result<(), ComputeError> {
        check((self.compute)(&graph.0))
    }
}

/// Computes the graph by a compute hook.
pub(crate) fn compute(call: &mut GraphCall<'_>, hook: &dyn ComputeHook) -> Outcome {
    Outcome::of(|outcome| {
        let route = Route::Custom(hook.describe());
        outcome.took(route);
        outcome.leave_norms(call, NotFused::Custom);
        if !call.config.profiles().is_one_plain() && call.outputs.iter().any(|output| call.is_capped(output))
        {
            return Err(HookError::ProfilesUnsupported { route }.into());
        }
        if call.config.records() && call.outputs.iter().any(|output| call.is_capped(output)) {
            return Err(HookError::StatisticsUnsupported { route }.into());
        }
        hook.compute(call)?;
        let blocks = call.outputs.iter().enumerate().map(|(i, output)| BlockDone::without_stats(i, output));
        outcome.blocks.extend(blocks);
        Ok(())
    })
}
