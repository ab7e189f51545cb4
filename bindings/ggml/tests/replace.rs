//! Caps of a guard that are replaced while contexts live: what each context computes, and what is counted.

#[path = "support/capped.rs"]
mod capped;
#[path = "support/guarded.rs"]
mod guarded;
mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use axiscap::{CapSet, Policy};
use axiscap_ggml::{
    CapTotals, Found, GuardedContext, HookError, ModelCaps, ModelShape, Reaction, ReplaceError, RouteChoice,
    Settings,
};
use axiscap_testing::llama::{ContextSettings, Description, Row, TestContext, TestModel};
use llama_cpp_sys_2 as sys;

use crate::capped::{PINNED, bands, bits, rows, shape};
use crate::guarded::{Guarded, model_caps};

/// Another projection that tight bands hold rows on.
const OTHER: f32 = -1.25;

fn small_model() -> (TestModel, ModelShape) {
    let mut description = Description::new("llama", false);
    description.set(".block_count", 3_u32);
    let model = TestModel::new(&description).unwrap();
    let shape = shape(&model, "llama");
    (model, shape)
}

fn pinned(name: &str, shape: &ModelShape, projection: f32) -> ModelCaps {
    model_caps(name, shape.clone(), bands(0..shape.blocks, shape.width, projection, projection), &[])
}

fn guarded(models: Vec<ModelCaps>) -> Guarded {
    Guarded::new(&support::install(), models, Reaction::Fail)
}

fn context<'m>(
    model: &'m TestModel,
    guarded: &Guarded,
    change: impl FnOnce(&mut ContextSettings),
) -> TestContext<'m> {
    guarded.guard.bind(|| model.context(change).unwrap())
}

/// The batch of every decode: all logits are wanted, so that each block has all rows.
fn batch() -> Vec<Row> {
    rows(0, 0, 6, |_| true)
}

/// Decodes the batch from an empty KV cache, and returns the bits of the logits.
fn decode(context: &mut TestContext<'_>) -> Vec<Vec<u32>> {
    context.clear();
    let batch = batch();
    assert_eq!(context.decode(&batch), 0);
    bits(&(0..batch.len()).map(|row| context.logits(row)).collect::<Vec<_>>())
}

/// Returns what a fresh context gives under these caps, or under none.
fn expected(model: &TestModel, caps: Option<&ModelCaps>) -> Vec<Vec<u32>> {
    match caps {
        Some(caps) => decode(&mut context(model, &guarded(vec![caps.clone()]), |_| {})),
        None => decode(&mut model.context(|_| {}).unwrap()),
    }
}

fn rows_of(totals: &[CapTotals], generation: Option<u64>) -> Vec<u64> {
    totals.iter().filter(|total| total.generation == generation).map(|total| total.total.stats.rows).collect()
}

#[test]
fn a_context_computes_under_the_caps_of_its_time() {
    let (model, shape) = small_model();
    let (one, two) = (pinned("one", &shape, PINNED), pinned("two", &shape, OTHER));
    let plain = expected(&model, None);
    let [first, second] = [&one, &two].map(|caps| expected(&model, Some(caps)));
    assert!(first != second && first != plain && second != plain);
    for route in [RouteChoice::Auto, RouteChoice::Views] {
        let mut settings = Settings::default();
        settings.route = route;
        let guarded =
            Guarded::with_settings(&support::install(), vec![one.clone()], Reaction::Fail, settings);
        let guard = &guarded.guard;
        guard.keep_totals();
        let mut context = context(&model, &guarded, |_| {});
        assert_eq!(decode(&mut context), first);
        let replaced = guard.replace(vec![two.clone()], true).unwrap();
        assert_eq!((replaced.generation, replaced.contexts.len()), (2, 1));
        let changed = &replaced.contexts[0];
        assert_eq!((&*changed.before, changed.after.as_deref()), ("one", Some("two")));
        assert_eq!(decode(&mut context), second);
        // Strength 0 observes: the bits are those without caps, and rows are counted.
        let observing = ModelCaps { caps: one.caps.with_strength(0.0).unwrap(), ..one.clone() };
        guard.replace(vec![observing], true).unwrap();
        assert_eq!(decode(&mut context), plain);
        guard.replace(vec![one.clone()], false).unwrap();
        assert_eq!(decode(&mut context), plain);
        let counts = guard.counts();
        assert_eq!((counts.capped, counts.off, counts.not_capped, counts.faults), (3, 1, 0, 0));
        guard.replace(vec![one.clone()], true).unwrap();
        assert_eq!(decode(&mut context), first);
        let contexts = guard.contexts();
        let [GuardedContext { id: 1, caps, enabled: true, micro_batches: 5, stats, .. }] = &contexts[..]
        else {
            panic!("{contexts:?}");
        };
        assert_eq!((&**caps, stats.len(), stats[0].rows), ("one", 3, 6));
        drop(context);
        assert_eq!(guard.contexts().len(), 0);
        let totals = guard.totals();
        for (generation, rows) in [(1, 6), (2, 6), (3, 6), (4, 0), (5, 6)] {
            assert_eq!(rows_of(&totals, Some(generation)), vec![rows; 3], "{route:?} {generation}");
        }
        let of_second = totals.iter().find(|total| total.generation == Some(2)).unwrap();
        assert_eq!((&*of_second.caps, of_second.cap, of_second.block), ("two", 0, 0));
        let stats = of_second.total.stats;
        assert_eq!(
            (stats.min_after.to_bits(), stats.max_after.to_bits()),
            (OTHER.to_bits(), OTHER.to_bits())
        );
        assert_eq!(of_second.total.excess.iter().sum::<u64>(), 6);
        assert_eq!(guarded.faults(), [""; 0]);
        let found = guarded.found();
        let ended = found.iter().find_map(|found| match found {
            Found::Ended { stats, .. } => Some(stats[0].rows),
            _ => None,
        });
        assert_eq!(ended, Some(6), "since the caps were last replaced");
    }
}

#[test]
fn contexts_that_have_ended_stay_in_the_totals() {
    let (model, shape) = small_model();
    let guarded = guarded(vec![pinned("one", &shape, PINNED)]);
    assert_eq!(guarded.guard.totals(), []);
    guarded.guard.keep_totals();
    for count in 1..=3 {
        decode(&mut context(&model, &guarded, |_| {}));
        assert_eq!(rows_of(&guarded.guard.totals(), Some(1)), [6 * count; 3]);
        assert_eq!(guarded.guard.contexts().len(), 0);
    }
    // Calling it again keeps what was counted.
    guarded.guard.keep_totals();
    assert_eq!(rows_of(&guarded.guard.totals(), Some(1)), [18; 3]);
}

#[test]
fn caps_that_leave_a_context_without_are_refused() {
    let (model, shape) = small_model();
    let one = pinned("one", &shape, PINNED);
    let first = expected(&model, Some(&one));
    let plain = expected(&model, None);
    let guarded = guarded(vec![one.clone()]);
    let guard = &guarded.guard;
    let mut context = context(&model, &guarded, |_| {});
    assert_eq!(decode(&mut context), first);
    let deeper = ModelShape { blocks: 4, ..shape.clone() };
    let wider = ModelShape { width: shape.width + 1, ..shape.clone() };
    let plamo = ModelShape { architecture: "plamo2".into(), ..shape.clone() };
    let other_norms = ModelCaps { norms: vec![("output_norm.weight".into(), [7; 32])], ..one.clone() };
    for (caps, reason) in [
        (pinned("a", &deeper, OTHER), "a model of 4 blocks, this one has 3"),
        (pinned("a", &wider, OTHER), "they have width"),
        (ModelCaps { shape: plamo, ..one.clone() }, "no block outputs"),
        (other_norms, "other norm weights"),
    ] {
        let error = guard.replace(vec![caps], true).unwrap_err();
        assert!(matches!(&error, ReplaceError::Missing { context: 1, caps, .. } if caps == "one"), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let twice = guard.replace(vec![one.clone(), one.clone()], true).unwrap_err();
    assert!(matches!(twice, ReplaceError::Caps(HookError::CapsRival { .. })), "{twice}");
    let outside = ModelCaps { caps: bands([3], shape.width, 0.0, 0.0), ..one.clone() };
    let outside = guard.replace(vec![outside], false).unwrap_err();
    assert!(matches!(outside, ReplaceError::Caps(HookError::Caps(_))), "{outside}");
    assert_eq!((guard.generation().number, decode(&mut context)), (1, first.clone()));
    // While caps are off they may be for any model.
    let replaced = guard.replace(vec![pinned("a", &deeper, OTHER)], false).unwrap();
    assert_eq!(replaced.contexts[0].after, None);
    assert_eq!(decode(&mut context), plain);
    // A context that begins now has none, which is no fault. It is not left without those of its model.
    let mut later = self::context(&model, &guarded, |_| {});
    assert_eq!(decode(&mut later), plain);
    let both = || vec![pinned("a", &deeper, OTHER), one.clone()];
    assert!(matches!(guard.replace(both()[..1].to_vec(), true), Err(ReplaceError::Missing { .. })));
    let late = guard.replace(both(), true).unwrap_err();
    assert!(matches!(&late, ReplaceError::Late { caps, .. } if caps == "one"), "{late}");
    drop(later);
    guard.replace(both(), true).unwrap();
    assert_eq!(decode(&mut context), first);
    assert_eq!((guarded.faults(), guard.counts().faults), (vec![], 0));
}

#[test]
fn a_context_that_begins_while_caps_are_off_is_capped_once_they_are_on() {
    let (model, shape) = small_model();
    let one = pinned("one", &shape, PINNED);
    let (first, plain) = (expected(&model, Some(&one)), expected(&model, None));
    let guarded = guarded(vec![one.clone()]);
    guarded.guard.replace(vec![one.clone()], false).unwrap();
    let mut context = context(&model, &guarded, |_| {});
    assert_eq!(decode(&mut context), plain);
    assert!(!guarded.found().iter().any(|found| matches!(found, Found::FirstMicroBatch { .. })));
    guarded.guard.replace(vec![one], true).unwrap();
    assert_eq!(decode(&mut context), first);
    assert!(guarded.found().iter().any(|found| matches!(found, Found::FirstMicroBatch { rows: 6, .. })));
    assert_eq!(guarded.faults(), [""; 0]);
}

/// The logits come in a graph of their own, after which nothing of the next micro-batch has begun.
#[test]
fn a_graph_in_parts_is_under_one_generation() {
    let (model, shape) = small_model();
    let (one, two) = (pinned("one", &shape, PINNED), pinned("two", &shape, OTHER));
    let [first, second] = [&one, &two].map(|caps| expected(&model, Some(caps)));
    for cut in [cut_after_the_norm as Cut, cut_everywhere] {
        let guarded = guarded(vec![one.clone()]);
        let mut context = context(&model, &guarded, |params| params.cb_eval = Some(cut));
        for _ in 0..2 {
            assert_eq!(decode(&mut context), first);
            guarded.guard.replace(vec![two.clone()], true).unwrap();
            assert_eq!(decode(&mut context), second);
            guarded.guard.replace(vec![one.clone()], true).unwrap();
        }
        assert_eq!((guarded.faults(), guarded.guard.counts().capped), (vec![], 4));
    }
}

type Cut = unsafe extern "C" fn(*mut sys::ggml_tensor, bool, *mut std::ffi::c_void) -> bool;

unsafe extern "C" fn cut_after_the_norm(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    _: *mut std::ffi::c_void,
) -> bool {
    // SAFETY: llama.cpp passes a tensor, whose name is NUL-terminated.
    !ask || unsafe { std::ffi::CStr::from_ptr(sys::ggml_get_name(tensor)) } == c"result_norm"
}

unsafe extern "C" fn cut_everywhere(_: *mut sys::ggml_tensor, _: bool, _: *mut std::ffi::c_void) -> bool {
    true
}

/// Each decode is one micro-batch, whose blocks are all under the old caps or all under the new ones.
#[test]
fn no_micro_batch_is_under_two_generations() {
    let (model, shape) = small_model();
    let (one, two) = (pinned("one", &shape, PINNED), pinned("two", &shape, OTHER));
    let skipping = |caps: &CapSet| caps.clone().with_policy(Policy::default().with_skip_positions(2));
    let policy = ModelCaps { caps: skipping(&one.caps), ..one.clone() };
    let allowed = [&one, &two, &policy].map(|caps| expected(&model, Some(caps)));
    let plain = expected(&model, None);
    let guarded = guarded(vec![one.clone()]);
    guarded.guard.keep_totals();
    let done = AtomicBool::new(false);
    let decodes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut context = context(&model, &guarded, |_| {});
                    let mut decodes = 0;
                    while !done.load(Ordering::Relaxed) {
                        let found = decode(&mut context);
                        assert!(found == plain || allowed.contains(&found));
                        decodes += 1;
                    }
                    decodes
                })
            })
            .collect();
        for turn in 0..300 {
            let caps = [&two, &policy, &one][turn % 3].clone();
            guarded.guard.replace(vec![caps], turn % 5 != 0).unwrap();
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
        done.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
    let counts = guarded.guard.counts();
    assert_eq!((guarded.faults(), counts.capped + counts.off), (vec![], decodes));
    // Every row is counted once, whichever generation it was under.
    let totals = guarded.guard.totals();
    let of_first: Vec<_> = totals.iter().filter(|total| total.cap == 0).collect();
    let rows: u64 = of_first.iter().map(|total| total.total.stats.rows + total.total.stats.skipped).sum();
    assert_eq!(rows, 6 * counts.capped);
    assert!(of_first.len() < 30, "old generations are added up: {}", of_first.len());
}
