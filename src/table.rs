//! The caps of one block as the kernels read them: axes, bounds and profiles in contiguous memory.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::aligned::AlignedF32;
use crate::cap::{Bound, Cap, checked_strength};
use crate::error::{Error, Result};

/// Bounds and strength of one cap as the kernels read them.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct CapParams {
    /// Lower bound, -inf if there is none.
    pub lo: f32,
    /// Upper bound, +inf if there is none.
    pub hi: f32,
    /// Strength in `[0, 1]`.
    pub strength: f32,
}

impl From<&Cap> for CapParams {
    fn from(cap: &Cap) -> Self {
        Self { lo: cap.bound().lo(), hi: cap.bound().hi(), strength: cap.strength() }
    }
}

/// The caps of one block in contiguous memory, for [`cpu`](crate::cpu) and for the upload to a GPU.
///
/// A *profile* is a set of successive caps that is applied to a row, in order. Profile 0 is empty, and a row
/// without a profile index has profile 1. One batch can so hold rows under different policies.
#[derive(Debug, Clone, PartialEq)]
pub struct CapTable {
    width: usize,
    /// `[caps][width]`, without padding.
    axes: AlignedF32,
    params: Vec<CapParams>,
    /// `profile_ends[p]..profile_ends[p + 1]` are the caps of profile `p + 1`.
    profile_ends: Vec<u32>,
}

impl CapTable {
    /// Maximum number of caps of a table, and of its profiles without profile 0. Each cap has its own copy of
    /// its axis in the table, `width * 4` bytes.
    pub const MAX_CAPS: usize = 1 << 16;

    /// Makes a table with one profile: these caps, in this order, for every row.
    ///
    /// # Errors
    /// [`Error::EmptySet`], [`Error::Width`], [`Error::TooMany`].
    pub fn new<'a>(caps: impl IntoIterator<Item = &'a Cap>) -> Result<Self> {
        let caps: Vec<&Cap> = caps.into_iter().collect();
        Self::with_profiles(&[&caps])
    }

    /// Makes a table with profiles 1, 2, ... as given, after the empty profile 0.
    ///
    /// # Errors
    /// [`Error::EmptySet`] when no profile holds a cap, [`Error::Width`], [`Error::TooMany`].
    pub fn with_profiles(profiles: &[&[&Cap]]) -> Result<Self> {
        let caps: Vec<&Cap> = profiles.iter().flat_map(|p| p.iter().copied()).collect();
        let width = caps.first().ok_or(Error::EmptySet)?.axis().width();
        if caps.len() > Self::MAX_CAPS {
            return Err(Error::TooMany { what: "caps", found: caps.len(), max: Self::MAX_CAPS });
        }
        if profiles.len() > Self::MAX_CAPS {
            return Err(Error::TooMany { what: "profiles", found: profiles.len(), max: Self::MAX_CAPS });
        }
        for (index, cap) in caps.iter().enumerate() {
            if cap.axis().width() != width {
                return Err(Error::Width {
                    what: format!("cap {index}"),
                    found: cap.axis().width(),
                    against: "cap 0",
                    expected: width,
                });
            }
        }
        let axes = AlignedF32::concat(caps.iter().map(|cap| cap.axis().values()));
        let mut ends = vec![0];
        for profile in profiles {
            ends.push(ends[ends.len() - 1] + profile.len() as u32);
        }
        Ok(Self { width, axes, params: caps.into_iter().map(CapParams::from).collect(), profile_ends: ends })
    }

    /// Returns the width of the rows that this table caps.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the number of caps, over all profiles.
    #[must_use]
    pub fn cap_count(&self) -> usize {
        self.params.len()
    }

    /// Returns the number of profiles, including the empty profile 0.
    #[must_use]
    pub fn profile_count(&self) -> usize {
        self.profile_ends.len()
    }

    /// Returns the caps of a profile as a range of indices. The range is empty for profile 0, and `None` for
    /// a profile that does not exist.
    #[must_use]
    pub fn profile(&self, profile: u32) -> Option<Range<usize>> {
        match profile.checked_sub(1) {
            None => Some(0..0),
            Some(p) => {
                let ends = self.profile_ends.get(p as usize..p as usize + 2)?;
                Some(ends[0] as usize..ends[1] as usize)
            }
        }
    }

    /// Returns the number of caps of the longest profile. Statistics have that many entries per row.
    #[must_use]
    pub fn max_caps_per_row(&self) -> usize {
        self.profile_ends.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0)
    }

    /// Returns all axes, `[caps][width]`.
    #[must_use]
    pub fn axes(&self) -> &[f32] {
        &self.axes
    }

    /// Returns the axis of one cap.
    ///
    /// # Panics
    /// If there is no such cap.
    #[must_use]
    pub fn axis(&self, cap: usize) -> &[f32] {
        &self.axes[cap * self.width..][..self.width]
    }

    /// Returns bounds and strength of every cap.
    #[must_use]
    pub fn params(&self) -> &[CapParams] {
        &self.params
    }

    /// Returns the profile boundaries as the kernels read them: profile `p >= 1` is `[p - 1]..[p]`.
    #[must_use]
    pub fn profile_ends(&self) -> &[u32] {
        &self.profile_ends
    }

    /// Changes the bound of one cap.
    ///
    /// # Errors
    /// [`Error::NoSuchCap`].
    pub fn set_bound(&mut self, cap: usize, bound: Bound) -> Result<()> {
        let params = self.params_mut(cap)?;
        (params.lo, params.hi) = (bound.lo(), bound.hi());
        Ok(())
    }

    /// Changes the strength of one cap.
    ///
    /// # Errors
    /// [`Error::NoSuchCap`], [`Error::Strength`].
    pub fn set_strength(&mut self, cap: usize, strength: f32) -> Result<()> {
        self.params_mut(cap)?.strength = checked_strength(strength)?;
        Ok(())
    }

    fn params_mut(&mut self, cap: usize) -> Result<&mut CapParams> {
        let caps = self.params.len();
        self.params.get_mut(cap).ok_or(Error::NoSuchCap { index: cap, caps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axis::Axis;

    #[test]
    fn a_profile_is_a_range_of_successive_caps() {
        let cap = |x: f32| Cap::new(Axis::from_direction(&[x, 1.0]).unwrap(), Bound::floor(x).unwrap());
        let (a, b, c) = (cap(1.0), cap(2.0), cap(3.0));
        let mut table = CapTable::with_profiles(&[&[&a], &[], &[&b, &c]]).unwrap();
        assert_eq!(table.profile_count(), 4);
        let ranges: Vec<_> = (0..5).map(|p| table.profile(p)).collect();
        assert_eq!(ranges, [Some(0..0), Some(0..1), Some(1..1), Some(1..3), None]);
        assert_eq!(table.profile(u32::MAX), None);
        assert_eq!(table.max_caps_per_row(), 2);
        assert_eq!(table.axis(2), c.axis().values());
        table.set_bound(2, Bound::NONE).unwrap();
        table.set_strength(2, 0.5).unwrap();
        assert_eq!(table.params()[2], CapParams { lo: f32::NEG_INFINITY, hi: f32::INFINITY, strength: 0.5 });
        assert_eq!(table.set_bound(3, Bound::NONE), Err(Error::NoSuchCap { index: 3, caps: 3 }));
        assert_eq!(CapTable::with_profiles(&[&[]]), Err(Error::EmptySet));
    }

    #[test]
    fn more_caps_or_profiles_than_the_maximum_are_refused() {
        let max = CapTable::MAX_CAPS;
        let cap = Cap::new(Axis::from_direction(&[1.0]).unwrap(), Bound::NONE);
        let caps = vec![&cap; max + 1];
        assert_eq!(CapTable::with_profiles(&[&caps[1..]]).unwrap().cap_count(), max);
        let refused = |what| Err(Error::TooMany { what, found: max + 1, max });
        assert_eq!(CapTable::with_profiles(&[&caps]), refused("caps"));
        assert_eq!(CapTable::with_profiles(&[&caps[..1], &caps[1..]]), refused("caps"));
        let mut profiles = vec![&caps[..0]; max + 1];
        profiles[7] = &caps[..1];
        assert_eq!(CapTable::with_profiles(&profiles[1..]).unwrap().profile_count(), max + 1);
        assert_eq!(CapTable::with_profiles(&profiles), refused("profiles"));
    }
}
