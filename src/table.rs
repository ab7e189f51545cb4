//! The caps of one block as the kernels read them: axes, bounds and profiles in flat memory.

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

/// The caps of one block, flat: what [`cpu`](crate::cpu) runs on and what is uploaded to a GPU.
///
/// A *profile* is an ordered run of caps. Profile 0 is empty; a row that names no profile uses profile 1. One
/// batch can so serve rows under different policies.
#[derive(Debug, Clone, PartialEq)]
pub struct CapTable {
    width: usize,
    /// `[caps][width]`, row after row without padding.
    axes: AlignedF32,
    params: Vec<CapParams>,
    /// `profiles[p]..profiles[p + 1]` are the caps of profile `p + 1`.
    profiles: Vec<u32>,
}

impl CapTable {
    /// Most caps of one table, and most profiles. Each cap has an axis of its own there, `width * 4` bytes, also where
    /// the caps share one elsewhere.
    pub const MOST_CAPS: usize = 1 << 16;

    /// A table with one profile: these caps, in this order, for every row.
    ///
    /// # Errors
    /// [`Error::EmptySet`], [`Error::Width`], [`Error::TooMany`].
    pub fn new<'a>(caps: impl IntoIterator<Item = &'a Cap>) -> Result<Self> {
        let caps: Vec<&Cap> = caps.into_iter().collect();
        Self::with_profiles(&[&caps])
    }

    /// A table with profiles 1, 2, ... as given; profile 0 is always there and empty.
    ///
    /// # Errors
    /// [`Error::EmptySet`] when no profile holds a cap, [`Error::Width`], [`Error::TooMany`].
    pub fn with_profiles(profiles: &[&[&Cap]]) -> Result<Self> {
        let caps: Vec<&Cap> = profiles.iter().flat_map(|p| p.iter().copied()).collect();
        let width = caps.first().ok_or(Error::EmptySet)?.axis().width();
        if caps.len() > Self::MOST_CAPS {
            return Err(Error::TooMany { what: "caps", found: caps.len(), most: Self::MOST_CAPS });
        }
        if profiles.len() > Self::MOST_CAPS {
            return Err(Error::TooMany { what: "profiles", found: profiles.len(), most: Self::MOST_CAPS });
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
        Ok(Self { width, axes, params: caps.into_iter().map(CapParams::from).collect(), profiles: ends })
    }

    /// Width of the rows this table caps.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of caps, over all profiles.
    #[must_use]
    pub fn caps(&self) -> usize {
        self.params.len()
    }

    /// Number of profiles, the empty profile 0 included.
    #[must_use]
    pub fn profiles(&self) -> usize {
        self.profiles.len()
    }

    /// The caps of a profile as a range of indices; empty for profile 0, `None` where there is no such profile.
    #[must_use]
    pub fn profile(&self, profile: u32) -> Option<Range<usize>> {
        match profile.checked_sub(1) {
            None => Some(0..0),
            Some(p) => {
                let ends = self.profiles.get(p as usize..p as usize + 2)?;
                Some(ends[0] as usize..ends[1] as usize)
            }
        }
    }

    /// The most caps any profile applies to a row.
    #[must_use]
    pub fn deepest_profile(&self) -> usize {
        self.profiles.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0)
    }

    /// All axes, `[caps][width]`.
    #[must_use]
    pub fn axes(&self) -> &[f32] {
        &self.axes
    }

    /// The axis of one cap.
    ///
    /// # Panics
    /// When there is no such cap.
    #[must_use]
    pub fn axis(&self, cap: usize) -> &[f32] {
        &self.axes[cap * self.width..][..self.width]
    }

    /// Bounds and strength of every cap.
    #[must_use]
    pub fn params(&self) -> &[CapParams] {
        &self.params
    }

    /// Profile boundaries as the kernels read them: profile `p >= 1` is `[p - 1]..[p]`.
    #[must_use]
    pub fn profile_ends(&self) -> &[u32] {
        &self.profiles
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
    fn profiles_are_runs_of_caps() {
        let cap = |x: f32| Cap::new(Axis::from_direction(&[x, 1.0]).unwrap(), Bound::floor(x).unwrap());
        let (a, b, c) = (cap(1.0), cap(2.0), cap(3.0));
        let mut table = CapTable::with_profiles(&[&[&a], &[], &[&b, &c]]).unwrap();
        assert_eq!(table.profiles(), 4);
        let ranges: Vec<_> = (0..5).map(|p| table.profile(p)).collect();
        assert_eq!(ranges, [Some(0..0), Some(0..1), Some(1..1), Some(1..3), None]);
        assert_eq!(table.profile(u32::MAX), None);
        assert_eq!(table.deepest_profile(), 2);
        assert_eq!(table.axis(2), c.axis().values());
        table.set_bound(2, Bound::NONE).unwrap();
        table.set_strength(2, 0.5).unwrap();
        assert_eq!(table.params()[2], CapParams { lo: f32::NEG_INFINITY, hi: f32::INFINITY, strength: 0.5 });
        assert_eq!(table.set_bound(3, Bound::NONE), Err(Error::NoSuchCap { index: 3, caps: 3 }));
        assert_eq!(CapTable::with_profiles(&[&[]]), Err(Error::EmptySet));
    }

    #[test]
    fn a_table_holds_so_many_caps_and_profiles_and_no_more() {
        let most = CapTable::MOST_CAPS;
        let cap = Cap::new(Axis::from_direction(&[1.0]).unwrap(), Bound::NONE);
        let caps = vec![&cap; most + 1];
        assert_eq!(CapTable::with_profiles(&[&caps[1..]]).unwrap().caps(), most);
        let refused = |what| Err(Error::TooMany { what, found: most + 1, most });
        assert_eq!(CapTable::with_profiles(&[&caps]), refused("caps"));
        assert_eq!(CapTable::with_profiles(&[&caps[..1], &caps[1..]]), refused("caps"));
        let mut profiles = vec![&caps[..0]; most + 1];
        profiles[7] = &caps[..1];
        assert_eq!(CapTable::with_profiles(&profiles[1..]).unwrap().profiles(), most + 1);
        assert_eq!(CapTable::with_profiles(&profiles), refused("profiles"));
    }
}
