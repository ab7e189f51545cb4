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
        let wins: f64 = upper.iter().flat_map(|u| lower.iter().map(move |l| win(*u, *l))).sum();
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

fn win(upper: f64, lower: f64) -> f64 {
    match upper.partial_cmp(&lower) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Less) => 0.0,
        _ => 0.5,
    }
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
}
