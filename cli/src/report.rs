//! What the caps did, for people and for machines.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use axiscap::{CapSet, CapStats};
use axiscap_lab::output::write_atomically;
use axiscap_llama::{Context, FusedNorms, NotFusedReason, RouteUse, TraceRow, devices};
use serde::Serialize;

/// What one cap did, as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct CapReport<'a> {
    /// Index in the file.
    cap: usize,
    block: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// `null` without a bound.
    floor: Option<f32>,
    ceiling: Option<f32>,
    strength: f32,
    rows: u64,
    engaged: u64,
    non_finite: u64,
    /// Rows that the file's policy left alone. They are not part of `rows`.
    skipped: u64,
    mean_before: Option<f64>,
    min_after: Option<f32>,
    max_after: Option<f32>,
}

/// Returns one entry per cap, in the order of the file.
pub(crate) fn caps<'a>(set: &'a CapSet, stats: &[CapStats]) -> Vec<CapReport<'a>> {
    let finite = |value: f32| value.is_finite().then_some(value);
    let entries = set.caps().iter().zip(stats).enumerate();
    entries
        .map(|(cap, (entry, stats))| CapReport {
            cap,
            block: entry.block,
            name: entry.cap.name(),
            floor: finite(entry.cap.bound().lo()),
            ceiling: finite(entry.cap.bound().hi()),
            strength: entry.cap.strength(),
            rows: stats.rows,
            engaged: stats.engaged,
            non_finite: stats.non_finite,
            skipped: stats.skipped,
            mean_before: stats.mean_before(),
            min_after: finite(stats.min_after),
            max_after: finite(stats.max_after),
        })
        .collect()
}

/// Returns the index of the cap whose projections stand for all: the last cap of a block, because the rest of
/// the model sees its output, and by default of the last capped block, because all caps have acted there.
pub(crate) fn shown_cap(caps: &CapSet, block: Option<usize>) -> Result<usize> {
    let blocks = caps.blocks();
    let found = match block {
        Some(block) => blocks.get(&block),
        None => blocks.values().next_back(),
    };
    let known = || blocks.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    found.and_then(|indices| indices.last().copied()).with_context(|| {
        format!("block {} is not capped; look at one of {}", block.unwrap_or_default(), known())
    })
}

/// Returns the share of all rows, over all caps, on which a cap engaged.
pub(crate) fn engagement(stats: &[CapStats]) -> Option<f64> {
    let (rows, engaged) = stats.iter().fold((0, 0), |(r, e), s| (r + s.rows, e + s.engaged));
    (rows > 0).then(|| engaged as f64 / rows as f64)
}

/// Returns the kind of backend that computed the capped blocks: `cpu`, `cuda`, ... Without caps, the kind
/// that llama.cpp prefers.
pub(crate) fn backend(context: &Context<'_>) -> Result<String> {
    let used = context.session()?.routes_used();
    let devices = devices();
    let gpu = devices.iter().find(|device| device.kind.ends_with("gpu"));
    let no_layers = context.model().options().gpu_layers == Some(0);
    let name = match used.last() {
        Some(last) => last.device.clone(),
        None => gpu.filter(|_| !no_layers).map_or_else(|| "CPU".into(), |device| device.name.clone()),
    };
    Ok(name.trim_end_matches(|c: char| c.is_ascii_digit()).to_lowercase())
}

/// Where capped blocks were computed, and how the caps got in.
#[derive(Debug, Serialize)]
pub(crate) struct EngineReport<'a> {
    /// ggml's name of the device: `CPU`, `CUDA0`, ...
    device: &'a str,
    how: String,
}

/// Returns one entry per device and route that was used, in the order of their first use.
pub(crate) fn engines(used: &[RouteUse]) -> Vec<EngineReport<'_>> {
    used.iter().map(|used| EngineReport { device: &used.device, how: used.route.to_string() }).collect()
}

/// Which norms after capped blocks ran with the caps, for --fused-norm.
#[derive(Debug, Serialize)]
pub(crate) struct FusedNormReport {
    /// Blocks whose caps did the norm after them.
    fused: Vec<usize>,
    /// Blocks after which llama.cpp's own norm ran.
    refused: Vec<Refused>,
    #[serde(skip)]
    reasons: BTreeMap<NotFusedReason, Vec<usize>>,
}

#[derive(Debug, Serialize)]
struct Refused {
    block: usize,
    reason: String,
}

impl From<&FusedNorms> for FusedNormReport {
    fn from(norms: &FusedNorms) -> Self {
        let refused =
            |&(block, reason): &(usize, NotFusedReason)| Refused { block, reason: reason.to_string() };
        let mut reasons = BTreeMap::<_, Vec<_>>::new();
        for &(block, reason) in &norms.refused {
            reasons.entry(reason).or_default().push(block);
        }
        Self { fused: norms.fused.clone(), refused: norms.refused.iter().map(refused).collect(), reasons }
    }
}

impl fmt::Display for FusedNormReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |blocks: &[usize]| blocks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        match self.fused.as_slice() {
            [] => write!(f, "after no block")?,
            blocks => write!(f, "after blocks {}", list(blocks))?,
        }
        for (reason, blocks) in &self.reasons {
            write!(f, "; not after {}: {reason}", list(blocks))?;
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct TraceLine {
    position: i32,
    token: i32,
    phase: &'static str,
    block: usize,
    cap: usize,
    before: f32,
    after: f32,
    engaged: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    non_finite: bool,
    /// Whether the row was left alone because of its position. Its projection was measured.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    skipped: bool,
}

/// Writes the trace as JSON lines. The file appears whole or not at all. The first `prompt` positions are
/// those of the prompt, the others those of generated tokens that were decoded.
pub(crate) fn write_trace(path: &Path, rows: &[TraceRow], prompt: usize) -> Result<()> {
    write_atomically(path, |out| {
        // /dev/stdout and pipes come unbuffered.
        let mut out = io::BufWriter::new(out);
        for row in rows {
            let generated = usize::try_from(row.position).is_ok_and(|position| position >= prompt);
            let line = TraceLine {
                position: row.position,
                token: row.token.0,
                phase: if generated { "generated" } else { "prompt" },
                block: row.block,
                cap: row.cap,
                before: row.before,
                after: row.after,
                engaged: row.engaged,
                non_finite: row.non_finite,
                skipped: row.skipped,
            };
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    })?;
    Ok(())
}
