//! Options about the model, its context and its caps, shared by the commands.

use std::path::{Path, PathBuf};

use anyhow::Result;
use axiscap::CapSet;
use axiscap::file::{CapFile, ModelInfo};
use axiscap_llama::{ContextOptions, Engine, KvType, MOST_CTX, MOST_THREADS, Model, ModelOptions, devices};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum, value_parser};

use crate::{output, sampling};

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
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=i64::from(MOST_CTX)))]
    pub(crate) ctx: Option<u32>,
    /// Most tokens llama.cpp computes in one pass
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

/// Which caps, if any, and how strongly they hold.
#[derive(Debug, Args)]
pub(crate) struct CapsArgs {
    /// The caps, a cap file (see `axiscap calibrate`); without one the model runs uncapped
    #[arg(long, value_name = "FILE")]
    pub(crate) caps: Option<PathBuf>,
    #[command(flatten)]
    hold: HoldArgs,
}

/// Which caps, for commands that make no sense without, and how strongly they hold.
#[derive(Debug, Args)]
pub(crate) struct NeededCapsArgs {
    /// The caps, a cap file (see `axiscap calibrate`)
    #[arg(long, value_name = "FILE")]
    pub(crate) caps: PathBuf,
    #[command(flatten)]
    hold: HoldArgs,
}

/// How strongly caps hold.
#[derive(Debug, Args)]
struct HoldArgs {
    /// Strength of every cap in place of the file's: 1 moves projections onto the bound, 0 only observes
    #[arg(long, value_name = "S", requires = "caps", value_parser = sampling::share)]
    strength: Option<f32>,
    /// Only measure the projections, as with strength 0
    #[arg(long, requires = "caps", conflicts_with = "strength")]
    observe: bool,
}

impl CapsArgs {
    /// Reads the cap file.
    pub(crate) fn read(&self) -> Result<Option<CapsOfFile>> {
        self.caps.as_deref().map(|path| CapsOfFile::read(path, &self.hold)).transpose()
    }
}

impl NeededCapsArgs {
    /// Reads the cap file.
    pub(crate) fn read(&self) -> Result<CapsOfFile> {
        CapsOfFile::read(&self.caps, &self.hold)
    }
}

/// A cap file, not yet compared with the model.
#[derive(Debug)]
pub(crate) struct CapsOfFile {
    path: PathBuf,
    file: CapFile,
    strength: Option<f32>,
    observe: bool,
}

impl CapsOfFile {
    fn read(path: &Path, hold: &HoldArgs) -> Result<Self> {
        let file = CapFile::read(path)?;
        Ok(Self { path: path.into(), file, strength: hold.strength, observe: hold.observe })
    }

    /// The caps, if they fit the model; what is odd about them goes to stderr.
    pub(crate) fn fit(self, model: &Model) -> Result<FittingCaps> {
        let Self { path, file, strength, observe } = self;
        check_file(&file, &path, model)?;
        if file.is_unbounded() && !observe {
            output::warning(&format!(
                "{}: no cap has a bound, so nothing can be capped and the projections are only measured; `axiscap calibrate` gives axes their bounds (--observe says that measuring is what is wanted)",
                path.display()
            ));
        }
        let caps = match strength {
            Some(strength) => with_strength(&file.caps, strength)?,
            None => file.caps,
        };
        Ok(FittingCaps { caps, observe })
    }
}

/// Caps that fit the model.
#[derive(Debug)]
pub(crate) struct FittingCaps {
    /// With their own strengths, or that of --strength.
    pub(crate) caps: CapSet,
    /// Whether they are only to observe, at first.
    pub(crate) observe: bool,
}

impl FittingCaps {
    /// The caps as they are to act.
    pub(crate) fn acting(self) -> Result<CapSet> {
        if self.observe { with_strength(&self.caps, 0.0) } else { Ok(self.caps) }
    }
}

fn with_strength(caps: &CapSet, strength: f32) -> Result<CapSet> {
    let caps = caps.caps().iter().map(|entry| {
        let cap = entry.cap.clone().with_strength(strength)?;
        Ok(axiscap::BlockCap { block: entry.block, cap })
    });
    Ok(CapSet::new(caps.collect::<axiscap::Result<Vec<_>>>()?)?)
}

/// Refuses a cap file of another model's shape. What else is odd about it, on this model, goes to stderr.
pub(crate) fn check_file(file: &CapFile, path: &Path, model: &Model) -> Result<()> {
    let shape = model.shape();
    let fits = file.check_model(&shape.architecture, shape.width, shape.blocks);
    let mut warnings = fits.map_err(|error| error.in_file(path))?;
    warnings.extend(file.check_fingerprint(&model_info(model)));
    for warning in warnings.iter().chain(file.warnings()) {
        output::warning(&format!("{}: {warning}", path.display()));
    }
    Ok(())
}

/// The model's fingerprint in a file.
pub(crate) fn model_info(model: &Model) -> ModelInfo {
    let mut info = ModelInfo::new(model.shape().architecture.clone(), model.shape().blocks);
    info.name = model.name().map(Into::into);
    info.file_type = model.metadata("general.file_type").and_then(|number| number.parse().ok());
    info
}

/// Numbers of threads that a context takes.
pub(crate) fn thread_counts() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MOST_THREADS as u64)
}
