//! A persona axis: a unit direction in the residual stream.

use std::sync::Arc;

use crate::error::{Error, Result};

/// A unit vector in the residual stream, one f32 per channel.
///
/// By the field's convention a positive projection on the Assistant axis means "more Assistant". Released
/// axes are *not* unit vectors: their norms range from 0.02 to 5397. [`Axis::from_direction`] normalises them
/// and keeps the norm. Clones share the values.
///
/// ```
/// let axis = axiscap::Axis::from_direction(&[3.0, 0.0, -4.0])?;
/// assert_eq!(axis.values(), [0.6, 0.0, -0.8]);
/// assert_eq!(axis.norm(), Some(5.0));
/// # Ok::<(), axiscap::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    values: Arc<[f32]>,
    norm: Option<f32>,
}

/// Maximum distance from 1 of the norm of a vector given to [`Axis::from_unit`].
pub const UNIT_TOLERANCE: f64 = 1e-3;

/// Maximum distance from 1 at which a vector is left as it is. Rounding a unit vector to f32 moves its norm
/// by at most 2^-24, so an axis that is written and read again keeps its bits.
const ROUNDING: f64 = 1.0 / (1u64 << 23) as f64;

impl Axis {
    /// Makes an axis along `direction`, which may have any finite, non-zero length.
    ///
    /// The norm is computed in f64 without overflow, and kept in [`Axis::norm`] if f32 can hold it.
    ///
    /// # Errors
    /// [`Error::EmptyAxis`], [`Error::NonFiniteAxis`], [`Error::ZeroAxis`].
    pub fn from_direction(direction: &[f32]) -> Result<Self> {
        let norm = checked_norm(direction)?;
        Ok(Self {
            values: normalised(direction, norm),
            norm: Some(norm as f32).filter(|norm| norm.is_finite()),
        })
    }

    /// Makes an axis from values that already form a unit vector, as in a cap file.
    ///
    /// Values within rounding of norm 1 keep their bits. Others within [`UNIT_TOLERANCE`] are renormalised.
    /// `norm` is the norm that the axis had before it was made a unit vector, if known.
    ///
    /// # Errors
    /// Those of [`Axis::from_direction`], and [`Error::NotUnit`].
    pub fn from_unit(values: &[f32], norm: Option<f32>) -> Result<Self> {
        let found = checked_norm(values)?;
        let distance = (found - 1.0).abs();
        if distance > UNIT_TOLERANCE {
            return Err(Error::NotUnit { norm: found, tolerance: UNIT_TOLERANCE });
        }
        let values = if distance <= ROUNDING { values.into() } else { normalised(values, found) };
        Ok(Self { values, norm })
    }

    /// Returns the number of channels: the model's width, `n_embd`.
    #[must_use]
    pub fn width(&self) -> usize {
        self.values.len()
    }

    /// Returns the unit vector.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Returns the norm that the axis had before it was made a unit vector, if known. It is the distance
    /// between the two groups of answers that the axis came from.
    #[must_use]
    pub fn norm(&self) -> Option<f32> {
        self.norm
    }

    /// Returns the same values with another original norm. Caps of a file may share a vector and differ in
    /// its norm.
    pub(crate) fn with_norm(self, norm: Option<f32>) -> Self {
        Self { norm, ..self }
    }

    /// Returns the cosine of the angle between two axes, in f64.
    ///
    /// # Errors
    /// [`Error::Width`] when the axes differ in width.
    pub fn cosine(&self, other: &Self) -> Result<f64> {
        if self.width() != other.width() {
            return Err(Error::Width {
                what: "the second axis".into(),
                found: other.width(),
                against: "the first axis",
                expected: self.width(),
            });
        }
        Ok(dot(self.values(), other.values()).clamp(-1.0, 1.0))
    }

    /// Returns the opposite direction. A cap on it is the same cap if its bounds are mirrored as well: see
    /// [`Cap::negated`](crate::Cap::negated).
    #[must_use]
    pub fn negated(&self) -> Self {
        Self { values: self.values.iter().map(|v| -v).collect(), norm: self.norm }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn checked_norm(values: &[f32]) -> Result<f64> {
    if values.is_empty() {
        return Err(Error::EmptyAxis);
    }
    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::NonFiniteAxis { index, width: values.len(), value: values[index] });
    }
    // The square of any finite f32, and any sum of them that fits in memory, is finite in f64.
    let norm = dot(values, values).sqrt();
    if norm == 0.0 { Err(Error::ZeroAxis) } else { Ok(norm) }
}

fn normalised(values: &[f32], norm: f64) -> Arc<[f32]> {
    values.iter().map(|&v| (f64::from(v) / norm) as f32).collect()
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn a_direction_is_normalised_and_its_norm_is_kept() {
        let axis = Axis::from_direction(&[0.0, 5397.0]).unwrap();
        assert_eq!(axis.values(), [0.0, 1.0]);
        assert_eq!(axis.norm(), Some(5397.0));
    }

    #[test]
    fn extreme_norms_neither_overflow_nor_vanish() {
        for scale in [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)] {
            let axis = Axis::from_direction(&[scale, -scale]).unwrap();
            let half = std::f32::consts::FRAC_1_SQRT_2;
            assert_eq!(axis.values(), [half, -half], "scale {scale:e}");
        }
        // A norm beyond f32 is not kept, the largest f32 is.
        assert_eq!(Axis::from_direction(&[3e38, 3e38]).unwrap().norm(), None);
        assert_eq!(Axis::from_direction(&[0.0, f32::MAX]).unwrap().norm(), Some(f32::MAX));
    }

    #[test]
    fn values_without_a_direction_are_refused() {
        assert_eq!(Axis::from_direction(&[]), Err(Error::EmptyAxis));
        assert_eq!(Axis::from_direction(&[0.0, -0.0]), Err(Error::ZeroAxis));
        assert!(matches!(
            Axis::from_direction(&[1.0, f32::NAN]),
            Err(Error::NonFiniteAxis { index: 1, width: 2, .. })
        ));
        assert!(matches!(
            Axis::from_direction(&[f32::NEG_INFINITY]),
            Err(Error::NonFiniteAxis { index: 0, .. })
        ));
    }

    #[test]
    fn a_unit_vector_keeps_its_bits_and_others_are_renormalised_or_refused() {
        let direction: Vec<f32> = (0..576).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let axis = Axis::from_direction(&direction).unwrap();
        let again = Axis::from_unit(axis.values(), axis.norm()).unwrap();
        assert_eq!(axis, again);

        let near: Vec<f32> = axis.values().iter().map(|v| v * 1.0005).collect();
        let mended = Axis::from_unit(&near, None).unwrap();
        assert_abs_diff_eq!(checked_norm(mended.values()).unwrap(), 1.0, epsilon = 1e-7);

        let far: Vec<f32> = axis.values().iter().map(|v| v * 1.002).collect();
        assert!(matches!(Axis::from_unit(&far, None), Err(Error::NotUnit { .. })));
    }

    #[test]
    fn cosines_are_between_the_unit_vectors() {
        let x = Axis::from_direction(&[1.0, 0.0]).unwrap();
        let diagonal = Axis::from_direction(&[1.0, 1.0]).unwrap();
        assert_abs_diff_eq!(x.cosine(&diagonal).unwrap(), 0.5f64.sqrt(), epsilon = 1e-7);
        assert_eq!(x.cosine(&x.negated()).unwrap(), -1.0);
        assert!(matches!(x.cosine(&Axis::from_direction(&[1.0]).unwrap()), Err(Error::Width { .. })));
    }
}
