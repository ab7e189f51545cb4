//! Distributions of many values in little memory.

use tdigests::TDigest;

use crate::quantile::quantile;

/// Maximum centroids of a digest. Quantiles are exact up to as many values. Above, they are off by a fraction of a
/// percentile, and by less towards the ends.
const CENTROIDS: usize = 200;

/// Values that have not entered the digest yet.
const FRESH: usize = 64;

/// The distribution of values that are not kept: a t-digest (Dunning and Ertl, arXiv 1902.04023).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    digest: Option<TDigest>,
    fresh: Vec<f64>,
    count: u64,
    is_finite: Finite,
}

/// Whether all values are finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Finite(bool);

impl Default for Finite {
    fn default() -> Self {
        Self(true)
    }
}

impl Distribution {
    /// Adds a value. One that is not finite is only remembered to have been there.
    pub(crate) fn push(&mut self, value: f64) {
        if !value.is_finite() {
            self.is_finite = Finite(false);
            return;
        }
        self.count += 1;
        self.fresh.push(value);
        if self.fresh.len() >= FRESH {
            self.digest = self.digest();
            self.fresh.clear();
        }
    }

    /// Adds all values of another distribution.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.is_finite = Finite(self.is_finite() && other.is_finite());
        self.digest = merged(self.digest(), other.digest());
        self.fresh.clear();
        self.count += other.count;
    }

    /// Returns the distribution of the values of several.
    pub(crate) fn of_all<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        all.into_iter().fold(Self::default(), |mut sum, one| {
            sum.merge(one);
            sum
        })
    }

    /// Returns the number of finite values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns whether all values were finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.is_finite.0
    }

    /// Returns the values below which each of these percentages lies. `None` without values.
    #[must_use]
    pub fn quantiles<const N: usize>(&self, percentiles: [f64; N]) -> Option<[f64; N]> {
        let digest = self.digest()?;
        if self.is_exact() {
            let sorted: Vec<f64> = digest.centroids().iter().map(|centroid| centroid.mean).collect();
            return Some(percentiles.map(|percentile| quantile(&sorted, percentile)));
        }
        Some(percentiles.map(|percentile| digest.estimate_quantile(percentile / 100.0)))
    }

    /// Returns the share of the values below a value. `None` without values.
    #[must_use]
    pub fn share_below(&self, value: f64) -> Option<f64> {
        let digest = self.digest()?;
        if self.is_exact() {
            let below = digest.centroids().iter().filter(|centroid| centroid.mean < value).count();
            return Some(below as f64 / self.count as f64);
        }
        Some(digest.estimate_rank(value))
    }

    /// Returns the mean of a function of the values. `None` without values.
    #[must_use]
    pub(crate) fn mean_of(&self, function: impl Fn(f64) -> f64) -> Option<f64> {
        let digest = self.digest()?;
        let sum: f64 = digest.centroids().iter().map(|one| one.weight * function(one.mean)).sum();
        Some(sum / self.count as f64)
    }

    /// Returns whether the digest holds each value.
    fn is_exact(&self) -> bool {
        self.count <= CENTROIDS as u64
    }

    /// Returns a digest of all values.
    fn digest(&self) -> Option<TDigest> {
        let fresh = (!self.fresh.is_empty()).then(|| TDigest::from_values(self.fresh.clone()));
        merged(self.digest.clone(), fresh)
    }
}

fn merged(one: Option<TDigest>, other: Option<TDigest>) -> Option<TDigest> {
    let (Some(one), Some(other)) = (&one, &other) else { return one.or(other) };
    let mut both = one.merge(other);
    both.compress(CENTROIDS);
    Some(both)
}

impl FromIterator<f64> for Distribution {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        values.into_iter().fold(Self::default(), |mut all, value| {
            all.push(value);
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_values_are_kept_exactly() {
        let few: Distribution = (0..100).rev().map(f64::from).collect();
        assert_eq!(few.count(), 100);
        assert_eq!(few.quantiles([0.0, 50.0, 75.0, 100.0]), Some([0.0, 49.5, 74.25, 99.0]));
        assert_eq!(few.share_below(74.25), Some(0.75));
        assert_eq!((few.share_below(0.0), few.share_below(99.5)), (Some(0.0), Some(1.0)));
        assert_eq!(few.mean_of(|value| value * 2.0), Some(99.0));
        let none = Distribution::default();
        assert_eq!((none.quantiles([50.0]), none.share_below(1.0), none.mean_of(|v| v)), (None, None, None));
    }

    #[test]
    fn many_values_are_within_a_fraction_of_a_percentile() {
        // Not sorted, with a heavy tail, in parts of different sizes.
        let value = |i: u32| (f64::from(i.wrapping_mul(2_654_435_769)) / f64::from(u32::MAX)).powi(4);
        let parts = [0..17, 17..5000, 5000..40_000];
        let parts: Vec<Distribution> = parts.into_iter().map(|part| part.map(value).collect()).collect();
        let all = Distribution::of_all(&parts);
        let mut sorted: Vec<f64> = (0..40_000).map(value).collect();
        sorted.sort_by(f64::total_cmp);
        assert_eq!(all.count(), 40_000);
        for percentile in [0.0, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 100.0] {
            let [found] = all.quantiles([percentile]).unwrap();
            let rank = 100.0 * sorted.partition_point(|&v| v < found) as f64 / 40_000.0;
            assert!((rank - percentile).abs() < 0.3, "{percentile}: {found} is at {rank}");
            let below = 100.0 * all.share_below(found).unwrap();
            assert!((below - percentile).abs() < 0.3, "{percentile}: {below}");
        }
        let mean = sorted.iter().sum::<f64>() / 40_000.0;
        assert!((all.mean_of(|v| v).unwrap() / mean - 1.0).abs() < 1e-9);
        // The memory does not grow with the values.
        assert!(all.digest.unwrap().centroids().len() <= CENTROIDS && all.fresh.len() < FRESH);
    }

    #[test]
    fn equal_values_and_values_that_are_not_finite_are_no_trouble() {
        let equal: Distribution = std::iter::repeat_n(2.0, 1000).collect();
        assert_eq!(equal.quantiles([0.0, 50.0, 100.0]), Some([2.0; 3]));
        assert_eq!((equal.share_below(1.0), equal.share_below(3.0)), (Some(0.0), Some(1.0)));
        let bad: Distribution = [1.0, f64::NAN, 3.0, f64::INFINITY].into_iter().collect();
        assert!(!bad.is_finite() && equal.is_finite() && bad.count() == 2);
        assert!(!Distribution::of_all([&equal, &bad]).is_finite());
        assert_eq!(bad.quantiles([50.0]), Some([2.0]));
    }
}
