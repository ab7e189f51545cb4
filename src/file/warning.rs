//! What a user should know about a valid file.

use std::fmt;

use crate::file::error::printable;

/// A peculiarity of a valid file that its user should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The file names another architecture than the model's. Width and block count fit.
    OtherArchitecture {
        /// The architecture the file was made for.
        file: String,
        /// The architecture of the model.
        model: String,
    },
    /// The file names another model than the one it is used with. Width and block count fit.
    OtherName {
        /// The name of the model the file was made for.
        file: String,
        /// The name of the model.
        model: String,
    },
    /// The file was made for a model with other norm weights. Width and block count fit.
    OtherWeights {
        /// The first tensor whose digest differs.
        tensor: String,
    },
    /// The file was made for another quantisation of the model.
    OtherFileType {
        /// `general.file_type` of the model the file was made for.
        file: u32,
        /// `general.file_type` of the model.
        model: u32,
    },
    /// No cap uses this tensor. It is dropped when the file is written again.
    UnusedTensor {
        /// The tensor's name.
        name: String,
    },
    /// llama.cpp would steer another block with this tensor, if it read the file as a control vector.
    MisnamedTensor {
        /// The tensor's name, `direction.N`.
        name: String,
        /// The block that is capped with it.
        block: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherArchitecture { file, model } => write!(
                f,
                "made for architecture {file:?} (controlvector.model_hint), but the model is {model:?}: check that it is the same model under another name"
            ),
            Self::OtherName { file, model } => write!(
                f,
                "made for the model {file:?} (axiscap.model.name), but this one is {model:?}: caps work only on the model they were made for; calibrate on this one unless it is the same under another name"
            ),
            Self::OtherWeights { tensor } => write!(
                f,
                "made for a model with other norm weights ({tensor}, axiscap.model.norm.sha256): caps work only on the model they were made for; calibrate on this one",
                tensor = printable(tensor)
            ),
            Self::OtherFileType { file, model } => write!(
                f,
                "made for weights of file type {file} (axiscap.model.file_type), but the model's are of file type {model}: projections move with the quantisation; calibrate on this file"
            ),
            Self::UnusedTensor { name } => write!(
                f,
                "tensor {name} is used by no cap (axiscap.cap.tensor): it does nothing and is dropped when the file is written again",
                name = printable(name)
            ),
            Self::MisnamedTensor { name, block } => write!(
                f,
                "tensor {name} holds the axis of a cap on block {block}: llama.cpp would steer another block with it"
            ),
        }
    }
}
