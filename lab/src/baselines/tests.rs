//! The baselines on a real model, computed by the CPU backend. The rows of ggml's own operations before and
//! after the caps are compared with f64, the tokens of the evaluation callback with the hook's.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex};

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_ggml::{Tap, TapRows};
use axiscap_llama::{
    BatchRow, Context, ContextOptions, Error, HookError, Model, ModelOptions, ModelShape, ProfileId, Route,
    RouteUse, Settings, Token,
};

use super::Subject;
use super::cb_eval::{EvalContext, EvalModel};
use super::ggml_ops::GgmlOps;
use super::hooked::{hooked as hooked_with, indexed, mixed};

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    Model::load(axiscap_testing::small_model(), &ModelOptions { gpu_layers: Some(0) })
        .expect("the model loads")
});

fn shape() -> ModelShape {
    MODEL.shape().clone()
}

fn prompt() -> Vec<Token> {
    MODEL.tokenize("I feel so alone tonight. What are you, really?", false).unwrap()
}

fn options(ubatch: u32) -> ContextOptions {
    ContextOptions { ctx: Some(512), batch: 256, ubatch, threads: Some(2), ..ContextOptions::default() }
}

/// A context that the hook caps on its own routes.
fn hooked(set: Option<&CapSet>) -> Context<'static> {
    let mut context = Context::new(&MODEL, &options(256)).unwrap();
    context.set_caps(set).unwrap();
    context
}

fn cap(block: usize, seed: usize, bound: Bound) -> BlockCap {
    let values: Vec<f32> = (0..shape().width).map(|i| ((i * 31 + seed * 7919) as f32).sin()).collect();
    BlockCap { block, cap: Cap::new(Axis::from_direction(&values).unwrap(), bound) }
}

/// Decodes tokens of sequence 0. With `logits` it returns the most likely next token.
fn decode(
    context: &mut Context<'_>,
    tokens: &[Token],
    position: usize,
    logits: bool,
) -> Result<Option<Token>, Error> {
    let last = tokens.len() - 1;
    let row = |(index, &token): (usize, &Token)| BatchRow {
        token,
        position: (position + index) as i32,
        sequence: 0,
        logits: logits && index == last,
    };
    context.decode(&tokens.iter().enumerate().map(row).collect::<Vec<_>>())?;
    Ok(context.logits(last).map(likeliest))
}

fn likeliest(logits: &[f32]) -> Token {
    Token((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i32)
}

/// Generates tokens after the prompt.
fn generate(context: &mut Context<'_>, count: usize) -> Vec<Token> {
    let prompt = prompt();
    let mut tokens = vec![decode(context, &prompt, 0, true).unwrap().unwrap()];
    while tokens.len() < count {
        let last = tokens[tokens.len() - 1];
        let next = decode(context, &[last], prompt.len() + tokens.len() - 1, true).unwrap();
        tokens.push(next.unwrap());
    }
    tokens
}

/// Rows of one block in one micro-batch.
type BlockRows = (usize, Vec<f32>);

/// Rows before and after the caps.
#[derive(Default)]
struct Seen {
    before: Mutex<Vec<BlockRows>>,
    after: Mutex<Vec<BlockRows>>,
}

/// A context without statistics whose caps run as ggml's operations.
fn with_ops(set: &CapSet, ubatch: u32) -> (Context<'static>, Arc<Seen>) {
    let mut context = Context::new(&MODEL, &options(ubatch)).unwrap();
    context.set_caps(Some(set)).unwrap();
    let seen = Arc::new(Seen::default());
    let after = Arc::clone(&seen);
    let ops =
        GgmlOps::with_observer(move |block, rows| after.after.lock().unwrap().push((block, rows.to_vec())));
    let session = context.session().unwrap();
    session.update(|settings| settings.statistics = false);
    session.set_compute_hook(Some(Arc::new(ops)));
    (context, seen)
}

/// Block 0, the last block, a band, a strength, and several caps in a row.
fn caps() -> CapSet {
    let last = shape().blocks - 1;
    let mut half = cap(12, 5, Bound::ceiling(-0.5).unwrap());
    half.cap = half.cap.with_strength(0.5).unwrap();
    let floor = |lo| Bound::floor(lo).unwrap();
    let band = Bound::band(-1.0, 1.0).unwrap();
    CapSet::new([
        cap(12, 1, floor(2.0)),
        cap(0, 2, floor(0.5)),
        cap(12, 3, band),
        half,
        cap(last, 4, floor(9.0)),
    ])
    .unwrap()
}

/// Records the rows of every capped block before its caps.
fn watch_rows(context: &Context<'_>, seen: &Arc<Seen>) {
    let before = Arc::clone(seen);
    let see = move |block: usize, rows: TapRows<'_>| {
        let values = (0..rows.rows()).flat_map(|row| rows.row(row));
        before.before.lock().unwrap().push((block, values.copied().collect()));
    };
    let blocks = vec![0, 12, shape().blocks - 1];
    context.session().unwrap().set_tap(Some(Tap { blocks, see: Arc::new(see) })).unwrap();
}

/// Returns the capped row in f64.
fn in_f64(row: &[f32], caps: &[BlockCap]) -> Vec<f64> {
    let mut values: Vec<f64> = row.iter().copied().map(f64::from).collect();
    for BlockCap { cap, .. } in caps {
        let axis = cap.axis().values();
        let projection: f64 = values.iter().zip(axis).map(|(h, v)| h * f64::from(*v)).sum();
        let (lo, hi) = (f64::from(cap.bound().lo()), f64::from(cap.bound().hi()));
        let moved = f64::from(cap.strength()) * (projection.max(lo).min(hi) - projection);
        values.iter_mut().zip(axis).for_each(|(h, v)| *h += moved * f64::from(*v));
    }
    values
}

/// Compares the rows since the last call with f64. Returns the rows per block and the largest move of a row.
fn compare(seen: &Seen, set: &CapSet) -> (Vec<(usize, usize)>, f64) {
    let [before, after] = [&seen.before, &seen.after].map(|rows| std::mem::take(&mut *rows.lock().unwrap()));
    assert_eq!(before.len(), after.len());
    let width = shape().width;
    let mut largest = 0.0_f64;
    for ((block, before), (of, after)) in before.iter().zip(&after) {
        assert_eq!((block, before.len()), (of, after.len()));
        let caps: Vec<_> = set.caps().iter().filter(|cap| cap.block == *block).cloned().collect();
        for (before, after) in before.chunks(width).zip(after.chunks(width)) {
            let norm = before.iter().map(|&h| f64::from(h).powi(2)).sum::<f64>().sqrt();
            let expected = in_f64(before, &caps);
            let off = |v: &[f32]| -> f64 {
                let part = |((a, e), v): ((&f32, &f64), &f32)| (f64::from(*a) - e) * f64::from(*v);
                after.iter().zip(&expected).zip(v).map(part).sum()
            };
            for BlockCap { cap, .. } in &caps {
                let off = off(cap.axis().values()).abs();
                assert!(off <= 1e-5 * norm, "block {block}: projection {off} off, norm {norm}");
            }
            let distance = |to: &mut dyn Iterator<Item = f64>| {
                after.iter().zip(to).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt()
            };
            let far = distance(&mut expected.iter().copied());
            assert!(far <= 1e-5 * norm, "block {block}: row {far} off, norm {norm}");
            largest = largest.max(distance(&mut before.iter().copied().map(f64::from)));
        }
    }
    (after.iter().map(|(block, rows)| (*block, rows.len() / width)).collect(), largest)
}

#[test]
fn rows_are_capped_to_the_f64_definition_within_rounding() {
    let set = caps();
    let last = shape().blocks - 1;
    let (mut context, seen) = with_ops(&set, 256);
    watch_rows(&context, &seen);
    generate(&mut context, 4);
    let (rows, moved) = compare(&seen, &set);
    let prompt_rows = prompt().len();
    let decoded = [(0, 1), (12, 1), (last, 1)];
    let passes = [&[(0, prompt_rows), (12, prompt_rows), (last, 1)][..], &decoded.repeat(3)].concat();
    assert_eq!(rows, passes);
    assert!(moved > 1.0, "the caps act");
    let session = context.session().unwrap();
    assert!(matches!(session.routes_used()[..], [RouteUse { route: Route::Custom(_), .. }]));
    assert!(session.stats().iter().all(|stats| stats.rows == 0));

    // Other numbers of rows, none of the last block, and back.
    let mut position = prompt_rows + 3;
    let token = prompt()[0];
    for (count, logits) in [(7, true), (1, false), (2, true), (7, true), (1, true), (90, true), (1, true)] {
        decode(&mut context, &vec![token; count], position, logits).unwrap();
        position += count;
        let (rows, _) = compare(&seen, &set);
        let of_last = logits.then_some((last, 1));
        assert_eq!(rows, [(0, count), (12, count)].into_iter().chain(of_last).collect::<Vec<_>>());
    }
}

#[test]
fn micro_batches_and_changed_caps_are_followed() {
    let mut set = caps();
    let (mut context, seen) = with_ops(&set, 4);
    watch_rows(&context, &seen);
    generate(&mut context, 2);
    compare(&seen, &set);

    let mut caps: Vec<_> = set.caps().to_vec();
    caps[1].cap = caps[1].cap.clone().with_strength(0.25).unwrap();
    context.update(|session| session.set_strength(1, 0.25)).unwrap();
    let token = prompt()[0];
    set = CapSet::new(caps).unwrap();
    let position = prompt().len() + 1;
    decode(&mut context, &[token], position, true).unwrap();
    assert_eq!(compare(&seen, &set).0.len(), 3);

    set = CapSet::new([cap(12, 9, Bound::floor(30.0).unwrap())]).unwrap();
    context.set_caps(Some(&set)).unwrap();
    decode(&mut context, &[token], position + 1, true).unwrap();
    seen.before.lock().unwrap().retain(|(block, _)| *block == 12);
    let (rows, moved) = compare(&seen, &set);
    assert_eq!(rows, [(12, 1)]);
    assert!(moved > 1.0);
}

#[test]
fn infinite_bounds_change_no_token_and_contexts_do_not_disturb_each_other() {
    let plain = generate(&mut hooked(None), 8);
    let none = CapSet::new((0..shape().blocks).map(|block| cap(block, block, Bound::NONE))).unwrap();
    let ((mut a, _), (mut b, _)) = (with_ops(&none, 256), with_ops(&caps(), 256));
    let capped = generate(&mut b, 8);
    assert_eq!(generate(&mut a, 8), plain);
    drop(a);
    b.clear();
    assert_eq!(generate(&mut b, 8), capped);
}

#[test]
fn sequences_under_several_profiles_decode_the_bits_of_one() {
    let set = caps();
    let options = ContextOptions { sequences: 5, ..options(256) };
    let settings = Settings::default();
    let (prompt, count) = (prompt(), options.sequences);
    let run = |mut context: Context<'static>| {
        context.prefill(&prompt, 0, 0).unwrap();
        Subject::spread(&mut context, count).unwrap();
        context.step(&prompt[..count as usize], prompt.len()).unwrap();
        let row = |row| context.logits(row).unwrap().iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
        let logits: Vec<_> = (0..count as usize).map(row).collect();
        let profiles: Vec<_> = (0..count.cast_signed()).map(|sequence| context.profile(sequence)).collect();
        (logits, profiles, context.outcome())
    };
    let (logits, of_one, one) = run(hooked_with(&MODEL, &options, &set, settings).unwrap());
    assert!(one.engaged > 0);
    assert_eq!(of_one, [Some(ProfileId::DEFAULT); 5]);
    for (context, distinct) in [
        (mixed(&MODEL, &options, &set, settings, 2).unwrap(), 2),
        (mixed(&MODEL, &options, &set, settings, 3).unwrap(), 3),
        (indexed(&MODEL, &options, &set, settings).unwrap(), 1),
    ] {
        let (found, profiles, outcome) = run(context);
        assert_eq!(profiles.iter().collect::<BTreeSet<_>>().len(), distinct);
        assert_ne!(profiles[distinct - 1], Some(ProfileId::DEFAULT), "{profiles:?}");
        assert_eq!(profiles[..5 - distinct], profiles[distinct..], "in turn");
        assert!(found == logits, "{distinct} profiles");
        assert_eq!((outcome.rows, outcome.engaged), (one.rows, one.engaged));
    }
}

#[test]
fn a_removed_hook_leaves_the_caps_to_the_session() {
    let (mut context, seen) = with_ops(&caps(), 256);
    generate(&mut context, 2);
    assert!(!std::mem::take(&mut *seen.after.lock().unwrap()).is_empty());
    context.session().unwrap().set_compute_hook(None);
    context.clear();
    generate(&mut context, 2);
    assert!(seen.after.lock().unwrap().is_empty());
    let routes = context.session().unwrap().routes_used();
    assert!(routes.iter().any(|used| used.route == Route::Inserted));
}

#[test]
fn statistics_and_tracing_are_refused() {
    for (statistics, tracing) in [(true, false), (false, true)] {
        let (mut context, _) = with_ops(&caps(), 256);
        let session = context.session().unwrap();
        session.update(|settings| (settings.statistics, settings.tracing) = (statistics, tracing));
        let refused = decode(&mut context, &prompt(), 0, true);
        let unsupported = matches!(refused, Err(Error::Hook(HookError::StatisticsUnsupported { .. })));
        assert!(unsupported, "{refused:?}");
    }
}

#[test]
fn the_evaluation_callback_caps_to_the_tokens_of_the_hook() {
    let set = caps();
    let expected = generate(&mut hooked(Some(&set)), 6);
    let copy = EvalModel::load(&MODEL).unwrap();
    let mut context = EvalContext::new(&MODEL, &copy, &set, true, &options(256)).unwrap();
    let prompt = prompt();
    context.prefill(&prompt, 0, true).unwrap();
    let mut tokens = vec![likeliest(context.last_logits())];
    while tokens.len() < expected.len() {
        let last = tokens[tokens.len() - 1];
        context.step(&[last], prompt.len() + tokens.len() - 1).unwrap();
        tokens.push(likeliest(context.last_logits()));
    }
    assert_eq!(tokens, expected);
}
