//! What a cap file says about its model, as the commands print it.

use std::fmt;

use axiscap::file::{ModelInfo, NormDigest};

use crate::inspect::printable;
use crate::output::counted;

/// What a cap file says about its model. What it does not say is null in JSON.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Fingerprint {
    architecture: Option<String>,
    blocks: Option<usize>,
    #[serde(skip)]
    width: usize,
    name: Option<String>,
    file_type: Option<u32>,
    /// The digest of the first norm, which stands for the others.
    norm_digest: Option<String>,
    norms: Vec<Norm>,
}

#[derive(Debug, serde::Serialize)]
struct Norm {
    tensor: String,
    sha256: String,
}

impl Fingerprint {
    pub(crate) fn new(model: ModelInfo, width: usize) -> Self {
        let norm = |norm: &NormDigest| Norm { tensor: norm.tensor.clone(), sha256: norm.to_string() };
        Self {
            architecture: Some(model.architecture).filter(|text| !text.is_empty()),
            blocks: Some(model.blocks),
            width,
            name: model.name,
            file_type: model.file_type,
            norm_digest: model.norms.first().map(ToString::to_string),
            norms: model.norms.iter().map(norm).collect(),
        }
    }

    /// Leaves out the number of blocks, which a plain control vector does not hold.
    pub(crate) fn without_blocks(self) -> Self {
        Self { blocks: None, ..self }
    }

    /// Returns the first digest, and how many more there are.
    pub(crate) fn norms_in_words(&self) -> Option<String> {
        let first = self.norms.first()?;
        let more = match self.norms.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        Some(format!("{} of {}{more}", first.sha256, printable(&first.tensor)))
    }
}

/// Writes everything but the norms in one line.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.architecture.as_deref().map_or("unknown".into(), printable))?;
        if let Some(name) = &self.name {
            write!(f, " \"{}\"", printable(name))?;
        }
        if let Some(blocks) = self.blocks {
            write!(f, ", {}", counted(blocks, "block"))?;
        }
        write!(f, ", width {}", self.width)?;
        if let Some(file_type) = self.file_type {
            write!(f, ", file type {file_type}")?;
        }
        Ok(())
    }
}
