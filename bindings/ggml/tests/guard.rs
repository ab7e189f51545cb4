//! A guard: which contexts it caps, and what it does where a model or a block is not the expected one.

#[path = "support/capped.rs"]
mod capped;
#[path = "support/guarded.rs"]
mod guarded;
mod support;

use std::ffi::CString;
use std::path::Path;

use axiscap::{CapStats, Policy};
use axiscap_ggml::{
    DecodeBatch, DecodeRow, Found, HookError, ModelShape, ProfileId, Reaction, RouteChoice, Session, Settings,
};
use axiscap_testing::llama::{Description, Row, TestContext, TestModel};
use llama_cpp_sys_2 as sys;

use crate::capped::{PINNED, bands, bits, rows, shape};
use crate::guarded::{Guarded, model_caps};

const OUTPUT_NORM: &str = "output_norm.weight";
const BLOCK_NORM: &str = "blk.1.attn_norm.weight";

/// A random model, and the SHA-256 of its norms by the names of their tensors.
struct Subject {
    model: TestModel,
    shape: ModelShape,
    norms: Vec<(String, [u8; 32])>,
}

impl Subject {
    /// Models with the same seed have the same weights.
    fn new(blocks: u32, scale: f32) -> Self {
        let mut description = Description::new("llama", false);
        description.set(".block_count", blocks);
        let file = tempfile::NamedTempFile::new().unwrap();
        TestModel::write(&description, file.path()).unwrap();
        scale_norms(file.path(), scale);
        let norms = norms(file.path());
        let model = TestModel::load(file.path(), |_| {}).unwrap();
        let shape = shape(&model, "llama");
        Self { model, shape, norms }
    }

    fn digest(&self, name: &str) -> (&str, [u8; 32]) {
        let (name, digest) = self.norms.iter().find(|(own, _)| own == name).expect("a norm");
        (name, *digest)
    }

    fn caps(&self) -> axiscap::CapSet {
        bands(0..self.shape.blocks, self.shape.width, PINNED, PINNED)
    }
}

/// Visits the bytes of each norm's weights in a GGUF file.
fn visit_norms(path: &Path, bytes: &mut [u8], mut visit: impl FnMut(&str, &mut [u8])) {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let params = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
    // SAFETY: the path is a C string, and the file is freed at the end.
    unsafe {
        let file = sys::gguf_init_from_file(path.as_ptr(), params);
        assert!(!file.is_null());
        let data = sys::gguf_get_data_offset(file);
        for index in 0..sys::gguf_get_n_tensors(file) {
            let name = std::ffi::CStr::from_ptr(sys::gguf_get_tensor_name(file, index)).to_str().unwrap();
            if name.ends_with("norm.weight") {
                let from = data + sys::gguf_get_tensor_offset(file, index);
                visit(name, &mut bytes[from..][..sys::gguf_get_tensor_size(file, index)]);
            }
        }
        sys::gguf_free(file);
    }
}

fn norms(path: &Path) -> Vec<(String, [u8; 32])> {
    use sha2::Digest;
    let mut norms = Vec::new();
    let mut bytes = std::fs::read(path).unwrap();
    visit_norms(path, &mut bytes, |name, weights| {
        norms.push((name.to_owned(), sha2::Sha256::digest(weights).into()));
    });
    norms
}

fn scale_norms(path: &Path, scale: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    visit_norms(path, &mut bytes, |_, weights| {
        for value in weights.chunks_exact_mut(4) {
            let scaled = f32::from_le_bytes(value.try_into().unwrap()) * scale;
            value.copy_from_slice(&scaled.to_le_bytes());
        }
    });
    std::fs::write(path, bytes).unwrap();
}

fn logits(context: &mut TestContext<'_>, batch: &[Row]) -> Result<Vec<Vec<u32>>, i32> {
    match context.decode(batch) {
        0 => {
            let rows = (0..batch.len()).filter(|&row| batch[row].logits);
            Ok(bits(&rows.map(|row| context.logits(row)).collect::<Vec<_>>()))
        }
        status => Err(status),
    }
}

/// Returns the results of a context of one model, made under no guard or under this one.
fn run(model: &TestModel, guarded: Option<&Guarded>) -> Result<Vec<Vec<u32>>, i32> {
    let create = || model.context(|params| params.n_ubatch = 4).unwrap();
    let mut context = match guarded {
        Some(guarded) => guarded.guard.bind(create),
        None => create(),
    };
    let mut results = logits(&mut context, &rows(0, 0, 10, |row| row == 9))?;
    results.extend(logits(&mut context, &rows(0, 10, 1, |_| true))?);
    Ok(results)
}

/// Whether each cap has held so many rows on the tight bound; the last block's only those with logits.
fn are_pinned(stats: &[CapStats], rows: u64) -> bool {
    let last = stats.len() - 1;
    stats.iter().enumerate().all(|(cap, stats)| {
        stats.rows == if cap == last { 2 } else { rows }
            && stats.min_after.to_bits() == PINNED.to_bits()
            && stats.max_after.to_bits() == PINNED.to_bits()
    })
}

#[test]
fn each_model_of_a_process_gets_its_own_caps() {
    let (one, two, free) = (Subject::new(3, 1.0), Subject::new(3, 1.25), Subject::new(3, 1.5));
    let models = vec![
        model_caps("one", one.shape.clone(), one.caps(), &[one.digest(OUTPUT_NORM), one.digest(BLOCK_NORM)]),
        model_caps("two", two.shape.clone(), two.caps(), &[two.digest(BLOCK_NORM)]),
    ];
    let guarded = Guarded::new(&support::install(), models, Reaction::Fail);
    for (subject, name) in [(&one, "one"), (&two, "two")] {
        assert_ne!(run(&subject.model, Some(&guarded)), run(&subject.model, None), "{name}");
        let found = guarded.found();
        assert!(
            matches!(&found[..], [
                Found::Capped { caps, confirmed: true, .. },
                Found::FirstMicroBatch { caps: first, rows: 4, .. },
                Found::Ended { caps: ended, stats },
            ] if caps == name && first == name && ended == name && are_pinned(stats, 11)),
            "{found:?}"
        );
    }
    // A draft beside a capped model is left alone.
    let mut beside = guarded.guard.bind(|| one.model.context(|_| {}).unwrap());
    logits(&mut beside, &rows(0, 0, 1, |_| true)).unwrap();
    guarded.found();
    assert_eq!(run(&free.model, Some(&guarded)), run(&free.model, None));
    let found = guarded.found();
    assert!(matches!(&found[..], [Found::NotCapped { misfits, .. }] if misfits.len() == 2), "{found:?}");
    assert_eq!(guarded.faults(), [""; 0]);
    let counts = guarded.guard.counts();
    assert_eq!((counts.capped, counts.not_capped, counts.faults), (9, 4, 0));
    // Once that has ended, the draft would be all that the process serves.
    drop(beside);
    assert!(run(&free.model, Some(&guarded)).is_err());
    let faults = guarded.faults();
    assert!(faults[0].contains("no caps are for this model"), "{faults:?}");
}

/// Rows without a finite projection stay uncapped, which is a fault and no text.
#[test]
fn activations_that_are_not_finite_are_a_fault() {
    let broken = Subject::new(3, f32::NAN);
    for reaction in [Reaction::Fail, Reaction::Uncapped] {
        let caps = model_caps("a", broken.shape.clone(), broken.caps(), &[broken.digest(OUTPUT_NORM)]);
        let guarded = Guarded::new(&support::install(), vec![caps], reaction);
        assert_eq!(run(&broken.model, Some(&guarded)).is_err(), reaction == Reaction::Fail);
        let faults = guarded.faults();
        assert!(faults[0].contains("4 of 4 rows have no finite projection"), "{faults:?}");
    }
    // Caps that only observe leave every row alone.
    let observing = broken.caps().with_bounds(|_| axiscap::Bound::NONE);
    let caps = model_caps("a", broken.shape.clone(), observing, &[broken.digest(OUTPUT_NORM)]);
    let guarded = Guarded::new(&support::install(), vec![caps], Reaction::Fail);
    assert_eq!(run(&broken.model, Some(&guarded)), run(&broken.model, None));
    assert_eq!(guarded.faults(), [""; 0]);
}

#[test]
fn a_model_that_generates_alone_needs_caps() {
    let (served, other) = (Subject::new(3, 1.0), Subject::new(3, 1.25));
    let deeper = ModelShape { blocks: 4, ..served.shape.clone() };
    let wider = ModelShape { width: served.shape.width + 1, ..served.shape.clone() };
    let plamo = ModelShape { architecture: "plamo2".into(), ..served.shape.clone() };
    for (caps, reason) in [
        (
            model_caps("a", other.shape.clone(), other.caps(), &[other.digest(OUTPUT_NORM)]),
            "other norm weights",
        ),
        (model_caps("b", deeper.clone(), served.caps(), &[]), "a model of 4 blocks, this one has 3"),
        (model_caps("c", wider.clone(), bands([0], wider.width, 0.0, 0.0), &[]), "they have width"),
        (model_caps("d", plamo.clone(), served.caps(), &[]), "no block outputs"),
    ] {
        for reaction in [Reaction::Fail, Reaction::Uncapped] {
            let guarded = Guarded::new(&support::install(), vec![caps.clone()], reaction);
            let results = run(&served.model, Some(&guarded));
            match reaction {
                Reaction::Fail => assert!(results.is_err(), "{reason}"),
                Reaction::Uncapped => assert_eq!(results, run(&served.model, None), "{reason}"),
            }
            let faults = guarded.faults();
            assert!(faults.iter().all(|fault| fault.contains(reason)), "{reason}: {faults:?}");
            assert_eq!(faults.len(), if reaction == Reaction::Fail { 1 } else { 4 });
        }
    }
}

/// A draft may compute before its model does. Without a model that may be capped, it is what is served.
#[test]
fn a_model_without_caps_may_compute_first() {
    let (served, draft) = (Subject::new(3, 1.0), Subject::new(3, 1.25));
    let caps = model_caps("a", served.shape.clone(), served.caps(), &[served.digest(OUTPUT_NORM)]);
    let guarded = Guarded::new(&support::install(), vec![caps], Reaction::Fail);
    let decode =
        |context: &mut TestContext<'_>, position| logits(context, &rows(0, position, 1, |_| true)).is_ok();
    let create = |model| guarded.guard.bind(|| TestModel::context(model, |_| {}).unwrap());
    let mut first = create(&draft.model);
    let mut main = create(&served.model);
    for position in 0..10 {
        assert!(decode(&mut first, position), "{:?}", guarded.faults());
    }
    assert!(decode(&mut main, 0) && decode(&mut first, 10));
    let counts = guarded.guard.counts();
    assert_eq!((counts.faults, counts.capped, counts.not_capped), (0, 1, 11));
    // The model is gone, and a context that never computes does not stand in for it for long.
    drop(main);
    let idle = create(&served.model);
    let passed = (11..50).take_while(|&position| decode(&mut first, position)).count();
    assert_eq!(passed, 32 - 10);
    assert!(guarded.faults()[0].contains("no caps are for this model"));
    drop(idle);
    assert!(!decode(&mut first, 11 + 22));
}

/// Norm weights say that it is the model, and its graph names block outputs as another architecture does.
#[test]
fn blocks_that_are_not_seen_fail_the_micro_batch() {
    let served = Subject::new(3, 1.0);
    let shape = ModelShape { architecture: "plamo2".into(), ..served.shape.clone() };
    let caps = model_caps("a", shape, served.caps(), &[served.digest(OUTPUT_NORM)]);
    for reaction in [Reaction::Fail, Reaction::Uncapped] {
        let guarded = Guarded::new(&support::install(), vec![caps.clone()], reaction);
        let results = run(&served.model, Some(&guarded));
        assert_eq!(results.is_err(), reaction == Reaction::Fail);
        let faults = guarded.faults();
        assert!(faults.iter().all(|fault| fault.contains("block 0 was not computed")), "{faults:?}");
        let counts = guarded.guard.counts();
        assert_eq!((counts.capped, counts.faults), (0, faults.len() as u64));
    }
}

/// A context that was recognised by its shape alone, from a graph that does not end, turns out to be another's.
#[test]
fn a_later_graph_may_contradict_the_shape() {
    let (served, other) = (Subject::new(3, 1.0), Subject::new(3, 1.25));
    let caps = model_caps("a", other.shape.clone(), other.caps(), &[other.digest(OUTPUT_NORM)]);
    let guarded = Guarded::new(&support::install(), vec![caps], Reaction::Fail);
    // llama.cpp cuts the graph where the callback wants to see a node.
    let mut context = guarded.guard.bind(|| {
        let cut = served.model.context(|params| params.cb_eval = Some(cut_after_the_first_block));
        cut.unwrap()
    });
    assert!(logits(&mut context, &rows(0, 0, 4, |_| true)).is_err());
    let faults = guarded.faults();
    assert!(
        faults[0].contains("and they are not: they are for a model with other norm weights"),
        "{faults:?}"
    );
}

/// Parts of a graph, in each of which other blocks and results are computed.
#[test]
fn a_graph_in_parts_is_one_micro_batch() {
    let served = Subject::new(3, 1.0);
    let models = || vec![model_caps("a", served.shape.clone(), served.caps(), &[])];
    let whole = Guarded::new(&support::install(), models(), Reaction::Fail);
    for cut in [cut_after_the_first_block as Cut, cut_after_the_norm, cut_everywhere] {
        let guarded = Guarded::new(&support::install(), models(), Reaction::Fail);
        let mut contexts = [(&whole, None), (&guarded, Some(cut))].map(|(guarded, cut)| {
            guarded.guard.bind(|| served.model.context(|params| params.cb_eval = cut).unwrap())
        });
        for batch in [rows(0, 0, 5, |row| row == 4), rows(0, 5, 3, |_| false), rows(0, 8, 1, |_| true)] {
            let [expected, found] = contexts.each_mut().map(|context| logits(context, &batch));
            assert_eq!((found, guarded.faults()), (expected, vec![]));
        }
        assert_eq!(guarded.guard.counts().capped, 3);
    }
}

type Cut = unsafe extern "C" fn(*mut sys::ggml_tensor, bool, *mut std::ffi::c_void) -> bool;

/// # Safety
/// A tensor of ggml.
unsafe fn is_named(tensor: *mut sys::ggml_tensor, name: &[u8]) -> bool {
    // SAFETY: the name of a tensor is NUL-terminated.
    unsafe { std::ffi::CStr::from_ptr(sys::ggml_get_name(tensor)) }.to_bytes() == name
}

unsafe extern "C" fn cut_after_the_first_block(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    _: *mut std::ffi::c_void,
) -> bool {
    // SAFETY: llama.cpp passes a tensor.
    !ask || unsafe { is_named(tensor, b"l_out-0") }
}

unsafe extern "C" fn cut_after_the_norm(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    _: *mut std::ffi::c_void,
) -> bool {
    // SAFETY: llama.cpp passes a tensor.
    !ask || unsafe { is_named(tensor, b"result_norm") }
}

unsafe extern "C" fn cut_everywhere(_: *mut sys::ggml_tensor, _: bool, _: *mut std::ffi::c_void) -> bool {
    true
}

/// Rows at skipped positions are found by the positions that the graphs are given.
#[test]
fn a_policy_of_positions_holds_as_in_a_bound_context() {
    let subject = Subject::new(3, 1.0);
    for blocks in [0..3, 2..3] {
        let caps = bands(blocks, subject.shape.width, PINNED, PINNED);
        let caps = caps.with_policy(Policy::default().with_skip_positions(2));
        let hook = support::install();
        let session = Session::new(subject.shape.clone());
        session.set_caps(Some(&caps)).unwrap();
        let params = |params: &mut axiscap_testing::llama::ContextSettings| {
            params.n_seq_max = 2;
            params.n_ctx = 256;
            params.kv_unified = true;
        };
        let mut bound = hook.bind(&session, || subject.model.context(params).unwrap());
        let models = vec![model_caps("a", subject.shape.clone(), caps, &[])];
        for route in [RouteChoice::Auto, RouteChoice::Views] {
            let mut settings = Settings::default();
            settings.route = route;
            let guarded = Guarded::with_settings(&hook, models.clone(), Reaction::Fail, settings);
            let mut context = guarded.guard.bind(|| subject.model.context(params).unwrap());
            bound.clear();
            for batch in [
                [rows(0, 0, 4, |row| row == 3), rows(1, 0, 1, |_| true)].concat(),
                [rows(1, 1, 2, |_| true), rows(0, 4, 1, |_| false)].concat(),
                rows(0, 5, 1, |_| true),
            ] {
                let decoded: Vec<_> = batch
                    .iter()
                    .map(|row| DecodeRow {
                        token: row.token,
                        position: row.position,
                        profile: Some(ProfileId::DEFAULT),
                        output: row.logits,
                    })
                    .collect();
                let micro_batches = [(0..batch.len()).collect()];
                let whole = DecodeBatch { rows: &decoded, micro_batches: &micro_batches };
                let expected =
                    session.watch_batch(whole, |_| Ok::<_, HookError>(logits(&mut bound, &batch))).unwrap();
                let found = logits(&mut context, &batch);
                assert_eq!(guarded.faults(), [""; 0]);
                assert!(found == expected, "{route:?}: {batch:?}");
            }
        }
    }
}

/// A policy of positions needs positions, which a recurrent model has none of.
#[test]
fn a_policy_without_positions_is_refused() {
    let model = TestModel::new(&Description::new("mamba2", false)).unwrap();
    let shape = shape(&model, "mamba2");
    let caps = bands([1], shape.width, PINNED, PINNED);
    let caps = caps.with_policy(Policy::default().with_skip_positions(1));
    let guarded = Guarded::new(&support::install(), vec![model_caps("a", shape, caps, &[])], Reaction::Fail);
    assert!(run(&model, Some(&guarded)).is_err());
    assert!(guarded.faults()[0].contains("positions of these rows are not known"));
}

/// The context of a next-token block drafts for the model, whose caps are not for it.
#[test]
fn the_context_of_a_next_token_block_is_left_alone() {
    let mut description = Description::new("qwen35", false);
    description.add_next_token_blocks(1);
    let model = TestModel::new(&description).unwrap();
    let shape = shape(&model, "qwen35");
    let caps = bands(0..shape.blocks - 1, shape.width, PINNED, PINNED);
    let guarded = Guarded::new(&support::install(), vec![model_caps("a", shape, caps, &[])], Reaction::Fail);
    let mut draft =
        guarded.guard.bind(|| model.context(|params| params.ctx_type = sys::LLAMA_CONTEXT_TYPE_MTP).unwrap());
    let batch = rows(0, 1, 3, |row| row == 2);
    let states = vec![vec![0.5; model.width()]; 3];
    assert_eq!((draft.draft(&batch, &states), guarded.faults()), (0, vec![]));
    let found = guarded.found();
    assert!(matches!(&found[..], [Found::NotCapped { model, .. }] if model.drafts), "{found:?}");
}

#[test]
fn two_contexts_compute_on_two_threads() {
    let subject = Subject::new(3, 1.0);
    let models = vec![model_caps("a", subject.shape.clone(), subject.caps(), &[])];
    let guarded = Guarded::new(&support::install(), models, Reaction::Fail);
    let expected = run(&subject.model, Some(&guarded));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..8 {
                    assert_eq!(run(&subject.model, Some(&guarded)), expected);
                }
            });
        }
    });
    assert_eq!((guarded.faults(), guarded.guard.counts().capped), (vec![], 17 * 4));
}

#[test]
fn caps_of_one_model_are_refused_twice() {
    let (one, two) = (Subject::new(3, 1.0), Subject::new(3, 1.25));
    let hook = support::install();
    let guard = |models| {
        let watcher = Guarded::new(&support::install(), Vec::new(), Reaction::Fail).kept;
        hook.guard(models, Settings::default(), watcher).map(|_| ())
    };
    let caps =
        |name: &str, norms: &[(&str, [u8; 32])]| model_caps(name, one.shape.clone(), one.caps(), norms);
    let (first, other) = (one.digest(OUTPUT_NORM), two.digest(OUTPUT_NORM));
    assert_eq!(guard(vec![caps("a", &[first]), caps("b", &[other])]), Ok(()));
    assert_eq!(guard(vec![caps("a", &[first]), caps("b", &[])]), Ok(()));
    for norms in [&[][..], &[first]] {
        let rival = HookError::CapsRival { first: "a".into(), second: "b".into() };
        assert_eq!(guard(vec![caps("a", norms), caps("b", norms)]), Err(rival));
    }
}
