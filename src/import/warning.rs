//! What a user should know about an import that succeeded.

use std::fmt;

use crate::file::printable;

/// A peculiarity of an import that its user should look at.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// The sign was decided by the format's convention, without evidence.
    ByConvention {
        /// The convention.
        convention: &'static str,
    },
    /// It is not known what a positive projection means.
    UnknownDirection,
    /// The evidence contradicts the format's convention. The evidence was followed.
    AgainstConvention {
        /// The blocks of these vectors.
        blocks: Vec<usize>,
    },
    /// Vectors of one file point to different sides. Each was turned by its own evidence.
    MixedDirections {
        /// The blocks of the vectors that point from the Assistant.
        from_assistant: Vec<usize>,
    },
    /// A cap limits how much like the Assistant the model is.
    Ceiling {
        /// The blocks of these caps.
        blocks: Vec<usize>,
    },
    /// An experiment's id names other blocks than its interventions.
    OtherLayers {
        /// The experiment's id.
        experiment: String,
        /// The blocks of its caps.
        blocks: Vec<usize>,
    },
    /// Interventions without a cap were left out, as by the reference implementation.
    WithoutCap {
        /// Their number.
        count: usize,
    },
    /// The file has vectors for fewer blocks than the model has.
    FewerLayers {
        /// Number of layers in the file.
        file: usize,
        /// Number of blocks of the model.
        model: usize,
    },
    /// The file names another architecture than the model's.
    OtherArchitecture {
        /// The architecture in the file.
        file: String,
        /// The model's architecture.
        model: String,
    },
    /// A direction of llama.cpp's generator is that of the block before the one it is named after.
    Generator,
    /// Bounds beside the vectors were not read.
    BoundsIgnored,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByConvention { convention } => write!(
                f,
                "the sign is by convention ({convention}), not by evidence: give the default vector and role vectors to decide it"
            ),
            Self::UnknownDirection => write!(
                f,
                "it is not known what a positive projection on these vectors means: give the default vector and role vectors, or say it"
            ),
            Self::AgainstConvention { blocks } => write!(
                f,
                "the default and role vectors contradict the format's convention on blocks {}: they were followed; check that all files are of one model",
                Numbers(blocks)
            ),
            Self::MixedDirections { from_assistant } => write!(
                f,
                "the vectors of blocks {} point from the Assistant and the others to it: each was turned by its own evidence; check the file",
                Numbers(from_assistant)
            ),
            Self::Ceiling { blocks } => write!(
                f,
                "the caps on blocks {} are ceilings: they limit how much like the Assistant the model is; check what the file's vectors point to",
                Numbers(blocks)
            ),
            Self::OtherLayers { experiment, blocks } => write!(
                f,
                "experiment {} caps the blocks {}, which are not those of its name: its interventions were followed",
                printable(experiment),
                Numbers(blocks)
            ),
            Self::WithoutCap { count } => write!(
                f,
                "interventions without a cap were left out ({count}), as the reference implementation does"
            ),
            Self::FewerLayers { file, model } => write!(
                f,
                "the file has vectors for {file} layers, and the model has {model} blocks: check that the file is for this model"
            ),
            Self::OtherArchitecture { file, model } => write!(
                f,
                "the file is for architecture {:?} (controlvector.model_hint), and the model is {model:?}: check that it is the same model under another name",
                file
            ),
            Self::Generator => write!(
                f,
                "llama.cpp's cvector-generator measures direction.N at the output of block N - 1, and llama.cpp adds it at block N: the number was kept"
            ),
            Self::BoundsIgnored => write!(
                f,
                "the bounds beside the vectors were not read: they belong to the cap file that was exported; calibrate again"
            ),
        }
    }
}

/// Numbers with commas. A run of them is written as `46-53`.
pub(super) struct Numbers<'a>(pub(super) &'a [usize]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|&next| last.checked_add(1) == Some(next)) {
                last = next;
            }
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_numbers_are_ranges() {
        assert_eq!(
            Numbers(&[46, 47, 48, 3, 9, 10, usize::MAX]).to_string(),
            format!("46-48,3,9-10,{}", usize::MAX)
        );
        assert_eq!(Numbers(&[]).to_string(), "");
    }
}
