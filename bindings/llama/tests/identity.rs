//! With infinite bounds on every block, greedy output equals llama.cpp's, token for token.
//!
//! The reference is written on `llama-cpp-2` alone and runs before the hook is installed.

mod support;

use std::num::NonZeroU32;
use std::ops::ControlFlow;

use axiscap::Bound;
use axiscap_llama::{Context, ContextOptions, KvType, Model, ModelOptions, Token, generate};
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::sampling::LlamaSampler;
use support::{caps, greedy, long_text, path};

const GENERATED: usize = 16;
const UBATCH: u32 = 64;

/// Generates greedily, as a user of `llama-cpp-2` would write it.
fn plain(
    backend: &LlamaBackend,
    model: &Model,
    (k, v): (KvType, KvType),
    threads: usize,
    prompt: &[Token],
) -> Vec<Token> {
    let threads = threads as i32;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(1024))
        .with_n_batch(2048)
        .with_n_ubatch(UBATCH)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_type_k(KvCacheType::from(k.ggml()))
        .with_type_v(KvCacheType::from(v.ggml()))
        .with_kv_unified(true);
    let mut context = model.llama().new_context(backend, params).expect("a context");
    let mut batch = LlamaBatch::new(prompt.len(), 1);
    batch.add_sequence(prompt, 0, false).expect("room for the prompt");
    context.decode(&mut batch).expect("the prompt decodes");
    let mut sampler = LlamaSampler::greedy();
    let mut tokens = Vec::new();
    while tokens.len() < GENERATED {
        let token = sampler.sample(&context, -1);
        if model.llama().vocab().is_eog(token) {
            break;
        }
        tokens.push(token);
        batch.clear();
        let position = (prompt.len() + tokens.len() - 1) as i32;
        batch.add(token, position, &[0], true).expect("room for a token");
        context.decode(&mut batch).expect("a token decodes");
    }
    tokens
}

#[test]
fn infinite_bounds_leave_the_tokens_of_llama_cpp_unchanged() {
    let backend = LlamaBackend::init().expect("llama.cpp is not initialised yet");
    let model = Model::load(path(), &ModelOptions::default()).expect("the model loads");
    let prompts = [
        "The capital of France is".to_owned(),
        "<|im_start|>user\nI feel that nobody would notice if I were gone.<|im_end|>\n<|im_start|>assistant\n".into(),
        long_text(),
    ];
    let prompts = prompts.map(|text| model.tokenize(&text, true).expect("tokens"));
    assert!(prompts[2].len() > 3 * UBATCH as usize, "{} tokens do not cross n_ubatch", prompts[2].len());

    // Mostly on one thread, because several spin against the other work of the machine.
    let cases = [
        ((KvType::F16, KvType::F16), 1, &prompts[..]),
        ((KvType::F32, KvType::F32), 1, &prompts[..]),
        ((KvType::F16, KvType::F16), 2, &prompts[1..2]),
        ((KvType::Q8_0, KvType::Q4_0), 1, &prompts[1..2]),
        ((KvType::Bf16, KvType::Iq4Nl), 1, &prompts[1..2]),
        ((KvType::Q5_1, KvType::F16), 1, &prompts[1..2]),
    ];
    let run = |(kv, threads, prompts): ((KvType, KvType), usize, &[Vec<Token>])| -> Vec<Vec<Token>> {
        prompts.iter().map(|prompt| plain(&backend, &model, kv, threads, prompt)).collect()
    };
    let expected = cases.map(run);

    let open = caps(0..30, 1, Bound::NONE);
    for ((kv, threads, prompts), expected) in cases.into_iter().zip(&expected) {
        let options = ContextOptions {
            ctx: Some(1024),
            ubatch: UBATCH,
            kv_type_k: kv.0,
            kv_type_v: kv.1,
            threads: Some(threads),
            ..ContextOptions::default()
        };
        let mut context = Context::new(&model, &options).expect("a context");
        context.set_caps(Some(&open)).expect("the caps fit");
        for (prompt, expected) in prompts.iter().zip(expected) {
            context.clear();
            context.session().expect("hooked").reset_stats();
            let generated = generate(&mut context, prompt, &greedy(GENERATED), |_| ControlFlow::Continue(()));
            let generated = generated.expect("it generates");
            assert_eq!(&generated.tokens, expected, "{kv:?}, {} tokens of prompt", prompt.len());
            // The caps saw every row and moved none.
            let rows = (prompt.len() + generated.timings.decode_tokens) as u64;
            for (block, stats) in context.session().expect("hooked").stats().iter().enumerate() {
                let expected = if block == 29 { rows - prompt.len() as u64 + 1 } else { rows };
                assert_eq!((stats.rows, stats.engaged), (expected, 0), "block {block}");
            }
        }
    }
}
