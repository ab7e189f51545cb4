//! Starts the program again with ggml's own CUDA graphs off, which makes a capped decode one CUDA graph.
//!
//! ggml reads the variable once per process, and a process that sets it while it runs races with threads that
//! read it. The environment of a new program is free of both.

use axiscap_llama::RouteChoice;

use crate::model::GpuLayers;

/// The variable that switches ggml's own CUDA graphs off by being set: docs/capture.md.
const GRAPHS_OFF: &str = "GGML_CUDA_DISABLE_GRAPHS";

/// Starts the program again with the variable set, if a capped decode on a GPU gains by it. Returns if not, or
/// if the system refuses: then caps run between pieces of the graph.
///
/// To be called before anything is read from stdin.
pub(crate) fn prefer(capped: bool, route: RouteChoice, gpu_layers: Option<GpuLayers>) {
    let unset = std::env::var_os(GRAPHS_OFF).is_none();
    if cfg!(target_os = "linux") && unset && gains(capped, route, gpu_layers) && has_gpu() {
        let error = start_again();
        tracing::debug!(%error, "the program was not started again with {GRAPHS_OFF}=1");
    }
}

/// Whether a decode would be one CUDA graph. An explicit choice of a route stays as it is.
fn gains(capped: bool, route: RouteChoice, gpu_layers: Option<GpuLayers>) -> bool {
    capped && route == RouteChoice::Auto && gpu_layers != Some(GpuLayers::Count(0))
}

#[cfg(feature = "gpu")]
fn has_gpu() -> bool {
    axiscap::cuda::probe().is_ok_and(|gpus| !gpus.is_empty())
}

#[cfg(not(feature = "gpu"))]
fn has_gpu() -> bool {
    false
}

/// Replaces the process by the same program with the variable set. Returns only an error.
#[cfg(unix)]
fn start_again() -> std::io::Error {
    use std::os::unix::process::CommandExt;
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    again.args(arguments).env(GRAPHS_OFF, "1").exec()
}

#[cfg(not(unix))]
fn start_again() -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_capped_text_on_a_gpu_gains() {
        let auto = RouteChoice::Auto;
        assert!(gains(true, auto, None));
        assert!(gains(true, auto, Some(GpuLayers::All)) && gains(true, auto, Some(GpuLayers::Count(8))));
        assert!(!gains(false, auto, None), "stock llama.cpp is faster with its own graphs");
        assert!(!gains(true, auto, Some(GpuLayers::Count(0))), "the CPU has no graphs");
        for chosen in [RouteChoice::Views, RouteChoice::OneGraph, RouteChoice::Inserted] {
            assert!(!gains(true, chosen, None), "{chosen:?}");
        }
    }

    /// The program that is started again has the variable, its arguments and its name. The test runs itself.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_program_starts_again_with_the_variable() {
        const CASE: &str = "AXISCAP_TEST_CASE";
        if std::env::var_os(CASE).is_some() {
            match std::env::var(GRAPHS_OFF) {
                Ok(value) => println!("{GRAPHS_OFF}={value}, {:?}", std::env::args().next_back()),
                Err(_) => println!("not started again: {}", start_again()),
            }
            return;
        }
        let mut first = std::process::Command::new(std::env::current_exe().unwrap());
        first.args([
            "--exact",
            "one_graph::tests::the_program_starts_again_with_the_variable",
            "--nocapture",
        ]);
        let output = first.env(CASE, "1").env_remove(GRAPHS_OFF).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("GGML_CUDA_DISABLE_GRAPHS=1, Some(\"--nocapture\")"), "{text}");
    }
}
