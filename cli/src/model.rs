//! Options about the model, its context and its caps, shared by the commands.

use std::path::{Path, PathBuf};

use anyhow::Result;
use axiscap::CapSet;
use axiscap::file::CapFile;
use axiscap_llama::{ContextOptions, Engine, KvType, Model, ModelOptions, devices};
use clap::{Args, ValueEnum};

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
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Tokens the context holds [default: 4096, or what the model was trained on if that is less]
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<u32>,
    /// Most tokens llama.cpp computes in one pass
    #[arg(long, value_name = "N", default_value_t = 512)]
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

    /// How to make contexts.
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

/// Loads a model; says so when layers were to be put on a GPU that is not there.
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

/// How caps get into llama.cpp's graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineArg {
    /// What suits the backend: inserted on the CPU, views elsewhere
    Auto,
    /// As nodes of ggml's own graph; on the CPU only, elsewhere as views
    Inserted,
    /// Between pieces of the graph
    Views,
    /// Graph and caps as one CUDA graph; needs GGML_CUDA_DISABLE_GRAPHS=1 in the environment, without it and elsewhere as auto
    DeviceGraph,
}

impl From<EngineArg> for Engine {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Auto => Self::Auto,
            EngineArg::Inserted => Self::Inserted,
            EngineArg::Views => Self::Views,
            EngineArg::DeviceGraph => Self::DeviceGraph,
        }
    }
}

/// Which caps, and how strongly they hold.
#[derive(Debug, Args)]
pub(crate) struct CapsArgs {
    /// The caps, a cap file (see `axiscap calibrate`); without one the model runs uncapped
    #[arg(long, value_name = "FILE")]
    pub(crate) caps: Option<PathBuf>,
    /// Strength of every cap in place of the file's: 1 moves projections onto the bound, 0 only observes
    #[arg(long, value_name = "S", requires = "caps")]
    strength: Option<f32>,
    /// Only measure the projections: strength 0
    #[arg(long, requires = "caps", conflicts_with = "strength")]
    observe: bool,
}

impl CapsArgs {
    /// Reads the cap file; what is odd about it goes to stderr.
    pub(crate) fn load(&self, model: &Model) -> Result<Option<CapSet>> {
        let Some(path) = &self.caps else { return Ok(None) };
        let file = CapFile::read(path)?;
        let shape = model.shape();
        let fits = file.check_model(&shape.architecture, shape.width, shape.blocks);
        for warning in fits.map_err(|error| error.in_file(path))? {
            output::warning(&format!("{}: {warning}", path.display()));
        }
        let strength = if self.observe { Some(0.0) } else { self.strength };
        let Some(strength) = strength else { return Ok(Some(file.caps)) };
        let caps = file.caps.caps().iter().map(|entry| {
            let cap = entry.cap.clone().with_strength(strength)?;
            Ok(axiscap::BlockCap { block: entry.block, cap })
        });
        Ok(Some(CapSet::new(caps.collect::<axiscap::Result<Vec<_>>>()?)?))
    }
}
