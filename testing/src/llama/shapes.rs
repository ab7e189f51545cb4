//! The shapes of small models, architecture by architecture.
//!
//! A description gives every value that some architecture may ask for, because llama.cpp ignores the others.
//! [`describe`] says where an architecture needs another one.

use super::description::Description;

/// The architectures that the pinned llama.cpp knows (`LLM_ARCH_NAMES` in `llama-arch.cpp`).
pub const ARCHITECTURES: [&str; 154] = [
    "afmoe",
    "apertus",
    "arcee",
    "arctic",
    "arwkv7",
    "baichuan",
    "bailingmoe",
    "bailingmoe2",
    "bailingmoe3",
    "bert",
    "bitnet",
    "bloom",
    "chameleon",
    "chatglm",
    "clef",
    "clip",
    "codeshell",
    "cogvlm",
    "cohere2",
    "cohere2moe",
    "command-r",
    "dbrx",
    "deci",
    "deepseek",
    "deepseek2",
    "deepseek2-ocr",
    "deepseek32",
    "deepseek4",
    "dflash",
    "dots1",
    "dots3note",
    "dream",
    "eagle3",
    "ernie4_5",
    "ernie4_5-moe",
    "eurobert",
    "exaone",
    "exaone-moe",
    "exaone4",
    "falcon",
    "falcon-h1",
    "gemma",
    "gemma-embedding",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "gemma4-assistant",
    "glm-dsa",
    "glm4",
    "glm4moe",
    "glm5-next",
    "gpt-oss",
    "gpt2",
    "gptj",
    "gptneox",
    "granite",
    "granite_swa",
    "granitehybrid",
    "granitemoe",
    "graniteswitch",
    "grok",
    "grovemoe",
    "hrm_text",
    "hunyuan-dense",
    "hunyuan-moe",
    "hunyuan_vl",
    "hy_v3",
    "hy_v4",
    "internlm2",
    "jais",
    "jais2",
    "jamba",
    "jina-bert-v2",
    "jina-bert-v3",
    "kimi-k3",
    "kimi-linear",
    "laguna",
    "lfm2",
    "lfm2moe",
    "llada",
    "llada-moe",
    "llama",
    "llama-embed",
    "llama4",
    "maincoder",
    "mamba",
    "mamba2",
    "maple",
    "mellum",
    "mimo2",
    "minicpm",
    "minicpm3",
    "minimax-01",
    "minimax-m2",
    "minimax-m3",
    "mistral3",
    "mistral4",
    "modern-bert",
    "mpt",
    "muse-glimmer",
    "nanbeige",
    "nemotron",
    "nemotron_h",
    "nemotron_h_moe",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "olmo",
    "olmo2",
    "olmoe",
    "openelm",
    "orion",
    "paddleocr",
    "pangu-embedded",
    "phi2",
    "phi3",
    "phimoe",
    "plamo",
    "plamo2",
    "plamo3",
    "plm",
    "pockettts",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen35",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "qwen3tts",
    "qwen3vl",
    "qwen3vlmoe",
    "qwen4exp",
    "refact",
    "rnd1",
    "rwkv6",
    "rwkv6qwen2",
    "rwkv7",
    "seed_oss",
    "smallthinker",
    "smollm3",
    "spark2_5",
    "stablelm",
    "starcoder",
    "starcoder2",
    "step35",
    "t5",
    "t5encoder",
    "talkie",
    "wavtokenizer-dec",
    "xverse",
];

/// Returns whether an architecture has a form without experts.
#[must_use]
pub fn has_dense_form(architecture: &str) -> bool {
    !matches!(
        architecture,
        "llama4"
            | "cohere2moe"
            | "grok"
            | "qwen2moe"
            | "qwen3moe"
            | "qwen3next"
            | "qwen3vlmoe"
            | "qwen35moe"
            | "qwen4exp"
            | "phimoe"
            | "dbrx"
            | "olmoe"
            | "arctic"
            | "deepseek"
            | "deepseek2"
            | "deepseek2-ocr"
            | "deepseek32"
            | "deepseek4"
            | "dots3note"
            | "glm4moe"
            | "glm-dsa"
            | "exaone-moe"
            | "bailingmoe"
            | "bailingmoe2"
            | "bailingmoe3"
            | "dots1"
            | "afmoe"
            | "ernie4_5-moe"
            | "hunyuan-moe"
            | "hy_v3"
            | "hy_v4"
            | "gpt-oss"
            | "lfm2moe"
            | "smallthinker"
            | "llada-moe"
            | "grovemoe"
            | "minimax-01"
            | "minimax-m2"
            | "minimax-m3"
            | "rnd1"
            | "mimo2"
            | "kimi-linear"
            | "kimi-k3"
            | "glm5-next"
            | "step35"
            | "mistral4"
            | "mellum"
            | "laguna"
            | "maple"
            | "nomic-bert-moe"
            | "granitemoe"
            | "nemotron_h_moe"
            | "glm4_moe"
    )
}

/// Returns whether an architecture has a form with experts.
#[must_use]
pub fn has_experts_form(architecture: &str) -> bool {
    !has_dense_form(architecture)
        || matches!(
            architecture,
            "llama"
                | "llama-embed"
                | "refact"
                | "minicpm"
                | "granite"
                | "granitehybrid"
                | "mistral3"
                | "jamba"
                | "ernie4_5"
                | "paddleocr"
                | "qwen3vl"
                | "deci"
                | "llada"
                | "spark2_5"
        )
}

const CONTEXT: u32 = 256;

/// Fills in what llama.cpp needs to know of a model of the description's architecture.
pub(super) fn describe(d: &mut Description, experts: bool) {
    let architecture = d.architecture().to_owned();
    let architecture = architecture.as_str();
    let blocks: u32 = match architecture {
        // Its Mamba, attention and feed-forward blocks take turns.
        "nemotron_h" | "nemotron_h_moe" => 3,
        // One of five attends to everything.
        "gemma4" => 5,
        // The blocks from 20 on share the keys and values of earlier ones.
        "gemma3n" => 22,
        "hrm_text" => 6,
        _ => 4,
    };
    let width: u32 = match architecture {
        "gemma3n" => 64,
        "deepseek4" => 512,
        _ => 128,
    };
    let heads: u32 = match architecture {
        "deepseek4" => 8,
        "deepseek2" | "deepseek32" | "glm-dsa" | "dots3note" | "kimi-linear" | "bailingmoe3" | "kimi-k3"
        | "glm5-next" | "mistral4" | "hy_v4" | "gemma3n" => 1,
        _ => 2,
    };
    let head = width / heads;
    let feed_forward = width * 3 / 2;
    let vocabulary: u32 = match architecture {
        "chameleon" => 10_240,
        "qwen3tts" => 3_072,
        _ => 96,
    };
    let even = |value: u32| -> Vec<u32> { (0..blocks).map(|b| if b % 2 == 0 { value } else { 0 }).collect() };

    d.set("general.architecture", architecture)
        .set("tokenizer.ggml.model", "test")
        .set("tokenizer.ggml.tokens", (0..vocabulary).map(|i| format!("t{i} ")).collect::<Vec<_>>())
        .set("tokenizer.ggml.scores", vec![0.0f32; vocabulary as usize]);
    d.set(".vocab_size", vocabulary)
        .set(".context_length", CONTEXT)
        .set(".embedding_length", width)
        .set(".features_length", width)
        .set(".block_count", blocks)
        .set(".leading_dense_block_count", 1u32)
        .set(".feed_forward_length", feed_forward)
        .set(".use_parallel_residual", false)
        .set(".logit_scale", 1.0f32)
        .set(".time_mix_extra_dim", 32u32)
        .set(".time_decay_extra_dim", 32u32)
        .set(".wkv.head_size", head)
        .set(".token_shift_count", 2u32)
        .set(".full_attention_interval", 2u32)
        .set(".residual_scale", 1.5f32)
        .set(".embedding_scale", 2.0f32);
    // Attention.
    d.set(".attention.head_count", heads)
        .set(".attention.head_count_kv", heads)
        .set(".attention.max_alibi_bias", 8.0f32)
        .set(".attention.clamp_kqv", 8.0f32)
        .set(".attention.layer_norm_epsilon", 1e-5f32)
        .set(".attention.layer_norm_rms_epsilon", 1e-5f32)
        .set(".attention.group_norm_epsilon", 1e-5f32)
        .set(".attention.group_norm_groups", 8u32)
        .set(".attention.q_lora_rank", 64u32)
        .set(".attention.kv_lora_rank", 64u32)
        .set(".attention.decay_lora_rank", 32u32)
        .set(".attention.iclr_lora_rank", 32u32)
        .set(".attention.value_residual_mix_lora_rank", 32u32)
        .set(".attention.gate_lora_rank", 32u32)
        .set(".attention.relative_buckets_count", 8u32)
        .set(".attention.sliding_window", 8u32)
        .set(".attention.sliding_window_pattern", 2u32)
        .set(".attention.indexer.head_count", 2u32)
        .set(".attention.indexer.key_length", 64u32)
        .set(".attention.indexer.top_k", 4096u32)
        .set(".attention.indexer.block_size", 4u32)
        .set(".attention.indexer.kpool", 4u32)
        .set(".attention.indexer.kpool_select_tail", true)
        .set(".attention.indexer.local_blocks", 1u32)
        .set(".rope.dimension_sections", vec![head / 4; 4]);
    // State spaces, linear attention and convolutions.
    d.set(".ssm.inner_size", 2 * width)
        .set(".ssm.conv_kernel", 4u32)
        .set(".ssm.state_size", 16u32)
        .set(".ssm.time_step_rank", heads)
        .set(".ssm.group_count", 2u32)
        .set(".kda.head_dim", 32u32)
        .set(".kda.safe_gate", true)
        .set(".kda.gate_lower_bound", -5.0f32)
        .set(".shortconv.l_cache", 3u32);
    // The rest.
    d.set("xielu.alpha_n", 1.0f32)
        .set("xielu.alpha_p", 1.0f32)
        .set("xielu.beta", 1.0f32)
        .set("xielu.eps", 1e-7f32)
        .set(".attn_res.block_size", 2u32)
        .set(".activation.situ_beta", 4.0f32)
        .set(".activation.situ_linear_beta", 25.0f32);
    if experts {
        d.set(".expert_count", 4u32)
            .set(".expert_used_count", 2u32)
            .set(".expert_shared_count", 1u32)
            .set(".expert_feed_forward_length", feed_forward)
            .set(".expert_shared_feed_forward_length", feed_forward / 2)
            .set(".expert_chunk_feed_forward_length", feed_forward / 2)
            .set(".expert_latent_length", feed_forward)
            .set(".interleave_moe_layer_step", 2u32)
            .set(".expert_gating_func", 2u32)
            .set(".expert_group_scale", 1.0f32)
            .set(".experts_per_group", 1u32);
    }

    match architecture {
        "plamo2" | "jamba" | "granitehybrid" | "lfm2" | "lfm2moe" => {
            d.set(".attention.head_count", even(heads)).set(".attention.head_count_kv", even(heads));
        }
        "nemotron_h" | "nemotron_h_moe" => {
            d.set(".attention.head_count", vec![heads, 0, heads])
                .set(".attention.head_count_kv", vec![heads, 0, 0])
                .set(".feed_forward_length", vec![0, 0, feed_forward]);
        }
        "deepseek2" | "deepseek32" | "glm-dsa" | "dots3note" | "kimi-linear" | "bailingmoe3" | "kimi-k3"
        | "glm5-next" | "hy_v4" | "mistral4" | "plm" | "minicpm3" => {
            // Multi-head latent attention: a head is compressed to 64 values and 16 with positions.
            d.set(".attention.key_length", 80u32)
                .set(".attention.value_length", 64u32)
                .set(".rope.dimension_count", 16u32)
                .set(".attention.key_length_mla", 48u32)
                .set(".attention.value_length_mla", 32u32);
            if matches!(architecture, "kimi-linear" | "bailingmoe3" | "kimi-k3") {
                d.set(".attention.head_count", even(heads)).set(".attention.head_count_kv", even(heads));
            }
        }
        "deepseek4" => {
            d.set(".attention.head_count_kv", 1u32)
                .set(".attention.key_length", head)
                .set(".attention.value_length", head)
                .set(".rope.dimension_count", head / 2)
                .set(".attention.output_group_count", heads)
                .set(".attention.output_lora_rank", 32u32)
                .set(".attention.indexer.key_length", 128u32)
                .set(".attention.compress_ratios", vec![0u32, 0, 4, 128])
                .set(".attention.compress_rope_freq_base", 160_000.0f32)
                .set(".hash_layer_count", 0u32)
                .set(".expert_gating_func", 4u32);
        }
        "gemma4" | "gemma4-assistant" => {
            d.set(".embedding_length_per_layer_input", width / 2)
                .set(".attention.shared_kv_layers", 0u32)
                .set(".attention.key_length_swa", head)
                .set(".attention.value_length_swa", head);
        }
        // The state of a block is one row, not two.
        "arwkv7" => {
            d.set(".token_shift_count", 1u32);
        }
        "rwkv6qwen2" => {
            d.set(".token_shift_count", 1u32).omit("time_mix_first");
        }
        "qwen35" | "qwen35moe" | "qwen3next" | "qwen4exp" => {
            d.set(".ssm.inner_size", 16 * heads);
        }
        "hrm_text" => {
            d.set(".hrm.layers_per_stack", 1u32).set(".hrm.h_cycles", 2u32).set(".hrm.l_cycles", 2u32);
        }
        "graniteswitch" => {
            d.set(".adapters.count", 1u32)
                .set(".adapters.lora_rank", 4u32)
                .set(".adapters.token_ids_activate", vec![5u32])
                .set(".adapters.token_ids_substitute", vec![6u32]);
        }
        "qwen3" => {
            d.set(".attention.head_count_kv", 1u32);
        }
        _ => {}
    }
    if architecture == "plamo2" {
        d.set(".ssm.group_count", 0u32);
    }
    if architecture == "glm5-next" {
        d.set(".rope.dimension_count", 0u32)
            .set(".attention.key_length", 64u32)
            .set(".attention.head_count_kv", even(heads));
    }
    if architecture == "dots3note" {
        d.set(".rope.freq_base_swa", 10_000.0f32);
        d.set(".attention.kv_lora_rank_swa", 64u32)
            .set(".attention.key_length_swa", 80u32)
            .set(".attention.value_length_swa", 64u32)
            .set(".attention.key_length_mla_swa", 48u32)
            .set(".attention.value_length_mla_swa", 32u32);
    }
    if matches!(architecture, "dots3note" | "hy_v4" | "glm5-next") {
        d.set(".attention.indexer.types", even(1));
    }
    if architecture == "dots3note" {
        // The blocks without a window have the indexer.
        d.set(".attention.indexer.types", even(1).into_iter().map(|own| 1 - own).collect::<Vec<_>>());
    }
    if architecture == "bailingmoe3" {
        // Sections of the half of the 16 values that are rotated.
        d.set(".rope.dimension_sections", vec![2u32, 3, 3, 0]).remove(".kda.safe_gate");
    }
    if matches!(
        architecture,
        "gemma4"
            | "gemma4-assistant"
            | "granite_swa"
            | "maple"
            | "mimo2"
            | "spark2_5"
            | "step35"
            | "cohere2moe"
            | "dots3note"
            | "muse-glimmer"
    ) {
        let pattern = (0..blocks).map(|block| block % 5 != 4 && (block % 2 == 0 || blocks == 5));
        d.set(".attention.sliding_window_pattern", pattern.collect::<Vec<bool>>());
    }
    if matches!(architecture, "deepseek4" | "qwen4exp" | "glm5-next" | "hy_v4") {
        d.set(".hyper_connection.count", 4u32)
            .set(".hyper_connection.sinkhorn_iterations", 2u32)
            .set(".hyper_connection.epsilon", 1e-6f32)
            .set(".hyper_connection.magnitude", 2.0f32)
            .set(".hyper_connection.low_rank", 8u32)
            .set(".expert_weights_scale", 1.0f32)
            .set(".expert_weights_norm", true)
            .set(".swiglu_clamp_exp", 10.0f32);
    }
    if architecture == "maple" {
        d.set(".swiglu_clamp_exp", 7.0f32);
    }
    if is_bert(architecture) {
        d.set("tokenizer.ggml.token_type_count", 2u32);
    }
}

fn is_bert(architecture: &str) -> bool {
    matches!(
        architecture,
        "bert"
            | "nomic-bert"
            | "nomic-bert-moe"
            | "jina-bert-v2"
            | "jina-bert-v3"
            | "modern-bert"
            | "neo-bert"
            | "eurobert"
    )
}

/// Returns whether llama.cpp computes embeddings with this architecture and no logits.
#[must_use]
pub fn is_embedding(architecture: &str) -> bool {
    is_bert(architecture) || matches!(architecture, "gemma-embedding" | "llama-embed")
}

/// Returns whether a model of this architecture reads a text token by token. The others read it as a whole,
/// in one micro-batch.
#[must_use]
pub fn is_causal(architecture: &str) -> bool {
    !is_embedding(architecture)
        && !matches!(
            architecture,
            "dream" | "llada" | "llada-moe" | "rnd1" | "t5encoder" | "wavtokenizer-dec"
        )
}
