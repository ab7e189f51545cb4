//! Attaches the plugin to the process: once, for the first that asks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use axiscap_ggml::{Guard, Hook, ModelCaps, Settings};
use serde_json::json;

use crate::caps;
use crate::decode;
use crate::duty::Duty;
use crate::environment::{CAPS, Environment, LISTEN, PROFILES};
use crate::host::Host;
use crate::http::{self, Control, Listener, Origin};
use crate::log;
use crate::profiles;
use crate::registry::{NAME, Registry};
use crate::report::Reporter;

/// Who asks for the plugin.
#[derive(Debug, Clone, Copy)]
pub(crate) enum By {
    /// ggml, which loads it as a backend; with an address in ggml's code.
    Ggml { caller: usize },
    /// The program, by `axiscap_attach`.
    Program,
}

impl By {
    /// Returns an address in the code of the ggml that asks, if it is known.
    fn caller(self) -> Option<usize> {
        match self {
            Self::Ggml { caller } => Some(caller).filter(|&caller| caller != 0),
            Self::Program => None,
        }
    }
}

/// The plugin in this process.
#[derive(Debug)]
struct Attached {
    registry: &'static Registry,
    duty: Arc<Duty>,
    host: Host,
    /// The hook, unless there is nothing to cap. Keeps it installed.
    hook: Option<(Hook, Guard)>,
}

/// The plugin, once it was attached. A failed attempt is repeated.
static ATTACHED: Mutex<Option<Attached>> = Mutex::new(None);

/// Attaches the plugin, if it is not attached yet, and returns its registry. `None` if that failed and the
/// process is to go on.
pub(crate) fn attach(by: By) -> Option<&'static Registry> {
    let mut attached = ATTACHED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(Attached { registry, duty, hook, host }) = &*attached {
        if hook.is_some() {
            let named = Environment::read().0.ggml;
            if let Some(other) = host.other(by.caller(), named.as_deref()) {
                let reason = format!(
                    "a second ggml of this process ({other}) asks for caps, but the plugin caps the models of one ggml, that of {}",
                    host.path()
                );
                if named.is_some() {
                    tracing::warn!("not capped: {reason}");
                } else {
                    duty.fail(&format!(
                        "{reason}; run the two in processes of their own, or name the one to cap in AXISCAP_GGML and leave the other uncapped"
                    ));
                }
                return None;
            }
            // ggml may have got further devices since.
            // SAFETY: the symbols of one loaded ggml, which this plugin keeps loaded.
            let again = unsafe { Hook::install_in(&|name| host.symbol(name)) };
            if let Err(error) = again {
                duty.fail(&error.to_string());
            }
        }
        return Some(registry);
    }
    let (environment, wrong) = Environment::read();
    log::begin(environment.log);
    let duty = Arc::new(Duty::new(&environment, Reporter::new(environment.report.as_deref())));
    let attempt = || match wrong {
        Some(wrong) => Err(format!("{wrong}; correct it or leave it out")),
        None => attach_to(by, &environment, &duty),
    };
    match catch_unwind(AssertUnwindSafe(attempt)) {
        Ok(Ok(found)) => Some(attached.insert(found).registry),
        Ok(Err(reason)) => {
            duty.fail(&reason);
            None
        }
        Err(_) => {
            duty.fail("a bug in axiscap: it panicked while it was attached");
            None
        }
    }
}

fn attach_to(by: By, environment: &Environment, duty: &Arc<Duty>) -> Result<Attached, String> {
    for name in &environment.unknown {
        tracing::warn!("{name} is no variable that axiscap knows, and has no effect");
    }
    let host = Host::find(by.caller(), environment.ggml.as_deref()).map_err(|error| error.to_string())?;
    let first = host.first_registry();
    if first.is_null() {
        return Err(
            "ggml has no device yet: its backends (libggml-cpu*.so) were not found beside the program, or the program has not called ggml_backend_load_all"
                .into(),
        );
    }
    // SAFETY: the registry of a device of this ggml.
    let registry = Registry::get(unsafe { Registry::api_version(first) });
    let own = std::ptr::from_ref(registry).cast();
    let other = host.registry_by_name(NAME);
    if !other.is_null() && other != own {
        tracing::error!(
            "another copy of the plugin is loaded in this process and caps it; this one ({}) does nothing",
            env!("CARGO_PKG_VERSION")
        );
        return Ok(Attached { registry, duty: Arc::clone(duty), host, hook: None });
    }
    if environment.caps.is_empty() && !environment.profiles.is_empty() {
        return Err(format!(
            "{PROFILES} is set without {CAPS}; name the caps of the slots without a profile in it"
        ));
    }
    if environment.caps.is_empty() {
        tracing::warn!("{CAPS} is not set: nothing is capped");
        if environment.listen.is_some() {
            tracing::warn!("{LISTEN} has no effect without {CAPS}");
        }
        return Ok(Attached { registry, duty: Arc::clone(duty), host, hook: None });
    }
    let originals = caps::read(&environment.caps).map_err(|error| error.to_string())?;
    let models = caps::with_strength(&originals, environment.strength).map_err(|error| error.to_string())?;
    let slots =
        profiles::read(&environment.profiles, environment.strength).map_err(|error| error.to_string())?;
    models.iter().chain(profiles::caps_of(&slots)).for_each(announce);
    let listener = environment.listen.as_ref().map(Listener::bind).transpose();
    let listener = listener.map_err(|error| error.to_string())?;
    // SAFETY: the symbols of one loaded ggml, which this plugin keeps loaded.
    let hook = unsafe { Hook::install_in(&|name| host.symbol(name)) }.map_err(|error| error.to_string())?;
    let mut settings = Settings::default();
    settings.route = environment.engine;
    let guard = hook.guard(models, settings, Arc::clone(duty) as _).map_err(|error| error.to_string())?;
    let report = hook.report();
    if listener.is_some() {
        guard.keep_totals();
    }
    if !slots.is_empty() {
        decode::switch_on().map_err(|reason| format!("{PROFILES}: {reason}"))?;
        guard.set_slots(slots).map_err(|error| format!("{PROFILES}: {error}"))?;
        tracing::info!("slots are under profiles ({PROFILES}), all others under the caps of their model");
    }
    if let Some(listener) = listener {
        let (files, strength) = (environment.caps.clone(), environment.strength);
        let origin = Origin { files, strength, models: originals };
        http::serve(listener, Control::new(guard.clone(), &report.ggml, origin))?;
    }
    guard.bind_rest();
    if let By::Program = by {
        // ggml registers what it loads itself.
        host.register(own);
    }
    let devices: Vec<_> = report.devices.iter().map(|device| device.name.as_str()).collect();
    tracing::info!(
        "axiscap {} is attached to ggml {} ({}), devices {}",
        env!("CARGO_PKG_VERSION"),
        report.ggml,
        host.path(),
        devices.join(", ")
    );
    for device in &report.devices {
        tracing::debug!("{}: {}", device.name, device.route);
        if let Some(reason) = &device.reason {
            tracing::warn!("{}: {reason}", device.name);
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    duty.reporter.send("loaded", json!({ "version": version, "ggml": report.ggml, "devices": devices }));
    Ok(Attached { registry, duty: Arc::clone(duty), host, hook: Some((hook, guard)) })
}

/// Says what caps are for.
fn announce(caps: &ModelCaps) {
    let blocks: Vec<_> = caps.caps.blocks().into_keys().collect();
    let (shape, policy) = (&caps.shape, caps.caps.policy());
    tracing::info!(
        "{}: caps on blocks {blocks:?} of a `{}` of {} blocks of width {}{}",
        caps.name,
        shape.architecture,
        shape.blocks,
        shape.width,
        match policy.skip_positions {
            0 => String::new(),
            count => format!("; the first {count} positions of a sequence are left alone"),
        }
    );
}
