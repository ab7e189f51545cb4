//! Profiles: the named cap sets of a session, and which of them each row of a decode is under.

use std::fmt;
use std::sync::Arc;

use axiscap::{CapSet, CapTable, Policy};

use crate::error::HookError;
use crate::tally::Tally;

/// Names a profile of one session. The number of a removed profile is not given to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileId(pub(crate) u32);

impl ProfileId {
    /// The profile of [`Session::set_caps`](crate::Session::set_caps). Rows are under it unless another one
    /// is given.
    pub const DEFAULT: Self = Self(0);
}

impl fmt::Display for ProfileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Describes a profile of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProfileInfo {
    /// Its id.
    pub id: ProfileId,
    /// Its name.
    pub name: String,
    /// Its policy.
    pub policy: Policy,
    /// Whether any of its caps can move a row: one with a bound and a strength above 0.
    pub acts: bool,
    /// A number that changes whenever caps, bounds, strengths or the policy of the profile change, and that
    /// no other profile of the session has. Rows that were computed under equal revisions were capped alike.
    pub revision: u64,
}

impl ProfileInfo {
    /// Whether the policy leaves the row at a position alone.
    #[must_use]
    pub fn skips(&self, position: i32) -> bool {
        is_skipped(self.policy, position)
    }
}

/// The name of [`ProfileId::DEFAULT`].
pub(crate) const DEFAULT_NAME: &str = "default";

/// One row of a decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeRow {
    /// The token, as the graph is given it.
    pub token: i32,
    /// The position in its sequence.
    pub position: i32,
    /// The profile. `None` leaves the row uncapped.
    pub profile: Option<ProfileId>,
    /// Whether its logits are wanted. The last block computes only such rows.
    pub output: bool,
}

/// A decode that is about to run.
#[derive(Debug, Clone, Copy)]
pub struct Decoding<'a> {
    /// Its number, which traces show ([`BlockTrace::decode`](crate::BlockTrace::decode)).
    pub number: u64,
    /// The profiles that rows are computed under. Empty while caps are switched off.
    pub profiles: &'a [ProfileInfo],
}

/// The rows of a decode, in the order in which llama.cpp computes them.
#[derive(Debug, Clone, Copy)]
pub struct DecodeBatch<'a> {
    /// The rows in the order of the batch.
    pub rows: &'a [DecodeRow],
    /// The micro-batches that llama.cpp makes of the batch, as indices of its rows. The hook compares them
    /// with the tokens and positions that the graphs are given.
    pub micro_batches: &'a [Vec<usize>],
}

/// A profile of a configuration.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) id: ProfileId,
    pub(crate) name: Arc<str>,
    pub(crate) caps: Arc<CapSet>,
    /// Number of the last change of the caps. Statistics belong to the caps of one generation.
    pub(crate) generation: u64,
    /// Number of the last change of any kind.
    pub(crate) revision: u64,
    /// Where the rows are counted beside the statistics of the session.
    pub(crate) tally: Option<Arc<Tally>>,
}

impl Profile {
    pub(crate) fn info(&self) -> ProfileInfo {
        let Self { id, ref name, ref caps, revision, .. } = *self;
        let acts = caps.caps().iter().any(|entry| !entry.cap.bound().is_none() && entry.cap.strength() > 0.0);
        ProfileInfo { id, name: name.to_string(), policy: caps.policy(), acts, revision }
    }
}

/// What a profile index in the tables stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Index of the profile in the configuration.
    pub(crate) profile: usize,
    /// Whether its rows are left alone. Their projections are measured under infinite bounds.
    pub(crate) skipped: bool,
}

/// The profiles of a configuration, and what the indices of the tables stand for. Index 0 has no caps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Profiles {
    list: Vec<Profile>,
    /// By index in the tables, from 1 on. The same in the tables of all blocks.
    slots: Vec<Slot>,
}

impl Profiles {
    pub(crate) fn new(list: Vec<Profile>) -> Self {
        let mut slots = Vec::new();
        for (profile, entry) in list.iter().enumerate() {
            slots.push(Slot { profile, skipped: false });
            if entry.caps.policy().skip_positions > 0 {
                slots.push(Slot { profile, skipped: true });
            }
        }
        Self { list, slots }
    }

    pub(crate) fn list(&self) -> &[Profile] {
        &self.list
    }

    pub(crate) fn get(&self, id: ProfileId) -> Option<&Profile> {
        self.list.iter().find(|profile| profile.id == id)
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Returns what an index of the tables stands for. `None` for index 0.
    pub(crate) fn slot(&self, index: u32) -> Option<(&Profile, Slot)> {
        let slot = *self.slots.get((index as usize).checked_sub(1)?)?;
        Some((&self.list[slot.profile], slot))
    }

    /// Returns the index in the tables of a profile's caps.
    pub(crate) fn index_of(&self, id: ProfileId) -> Option<u32> {
        self.slots
            .iter()
            .zip(1..)
            .find_map(|(slot, index)| (!slot.skipped && self.list[slot.profile].id == id).then_some(index))
    }

    /// Whether every row is under the default profile and none is left alone, so that a table's first
    /// profile is that of every row.
    pub(crate) fn is_one_plain(&self) -> bool {
        matches!(&self.list[..], [only] if only.id == ProfileId::DEFAULT && only.caps.policy().skip_positions == 0)
    }

    /// Returns the index in the tables of a row.
    ///
    /// # Errors
    /// [`HookError::NoProfile`].
    pub(crate) fn index_of_row(&self, row: &DecodeRow) -> Result<u32, HookError> {
        let Some(id) = row.profile else { return Ok(0) };
        let profile = match self.get(id) {
            Some(profile) => profile,
            // A session without caps leaves rows under the default profile as they are.
            None if id == ProfileId::DEFAULT => return Ok(0),
            None => return Err(HookError::NoProfile { profile: id }),
        };
        let index = self.index_of(id).unwrap_or(0);
        // The slot of rows that are left alone follows that of the caps.
        Ok(index + u32::from(is_skipped(profile.caps.policy(), row.position)))
    }
}

/// Whether a policy leaves the row at a position alone.
pub(crate) fn is_skipped(policy: Policy, position: i32) -> bool {
    u32::try_from(position).is_ok_and(|position| position < policy.skip_positions)
}

/// The rows of one micro-batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MicroBatch {
    /// Number of the decode.
    pub(crate) decode: u64,
    all: RowList,
    /// The rows with logits.
    outputs: RowList,
}

/// Rows in the order of computation.
#[derive(Debug, PartialEq, Eq)]
struct RowList {
    /// Their profiles, as indices in the tables.
    profiles: Box<[u32]>,
    /// Their indices in the batch.
    indices: Box<[usize]>,
}

impl RowList {
    fn of(rows: impl Iterator<Item = (u32, usize)>) -> Self {
        let (profiles, indices): (Vec<_>, Vec<_>) = rows.unzip();
        Self { profiles: profiles.into(), indices: indices.into() }
    }
}

impl MicroBatch {
    /// Takes rows in the order of computation: profile as index in the tables, index in the batch, and whether
    /// the row has logits.
    pub(crate) fn new(decode: u64, rows: &[(u32, usize, bool)]) -> Self {
        let with = |wanted: fn(bool) -> bool| {
            let rows = rows.iter().filter(move |&&(.., output)| wanted(output));
            RowList::of(rows.map(|&(profile, index, _)| (profile, index)))
        };
        Self { decode, all: with(|_| true), outputs: with(|output| output) }
    }

    /// Returns the rows of a block output of so many, and where their profiles begin in
    /// [`MicroBatch::words`].
    fn list(&self, rows: usize) -> Option<(usize, &RowList)> {
        let all = self.all.profiles.len();
        if rows == all {
            Some((0, &self.all))
        } else if rows == self.outputs.profiles.len() {
            Some((all, &self.outputs))
        } else {
            None
        }
    }

    /// Returns the profiles of a block output of so many rows, and where they begin in
    /// [`MicroBatch::words`].
    pub(crate) fn of(&self, rows: usize) -> Option<(usize, &[u32])> {
        self.list(rows).map(|(first, list)| (first, &*list.profiles))
    }

    /// Whether every row has this profile.
    pub(crate) fn is_all(&self, profile: u32) -> bool {
        self.all.profiles.iter().all(|&own| own == profile)
    }

    /// Returns the profiles of all rows, then those of the rows with logits.
    pub(crate) fn words(&self) -> impl Iterator<Item = u32> {
        self.all.profiles.iter().chain(&self.outputs.profiles).copied()
    }
}

/// The profiles of the rows of one graph. The micro-batch is there if it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RowProfiles {
    /// No row has a profile.
    None,
    /// Every row has the first profile of the tables, the default one.
    First(Option<Arc<MicroBatch>>),
    /// Each row has its own.
    Each(Arc<MicroBatch>),
}

impl RowProfiles {
    /// Returns the micro-batch.
    pub(crate) fn micro_batch(&self) -> Option<&MicroBatch> {
        match self {
            Self::None => None,
            Self::First(micro_batch) => micro_batch.as_deref(),
            Self::Each(micro_batch) => Some(micro_batch),
        }
    }

    /// Returns the list of one profile per row, where there is one.
    pub(crate) fn each(&self) -> Option<&MicroBatch> {
        match self {
            Self::Each(micro_batch) => Some(micro_batch),
            Self::None | Self::First(_) => None,
        }
    }

    /// Returns the profile, as index in the tables, of a row of a block output of so many.
    pub(crate) fn profile(&self, rows: usize, row: usize) -> u32 {
        match self {
            Self::None => 0,
            Self::First(_) => 1,
            Self::Each(micro_batch) => micro_batch.of(rows).map_or(0, |(_, profiles)| profiles[row]),
        }
    }

    /// Returns the index in the batch of a row of a block output of so many, if it is known.
    pub(crate) fn batch_row(&self, rows: usize, row: usize) -> Option<usize> {
        let (_, list) = self.micro_batch()?.list(rows)?;
        Some(list.indices[row])
    }
}

/// The caps of one block.
#[derive(Debug, Clone)]
pub(crate) struct BlockCaps {
    pub(crate) block: usize,
    /// By index in the table: the caps as indices in their profile's set, in order of application.
    columns: Vec<Vec<usize>>,
    pub(crate) table: CapTable,
}

impl BlockCaps {
    /// Makes the table of each block that a profile caps, in ascending order.
    ///
    /// # Errors
    /// Those of [`CapTable::with_profiles`].
    pub(crate) fn of(profiles: &Profiles) -> Result<Vec<Self>, HookError> {
        let mut blocks: Vec<usize> =
            profiles.list.iter().flat_map(|profile| profile.caps.blocks().into_keys()).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.into_iter().map(|block| Self::new(block, profiles)).collect()
    }

    fn new(block: usize, profiles: &Profiles) -> Result<Self, HookError> {
        let (mut columns, mut caps) = (vec![Vec::new()], Vec::new());
        for slot in &profiles.slots {
            let set = &profiles.list[slot.profile].caps;
            let entries = set.caps().iter().enumerate().filter(|(_, entry)| entry.block == block);
            let (indices, own): (Vec<_>, Vec<_>) = entries
                .map(|(index, entry)| {
                    let cap = entry.cap.clone();
                    (index, if slot.skipped { cap.with_bound(axiscap::Bound::NONE) } else { cap })
                })
                .unzip();
            columns.push(indices);
            caps.push(own);
        }
        let caps: Vec<Vec<&axiscap::Cap>> = caps.iter().map(|own| own.iter().collect()).collect();
        let caps: Vec<&[&axiscap::Cap]> = caps.iter().map(Vec::as_slice).collect();
        Ok(Self { block, columns, table: CapTable::with_profiles(&caps)? })
    }

    /// Returns the statistics that each row has in the table's passes. Rows with fewer caps leave the rest
    /// as they are by default.
    pub(crate) fn depth(&self) -> usize {
        self.table.max_caps_per_row()
    }

    /// Returns the caps of an index in the table, as indices in their profile's set.
    pub(crate) fn caps_of(&self, index: u32) -> &[usize] {
        self.columns.get(index as usize).map_or(&[], Vec::as_slice)
    }

    /// Returns the place in the table of a cap of the profile at `index`.
    pub(crate) fn place(&self, index: u32, cap: usize) -> Option<usize> {
        let within = self.caps_of(index).iter().position(|&own| own == cap)?;
        Some(self.table.profile(index)?.start + within)
    }
}
