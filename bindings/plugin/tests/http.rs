//! The local HTTP interface in a stock llama-server.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axiscap::Bound;
use axiscap::file::{CapFile, ModelInfo};
use serde_json::{Value, json};

use support::interface::Served;
use support::server::{Server, command};
use support::{Host, PROMPTS, agent, caps_with, check_floors, free_port, model, shipped_caps, with_plugin};

fn band_at(value: f32) -> impl Fn(Bound) -> Bound {
    move |_| Bound::band(value, value).unwrap()
}

#[test]
fn metrics_count_what_the_caps_do() {
    let caps = shipped_caps();
    let server = Served::start(&caps);
    let warm = server.metrics();
    server.texts();
    let metrics = server.metrics();
    let file = CapFile::read(&caps).unwrap();
    for (index, entry) in file.caps.caps().iter().enumerate() {
        let (cap, block) = (index.to_string(), entry.block.to_string());
        let labels = [("cap", &*cap), ("block", &*block), ("generation", "1")];
        let rows = metrics.sum("axiscap_rows_total", &labels);
        assert!(rows >= warm.sum("axiscap_rows_total", &labels) + 32.0, "{rows}");
        let engaged = metrics.sum("axiscap_engaged_rows_total", &labels);
        let within = metrics.sum("axiscap_excess_bucket", &[&labels[..], &[("le", "0")]].concat());
        assert_eq!(metrics.sum("axiscap_excess_count", &labels), rows);
        assert_eq!((rows - within, engaged > 0.0), (engaged, true));
        let floor = metrics.sum("axiscap_cap_floor", &labels[..2]);
        assert_eq!(floor as f32, entry.cap.bound().lo());
    }
    assert!(metrics.sum("axiscap_projection_positive_total", &[]) > 0.0);
    assert_eq!((metrics.get("axiscap_enabled"), metrics.get("axiscap_generation")), (1.0, 1.0));
    assert_eq!(metrics.get("axiscap_faults_total"), 0.0);
    assert_eq!(metrics.sum("axiscap_contexts", &[]), 1.0);
    assert_eq!(metrics.get("axiscap_micro_batches_total{result=\"off\"}"), 0.0);
    assert!(metrics.get("axiscap_micro_batches_total{result=\"capped\"}") >= 32.0);

    let shown = server.caps();
    assert_eq!((&shown["generation"], &shown["enabled"]), (&1.into(), &true.into()));
    assert_eq!(shown["models"][0]["list"].as_array().map(Vec::len), Some(file.caps.caps().len()));
    assert_eq!(shown["models"][0]["contexts"], 1);
    let context = &shown["contexts"][0];
    assert!(context["micro_batches"].as_u64() > Some(32), "{shown}");
    assert!(context["routes"][0]["device"].is_string(), "{shown}");
    let ended = server.server.end();
    check_floors(&ended, &caps);
    for (index, stats) in ended["stats"].as_array().unwrap().iter().enumerate() {
        let rows = metrics.sum("axiscap_rows_total", &[("cap", &index.to_string())]);
        assert_eq!(stats["rows"].as_f64(), Some(rows));
    }
}

#[test]
fn caps_change_while_the_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let tight = caps_with(folder.path(), "tight.gguf", band_at(60.0));
    let other = caps_with(folder.path(), "other.gguf", band_at(-40.0));
    let plain = Server::start(&[], &[]).texts();
    let expected = Served::start(&other).texts();
    let server = Served::start(&tight);
    let capped = server.texts();
    assert!(capped != plain && expected != plain && capped != expected);
    assert_eq!(server.change(&json!({ "strength": 0 }))["generation"], 2);
    assert_eq!(server.texts(), plain);
    assert_eq!(server.change(&json!({ "strength": null }))["generation"], 3);
    assert_eq!(server.texts(), capped);
    let answer = server.change(&json!({ "file": other }));
    assert_eq!(server.texts(), expected);
    let context = &answer["contexts"][0];
    assert_eq!(context["caps_before"], tight.to_str().unwrap());
    assert_eq!(context["caps"], other.to_str().unwrap());
    assert_eq!(context["kv_cache"], "rows of generations before 4 are kept");

    // Rows are counted by the caps that they were computed under, and not while caps are off.
    let before = server.metrics();
    for generation in ["1", "2", "3", "4"] {
        assert!(before.sum("axiscap_rows_total", &[("generation", generation)]) > 0.0, "{generation}");
    }
    server.change(&json!({ "enabled": false }));
    assert_eq!(server.texts(), plain);
    let off = server.metrics();
    assert_eq!(off.sum("axiscap_rows_total", &[]), before.sum("axiscap_rows_total", &[]));
    assert_eq!(off.get("axiscap_enabled"), 0.0);
    assert!(off.get("axiscap_micro_batches_total{result=\"off\"}") >= 32.0);
    assert_eq!(server.caps()["contexts"][0]["enabled"], false);
    server.change(&json!({ "enabled": true, "file": tight }));
    assert_eq!(server.texts(), capped);
    let mut answer = agent().post(format!("{}/reload", server.control)).send_empty().unwrap();
    assert_eq!(answer.body_mut().read_json::<Value>().unwrap()["generation"], 7);
    assert_eq!(server.texts(), capped);
    let log = server.host.log();
    assert_eq!(log.matches("caps are switched off over HTTP").count(), 1, "{log}");
    for stats in server.server.end()["stats"].as_array().unwrap() {
        assert_eq!((stats["min_after"].as_f64(), stats["max_after"].as_f64()), (Some(60.0), Some(60.0)));
    }
}

/// Writes the shipped caps as those of a model of another number of blocks.
fn caps_of_another_model(folder: &Path) -> PathBuf {
    let file = CapFile::read(&shipped_caps()).unwrap();
    let path = folder.join("larger.gguf");
    CapFile::new(file.caps, ModelInfo::new(file.model.architecture, 40)).write(&path).unwrap();
    path
}

#[test]
fn wrong_changes_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tight = caps_with(folder.path(), "tight.gguf", band_at(60.0));
    let unbounded = caps_with(folder.path(), "unbounded.gguf", |_| Bound::NONE);
    let larger = caps_of_another_model(folder.path());
    let half = folder.path().join("half.gguf");
    let whole = std::fs::read(&tight).unwrap();
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let server = Served::start(&tight);
    let capped = server.texts();
    for (change, expected, reason) in [
        (json!({ "file": "/absent.gguf" }), 422, "/absent.gguf"),
        (json!({ "file": half }), 422, "cut short"),
        (json!({ "file": unbounded }), 422, "no cap has a bound"),
        (json!({ "file": model() }), 422, "another kind of GGUF file"),
        (json!({ "files": [tight, tight] }), 422, "are for the same model"),
        (json!({ "file": larger }), 409, "would be left without caps"),
        (json!({ "strength": 1.5 }), 400, "from 0 to 1"),
        (json!({ "strenght": 1 }), 400, "is not known"),
        (json!([]), 400, "expected a JSON object"),
    ] {
        let (status, answer) = server.put(&change);
        assert_eq!(status, expected, "{change}: {answer}");
        assert!(answer["error"]["reason"].as_str().unwrap().contains(reason), "{change}: {answer}");
    }
    assert_eq!(server.caps()["generation"], 1);
    assert_eq!(server.texts(), capped);
    // Both together cap the model, and caps that are switched off may be for any model.
    assert_eq!(server.change(&json!({ "files": [larger, tight] }))["generation"], 2);
    assert_eq!(server.texts(), capped);
    let answer = server.change(&json!({ "file": larger, "enabled": false }));
    assert_eq!(answer["contexts"][0]["caps"], Value::Null);
    assert_ne!(server.texts(), capped);
    assert_eq!(server.put(&json!({ "enabled": true })).0, 409);
    server.change(&json!({ "file": tight, "enabled": true }));
    assert_eq!(server.texts(), capped);
    assert_eq!(server.metrics().get("axiscap_faults_total"), 0.0);
    server.server.end();
}

#[test]
fn requests_run_while_caps_change_and_clients_misbehave() {
    let folder = tempfile::tempdir().unwrap();
    let tight = caps_with(folder.path(), "tight.gguf", band_at(60.0));
    let other = caps_with(folder.path(), "other.gguf", band_at(-40.0));
    let server =
        Served::start_with(&tight, |command| _ = command.args(["--parallel", "4", "--batch-size", "16"]));
    let capped = server.texts();
    let done = AtomicBool::new(false);
    let address = server.control.strip_prefix("http://").unwrap();
    std::thread::scope(|scope| {
        let (server, done) = (&server, &done);
        let requests: Vec<_> = (0..3)
            .map(|i| {
                scope.spawn(move || {
                    (0..6).map(|j| server.complete(PROMPTS[(i + j) % PROMPTS.len()]).len()).min()
                })
            })
            .collect();
        let changes = scope.spawn(|| {
            let mut generation = 1;
            while !done.load(Ordering::Relaxed) {
                for change in [
                    json!({ "strength": 0 }),
                    json!({ "file": other, "strength": null }),
                    json!({ "enabled": false }),
                    json!({ "enabled": true, "file": tight }),
                ] {
                    generation += 1;
                    assert_eq!(server.change(&change)["generation"], generation);
                }
                assert_eq!(server.put(&json!({ "file": "/absent" })).0, 422);
            }
        });
        let watch = scope.spawn(|| {
            let counters = [
                "axiscap_rows_total",
                "axiscap_engaged_rows_total",
                "axiscap_excess_count",
                "axiscap_micro_batches_total",
            ];
            let mut before = [0.0; 4];
            while !done.load(Ordering::Relaxed) {
                let metrics = server.metrics();
                let now = counters.map(|name| metrics.sum(name, &[]));
                assert!(now.iter().zip(&before).all(|(now, before)| now >= before), "{before:?} {now:?}");
                before = now;
            }
        });
        let mut held = Vec::new();
        for i in 0..60_usize {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream
                .write_all([&b"PUT /caps HTTP/1.1\r\nContent-Length: 9\r\n\r\n"[..], b"", b"\0\0"][i % 3]);
            held.push(stream);
        }
        for request in requests {
            assert!(request.join().unwrap() > Some(0));
        }
        done.store(true, Ordering::Relaxed);
        changes.join().unwrap();
        watch.join().unwrap();
    });
    assert_eq!(server.texts(), capped);
    let metrics = server.metrics();
    assert_eq!(metrics.get("axiscap_faults_total"), 0.0);
    assert!(metrics.sum("axiscap_rows_total", &[("generation", "older")]) > 0.0);
    // The end of the process does not wait for a client.
    let _open = TcpStream::connect(address).unwrap();
    let start = Instant::now();
    server.server.end();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn a_socket_is_served_and_one_that_is_left_over_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http");
    drop(UnixListener::bind(&path).unwrap());
    let mut server = Served::start_with(&shipped_caps(), |command| {
        command.env("AXISCAP_LISTEN", format!("unix:{}", path.display()));
    });
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: axiscap\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\naxiscap_enabled 1\n"),
        "{answer}"
    );
    // A second server is told that the first one has it.
    let mut second = command(free_port(), &[]);
    with_plugin(&mut second, &[&shipped_caps()]);
    second.env("AXISCAP_LISTEN", format!("unix:{}", path.display()));
    let mut second = Host::start(&mut second);
    assert!(!second.wait().success());
    assert!(second.log().contains("is in use by another process"), "{}", second.log());
    assert!(UnixStream::connect(&path).is_ok());
    assert!(server.server.host.terminate().success());
}

#[test]
fn addresses_that_cannot_be_served_are_errors_as_the_plugin_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let file = format!("unix:{}", file.display());
    let start = |listen: &str, strict: &str| {
        let mut command = command(free_port(), &[]);
        with_plugin(&mut command, &[&shipped_caps()]);
        command.env("AXISCAP_LISTEN", listen).env("AXISCAP_STRICT", strict);
        command
    };
    for (listen, reason) in [
        ("0.0.0.0:8181", "AXISCAP_LISTEN=\"0.0.0.0:8181\": expected unix:PATH"),
        ("8181", "AXISCAP_LISTEN=\"8181\": expected unix:PATH"),
        ("", "AXISCAP_LISTEN=\"\": expected unix:PATH"),
        ("unix:/absent/folder/http", "cannot listen on unix:/absent/folder/http"),
        (&file, "is there and no socket"),
        (&taken, "is in use by another process"),
    ] {
        let mut host = Host::start(&mut start(listen, "abort"));
        assert!(!host.wait().success(), "{listen}: {}", host.log());
        assert!(host.log().contains(reason), "{listen}: {}", host.log());
    }
    let server = Served::start_with(&shipped_caps(), |command| {
        command.env("AXISCAP_LISTEN", &taken).env("AXISCAP_STRICT", "warn");
    });
    assert!(
        server.host.log().contains("NOT CAPPED: AXISCAP_LISTEN: http://127.0.0.1:"),
        "{}",
        server.host.log()
    );
}
