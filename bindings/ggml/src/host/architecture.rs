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

/// Nodes that change the residual stream after `l_out` in some architectures, with the distance of their
/// number from the block's: images of Qwen3-VL and of Granite Vision, and the norm between the loops of
/// Nanbeige.
pub(crate) const LATER_CHANGES: [(&str, usize); 3] =
    [("deepstack_out", 0), ("loop_norm", 0), ("deepstack_in", 1)];

/// How the nodes of a next-token block's own graph are named, which drafts (`graph_mtp` in `src/models/*.cpp`).
pub(crate) const OF_DRAFTS: &[u8] = b"mtp_";

/// The names of a model's block outputs: llama.cpp's `cb(cur, "l_out", il)` in `src/models/*.cpp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockNames {
    /// The name of block N's output is `<prefix>-N`.
    prefix: &'static str,
    renamed: Option<Renamed>,
    blocks: usize,
}

/// Other names of block outputs, where llama.cpp names the node again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Renamed {
    /// Block N + 1 names its input, the output of block N, `<prefix>-(N + 1)`.
    input: &'static str,
    /// What the output of the last block is named.
    last: &'static str,
}

impl BlockNames {
    /// Returns the block that a node is the output of: `l_out-17` gives 17. Views and copies have other names
    /// (`l_out-17 (view)`, `CPU#l_out-17#0`) and give `None`.
    #[must_use]
    pub fn block_of(&self, name: &[u8]) -> Option<usize> {
        let renamed = |Renamed { input, last }: Renamed| match numbered(name, input) {
            Some(next) => next.checked_sub(1),
            None => (name == last.as_bytes()).then(|| self.blocks.wrapping_sub(1)),
        };
        numbered(name, self.prefix).or_else(|| renamed(self.renamed?))
    }
}

/// Returns the number N of a name `<prefix>-N`.
pub(crate) fn numbered(name: &[u8], prefix: &str) -> Option<usize> {
    let digits = name.strip_prefix(prefix.as_bytes())?.strip_prefix(b"-")?;
    if digits.is_empty() || digits.len() > 6 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |n, d| n * 10 + usize::from(d - b'0')))
}

/// Returns the names of a model's block outputs.
///
/// # Errors
/// [`HookError::Architecture`] with the reason why the architecture cannot be capped.
pub(crate) fn block_names(model: &ModelShape) -> Result<BlockNames, HookError> {
    let architecture = model.architecture.as_str();
    let mut names = BlockNames { prefix: "l_out", renamed: None, blocks: model.blocks };
    let reason = match architecture {
        "bert" | "modern-bert" | "nomic-bert" | "nomic-bert-moe" | "neo-bert" | "jina-bert-v2"
        | "jina-bert-v3" | "eurobert" => "it is an encoder, and its graph names no block outputs",
        "t5encoder" => "it is an encoder and generates no text",
        "t5" => "its encoder and its decoder give their block outputs the same names",
        "deepseek4" | "qwen4exp" | "hy_v4" | "glm5-next" => {
            "its residual stream is several streams side by side (hyper-connections), not one row per token"
        }
        "gemma3n" => "its residual stream is several streams side by side (AltUp), not one row per token",
        // Its blocks read `res_mix` of the banked streams and `l_out`. The sums restart every few blocks.
        "kimi-k3" => {
            "its blocks read a learned mixture of earlier block outputs, not the output of the last block"
        }
        "dflash" | "eagle3" | "gemma4-assistant" => "it is a draft model; cap the target model instead",
        "hrm_text" => "it runs its blocks in loops, so that one name stands for several outputs",
        "clip" | "wavtokenizer-dec" | "qwen3tts" | "pockettts" => "it generates no text",
        "clef" => "it scores the options of a decision and generates no text",
        "gptj" => "llama.cpp knows its name and cannot compute it",
        // `l_out` is the mixer or feed-forward output before the residual is added.
        "nemotron_h" | "nemotron_h_moe" => {
            names.prefix = "nemotron_h_block_out";
            return Ok(names);
        }
        "plamo2" => {
            names.prefix = "ffn_residual";
            return Ok(names);
        }
        "step35" => {
            names.renamed = Some(Renamed { input: "attn_norm_in", last: "h_nextn" });
            return Ok(names);
        }
        _ => return Ok(names),
    };
    Err(HookError::Architecture { architecture: architecture.into(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(architecture: &str) -> Result<BlockNames, HookError> {
        block_names(&ModelShape { architecture: architecture.into(), blocks: 200, width: 1 })
    }

    #[test]
    fn only_the_exact_name_is_a_block_output() {
        let block_of = |name: &str| names("llama").unwrap().block_of(name.as_bytes());
        for (name, block) in [("l_out-0", 0), ("l_out-17", 17), ("l_out-123", 123)] {
            assert_eq!(block_of(name), Some(block));
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
            "attn_norm_in-1",
            "h_nextn",
        ] {
            assert_eq!(block_of(name), None, "{name}");
        }
    }

    #[test]
    fn deviants_have_other_names_or_are_refused_with_the_reason() {
        let block_of = |architecture, name: &str| names(architecture).unwrap().block_of(name.as_bytes());
        assert_eq!(block_of("nemotron_h", "nemotron_h_block_out-3"), Some(3));
        assert_eq!(block_of("nemotron_h", "l_out-3"), None);
        assert_eq!(block_of("step35", "attn_norm_in-0"), None);
        assert_eq!(block_of("step35", "attn_norm_in-4"), Some(3));
        assert_eq!(block_of("step35", "h_nextn"), Some(199));
        for (architecture, reason) in [
            ("gemma3n", "several streams"),
            ("hy_v4", "several streams"),
            ("glm5-next", "several streams"),
            ("kimi-k3", "mixture of earlier block outputs"),
            ("dflash", "draft model"),
        ] {
            let message = names(architecture).unwrap_err().to_string();
            assert!(message.contains(architecture) && message.contains(reason), "{message}");
        }
    }
}
