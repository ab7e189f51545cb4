//! The names of block outputs per architecture, and the architectures that cannot be capped.

use crate::error::HookError;

/// The properties of a model that the hook needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelShape {
    /// `general.architecture` of the GGUF, e.g. `llama`.
    pub architecture: String,
    /// Number of blocks, `llama_model_n_layer`.
    pub blocks: usize,
    /// Width of the residual stream, `llama_model_n_embd`.
    pub width: usize,
}

/// The name of the node that leaves block N, without its `-N`: llama.cpp's `cb(cur, "l_out", il)`.
const BLOCK_OUTPUT: &str = "l_out";

/// Nodes that change the residual stream after `l_out` in some architectures, with the distance of their
/// number from the block's: images of Qwen3-VL and of Granite Vision, and the norm between the loops of
/// Nanbeige.
pub(crate) const LATER_CHANGES: [(&str, usize); 3] =
    [("deepstack_out", 0), ("loop_norm", 0), ("deepstack_in", 1)];

/// Returns the prefix of the names of block outputs (llama.cpp, `src/models/*.cpp`).
///
/// # Errors
/// [`HookError::Architecture`] with the reason why the architecture cannot be capped.
pub(crate) fn block_output(architecture: &str) -> Result<&'static str, HookError> {
    let reason = match architecture {
        "bert" | "modern-bert" | "nomic-bert" | "nomic-bert-moe" | "neo-bert" | "jina-bert-v2"
        | "jina-bert-v3" | "eurobert" => "it is an encoder, and its graph names no block outputs",
        "t5" | "t5encoder" => "its encoder and its decoder give their block outputs the same names",
        "plamo2" | "deepseek4" | "qwen4exp" | "eagle3" | "gemma4-assistant" => {
            "its graph names no block outputs `l_out`"
        }
        "gemma3n" => "its residual stream is several streams side by side (AltUp), not one row per token",
        "hy_v4" | "glm5-next" => {
            "its residual stream is several streams side by side (hyper-connections), not one row per token"
        }
        // Its blocks read `res_mix` of the banked streams and `l_out`. The sums restart every few blocks.
        "kimi-k3" => {
            "its blocks read a learned mixture of earlier block outputs, not the output of the last block"
        }
        // Some of them have hyper-connections, which their architecture does not tell.
        "dflash" => "it is a draft model; cap the target model instead",
        "hrm_text" => "it runs its blocks in loops, so that one name stands for several outputs",
        "clip" | "wavtokenizer-dec" | "qwen3tts" | "pockettts" => "it generates no text",
        // `l_out` is the mixer or feed-forward output before the residual is added.
        "nemotron_h" | "nemotron_h_moe" => return Ok("nemotron_h_block_out"),
        _ => return Ok(BLOCK_OUTPUT),
    };
    Err(HookError::Architecture { architecture: architecture.into(), reason })
}

/// Returns the block that a node is the output of: `l_out-17` gives 17. Views and copies have other names
/// (`l_out-17 (view)`, `CPU#l_out-17#0`) and give `None`.
pub(crate) fn block_of(name: &[u8], prefix: &str) -> Option<usize> {
    let digits = name.strip_prefix(prefix.as_bytes())?.strip_prefix(b"-")?;
    if digits.is_empty() || digits.len() > 6 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |n, d| n * 10 + usize::from(d - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_name_is_a_block_output() {
        for (name, block) in [("l_out-0", 0), ("l_out-17", 17), ("l_out-123", 123)] {
            assert_eq!(block_of(name.as_bytes(), "l_out"), Some(block));
        }
        for name in [
            "l_out",
            "l_out-",
            "l_out-1 (view)",
            "CPU#l_out-1#0",
            "l_out-x",
            "l_out--1",
            "l_out_1",
            "xl_out-1",
        ] {
            assert_eq!(block_of(name.as_bytes(), "l_out"), None, "{name}");
        }
    }

    #[test]
    fn deviants_are_refused_with_the_reason() {
        assert_eq!(block_output("llama").unwrap(), "l_out");
        assert_eq!(block_output("nemotron_h").unwrap(), "nemotron_h_block_out");
        for (architecture, reason) in [
            ("gemma3n", "several streams"),
            ("hy_v4", "several streams"),
            ("glm5-next", "several streams"),
            ("kimi-k3", "mixture of earlier block outputs"),
            ("dflash", "draft model"),
        ] {
            let message = block_output(architecture).unwrap_err().to_string();
            assert!(message.contains(architecture) && message.contains(reason), "{message}");
        }
    }
}
