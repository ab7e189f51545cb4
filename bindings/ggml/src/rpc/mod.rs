//! llama.cpp's RPC: blocks that another machine computes are capped on one side, and not on both.
//!
//! A server with axiscap caps the graphs that it is sent. A client cannot see that, so it asks: it has the
//! backend compute a graph of one node with a reserved name, whose value is a question. A server with axiscap
//! writes an answer in the place of the value. From any other server the question comes back as it was.

mod answer;
mod ask;
mod message;

pub(crate) use answer::{answer, is_question};
pub(crate) use ask::{About, Asked};
pub(crate) use message::{Answer, Question};

use std::ffi::CStr;

use crate::graph::find::Output;
use crate::route::{BlockDone, GraphCall, Outcome, Route};

/// Name of the node that asks.
const NODE: &CStr = c"axiscap.question";

/// What either side says of a message that it does not understand.
const OTHER_VERSION: &str = "it runs another version of axiscap; use the same one on both sides";

/// Computes a graph on a server that caps it.
pub(crate) fn compute(call: &GraphCall<'_>) -> Outcome {
    Outcome::of(|outcome| {
        outcome.took(Route::Remote);
        call.compute_graph()?;
        let done = |(output, of): (usize, &Output)| BlockDone {
            output,
            block: of.block,
            rows: of.rows(),
            // The server has them.
            stats: None,
        };
        outcome.blocks.extend(call.outputs.iter().enumerate().map(done));
        Ok(())
    })
}
