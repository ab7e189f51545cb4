//! The client's side: asks the server that computes for a backend whether it caps.

use std::collections::HashMap;

use super::message::{Answer, MAX_BYTES, Question, from_values, to_values};
use super::{NODE, OTHER_VERSION};
use crate::config::Config;
use crate::digest::CapDigest;
use crate::error::HookError;
use crate::graph::weights::{norm_weights, norms_of};
use crate::host::architecture::ModelShape;
use crate::host::{Arena, Backend, Buffer, F32, GRAPH_SIZE, Graph, api};
use crate::profile::{ProfileId, RowProfiles};
use crate::route::{Compute, check};

/// What the server of a backend has answered.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Revision of the caps that were asked for.
    revision: u64,
    /// By the first norm of a part of the model, whether the server caps it.
    answered: HashMap<Vec<u8>, bool>,
}

/// What a graph is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) device: &'a str,
    pub(crate) model: &'a ModelShape,
    pub(crate) config: &'a Config,
    /// The profiles of the rows of the graph.
    pub(crate) profiles: &'a RowProfiles,
    pub(crate) graph: &'a Graph,
}

impl Asked {
    /// Whether the server that computes for this backend caps the graph. It is asked once for each part of the
    /// model and revision of the caps. A part without norms it never caps, because it could not tell whose it is.
    ///
    /// # Errors
    /// [`HookError::Rpc`] if it caps the model in another way, and those of the graph that asks.
    ///
    /// # Safety
    /// `backend` must be live, and `compute` its own `graph_compute`.
    pub(crate) unsafe fn is_capped_there(
        &mut self,
        about: About<'_>,
        backend: Backend,
        compute: Compute<'_>,
    ) -> Result<bool, HookError> {
        let About { device, model, config, profiles, graph } = about;
        let refuse = |reason: &str| HookError::Rpc { device: device.into(), reason: reason.into() };
        let Some(first) = norm_weights(graph).next() else { return Ok(false) };
        if self.revision != config.revision() {
            self.revision = config.revision();
            self.answered.clear();
        }
        let capped = match self.answered.get(first.name()) {
            Some(&capped) => capped,
            None => {
                let default = config.profiles().get(ProfileId::DEFAULT);
                let question = Question {
                    caps: default.map_or([0; 32], |default| CapDigest::of(&default.caps).bytes()),
                    skip_positions: default.map_or(0, |default| default.caps.policy().skip_positions),
                    shape: model.clone(),
                    norms: norms_of(graph),
                };
                // SAFETY: as for this function.
                let capped =
                    match unsafe { ask(&question, backend, compute) }.map_err(|error| refuse(&error))? {
                        Answer::Same => true,
                        Answer::No => false,
                        Answer::Otherwise(reason) => return Err(refuse(&reason)),
                    };
                // A model may be computed there in many parts.
                if capped && !self.answered.values().any(|&known| known) {
                    tracing::info!("{device}: the RPC server caps its blocks, with the same caps");
                }
                self.answered.insert(first.name().to_vec(), capped);
                capped
            }
        };
        if capped && !config.is_all_default(profiles) {
            return Err(refuse("it has one cap set, and these rows are under others, or under none"));
        }
        if capped && config.tap().is_some() {
            return Err(refuse("it caps the rows before this process can see them"));
        }
        Ok(capped)
    }
}

/// Has the backend compute a question.
///
/// # Safety
/// As for [`Asked::is_capped_there`].
unsafe fn ask(question: &Question, backend: Backend, compute: Compute<'_>) -> Result<Answer, String> {
    /// Memory of the backend.
    struct Memory(Buffer);
    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: allocated below and freed once.
            unsafe { (api().ggml_backend_buffer_free)(self.0) };
        }
    }
    let bytes = question.encode();
    if bytes.len() > MAX_BYTES {
        return Err("the question of which caps it has would be too long".into());
    }
    let values = to_values(&bytes);
    let zeros = vec![0.0_f32; values.len()];
    let mut found = zeros.clone();
    let size = size_of_val(&*values);
    let arena = Arena::new(8).map_err(|error| error.to_string())?;
    let (api, context) = (api(), arena.context());
    // SAFETY: all objects live in the arena's context, which has room for them.
    let (tensors, graph) = unsafe {
        let count = values.len() as i64;
        let [first, second] = [0, 1].map(|_| (api.ggml_new_tensor_1d)(context, F32, count));
        let sum = (api.ggml_add)(context, first, second);
        (api.ggml_set_name)(sum, NODE.as_ptr());
        (api.ggml_set_output)(sum);
        let graph = (api.ggml_new_graph_custom)(context, GRAPH_SIZE, false);
        (api.ggml_build_forward_expand)(graph, sum);
        ([first, second, sum], Graph::new(graph))
    };
    let [first, second, sum] = tensors;
    // SAFETY: the tensors of the context have no memory yet, and the backend is live.
    let memory = unsafe { (api.ggml_backend_alloc_ctx_tensors)(context, backend) };
    if memory.is_null() {
        return Err("it has no memory left for a question".into());
    }
    let _memory = Memory(memory);
    // SAFETY: tensors of as many values, in memory of the backend.
    unsafe {
        (api.ggml_backend_tensor_set)(first, values.as_ptr().cast(), 0, size);
        (api.ggml_backend_tensor_set)(second, zeros.as_ptr().cast(), 0, size);
    }
    check(compute(&graph)).map_err(|_| "it could not compute a question".to_owned())?;
    // SAFETY: the backend is live, and `sum` a tensor of as many values in its memory.
    unsafe {
        (api.ggml_backend_synchronize)(backend);
        (api.ggml_backend_tensor_get)(sum, found.as_mut_ptr().cast(), 0, size);
    }
    if found == values {
        return Ok(Answer::No);
    }
    let answer = from_values(&found).and_then(|bytes| Answer::decode(&bytes));
    answer.ok_or_else(|| OTHER_VERSION.into())
}
