//! What the plugin does about what the hook finds: log, report, and after a fault end the process.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use axiscap::CapStats;
use axiscap_ggml::{Fault, Found, Reaction, Watcher};
use serde_json::json;

use crate::environment::{Environment, STRICT, Strict};
use crate::report::Reporter;

/// The plugin on duty in this process.
#[derive(Debug)]
pub(crate) struct Duty {
    strict: Strict,
    /// Whether slots are under profiles.
    has_profiles: bool,
    pub(crate) reporter: Reporter,
    /// Faults that the log has been told.
    told: Mutex<HashSet<String>>,
    /// The models that were recognised last, by the name of their caps.
    models: Mutex<HashMap<String, String>>,
}

impl Duty {
    pub(crate) fn new(environment: &Environment, reporter: Reporter) -> Self {
        let (strict, has_profiles) = (environment.strict, !environment.profiles.is_empty());
        Self { strict, has_profiles, reporter, told: Mutex::default(), models: Mutex::default() }
    }

    /// Something prevents capping. Ends the process unless the environment says otherwise.
    pub(crate) fn fail(&self, reason: &str) {
        match self.strict {
            Strict::Abort => {
                tracing::error!("{reason}");
                tracing::error!(
                    "the process ends rather than serve uncapped text ({STRICT}=warn has it go on)"
                );
                self.reporter.send("fatal", json!({ "reason": reason }));
                end_process();
            }
            Strict::Warn => {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.insert(reason.to_owned()) {
                    drop(told);
                    tracing::error!("NOT CAPPED: {reason}");
                    self.reporter.send("warning", json!({ "text": format!("not capped: {reason}") }));
                }
            }
        }
    }
}

impl Duty {
    /// A context was freed, whose caps did this.
    fn ended(&self, caps: &str, stats: &[CapStats]) {
        let (mut all, mut list) = (CapStats::default(), Vec::new());
        for (cap, stats) in stats.iter().enumerate() {
            all.merge(stats);
            let CapStats { rows, engaged, non_finite, skipped, .. } = *stats;
            let [min_after, max_after] = [stats.min_after, stats.max_after].map(finite);
            tracing::debug!(
                "cap {cap}: {rows} rows, {engaged} moved, {non_finite} not finite, {skipped} left alone, projections after it {min_after:?} to {max_after:?}"
            );
            list.push(json!({
                "rows": rows,
                "engaged": engaged,
                "non_finite": non_finite,
                "skipped": skipped,
                "min_after": min_after,
                "max_after": max_after,
            }));
        }
        let share = 100.0 * all.engaged as f64 / all.rows.max(1) as f64;
        tracing::info!("a context has ended: {} rows and caps, {share:.1} % moved, with {caps}", all.rows);
        self.reporter.send("ended", json!({ "caps": caps, "stats": list }));
    }
}

/// Returns a number that JSON has.
fn finite(value: f32) -> Option<f32> {
    value.is_finite().then_some(value)
}

impl Watcher for Duty {
    fn found(&self, found: &Found) {
        match found {
            Found::Capped { model, caps, confirmed } => {
                tracing::info!("capping {model}, with {caps}");
                let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
                models.insert(caps.clone(), model.to_string());
                drop(models);
                if !confirmed {
                    tracing::warn!(
                        "{caps} does not say which model it is for, and its shape fits; `axiscap bind` writes the model into it"
                    );
                }
            }
            Found::NotCapped { model, misfits } => {
                tracing::warn!("not capped: {model}");
                for (caps, misfit) in misfits {
                    tracing::info!("{caps} is not for it: {misfit}");
                }
                self.reporter.send("not_capped", json!({ "model": model.to_string() }));
            }
            Found::FirstMicroBatch { caps, rows, blocks } => {
                let profiles = if self.has_profiles { ", or under the profiles of their slots" } else { "" };
                tracing::info!("capped: the first {rows} rows were computed with {caps}{profiles}");
                let model = self.models.lock().unwrap_or_else(PoisonError::into_inner).get(caps).cloned();
                let report = json!({ "caps": caps, "rows": rows, "model": model, "blocks": blocks });
                self.reporter.send("capped", report);
            }
            Found::Ended { caps, stats } => self.ended(caps, stats),
            _ => {}
        }
    }

    fn fault(&self, fault: &Fault) -> Reaction {
        let reason = match &fault.caps {
            Some(caps) => format!("{} (caps: {caps})", fault.error),
            None => fault.error.to_string(),
        };
        self.fail(&reason);
        Reaction::Uncapped
    }
}

/// Ends the process at once, without a core file: it would hold the model.
fn end_process() -> ! {
    // SAFETY: the call only changes an attribute of the process.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    std::process::abort()
}
