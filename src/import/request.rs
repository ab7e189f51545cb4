//! What is to be made of a file, and for which model.

use std::ops::Range;

use crate::file::{CapFile, ModelInfo};
use crate::import::evidence::Evidence;
use crate::import::warning::Warning;

/// The model that caps are made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The model, as it will be in the cap file.
    pub model: ModelInfo,
    /// The model's width, `n_embd`.
    pub width: usize,
}

/// What the vectors of a file point to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointsTo {
    /// To the Assistant: a positive projection means more Assistant.
    Assistant,
    /// To roles: a positive projection means less Assistant.
    Roles,
}

/// What is to be made of a file. The default takes everything in it, oriented by its format's convention.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// The id of an experiment of a `capping_config.pt`. It may be left out if there is one only.
    pub experiment: Option<&'a str>,
    /// The blocks to take, 0-based and half open. Without it: all blocks in the file.
    pub blocks: Option<Range<usize>>,
    /// What the file's vectors point to, as the caller says.
    pub points_to: Option<PointsTo>,
    /// Default and role vectors, which decide the orientation.
    pub evidence: Option<&'a Evidence>,
}

/// Imported caps, and what a user should know about them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Imported {
    /// The caps. Axes without bounds are caps without bounds.
    pub file: CapFile,
    /// The warnings.
    pub warnings: Vec<Warning>,
}
