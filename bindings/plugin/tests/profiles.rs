//! Slots of a stock llama-server under profiles of their own.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use axiscap::Bound;
use serde_json::{Value, json};

use support::interface::Served;
use support::server::{Server, command};
use support::{
    Host, PROMPTS, caps_for, caps_with, free_port, other_model, plugin, shipped_caps, with_plugin,
};

fn band_at(folder: &Path, name: &str, value: f32) -> PathBuf {
    caps_with(folder, name, |_| Bound::band(value, value).unwrap())
}

fn complete_in(server: &Server, slot: usize, prompt: &str) -> String {
    let body = json!({
        "prompt": prompt, "n_predict": 24, "temperature": 0, "cache_prompt": false, "id_slot": slot,
    });
    let answer = server.post("/completion", &body);
    assert_eq!(answer["id_slot"], slot);
    answer["content"].as_str().unwrap().to_owned()
}

fn with_profiles(command: &mut Command, profiles: &str) {
    command.env("AXISCAP_PROFILES", profiles).env("LD_PRELOAD", plugin());
}

/// Each slot is capped as its profile says, alone and while all of them share batches, in a unified KV cache and in
/// one per slot.
#[test]
fn slots_have_their_own_caps() {
    let folder = tempfile::tempdir().unwrap();
    let (tight, strict) =
        (band_at(folder.path(), "tight.gguf", 60.0), band_at(folder.path(), "strict.gguf", -40.0));
    let texts = |caps: &[&Path]| Server::start(caps, &[]).texts();
    let (plain, by_tight, by_strict) = (texts(&[]), texts(&[&tight]), texts(&[&strict]));
    assert!(plain != by_tight && plain != by_strict && by_tight != by_strict);
    let profiles = format!("1=none,2-3={}", strict.display());
    let expected = [&by_tight, &plain, &by_strict, &by_strict];
    for arguments in [
        &["--parallel", "4", "--ctx-size", "4096", "--kv-unified"][..],
        &["--parallel", "4", "--ctx-size", "4096", "--no-kv-unified", "--ubatch-size", "16"],
    ] {
        let server = Served::start_with(&tight, |command| {
            command.args(arguments);
            with_profiles(command, &profiles);
        });
        for (slot, expected) in expected.iter().enumerate() {
            for (prompt, expected) in PROMPTS.iter().zip(*expected) {
                assert_eq!(
                    complete_in(&server, slot, prompt),
                    *expected,
                    "slot {slot}: {}",
                    server.host.log()
                );
            }
        }
        let read = format!("{}: caps on blocks", strict.display());
        assert_eq!(server.host.log().matches(&read).count(), 1, "{}", server.host.log());
        // All at the same time, with the same prompt in all slots.
        for (index, prompt) in PROMPTS.iter().enumerate() {
            std::thread::scope(|scope| {
                let server = &server.server;
                let threads: Vec<_> =
                    (0..4).map(|slot| scope.spawn(move || complete_in(server, slot, prompt))).collect();
                for (slot, thread) in threads.into_iter().enumerate() {
                    let text = thread.join().unwrap();
                    // Batched products differ in last bits; the caps show from the first words on.
                    let start = |text: &str| text.chars().take(12).collect::<String>();
                    assert_eq!(start(&text), start(&expected[slot][index]), "slot {slot}");
                }
            });
        }
        // Caps are switched off and on between the micro-batches of a batch.
        std::thread::scope(|scope| {
            let prompt = PROMPTS[1].repeat(40);
            let request = scope.spawn({
                let server = &server.server;
                move || (0..3).map(|_| complete_in(server, 3, &prompt).len()).min()
            });
            while !request.is_finished() {
                for enabled in [false, true] {
                    server.change(&json!({ "enabled": enabled }));
                }
            }
            assert!(request.join().unwrap() > Some(0));
        });
        for (slot, expected) in expected.iter().enumerate() {
            assert_eq!(complete_in(&server, slot, PROMPTS[0]), expected[0], "slot {slot}");
        }
        let metrics = server.metrics();
        for caps in [&tight, &strict] {
            let rows = metrics.sum("axiscap_rows_total", &[("caps", caps.to_str().unwrap())]);
            assert!(rows > 500.0, "{}: {rows}", caps.display());
        }
        assert_eq!(metrics.get("axiscap_faults_total"), 0.0);
        let Server { mut host, .. } = server.server;
        assert!(host.terminate().success());
        let ended = host.events("ended");
        for (caps, value) in [(&tight, 60.0), (&strict, -40.0)] {
            let stats = ended.iter().find(|ended| ended["caps"] == caps.to_str().unwrap()).unwrap();
            for stats in stats["stats"].as_array().unwrap() {
                assert_eq!(
                    (stats["min_after"].as_f64(), stats["max_after"].as_f64()),
                    (Some(value), Some(value))
                );
            }
        }
    }
}

/// What would leave a slot under other caps than those it is named with ends the process.
#[test]
fn profiles_that_cannot_be_kept_are_faults() {
    let folder = tempfile::tempdir().unwrap();
    let tight = band_at(folder.path(), "tight.gguf", 60.0);
    let other = other_model(folder.path());
    let of_other = caps_for(folder.path(), "of-other.gguf", &other, &tight);
    let start = |change: &dyn Fn(&mut Command)| {
        let mut command = command(free_port(), &[]);
        with_plugin(&mut command, &[&shipped_caps()]);
        change(&mut command);
        let mut host = Host::start(&mut command);
        assert!(!host.wait().success(), "{}", host.log());
        let fatal = host.events("fatal");
        assert_eq!(fatal.len(), 1, "{}", host.log());
        fatal[0]["reason"].as_str().unwrap().to_owned()
    };
    let reason = start(&|command| _ = command.env("AXISCAP_PROFILES", "0=none"));
    assert!(reason.contains("set LD_PRELOAD to the plugin as well"), "{reason}");
    let reason = start(&|command| with_profiles(command, "0=/absent.gguf"));
    assert!(reason.contains("/absent.gguf"), "{reason}");
    let reason = start(&|command| with_profiles(command, "0-none"));
    assert!(reason.contains("expected SLOT=PROFILE"), "{reason}");
    let reason = start(&|command| with_profiles(command, &format!("0-9={}", of_other.display())));
    assert!(reason.contains("is not for this model") && reason.contains("other norm weights"), "{reason}");
    let reason = start(&|command| {
        command.env_remove("AXISCAP_CAPS");
        with_profiles(command, "0=none");
    });
    assert!(reason.contains("AXISCAP_PROFILES is set without AXISCAP_CAPS"), "{reason}");
}

/// Loaded by LD_PRELOAD without profiles, the plugin changes nothing.
#[test]
fn a_preload_without_profiles_changes_nothing() {
    let plain = Server::start(&[], &[]).texts();
    let preload = |command: &mut Command| _ = command.env("LD_PRELOAD", plugin());
    let mut server = Server::start_with(&[], &[], preload);
    assert_eq!(server.texts(), plain);
    assert!(server.host.terminate().success());
    assert_eq!(server.host.events("loaded"), Vec::<Value>::new());
    let caps = shipped_caps();
    let expected = Server::start(&[&caps], &[]).texts();
    let server = Server::start_with(&[&caps], &[], preload);
    assert_eq!(server.texts(), expected);
    server.end();
}
