//! How far two groups of projections are apart.

/// Two measures of how well a projection tells two groups apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Separation {
    /// The area under the ROC curve: the probability that a random member of the upper group projects higher
    /// than a random member of the lower one. Ties count half. 0.5 means not apart, 1 means fully apart.
    pub auc: f64,
    /// d': the distance of the means in units of the square root of the mean of both variances. Infinite if
    /// neither group varies.
    pub d_prime: f64,
}

impl Separation {
    /// Compares `upper` with `lower`. Neither may be empty. NaN compares as equal to every number.
    #[must_use]
    pub fn between(upper: &[f64], lower: &[f64]) -> Self {
        let wins = wins(upper, lower);
        let pairs = (upper.len() * lower.len()) as f64;
        let ((mean_u, var_u), (mean_l, var_l)) = (moments(upper), moments(lower));
        let (variance, distance) = (f64::midpoint(var_u, var_l), mean_u - mean_l);
        let d_prime = if distance == 0.0 { 0.0 } else { distance / variance.sqrt() };
        Self { auc: wins / pairs, d_prime }
    }

    /// Returns the mean of several comparisons.
    #[must_use]
    pub(crate) fn mean(all: &[Self]) -> Self {
        let count = all.len() as f64;
        Self {
            auc: all.iter().map(|s| s.auc).sum::<f64>() / count,
            d_prime: all.iter().map(|s| s.d_prime).sum::<f64>() / count,
        }
    }
}

/// Returns in how many of all pairs the upper value is larger. Ties count half.
fn wins(upper: &[f64], lower: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = lower.iter().copied().filter(|value| !value.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let without_order = (lower.len() - sorted.len()) as f64;
    let wins = |&value: &f64| {
        if value.is_nan() {
            return 0.5 * lower.len() as f64;
        }
        let less = sorted.partition_point(|&other| other < value);
        let ties = sorted.partition_point(|&other| other <= value) - less;
        less as f64 + 0.5 * (ties as f64 + without_order)
    };
    upper.iter().map(wins).sum()
}

/// Returns mean and unbiased variance (0 for a single value).
fn moments(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, if values.len() > 1 { squares / (count - 1.0) } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_numbers_worked_out_by_hand() {
        let s = Separation::between(&[2.0, 4.0], &[1.0, 3.0]);
        assert_eq!(s.auc, 0.75);
        assert!((s.d_prime - 1.0 / 2f64.sqrt()).abs() < 1e-15);
        assert_eq!(Separation::between(&[1.0], &[1.0]), Separation { auc: 0.5, d_prime: 0.0 });
        assert_eq!(Separation::between(&[2.0], &[1.0]).d_prime, f64::INFINITY);
        assert_eq!(Separation::between(&[0.0, 0.0], &[1.0, 2.0]).auc, 0.0);
    }

    #[test]
    fn every_pair_counts() {
        let values = |step: usize| (0..40usize).map(move |i| ((i * step) % 23) as f64);
        let with = |step, special: [f64; 4]| values(step).chain(special).collect::<Vec<_>>();
        let upper = with(7, [f64::NAN, f64::INFINITY, -0.0, 3.0]);
        let lower = with(5, [f64::NAN, f64::NEG_INFINITY, 0.0, f64::INFINITY]);
        let win = |u: f64, l: f64| match u.partial_cmp(&l) {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Less) => 0.0,
            _ => 0.5,
        };
        let expected: f64 = upper.iter().flat_map(|&u| lower.iter().map(move |&l| win(u, l))).sum();
        assert_eq!(wins(&upper, &lower), expected);
    }
}
