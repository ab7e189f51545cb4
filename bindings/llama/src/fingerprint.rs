//! What tells a model from others, as a cap file says it.

use std::path::Path;

use axiscap::file::{ModelInfo, NormDigest};
use axiscap_ggml::ModelShape;
use llama_cpp_2::model::params::LlamaModelParams;

use crate::error::Error;
use crate::model::{self, Model};
use crate::norms;

/// What tells a model from others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fingerprint {
    /// Architecture, blocks, name, quantisation, and the digests of the norms.
    pub model: ModelInfo,
    /// Width of the residual stream.
    pub width: usize,
}

impl Fingerprint {
    /// Reads the fingerprint of a GGUF file, or of a model that is split over several, without its weights.
    ///
    /// # Errors
    /// Those of [`Model::load`], but for [`Error::NotGenerative`], and those of [`Model::norms`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        // llama.cpp checks the tensors and allocates nothing for them. The model is dropped here, because
        // nothing can be computed with it.
        let params = LlamaModelParams::default().with_n_gpu_layers(0).with_no_alloc(true);
        let (llama, files) = model::open(path.as_ref(), &params)?;
        let name = model::text(&llama, "general.name");
        Ok(Self::new(model::shape(&llama), name, model::file_type(&llama), norms::digests(&files)?))
    }

    fn new(shape: ModelShape, name: Option<String>, file_type: Option<u32>, norms: Vec<NormDigest>) -> Self {
        let mut model = ModelInfo::new(shape.architecture, shape.blocks);
        (model.name, model.file_type, model.norms) = (name, file_type, norms);
        Self { model, width: shape.width }
    }
}

impl Model {
    /// Returns what tells the model from others.
    ///
    /// # Errors
    /// Those of [`Model::norms`].
    pub fn fingerprint(&self) -> Result<Fingerprint, Error> {
        let name = self.name().map(str::to_owned);
        Ok(Fingerprint::new(self.shape().clone(), name, model::file_type(self.llama()), self.norms()?))
    }

    /// Returns the digests of the output norm and of one norm of each block, in this order, read from the
    /// model's files. Models without such norms of F32 have none.
    ///
    /// # Errors
    /// [`Error::ModelFile`] and [`Error::ModelChanged`] if a file was removed or cut since the model was
    /// loaded.
    pub fn norms(&self) -> Result<Vec<NormDigest>, Error> {
        norms::digests(self.files())
    }
}
