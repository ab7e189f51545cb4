//! Configuration of a session: the caller's settings, its caps and its tap.

use std::sync::Arc;

use axiscap::{BlockCap, Cap, CapSet};

use crate::error::HookError;
use crate::graph::find::Wanted;
use crate::host::architecture::{BlockNames, ModelShape, block_names};
use crate::profile::{BlockCaps, DEFAULT_NAME, Profile, ProfileId, Profiles, RowProfiles};
use crate::route::choice::RouteChoice;
use crate::tally::Tally;
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

/// The immutable configuration that one decode works with.
///
/// A clone is cheap. The tables are shared, and only [`Config::change_cap`] copies them.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    profiles: Arc<Profiles>,
    blocks: Arc<[BlockCaps]>,
    tap: Option<Tap>,
    /// By block, whether it is capped or tapped.
    wanted: Arc<[bool]>,
    /// The names of block outputs, once a block was wanted.
    names: BlockNames,
    /// Number of the next profile.
    next_profile: u32,
    /// Number of times that caps, bounds or strengths were changed.
    revision: u64,
}

impl Config {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            settings: Settings::default(),
            profiles: Arc::default(),
            blocks: Arc::new([]),
            tap: None,
            wanted: vec![false; blocks].into(),
            names: BlockNames::default(),
            next_profile: 1,
            revision: 0,
        }
    }

    /// Replaces the caps of the default profile, or removes it.
    ///
    /// # Errors
    /// [`HookError::Architecture`], and [`HookError::Caps`] when the caps do not fit the model.
    pub(crate) fn set_caps(&mut self, caps: Option<&CapSet>, model: &ModelShape) -> Result<(), HookError> {
        let mut list = self.profiles.list().to_vec();
        list.retain(|profile| profile.id != ProfileId::DEFAULT);
        self.revision += 1;
        if let Some(set) = caps {
            // The first profile of the tables is that of rows without an index.
            list.insert(0, self.checked(ProfileId::DEFAULT, DEFAULT_NAME, set, model)?);
        }
        self.set_profiles(list, model)
    }

    /// Counts the rows of a profile in `tally` as well, until its caps are set again.
    pub(crate) fn count_in(&mut self, id: ProfileId, tally: Option<Arc<Tally>>) {
        let mut list = self.profiles.list().to_vec();
        if let Some(profile) = list.iter_mut().find(|profile| profile.id == id) {
            profile.tally = tally;
        }
        self.profiles = Arc::new(Profiles::new(list));
    }

    /// Adds a profile.
    ///
    /// # Errors
    /// Those of [`Config::set_caps`], [`HookError::ProfileName`].
    pub(crate) fn add_profile(
        &mut self,
        name: &str,
        caps: &CapSet,
        model: &ModelShape,
    ) -> Result<ProfileId, HookError> {
        let taken = self.profiles.list().iter().any(|profile| *profile.name == *name);
        if taken || name == DEFAULT_NAME || name.is_empty() {
            return Err(HookError::ProfileName { name: name.into() });
        }
        let id = ProfileId(self.next_profile);
        self.next_profile += 1;
        self.revision += 1;
        let mut list = self.profiles.list().to_vec();
        list.push(self.checked(id, name, caps, model)?);
        self.set_profiles(list, model)?;
        Ok(id)
    }

    /// Removes a profile.
    ///
    /// # Errors
    /// [`HookError::NoProfile`].
    pub(crate) fn remove_profile(&mut self, id: ProfileId, model: &ModelShape) -> Result<(), HookError> {
        let mut list = self.profiles.list().to_vec();
        let before = list.len();
        list.retain(|profile| profile.id != id);
        if list.len() == before {
            return Err(HookError::NoProfile { profile: id });
        }
        self.revision += 1;
        self.set_profiles(list, model)
    }

    /// Returns a profile whose caps fit the model.
    fn checked(
        &self,
        id: ProfileId,
        name: &str,
        caps: &CapSet,
        model: &ModelShape,
    ) -> Result<Profile, HookError> {
        block_names(model)?;
        caps.check_model(model.width, model.blocks)?;
        let (generation, revision) = (self.revision, self.revision);
        Ok(Profile { id, name: name.into(), caps: Arc::new(caps.clone()), generation, revision, tally: None })
    }

    fn set_profiles(&mut self, list: Vec<Profile>, model: &ModelShape) -> Result<(), HookError> {
        let profiles = Profiles::new(list);
        self.blocks = BlockCaps::of(&profiles)?.into();
        self.profiles = Arc::new(profiles);
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

    /// Changes one cap of a profile in bound and strength.
    ///
    /// # Errors
    /// [`HookError::NoProfile`], [`HookError::Caps`] when there is no such cap, and the error of `change`.
    pub(crate) fn change_cap(
        &mut self,
        id: ProfileId,
        cap: usize,
        change: impl FnOnce(Cap) -> axiscap::Result<Cap>,
    ) -> Result<(), HookError> {
        let mut list = self.profiles.list().to_vec();
        let Some(profile) = list.iter_mut().find(|profile| profile.id == id) else {
            return Err(match id {
                ProfileId::DEFAULT => axiscap::Error::NoSuchCap { index: cap, caps: 0 }.into(),
                _ => HookError::NoProfile { profile: id },
            });
        };
        let caps = profile.caps.with_changed(cap, change)?;
        let BlockCap { block, cap: changed } = &caps.caps()[cap];
        let index = self.profiles.index_of(id).unwrap_or(0);
        let blocks = Arc::make_mut(&mut self.blocks).iter_mut();
        for table in blocks.filter(|caps| caps.block == *block) {
            if let Some(place) = table.place(index, cap) {
                table.table.set_bound(place, changed.bound())?;
                table.table.set_strength(place, changed.strength())?;
            }
        }
        self.revision += 1;
        profile.revision = self.revision;
        profile.caps = Arc::new(caps);
        self.profiles = Arc::new(Profiles::new(list));
        Ok(())
    }

    /// The profiles.
    pub(crate) fn profiles(&self) -> &Profiles {
        &self.profiles
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

    pub(crate) fn tap(&self) -> Option<&Tap> {
        self.tap.as_ref()
    }

    /// Whether each of these rows is under the default profile, capped or left alone by its policy.
    pub(crate) fn is_all_default(&self, rows: &RowProfiles) -> bool {
        let default = |index: u32| {
            self.profiles.slot(index).is_some_and(|(profile, _)| profile.id == ProfileId::DEFAULT)
        };
        match rows {
            RowProfiles::None => false,
            RowProfiles::First(_) => true,
            RowProfiles::Each(micro_batch) => micro_batch.words().all(default),
        }
    }

    /// Number of times that caps, bounds or strengths were changed.
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
    use axiscap::{Axis, Bound};

    use super::*;

    #[test]
    fn only_a_changed_cap_copies_the_tables() {
        let model = ModelShape { architecture: "llama".into(), blocks: 2, width: 2 };
        let axis = Axis::from_direction(&[1.0, 2.0]).unwrap();
        let at = |block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) };
        let mut before = Config::new(2);
        let set = CapSet::new([at(0), at(1)]).unwrap();
        before.set_caps(Some(&set), &model).unwrap();
        let mut after = before.clone();
        after.settings.enabled = false;
        assert!(Arc::ptr_eq(&before.blocks, &after.blocks));
        assert_eq!(before.revision(), after.revision());
        after.change_cap(ProfileId::DEFAULT, 1, |cap| cap.with_strength(0.5)).unwrap();
        assert!(!Arc::ptr_eq(&before.blocks, &after.blocks));
        assert_ne!(before.revision(), after.revision());
        assert_eq!(before.caps_of(1).unwrap().table.params()[0].strength, 1.0);
        assert_eq!(after.caps_of(1).unwrap().table.params()[0].strength, 0.5);
        let profiles = [&before, &after].map(|config| config.profiles().list()[0].clone());
        assert_eq!(profiles[0].generation, profiles[1].generation);
        assert_ne!(profiles[0].revision, profiles[1].revision);
        // A table that is made again, for another profile, holds the changed cap.
        after.add_profile("other", &set, &model).unwrap();
        let strengths: Vec<_> =
            after.caps_of(1).unwrap().table.params().iter().map(|params| params.strength).collect();
        assert_eq!(strengths, [0.5, 1.0]);
    }
}
