//! Mean block outputs, in a file without a name: those of a large model are larger than its memory.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Mean block outputs of many answers over their tokens, and over the tokens of their thoughts.
///
/// They are in a temporary file, `[blocks][slots][width]` f32, that ends with this value. One block is in memory
/// at a time.
#[derive(Debug)]
pub struct MeanActivations {
    folder: PathBuf,
    file: File,
    blocks: usize,
    width: usize,
    answers: usize,
    /// Per answer, the slot of its thoughts. Answers come first.
    thoughts: Vec<Option<usize>>,
    slots: usize,
}

impl MeanActivations {
    /// Makes room in `folder` for answers, of which some have thoughts. All means are zero.
    ///
    /// # Errors
    /// [`Error::Scratch`].
    pub fn new(folder: &Path, blocks: usize, width: usize, has_thoughts: &[bool]) -> Result<Self, Error> {
        let scratch = |error| Error::Scratch { folder: folder.into(), error };
        let file = tempfile::tempfile_in(folder).map_err(scratch)?;
        let answers = has_thoughts.len();
        let mut slots = answers;
        let mut slot = || {
            slots += 1;
            slots - 1
        };
        let thoughts = has_thoughts.iter().map(|&has| has.then(&mut slot)).collect();
        let means = Self { folder: folder.into(), file, blocks, width, answers, thoughts, slots };
        means.file.set_len(means.offset(blocks, 0)).map_err(scratch)?;
        Ok(means)
    }

    /// Returns the number of answers.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.answers
    }

    /// Returns the number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Returns the width of the residual stream.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes the mean output of a block over the tokens of an answer, or of its thoughts.
    ///
    /// # Errors
    /// [`Error::Scratch`].
    ///
    /// # Panics
    /// If there is no such answer or block, the answer has no thoughts, or the width is another.
    pub fn put(&mut self, answer: usize, is_thoughts: bool, block: usize, mean: &[f32]) -> Result<(), Error> {
        assert!(block < self.blocks && mean.len() == self.width, "block {block}, width {}", mean.len());
        let slot = if is_thoughts { self.thoughts[answer].expect("it has thoughts") } else { answer };
        assert!(slot < self.slots, "answer {answer} of {}", self.answers);
        let offset = self.offset(block, slot);
        let write = |mut file: &File| {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(bytemuck::cast_slice(mean))
        };
        write(&self.file).map_err(|error| self.failed(error))
    }

    /// Reads the means of one block.
    ///
    /// # Errors
    /// [`Error::Scratch`].
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block(&self, block: usize) -> Result<BlockMeans, Error> {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let mut values = vec![0f32; self.slots * self.width];
        let offset = self.offset(block, 0);
        let read = |mut file: &File, values: &mut [f32]| {
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(bytemuck::cast_slice_mut(values))
        };
        read(&self.file, &mut values).map_err(|error| self.failed(error))?;
        Ok(BlockMeans { width: self.width, values, thoughts: self.thoughts.clone() })
    }

    /// Returns where a slot begins, in bytes.
    fn offset(&self, block: usize, slot: usize) -> u64 {
        ((block * self.slots + slot) * self.width * size_of::<f32>()) as u64
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::Scratch { folder: self.folder.clone(), error }
    }
}

/// The means of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockMeans {
    width: usize,
    /// `[slots][width]`
    values: Vec<f32>,
    thoughts: Vec<Option<usize>>,
}

impl BlockMeans {
    /// Returns the mean over an answer's tokens, `[width]`. Zeros for an answer without tokens.
    ///
    /// # Panics
    /// If there is no such answer.
    #[must_use]
    pub fn answer(&self, answer: usize) -> &[f32] {
        assert!(answer < self.thoughts.len(), "answer {answer} of {}", self.thoughts.len());
        self.slot(answer)
    }

    /// Returns the mean over the tokens of an answer's thoughts, `[width]`, if it has any.
    ///
    /// # Panics
    /// If there is no such answer.
    #[must_use]
    pub fn thoughts(&self, answer: usize) -> Option<&[f32]> {
        self.thoughts[answer].map(|slot| self.slot(slot))
    }

    fn slot(&self, slot: usize) -> &[f32] {
        &self.values[slot * self.width..][..self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_read_back_by_block_and_nothing_is_left_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut means = MeanActivations::new(folder.path(), 2, 3, &[false, true]).unwrap();
        means.put(1, false, 1, &[1.0, 2.0, 3.0]).unwrap();
        means.put(1, true, 1, &[4.0, 5.0, 6.0]).unwrap();
        means.put(0, false, 0, &[7.0; 3]).unwrap();
        let (first, second) = (means.block(0).unwrap(), means.block(1).unwrap());
        assert_eq!((first.answer(0), first.answer(1)), ([7.0; 3].as_slice(), [0.0; 3].as_slice()));
        assert_eq!((second.answer(1), second.thoughts(0)), ([1.0, 2.0, 3.0].as_slice(), None));
        assert_eq!(second.thoughts(1), Some([4.0, 5.0, 6.0].as_slice()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let error = MeanActivations::new(Path::new("/nowhere"), 1, 1, &[]).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
