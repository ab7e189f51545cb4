//! A digest of caps, which says whether rows that were kept were computed under the same ones.

use std::fmt;

use axiscap::CapSet;
use sha2::{Digest, Sha256};

/// A SHA-256 of what a cap set does: blocks, axes, bounds and strengths, in order. Names play no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CapDigest([u8; 32]);

impl CapDigest {
    /// Returns the digest of a cap set.
    #[must_use]
    pub fn of(caps: &CapSet) -> Self {
        let mut hash = Sha256::new();
        hash.update((caps.width() as u64).to_le_bytes());
        for entry in caps.caps() {
            hash.update((entry.block as u64).to_le_bytes());
            let bound = entry.cap.bound();
            for value in [bound.lo(), bound.hi(), entry.cap.strength()] {
                hash.update(value.to_bits().to_le_bytes());
            }
            for value in entry.cap.axis().values() {
                hash.update(value.to_bits().to_le_bytes());
            }
        }
        Self(hash.finalize().into())
    }
}

impl CapDigest {
    pub(crate) fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for CapDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Bound, Cap};

    use super::*;

    #[test]
    fn whatever_a_cap_does_changes_the_digest_and_its_name_does_not() {
        let cap = Cap::new(Axis::from_direction(&[1.0, 2.0]).unwrap(), Bound::floor(1.0).unwrap());
        let digest = |entries: &[(usize, Cap)]| {
            let entries = entries.iter().map(|(block, cap)| BlockCap { block: *block, cap: cap.clone() });
            CapDigest::of(&CapSet::new(entries).unwrap())
        };
        let first = digest(&[(3, cap.clone())]);
        assert_eq!(digest(&[(3, cap.clone().with_name("a"))]), first);
        assert_eq!(first.to_string().len(), 64);
        let other = Cap::new(Axis::from_direction(&[2.0, 1.0]).unwrap(), cap.bound());
        for changed in [
            digest(&[(4, cap.clone())]),
            digest(&[(3, other.clone())]),
            digest(&[(3, cap.clone().with_bound(Bound::floor(2.0).unwrap()))]),
            digest(&[(3, cap.clone().with_bound(Bound::ceiling(1.0).unwrap()))]),
            digest(&[(3, cap.clone().with_strength(0.5).unwrap())]),
            digest(&[(3, cap.clone()), (3, other.clone())]),
        ] {
            assert_ne!(changed, first);
        }
        assert_ne!(digest(&[(3, cap.clone()), (3, other.clone())]), digest(&[(3, other), (3, cap)]));
    }
}
