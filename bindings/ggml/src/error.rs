//! Why the hook could not be installed, or a decode could not be capped.

use std::fmt;

/// Every way in which the hook refuses to go on. None of them leaves text that looks capped but is not.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// This build of ggml does not lay out its structures as the hook needs them.
    #[error(
        "this ggml ({version}) is not laid out as the hook needs it: {what}; use the llama.cpp that axiscap is built with, or a newer axiscap"
    )]
    Layout {
        /// ggml's version and commit.
        version: String,
        /// What was expected and what was found.
        what: String,
    },
    /// This build of ggml does not export a function that the hook calls.
    #[error("this build of ggml has no function `{name}`, which the hook needs; use ggml 0.9.4 or newer")]
    Symbol {
        /// The function's name.
        name: &'static str,
    },
    /// Two builds of ggml are loaded in this process.
    #[error(
        "the hook already serves another build of ggml in this process; load one llama.cpp per process"
    )]
    OtherHost,
    /// ggml knows no device at all.
    #[error(
        "ggml has no device to hook, not even a CPU; with dynamically loaded backends, load them first (LlamaBackend::init, or GGML_BACKEND_PATH)"
    )]
    NoDevice,
    /// The architecture's block outputs cannot be capped.
    #[error("models of architecture `{architecture}` cannot be capped: {reason}")]
    Architecture {
        /// The model's `general.architecture`.
        architecture: String,
        /// Why not.
        reason: &'static str,
    },
    /// The caps do not fit the model, or a bound or strength is out of range.
    #[error(transparent)]
    Caps(#[from] axiscap::Error),
    /// A tap on a block that the model does not have.
    #[error("block {block} cannot be observed: the model has {blocks} blocks (0 to {})", .blocks.saturating_sub(1))]
    TapBlock {
        /// The block asked for.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// A decode ran through a context whose backends were not created under [`Hook::bind`](crate::Hook::bind).
    #[error(
        "no backend of this context is hooked, so nothing would be capped; create the context inside Hook::bind, after Hook::install"
    )]
    NotBound,
    /// A configured block was not seen in a decode, or not with all of its rows.
    #[error("block {block} was {seen} in a decode of {rows} tokens ({outputs} with logits): its output would have stayed uncapped; {}", .seen.remedy())]
    NotSeen {
        /// The block.
        block: usize,
        /// What was seen of it.
        seen: Seen,
        /// Tokens decoded.
        rows: usize,
        /// Tokens with logits.
        outputs: usize,
    },
    /// A block output is not what the operation is defined on.
    #[error(
        "the output of block {block} (node `{node}`) is {found}, but the caps need {expected}; this architecture cannot be capped yet"
    )]
    Shape {
        /// The block.
        block: usize,
        /// The node's name.
        node: String,
        /// Its type and shape.
        found: String,
        /// Type and shape needed.
        expected: String,
    },
    /// Two nodes of one graph claim to be the output of the same block.
    #[error(
        "two nodes of one graph are named as the output of block {block} (`{node}`), so it is unclear which one is the residual stream; remove other control vectors, or leave this block uncapped"
    )]
    Ambiguous {
        /// The block.
        block: usize,
        /// The name both have.
        node: String,
    },
    /// The node that leaves the block is not the last word on its residual stream.
    #[error(
        "`{node}` still changes the residual stream after the output of block {block}; leave this block uncapped"
    )]
    ChangedLater {
        /// The block.
        block: usize,
        /// The later node.
        node: String,
    },
    /// Several devices compute the same rows of a block, each of them a part.
    #[error(
        "several devices compute the output of block {block} for the same tokens: the model's tensors are split over them (LLAMA_SPLIT_MODE_TENSOR), and none of them may have the whole residual stream; load the model with another split mode, for example by layers"
    )]
    SplitTensors {
        /// The block.
        block: usize,
    },
    /// Figures were asked for where nothing counts.
    #[error(
        "caps through ggml's stock operations count nothing and trace nothing; switch statistics and tracing off for Engine::StockChain, or choose another engine"
    )]
    StockChainFigures,
    /// There are no times of graphs on a GPU.
    #[error(
        "there is no GPU timeline: since it was asked for, no graph ran whose blocks were capped on a GPU without the host waiting; the caps of a CPU, and those that the host makes for a GPU, are not timed"
    )]
    NoTimeline,
    /// Something that a GPU was asked to do for the caps failed.
    #[error("capping on {device} failed: {what}; the decode was failed rather than left uncapped")]
    Device {
        /// ggml's name of the device.
        device: String,
        /// What failed.
        what: String,
    },
    /// The first rows that a GPU capped are not those that the CPU makes of them.
    #[error(
        "{device} caps block {block} wrongly: row {row} has {found:e} in column {column} where the CPU gives {expected:e}; this GPU must not be used for capping, report this with its model and driver, and run with --gpu-layers 0 until then"
    )]
    DeviceDiffers {
        /// ggml's name of the device.
        device: String,
        /// The block.
        block: usize,
        /// The first row that differs.
        row: usize,
        /// The first column that differs in it.
        column: usize,
        /// What the GPU wrote.
        found: f32,
        /// What the CPU makes of the same row.
        expected: f32,
    },
    /// The first rows that a GPU normed behind the caps of a block are not those that the CPU makes of them.
    #[error(
        "{device} norms the rows of block {block} wrongly behind its caps: row {row} has {found:e} in column {column} where the CPU gives {expected:e}; run without --fused-norm, and report this with the GPU's model and driver"
    )]
    DeviceNormDiffers {
        /// ggml's name of the device.
        device: String,
        /// The block.
        block: usize,
        /// The first row that differs.
        row: usize,
        /// The first column that differs in it.
        column: usize,
        /// What the GPU wrote.
        found: f32,
        /// What the CPU makes of the same row.
        expected: f32,
    },
    /// The first figures that a GPU reported of its caps are not those of the CPU.
    #[error(
        "{device} reports wrong figures for block {block}, row {row}: {found}, where the CPU has {expected}; report this with the GPU's model and driver, and run with --gpu-layers 0 until then"
    )]
    DeviceStatsDiffer {
        /// ggml's name of the device.
        device: String,
        /// The block.
        block: usize,
        /// The first row that differs.
        row: usize,
        /// What the GPU reported.
        found: String,
        /// What the CPU has.
        expected: String,
    },
    /// Our own code panicked inside llama.cpp's call; it was caught before it reached C++.
    #[error(
        "a bug in axiscap: it panicked while capping ({0}); the decode was failed rather than left uncapped"
    )]
    Panic(String),
}

/// How much of a block a decode showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No node of that name was computed by a hooked backend.
    Never,
    /// It was computed with this many rows.
    Rows(usize),
}

impl Seen {
    fn remedy(self) -> &'static str {
        match self {
            Self::Never => {
                "the architecture names its block outputs differently, or another backend computes them"
            }
            Self::Rows(_) => "decode one batch per call, and count only its own tokens",
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => write!(f, "not computed"),
            Self::Rows(rows) => write!(f, "computed for {rows} rows"),
        }
    }
}
