//! What deployments do with a context, each under caps: the table of docs/hook.md.
//!
//! Each use is a script that runs four times: without the hook, with infinite bounds on every block, with tight
//! bands on every block, and with these bands under a guard. Infinite bounds must give the same results to the bit.
//! Under tight bands, each decode must show every row of every block on its bound. The guard must recognise the model,
//! account for every micro-batch, and give the results of the bound context to the bit.

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
#[path = "../support/guarded.rs"]
mod guarded;
#[path = "../support/mod.rs"]
mod support;
