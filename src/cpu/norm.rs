//! The RMSNorm that may follow the caps.

use crate::error::{Error, Result};

/// RMSNorm * weight: `y[i] = (h[i] / sqrt(mean(h^2) + eps)) * weight[i]`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    weight: &'a [f32],
    eps: f32,
}

impl<'a> Norm<'a> {
    /// A norm with one weight per channel.
    ///
    /// # Errors
    /// [`Error::Epsilon`] when `eps` is negative, infinite or NaN.
    pub fn new(weight: &'a [f32], eps: f32) -> Result<Self> {
        if eps >= 0.0 && eps.is_finite() { Ok(Self { weight, eps }) } else { Err(Error::Epsilon(eps)) }
    }

    /// The weight, one per channel.
    #[must_use]
    pub fn weight(&self) -> &'a [f32] {
        self.weight
    }

    /// What is added to the mean of the squares.
    #[must_use]
    pub fn eps(&self) -> f32 {
        self.eps
    }
}
