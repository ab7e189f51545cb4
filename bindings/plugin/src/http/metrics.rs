//! Metrics in the text format of Prometheus, version 0.0.4.
//!
//! Every counter only grows while the process lives. Projections have either sign, so their sum is in two
//! counters, and the histogram has no `_sum`.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use axiscap::Cap;
use axiscap_ggml::{CapTotal, CapTotals, EXCESS_EDGES, GuardCounts};

use super::control::{Control, InForce};

/// A metric, as it is announced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) help: &'static str,
}

const fn metric(name: &'static str, kind: &'static str, help: &'static str) -> Metric {
    Metric { name, kind, help }
}

const BUILD: Metric =
    metric("axiscap_build_info", "gauge", "Always 1. The versions of axiscap and of the host's ggml.");
const ENABLED: Metric =
    metric("axiscap_enabled", "gauge", "1 while caps act, 0 while they are switched off.");
const GENERATION: Metric =
    metric("axiscap_generation", "gauge", "Number of the caps in force. It grows with each change.");
const CONTEXTS: Metric = metric("axiscap_contexts", "gauge", "Capped contexts that live.");
const MICRO_BATCHES: Metric = metric(
    "axiscap_micro_batches_total",
    "counter",
    "Micro-batches computed with all their caps, of models that are not capped, and with caps switched off.",
);
const FAULTS: Metric = metric(
    "axiscap_faults_total",
    "counter",
    "Graphs that were, or would have been, computed without all their caps.",
);
const FLOOR: Metric = metric("axiscap_cap_floor", "gauge", "Lower bound of a cap in force.");
const CEILING: Metric = metric("axiscap_cap_ceiling", "gauge", "Upper bound of a cap in force.");
const STRENGTH: Metric = metric("axiscap_cap_strength", "gauge", "Strength of a cap in force, from 0 to 1.");
const ROWS: Metric = metric("axiscap_rows_total", "counter", "Rows that a cap was applied to.");
const ENGAGED: Metric =
    metric("axiscap_engaged_rows_total", "counter", "Rows whose projection was outside the bound.");
const NON_FINITE: Metric = metric(
    "axiscap_non_finite_rows_total",
    "counter",
    "Rows left unchanged because their projection, or the step to the bound, was not finite.",
);
const SKIPPED: Metric =
    metric("axiscap_skipped_rows_total", "counter", "Rows that the policy of the caps left alone.");
const POSITIVE: Metric = metric(
    "axiscap_projection_positive_total",
    "counter",
    "Sum of the projections before the cap that are above 0.",
);
const NEGATIVE: Metric = metric(
    "axiscap_projection_negative_total",
    "counter",
    "Sum of the sizes of the projections before the cap that are below 0.",
);
const AFTER_MIN: Metric = metric(
    "axiscap_projection_after_min",
    "gauge",
    "Smallest projection after the cap so far. With strength 1 it is not below the floor.",
);
const AFTER_MAX: Metric = metric(
    "axiscap_projection_after_max",
    "gauge",
    "Largest projection after the cap so far. With strength 1 it is not above the ceiling.",
);
const EXCESS: Metric = metric(
    "axiscap_excess",
    "histogram",
    "Rows by how far the projection before the cap lies beyond the bound; 0 or less is within it.",
);

/// All metrics.
#[cfg(test)]
pub(crate) const METRICS: [Metric; 18] = [
    BUILD,
    ENABLED,
    GENERATION,
    CONTEXTS,
    MICRO_BATCHES,
    FAULTS,
    FLOOR,
    CEILING,
    STRENGTH,
    ROWS,
    ENGAGED,
    NON_FINITE,
    SKIPPED,
    POSITIVE,
    NEGATIVE,
    AFTER_MIN,
    AFTER_MAX,
    EXCESS,
];

/// Returns the text of all metrics.
pub(crate) fn text(control: &Control) -> String {
    let mut text = Text::default();
    let capping = &control.capping;
    let (caps, contexts) = (capping.in_force(), capping.contexts());
    process(&mut text, &control.ggml, &caps, capping.counts());
    let mut living: BTreeMap<&str, usize> = caps.models.iter().map(|model| (&*model.name, 0)).collect();
    for context in &contexts {
        *living.entry(&context.caps).or_default() += 1;
    }
    text.announce(CONTEXTS);
    for (caps, count) in living {
        text.sample(CONTEXTS.name, &[("caps", caps)], count);
    }
    in_force(&mut text, &caps);
    totals(&mut text, &capping.totals());
    text.0
}

fn process(text: &mut Text, ggml: &str, caps: &InForce, counts: GuardCounts) {
    text.announce(BUILD);
    text.sample(BUILD.name, &[("version", env!("CARGO_PKG_VERSION")), ("ggml", ggml)], 1);
    text.announce(ENABLED);
    text.sample(ENABLED.name, &[], u8::from(caps.enabled));
    text.announce(GENERATION);
    text.sample(GENERATION.name, &[], caps.generation);
    text.announce(MICRO_BATCHES);
    for (result, count) in [("capped", counts.capped), ("not_capped", counts.not_capped), ("off", counts.off)]
    {
        text.sample(MICRO_BATCHES.name, &[("result", result)], count);
    }
    text.announce(FAULTS);
    text.sample(FAULTS.name, &[], counts.faults);
}

/// Writes the bounds and strengths of the caps in force.
fn in_force(text: &mut Text, caps: &InForce) {
    type Read = fn(&Cap) -> f32;
    let metrics: [(Metric, Read); 3] = [
        (FLOOR, |cap| cap.bound().lo()),
        (CEILING, |cap| cap.bound().hi()),
        (STRENGTH, |cap| cap.strength()),
    ];
    for (metric, read) in metrics {
        text.announce(metric);
        for model in &caps.models {
            for (index, entry) in model.caps.caps().iter().enumerate() {
                let (index, block) = (index.to_string(), entry.block.to_string());
                let name = entry.cap.name().unwrap_or_default();
                let labels = [("caps", &*model.name), ("block", &block), ("cap", &index), ("name", name)];
                text.sample(metric.name, &labels, Number(read(&entry.cap).into()));
            }
        }
    }
}

/// Writes what the caps of all generations did.
fn totals(text: &mut Text, totals: &[CapTotals]) {
    type Read = fn(&CapTotal) -> Number;
    type Extreme = fn(&CapTotal) -> f32;
    let metrics: [(Metric, Read); 6] = [
        (ROWS, |total| Number(total.stats.rows as f64)),
        (ENGAGED, |total| Number(total.stats.engaged as f64)),
        (NON_FINITE, |total| Number(total.stats.non_finite as f64)),
        (SKIPPED, |total| Number(total.stats.skipped as f64)),
        (POSITIVE, |total| Number(total.positive)),
        (NEGATIVE, |total| Number(total.negative)),
    ];
    for (metric, read) in metrics {
        text.announce(metric);
        for cap in totals {
            with_labels(cap, |labels| text.sample(metric.name, labels, read(&cap.total)));
        }
    }
    let extremes: [(Metric, Extreme); 2] =
        [(AFTER_MIN, |total| total.stats.min_after), (AFTER_MAX, |total| total.stats.max_after)];
    for (metric, read) in extremes {
        text.announce(metric);
        // Before the first row there is none.
        for cap in totals.iter().filter(|cap| read(&cap.total).is_finite()) {
            let value = Number(read(&cap.total).into());
            with_labels(cap, |labels| text.sample(metric.name, labels, value));
        }
    }
    text.announce(EXCESS);
    for cap in totals {
        with_labels(cap, |labels| {
            let edges = EXCESS_EDGES.map(|edge| Number(edge.into()));
            let edges = edges.into_iter().chain([Number(f64::INFINITY)]);
            let mut count = 0;
            for (edge, rows) in edges.zip(cap.total.excess) {
                count += rows;
                let edge = edge.to_string();
                let labels: Vec<_> = labels.iter().copied().chain([("le", &*edge)]).collect();
                text.sample("axiscap_excess_bucket", &labels, count);
            }
            text.sample("axiscap_excess_count", labels, count);
        });
    }
}

fn with_labels(cap: &CapTotals, write: impl FnOnce(&[(&str, &str)])) {
    let (block, index) = (cap.block.to_string(), cap.cap.to_string());
    let generation = cap.generation.map_or_else(|| "older".into(), |generation| generation.to_string());
    write(&[
        ("caps", &cap.caps),
        ("block", &block),
        ("cap", &index),
        ("name", cap.name.as_deref().unwrap_or_default()),
        ("generation", &generation),
    ]);
}

/// A number as the format has it.
#[derive(Debug, Clone, Copy)]
struct Number(f64);

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            number if number.is_nan() => f.write_str("NaN"),
            number => number.fmt(f),
        }
    }
}

/// The text that is written.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn announce(&mut self, Metric { name, kind, help }: Metric) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.write(format_args!("{}{label}=\"{value}\"", if index == 0 { '{' } else { ',' }));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        self.write(format_args!("{end} {value}\n"));
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        // A string takes all that is written to it.
        let _ = self.0.write_fmt(text);
    }
}
