//! Capped generation.
