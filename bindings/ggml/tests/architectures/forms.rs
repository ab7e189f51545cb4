//! The forms of models that are tried.

use std::fmt;

use axiscap_testing::llama::{ARCHITECTURES, Description, has_dense_form, has_experts_form};

/// A form of an architecture.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    pub(crate) architecture: &'static str,
    experts: bool,
    /// What is special about it.
    pub(crate) label: &'static str,
    change: fn(&mut Description),
    /// Blocks that cannot be capped.
    pub(crate) refused: &'static [usize],
}

impl Form {
    const fn plain(architecture: &'static str, experts: bool) -> Self {
        let label = if experts { "experts" } else { "dense" };
        Self { architecture, experts, label, change: |_| {}, refused: &[] }
    }

    pub(crate) fn describe(&self) -> Description {
        let mut description = Description::new(self.architecture, self.experts);
        (self.change)(&mut description);
        description
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.architecture, self.label)
    }
}

/// Returns every form that is tried.
pub(crate) fn all() -> Vec<Form> {
    let mut all = Vec::new();
    for architecture in ARCHITECTURES {
        for experts in [false, true] {
            let has_form =
                if experts { has_experts_form(architecture) } else { has_dense_form(architecture) };
            if has_form {
                all.push(Form::plain(architecture, experts));
            }
        }
        all.extend(special(architecture));
    }
    all
}

/// Returns the forms of an architecture that change its graph.
fn special(architecture: &'static str) -> Vec<Form> {
    let plain = |experts| Form::plain(architecture, experts);
    match architecture {
        "llama" => vec![
            Form {
                label: "grouped queries, odd width",
                change: |d| {
                    d.set(".embedding_length", 102u32)
                        .set(".attention.head_count", 3u32)
                        .set(".attention.head_count_kv", 1u32);
                },
                ..plain(false)
            },
            Form {
                label: "one block",
                change: |d| {
                    d.set(".block_count", 1u32);
                },
                ..plain(false)
            },
        ],
        "gptneox" => vec![Form {
            label: "parallel residual",
            change: |d| {
                d.set(".use_parallel_residual", true);
            },
            ..plain(false)
        }],
        // A block without attention, and one without a feed-forward network: llama.cpp skips the latter's end.
        "deci" => vec![Form {
            label: "skipped parts",
            change: |d| {
                let feed_forward = d.number(".feed_forward_length");
                let heads = d.number(".attention.head_count");
                d.set(".attention.head_count", vec![heads, 0, heads, heads])
                    .set(".attention.head_count_kv", vec![heads, 0, heads, heads])
                    .set(".feed_forward_length", vec![feed_forward, feed_forward, 0, feed_forward]);
            },
            refused: &[2],
            ..plain(false)
        }],
        // The norm between two loops changes what the next block reads.
        "nanbeige" => vec![Form {
            label: "two loops",
            change: |d| {
                d.set(".num_loops", 2u32);
            },
            refused: &[3],
            ..plain(false)
        }],
        // Images are added to the outputs of the first blocks.
        "qwen3vl" | "qwen3vlmoe" => vec![Form {
            label: "deepstack",
            change: |d| {
                d.set(".n_deepstack_layers", 2u32);
            },
            refused: &[0, 1],
            ..plain(architecture == "qwen3vlmoe")
        }],
        "granite" | "granite_swa" => vec![Form {
            label: "deepstack",
            change: |d| {
                d.set(".deepstack_mapping", vec![0, -1, 1, -1]);
            },
            refused: &[1],
            ..plain(false)
        }],
        // A block that predicts a further token follows the others, in another graph.
        "cohere2moe" | "deepseek2" | "deepseek32" | "dots3note" | "glm-dsa" | "glm4moe" | "hy_v3"
        | "mimo2" | "step35" => vec![Form {
            label: "next-token block",
            change: |d| {
                d.announce_next_token_blocks(1);
            },
            ..plain(!has_dense_form(architecture))
        }],
        _ => Vec::new(),
    }
}
