//! Options about the model and its context, shared by the commands.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use axiscap::file::ModelInfo;
use axiscap_lab::ComputeOptions;
use axiscap_llama::{ContextOptions, KvType, MAX_CTX, MAX_THREADS, Model, ModelOptions, devices};
use clap::builder::{PossibleValuesParser, RangedI64ValueParser, RangedU64ValueParser, TypedValueParser};
use clap::{Args, ValueEnum, value_parser};

use crate::output;

/// Which model, and how llama.cpp computes it.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The model, a GGUF file; of a split model any of its files
    #[arg(long, short = 'm', value_name = "FILE", env = "AXISCAP_MODEL")]
    pub(crate) model: PathBuf,
    /// Layers to put on a GPU: a number, or all, or auto [default: all, where there is a GPU]
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "N", value_parser = gpu_layers)]
    gpu_layers: Option<GpuLayers>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

/// Which model, and in which context it is run. Short options and aliases are llama.cpp's.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Tokens the context holds; 0: as many as the model was trained on [default: 4096, or what the model was
    /// trained on if that is less]
    #[arg(long, short = 'c', visible_alias = "ctx-size", value_name = "N", value_parser = value_parser!(u32).range(..=i64::from(MAX_CTX)))]
    pub(crate) ctx: Option<u32>,
    /// Maximum tokens of a prompt that llama.cpp is given at once [default: 2048, or --ubatch if that is
    /// more]
    #[arg(long, short = 'b', visible_alias = "batch-size", value_name = "N", value_parser = rows())]
    batch: Option<u32>,
    /// Maximum tokens that llama.cpp computes in one pass, at most --batch
    #[arg(long, visible_alias = "ubatch-size", value_name = "N", default_value_t = 512, value_parser = rows())]
    ubatch: u32,
}

/// How llama.cpp computes. Short options and aliases are llama.cpp's.
#[derive(Debug, Args)]
pub(crate) struct ComputeArgs {
    /// Threads for the CPU [default: physical cores]
    #[arg(long, short = 't', value_name = "N", value_parser = thread_counts())]
    threads: Option<usize>,
    /// Number format of the KV cache, keys and values alike
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_types())]
    kv_type: KvType,
    /// Number format of the keys in the KV cache, as --kv-type [default: that of --kv-type]
    #[arg(long, value_name = "TYPE", value_parser = kv_types(), hide_possible_values = true)]
    cache_type_k: Option<KvType>,
    /// Number format of the values in the KV cache, as --kv-type [default: that of --kv-type]
    #[arg(long, value_name = "TYPE", value_parser = kv_types(), hide_possible_values = true)]
    cache_type_v: Option<KvType>,
    /// Flash attention; on if WHEN is left out [default: auto, llama.cpp decides]
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, default_missing_value = "on")]
    flash_attn: Option<When>,
}

/// When to use flash attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    #[value(aliases = ["enabled", "true", "1"])]
    On,
    #[value(aliases = ["disabled", "false", "0"])]
    Off,
    #[value(alias = "-1")]
    Auto,
}

/// Layers to put on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GpuLayers {
    /// As llama.cpp has it: all, where there is a GPU.
    Auto,
    /// All of them.
    All,
    /// So many.
    Count(u32),
}

/// Parses a number of layers. As in llama.cpp, -1 is auto, and numbers below are all.
fn gpu_layers(text: &str) -> Result<GpuLayers, String> {
    match (text, text.parse::<i32>()) {
        ("auto", _) | (_, Ok(-1)) => Ok(GpuLayers::Auto),
        ("all", _) | (_, Ok(..-1)) => Ok(GpuLayers::All),
        (_, Ok(count)) => Ok(GpuLayers::Count(count.cast_unsigned())),
        (_, Err(_)) => Err("it must be a number of layers, all, or auto".into()),
    }
}

impl fmt::Display for GpuLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::All => f.write_str("all"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

fn kv_types() -> impl TypedValueParser<Value = KvType> {
    PossibleValuesParser::new(KvType::ALL.map(KvType::name)).map(|name| {
        let found = KvType::ALL.into_iter().find(|kind| kind.name() == name);
        found.expect("the name was checked")
    })
}

/// Returns the parser of numbers of rows.
fn rows() -> RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=i64::from(i32::MAX))
}

impl ModelArgs {
    /// Loads the model.
    pub(crate) fn load(&self) -> Result<Model> {
        let model = self.load.load()?;
        let trained = model.trained_context();
        match self.ctx {
            Some(0) if trained == 0 => {
                return Err(output::wrong_usage(
                    "--ctx 0: the model does not say how many tokens it was trained on; give a number".into(),
                ));
            }
            Some(ctx) if trained > 0 && ctx > trained => output::warning(&format!(
                "--ctx {ctx}: the model was trained on {trained} tokens; what it writes beyond them may make no sense"
            )),
            _ => {}
        }
        Ok(model)
    }

    /// Returns how to make contexts of the model.
    pub(crate) fn context(&self, model: &Model) -> ContextOptions {
        let trained = model.trained_context();
        let ComputeOptions { threads, kv_type_k, kv_type_v, flash_attention } = self.load.compute.options();
        ContextOptions {
            ctx: self.ctx.map(|ctx| if ctx == 0 { trained } else { ctx }),
            batch: self.batch.unwrap_or(ContextOptions::default().batch),
            // As in llama.cpp. Without --batch, the batch is raised to the pass.
            ubatch: self.ubatch.min(self.batch.unwrap_or(u32::MAX)),
            threads,
            kv_type_k,
            kv_type_v,
            flash_attention,
            ..ContextOptions::default()
        }
    }
}

impl ComputeArgs {
    /// Returns the options that move the last bits of activations, as they are written on a command line. Those that
    /// are as by default are left out.
    pub(crate) fn words(&self) -> String {
        let (found, default) = (self.options(), ComputeOptions::default());
        let mut words = String::new();
        for (flag, kind, usual) in [
            ("--cache-type-k", found.kv_type_k, default.kv_type_k),
            ("--cache-type-v", found.kv_type_v, default.kv_type_v),
        ] {
            if kind != usual {
                words += &format!(" {flag} {}", kind.name());
            }
        }
        if let Some(on) = found.flash_attention {
            words += if on { " --flash-attn on" } else { " --flash-attn off" };
        }
        words
    }

    /// Returns what the options say.
    pub(crate) fn options(&self) -> ComputeOptions {
        ComputeOptions {
            threads: self.threads,
            kv_type_k: self.cache_type_k.unwrap_or(self.kv_type),
            kv_type_v: self.cache_type_v.unwrap_or(self.kv_type),
            flash_attention: match self.flash_attn {
                None | Some(When::Auto) => None,
                Some(when) => Some(when == When::On),
            },
        }
    }
}

impl LoadArgs {
    /// Loads the model. Warns if layers should go to a GPU and llama.cpp sees none.
    pub(crate) fn load(&self) -> Result<Model> {
        let count = match self.gpu_layers {
            Some(GpuLayers::Count(count)) => Some(count),
            _ => None,
        };
        let model = Model::load(&self.model, &ModelOptions { gpu_layers: count })?;
        if let Some(layers @ (GpuLayers::All | GpuLayers::Count(1..))) = self.gpu_layers
            && !devices().iter().any(|device| device.kind.ends_with("gpu"))
        {
            output::warning(&format!(
                "--gpu-layers {layers}: llama.cpp sees no GPU, so all layers are on the CPU; `axiscap doctor` says what is missing"
            ));
        }
        Ok(model)
    }
}

/// Returns what a cap file says about the model. Its norms are read from its files.
pub(crate) fn model_info(model: &Model) -> Result<ModelInfo> {
    Ok(model.fingerprint()?.model)
}

/// Returns `general.file_type`.
pub(crate) fn file_type(model: &Model) -> Option<u32> {
    model.metadata("general.file_type").and_then(|number| number.parse().ok())
}

/// Returns the parser of numbers of threads.
fn thread_counts() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MAX_THREADS as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_a_number_or_a_word() {
        for (text, layers) in [
            ("0", GpuLayers::Count(0)),
            ("99", GpuLayers::Count(99)),
            ("auto", GpuLayers::Auto),
            ("-1", GpuLayers::Auto),
            ("all", GpuLayers::All),
            ("-2", GpuLayers::All),
        ] {
            assert_eq!(gpu_layers(text), Ok(layers));
        }
        assert!(gpu_layers("many").is_err() && gpu_layers("").is_err());
    }
}
