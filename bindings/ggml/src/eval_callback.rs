//! The same caps through llama.cpp's own evaluation callback, to compare with.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use llama_cpp_sys_2 as sys;

use crate::architecture::block_of;
use crate::engine::{cap_computed, panicked};
use crate::error::HookError;
use crate::find::{Output, check_shape};
use crate::graph::name_of;
use crate::session::Session;

/// Caps through `llama_context_params.cb_eval`.
///
/// ggml computes up to each observed node, waits for it, and asks; that is one host synchronise per capped block
/// and token. It gives the same bits as the hook and is what the hook is measured against.
#[derive(Debug)]
pub struct EvalCallback {
    state: Box<State>,
}

#[derive(Debug)]
struct State {
    session: Session,
    staging: Mutex<Vec<f32>>,
}

impl EvalCallback {
    /// A callback that applies the session's caps. It must outlive the context it is given to.
    #[must_use]
    pub fn new(session: Session) -> Self {
        session.0.set_bound_to_backend();
        Self { state: Box::new(State { session, staging: Mutex::default() }) }
    }

    /// For `llama_context_params.cb_eval`.
    #[must_use]
    pub fn function(&self) -> sys::ggml_backend_sched_eval_callback {
        Some(evaluate)
    }

    /// For `llama_context_params.cb_eval_user_data`.
    #[must_use]
    pub fn user_data(&self) -> *mut c_void {
        std::ptr::from_ref::<State>(&self.state).cast_mut().cast()
    }
}

unsafe extern "C" fn evaluate(tensor: *mut sys::ggml_tensor, ask: bool, user_data: *mut c_void) -> bool {
    // SAFETY: user_data is the State that EvalCallback::user_data returned, which outlives the context.
    let state = unsafe { &*user_data.cast::<State>() };
    let evaluated = catch_unwind(AssertUnwindSafe(|| state.evaluate(tensor, ask)));
    let fine = evaluated.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
    fine.unwrap_or_else(|error| {
        state.session.0.fail(error);
        // To a question: do not stop at this node. To a result: end the computation.
        false
    })
}

impl State {
    /// To a question: whether the node is a wanted block output. To a result: whether to go on.
    fn evaluate(&self, tensor: *mut sys::ggml_tensor, ask: bool) -> Result<bool, HookError> {
        let session = &self.session.0;
        let config = session.config();
        let Some(wanted) = config.wanted(session.model.width) else { return Ok(!ask) };
        // SAFETY: llama.cpp hands us a valid node.
        let block = block_of(unsafe { name_of(tensor) }, wanted.prefix);
        let Some(block) = block.filter(|&b| wanted.blocks.get(b) == Some(&true)) else { return Ok(!ask) };
        if ask {
            return Ok(true);
        }
        let output = Output { node: 0, block, tensor };
        check_shape(&output, wanted.width)?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(cap_computed(output, &mut staging, &config, session))
    }
}
