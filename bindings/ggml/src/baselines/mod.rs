//! The same caps by other means, to compare with: ggml's own operations, and llama.cpp's evaluation callback.

mod eval_callback;
mod ggml_ops;
#[cfg(test)]
mod tests;

pub use eval_callback::EvalCallback;
pub use ggml_ops::GgmlOps;
