//! What the plugin does about what the hook finds: log, report, and after a fault end the process.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use axiscap_ggml::{Fault, Found, Reaction, Watcher};
use serde_json::json;

use crate::environment::{STRICT, Strict};
use crate::report::Reporter;

/// The plugin on duty in this process.
#[derive(Debug)]
pub(crate) struct Duty {
    strict: Strict,
    pub(crate) reporter: Reporter,
    /// Faults that the log has been told.
    told: Mutex<HashSet<String>>,
}

impl Duty {
    pub(crate) fn new(strict: Strict, reporter: Reporter) -> Self {
        Self { strict, reporter, told: Mutex::default() }
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

impl Watcher for Duty {
    fn found(&self, found: &Found) {
        match found {
            Found::Capped { model, caps, confirmed } => {
                tracing::info!("capping {model}, with {caps}");
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
            Found::FirstMicroBatch { caps, rows } => {
                tracing::info!("capped: the first {rows} rows were computed with {caps}");
                self.reporter.send("capped", json!({ "caps": caps, "rows": rows }));
            }
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
