//! The chain on a real model, computed by the CPU backend: rows before (a tap shows them) and after against f64.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use axiscap::{BlockCap, Bound, CapSet};
use llama_cpp_2::token::LlamaToken;

use crate::device::tests::{cap, context, decode, generate, prompt, shape};
use crate::find::Output;
use crate::{Engine, HookError, Session, Tap, TapRows};

/// Rows of one block in one pass.
type Pass = (usize, Vec<f32>);

thread_local! {
    static CAPPED: RefCell<Vec<Pass>> = const { RefCell::new(Vec::new()) };
}

/// Notes rows that a chain has just capped, where its backend is the CPU's: that one computes before it returns.
pub(super) fn note_rows(output: &Output) {
    let (rows, stride, width) = (output.rows(), output.stride(), shape().width);
    // SAFETY: the CPU backend has computed the rows, and nobody writes them before we return.
    let row = |row| unsafe {
        std::slice::from_raw_parts((output.place().0 as *const f32).add(row * stride), width)
    };
    let values = (0..rows).flat_map(row).copied().collect();
    CAPPED.with_borrow_mut(|passes| passes.push((output.block, values)));
}

fn session(set: &CapSet, engine: Engine) -> Session {
    let session = Session::new(shape());
    session.set_caps(Some(set)).unwrap();
    session.set_statistics(false);
    session.set_engine(engine);
    session
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

/// Shows every block output that the chain caps, before it does.
fn watched(session: &Session) -> Arc<Mutex<Vec<Pass>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    let see = move |block: usize, rows: TapRows<'_>| {
        let values = (0..rows.rows()).flat_map(|row| rows.row(row));
        into.lock().unwrap().push((block, values.copied().collect()));
    };
    let blocks = vec![0, 12, shape().blocks - 1];
    session.set_tap(Some(Tap { blocks, see: Arc::new(see) })).unwrap();
    seen
}

/// What the caps make of a row, in f64.
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

/// Compares what was noted since the last call; returns the rows per block and the largest move of a row.
fn compare(seen: &Mutex<Vec<Pass>>, set: &CapSet) -> (Vec<(usize, usize)>, f64) {
    let (before, after) = (std::mem::take(&mut *seen.lock().unwrap()), CAPPED.take());
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
    let session = session(&set, Engine::StockChain);
    let seen = watched(&session);
    let mut context = context(&session, 256);
    generate(&mut context, &session, 4);
    let (rows, moved) = compare(&seen, &set);
    let prompt_rows = prompt().len();
    let decoded = [(0, 1), (12, 1), (last, 1)];
    let passes = [&[(0, prompt_rows), (12, prompt_rows), (last, 1)][..], &decoded.repeat(3)].concat();
    assert_eq!(rows, passes);
    assert!(moved > 1.0, "the caps act");
    assert!(session.engines_used()[0].1.contains("ggml's own operations"));
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
    let session = session(&set, Engine::StockChain);
    let seen = watched(&session);
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
    session.set_tap(None).unwrap();
    let seen = watched(&session);
    decode(&mut context, &session, &[token], position + 1, true).unwrap();
    seen.lock().unwrap().retain(|(block, _)| *block == 12);
    let (rows, moved) = compare(&seen, &set);
    assert_eq!(rows, [(12, 1)]);
    assert!(moved > 1.0);
}

#[test]
fn infinite_bounds_change_no_token_and_contexts_do_not_disturb_each_other() {
    let off = session(&caps(), Engine::Auto);
    off.set_enabled(false);
    let plain: Vec<LlamaToken> = generate(&mut context(&off, 256), &off, 8);
    let none = CapSet::new((0..shape().blocks).map(|block| cap(block, block, Bound::NONE))).unwrap();
    let (first, second) = (session(&none, Engine::StockChain), session(&caps(), Engine::StockChain));
    let (mut a, mut b) = (context(&first, 256), context(&second, 256));
    let capped = generate(&mut b, &second, 8);
    assert_eq!(generate(&mut a, &first, 8), plain);
    drop(a);
    b.clear_kv_cache();
    assert_eq!(generate(&mut b, &second, 8), capped);
    CAPPED.take();
}

#[test]
fn figures_are_refused() {
    for (statistics, tracing) in [(true, false), (false, true)] {
        let session = session(&caps(), Engine::StockChain);
        session.set_statistics(statistics);
        session.set_tracing(tracing);
        let mut context = context(&session, 256);
        let refused = decode(&mut context, &session, &prompt(), 0, true);
        assert!(matches!(refused, Err(HookError::StockChainFigures)), "{refused:?}");
    }
}
