//! What a cap file says about its model.

use std::collections::HashMap;

use crate::file::norm_digest::NormDigest;

/// The model that a cap file was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The model's `general.architecture`, e.g. `llama`.
    pub architecture: String,
    /// Number of blocks.
    pub blocks: usize,
    /// The model's `general.name`, if known.
    pub name: Option<String>,
    /// The model's `general.file_type`, its quantisation, if known. Projections change with it.
    pub file_type: Option<u32>,
    /// Digests of the model's norms, the same in each of its quantisations; empty if they are not known. The
    /// first one is that of the output norm, or of the first block's norm in a model without one.
    pub norms: Vec<NormDigest>,
}

impl ModelInfo {
    /// Describes a model by architecture and number of blocks only.
    #[must_use]
    pub fn new(architecture: impl Into<String>, blocks: usize) -> Self {
        Self { architecture: architecture.into(), blocks, name: None, file_type: None, norms: Vec::new() }
    }

    /// Compares the norms that both describe. Returns `None` if there are none, and else the first one that
    /// differs.
    pub(super) fn compare_norms<'a>(&'a self, other: &Self) -> Option<Result<(), &'a NormDigest>> {
        let digests: HashMap<_, _> = other.norms.iter().map(|norm| (&norm.tensor, norm.sha256)).collect();
        let common = |norm: &&NormDigest| digests.contains_key(&norm.tensor);
        let mut common = self.norms.iter().filter(common).peekable();
        common.peek()?;
        Some(common.find(|norm| digests[&norm.tensor] != norm.sha256).map_or(Ok(()), Err))
    }
}
