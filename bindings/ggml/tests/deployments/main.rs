//! What deployments do with a context, each under caps: the table of docs/hook.md.
//!
//! Each use is a script that runs three times: without the hook, with infinite bounds on every block, and with
//! tight bands on every block. Infinite bounds must give the same results to the bit. Under tight bands, each
//! decode must show every row of every block on its bound.

mod adapters;
mod drafts;
mod embeddings;
mod failures;
mod memory;
mod next_token;
mod options;
mod script;
mod subjects;

#[path = "../support/capped.rs"]
mod capped;
#[path = "../support/mod.rs"]
mod support;
