//! The dashboard and the documentation name the metrics that are served.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::json;
use crate::http::metrics::METRICS;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)).unwrap()
}

/// Returns the names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("axiscap_")).collect()
}

/// Returns the strings under a key, wherever it is.
fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(key).and_then(Value::as_str));
            fields.values().for_each(|value| under(value, key, found));
        }
        Value::Array(list) => list.iter().for_each(|value| under(value, key, found)),
        _ => {}
    }
}

fn served() -> BTreeSet<String> {
    let series = METRICS.iter().flat_map(|metric| match metric.kind {
        "histogram" => vec![format!("{}_bucket", metric.name), format!("{}_count", metric.name)],
        _ => vec![metric.name.to_owned()],
    });
    series.collect()
}

#[test]
fn the_dashboard_asks_for_metrics_that_are_served() {
    let text = read("grafana/axiscap.json");
    let (dashboard, served) = (json(&text), served());
    let mut queries = Vec::new();
    ["expr", "query", "definition"].iter().for_each(|key| under(&dashboard, key, &mut queries));
    let asked: BTreeSet<_> = queries.iter().flat_map(|query| names(query)).collect();
    for name in &asked {
        assert!(served.contains(*name), "{name}");
    }
    for needed in
        ["axiscap_engaged_rows_total", "axiscap_rows_total", "axiscap_faults_total", "axiscap_enabled"]
    {
        assert!(asked.contains(needed), "{needed}");
    }
    // Its source of data is a variable, so that it can be imported anywhere.
    let mut sources = Vec::new();
    under(&dashboard, "uid", &mut sources);
    sources.retain(|&uid| dashboard["uid"] != uid);
    assert!(!sources.is_empty() && sources.iter().all(|&uid| uid == "${datasource}"), "{sources:?}");
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn the_documentation_lists_every_metric() {
    let text = read("http.md");
    let (documented, served) = (names(&text), served());
    for metric in METRICS {
        assert!(text.contains(&format!("| `{}` | {} |", metric.name, metric.kind)), "{}", metric.name);
    }
    let known = |name: &str| served.contains(name) || METRICS.iter().any(|metric| metric.name == name);
    for name in documented {
        assert!(known(name), "{name}");
    }
}
