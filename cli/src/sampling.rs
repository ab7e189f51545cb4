//! Options about how the next token is chosen. Names, ranges and defaults are llama.cpp's, but for the number
//! of tokens and the seed, whose defaults bound and repeat the text.

use std::hash::{BuildHasher, RandomState};

use axiscap_llama::{GenerateOptions, Sampling};
use clap::Args;

use crate::output;

/// Parses a temperature. As in llama.cpp, a number below 0 is 0.
pub(crate) fn temperature(text: &str) -> Result<f32, String> {
    let number =
        finite(text).map_err(|_| "it must be a finite number; 0 always takes the likeliest token")?;
    Ok(number.max(0.0))
}

/// Parses a number from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "it must be a number in [0, 1]".into())
}

/// Parses a number of likeliest tokens. As in llama.cpp, a number below 0 is 0.
fn top_k(text: &str) -> Result<u32, String> {
    let number = text.parse::<i32>().map_err(|_| "it must be a whole number; 0 keeps all tokens")?;
    Ok(u32::try_from(number).unwrap_or(0))
}

fn finite(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite());
    number.ok_or_else(|| "it must be a finite number".into())
}

/// Parses a penalty that logits are divided and multiplied by.
fn repeat_penalty(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|n: &f32| n.is_finite() && *n > 0.0 && n.recip().is_finite());
    number.ok_or_else(|| "it must be a finite number above 0; 1 changes nothing".into())
}

/// Parses a number of tokens. As in llama.cpp, -1 and -2 set no limit.
fn max_tokens(text: &str) -> Result<usize, String> {
    match text {
        "-1" | "-2" => Ok(usize::MAX),
        number => number.parse().map_err(|_| {
            "it must be a number of tokens, 0 or more, or -1: until the text ends or the context is full"
                .into()
        }),
    }
}

/// A seed, given or drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed {
    pub(crate) number: u32,
    /// Whether it was drawn, and is not known to the user.
    pub(crate) is_drawn: bool,
}

/// Parses a seed. As in llama.cpp, -1 draws one.
pub(crate) fn seed(text: &str) -> Result<Seed, String> {
    if text == "-1" {
        let drawn = RandomState::new().hash_one(text) % (u64::from(Sampling::MAX_SEED) + 1);
        return Ok(Seed { number: u32::try_from(drawn).unwrap_or(0), is_drawn: true });
    }
    let number = text.parse().ok().filter(|&number| number <= Sampling::MAX_SEED);
    let number =
        number.ok_or_else(|| format!("it must be 0 to {}, or -1 to draw one", Sampling::MAX_SEED))?;
    Ok(Seed { number, is_drawn: false })
}

/// How the next token is chosen, and how many there may be.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Maximum tokens to generate; -1: until the text ends or the context is full
    #[arg(long, short = 'n', visible_aliases = ["n-predict", "predict"], value_name = "N", default_value = "256", value_parser = max_tokens)]
    max_tokens: usize,
    /// Temperature; 0 always takes the likeliest token
    #[arg(long, visible_alias = "temperature", value_name = "T", default_value = "0.8", value_parser = temperature)]
    temp: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value = "40", value_parser = top_k)]
    top_k: u32,
    /// Keep the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = share)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = share)]
    min_p: f32,
    /// Make tokens of the last --repeat-last-n less likely: divide their logits; 1 changes nothing
    #[arg(long, value_name = "X", default_value = "1", value_parser = repeat_penalty)]
    repeat_penalty: f32,
    /// How many of the last tokens the penalties are for, those of the prompt among them; 0 is none
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    repeat_last_n: u32,
    /// Subtract from the logits of tokens among the last ones; 0 changes nothing
    #[arg(long, value_name = "X", default_value = "0", value_parser = finite)]
    presence_penalty: f32,
    /// Subtract from them for each time that they occur; 0 changes nothing
    #[arg(long, value_name = "X", default_value = "0", value_parser = finite)]
    frequency_penalty: f32,
    /// Seed of the random numbers; the same seed gives the same text; -1 draws one and reports it
    #[arg(long, short = 's', value_name = "S", default_value = "0", value_parser = seed)]
    seed: Seed,
}

impl Seed {
    /// Says on stderr which seed was drawn, if one was.
    pub(crate) fn report(self) {
        if self.is_drawn {
            output::note(&format!("[seed {}: --seed {} draws the same again]", self.number, self.number));
        }
    }
}

impl SamplingArgs {
    /// Says on stderr which seed was drawn, if one was.
    pub(crate) fn report_seed(&self) {
        self.seed.report();
    }

    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens,
            sampling: Sampling {
                temperature: self.temp,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repeat_penalty: self.repeat_penalty,
                repeat_last_n: self.repeat_last_n,
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                seed: self.seed.number,
            },
            margins: false,
            log_probabilities: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_below_zero_mean_what_they_mean_in_llama_cpp() {
        assert_eq!((temperature("-1"), top_k("-1")), (Ok(0.0), Ok(0)));
        assert_eq!((max_tokens("-1"), max_tokens("-2")), (Ok(usize::MAX), Ok(usize::MAX)));
        assert_eq!((max_tokens("0"), max_tokens("7")), (Ok(0), Ok(7)));
        for bad in ["-3", "", "x", "1.5"] {
            assert!(max_tokens(bad).is_err(), "{bad}");
        }
        for bad in ["nan", "inf", "-inf", "x"] {
            assert!(temperature(bad).is_err() && finite(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-1", "nan", "inf", "1e-45"] {
            assert!(repeat_penalty(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_drawn_seed_differs_each_time() {
        let drawn: std::collections::BTreeSet<_> = (0..8).map(|_| seed("-1").unwrap().number).collect();
        assert!(drawn.len() > 6 && seed("-1").unwrap().is_drawn, "{drawn:?}");
        assert_eq!(seed("7"), Ok(Seed { number: 7, is_drawn: false }));
        for bad in ["4294967295", "-2", "x", ""] {
            assert!(seed(bad).unwrap_err().contains("0 to 4294967294"), "{bad}");
        }
    }
}
