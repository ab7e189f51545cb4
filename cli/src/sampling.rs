//! Options about how the next token is chosen.

use axiscap_llama::{GenerateOptions, Sampling};
use clap::Args;
use clap::builder::RangedI64ValueParser;

/// Parses a number from 0 on, for temperatures.
pub(crate) fn zero_or_more(text: &str) -> Result<f32, String> {
    number(text, f32::MAX).ok_or_else(|| "it must be a number, 0 or more".into())
}

/// Parses a number from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f32, String> {
    number(text, 1.0).ok_or_else(|| "it must be a number in [0, 1]".into())
}

fn number(text: &str, max: f32) -> Option<f32> {
    text.parse().ok().filter(|number| (0.0..=max).contains(number))
}

/// Returns the parser of seeds.
pub(crate) fn seeds() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(..=i64::from(Sampling::MAX_SEED))
}

/// How the next token is chosen, and how many there may be.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Maximum tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Temperature; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = zero_or_more)]
    temp: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: u32,
    /// Keep the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = share)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = share)]
    min_p: f32,
    /// Seed of the random numbers; the same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = seeds())]
    seed: u32,
}

impl SamplingArgs {
    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens,
            sampling: Sampling {
                temperature: self.temp,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                seed: self.seed,
            },
            margins: false,
        }
    }
}
