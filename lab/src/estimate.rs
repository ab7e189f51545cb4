//! Estimates with intervals.

use std::fmt;

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// A value that was estimated from independent units (conversations, items), and an interval that holds the true one
/// with a confidence of 95 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// The lower and the upper end of the interval. `None` for a single unit.
    pub ci95: Option<[f64; 2]>,
    /// Number of units.
    pub units: usize,
}

impl Estimate {
    /// Estimates a mean, with Student's t. For paired differences the units are the pairs. `None` without units.
    ///
    /// The interval takes the units' mean for normally distributed. For few units of a skewed distribution it is too
    /// narrow. Units that are all equal have an interval without width.
    #[must_use]
    pub fn of_mean(units: &[f64]) -> Option<Self> {
        let count = units.len() as f64;
        if units.is_empty() {
            return None;
        }
        let mean = units.iter().sum::<f64>() / count;
        let reach = || {
            let variance = units.iter().map(|unit| (unit - mean).powi(2)).sum::<f64>() / (count - 1.0);
            let t = StudentsT::new(0.0, 1.0, count - 1.0).ok()?.inverse_cdf(0.975);
            Some(t * (variance / count).sqrt())
        };
        let ci95 = if units.len() > 1 { reach().map(|reach| [mean - reach, mean + reach]) } else { None };
        Some(Self { value: mean, ci95, units: units.len() })
    }

    /// Estimates the probability of an event, with Wilson's interval. `None` without units.
    #[must_use]
    pub fn of_share(events: &[bool]) -> Option<Self> {
        if events.is_empty() {
            return None;
        }
        let (count, z) = (events.len() as f64, z());
        let share = events.iter().filter(|&&event| event).count() as f64 / count;
        let middle = (share + z * z / (2.0 * count)) / (1.0 + z * z / count);
        let reach = z / (1.0 + z * z / count)
            * (share * (1.0 - share) / count + z * z / (4.0 * count * count)).sqrt();
        let ci95 = Some([(middle - reach).max(0.0), (middle + reach).min(1.0)]);
        Some(Self { value: share, ci95, units: events.len() })
    }

    /// Estimates the difference between the probabilities of two events, the second minus the first, from units that
    /// show both: the interval of Agresti and Min (2005), which has a width even if no unit tells the two apart.
    /// `None` without units.
    #[must_use]
    pub fn of_share_difference(pairs: &[(bool, bool)]) -> Option<Self> {
        if pairs.is_empty() {
            return None;
        }
        let count = pairs.len() as f64;
        let only = |wanted: (bool, bool)| pairs.iter().filter(|&&pair| pair == wanted).count() as f64;
        let (first, second) = (only((true, false)), only((false, true)));
        // Half a unit is added to each of the four kinds of pairs.
        let (first_more, second_more, total) = (first + 0.5, second + 0.5, count + 2.0);
        let middle = (second_more - first_more) / total;
        let variance =
            (second_more + first_more - (second_more - first_more).powi(2) / total) / total.powi(2);
        let reach = z() * variance.sqrt();
        let ci95 = Some([(middle - reach).max(-1.0), (middle + reach).min(1.0)]);
        Some(Self { value: (second - first) / count, ci95, units: pairs.len() })
    }

    /// Returns the estimate with its interval cut to where the value can be.
    #[must_use]
    pub fn within(self, [low, high]: [f64; 2]) -> Self {
        let ci95 = self.ci95.map(|ends| ends.map(|end| end.clamp(low, high)));
        Self { ci95, ..self }
    }

    /// Returns whether the interval lies above 0.
    #[must_use]
    pub fn is_above_zero(&self) -> bool {
        self.ci95.is_some_and(|[low, _]| low > 0.0)
    }

    /// Returns whether the interval lies below 0.
    #[must_use]
    pub fn is_below_zero(&self) -> bool {
        self.ci95.is_some_and(|[_, high]| high < 0.0)
    }
}

impl fmt::Display for Estimate {
    /// Writes the value and its interval, with as many decimals as three digits of the larger need.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.ci95.map_or(0.0, |[low, high]| high - low);
        let size = self.value.abs().max(width);
        let decimals = if size > 0.0 && size.is_finite() {
            (2.0 - size.log10().floor()).clamp(0.0, 6.0) as usize
        } else {
            2
        };
        let number = |value: f64| {
            let text = format!("{value:.decimals$}");
            // A small negative number is not minus zero.
            if text.bytes().all(|b| matches!(b, b'-' | b'0' | b'.')) { text.replace('-', "") } else { text }
        };
        let shown = match self.ci95 {
            Some([low, high]) => format!("{} [{}, {}]", number(self.value), number(low), number(high)),
            None => format!("{} (one unit, no interval)", number(self.value)),
        };
        f.pad(&shown)
    }
}

/// Returns the 97.5 % quantile of the normal distribution.
fn z() -> f64 {
    Normal::standard().inverse_cdf(0.975)
}

/// Returns the slope of the line of least squares through points. `None` for fewer than two.
#[must_use]
pub fn slope(points: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
    let points: Vec<(f64, f64)> = points.into_iter().collect();
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    let (x, y) = (x / count, y / count);
    let squares: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let products: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (points.len() > 1).then(|| products / squares)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
    use rand_distr::{Distribution as _, Exp1, StandardNormal};

    use super::*;

    fn near(found: Option<Estimate>, value: f64, low: f64, high: f64) {
        let found = found.unwrap();
        let [from, to] = found.ci95.unwrap();
        for (found, expected) in [(found.value, value), (from, low), (to, high)] {
            assert!((found - expected).abs() < 5e-4, "{found} is not {expected}");
        }
    }

    #[test]
    fn estimates_are_those_of_textbooks() {
        // t with 4 degrees of freedom: 2.7764; the standard error is sqrt(2.5 / 5).
        near(Estimate::of_mean(&[1.0, 2.0, 3.0, 4.0, 5.0]), 3.0, 3.0 - 1.9632, 3.0 + 1.9632);
        // Wilson (1927) for 81 of 263, as Newcombe (1998, method 3) gives it.
        let events: Vec<bool> = (0..263).map(|i| i < 81).collect();
        near(Estimate::of_share(&events), 0.3080, 0.2553, 0.3662);
        // No event of 20, as ibidem for 0 of 20.
        near(Estimate::of_share(&[false; 20]), 0.0, 0.0, 0.1611);
        // Agresti and Min (2005): (x12 + 1/2 - x21 - 1/2) / (n + 2) and its Wald interval.
        let pairs: Vec<_> = [(true, false); 9].into_iter().chain([(false, true); 3]).collect();
        let pairs: Vec<_> = pairs.into_iter().chain([(true, true); 28]).collect();
        let (middle, variance) = (-6.0 / 42.0, (13.0 - 36.0 / 42.0) / (42.0 * 42.0_f64));
        near(
            Estimate::of_share_difference(&pairs),
            -0.15,
            middle - 1.959_96 * variance.sqrt(),
            middle + 1.959_96 * variance.sqrt(),
        );
        assert_eq!(Estimate::of_mean(&[]), None);
        assert_eq!(Estimate::of_mean(&[2.0]).unwrap().ci95, None);
        assert_eq!(Estimate::of_mean(&[2.0; 3]).unwrap().ci95, Some([2.0, 2.0]));
        let same = Estimate::of_share_difference(&[(true, true); 30]).unwrap();
        assert!(!same.is_above_zero() && !same.is_below_zero() && same.ci95.unwrap()[1] > 0.02);
    }

    #[test]
    fn numbers_have_three_digits_and_their_interval() {
        let shown = |value, ci95| Estimate { value, ci95, units: 2 }.to_string();
        assert_eq!(shown(-117.4, Some([-120.0, -110.0])), "-117 [-120, -110]");
        assert_eq!(shown(0.123_456, Some([0.1, 0.2])), "0.123 [0.100, 0.200]");
        assert_eq!(shown(0.0, Some([0.0, 0.0])), "0.00 [0.00, 0.00]");
        assert_eq!(shown(-0.0001, Some([-0.5, 0.5])), "0.00 [-0.50, 0.50]");
        assert_eq!(shown(1.5, None), "1.50 (one unit, no interval)");
    }

    /// How often intervals hold the truth, of 4000.
    fn coverage(truth: f64, mut estimate: impl FnMut(&mut ChaCha8Rng) -> Option<Estimate>) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let hits = (0..4000).filter(|_| {
            let [low, high] = estimate(&mut random).unwrap().ci95.unwrap();
            low <= truth && truth <= high
        });
        hits.count() as f64 / 4000.0
    }

    #[test]
    fn intervals_hold_the_truth_about_as_often_as_they_say() {
        let normal = |count: usize| {
            coverage(3.0, move |random| {
                let units: Vec<f64> = StandardNormal.sample_iter(random).take(count).collect();
                Estimate::of_mean(&units.iter().map(|unit| 3.0 + 2.0 * unit).collect::<Vec<_>>())
            })
        };
        for count in [2, 6, 24] {
            assert!((normal(count) - 0.95).abs() < 0.012, "{count} units: {}", normal(count));
        }
        // A skewed distribution: as documented, too narrow for few units.
        let skewed = coverage(1.0, |random| {
            Estimate::of_mean(&Exp1.sample_iter(random).take(24).collect::<Vec<f64>>())
        });
        assert!((0.90..0.95).contains(&skewed), "{skewed}");
        let event =
            |random: &mut ChaCha8Rng, share: f64| f64::from(random.next_u32()) < share * 2f64.powi(32);
        for share in [0.02, 0.3, 0.9] {
            let found = coverage(share, |random| {
                Estimate::of_share(&(0..60).map(|_| event(random, share)).collect::<Vec<_>>())
            });
            assert!((0.92..0.99).contains(&found), "share {share}: {found}");
        }
        // The second event: the first, and in a tenth of the others as well.
        let found = coverage(0.07, |random| {
            let pairs = (0..100).map(|_| {
                let first = event(random, 0.3);
                (first, first || event(random, 0.1))
            });
            Estimate::of_share_difference(&pairs.collect::<Vec<_>>())
        });
        // Pairs that differ to one side only are the hardest case.
        assert!((0.91..0.99).contains(&found), "difference: {found}");
    }
}
