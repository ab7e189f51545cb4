//! `axiscap doctor`: what this machine can do.

mod cache;
mod gpu;
mod image;
mod modules;

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, anyhow};
use axiscap::cpu::Isa;
use axiscap_llama::{Build, Device, Hook, build, default_threads, devices};
use serde::Serialize;

use crate::output;
use cache::Cache;
use gpu::Driver;
use image::Image;
use modules::Modules;

/// Say what this machine can do, what is missing, and how to get it. Fails only if nothing can be capped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  axiscap doctor --json")]
pub(crate) struct Args {
    /// Print one JSON object in place of the text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    cpu: Cpu,
    llama: Llama,
    hook: HookReport,
    modules: Modules,
    devices: Vec<DeviceReport>,
    driver: Driver,
    kernels: Image,
    models: Cache,
}

#[derive(Debug, Serialize)]
struct Cpu {
    architecture: &'static str,
    /// The instructions that the caps run on. Every choice gives the same bits.
    path: String,
    paths_available: Vec<String>,
    logical_processors: usize,
    threads: usize,
}

#[derive(Debug, Serialize)]
struct Llama {
    ggml: String,
    commit: String,
    system_info: String,
    gpu_offload: bool,
}

#[derive(Debug, Serialize)]
struct HookReport {
    ready: bool,
    /// Why it is not ready.
    error: Option<String>,
    /// Measured byte offsets, by name.
    slots: BTreeMap<&'static str, usize>,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    name: String,
    /// ggml's backend that it belongs to, e.g. `CPU`, `Vulkan`.
    backend: String,
    description: String,
    kind: &'static str,
    memory_total: usize,
    memory_free: usize,
    /// How blocks computed there are capped.
    capping: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let report = examine();
    if args.json {
        output::json(&report)?;
    } else {
        output::text(&describe(&report))?;
    }
    match report.hook.error {
        None => Ok(()),
        Some(reason) => Err(anyhow!("nothing can be capped here: {reason}")),
    }
}

fn examine() -> Report {
    let Build { ggml_version, ggml_commit, system_info, gpu_offload } = build();
    let found = devices();
    let hook = Hook::install().map(|hook| hook.report()).map_err(|error| error.to_string());
    let capping = |name: &str| {
        let devices = hook.as_ref().ok().map(|hook| hook.devices.as_slice()).unwrap_or_default();
        devices.iter().find(|device| device.name == name).map(|device| match &device.reason {
            Some(reason) => format!("{}: {reason}", device.route),
            None => device.route.to_string(),
        })
    };
    let devices = found
        .into_iter()
        .map(|Device { name, description, backend, kind, memory_total, memory_free }| DeviceReport {
            capping: capping(&name),
            name,
            backend,
            description,
            kind,
            memory_total,
            memory_free,
        })
        .collect();
    let available = Isa::ALL.into_iter().filter(|isa| isa.available()).map(|isa| isa.to_string());
    Report {
        version: env!("CARGO_PKG_VERSION"),
        cpu: Cpu {
            architecture: std::env::consts::ARCH,
            path: Isa::best().to_string(),
            paths_available: available.collect(),
            logical_processors: std::thread::available_parallelism().map_or(0, usize::from),
            threads: default_threads(),
        },
        llama: Llama { ggml: ggml_version, commit: ggml_commit, system_info, gpu_offload },
        hook: match hook {
            Ok(found) => HookReport { ready: true, error: None, slots: found.slots.into_iter().collect() },
            Err(reason) => HookReport { ready: false, error: Some(reason), slots: BTreeMap::new() },
        },
        modules: Modules::look(),
        devices,
        driver: Driver::probe(),
        kernels: Image::look(),
        models: Cache::look(),
    }
}

/// Returns why llama.cpp, whose backends are all linked in, sees no GPU.
fn no_gpu() -> &'static str {
    if cfg!(feature = "vulkan") {
        "llama.cpp was built with Vulkan and sees no GPU; install the GPU's Vulkan driver, or name a software driver's device in GGML_VK_VISIBLE_DEVICES, which is left out otherwise"
    } else if cfg!(feature = "cuda") {
        "llama.cpp was built with CUDA and sees no GPU"
    } else {
        "llama.cpp was built for the CPU only; a build with --features cuda or --features vulkan can use a GPU"
    }
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |what: &str, how: &str| {
        let _ = writeln!(text, "{what:<10}{how}");
    };
    let Report { version, cpu, llama, hook, modules, devices, driver, kernels, models } = report;
    line("axiscap", version);
    line(
        "cpu",
        &format!(
            "{}, caps run on {} (of {}); {} of {} logical processors used",
            cpu.architecture,
            cpu.path,
            cpu.paths_available.join(", "),
            cpu.threads,
            cpu.logical_processors
        ),
    );
    line("llama.cpp", &format!("ggml {} ({}); {}", llama.ggml, llama.commit, llama.system_info));
    match &hook.error {
        None => line("hook", "ready; measured offsets:"),
        Some(reason) => line("hook", &format!("MISSING: {reason}")),
    }
    for (name, offset) in &hook.slots {
        line("", &format!("  {name} at {offset}"));
    }
    for module in modules.describe() {
        line("backend", &module);
    }
    for device in devices {
        let capping = device.capping.as_deref().unwrap_or("not hooked");
        let DeviceReport { name, description, backend, kind, .. } = device;
        line("device", &format!("{name}: {description} ({kind}, ggml's {backend} backend); {capping}"));
    }
    line("driver", &driver.describe());
    if !llama.gpu_offload && !modules.enabled() {
        line("", no_gpu());
    }
    line("kernels", &kernels.describe());
    line("models", &models.describe());
    text
}
