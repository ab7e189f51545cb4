//! Options about the model and its context, shared by the commands.

use std::path::{Path, PathBuf};

use anyhow::Result;
use axiscap::file::ModelInfo;
use axiscap_llama::{ContextOptions, KvType, MAX_CTX, MAX_THREADS, Model, ModelOptions, devices};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum, value_parser};

use crate::output;

/// Which model, and how it is run.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// The model, a GGUF file
    #[arg(long, value_name = "FILE", env = "AXISCAP_MODEL")]
    pub(crate) model: PathBuf,
    /// Layers to put on a GPU [default: all, where there is one]
    #[arg(long, value_name = "N")]
    gpu_layers: Option<u32>,
    /// Threads for the CPU [default: physical cores]
    #[arg(long, value_name = "N", value_parser = thread_counts())]
    threads: Option<usize>,
    /// Tokens the context holds [default: 4096, or what the model was trained on if that is less]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=i64::from(MAX_CTX)))]
    pub(crate) ctx: Option<u32>,
    /// Maximum tokens that llama.cpp computes in one pass
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    ubatch: u32,
    /// Number format of the KV cache
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = KvTypeArg::F16)]
    kv_type: KvTypeArg,
    /// Flash attention [default: llama.cpp decides]
    #[arg(long, value_name = "WHEN", value_enum)]
    flash_attn: Option<OnOff>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KvTypeArg {
    F16,
    F32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

impl ModelArgs {
    /// Loads the model.
    pub(crate) fn load(&self) -> Result<Model> {
        let model = load(&self.model, self.gpu_layers)?;
        let trained = model.trained_context();
        if let Some(ctx) = self.ctx.filter(|&ctx| trained > 0 && ctx > trained) {
            output::warning(&format!(
                "--ctx {ctx}: the model was trained on {trained} tokens; what it writes beyond them may make no sense"
            ));
        }
        Ok(model)
    }

    /// Returns how to make contexts.
    pub(crate) fn context(&self) -> ContextOptions {
        ContextOptions {
            ctx: self.ctx,
            ubatch: self.ubatch,
            threads: self.threads,
            kv_type: match self.kv_type {
                KvTypeArg::F16 => KvType::F16,
                KvTypeArg::F32 => KvType::F32,
            },
            flash_attention: self.flash_attn.map(|when| when == OnOff::On),
            ..ContextOptions::default()
        }
    }
}

/// Loads a model. Warns if layers should go to a GPU and llama.cpp sees none.
pub(crate) fn load(path: &Path, gpu_layers: Option<u32>) -> Result<Model> {
    let model = Model::load(path, &ModelOptions { gpu_layers })?;
    if let Some(layers @ 1..) = gpu_layers
        && !devices().iter().any(|device| device.kind.ends_with("gpu"))
    {
        output::warning(&format!(
            "--gpu-layers {layers}: llama.cpp sees no GPU, so all layers are on the CPU; `axiscap doctor` says what is missing"
        ));
    }
    Ok(model)
}

/// Returns the model's fingerprint in a file.
pub(crate) fn model_info(model: &Model) -> ModelInfo {
    let mut info = ModelInfo::new(model.shape().architecture.clone(), model.shape().blocks);
    info.name = model.name().map(Into::into);
    info.file_type = model.metadata("general.file_type").and_then(|number| number.parse().ok());
    info
}

/// Returns the parser of numbers of threads.
pub(crate) fn thread_counts() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MAX_THREADS as u64)
}
