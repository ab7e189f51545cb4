//! The models whose graphs clients send to a backend of an RPC server.
//!
//! Such a backend lives as long as the server, and computes parts of whatever models its clients load, one after
//! the other or in turns. Each graph therefore has to show whose it is, by the norm weights that it reads.

use std::collections::HashMap;
use std::sync::Arc;

use super::backend::Served;
use super::context::{Account, StockContext};
use super::guard::GuardState;
use crate::graph::weights::{norm_weights, norms_of};
use crate::host::{Backend, Graph, freed_buffers, watch_buffer};

/// Models that are remembered. A client may have a model computed in as many parts as it has blocks.
const KEPT: usize = 128;

/// Names and digests of the norm weights that a graph reads.
type Mark = Vec<(String, [u8; 32])>;

/// The contexts of a backend's visitors.
#[derive(Debug, Default)]
pub(super) struct Visits {
    /// The last one is at the end.
    list: Vec<(Mark, Arc<Served>)>,
    /// By the address of the first norm weights that a graph reads, where the buffers of all are watched.
    by_address: HashMap<usize, Arc<Served>>,
    /// [`freed_buffers`] when the addresses were noted.
    freed: u64,
}

impl Visits {
    /// Returns the context that a graph belongs to. `None` for a graph without norms, which could be any model's.
    /// A client with axiscap caps such a part itself.
    pub(super) fn find(
        &mut self,
        graph: &Graph,
        backend: Backend,
        guard: &Arc<GuardState>,
    ) -> Option<Arc<Served>> {
        let first = norm_weights(graph).next()?;
        let freed = freed_buffers();
        if self.freed != freed {
            // What lies at these addresses now may be another model's.
            self.by_address.clear();
            self.freed = freed;
        }
        if let Some(served) = self.by_address.get(&first.data()) {
            return Some(Arc::clone(served));
        }
        // SAFETY: the buffers of weights that the graph is about to read are alive.
        let watched = norm_weights(graph).all(|norm| unsafe { watch_buffer(norm.owning_buffer()) });
        let served = self.recognise(norms_of(graph), backend, guard);
        if watched {
            self.by_address.insert(first.data(), Arc::clone(&served));
        }
        Some(served)
    }

    fn recognise(&mut self, mark: Mark, backend: Backend, guard: &Arc<GuardState>) -> Arc<Served> {
        let list = &mut self.list;
        let visit = match list.iter().position(|(known, _)| *known == mark) {
            Some(index) => list.remove(index),
            None => {
                if list.len() == KEPT {
                    let (_, oldest) = list.remove(0);
                    self.by_address.retain(|_, served| !Arc::ptr_eq(served, &oldest));
                    oldest.close(backend);
                }
                (mark, Arc::new(Served::new(Arc::new(StockContext::new(guard, Account::OfPart)))))
            }
        };
        let served = Arc::clone(&visit.1);
        list.push(visit);
        served
    }

    /// Frees what the hook has of the backend in each of them.
    pub(super) fn close(&mut self, backend: Backend) {
        self.by_address.clear();
        self.list.drain(..).for_each(|(_, served)| served.close(backend));
    }
}
