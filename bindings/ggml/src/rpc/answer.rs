//! The server's side: answers the question of a client.

use super::message::{Answer, MAX_BYTES, Question, from_values, to_values};
use super::{NODE, OTHER_VERSION};
use crate::host::{Graph, SUCCESS, Status, Tensor, api};
use crate::route::Compute;

/// Returns the node of a graph that asks.
pub(crate) fn is_question(graph: &Graph) -> Option<Tensor> {
    let &[node] = graph.nodes() else { return None };
    let (ne, nb) = (node.ne(), node.nb());
    let plain = node.is_f32() && ne[1..] == [1, 1, 1] && nb[0] == size_of::<f32>();
    let in_memory = node.data() != 0 && !node.owning_buffer().is_null();
    let fits = (1..=MAX_BYTES as i64).contains(&ne[0]);
    (node.name() == NODE.to_bytes() && plain && in_memory && fits).then_some(node)
}

/// Computes a graph that asks, and answers it by what `decide` says.
pub(crate) fn answer(
    graph: &Graph,
    node: Tensor,
    compute: Compute<'_>,
    decide: impl FnOnce(&Question) -> Answer,
) -> Status {
    let status = compute(graph);
    if status != SUCCESS {
        return status;
    }
    let mut values = vec![0.0_f32; usize::try_from(node.ne()[0]).unwrap_or(0)];
    let size = size_of_val(&*values);
    // SAFETY: a tensor of as many values, which the backend has computed: `ggml_backend_tensor_get` waits for it.
    unsafe { (api().ggml_backend_tensor_get)(node.raw(), values.as_mut_ptr().cast(), 0, size) };
    let question = from_values(&values).and_then(|bytes| Question::decode(&bytes));
    let answer = match &question {
        Some(question) => decide(question),
        None => Answer::Otherwise(OTHER_VERSION.into()),
    };
    values.fill(0.0);
    let message = to_values(&answer.encode(values.len()));
    let count = message.len().min(values.len());
    values[..count].copy_from_slice(&message[..count]);
    // SAFETY: as above. Only the client that asked reads the node.
    unsafe { (api().ggml_backend_tensor_set)(node.raw(), values.as_ptr().cast(), 0, size) };
    status
}
