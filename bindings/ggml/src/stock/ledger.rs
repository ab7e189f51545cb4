//! The ledger of a guard: what the caps of each generation did, also those that were replaced.

use std::sync::Arc;

use super::models::ModelCaps;
use crate::tally::{CapTotal, Tally};

/// Replaced generations with totals of their own. Those before them are added up, so that a process whose caps
/// are replaced for weeks keeps a ledger of bounded size.
const KEPT: usize = 8;

/// What one cap of one file did in all contexts.
#[derive(Debug, Clone, PartialEq)]
pub struct CapTotals {
    /// The generation of the caps. `None` for the oldest ones together.
    pub generation: Option<u64>,
    /// Name of the caps ([`ModelCaps::name`]).
    pub caps: String,
    /// Index of the cap in its set.
    pub cap: usize,
    /// The block that it caps.
    pub block: usize,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What it did.
    pub total: CapTotal,
}

/// The tallies of all generations.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: Vec<Account>,
    /// The totals of the oldest generations.
    older: Vec<CapTotals>,
}

/// The tally of one cap set of one generation.
#[derive(Debug)]
struct Account {
    generation: u64,
    caps: Arc<ModelCaps>,
    tally: Arc<Tally>,
}

impl Ledger {
    /// Opens an account for each cap set of a new generation, and returns their tallies.
    pub(super) fn open(&mut self, generation: u64, models: &[Arc<ModelCaps>]) -> Vec<Arc<Tally>> {
        let open = |caps: &Arc<ModelCaps>| Account {
            generation,
            caps: Arc::clone(caps),
            tally: Arc::new(Tally::new(caps.caps.caps().len())),
        };
        let new: Vec<_> = models.iter().map(open).collect();
        let tallies = new.iter().map(|account| Arc::clone(&account.tally)).collect();
        self.accounts.extend(new);
        tallies
    }

    /// Adds up the accounts of old generations. An account that a context or a row on its way from a GPU may
    /// still count in is left as it is.
    pub(super) fn fold(&mut self) {
        let mut generations: Vec<_> = self.accounts.iter().map(|account| account.generation).collect();
        generations.dedup();
        let kept = generations.len().checked_sub(KEPT + 1).map_or(0, |first| generations[first]);
        let (old, accounts): (Vec<_>, _) = std::mem::take(&mut self.accounts)
            .into_iter()
            .partition(|account| account.generation < kept && Arc::strong_count(&account.tally) == 1);
        self.accounts = accounts;
        for total in old.iter().flat_map(Account::totals) {
            let same = |older: &&mut CapTotals| {
                let CapTotals { caps, cap, block, name, .. } = &**older;
                (caps, cap, block, name) == (&total.caps, &total.cap, &total.block, &total.name)
            };
            match self.older.iter_mut().find(same) {
                Some(older) => older.total.merge(&total.total),
                None => self.older.push(CapTotals { generation: None, ..total }),
            }
        }
    }

    /// Returns all totals, the oldest first.
    pub(super) fn totals(&self) -> Vec<CapTotals> {
        self.older.iter().cloned().chain(self.accounts.iter().flat_map(Account::totals)).collect()
    }
}

impl Account {
    fn totals(&self) -> Vec<CapTotals> {
        let totals = self.tally.lock().clone();
        let entries = self.caps.caps.caps().iter().zip(totals).enumerate();
        entries
            .map(|(cap, (entry, total))| CapTotals {
                generation: Some(self.generation),
                caps: self.caps.name.clone(),
                cap,
                block: entry.block,
                name: entry.cap.name().map(Into::into),
                total,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, RowStat};

    use super::*;
    use crate::host::architecture::ModelShape;

    fn model() -> Arc<ModelCaps> {
        let cap = Cap::new(Axis::from_direction(&[1.0, 2.0]).unwrap(), Bound::NONE).with_name("assistant");
        let caps = CapSet::new([BlockCap { block: 1, cap }]).unwrap();
        let shape = ModelShape { architecture: "llama".into(), blocks: 2, width: 2 };
        Arc::new(ModelCaps { name: "a.gguf".into(), shape, norms: Vec::new(), caps })
    }

    fn count(tally: &Tally) {
        tally.lock()[0].add(Bound::NONE, &RowStat { before: 1.0, after: 1.0, flags: 0 });
    }

    #[test]
    fn old_generations_are_added_up_and_no_row_is_lost() {
        let mut ledger = Ledger::default();
        let models = [model()];
        // A context keeps the first one, as does a row on its way from a GPU.
        let first = ledger.open(1, &models).remove(0);
        for generation in 2..=40 {
            let tally = ledger.open(generation, &models).remove(0);
            count(&tally);
            count(&first);
            drop(tally);
            ledger.fold();
            let totals = ledger.totals();
            let rows: u64 = totals.iter().map(|total| total.total.stats.rows).sum();
            assert_eq!(rows, 2 * (generation - 1));
            assert!(totals.len() <= KEPT + 3, "{}", totals.len());
            assert_eq!(totals.last().unwrap().generation, Some(generation));
        }
        let totals = ledger.totals();
        assert_eq!((totals[0].generation, totals[1].generation), (None, Some(1)));
        assert_eq!((totals[0].block, totals[0].name.as_deref()), (1, Some("assistant")));
        drop(first);
        ledger.fold();
        let totals = ledger.totals();
        assert_eq!((totals.len(), totals[0].generation), (KEPT + 2, None));
        assert_eq!(totals[0].total.stats.rows, 39 + 39 - KEPT as u64 - 1);
    }
}
