//! What a graph shows of its model.

use std::collections::HashMap;
use std::fmt;

use crate::graph::ends::Ending;
use crate::graph::weights::{OUTPUT_NORM, digest, weights_by_name};
use crate::host::architecture::BlockNames;
use crate::host::{Graph, Tensor};

/// A model as one of its graphs shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SeenModel {
    /// Width of the residual stream, if the graph has block outputs.
    pub width: Option<usize>,
    /// The number of the last block that the graph computes, plus one. `None` if it has no block outputs.
    pub blocks: Option<usize>,
    /// SHA-256 of the weights of the output norm, if the graph reads them.
    pub norm_digest: Option<[u8; 32]>,
    /// Whether the graph computes logits.
    pub logits: bool,
    /// Whether the graph is that of a next-token block, which drafts.
    pub drafts: bool,
}

impl fmt::Display for SeenModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.width, self.blocks) {
            _ if self.drafts => f.write_str("a next-token block that drafts")?,
            (Some(width), Some(blocks)) => write!(f, "a model of {blocks} blocks of width {width}")?,
            _ => f.write_str("a model whose graph names no block outputs")?,
        }
        if let Some(digest) = &self.norm_digest {
            f.write_str(", output norm ")?;
            digest[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        f.write_str(if self.logits { ", with logits" } else { ", without logits" })
    }
}

/// A graph whose model is being recognised.
#[derive(Debug)]
pub(super) struct Look<'a> {
    graph: &'a Graph,
    pub(super) ending: Ending,
    /// One-dimensional weights by name, with the names that they have in the file.
    weights: HashMap<&'a [u8], Tensor>,
}

/// The block outputs of a graph under the names of one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) width: usize,
    /// The number of the last block, plus one.
    pub(super) end: usize,
}

impl<'a> Look<'a> {
    pub(super) fn new(graph: &'a Graph, ending: Ending) -> Self {
        Self { graph, ending, weights: weights_by_name(graph) }
    }

    /// Returns the block outputs of the graph.
    pub(super) fn blocks(&self, names: BlockNames) -> Option<Blocks> {
        let mut found: Option<Blocks> = None;
        for &node in self.graph.nodes() {
            let Some(block) = names.block_of(node.name()) else { continue };
            let width = usize::try_from(node.ne()[0]).unwrap_or(0);
            let end = found.map_or(0, |found| found.end).max(block + 1);
            found = Some(Blocks { width, end });
        }
        found
    }

    /// Returns the digest of a weight, `None` if the graph does not read it or its bytes cannot be read.
    pub(super) fn digest(&self, name: &str) -> Option<[u8; 32]> {
        digest(*self.weights.get(name.as_bytes())?)
    }

    /// Describes the model for people.
    pub(super) fn describe(&self, names: BlockNames) -> SeenModel {
        let blocks = self.blocks(names);
        SeenModel {
            width: blocks.map(|blocks| blocks.width),
            blocks: blocks.map(|blocks| blocks.end),
            norm_digest: self.digest(OUTPUT_NORM),
            logits: self.ending.end.is_some_and(|end| end.logits),
            drafts: self.ending.drafts,
        }
    }
}
