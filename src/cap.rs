//! A cap: an axis, the bounds of the projection on it, and the strength.

use std::collections::BTreeMap;
use std::fmt;

use crate::axis::Axis;
use crate::error::{Error, Result};
use crate::policy::Policy;

/// The interval that a projection is held in: a floor, a ceiling, or a band.
///
/// Either side may be infinite. Thresholds are meant for the *unit* axis, in units of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    lo: f32,
    hi: f32,
}

impl Bound {
    /// No bound. Every projection is inside, so the cap only observes.
    pub const NONE: Self = Self { lo: f32::NEG_INFINITY, hi: f32::INFINITY };

    /// Makes a bound that leaves projections in `[lo, hi]` and moves others to the nearer end.
    ///
    /// # Errors
    /// [`Error::NanBound`]; [`Error::EmptyBound`] when `lo > hi`, `lo` is +inf or `hi` is -inf.
    pub fn band(lo: f32, hi: f32) -> Result<Self> {
        if lo.is_nan() || hi.is_nan() {
            return Err(Error::NanBound { which: if lo.is_nan() { "lower" } else { "upper" } });
        }
        if lo > hi || lo == f32::INFINITY || hi == f32::NEG_INFINITY {
            return Err(Error::EmptyBound { lo, hi });
        }
        Ok(Self { lo, hi })
    }

    /// Makes a lower bound alone, the form in which the Assistant axis (positive = more Assistant) is capped.
    ///
    /// # Errors
    /// Those of [`Bound::band`].
    pub fn floor(lo: f32) -> Result<Self> {
        Self::band(lo, f32::INFINITY)
    }

    /// Makes an upper bound alone.
    ///
    /// # Errors
    /// Those of [`Bound::band`].
    pub fn ceiling(hi: f32) -> Result<Self> {
        Self::band(f32::NEG_INFINITY, hi)
    }

    /// Returns the lower bound, -inf if there is none.
    #[must_use]
    pub fn lo(&self) -> f32 {
        self.lo
    }

    /// Returns the upper bound, +inf if there is none.
    #[must_use]
    pub fn hi(&self) -> f32 {
        self.hi
    }

    /// Whether both sides are infinite.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// Returns the bound of the same cap on the negated axis: `(lo, hi)` becomes `(-hi, -lo)`.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self { lo: -self.hi, hi: -self.lo }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.lo.is_finite(), self.hi.is_finite()) {
            (true, true) => write!(f, "[{}, {}]", self.lo, self.hi),
            (true, false) => write!(f, ">= {}", self.lo),
            (false, true) => write!(f, "<= {}", self.hi),
            (false, false) => write!(f, "unbounded"),
        }
    }
}

/// One cap: the projection on an axis is held within a bound.
///
/// For a row `h` of the residual stream: `p = <h, v>`, `c = clamp(p, lo, hi)`, and if `c != p`,
/// `h += strength * (c - p) * v` (The Assistant Axis, arXiv 2601.10387, activation capping).
#[derive(Debug, Clone, PartialEq)]
pub struct Cap {
    axis: Axis,
    bound: Bound,
    strength: f32,
    name: Option<String>,
}

impl Cap {
    /// Makes a cap of strength 1 without a name.
    #[must_use]
    pub fn new(axis: Axis, bound: Bound) -> Self {
        Self { axis, bound, strength: 1.0, name: None }
    }

    /// Returns the same cap with another strength. 1 moves the projection onto the bound, 0 only observes.
    ///
    /// # Errors
    /// [`Error::Strength`] outside `[0, 1]`.
    pub fn with_strength(self, strength: f32) -> Result<Self> {
        Ok(Self { strength: checked_strength(strength)?, ..self })
    }

    /// Returns the same cap with another bound.
    #[must_use]
    pub fn with_bound(self, bound: Bound) -> Self {
        Self { bound, ..self }
    }

    /// Returns the same cap with a name, e.g. `assistant`. An empty name is no name, as in a cap file.
    #[must_use]
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()).filter(|name| !name.is_empty()), ..self }
    }

    /// Returns the axis.
    #[must_use]
    pub fn axis(&self) -> &Axis {
        &self.axis
    }

    /// Returns the bound.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// Returns the strength, in `[0, 1]`.
    #[must_use]
    pub fn strength(&self) -> f32 {
        self.strength
    }

    /// Returns the name, if the cap has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the same operation on the opposite axis, with mirrored bounds. The released
    /// `capping_config.pt` files are written that way.
    #[must_use]
    pub fn negated(&self) -> Self {
        Self { axis: self.axis.negated(), bound: self.bound.mirrored(), ..self.clone() }
    }
}

/// Checks a strength.
///
/// # Errors
/// [`Error::Strength`] outside `[0, 1]`.
pub(crate) fn checked_strength(strength: f32) -> Result<f32> {
    if (0.0..=1.0).contains(&strength) { Ok(strength) } else { Err(Error::Strength(strength)) }
}

/// A cap and the block whose output it caps.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockCap {
    /// The 0-based block. Hugging Face's layer L is llama.cpp's block L, with the node `l_out-L`.
    pub block: usize,
    /// The cap.
    pub cap: Cap,
}

/// All caps of a model, in the order of a cap file, and the rows that they leave alone. Caps on the same
/// block are applied in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct CapSet {
    width: usize,
    caps: Vec<BlockCap>,
    policy: Policy,
}

impl CapSet {
    /// Makes a set from at least one cap, for every row. All caps must have one width.
    ///
    /// # Errors
    /// [`Error::EmptySet`], [`Error::Width`].
    pub fn new(caps: impl IntoIterator<Item = BlockCap>) -> Result<Self> {
        let caps: Vec<_> = caps.into_iter().collect();
        let width = caps.first().ok_or(Error::EmptySet)?.cap.axis.width();
        for (index, entry) in caps.iter().enumerate() {
            let found = entry.cap.axis.width();
            if found != width {
                return Err(Error::Width {
                    what: format!("cap {index}"),
                    found,
                    against: "cap 0",
                    expected: width,
                });
            }
        }
        Ok(Self { width, caps, policy: Policy::default() })
    }

    /// Returns the same set under another policy.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Returns the policy: the rows that the caps leave alone.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Checks the set against a model: its width (`n_embd`), and that it has the capped blocks.
    ///
    /// # Errors
    /// [`Error::Width`], [`Error::Block`].
    pub fn check_model(&self, width: usize, blocks: usize) -> Result<()> {
        if self.width != width {
            return Err(Error::Width {
                what: "the set of caps".into(),
                found: self.width,
                against: crate::error::MODEL,
                expected: width,
            });
        }
        match self.caps.iter().enumerate().find(|(_, entry)| entry.block >= blocks) {
            Some((index, entry)) => Err(Error::Block { index, block: entry.block, blocks }),
            None => Ok(()),
        }
    }

    /// Returns the width of every axis.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the caps in order.
    #[must_use]
    pub fn caps(&self) -> &[BlockCap] {
        &self.caps
    }

    /// Returns the capped blocks in ascending order, each with the indices of its caps in order of
    /// application.
    #[must_use]
    pub fn blocks(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut blocks = BTreeMap::<_, Vec<_>>::new();
        for (index, entry) in self.caps.iter().enumerate() {
            blocks.entry(entry.block).or_default().push(index);
        }
        blocks
    }

    /// Returns the same set with the bound that `bound` gives for each cap, e.g. [`Bound::NONE`] to observe
    /// only.
    #[must_use]
    pub fn with_bounds(&self, mut bound: impl FnMut(&Cap) -> Bound) -> Self {
        let mut set = self.clone();
        for BlockCap { cap, .. } in &mut set.caps {
            cap.bound = bound(cap);
        }
        set
    }

    /// Returns the same set with another strength of every cap.
    ///
    /// # Errors
    /// [`Error::Strength`] outside `[0, 1]`.
    pub fn with_strength(&self, strength: f32) -> Result<Self> {
        self.with_each(|cap| cap.with_strength(strength))
    }

    /// Returns the same set with every cap changed, under the same policy.
    ///
    /// # Errors
    /// [`Error::Width`] for axes of different widths, and the error of `change`.
    pub fn with_each(&self, mut change: impl FnMut(Cap) -> Result<Cap>) -> Result<Self> {
        let entries = self.caps.iter().cloned();
        let caps = entries.map(|BlockCap { block, cap }| Ok(BlockCap { block, cap: change(cap)? }));
        Ok(Self::new(caps.collect::<Result<Vec<_>>>()?)?.with_policy(self.policy))
    }

    /// Returns the same set with one cap changed. The changed cap keeps its axis' width.
    ///
    /// # Errors
    /// [`Error::NoSuchCap`], [`Error::Width`], and the error of `change`.
    pub fn with_changed(&self, index: usize, change: impl FnOnce(Cap) -> Result<Cap>) -> Result<Self> {
        let caps = self.caps.len();
        let mut set = self.clone();
        let entry = set.caps.get_mut(index).ok_or(Error::NoSuchCap { index, caps })?;
        entry.cap = change(entry.cap.clone())?;
        Ok(Self::new(set.caps)?.with_policy(self.policy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(width: usize) -> Axis {
        Axis::from_direction(&vec![1.0; width]).unwrap()
    }

    #[test]
    fn bounds_that_no_projection_satisfies_are_refused() {
        assert!(Bound::band(1.0, 1.0).is_ok());
        assert_eq!(Bound::band(2.0, 1.0), Err(Error::EmptyBound { lo: 2.0, hi: 1.0 }));
        assert_eq!(Bound::floor(f32::NAN), Err(Error::NanBound { which: "lower" }));
        assert_eq!(Bound::ceiling(f32::NAN), Err(Error::NanBound { which: "upper" }));
        assert!(matches!(Bound::floor(f32::INFINITY), Err(Error::EmptyBound { .. })));
        assert!(matches!(Bound::ceiling(f32::NEG_INFINITY), Err(Error::EmptyBound { .. })));
        assert!(Bound::floor(f32::NEG_INFINITY).unwrap().is_none());
    }

    #[test]
    fn mirroring_twice_is_the_identity() {
        let bound = Bound::band(-1.5, 4.0).unwrap();
        assert_eq!(bound.mirrored(), Bound::band(-4.0, 1.5).unwrap());
        assert_eq!(bound.mirrored().mirrored(), bound);
        assert_eq!(Bound::floor(2.0).unwrap().mirrored(), Bound::ceiling(-2.0).unwrap());
    }

    #[test]
    fn a_strength_is_between_zero_and_one() {
        let cap = Cap::new(axis(3), Bound::NONE);
        assert!(cap.clone().with_strength(0.0).is_ok());
        for strength in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
            assert!(matches!(cap.clone().with_strength(strength), Err(Error::Strength(_))), "{strength}");
        }
    }

    #[test]
    fn sets_have_one_width_and_fit_their_model() {
        let cap = |block, width| BlockCap { block, cap: Cap::new(axis(width), Bound::NONE) };
        assert_eq!(CapSet::new([]), Err(Error::EmptySet));
        assert!(matches!(
            CapSet::new([cap(0, 4), cap(1, 5)]),
            Err(Error::Width { found: 5, expected: 4, .. })
        ));
        let set = CapSet::new([cap(7, 4), cap(0, 4), cap(7, 4)]).unwrap();
        assert_eq!(set.blocks().into_iter().collect::<Vec<_>>(), [(0, vec![1]), (7, vec![0, 2])]);
        assert!(set.check_model(4, 8).is_ok());
        assert_eq!(set.check_model(4, 7), Err(Error::Block { index: 0, block: 7, blocks: 7 }));
        assert!(matches!(set.check_model(8, 8), Err(Error::Width { found: 4, expected: 8, .. })));
    }

    #[test]
    fn other_bounds_leave_the_rest_of_a_set_as_it_is() {
        let cap = |block, lo| {
            let cap = Cap::new(axis(4), Bound::floor(lo).unwrap()).with_strength(0.5).unwrap();
            BlockCap { block, cap: cap.with_name("assistant") }
        };
        let set = CapSet::new([cap(7, 1.0), cap(0, 2.0)]).unwrap();
        let observing = set.with_bounds(|_| Bound::NONE);
        assert!(observing.caps().iter().all(|entry| entry.cap.bound().is_none()));
        assert_eq!(observing.with_bounds(|_| Bound::floor(1.0).unwrap()).caps()[0], set.caps()[0]);
        assert_eq!(set.with_bounds(Cap::bound), set);
    }

    #[test]
    fn one_cap_of_a_set_can_change() {
        let cap = |block| BlockCap { block, cap: Cap::new(axis(4), Bound::NONE) };
        let policy = Policy::default().with_skip_positions(1);
        let set = CapSet::new([cap(7), cap(0)]).unwrap().with_policy(policy);
        let half = set.with_strength(0.5).unwrap();
        assert!(half.caps().iter().all(|entry| entry.cap.strength() == 0.5));
        assert!(matches!(set.with_strength(f32::NAN), Err(Error::Strength(_))));
        let changed = set.with_changed(1, |cap| cap.with_strength(0.5)).unwrap();
        assert_eq!(changed.caps()[0], set.caps()[0]);
        assert_eq!((changed.caps()[1].block, changed.caps()[1].cap.strength()), (0, 0.5));
        for other in [&changed, &half, &set.with_bounds(|_| Bound::NONE)] {
            assert_eq!(other.policy(), policy);
        }
        assert_eq!(set.with_changed(2, Ok), Err(Error::NoSuchCap { index: 2, caps: 2 }));
        assert!(matches!(set.with_changed(0, |cap| cap.with_strength(2.0)), Err(Error::Strength(_))));
        let other = |_| Ok(Cap::new(axis(5), Bound::NONE));
        assert!(matches!(set.with_changed(0, other), Err(Error::Width { .. })));
    }

    #[test]
    fn an_empty_name_is_no_name() {
        assert_eq!(Cap::new(axis(3), Bound::NONE).with_name("").name(), None);
        assert_eq!(Cap::new(axis(3), Bound::NONE).with_name("a").with_name("").name(), None);
    }
}
