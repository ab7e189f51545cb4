//! How far two groups of projections are apart.

/// Two measures of how well a projection tells two groups apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Separation {
    /// The area under the ROC curve: the probability that a random member of the upper group projects higher
    /// than a random member of the lower one. Ties count half. 0.5 means not apart, 1 means fully apart.
    pub auc: f64,
    /// Cohen's d: the distance of the means in pooled standard deviations. Infinite if neither group varies.
    pub cohens_d: f64,
}

impl Separation {
    /// Compares `upper` with `lower`. Neither may be empty. NaN compares as equal to every number.
    #[must_use]
    pub fn between(upper: &[f64], lower: &[f64]) -> Self {
        let wins: f64 = upper.iter().flat_map(|u| lower.iter().map(move |l| win(*u, *l))).sum();
        let pairs = (upper.len() * lower.len()) as f64;
        let ((mean_u, var_u), (mean_l, var_l)) = (moments(upper), moments(lower));
        let (free_u, free_l) = (upper.len() as f64 - 1.0, lower.len() as f64 - 1.0);
        let free = free_u + free_l;
        let pooled = if free > 0.0 { (free_u * var_u + free_l * var_l) / free } else { 0.0 };
        let distance = mean_u - mean_l;
        let cohens_d = if distance == 0.0 { 0.0 } else { distance / pooled.sqrt() };
        Self { auc: wins / pairs, cohens_d }
    }

    /// Returns the mean of several comparisons.
    #[must_use]
    pub(crate) fn mean(all: &[Self]) -> Self {
        let count = all.len() as f64;
        Self {
            auc: all.iter().map(|s| s.auc).sum::<f64>() / count,
            cohens_d: all.iter().map(|s| s.cohens_d).sum::<f64>() / count,
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
        assert!((s.cohens_d - 1.0 / 2f64.sqrt()).abs() < 1e-15);
        assert_eq!(Separation::between(&[1.0], &[1.0]), Separation { auc: 0.5, cohens_d: 0.0 });
        assert_eq!(Separation::between(&[2.0], &[1.0]).cohens_d, f64::INFINITY);
        assert_eq!(Separation::between(&[0.0, 0.0], &[1.0, 2.0]).auc, 0.0);
    }
}
