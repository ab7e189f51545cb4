//! Every architecture that the pinned llama.cpp knows, as a small random model: capped, or refused by name.
//!
//! The results are docs/architectures.md. `AXISCAP_BLESS=1` writes it. `AXISCAP_ARCHITECTURES=llama,mamba`
//! tries these alone.

mod examine;
mod forms;
mod graph;
mod table;

#[path = "../support/capped.rs"]
mod capped;
#[path = "../support/guarded.rs"]
mod guarded;
#[path = "../support/mod.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::examine::{Outcome, examine};

#[test]
fn every_architecture_is_capped_or_refused_by_name() {
    let only = std::env::var("AXISCAP_ARCHITECTURES").ok();
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|o| o == name));
    let tried: Vec<_> = forms::all().into_iter().filter(|form| is_wanted(form.architecture)).collect();
    let hook = support::install();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![None; tried.len()]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(form) = tried.get(index) else { break };
                    let examine = || examine(&hook, &form.describe(), form.refused);
                    let outcome = catch_unwind(AssertUnwindSafe(examine));
                    let outcome = outcome.unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned();
                        Err(text.unwrap_or_else(|| "it panicked".into()))
                    });
                    outcomes.lock().unwrap()[index] = Some(outcome);
                }
            });
        }
    });
    let outcomes: Vec<Result<Outcome, String>> =
        outcomes.into_inner().unwrap().into_iter().map(Option::unwrap).collect();
    let faults: Vec<_> = tried
        .iter()
        .zip(&outcomes)
        .filter_map(|(form, outcome)| Some(format!("{form}: {}", outcome.as_ref().err()?)))
        .collect();
    assert!(faults.is_empty(), "{} of {} models:\n{}", faults.len(), tried.len(), faults.join("\n"));
    if only.is_none() {
        let outcomes = outcomes.into_iter().map(Result::unwrap);
        table::check(&tried.into_iter().zip(outcomes).collect::<Vec<_>>());
    }
}

/// The list of architectures is that of the llama.cpp that is built.
#[test]
fn no_architecture_is_forgotten() {
    let run = |program: &str, arguments: &[&str]| {
        let program = std::env::var_os(program.to_uppercase()).unwrap_or_else(|| program.into());
        let mut command = std::process::Command::new(program);
        let output =
            command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("it runs");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let version = run("rustc", &["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    // Packages of other platforms may not be here.
    let arguments = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host];
    let metadata = run("cargo", &arguments);
    let mut manifests =
        metadata.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let manifest = manifests.find(|path| path.contains("llama-cpp-sys-2-")).expect("a dependency");
    let source = manifest.replace("Cargo.toml", "llama.cpp/src/llama-arch.cpp");
    let source = std::fs::read_to_string(&source).unwrap_or_else(|error| panic!("{source}: {error}"));
    let names = source.split("LLM_ARCH_NAMES = {").nth(1).and_then(|rest| rest.split("};").next()).unwrap();
    let mut names: Vec<_> = names
        .lines()
        .filter(|line| line.contains("{ LLM_ARCH_"))
        .filter_map(|line| line.split('"').nth(1))
        .filter(|name| *name != "(unknown)")
        .collect();
    names.sort_unstable();
    assert_eq!(names, axiscap_testing::llama::ARCHITECTURES);
}
