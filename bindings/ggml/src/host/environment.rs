//! The environment variable that tells whether ggml's CUDA backend makes graphs of its own.
//!
//! The backend reads the environment once, at its first graph. The hook may read it later, when the process
//! may have changed it. The environment that the process started with decides.

/// The variable that switches ggml's own CUDA graphs off by being set.
const GRAPHS_OFF: &str = "GGML_CUDA_DISABLE_GRAPHS";

/// Tells whether ggml certainly makes no CUDA graphs of its own: the variable is set, and was when the
/// process started. Only Linux tells the latter; elsewhere the process must not set the variable itself.
pub(crate) fn ggml_graphs_off() -> bool {
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
            println!("off: {}", ggml_graphs_off());
            return;
        }
        for (case, at_start, off) in [
            ("set", true, true),
            ("not set", false, false),
            ("set later", false, false),
            ("taken away", true, false),
        ] {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again
                .args(["--exact", "host::environment::tests::only_what_the_process_was_started_with_counts"]);
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
