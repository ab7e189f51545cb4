//! Whether ggml's CUDA backend makes CUDA graphs of its own, and whether a capture of ours can keep it from that.
//!
//! ggml aborts the process if it begins a capture inside of another one.

use super::api::{cuda_backend_was_read, ggml_version};
use super::tensor::Tensor;

/// The variable that switches ggml's own CUDA graphs off by being set.
const GRAPHS_OFF: &str = "GGML_CUDA_DISABLE_GRAPHS";

/// The CUDA graphs that ggml's CUDA backend makes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnGraphs {
    /// None, by the environment.
    Off,
    /// It makes some, but none of a graph that looks new: [`Graph::with_new_view`](super::Graph::with_new_view).
    ///
    /// ggml 0.26 runs a graph launch by launch if it differs from the last one with the same first node
    /// (`ggml_backend_cuda_graph_compute`). It compares the uid, and then all bytes of all nodes
    /// (`ggml_cuda_graph_update_required`). Other versions may begin a capture at once.
    NoneOfNewGraphs,
    /// It may make one of any graph.
    On,
}

impl OwnGraphs {
    /// Returns what the backend of this process does.
    ///
    /// It reads the environment once, at its first graph. The hook may read it later, when the process may have
    /// changed it. The environment that the process started with decides. Only Linux tells it; elsewhere the
    /// process must not set the variable itself.
    pub(crate) fn of_this_process() -> Self {
        Self::of(graphs_off(), &ggml_version(), Tensor::can_be_marked())
    }

    fn of(off: bool, version: &str, can_be_marked: bool) -> Self {
        match off {
            true => Self::Off,
            false if cuda_backend_was_read(version) && can_be_marked => Self::NoneOfNewGraphs,
            false => Self::On,
        }
    }
}

fn graphs_off() -> bool {
    std::env::var_os(GRAPHS_OFF).is_some()
        && at_start().is_none_or(|environment| names(&environment, GRAPHS_OFF))
}

/// Returns the environment that the process was started with; `None` on systems that do not keep it. One that
/// cannot be read counts as an environment without the variable.
fn at_start() -> Option<Vec<u8>> {
    cfg!(target_os = "linux").then(|| std::fs::read("/proc/self/environ").unwrap_or_default())
}

/// Tells whether a variable is in an environment: `NAME=VALUE`, each followed by a NUL.
fn names(environment: &[u8], variable: &str) -> bool {
    let named =
        |entry: &[u8]| entry.strip_prefix(variable.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    environment.split(|&byte| byte == 0).any(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environment = b"PATH=/bin\0GGML_CUDA_DISABLE_GRAPHS=\0X=GGML_CUDA_P2P=1\0";
        for (name, there) in [
            ("PATH", true),
            (GRAPHS_OFF, true),
            ("GGML_CUDA_DISABLE", false),
            ("GGML_CUDA_P2P", false),
            ("bin", false),
        ] {
            assert_eq!(names(environment, name), there, "{name}");
        }
        assert!(!names(b"", GRAPHS_OFF));
    }

    #[test]
    fn only_a_known_version_leaves_new_graphs_alone() {
        use OwnGraphs::{NoneOfNewGraphs, Off, On};
        for (off, version, can_be_marked, expected) in [
            (true, "0.9.4", false, Off),
            (true, "0.26.0 (abc)", true, Off),
            (false, "0.26.0 (abc)", true, NoneOfNewGraphs),
            (false, "0.26.0", false, On),
            (false, "0.27.0", true, On),
            (false, "0.260.0", true, On),
            (false, "10.26.0", true, On),
            (false, "unknown", true, On),
        ] {
            assert_eq!(OwnGraphs::of(off, version, can_be_marked), expected, "{off} {version}");
        }
    }

    /// Runs each case in a child process, since changing the environment of this one would race with other
    /// tests.
    #[cfg(target_os = "linux")]
    #[test]
    fn only_what_the_process_was_started_with_counts() {
        if let Ok(case) = std::env::var("AXISCAP_TEST_CASE") {
            if case == "set later" {
                // SAFETY: nothing else runs in this process.
                unsafe { std::env::set_var(GRAPHS_OFF, "1") };
            }
            if case == "taken away" {
                // SAFETY: nothing else runs in this process.
                unsafe { std::env::remove_var(GRAPHS_OFF) };
            }
            println!("off: {}", graphs_off());
            return;
        }
        for (case, at_start, off) in [
            ("set", true, true),
            ("not set", false, false),
            ("set later", false, false),
            ("taken away", true, false),
        ] {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", "host::own_graphs::tests::only_what_the_process_was_started_with_counts"]);
            again.args(["--nocapture", "--test-threads", "1"]);
            again.env("AXISCAP_TEST_CASE", case).env_remove(GRAPHS_OFF);
            if at_start {
                again.env(GRAPHS_OFF, "1");
            }
            let output = String::from_utf8(again.output().unwrap().stdout).unwrap();
            assert!(output.contains(&format!("off: {off}")), "{case}: {output}");
        }
    }
}
