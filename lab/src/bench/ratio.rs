//! The ratio of two speeds, measured in pairs.

use std::time::Duration;

use crate::estimate::Estimate;

/// Tokens per second of a way to decode over those of its baseline, from pairs measured side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    /// Median of the pairs' ratios. Below 1: the way takes more time than its baseline.
    pub median: f64,
    /// Interval that holds the true median with at least 95 % confidence ([`median_interval`]). `None` for a
    /// single pair.
    pub ci95: Option<(f64, f64)>,
    /// The smallest and the largest ratio of a pair.
    pub range: (f64, f64),
    /// Median tokens per second of the baseline.
    pub baseline_tps: f64,
    /// Median tokens per second of the way that is compared with it.
    pub tps: f64,
    /// Every pair's ratio, in the order measured.
    pub pairs: Vec<f64>,
    /// Every pair's median tokens per second of the baseline, in the same order.
    pub baseline_tps_pairs: Vec<f64>,
    /// Every pair's median tokens per second of the way that is compared with it.
    pub tps_pairs: Vec<f64>,
    /// Median of the pairs' ratios of total time. An interruption moves this one.
    pub total_median: f64,
    /// Its interval, as `ci95`.
    pub total_ci95: Option<(f64, f64)>,
}

impl Ratio {
    /// Minimum pairs of an interval that makes no assumption about the distribution.
    pub const MIN_PAIRS: usize = 6;

    /// Takes pairs of (baseline, compared) times. A pair holds the times of the same steps, of `tokens` tokens
    /// each, measured side by side. Its ratio is the median of its steps' ratios.
    pub(super) fn of(pairs: &[(&[Duration], &[Duration])], tokens: usize) -> Self {
        let ratio = |&(base, compared): &(Duration, Duration)| seconds(base) / seconds(compared);
        let steps = |&(base, compared): &(&[Duration], &[Duration])| -> Vec<(Duration, Duration)> {
            base.iter().copied().zip(compared.iter().copied()).collect()
        };
        let ratios: Vec<f64> =
            pairs.iter().map(|pair| median(&sorted(steps(pair).iter().map(ratio).collect()))).collect();
        let total = |times: &[Duration]| times.iter().sum::<Duration>();
        let totals = pairs.iter().map(|pair| ratio(&(total(pair.0), total(pair.1)))).collect();
        let speed = |pairs: &[(&[Duration], &[Duration])], of: fn(&(Duration, Duration)) -> Duration| {
            let times = pairs.iter().flat_map(steps).map(|step| seconds(of(&step))).collect();
            tokens as f64 / median(&sorted(times))
        };
        let speeds = |of| pairs.chunks(1).map(|pair| speed(pair, of)).collect();
        let range = ratios
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), &ratio| (min.min(ratio), max.max(ratio)));
        let (median, ci95) = median_interval(ratios.clone());
        let (total_median, total_ci95) = median_interval(totals);
        Self {
            median,
            ci95,
            range,
            baseline_tps: speed(pairs, |step| step.0),
            tps: speed(pairs, |step| step.1),
            pairs: ratios,
            baseline_tps_pairs: speeds(|step| step.0),
            tps_pairs: speeds(|step| step.1),
            total_median,
            total_ci95,
        }
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64().max(1e-9)
}

/// Returns the median of `values`, and an interval that holds the true median with at least 95 % confidence.
///
/// From [`Ratio::MIN_PAIRS`] values on the interval is that of the sign test: order statistics, without an
/// assumption about the distribution. Two to five values are fewer than the sign test needs. Their interval
/// is that of Student's t on the logarithms, which assumes that these are normally distributed. A single
/// value has no interval.
///
/// # Panics
/// If there is no value.
#[must_use]
pub fn median_interval(values: Vec<f64>) -> (f64, Option<(f64, f64)>) {
    let ordered = sorted(values);
    let interval = match interval_rank(ordered.len()) {
        Some(rank) => Some((ordered[rank], ordered[ordered.len() - 1 - rank])),
        None => students_interval(&ordered),
    };
    (median(&ordered), interval)
}

/// Returns the interval by Student's t on the logarithms of 2 to 5 values, widened to hold the median.
fn students_interval(values: &[f64]) -> Option<(f64, f64)> {
    let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    let [low, high] = Estimate::of_mean(&logarithms)?.ci95?;
    let median = median(values);
    Some((low.exp().min(median), high.exp().max(median)))
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Returns the largest `k` for which the interval from the (k+1)-th smallest to the (k+1)-th largest of `n`
/// values misses the true median with a probability of at most 5 %: twice the binomial tail P(X <= k) with p
/// = 1/2. `None` if even the whole range misses it more often.
fn interval_rank(n: usize) -> Option<usize> {
    if n < Ratio::MIN_PAIRS {
        return None;
    }
    let mut tail = 0.0;
    // Binomial probabilities in logarithms: 2^-n underflows early.
    let mut log_probability = -(n as f64) * std::f64::consts::LN_2;
    for k in 0..n / 2 {
        tail += log_probability.exp();
        if 2.0 * tail > 0.05 {
            return Some(k.saturating_sub(1));
        }
        log_probability += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    Some((n / 2).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_ranks_are_those_of_the_sign_test() {
        // Tabulated (1-based lower order statistic): n = 6: 1, 10: 2, 20: 6, 30: 10, 50: 18, 100: 40.
        for (n, lower) in [(6, 1), (9, 2), (10, 2), (20, 6), (30, 10), (50, 18), (100, 40)] {
            assert_eq!(interval_rank(n), Some(lower - 1), "n = {n}");
        }
        // The range of 5 pairs misses the median in 2 of 32 cases.
        assert_eq!((1..6).map(interval_rank).collect::<Vec<_>>(), [None; 5]);
    }

    #[test]
    fn two_to_five_values_have_the_interval_of_students_t() {
        // Logarithms 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt(3); 4.3027 of them.
        let (low, high) = students_interval(&[0.1f64.exp(), 0.2f64.exp(), 0.3f64.exp()]).unwrap();
        assert!((low.ln() - (0.2 - 0.248_416)).abs() < 1e-5 && (high.ln() - (0.2 + 0.248_416)).abs() < 1e-5);
        assert_eq!(students_interval(&[0.5, 0.5]), Some((0.5, 0.5)));
        assert_eq!((students_interval(&[]), students_interval(&[0.5])), (None, None));
    }

    #[test]
    fn a_ratio_is_of_speeds_and_one_interrupted_step_does_not_move_it() {
        let ms = Duration::from_millis;
        let pairs: [(&[Duration], &[Duration]); 3] =
            [(&[ms(99)], &[ms(100)]), (&[ms(50)], &[ms(50)]), (&[ms(10)], &[ms(900)])];
        let ratio = Ratio::of(&pairs, 10);
        assert!((ratio.median - 0.99).abs() < 1e-12);
        assert_eq!(ratio.range, (10.0 / 900.0, 1.0));
        let (low, high) = ratio.ci95.unwrap();
        assert!(
            low < ratio.range.0 && high > ratio.range.1,
            "the interval of three pairs is wider than their range"
        );
        assert_eq!((ratio.median, ratio.ci95), (ratio.total_median, ratio.total_ci95));
        assert_eq!(Ratio::of(&pairs[..1], 10).ci95, None);
        assert!((ratio.baseline_tps - 200.0).abs() < 1e-9);
        assert!((ratio.tps - 100.0).abs() < 1e-9);
        let near = |speeds: &[f64], expected: [f64; 3]| {
            speeds.len() == 3 && speeds.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
        };
        assert!(near(&ratio.baseline_tps_pairs, [10.0 / 0.099, 200.0, 1000.0]), "{ratio:?}");
        assert!(near(&ratio.tps_pairs, [100.0, 200.0, 10.0 / 0.9]), "{ratio:?}");

        let six = Ratio::of(&[pairs[0], pairs[1], pairs[2], pairs[0], pairs[1], pairs[2]], 10);
        assert_eq!((six.ci95, six.total_ci95), (Some(ratio.range), Some(ratio.range)));

        // One interrupted step moves the total, not the pair's ratio.
        let steps = [ms(9), ms(9), ms(9)];
        let interrupted = [ms(10), ms(10), ms(500)];
        let ratio = Ratio::of(&[(&steps, &interrupted)], 1);
        assert!((ratio.median - 0.9).abs() < 1e-12);
        assert!((ratio.total_median - 27.0 / 520.0).abs() < 1e-12);
        assert!((ratio.tps_pairs[0] - 100.0).abs() < 1e-9, "the pair's speed is the median's");
        assert_eq!(median(&[1.0, 2.0, 3.0, 4.0]), 2.5);
    }
}
