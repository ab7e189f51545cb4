//! ggml's own operations on a real model, computed by the CPU backend. Rows before the caps, which a tap shows, and after
//! them are compared with f64. The evaluation callback is compared with the hook.

use std::sync::{Arc, Mutex};

use axiscap::{BlockCap, Bound, CapSet};
use llama_cpp_2::token::LlamaToken;

use llama_cpp_sys_2 as sys;

use super::{EvalCallback, GgmlOps};
use crate::route::gpu::tests::model::{cap, context, decode, generate, prompt, shape};
use crate::{HookError, Route, Session, Tap, TapRows};

/// Rows of one block in one micro-batch.
type BlockRows = (usize, Vec<f32>);

/// Rows before and after the caps.
#[derive(Default)]
struct Seen {
    before: Mutex<Vec<BlockRows>>,
    after: Mutex<Vec<BlockRows>>,
}

/// A session without statistics whose caps run as ggml's operations.
fn session(set: &CapSet) -> (Session, Arc<Seen>) {
    let session = Session::new(shape());
    session.set_caps(Some(set)).unwrap();
    session.update(|settings| settings.statistics = false);
    let seen = Arc::new(Seen::default());
    let after = Arc::clone(&seen);
    let ops =
        GgmlOps::with_observer(move |block, rows| after.after.lock().unwrap().push((block, rows.to_vec())));
    session.set_compute_hook(Some(Arc::new(ops)));
    (session, seen)
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

/// Notes the rows of every capped block, before its caps.
fn watch_rows(session: &Session, seen: &Arc<Seen>) {
    let before = Arc::clone(seen);
    let see = move |block: usize, rows: TapRows<'_>| {
        let values = (0..rows.rows()).flat_map(|row| rows.row(row));
        before.before.lock().unwrap().push((block, values.copied().collect()));
    };
    let blocks = vec![0, 12, shape().blocks - 1];
    session.set_tap(Some(Tap { blocks, see: Arc::new(see) })).unwrap();
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
    let mut most = 0.0_f64;
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
            most = most.max(distance(&mut before.iter().copied().map(f64::from)));
        }
    }
    (after.iter().map(|(block, rows)| (*block, rows.len() / width)).collect(), most)
}

#[test]
fn rows_are_capped_to_the_f64_definition_within_rounding() {
    let set = caps();
    let last = shape().blocks - 1;
    let (session, seen) = session(&set);
    watch_rows(&session, &seen);
    let mut context = context(&session, 256);
    generate(&mut context, &session, 4);
    let (rows, moved) = compare(&seen, &set);
    let prompt_rows = prompt().len();
    let decoded = [(0, 1), (12, 1), (last, 1)];
    let passes = [&[(0, prompt_rows), (12, prompt_rows), (last, 1)][..], &decoded.repeat(3)].concat();
    assert_eq!(rows, passes);
    assert!(moved > 1.0, "the caps act");
    assert!(matches!(session.routes_used()[..], [crate::RouteUse { route: Route::Custom(_), .. }]));
    assert!(session.stats().iter().all(|stats| stats.rows == 0));

    // Other numbers of rows, none of the last block, and back.
    let mut position = prompt_rows + 3;
    let token = prompt()[0];
    for (count, logits) in [(7, true), (1, false), (2, true), (7, true), (1, true), (90, true), (1, true)] {
        decode(&mut context, &session, &vec![token; count], position, logits).unwrap();
        position += count;
        let (rows, _) = compare(&seen, &set);
        let of_last = logits.then_some((last, 1));
        assert_eq!(rows, [(0, count), (12, count)].into_iter().chain(of_last).collect::<Vec<_>>());
    }
}

#[test]
fn micro_batches_and_changed_caps() {
    let mut set = caps();
    let (session, seen) = session(&set);
    watch_rows(&session, &seen);
    let mut context = context(&session, 4);
    generate(&mut context, &session, 2);
    compare(&seen, &set);

    let mut caps: Vec<_> = set.caps().to_vec();
    caps[1].cap = caps[1].cap.clone().with_strength(0.25).unwrap();
    session.set_strength(1, 0.25).unwrap();
    let token = prompt()[0];
    set = CapSet::new(caps).unwrap();
    let position = prompt().len() + 1;
    decode(&mut context, &session, &[token], position, true).unwrap();
    assert_eq!(compare(&seen, &set).0.len(), 3);

    set = CapSet::new([cap(12, 9, Bound::floor(30.0).unwrap())]).unwrap();
    session.set_caps(Some(&set)).unwrap();
    decode(&mut context, &session, &[token], position + 1, true).unwrap();
    seen.before.lock().unwrap().retain(|(block, _)| *block == 12);
    let (rows, moved) = compare(&seen, &set);
    assert_eq!(rows, [(12, 1)]);
    assert!(moved > 1.0);
}

#[test]
fn infinite_bounds_change_no_token_and_contexts_do_not_disturb_each_other() {
    let off = Session::new(shape());
    let plain: Vec<LlamaToken> = generate(&mut context(&off, 256), &off, 8);
    let none = CapSet::new((0..shape().blocks).map(|block| cap(block, block, Bound::NONE))).unwrap();
    let ((first, _), (second, _)) = (session(&none), session(&caps()));
    let (mut a, mut b) = (context(&first, 256), context(&second, 256));
    let capped = generate(&mut b, &second, 8);
    assert_eq!(generate(&mut a, &first, 8), plain);
    drop(a);
    b.clear_kv_cache();
    assert_eq!(generate(&mut b, &second, 8), capped);
}

#[test]
fn a_removed_hook_leaves_the_caps_to_the_session() {
    let (session, seen) = session(&caps());
    let mut context = context(&session, 256);
    generate(&mut context, &session, 2);
    assert!(!std::mem::take(&mut *seen.after.lock().unwrap()).is_empty());
    session.set_compute_hook(None);
    context.clear_kv_cache();
    generate(&mut context, &session, 2);
    assert!(seen.after.lock().unwrap().is_empty());
    assert!(session.routes_used().iter().any(|used| used.route == Route::Inserted));
}

#[test]
fn statistics_are_refused() {
    for (statistics, tracing) in [(true, false), (false, true)] {
        let (session, _) = session(&caps());
        session.update(|settings| (settings.statistics, settings.tracing) = (statistics, tracing));
        let mut context = context(&session, 256);
        let refused = decode(&mut context, &session, &prompt(), 0, true);
        assert!(matches!(refused, Err(HookError::StatisticsUnsupported { .. })), "{refused:?}");
    }
}

/// A context of a second copy of the model, which caps through the evaluation callback. `llama-cpp-2` does not set
/// `cb_eval`.
struct CallbackContext {
    model: *mut sys::llama_model,
    context: *mut sys::llama_context,
    callback: EvalCallback,
}

impl CallbackContext {
    fn new(set: &CapSet) -> Self {
        let callback = EvalCallback::new(&shape(), set, true).unwrap();
        let path = std::ffi::CString::new(axiscap_testing::small_model().to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string. The callback is boxed, and this value keeps it while the context lives.
        unsafe {
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = 0;
            let model = sys::llama_model_load_from_file(path.as_ptr(), params);
            assert!(!model.is_null());
            let mut params = sys::llama_context_default_params();
            (params.n_ctx, params.n_batch, params.n_ubatch) = (512, 256, 256);
            (params.n_threads, params.n_threads_batch) = (2, 2);
            (params.cb_eval, params.cb_eval_user_data) = (callback.function(), callback.user_data());
            let context = sys::llama_init_from_model(model, params);
            assert!(!context.is_null());
            Self { model, context, callback }
        }
    }

    /// Decodes tokens with logits for the last, and returns the most likely next token.
    fn decode(&mut self, tokens: &[LlamaToken]) -> Result<LlamaToken, HookError> {
        let mut tokens: Vec<_> = tokens.iter().map(|token| token.0).collect();
        let count = tokens.len() as i32;
        self.callback.watch(tokens.len(), 1, || {
            // SAFETY: the context is alive, and the tokens live for the call.
            let status = unsafe {
                sys::llama_decode(self.context, sys::llama_batch_get_one(tokens.as_mut_ptr(), count))
            };
            assert_eq!(status, 0);
            Ok::<_, HookError>(())
        })?;
        // SAFETY: the last token has logits, one per token of the vocabulary.
        let logits = unsafe {
            let vocabulary = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.model));
            std::slice::from_raw_parts(sys::llama_get_logits_ith(self.context, -1), vocabulary as usize)
        };
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        Ok(LlamaToken::new(best as i32))
    }
}

impl Drop for CallbackContext {
    fn drop(&mut self) {
        // SAFETY: both are alive and freed once, the context first.
        unsafe {
            sys::llama_free(self.context);
            sys::llama_model_free(self.model);
        }
    }
}

#[test]
fn the_evaluation_callback_caps_to_the_tokens_of_the_hook() {
    let session = Session::new(shape());
    session.set_caps(Some(&caps())).unwrap();
    let expected = generate(&mut context(&session, 256), &session, 6);
    let mut context = CallbackContext::new(&caps());
    let mut tokens = vec![context.decode(&prompt()).unwrap()];
    while tokens.len() < expected.len() {
        tokens.push(context.decode(&tokens[tokens.len() - 1..]).unwrap());
    }
    assert_eq!(tokens, expected);
}
