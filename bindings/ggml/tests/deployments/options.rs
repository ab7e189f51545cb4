//! Options of a context: formats of the KV cache, flash attention, sizes of micro-batches, threads.

use llama_cpp_sys_2 as sys;

use crate::capped::rows;
use crate::script::run;
use crate::subjects::{attention, real, subjects};

/// The types that llama.cpp's programs accept for the KV cache.
const TYPES: [sys::ggml_type; 9] = [
    sys::GGML_TYPE_F32,
    sys::GGML_TYPE_F16,
    sys::GGML_TYPE_BF16,
    sys::GGML_TYPE_Q8_0,
    sys::GGML_TYPE_Q4_0,
    sys::GGML_TYPE_Q4_1,
    sys::GGML_TYPE_IQ4_NL,
    sys::GGML_TYPE_Q5_0,
    sys::GGML_TYPE_Q5_1,
];

#[test]
fn every_format_of_the_cache_with_and_without_flash_attention() {
    for subject in [attention(), real()] {
        for dtype in TYPES {
            for flash in [sys::LLAMA_FLASH_ATTN_TYPE_ENABLED, sys::LLAMA_FLASH_ATTN_TYPE_DISABLED] {
                // llama.cpp refuses quantised values without flash attention.
                let quantised =
                    ![sys::GGML_TYPE_F32, sys::GGML_TYPE_F16, sys::GGML_TYPE_BF16].contains(&dtype);
                let values = if quantised && flash == sys::LLAMA_FLASH_ATTN_TYPE_DISABLED {
                    sys::GGML_TYPE_F16
                } else {
                    dtype
                };
                let settings = |params: &mut sys::llama_context_params| {
                    params.n_ubatch = 8;
                    (params.type_k, params.type_v) = (dtype, values);
                    params.flash_attn_type = flash;
                };
                run(subject, settings, |run| {
                    run.decode(&rows(0, 0, 12, |i| i == 11));
                    run.decode(&rows(0, 12, 1, |_| true));
                });
            }
        }
    }
}

#[test]
fn flash_attention_on_every_kind_of_memory() {
    for subject in subjects() {
        for flash in [sys::LLAMA_FLASH_ATTN_TYPE_ENABLED, sys::LLAMA_FLASH_ATTN_TYPE_DISABLED] {
            run(
                subject,
                |params| params.flash_attn_type = flash,
                |run| run.decode(&rows(0, 0, 12, |i| i % 5 == 1)),
            );
        }
    }
}

#[test]
fn micro_batches_of_1_to_512_tokens() {
    for subject in subjects() {
        for ubatch in [1, 2, 3, 7, 32, 64, 512] {
            let settings = |params: &mut sys::llama_context_params| {
                (params.n_ctx, params.n_batch, params.n_ubatch) = (1024, 512, ubatch);
            };
            let tokens = if ubatch == 512 { 512 } else { 40 };
            run(subject, settings, |run| {
                run.decode(&rows(0, 0, tokens, |i| i + 1 == tokens));
                run.decode(&rows(0, tokens, 1, |_| true));
            });
        }
    }
}

#[test]
fn several_threads() {
    for subject in subjects() {
        for threads in [2, 3] {
            let settings = |params: &mut sys::llama_context_params| {
                (params.n_threads, params.n_threads_batch) = (threads, threads);
            };
            run(subject, settings, |run| run.decode(&rows(0, 0, 12, |i| i > 9)));
        }
    }
}
