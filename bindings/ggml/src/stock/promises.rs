//! What the process, as an RPC server, has told its clients that it caps.

use std::sync::Arc;

use super::guard::GuardState;
use super::models::{ModelCaps, choose};
use crate::record::lock;
use crate::rpc::{Answer, Question};

/// Models of clients that are remembered.
const KEPT: usize = 64;

/// What clients were told.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Caps that they count on, until the end of the process: a server is not told when a client is gone.
    caps: Vec<Arc<ModelCaps>>,
    /// Models that are not capped here, by the norms of their parts. The clients cap them.
    left: Vec<Vec<(String, [u8; 32])>>,
}

impl Promises {
    /// Returns caps that a client counts on, and that are not among these.
    pub(super) fn broken_by(&self, models: &[Arc<ModelCaps>], enabled: bool) -> Option<&ModelCaps> {
        let kept = |promised: &ModelCaps| enabled && models.iter().any(|caps| caps.acts_as(promised));
        self.caps.iter().map(|promised| &**promised).find(|promised| !kept(promised))
    }

    /// Whether a client was told that the model with these norms is not capped here.
    fn is_left(&self, norms: &[(String, [u8; 32])]) -> bool {
        !norms.is_empty() && self.left.iter().any(|left| norms.iter().all(|norm| left.contains(norm)))
    }
}

impl GuardState {
    /// Whether a client was told that the model with these norms is not capped here, so that it caps it.
    pub(super) fn is_left_to_client(&self, norms: &[(String, [u8; 32])]) -> bool {
        lock(&self.contexts).promises.is_left(norms)
    }

    /// Answers a client. What the answer says about the caps of its model holds from now on.
    pub(super) fn answer(&self, question: &Question) -> Answer {
        let mut contexts = lock(&self.contexts);
        let current = self.current();
        let promises = &mut contexts.promises;
        let Ok(index) = choose(&current.models, &question.shape, &question.norms) else {
            if !promises.is_left(&question.norms) {
                if promises.left.len() == KEPT {
                    promises.left.remove(0);
                }
                promises.left.push(question.norms.clone());
            }
            return Answer::No;
        };
        let caps = &current.models[index];
        if !current.enabled {
            return Answer::Otherwise(format!("its caps ({}) are switched off; switch them on", caps.name));
        }
        let policy = caps.caps.policy();
        if caps.digest() != question.caps || policy.skip_positions != question.skip_positions {
            return Answer::Otherwise(format!(
                "it caps this model with {}, which are other caps than those of this process, or have another strength; give both the same",
                caps.name
            ));
        }
        if !promises.caps.iter().any(|promised| caps.acts_as(promised)) {
            promises.caps.push(Arc::clone(caps));
            tracing::info!("a client counts on {}: they are in force until this process ends", caps.name);
        }
        Answer::Same
    }
}
