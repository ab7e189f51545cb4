//! Digests of a model's norm weights, read from its files.
//!
//! Norms are vectors of F32 in every quantisation of a model. Only their bytes and the metadata are read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use axiscap::file::NormDigest;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::gguf::{Gguf, Tensor};

/// The norm after the last block.
const OUTPUT_NORM: &str = "output_norm.weight";
/// The norms of a block, of which the first that it has is taken. A block without any of them is known by
/// another norm.
const BLOCK_NORMS: [&str; 8] = [
    "attn_norm.weight",
    "attn_norm_2.weight",
    "ffn_norm.weight",
    "post_attention_norm.weight",
    "attn_post_norm.weight",
    "post_ffw_norm.weight",
    "ffn_post_norm.weight",
    "layer_output_norm.weight",
];

/// Returns the digests of the output norm and of one norm of each block, in this order. Models without such
/// norms have none.
pub(crate) fn digests(files: &[PathBuf]) -> Result<Vec<NormDigest>, Error> {
    let mut chosen = BTreeMap::<_, Chosen<'_>>::new();
    for file in files {
        let length = File::open(file).and_then(|opened| Ok(opened.metadata()?.len()));
        let length = length.map_err(|error| Error::ModelFile { path: file.clone(), error })?;
        let changed = |reason| Error::ModelChanged { path: file.clone(), reason };
        let tensors = Gguf::open(file).map_err(changed)?.tensors();
        let is_cut = |tensor: &&Tensor| length < tensor.offset.saturating_add(tensor.size);
        if let Some(tensor) = tensors.iter().find(is_cut) {
            return Err(changed(format!("it ends at byte {length}, before the end of {}", tensor.name)));
        }
        for tensor in tensors {
            let Some((block, rank)) = place(&tensor) else { continue };
            let new = Chosen { rank, file, tensor };
            match chosen.get(&block) {
                Some(best) if best.key() < new.key() => {}
                _ => drop(chosen.insert(block, new)),
            }
        }
    }
    chosen.into_values().map(|norm| digest(norm.file, norm.tensor)).collect()
}

/// A norm that stands for its block.
struct Chosen<'a> {
    rank: usize,
    file: &'a Path,
    tensor: Tensor,
}

impl Chosen<'_> {
    /// The lowest one is chosen. Where the ranks are equal, the names decide, and not the order in the file.
    fn key(&self) -> (usize, &str) {
        (self.rank, &self.tensor.name)
    }
}

/// Returns the block of a norm, `None` for the output norm, and its rank among the norms of the block.
fn place(tensor: &Tensor) -> Option<(Option<u32>, usize)> {
    if !tensor.is_f32_vector || tensor.size == 0 {
        return None;
    }
    if tensor.name == OUTPUT_NORM {
        return Some((None, 0));
    }
    let (number, name) = tensor.name.strip_prefix("blk.")?.split_once('.')?;
    let block = number.parse().ok()?;
    match BLOCK_NORMS.iter().position(|&known| known == name) {
        Some(rank) => Some((Some(block), rank)),
        None => name.ends_with("norm.weight").then_some((Some(block), BLOCK_NORMS.len())),
    }
}

fn digest(path: &Path, tensor: Tensor) -> Result<NormDigest, Error> {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(tensor.offset))?;
        let mut hash = Sha256::new();
        let read = io::copy(&mut file.take(tensor.size), &mut hash)?;
        Ok((read, hash.finalize().into()))
    };
    let (read, sha256) = read().map_err(|error| Error::ModelFile { path: path.to_owned(), error })?;
    if read < tensor.size {
        let reason = format!("it ends within {}", tensor.name);
        return Err(Error::ModelChanged { path: path.to_owned(), reason });
    }
    Ok(NormDigest { tensor: tensor.name, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str) -> Tensor {
        Tensor { name: name.into(), offset: 0, size: 8, is_f32_vector: true }
    }

    #[test]
    fn norms_of_blocks_are_known_by_their_names() {
        for (name, expected) in [
            ("output_norm.weight", Some((None, 0))),
            ("blk.0.attn_norm.weight", Some((Some(0), 0))),
            ("blk.17.layer_output_norm.weight", Some((Some(17), 7))),
            ("blk.3.attn_sub_norm.weight", Some((Some(3), 8))),
            ("blk.3.nextn.hnorm.weight", Some((Some(3), 8))),
            ("blk.3.attn_norm.bias", None),
            ("blk.x.attn_norm.weight", None),
            ("enc.blk.0.attn_norm.weight", None),
            ("token_embd_norm.weight", None),
            ("blk.3.attn_q.weight", None),
        ] {
            assert_eq!(place(&tensor(name)), expected, "{name}");
        }
        assert_eq!(place(&Tensor { is_f32_vector: false, ..tensor(OUTPUT_NORM) }), None);
        assert_eq!(place(&Tensor { size: 0, ..tensor(OUTPUT_NORM) }), None);
    }
}
