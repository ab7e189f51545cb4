//! Cap files through llama.cpp's eyes: ggml's GGUF reader and writer, and control vectors on a model.

mod control_vector;
mod oracle;
mod theirs;
