//! What was found of the last graphs, by the uid that says they have not changed since.

use std::collections::HashMap;

/// Graphs remembered. With experts in host memory a model has one per block and token, and with layers on the CPU two.
const MOST: usize = 256;

/// Things by the uids of graphs. A graph whose uid is zero is not remembered: nobody promises that it stays the same.
#[derive(Debug)]
pub(crate) struct ByUid<T>(HashMap<u64, T>);

impl<T> Default for ByUid<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ByUid<T> {
    pub(crate) fn get(&self, uid: u64) -> Option<&T> {
        self.0.get(&uid)
    }

    /// Remembers it. Uids never come back once graphs are built anew, so that what fills the place is mostly old: where
    /// there is no more, all goes, and what is still of use is found once more.
    pub(crate) fn insert(&mut self, uid: u64, thing: T) {
        if uid == 0 {
            return;
        }
        if self.0.len() == MOST && !self.0.contains_key(&uid) {
            self.0.clear();
        }
        self.0.insert(uid, thing);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_a_bounded_number_and_nothing_under_zero() {
        let mut found = ByUid::default();
        found.insert(0, 0);
        assert_eq!(found.get(0), None);
        for uid in 1..=1000 {
            found.insert(uid, uid);
            assert_eq!(found.get(uid), Some(&uid));
            assert!(found.0.len() <= MOST);
        }
        found.insert(1000, 7);
        assert_eq!((found.get(1000), found.get(1)), (Some(&7), None));
    }
}
