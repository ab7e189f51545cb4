//! Configuration of a session: the caller's settings, its caps and its tap.

use std::sync::Arc;

use axiscap::{Bound, CapSet, CapTable};

use crate::error::HookError;
use crate::graph::find::Wanted;
use crate::host::architecture::{BlockNames, ModelShape, block_names};
use crate::route::choice::RouteChoice;
use crate::tap::Tap;

/// Switches of a session. A change takes effect with the next decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Whether caps and taps run. Without it graphs run untouched. On by default.
    pub enabled: bool,
    /// Whether the statistics of every row are kept for [`Session::take_trace`](crate::Session::take_trace).
    /// Off by default.
    pub tracing: bool,
    /// Whether the caps count what they do, for [`Session::stats`](crate::Session::stats). On by default.
    /// Without it and without tracing, nothing is recorded.
    pub statistics: bool,
    /// Whether caps that run on a GPU include the RMSNorm that follows their block, where the graph allows
    /// it. A capped block then needs no extra kernel launch. Off by default.
    /// [`Session::fused_norms`](crate::Session::fused_norms) lists the blocks.
    ///
    /// The normed rows have the bits of `axiscap::cpu::cap_norm_rows`. ggml adds the squares in another
    /// order, so its normed rows may differ in the last bits.
    pub fused_norm: bool,
    /// How graphs are computed with their caps.
    pub route: RouteChoice,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, tracing: false, statistics: true, fused_norm: false, route: RouteChoice::Auto }
    }
}

/// The caps of one block.
#[derive(Debug, Clone)]
pub(crate) struct BlockCaps {
    pub(crate) block: usize,
    /// Indices in the set, in order of application.
    pub(crate) indices: Vec<usize>,
    pub(crate) table: CapTable,
}

/// The immutable configuration that one decode works with.
///
/// A clone is cheap. The tables are shared, and only [`Config::change_cap`] copies them.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    blocks: Arc<[BlockCaps]>,
    /// Caps of the whole set.
    cap_count: usize,
    tap: Option<Tap>,
    /// By block, whether it is capped or tapped.
    wanted: Arc<[bool]>,
    /// The names of block outputs, once a block was wanted.
    names: BlockNames,
    /// Number of times that caps were set. Statistics belong to the caps of one generation.
    generation: u64,
    /// Number of times that caps, bounds or strengths were changed.
    revision: u64,
}

impl Config {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            settings: Settings::default(),
            blocks: Arc::new([]),
            cap_count: 0,
            tap: None,
            wanted: vec![false; blocks].into(),
            names: BlockNames::default(),
            generation: 0,
            revision: 0,
        }
    }

    /// Replaces the caps.
    ///
    /// # Errors
    /// [`HookError::Architecture`], and [`HookError::Caps`] when the caps do not fit the model.
    pub(crate) fn set_caps(&mut self, caps: Option<&CapSet>, model: &ModelShape) -> Result<(), HookError> {
        let mut blocks = Vec::new();
        if let Some(set) = caps {
            block_names(model)?;
            set.check_model(model.width, model.blocks)?;
            for (block, indices) in set.blocks() {
                let table = CapTable::new(indices.iter().map(|&i| &set.caps()[i].cap))?;
                blocks.push(BlockCaps { block, indices, table });
            }
        }
        self.blocks = blocks.into();
        self.cap_count = caps.map_or(0, |set| set.caps().len());
        self.generation += 1;
        self.revision += 1;
        self.find_wanted(model)
    }

    /// Replaces the tap.
    ///
    /// # Errors
    /// [`HookError::Architecture`], [`HookError::TapBlock`].
    pub(crate) fn set_tap(&mut self, tap: Option<Tap>, model: &ModelShape) -> Result<(), HookError> {
        if let Some(tap) = &tap {
            block_names(model)?;
            let blocks = model.blocks;
            if let Some(&block) = tap.blocks.iter().find(|&&block| block >= blocks) {
                return Err(HookError::TapBlock { block, blocks });
            }
        }
        self.tap = tap;
        self.find_wanted(model)
    }

    fn find_wanted(&mut self, model: &ModelShape) -> Result<(), HookError> {
        let mut wanted = vec![false; model.blocks];
        let tapped = self.tap.iter().flat_map(|tap| tap.blocks.iter().copied());
        for block in self.blocks.iter().map(|caps| caps.block).chain(tapped) {
            wanted[block] = true;
        }
        if wanted.contains(&true) {
            self.names = block_names(model)?;
        }
        self.wanted = wanted.into();
        Ok(())
    }

    /// Changes the bound of one cap of the set.
    pub(crate) fn set_bound(&mut self, cap: usize, bound: Bound) -> Result<(), HookError> {
        self.change_cap(cap, |table, index| table.set_bound(index, bound))
    }

    /// Changes the strength of one cap of the set.
    pub(crate) fn set_strength(&mut self, cap: usize, strength: f32) -> Result<(), HookError> {
        self.change_cap(cap, |table, index| table.set_strength(index, strength))
    }

    fn change_cap(
        &mut self,
        cap: usize,
        change: impl FnOnce(&mut CapTable, usize) -> axiscap::Result<()>,
    ) -> Result<(), HookError> {
        let place = self.blocks.iter().enumerate().find_map(|(block, caps)| {
            let index = caps.indices.iter().position(|&index| index == cap)?;
            Some((block, index))
        });
        let (block, index) = place.ok_or(axiscap::Error::NoSuchCap { index: cap, caps: self.cap_count })?;
        change(&mut Arc::make_mut(&mut self.blocks)[block].table, index)?;
        self.revision += 1;
        Ok(())
    }

    /// The blocks to look for in a graph, or `None` when the graph can run untouched.
    pub(crate) fn wanted(&self, width: usize) -> Option<Wanted<'_>> {
        let active = self.settings.enabled && self.wanted.contains(&true);
        active.then_some(Wanted { names: self.names, width, blocks: &self.wanted })
    }

    /// By block, whether it is capped or tapped.
    pub(crate) fn wanted_blocks(&self) -> &[bool] {
        &self.wanted
    }

    /// Whether statistics or traces are kept.
    pub(crate) fn records(&self) -> bool {
        self.settings.statistics || self.settings.tracing
    }

    pub(crate) fn caps_of(&self, block: usize) -> Option<&BlockCaps> {
        self.blocks.iter().find(|caps| caps.block == block)
    }

    pub(crate) fn tap_of(&self, block: usize) -> Option<&Tap> {
        self.tap.as_ref().filter(|tap| tap.blocks.contains(&block))
    }

    /// Caps of the whole set.
    pub(crate) fn cap_count(&self) -> usize {
        self.cap_count
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }
}

impl ModelShape {
    /// Returns the names of this model's block outputs.
    ///
    /// # Errors
    /// [`HookError::Architecture`] when its block outputs cannot be capped.
    #[doc(hidden)]
    pub fn block_names(&self) -> Result<BlockNames, HookError> {
        block_names(self)
    }
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Cap};

    use super::*;

    #[test]
    fn only_a_changed_cap_copies_the_tables() {
        let model = ModelShape { architecture: "llama".into(), blocks: 2, width: 2 };
        let axis = Axis::from_direction(&[1.0, 2.0]).unwrap();
        let at = |block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) };
        let mut before = Config::new(2);
        before.set_caps(Some(&CapSet::new([at(0), at(1)]).unwrap()), &model).unwrap();
        let mut after = before.clone();
        after.settings.enabled = false;
        assert!(Arc::ptr_eq(&before.blocks, &after.blocks));
        assert_eq!(before.revision(), after.revision());
        after.set_strength(1, 0.5).unwrap();
        assert!(!Arc::ptr_eq(&before.blocks, &after.blocks));
        assert_ne!(before.revision(), after.revision());
        assert_eq!(before.caps_of(1).unwrap().table.params()[0].strength, 1.0);
        assert_eq!(after.caps_of(1).unwrap().table.params()[0].strength, 0.5);
        assert_eq!(before.generation(), after.generation());
    }
}
