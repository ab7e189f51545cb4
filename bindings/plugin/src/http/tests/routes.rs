//! Requests, and what they show and change.

use std::io::Write;

use serde_json::json;

use super::{Served, control, json, read_answer, shipped_caps};
use crate::http::metrics::{METRICS, text};
use crate::http::routes;

fn served() -> (super::Fake, Served) {
    let (fake, control) = control();
    (fake, Served::on_a_port(move |request| routes::answer(&control, false, request)))
}

#[test]
fn other_paths_and_methods_are_refused() {
    let (_, served) = served();
    for path in ["/", "/metrics/", "/cap", "//metrics", "/caps/1", "/etc/passwd", "*"] {
        assert_eq!(served.ask("GET", path, "").0, 404, "{path}");
    }
    for (method, path) in [
        ("POST", "/metrics"),
        ("HEAD", "/metrics"),
        ("POST", "/caps"),
        ("DELETE", "/caps"),
        ("OPTIONS", "/caps"),
        ("GET", "/reload"),
        ("get", "/caps"),
    ] {
        let (status, body) = served.ask(method, path, "");
        assert_eq!(status, 405, "{method} {path}");
        assert_eq!(json(&body)["error"]["status"], 405);
    }
    assert_eq!(served.ask("GET", "/metrics?name=x", "").0, 200);
}

#[test]
fn pages_and_other_names_are_refused_on_a_port() {
    let (_, served) = served();
    let status = |headers: &str| {
        let mut stream = served.connect();
        stream.write_all(format!("GET /caps HTTP/1.1\r\n{headers}\r\n").as_bytes()).unwrap();
        read_answer(stream).0
    };
    assert_eq!(status("Host: localhost:8181\r\n"), 200);
    assert_eq!(status("Host: evil.example\r\n"), 403);
    assert_eq!(status(""), 403);
    assert_eq!(status("Host: localhost\r\nOrigin: http://localhost\r\n"), 403);
}

#[test]
fn the_caps_are_described() {
    let (_, served) = served();
    let (status, body) = served.ask("GET", "/caps", "");
    let shown = json(&body);
    assert_eq!((status, &shown["enabled"], &shown["strength"]), (200, &true.into(), &json!(null)));
    let model = &shown["models"][0];
    assert_eq!(model["model"]["blocks"], 30);
    assert_eq!((&model["contexts"], &model["policy"]["skip_positions"]), (&1.into(), &1.into()));
    let first = &model["list"][0];
    assert!(first["floor"].is_number() && first["ceiling"].is_null() && first["strength"] == 1.0, "{first}");
    assert_eq!(shown["contexts"][0]["model"], "a model of 30 blocks of width 576, with logits");
    assert_eq!(shown["contexts"][0]["rows"], 2);
}

#[test]
fn changes_take_effect_and_wrong_ones_do_not() {
    let (fake, served) = served();
    let put = |body: serde_json::Value| {
        let (status, body) = served.ask("PUT", "/caps", &body.to_string());
        (status, json(&body))
    };
    let (status, shown) = put(json!({ "strength": 0 }));
    assert_eq!((status, &shown["generation"], fake.strength()), (200, &2.into(), 0.0));
    let context = &shown["contexts"][0];
    assert_eq!(context["kv_cache"], "rows of generations before 2 are kept");
    assert!(shown["kv_cache"].as_str().unwrap().contains("POST /slots/N?action=erase"), "{shown}");

    let (status, shown) = put(json!({ "enabled": false }));
    assert_eq!((status, &shown["enabled"], &shown["strength"]), (200, &false.into(), &0.0.into()));
    // What is not named stays, and the strengths of the file are not forgotten.
    let (status, shown) = put(json!({ "enabled": true, "strength": null }));
    assert_eq!((status, &shown["generation"], fake.strength()), (200, &4.into(), 1.0));

    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.gguf");
    std::fs::copy(shipped_caps(), &other).unwrap();
    let (status, shown) = put(json!({ "files": [folder.path()], "strength": 0.5 }));
    assert_eq!((status, fake.strength()), (200, 0.5), "{shown}");
    assert_eq!(shown["contexts"][0]["caps"], other.to_str().unwrap());
    let (status, _) = served.ask("POST", "/reload", "");
    assert_eq!((status, fake.strength(), fake.state().caps.generation), (200, 0.5, 6));

    std::fs::write(&other, b"no caps").unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, b"text").unwrap();
    for wrong in [json!({ "file": other }), json!({ "file": text }), json!({ "file": "/dev/zero" })] {
        let (status, shown) = put(wrong.clone());
        assert_eq!(status, 422, "{wrong}: {shown}");
        assert!(shown["error"]["reason"].as_str().unwrap().ends_with("; the caps stay as they were"));
    }
    assert_eq!(served.ask("POST", "/reload", "").0, 422);
    assert_eq!(put(json!({ "strength": 2 })).0, 400);
    fake.state().refuses = true;
    let (status, shown) = put(json!({ "file": shipped_caps() }));
    assert_eq!(status, 409);
    assert!(shown["error"]["reason"].as_str().unwrap().contains("would be left without caps"), "{shown}");
    assert_eq!(fake.state().caps.generation, 6);
    let shown = json(&served.ask("GET", "/caps", "").1);
    assert_eq!((&shown["generation"], &shown["strength"]), (&6.into(), &0.5.into()));
    assert_eq!(shown["files"], json!([folder.path()]));
    // Switching caps off needs no file.
    let (status, shown) = put(json!({ "enabled": false }));
    assert_eq!((status, &shown["enabled"]), (200, &false.into()));
}

#[test]
fn metrics_are_in_the_text_format_of_prometheus() {
    let (_, control) = control();
    let text = text(&control);
    let mut announced = Vec::new();
    for line in text.lines() {
        if let Some(metric) = line.strip_prefix("# TYPE ") {
            let (name, kind) = metric.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            announced.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = name.strip_suffix("_bucket").or(name.strip_suffix("_count")).unwrap_or(name);
            assert_eq!(announced.last(), Some(&family), "{line}");
            let value = line.rsplit_once(' ').unwrap().1;
            assert!(value.replace("Inf", "inf").parse::<f64>().is_ok(), "{line}");
        }
    }
    let mut known = METRICS.map(|metric| metric.name).to_vec();
    known.sort_unstable();
    announced.sort_unstable();
    assert_eq!(announced, known);
    for line in [
        "axiscap_enabled 1",
        "axiscap_generation 1",
        r#"axiscap_micro_batches_total{result="off"} 3"#,
        "axiscap_faults_total 1",
        r#"axiscap_rows_total{caps="a \"b\"\\c\nd",block="7",cap="0",name="assistant",generation="1"} 2"#,
        r#"axiscap_rows_total{caps="a \"b\"\\c\nd",block="7",cap="0",name="assistant",generation="older"} 0"#,
        r#"axiscap_projection_negative_total{caps="a \"b\"\\c\nd",block="7",cap="0",name="assistant",generation="1"} 0.5"#,
        r#"axiscap_excess_bucket{caps="a \"b\"\\c\nd",block="7",cap="0",name="assistant",generation="1",le="0"} 1"#,
        r#"axiscap_excess_bucket{caps="a \"b\"\\c\nd",block="7",cap="0",name="assistant",generation="1",le="-0.25"} 0"#,
        r#"axiscap_excess_bucket{caps="a \"b\"\\c\nd",block="7",cap="0",name="assistant",generation="1",le="4"} 2"#,
        r#"axiscap_excess_bucket{caps="a \"b\"\\c\nd",block="7",cap="0",name="assistant",generation="1",le="+Inf"} 2"#,
        r#"axiscap_excess_count{caps="a \"b\"\\c\nd",block="7",cap="0",name="assistant",generation="1"} 2"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(text.contains(r#"ggml="0.9.4 (\"x\")"} 1"#), "{text}");
    assert!(text.contains("} +Inf"), "no ceiling: {text}");
}
