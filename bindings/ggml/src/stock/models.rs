//! Caps for a model that is recognised by its graphs.

use std::fmt;
use std::sync::Arc;

use axiscap::CapSet;

use super::seen::{Look, SeenModel};
use crate::config::Config;
use crate::digest::CapDigest;
use crate::error::HookError;
use crate::graph::weights::OUTPUT_NORM;
use crate::host::architecture::{BlockNames, ModelShape, block_names};

/// Caps, and how to recognise the model that they are for.
#[derive(Debug, Clone)]
pub struct ModelCaps {
    /// What the caps are called in messages, e.g. the path of their file.
    pub name: String,
    /// The shape of the model.
    pub shape: ModelShape,
    /// SHA-256 of norm weights by the name of their tensor. Without any, the shape decides.
    pub norms: Vec<(String, [u8; 32])>,
    /// The caps.
    pub caps: CapSet,
}

/// Reason why caps are not for the model of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misfit {
    /// The model has another width.
    Width {
        /// Width of the caps.
        caps: usize,
        /// Width of the model.
        model: usize,
    },
    /// The model has another number of blocks.
    Blocks {
        /// Number of blocks that the caps are for.
        caps: usize,
        /// Number of blocks of the model, as far as its graph shows them.
        model: usize,
    },
    /// The model has other norm weights.
    Norm {
        /// The tensor.
        tensor: String,
    },
    /// The graph names no block outputs as the architecture of the caps does.
    NoBlocks,
    /// The caps name norm weights of which nothing is known of the model.
    NormsUnknown,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Width { caps, model } => write!(f, "they have width {caps}, the model has {model}"),
            Self::Blocks { caps, model } => {
                write!(f, "they are for a model of {caps} blocks, this one has {model}")
            }
            Self::Norm { tensor } => {
                write!(f, "they are for a model with other norm weights (`{tensor}`)")
            }
            Self::NoBlocks => f.write_str("the graph names no block outputs as their architecture does"),
            Self::NormsUnknown => f.write_str("nothing is known of the norm weights that they name"),
        }
    }
}

/// How well caps fit the model of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fit {
    /// Norm weights say that it is their model.
    Confirmed,
    /// The shape is that of their model. `settled` if later graphs of the model say no more.
    Shape { settled: bool },
    /// The graph shows nothing of its model.
    Unknown,
    /// It is another model.
    Misfit(Misfit),
}

impl ModelCaps {
    /// Checks that the caps suit their own model.
    ///
    /// # Errors
    /// [`HookError::Architecture`], [`HookError::Caps`].
    pub(super) fn check(&self) -> Result<(), HookError> {
        Config::new(self.shape.blocks).set_caps(Some(&self.caps), &self.shape)
    }

    /// Returns the digest of the caps.
    pub(super) fn digest(&self) -> [u8; 32] {
        CapDigest::of(&self.caps).bytes()
    }

    /// Whether these caps do what others do.
    pub(super) fn acts_as(&self, other: &Self) -> bool {
        self.shape.blocks == other.shape.blocks
            && self.caps.policy() == other.caps.policy()
            && self.digest() == other.digest()
    }

    /// Whether these caps and others are for the same model, as far as the two say.
    pub(super) fn is_same_model(&self, other: &Self) -> bool {
        let contradict = |(name, digest): &(String, [u8; 32])| {
            other.norms.iter().any(|(other_name, other)| other_name == name && other != digest)
        };
        let alike = self.shape.width == other.shape.width && self.shape.blocks == other.shape.blocks;
        // A file without digests is no rival to one with them: the one with them is asked first.
        let both = self.norms.is_empty() == other.norms.is_empty();
        alike && both && !self.norms.iter().any(contradict)
    }

    /// Compares the caps with a model of this shape, of which these norms are known. Returns whether a norm
    /// says that it is their model.
    pub(super) fn fit_known(&self, shape: &ModelShape, known: &[(String, [u8; 32])]) -> Result<bool, Misfit> {
        if self.shape.width != shape.width {
            return Err(Misfit::Width { caps: self.shape.width, model: shape.width });
        }
        if self.shape.blocks != shape.blocks {
            return Err(Misfit::Blocks { caps: self.shape.blocks, model: shape.blocks });
        }
        if block_names(&self.shape).ok() != block_names(shape).ok() {
            return Err(Misfit::NoBlocks);
        }
        let mut confirmed = false;
        for (name, expected) in &self.norms {
            for (_, found) in known.iter().filter(|(known, _)| known == name) {
                if found != expected {
                    return Err(Misfit::Norm { tensor: name.clone() });
                }
                confirmed = true;
            }
        }
        if confirmed || self.norms.is_empty() { Ok(confirmed) } else { Err(Misfit::NormsUnknown) }
    }

    /// Whether the caps are for a model, as far as one of its graphs showed it.
    pub(super) fn fit_seen(&self, seen: &SeenModel) -> bool {
        let shape = (Some(self.shape.width), Some(self.shape.blocks));
        let other = |(name, digest): &(String, [u8; 32])| {
            name == OUTPUT_NORM && seen.norm_digest.is_some_and(|found| found != *digest)
        };
        (seen.width, seen.blocks) == shape && !seen.drafts && !self.norms.iter().any(other)
    }

    /// Compares the caps with the model of a graph.
    pub(super) fn fit(&self, look: &Look<'_>) -> Fit {
        let Ok(names) = block_names(&self.shape) else { return Fit::Misfit(Misfit::NoBlocks) };
        let blocks = look.blocks(names);
        let (width, count) = (self.shape.width, self.shape.blocks);
        match blocks {
            Some(blocks) if blocks.width != width => {
                return Fit::Misfit(Misfit::Width { caps: width, model: blocks.width });
            }
            Some(blocks) if blocks.end > count => {
                return Fit::Misfit(Misfit::Blocks { caps: count, model: blocks.end });
            }
            _ => {}
        }
        let mut confirmed = false;
        for (name, expected) in &self.norms {
            match look.digest(name) {
                Some(found) if found == *expected => confirmed = true,
                Some(_) => return Fit::Misfit(Misfit::Norm { tensor: name.clone() }),
                None => {}
            }
        }
        let ends = look.ending.end.is_some();
        match blocks {
            _ if confirmed => Fit::Confirmed,
            Some(blocks) if ends && self.norms.is_empty() => match blocks.end == count {
                true => Fit::Shape { settled: true },
                false => Fit::Misfit(Misfit::Blocks { caps: count, model: blocks.end }),
            },
            Some(_) => Fit::Shape { settled: false },
            None if ends => Fit::Misfit(Misfit::NoBlocks),
            None => Fit::Unknown,
        }
    }
}

/// Returns the norms that are known of a model: those of its caps, and what its graph showed.
pub(super) fn known_norms(caps: &ModelCaps, seen: &SeenModel) -> Vec<(String, [u8; 32])> {
    let mut known = caps.norms.clone();
    known.extend(seen.norm_digest.map(|digest| (OUTPUT_NORM.to_owned(), digest)));
    known
}

/// Returns the first of these caps that are for a model of this shape, of which these norms are known: those that
/// name its norms, or else those that its shape fits. The error is why each of them is not.
pub(super) fn choose(
    models: &[Arc<ModelCaps>],
    shape: &ModelShape,
    known: &[(String, [u8; 32])],
) -> Result<usize, String> {
    let (mut by_shape, mut reasons) = (None, Vec::new());
    for (index, caps) in models.iter().enumerate() {
        match caps.fit_known(shape, known) {
            Ok(true) => return Ok(index),
            Ok(false) => _ = by_shape.get_or_insert(index),
            Err(misfit) => reasons.push(format!("{}: {misfit}", caps.name)),
        }
    }
    by_shape.ok_or_else(|| reasons.join("; "))
}

/// The names of block outputs in most architectures.
pub(super) fn usual_names() -> BlockNames {
    let shape = ModelShape { architecture: "llama".into(), blocks: 0, width: 0 };
    block_names(&shape).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Bound, Cap};

    use super::*;

    fn caps(architecture: &str, blocks: usize, width: usize, norms: &[(&str, u8)]) -> ModelCaps {
        let cap = Cap::new(Axis::from_direction(&vec![1.0; width]).unwrap(), Bound::NONE);
        let caps = CapSet::new([BlockCap { block: 0, cap }]).unwrap();
        let norms = norms.iter().map(|&(name, byte)| (name.to_owned(), [byte; 32])).collect();
        let shape = ModelShape { architecture: architecture.into(), blocks, width };
        ModelCaps { name: "a.gguf".into(), shape, norms, caps }
    }

    #[test]
    fn a_model_that_was_seen_is_known_by_its_shape_and_output_norm() {
        let mut seen = SeenModel { width: Some(4), blocks: Some(2), ..SeenModel::default() };
        assert!(caps("llama", 2, 4, &[]).fit_seen(&seen));
        assert!(caps("llama", 2, 4, &[("output_norm.weight", 1)]).fit_seen(&seen));
        assert!(!caps("llama", 3, 4, &[]).fit_seen(&seen));
        seen.norm_digest = Some([1; 32]);
        assert!(caps("llama", 2, 4, &[("output_norm.weight", 1)]).fit_seen(&seen));
        assert!(!caps("llama", 2, 4, &[("output_norm.weight", 2)]).fit_seen(&seen));
        seen.drafts = true;
        assert!(!caps("llama", 2, 4, &[]).fit_seen(&seen));
    }

    #[test]
    fn what_is_known_of_a_model_says_which_caps_are_for_it() {
        let model = caps("llama", 2, 4, &[("output_norm.weight", 1), ("blk.0.attn_norm.weight", 2)]);
        let fit = |caps: &ModelCaps| caps.fit_known(&model.shape, &model.norms);
        assert_eq!(fit(&model), Ok(true));
        assert_eq!(fit(&caps("llama", 2, 4, &[("output_norm.weight", 1)])), Ok(true));
        assert_eq!(fit(&caps("llama", 2, 4, &[])), Ok(false));
        assert_eq!(fit(&caps("qwen2", 2, 4, &[])), Ok(false), "the same names of block outputs");
        assert_eq!(fit(&caps("llama", 2, 8, &[])), Err(Misfit::Width { caps: 8, model: 4 }));
        assert_eq!(fit(&caps("llama", 3, 4, &[])), Err(Misfit::Blocks { caps: 3, model: 2 }));
        let tensor = "blk.0.attn_norm.weight".to_owned();
        let other = caps("llama", 2, 4, &[("output_norm.weight", 1), (&tensor, 3)]);
        assert_eq!(fit(&other), Err(Misfit::Norm { tensor }));
        let unknown = caps("llama", 2, 4, &[("blk.1.attn_norm.weight", 1)]);
        assert_eq!(fit(&unknown), Err(Misfit::NormsUnknown));
    }
}
