//! The median of a sample and its confidence interval.

/// Returns the values in ascending order.
#[must_use]
pub fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Returns the median of values in ascending order.
///
/// # Panics
/// If there are no values.
#[must_use]
pub fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Returns an interval that holds the true median with at least 95 % confidence, from values in ascending
/// order.
///
/// The interval consists of the order statistics of the sign test, which assumes nothing about the
/// distribution. `None` for fewer than 6 values, whose whole range holds the median with less confidence.
#[must_use]
pub fn interval(sorted: &[f64]) -> Option<(f64, f64)> {
    let rank = interval_rank(sorted.len())?;
    Some((sorted[rank], sorted[sorted.len() - 1 - rank]))
}

/// Returns the largest `k` for which the interval from the (k+1)-th smallest to the (k+1)-th largest of `n`
/// values misses the true median with a probability of at most 5 %: twice the binomial tail P(X <= k) with p
/// = 1/2. `None` if the whole range misses it more often.
fn interval_rank(n: usize) -> Option<usize> {
    const MIN_VALUES: usize = 6;
    if n < MIN_VALUES {
        return None;
    }
    let mut tail = 0.0;
    // Binomial probabilities as logarithms, because 2^-n underflows early.
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
        // The range of 5 values misses the median in 2 of 32 cases.
        assert_eq!((1..6).map(interval_rank).collect::<Vec<_>>(), [None; 5]);
    }

    #[test]
    fn the_interval_consists_of_values_around_the_median() {
        let values = sorted((0..10).rev().map(f64::from));
        assert_eq!((median(&values), interval(&values)), (4.5, Some((1.0, 8.0))));
        assert_eq!((median(&values[..5]), interval(&values[..5])), (2.0, None));
    }
}
