//! Principal components of the roles' means.

use axiscap::Axis;
use nalgebra::{DMatrix, SymmetricEigen};

/// Number of components whose share is kept.
const KEPT: usize = 3;

/// How the roles of a model differ at one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Components {
    /// Cosine of the axis to the first principal component, 0 to 1: a component has no sign.
    pub cosine_first: f64,
    /// Share of the variance of the roles' means that each of the first components explains.
    pub variance: Vec<f64>,
}

/// Returns the principal components of the roles' means, `[roles][width]`, centred on their mean. `None` for
/// fewer than three roles, roles that do not differ, and means that are not finite.
pub(super) fn of(roles: &[Vec<f64>], axis: &Axis) -> Option<Components> {
    if roles.len() < 3 {
        return None;
    }
    let (count, width) = (roles.len(), axis.width());
    let mut centred = DMatrix::from_fn(count, width, |role, channel| roles[role][channel]);
    let centre = centred.row_mean();
    centred.row_iter_mut().for_each(|mut row| row -= &centre);
    if !centred.iter().all(|value| value.is_finite()) {
        return None;
    }
    // There are far fewer roles than channels: the products of the roles have the same eigenvalues.
    let SymmetricEigen { eigenvectors, eigenvalues } = SymmetricEigen::new(&centred * centred.transpose());
    let total: f64 = eigenvalues.iter().sum();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| eigenvalues[b].total_cmp(&eigenvalues[a]));
    let first = centred.transpose() * eigenvectors.column(order[0]);
    let norm = first.norm();
    if !(total > 0.0 && norm > 0.0) {
        return None;
    }
    let dot: f64 = axis.values().iter().zip(first.iter()).map(|(&a, &b)| f64::from(a) * b).sum();
    Some(Components {
        cosine_first: (dot / norm).abs().min(1.0),
        variance: order.iter().take(KEPT).map(|&index| (eigenvalues[index] / total).max(0.0)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_components_are_found() {
        // Variances 9 : 1 along two directions, on a common offset.
        let roles = [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
            .map(|[a, b]| vec![100.0 + 0.6 * a - 0.8 * b, 50.0 + 0.8 * a + 0.6 * b, 7.0]);
        let axis = Axis::from_direction(&[0.6, 0.8, 0.0]).unwrap();
        let found = of(&roles, &axis).unwrap();
        assert!((found.cosine_first - 1.0).abs() < 1e-6, "{found:?}");
        assert!((found.variance[0] - 0.9).abs() < 1e-9 && (found.variance[1] - 0.1).abs() < 1e-9);
        assert!(found.variance[2].abs() < 1e-9);
        assert_eq!(of(&roles[..2], &axis), None);
        assert_eq!(of(&vec![roles[0].clone(); 4], &axis), None);
        assert_eq!(of(&vec![vec![f64::NAN; 3]; 4], &axis), None);
    }
}
