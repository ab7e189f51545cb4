//! `axiscap exec` with a stock llama-server, and with programs that never load the plugin.
//!
//! `scripts/check-plugin` names the program where it was built (`AXISCAP_TEST_PROGRAM`).

mod support;

use std::path::Path;
use std::process::Command;

use support::{Host, free_port, is_up, model, other_model, plugin, shipped_caps};

/// Returns the launcher's command line up to the host's, `None` where the program was not built.
fn launcher(caps: &Path) -> Option<Command> {
    let Some(program) = std::env::var_os("AXISCAP_TEST_PROGRAM") else {
        eprintln!("skipped: the program axiscap is not built");
        return None;
    };
    let mut command = Command::new(program);
    command.arg("exec").arg("--caps").arg(caps).arg("--plugin").arg(plugin());
    command.env_remove("GGML_BACKEND_PATH");
    Some(command)
}

fn serve(command: &mut Command, model: &Path, port: u16) {
    command.arg("--").arg(support::path("AXISCAP_TEST_LLAMA_SERVER"));
    command
        .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--threads", "1", "--model"])
        .arg(model);
}

#[test]
fn a_server_is_capped_and_ended_through_the_launcher() {
    let Some(mut command) = launcher(&shipped_caps()) else { return };
    let port = free_port();
    command.args(["--strength", "0.5", "--until-capped", "120"]);
    serve(&mut command, &model(), port);
    let mut host = Host::start(&mut command);
    host.wait_for("the server answers", |_| is_up(port));
    let log = host.log();
    assert!(log.contains("axiscap: capped: the first"), "{log}");
    // What the launcher itself says.
    assert!(log.lines().any(|line| line.starts_with("note: ") && line.contains("6 blocks")), "{log}");
    let status = host.terminate();
    assert!(status.success(), "{status}: {}", host.log());
    assert!(host.log().contains("a context has ended"), "{}", host.log());
}

#[test]
fn a_model_without_caps_is_not_served_and_the_launcher_says_why() {
    let Some(mut command) = launcher(&shipped_caps()) else { return };
    let folder = tempfile::tempdir().unwrap();
    serve(&mut command, &other_model(folder.path()), free_port());
    let mut host = Host::start(&mut command);
    assert_eq!(host.wait().code(), Some(1));
    let log = host.log();
    let last = log.lines().rfind(|line| line.starts_with("error:")).unwrap_or_default();
    assert!(last.contains("no caps are for this model"), "{log}");
}

#[test]
fn a_host_that_loads_no_plugin_is_ended() {
    let Some(mut command) = launcher(&shipped_caps()) else { return };
    command.args(["--timeout", "2", "--", "sleep", "600"]);
    let mut host = Host::start(&mut command);
    assert_eq!(host.wait().code(), Some(1));
    assert!(host.log().contains("plugin"), "{}", host.log());
}
