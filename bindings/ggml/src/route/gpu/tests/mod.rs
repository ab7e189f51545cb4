//! The GPU route with a recording driver, over llama.cpp's graphs of a real model and over hand-made graphs.
//! The CPU backend computes the graphs.

mod capture;
mod fused_norm;
mod hand_made;
pub(crate) mod model;
mod own_graphs;
mod profiles;
mod recording;
mod views;
