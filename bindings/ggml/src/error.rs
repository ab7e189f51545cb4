//! Errors of the hook.

use std::any::Any;
use std::fmt;

use crate::profile::ProfileId;
use crate::route::choice::Route;

/// An error of the hook. The decode in which it happens fails, so that no text looks capped but is not.
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
    #[error("the hook already serves another build of ggml in this process; load one llama.cpp per process")]
    OtherHost,
    /// ggml has no device.
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
    /// A decode ran through a context whose backends were not created under
    /// [`Hook::bind`](crate::Hook::bind).
    #[error(
        "no backend of this context is hooked, so nothing would be capped; create the context inside Hook::bind, after Hook::install"
    )]
    NotBound,
    /// A configured block was not computed in a decode, or not with all its rows.
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
    /// A block output has another type or shape than the caps need.
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
    /// A later node changes the residual stream after the block output.
    #[error(
        "`{node}` still changes the residual stream after the output of block {block}; leave this block uncapped"
    )]
    ChangedLater {
        /// The block.
        block: usize,
        /// The later node.
        node: String,
    },
    /// Rows that a cap had to leave as they were, because their projection, or the step to the bound, is NaN or
    /// infinite. From a GPU the number may arrive with a later decode.
    #[error(
        "block {block}: {rows} of {of} rows have no finite projection on their cap's axis (or step to its bound) and stayed uncapped: the model's activations are NaN or overflow there; check the model file, and a KV cache or weights of a smaller number format, or leave this block uncapped"
    )]
    NotFinite {
        /// The block.
        block: usize,
        /// Rows that stayed uncapped.
        rows: usize,
        /// Rows of the block in this graph.
        of: usize,
    },
    /// Several devices compute the same rows of a block, each of them partially.
    #[error(
        "several devices compute the output of block {block} for the same tokens: the model's tensors are split over them (LLAMA_SPLIT_MODE_TENSOR), and none of them may have the whole residual stream; load the model with another split mode, for example by layers"
    )]
    SplitTensors {
        /// The block.
        block: usize,
    },
    /// Two profiles of one name, or a name that is empty or that of the default profile.
    #[error(
        "a profile cannot be named {name:?}: names are unique and not empty, and `default` is the profile of set_caps; give another name"
    )]
    ProfileName {
        /// The name.
        name: String,
    },
    /// A row under a profile that the session does not have.
    #[error(
        "there is no profile {profile}: it was removed, or is of another session; put its sequences under a profile that there is, or under none, before they are decoded again"
    )]
    NoProfile {
        /// The profile.
        profile: ProfileId,
    },
    /// The caps skip positions, and the positions of the rows are not known.
    #[error(
        "the caps leave the first positions of each sequence alone, but the positions of these rows are not known: the host's graphs do not show them; use caps that act on every row (axiscap.policy.skip_positions 0), or in a program of your own decode through Session::watch_batch"
    )]
    PositionsUnknown,
    /// llama.cpp computes the rows of a batch in another order than was expected of it.
    #[error(
        "llama.cpp computes the rows of this batch in another order than expected ({what}), so they could be capped under wrong profiles or shown under wrong tokens; decode fewer sequences per batch, and report this with the model's architecture"
    )]
    RowOrder {
        /// What was found.
        what: String,
    },
    /// Rows under different profiles, but the compute hook caps all alike.
    #[error(
        "a compute hook ({route}) caps all rows alike; use one profile without a policy, or remove the hook"
    )]
    ProfilesUnsupported {
        /// The route of the hook.
        route: Route,
    },
    /// Statistics or tracing are on, but the compute hook has neither.
    #[error(
        "there are no statistics and traces of a compute hook ({route}); switch both off (Settings::statistics, Settings::tracing), or remove the hook"
    )]
    StatisticsUnsupported {
        /// The route of the hook.
        route: Route,
    },
    /// Devices were registered after the hook was installed, which a context may use.
    #[error(
        "ggml has {now} devices, and had {hooked} when the hook was installed ({added} came later): blocks that they compute would not be capped; install the hook after all devices are registered"
    )]
    LateDevices {
        /// Devices that are hooked.
        hooked: usize,
        /// Devices that there are.
        now: usize,
        /// The names of those that came later.
        added: String,
    },
    /// No caps are for a model that generates, and no other model of the process is capped.
    #[error(
        "no caps are for this model: {model}; {reasons}; name the cap file of the model that is served, or write the model into the file that is for it"
    )]
    NoCapsFit {
        /// The model, as its graph shows it.
        model: String,
        /// Why none of the caps is for it.
        reasons: String,
    },
    /// Two sets of caps for one model.
    #[error("`{first}` and `{second}` are for the same model, as far as they say; name one of them")]
    CapsRival {
        /// Name of the one.
        first: String,
        /// Name of the other.
        second: String,
    },
    /// A context was capped by its shape, and turns out to run another model.
    #[error(
        "the caps `{caps}` were taken for those of this model by its shape, and they are not: {reason}; write the model into each cap file, which then names it"
    )]
    OtherModel {
        /// Name of the caps.
        caps: String,
        /// What contradicts.
        reason: String,
    },
    /// Slots have profiles, and the batch of a graph was not seen.
    #[error(
        "slots have profiles, but the program does not let the batch be seen that it decodes; load axiscap by LD_PRELOAD as well, into a program that calls llama_decode in a shared library, or give no slot a profile"
    )]
    BatchUnseen,
    /// The profile of a slot is for another model.
    #[error("slot {slot} is under the profile {caps}, which is not for this model: {reason}")]
    ProfileMisfit {
        /// The sequence.
        slot: i32,
        /// Name of the caps.
        caps: String,
        /// Why not.
        reason: String,
    },
    /// An RPC server caps the model by itself, and not as this process does.
    #[error(
        "{device} is on an RPC server with axiscap, which does not cap the model as this process does: {reason}"
    )]
    Rpc {
        /// ggml's name of the device.
        device: String,
        /// What differs.
        reason: String,
    },
    /// An operation on a GPU failed.
    #[error("capping on {device} failed: {what}; the decode was failed rather than left uncapped")]
    Device {
        /// ggml's name of the device.
        device: String,
        /// What failed.
        what: String,
    },
    /// The first rows that a GPU capped differ from the CPU's.
    #[error(
        "{device} caps block {block} wrongly: row {row} has {found:e} in column {column} where the CPU gives {expected:e}; do not use this GPU for capping, load the model without layers on it, and report this with the GPU's model and driver"
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
        /// What the CPU writes.
        expected: f32,
    },
    /// The first rows that a GPU normed after the caps of a block differ from the CPU's.
    #[error(
        "{device} norms the rows of block {block} wrongly after its caps: row {row} has {found:e} in column {column} where the CPU gives {expected:e}; switch the fused norm off (Settings::fused_norm), and report this with the GPU's model and driver"
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
        /// What the CPU writes.
        expected: f32,
    },
    /// The first statistics that a GPU reported of its caps differ from the CPU's.
    #[error(
        "{device} reports wrong statistics for block {block}, row {row}: {found}, where the CPU has {expected}; do not use this GPU for capping, load the model without layers on it, and report this with the GPU's model and driver"
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
    /// The hook panicked inside llama.cpp's call. The panic was caught before it reached C++.
    #[error(
        "a bug in axiscap: it panicked while capping ({0}); the decode was failed rather than left uncapped"
    )]
    Panic(String),
}

impl HookError {
    /// Returns the error for rows in an order that was not expected.
    pub(crate) fn row_order(what: &str) -> Self {
        Self::RowOrder { what: what.into() }
    }

    /// Returns the error for a caught panic.
    pub(crate) fn panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Panic(text.unwrap_or_else(|| "no message".into()))
    }
}

/// How much of a block a decode showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No hooked backend computed a node of that name.
    Never,
    /// It was computed with this many rows.
    Rows(usize),
}

impl Seen {
    fn remedy(self) -> &'static str {
        match self {
            Self::Never => {
                "the architecture names its block outputs differently, another backend computes them, or the context only drafts (LLAMA_CONTEXT_TYPE_MTP)"
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
