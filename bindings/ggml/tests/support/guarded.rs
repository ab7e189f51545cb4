//! Contexts that a guard caps, as in a program that does not know of the hook.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::sync::{Arc, Mutex};

use axiscap::CapSet;
use axiscap_ggml::{Fault, Found, Guard, Hook, ModelCaps, ModelShape, Reaction, Settings, Watcher};

/// Keeps what a guard says.
#[derive(Debug)]
pub(crate) struct Kept {
    reaction: Reaction,
    pub(crate) found: Mutex<Vec<Found>>,
    pub(crate) faults: Mutex<Vec<Fault>>,
}

impl Watcher for Kept {
    fn found(&self, found: &Found) {
        self.found.lock().unwrap().push(found.clone());
    }

    fn fault(&self, fault: &Fault) -> Reaction {
        self.faults.lock().unwrap().push(fault.clone());
        self.reaction
    }
}

/// A guard, and what it said.
pub(crate) struct Guarded {
    pub(crate) guard: Guard,
    pub(crate) kept: Arc<Kept>,
}

impl Guarded {
    pub(crate) fn new(hook: &Hook, models: Vec<ModelCaps>, reaction: Reaction) -> Self {
        Self::with_settings(hook, models, reaction, Settings::default())
    }

    pub(crate) fn with_settings(
        hook: &Hook,
        models: Vec<ModelCaps>,
        reaction: Reaction,
        settings: Settings,
    ) -> Self {
        let kept = Arc::new(Kept { reaction, found: Mutex::default(), faults: Mutex::default() });
        let watcher: Arc<dyn Watcher> = Arc::clone(&kept) as _;
        Self { guard: hook.guard(models, settings, watcher).expect("a guard"), kept }
    }

    /// Takes what was found so far.
    pub(crate) fn found(&self) -> Vec<Found> {
        std::mem::take(&mut self.kept.found.lock().unwrap())
    }

    /// Takes the faults so far, as text.
    pub(crate) fn faults(&self) -> Vec<String> {
        let faults = std::mem::take(&mut *self.kept.faults.lock().unwrap());
        faults.into_iter().map(|fault| fault.error.to_string()).collect()
    }
}

/// Caps for a model that is known by these norms, or without any by its shape.
pub(crate) fn model_caps(
    name: &str,
    shape: ModelShape,
    caps: CapSet,
    norms: &[(&str, [u8; 32])],
) -> ModelCaps {
    let norms = norms.iter().map(|&(name, digest)| (name.to_owned(), digest)).collect();
    ModelCaps { name: name.into(), shape, norms, caps }
}
