//! Caps for a model that is recognised by its graphs.

use std::fmt;

use axiscap::CapSet;

use super::seen::Look;
use crate::config::Config;
use crate::error::HookError;
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

/// The names of block outputs in most architectures.
pub(super) fn usual_names() -> BlockNames {
    let shape = ModelShape { architecture: "llama".into(), blocks: 0, width: 0 };
    block_names(&shape).unwrap_or_default()
}
