//! What is tried on one architecture.

use std::ffi::{CStr, c_void};

use axiscap::CapSet;
use axiscap_ggml::{BlockNames, BlockTrace, Found, Hook, HookError, ModelShape, Reaction, Session};
use axiscap_testing::llama::{
    ContextSettings, Description, Row, TestContext, TestModel, is_causal, is_embedding,
};
use llama_cpp_sys_2 as sys;

use crate::capped::{Capped, PINNED, axis, bands, bits, check_pinned, rows, shape};
use crate::graph::Recorded;
use crate::guarded::{Guarded, model_caps};

/// What was found.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// Every row of every block was capped.
    Capped {
        /// The names of its block outputs, with N for the number.
        names: Vec<String>,
    },
    /// The hook refuses the architecture.
    Refused {
        /// The hook's words.
        reason: String,
        /// What was seen in the graph of a model, or why there is none.
        seen: String,
    },
}

/// Tokens of the first batch, which is decoded in two micro-batches.
const TOKENS: usize = 12;
const MICRO_BATCH: u32 = 8;
/// llama.cpp aborts on more than one token of this architecture, and on more than one sequence (`cpy_v` in
/// `llama-kv-cache.cpp`: its values have two dimensions).
pub(crate) const ONE_TOKEN_AT_A_TIME: &str = "plm";
/// llama.cpp aborts on batches without logits of this architecture (`ggml_set_1d` in `chameleon.cpp`).
pub(crate) const NEEDS_LOGITS: &str = "chameleon";
/// The weights that name a model.
const OUTPUT_NORM: &str = "output_norm.weight";
/// Architectures without such weights: LFM2 calls them `token_embd_norm`, the others norm without weights.
const WITHOUT_OUTPUT_NORM: [&str; 4] = ["lfm2", "lfm2moe", "olmo", "talkie"];
/// Architectures that llama.cpp makes no model of from metadata alone, or of which it has no graph.
const NOT_BUILT: [&str; 7] =
    ["clef", "clip", "dflash", "eagle3", "gemma4-assistant", "gptj", "wavtokenizer-dec"];

/// Tries one model. The blocks that `refused` names cannot be capped in it.
pub(crate) fn examine(hook: &Hook, description: &Description, refused: &[usize]) -> Result<Outcome, String> {
    let name = description.architecture();
    let caps_of_any = bands([0], 8, PINNED, PINNED);
    if let Err(error) = Session::new(ModelShape { architecture: name.into(), blocks: 1, width: 8 })
        .set_caps(Some(&caps_of_any))
    {
        let HookError::Architecture { architecture, reason } = &error else { return Err(error.to_string()) };
        if architecture != name || !error.to_string().contains(name) {
            return Err(format!("the refusal does not name it: {error}"));
        }
        return Ok(Outcome::Refused { reason: (*reason).into(), seen: look(description, reason)? });
    }
    let model = TestModel::new(description)?;
    let blocks = (0..model.blocks()).filter(|block| !refused.contains(block)).collect();
    Examined { hook, name, model: &model, blocks, refused }.run()
}

/// Looks at the graph of an architecture that is refused, and returns what stands against capping it.
fn look(description: &Description, reason: &str) -> Result<String, String> {
    let name = description.architecture();
    let model = match TestModel::new(description) {
        Ok(_) if NOT_BUILT.contains(&name) => return Err("it can be built".into()),
        Ok(model) => model,
        Err(_) if NOT_BUILT.contains(&name) => return Ok("not built".into()),
        Err(why) => return Err(why),
    };
    let mut recorded = Recorded::default();
    let first = rows(0, 0, TOKENS, |_| true);
    let mut context = model.context(|params| {
        recorded.listen(params);
        params.n_ctx = 256;
        params.embeddings = is_embedding(name);
        params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
    })?;
    if model.has_encoder() && name == "t5" {
        context.encode(&first);
    }
    let status = context.decode(&first);
    drop(context);
    if status != 0 {
        return Err(format!("llama_decode returned {status}"));
    }
    let mut outputs: Vec<(usize, usize)> = Vec::new();
    for (index, node) in recorded.nodes.iter().enumerate() {
        let number = node.name.strip_prefix("l_out-").and_then(|number| number.parse().ok());
        let Some(block): Option<usize> = number else { continue };
        if outputs.iter().any(|&(known, _)| known == block) {
            return Ok(format!("two nodes are named {}", node.name));
        }
        if node.shape != [model.width() as i64, TOKENS as i64, 1, 1] {
            return Ok(format!("{} has the shape {:?}", node.name, node.shape));
        }
        outputs.push((block, index));
    }
    if outputs.len() != model.blocks() {
        return Ok(format!("{} of {} blocks have a node `l_out-N`", outputs.len(), model.blocks()));
    }
    for pair in outputs.windows(2) {
        let [(_, before), (_, output)] = [pair[0], pair[1]];
        if let Some(path) = recorded.path_around(output, before) {
            let step = path.iter().find(|name| !name.starts_with("l_out") && !name.starts_with("node"));
            let [before, output] = [before, output].map(|index| &recorded.nodes[index].name);
            let step = step.copied().unwrap_or_default();
            return Ok(format!("{before} reaches the result past {output}, through {step}"));
        }
    }
    if reason.contains("generates no text") {
        return Ok("every block has its output".into());
    }
    Err("the hook refuses it, but its blocks could be capped".into())
}

struct Examined<'a> {
    hook: &'a Hook,
    name: &'a str,
    model: &'a TestModel,
    /// The blocks that can be capped, and those that cannot.
    blocks: Vec<usize>,
    refused: &'a [usize],
}

impl<'a> Examined<'a> {
    fn run(&self) -> Result<Outcome, String> {
        let width = self.model.width();
        let first = rows(0, 0, TOKENS, |_| true);
        let next = rows(0, TOKENS, 1, |_| true);
        let mut plain = self.model.context(|params| self.params(params))?;
        let mut reference = Vec::new();
        for batch in self.batches(&first, &next) {
            let status = plain.decode(batch);
            if status != 0 {
                return Err(format!("uncapped, llama_decode returned {status}"));
            }
            reference.push(self.results(&plain, batch));
        }
        if reference.iter().flatten().flatten().any(|value| !value.is_finite()) {
            return Err("uncapped, there are logits that are not finite".into());
        }
        drop(plain);
        let names = self.check_graph(&first)?;

        let mut capped = self.capped(|_| {})?;
        // Infinite bounds change nothing.
        capped.set(&self.caps(f32::NEG_INFINITY, f32::INFINITY))?;
        for (batch, expected) in self.batches(&first, &next).into_iter().zip(&reference) {
            capped.decode(batch)?;
            if bits(&self.results(&capped.context, batch)) != bits(expected) {
                return Err("infinite bounds change the logits".into());
            }
        }
        // Tight bands on every block.
        let tight = self.caps(PINNED, PINNED);
        capped.set(&tight)?;
        capped.context.clear();
        for (batch, uncapped) in self.batches(&first, &next).into_iter().zip(&reference) {
            let trace = capped.decode(batch)?;
            self.check_pinned(&trace, batch)?;
            let logits = self.results(&capped.context, batch);
            if logits.iter().flatten().any(|value| !value.is_finite()) {
                return Err("capped, there are logits that are not finite".into());
            }
            if logits.iter().zip(uncapped).any(|(capped, uncapped)| capped == uncapped) {
                return Err("tight bands leave the logits of a row as they are".into());
            }
        }
        // Each block alone.
        for &block in &self.blocks {
            capped.set(&bands([block], width, PINNED, PINNED))?;
            capped.context.clear();
            capped.decode(&first)?;
            if self.results(&capped.context, &first) == reference[0] {
                return Err(format!("a tight band on block {block} alone leaves the logits as they are"));
            }
        }
        // Without logits, and with those of some rows.
        capped.set(&tight)?;
        for logits in [|_: usize| false, |i: usize| i + 1 == TOKENS, |i: usize| i.is_multiple_of(3)] {
            let batch = rows(0, 0, TOKENS, logits);
            if self.name == NEEDS_LOGITS && batch.iter().any(|row| !row.logits) {
                continue;
            }
            capped.context.clear();
            self.check_pinned(&capped.decode(&batch)?, &batch)?;
        }
        drop(capped);
        self.check_guard(&tight, &first, &next)?;
        if self.name != ONE_TOKEN_AT_A_TIME {
            self.check_sequences(&tight)?;
        }
        self.check_memory(&tight, &first)?;
        self.check_refused(&first)?;
        Ok(Outcome::Capped { names })
    }

    /// Returns what is decoded one batch after the other. Models that read a text as a whole have no second.
    fn batches<'r>(&self, first: &'r [Row], next: &'r [Row]) -> Vec<&'r [Row]> {
        if is_causal(self.name) { vec![first, next] } else { vec![first] }
    }

    /// Returns the same band for every block.
    fn caps(&self, lo: f32, hi: f32) -> CapSet {
        bands(self.blocks.iter().copied(), self.model.width(), lo, hi)
    }

    fn params(&self, params: &mut ContextSettings) {
        if is_causal(self.name) {
            params.n_ubatch = if self.name == ONE_TOKEN_AT_A_TIME { 1 } else { MICRO_BATCH };
        }
        if is_embedding(self.name) {
            params.embeddings = true;
            params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        }
    }

    /// Returns the logits of the rows that have some, or their embeddings.
    fn results(&self, context: &TestContext<'_>, rows: &[Row]) -> Vec<Vec<f32>> {
        let rows = (0..rows.len()).filter(|&row| rows[row].logits);
        if is_embedding(self.name) {
            rows.map(|row| context.embedding(row)).collect()
        } else {
            rows.map(|row| context.logits(row)).collect()
        }
    }

    fn capped(&self, change: impl FnOnce(&mut ContextSettings)) -> Result<Capped<'a>, String> {
        Capped::new(self.hook, self.model, self.name, |params| {
            self.params(params);
            change(params);
        })
    }

    /// Checks that block outputs are all that a block passes on, and returns their names.
    fn check_graph(&self, first: &[Row]) -> Result<Vec<String>, String> {
        let mut recorded = Recorded::default();
        let mut context = self.model.context(|params| {
            self.params(params);
            if self.name != ONE_TOKEN_AT_A_TIME {
                params.n_ubatch = TOKENS as u32;
            }
            recorded.listen(params);
        })?;
        let first = if self.name == ONE_TOKEN_AT_A_TIME { &first[..1] } else { first };
        let status = context.decode(first);
        drop(context);
        if status != 0 {
            return Err(format!("with a callback, llama_decode returned {status}"));
        }
        let names = shape(self.model, self.name).block_names().map_err(|error| error.to_string())?;
        let mut outputs = vec![None; self.model.blocks()];
        for (index, node) in recorded.nodes.iter().enumerate() {
            if let Some(block) = names.block_of(node.name.as_bytes()) {
                outputs[block] = Some(index);
            }
        }
        let mut found = Vec::new();
        let mut before = None;
        for (block, output) in outputs.into_iter().enumerate() {
            if self.refused.contains(&block) {
                before = None;
                continue;
            }
            let Some(output) = output else {
                let names: Vec<_> = recorded.nodes.iter().map(|node| node.name.as_str()).collect();
                return Err(format!("the graph has no output of block {block}: {names:?}"));
            };
            let node = &recorded.nodes[output];
            let name = node.name.replace(&format!("-{block}"), "-N");
            let name = name.replace(&format!("-{}", block + 1), "-(N+1)");
            if !found.contains(&name) {
                found.push(name);
            }
            if let Some(path) = before.and_then(|before| recorded.path_around(output, before)) {
                return Err(format!("{} is passed by: {}", node.name, path.join(" -> ")));
            }
            if let Some(change) = recorded.changes(output).first() {
                return Err(format!("{} is changed by {} ({})", node.name, change.name, change.op));
            }
            before = Some(output);
        }
        Ok(found)
    }

    /// A program that does not know of the hook: the model is recognised by its shape, then by its norm, every
    /// micro-batch is accounted for, and the results are those of a bound context.
    fn check_guard(&self, tight: &CapSet, first: &[Row], next: &[Row]) -> Result<(), String> {
        let mut bound = self.capped(|_| {})?;
        bound.set(tight)?;
        let mut expected = Vec::new();
        for batch in self.batches(first, next) {
            bound.decode(batch)?;
            expected.push(bits(&self.results(&bound.context, batch)));
        }
        let mut norms = Vec::new();
        for confirmed in [false, true] {
            let shape = shape(self.model, self.name);
            let models = vec![model_caps(self.name, shape, tight.clone(), &norms)];
            let guarded = Guarded::new(self.hook, models, Reaction::Fail);
            let mut context = guarded.guard.bind(|| self.model.context(|params| self.params(params)))?;
            for (batch, expected) in self.batches(first, next).into_iter().zip(&expected) {
                let status = context.decode(batch);
                let faults = guarded.faults();
                if status != 0 || !faults.is_empty() {
                    return Err(format!("guarded, llama_decode returned {status}: {faults:?}"));
                }
                if bits(&self.results(&context, batch)) != *expected {
                    return Err("guarded, the results are others".into());
                }
            }
            let silent = rows(0, 0, TOKENS, |_| self.name == NEEDS_LOGITS);
            context.clear();
            if context.decode(&silent) != 0 || !guarded.faults().is_empty() {
                return Err("guarded, a batch without logits fails".into());
            }
            let found = guarded.found();
            let Some(Found::Capped { model, confirmed: by_norm, .. }) = found.first() else {
                return Err(format!("guarded, the model is not recognised: {found:?}"));
            };
            if *by_norm != confirmed {
                return Err(format!("guarded, the model is confirmed: {by_norm}, {model}"));
            }
            match model.norm_digest {
                Some(digest) => norms = vec![(OUTPUT_NORM, digest)],
                None if WITHOUT_OUTPUT_NORM.contains(&self.name) => break,
                None => return Err("guarded, its graph shows no output norm".into()),
            }
        }
        Ok(())
    }

    /// Two sequences in one batch, in turns and one after the other.
    fn check_sequences(&self, tight: &CapSet) -> Result<(), String> {
        for unified in [true, false] {
            let mut capped = self.capped(|params| {
                params.n_seq_max = 2;
                params.n_ctx = 128;
                params.kv_unified = unified;
            })?;
            capped.set(tight)?;
            let [one, two] =
                [0, 1].map(|sequence| rows(sequence, 0, 6, |i| i == 5 || self.name == NEEDS_LOGITS));
            let turns: Vec<_> = one.iter().zip(&two).flat_map(|(a, b)| [*a, *b]).collect();
            for batch in [turns, [one, two].concat()] {
                capped.context.clear();
                let trace = capped.decode(&batch).map_err(|error| format!("two sequences: {error}"))?;
                self.check_pinned(&trace, &batch).map_err(|error| format!("two sequences: {error}"))?;
            }
        }
        Ok(())
    }

    /// Projects the rows that lie in memory after the caps.
    fn check_memory(&self, tight: &CapSet, first: &[Row]) -> Result<(), String> {
        let mut projected = Projected {
            blocks: self.blocks.clone(),
            names: shape(self.model, self.name).block_names().map_err(|error| error.to_string())?,
            axes: (0..self.model.blocks())
                .map(|block| axis(block, self.model.width()).values().to_vec())
                .collect(),
            rows: vec![0; self.model.blocks()],
            worst: 0.0,
        };
        let mut capped = self.capped(|params| {
            params.cb_eval = Some(project);
            params.cb_eval_user_data = std::ptr::from_mut(&mut projected).cast();
        })?;
        capped.set(tight)?;
        capped.decode(first)?;
        drop(capped);
        if self.blocks.iter().any(|&block| projected.rows[block] != first.len()) {
            return Err(format!("of {} rows, the blocks have {:?} in memory", first.len(), projected.rows));
        }
        if projected.worst > 1e-4 {
            return Err(format!("a row in memory is {} of its length from the bound", projected.worst));
        }
        Ok(())
    }

    fn check_pinned(&self, trace: &[BlockTrace], batch: &[Row]) -> Result<(), String> {
        check_pinned(trace, &self.blocks, self.model, batch)
    }

    /// Caps on a block that cannot be capped fail the decode.
    fn check_refused(&self, first: &[Row]) -> Result<(), String> {
        let mut capped = self.capped(|_| {})?;
        for &block in self.refused {
            capped.set(&bands([block], self.model.width(), PINNED, PINNED))?;
            capped.context.clear();
            if capped.decode(first).is_ok() {
                return Err(format!("block {block} was to be refused"));
            }
        }
        Ok(())
    }
}

/// Projections of the rows in memory.
struct Projected {
    blocks: Vec<usize>,
    names: BlockNames,
    axes: Vec<Vec<f32>>,
    /// By block.
    rows: Vec<usize>,
    /// The largest distance from the bound, over the length of its row.
    worst: f64,
}

unsafe extern "C" fn project(tensor: *mut sys::ggml_tensor, ask: bool, projected: *mut c_void) -> bool {
    // SAFETY: llama.cpp passes a node, and the projections given with this callback, which outlive the context.
    // After a node was computed on the CPU its values lie in memory, in rows of `ne[0]` floats.
    unsafe {
        let projected = &mut *projected.cast::<Projected>();
        let name = CStr::from_ptr(sys::ggml_get_name(tensor)).to_string_lossy();
        let Some(block) = projected.names.block_of(name.as_bytes()) else { return false };
        if !projected.blocks.contains(&block) {
            return false;
        }
        if ask {
            return true;
        }
        let (width, rows) = ((*tensor).ne[0] as usize, (*tensor).ne[1] as usize);
        for row in 0..rows {
            let start = (*tensor).data.byte_add(row * (*tensor).nb[1]).cast::<f32>();
            let values = std::slice::from_raw_parts(start, width);
            let dot: f64 =
                values.iter().zip(&projected.axes[block]).map(|(h, v)| f64::from(*h) * f64::from(*v)).sum();
            let length = values.iter().map(|h| f64::from(*h).powi(2)).sum::<f64>().sqrt();
            projected.worst = projected.worst.max((dot - f64::from(PINNED)).abs() / (1.0 + length));
        }
        projected.rows[block] += rows;
        true
    }
}
