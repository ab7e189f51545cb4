//! The hook on a model whose blocks are spread over the CPU and another device of ggml's, which has memory
//! of its own. Views run on that device, inserted nodes on the CPU, in one decode.
//!
//! `AXISCAP_TEST_BACKEND` names the device's backend.

mod llama;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex};

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, CapTable, RowStat};
use axiscap_ggml::{BlockTrace, HookError, ModelShape, Route, RouteChoice, Seen, Session, Tap};
use axiscap_testing::llama::Row;
use axiscap_testing::numbers::Random;
use llama::{Context, Model, Options};

/// Blocks of the model.
static BLOCKS: LazyLock<usize> = LazyLock::new(|| Model::load(None).shape.blocks);

const PLAIN: Options =
    Options { ubatch: 4, kv_offload: true, flash_attention: true, sequences: 1, threads: 2 };

/// Numbers of layers on the device, the output layer counted as one: none, some, all blocks but the first, all.
fn splits() -> [i32; 5] {
    [0, 2, half(), all() - 1, all()]
}

fn half() -> i32 {
    *BLOCKS as i32 / 2 + 1
}

fn all() -> i32 {
    *BLOCKS as i32 + 1
}

fn cap(model: &Model, block: usize, seed: u64, bound: Bound) -> BlockCap {
    let mut random = Random(seed << 32 | block as u64);
    let direction: Vec<f32> = (0..model.shape.width).map(|_| random.signed()).collect();
    BlockCap { block, cap: Cap::new(Axis::from_direction(&direction).unwrap(), bound) }
}

/// Caps on the first and last block, next to each other, two on one block, and on either side of every split. The
/// device has the half of the blocks from `first` on.
fn some_caps(model: &Model) -> CapSet {
    let (first, last) = (*BLOCKS / 2, *BLOCKS - 1);
    let blocks = [0, 1, first - 2, first - 1, first, first + 1, last - 1, last];
    let band = Bound::band(-0.02, 0.02).unwrap();
    let ones = blocks.map(|block| cap(model, block, 1, band));
    CapSet::new(ones.into_iter().chain([cap(model, first, 2, band)])).unwrap()
}

fn open_caps(model: &Model) -> CapSet {
    CapSet::new((0..*BLOCKS).map(|block| cap(model, block, 3, Bound::NONE))).unwrap()
}

fn session(model: &Model, caps: &CapSet) -> Session {
    let session = Session::new(model.shape.clone());
    session.set_caps(Some(caps)).unwrap();
    session.update(|settings| settings.tracing = true);
    session
}

/// The batches of a run: a prompt per sequence in several micro-batches, tokens one at a time, a part of a
/// prompt without logits, and a part in which some rows have logits.
fn batches(sequences: i32, prompt: i32) -> Vec<Vec<Row>> {
    let mut positions = vec![0; sequences as usize];
    let mut batch = |counts: &[i32], logits: &dyn Fn(i32, i32) -> bool| {
        let mut rows = Vec::new();
        for (sequence, &count) in counts.iter().enumerate() {
            for i in 0..count {
                let position = positions[sequence];
                positions[sequence] += 1;
                // Of any vocabulary, whatever they are.
                let token = 3 + (position * 7919 + sequence as i32 * 104_729) % 90;
                rows.push(Row { token, position, sequence: sequence as i32, logits: logits(i, count) });
            }
        }
        rows
    };
    let each = |count: i32| (0..sequences).map(|sequence| count + sequence).collect::<Vec<_>>();
    let last = |i: i32, count: i32| i + 1 == count;
    let ones = vec![1; sequences as usize];
    vec![
        batch(&each(prompt), &last),
        batch(&ones, &last),
        batch(&ones, &last),
        batch(&each(3), &|_, _| false),
        batch(&each(6), &|i, _| i % 3 == 1),
        batch(&ones, &last),
    ]
}

/// The bits of logits, by batch and row.
type Logits = Vec<Vec<Vec<u32>>>;

fn run(context: &mut Context<'_>, batches: &[Vec<Row>]) -> Logits {
    batches.iter().map(|rows| context.decode(rows).expect("a capped decode")).collect()
}

fn device() -> String {
    support::device_name(support::device())
}

/// Returns the devices that capped blocks of a session, by route.
fn capped_on(session: &Session) -> BTreeSet<(String, String)> {
    let used = session.routes_used().into_iter().filter(|used| used.route != Route::Untouched);
    used.map(|used| (used.device, format!("{:?}", used.route))).collect()
}

/// Every setting of the runs below: each of the splits, and every other option where blocks are on both devices
/// and where all are on one.
fn settings() -> Vec<(i32, Options)> {
    let mut settings: Vec<_> = splits().map(|layers| (layers, PLAIN)).to_vec();
    settings.extend([
        (half(), Options { kv_offload: false, ..PLAIN }),
        (all(), Options { kv_offload: false, flash_attention: false, sequences: 3, ..PLAIN }),
        (half(), Options { flash_attention: false, sequences: 2, ..PLAIN }),
        (all(), Options { ubatch: LARGE, ..PLAIN }),
        // Products of so many rows go to the device although the weights are in host memory.
        (0, Options { ubatch: LARGE, sequences: 2, ..PLAIN }),
    ]);
    settings
}

/// Rows of a large micro-batch. The prompt of a run that has one fills it.
const LARGE: u32 = 34;

fn batches_for(options: Options) -> Vec<Vec<Row>> {
    let prompt = if options.ubatch == LARGE { LARGE as i32 / options.sequences } else { 6 };
    batches(options.sequences, prompt)
}

/// Calls `with` for every setting, and loads the model once per split.
fn for_each_setting(mut with: impl FnMut(&Model, i32, Options)) {
    let settings = settings();
    for layers in splits() {
        let model = Model::load(Some(layers));
        settings
            .iter()
            .filter(|(of, _)| *of == layers)
            .for_each(|&(_, options)| with(&model, layers, options));
    }
}

#[test]
fn infinite_bounds_change_no_bit_of_any_logit() {
    let hook = support::install();
    for_each_setting(|model, layers, options| {
        let caps = open_caps(model);
        // Each has a neighbour here that cuts the same graphs.
        if [0, all() - 1].contains(&layers) {
            return;
        }
        let batches = batches_for(options);
        let session = session(model, &caps);
        let capped = run(&mut model.context(options, Some((&hook, &session)), []), &batches);
        // llama.cpp cuts the graphs at the same places by itself, for its evaluation callback.
        let cut = run(&mut model.context(options, None, 0..*BLOCKS), &batches);
        assert!(capped == cut, "{layers} layers, {options:?}: the logits differ");
        // Uncut, ggml's Vulkan backend sums the squares of a single row while it adds, and so rounds otherwise.
        if std::env::var_os("GGML_VK_DISABLE_FUSION").is_some() {
            let plain = run(&mut model.context(options, None, []), &batches);
            assert!(capped == plain, "{layers} layers, {options:?}: the logits differ from uncut graphs");
        }
        let stats = session.stats();
        assert!(stats.iter().all(|stats| stats.engaged == 0), "{stats:?}");
        let rows: usize = batches.iter().map(Vec::len).sum();
        assert!(stats[..*BLOCKS - 1].iter().all(|stats| stats.rows as usize == rows), "{stats:?}");
    });
}

/// Rows of block outputs in the order of computation.
type Rows = Vec<(usize, Vec<f32>)>;

/// Has a tap copy the rows of capped blocks before their caps.
fn watch_rows(session: &Session, caps: &CapSet) -> Arc<Mutex<Rows>> {
    let seen = Arc::new(Mutex::new(Rows::new()));
    let sink = Arc::clone(&seen);
    let see = move |block: usize, rows: axiscap_ggml::TapRows<'_>| {
        let copy = (0..rows.rows()).flat_map(|i| rows.row(i).iter().copied()).collect();
        sink.lock().unwrap().push((block, copy));
    };
    let blocks = caps.blocks().into_keys().collect();
    session.set_tap(Some(Tap { blocks, see: Arc::new(see) })).unwrap();
    seen
}

/// Returns what the CPU kernels make of these rows of a block.
fn by_cpu_kernels(caps: &CapSet, block: usize, rows: &[f32]) -> (Vec<f32>, Vec<RowStat>) {
    let indices = &caps.blocks()[&block];
    let table = CapTable::new(indices.iter().map(|&index| &caps.caps()[index].cap)).unwrap();
    let width = caps.caps()[0].cap.axis().values().len();
    let mut capped = rows.to_vec();
    let mut stats = vec![RowStat::default(); rows.len() / width * indices.len()];
    Job::cap(RowsMut::from_slice(&mut capped, width).unwrap()).stats(&mut stats).run(&table).unwrap();
    (capped, stats)
}

fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn rows_in_the_memory_of_either_device_get_the_bits_of_the_cpu_kernels() {
    let hook = support::install();
    let device = device();
    for_each_setting(|model, layers, options| {
        let caps = some_caps(model);
        let capped: BTreeSet<usize> = caps.blocks().into_keys().collect();
        let what = format!("{layers} layers, {options:?}");
        let batches = batches_for(options);
        let session = session(model, &caps);
        let before = watch_rows(&session, &caps);
        let mut context = model.context(options, Some((&hook, &session)), capped.iter().copied());
        let mut on_device = BTreeSet::new();
        let mut logits = Vec::new();
        let mut traces = Vec::new();
        for rows in &batches {
            logits.push(context.decode(rows).unwrap());
            let observed = context.observed();
            let after = observed.rows.iter().filter(|(_, rows)| !rows.is_empty());
            let before: Rows = std::mem::take(&mut *before.lock().unwrap());
            let before = before.iter().filter(|(_, rows)| !rows.is_empty());
            let trace = session.take_trace();
            let traced = trace.iter().filter(|trace| !trace.rows.is_empty());
            let mut count = 0;
            for (((block, before), (at, after)), trace) in before.zip(after).zip(traced) {
                let (expected, stats) = by_cpu_kernels(&caps, *block, before);
                assert_eq!((block, block), (at, &trace.block), "{what}");
                assert_eq!(bits(after), bits(&expected), "block {block}, {what}");
                assert!(trace.stats().eq(&stats), "block {block}, {what}");
                count += before.len() / model.shape.width;
            }
            let last = rows.iter().filter(|row| row.logits).count();
            assert_eq!(count, rows.len() * (capped.len() - 1) + last, "{what}");
            let here = observed.buffers.iter().filter(|(_, buffer)| *buffer == device);
            on_device.extend(here.map(|(block, _)| *block));
            traces.extend(trace);
        }

        // The scheduler may put the end of a block, which has no weights, with the block after it.
        let blocks = layers.max(1) as usize - 1;
        let first = on_device.first().map_or(*BLOCKS, |first| *first);
        if layers > 0 {
            assert_eq!(on_device, (first..*BLOCKS).collect(), "{what}");
            assert!([blocks, blocks + 1].contains(&on_device.len()), "{on_device:?}, {what}");
        }
        let mut expected = BTreeSet::new();
        if capped.iter().any(|block| on_device.contains(block)) {
            expected.insert((device.clone(), "HostViews".to_owned()));
        }
        if layers == 0 || capped.iter().any(|block| !on_device.contains(block)) {
            expected.insert(("CPU".to_owned(), "Inserted".to_owned()));
        }
        assert_eq!(capped_on(&session), expected, "{what}");

        // Without the callback, graphs are cut by the hook alone, at the same nodes.
        let unobserved = self::session(model, &caps);
        let alone = run(&mut model.context(options, Some((&hook, &unobserved)), []), &batches);
        assert!(alone == logits, "{what}: the logits differ");
        assert_eq!(unobserved.take_trace(), traces, "{what}");
        let stats = unobserved.stats();
        assert!(stats.iter().all(|stats| stats.engaged > 0), "{what}: {stats:?}");
    });
}

/// Contexts of these models with caps of their own, given as model and seed, that decode in turns. Returns the
/// logits and the trace of each.
fn in_turns(models: &[Model], contexts: &[(usize, u64)]) -> Vec<(Logits, Vec<BlockTrace>)> {
    let hook = support::install();
    let (band, middle) = (Bound::band(-0.2, 0.2).unwrap(), *BLOCKS / 2);
    let caps = |seed| {
        CapSet::new([1, middle - 1, middle, *BLOCKS - 2].map(|block| cap(&models[0], block, seed, band)))
            .unwrap()
    };
    let sessions: Vec<_> =
        contexts.iter().map(|&(model, seed)| session(&models[model], &caps(seed))).collect();
    let mut opened: Vec<_> = contexts
        .iter()
        .zip(&sessions)
        .map(|(&(model, _), session)| models[model].context(PLAIN, Some((&hook, session)), []))
        .collect();
    let mut logits = vec![Vec::new(); contexts.len()];
    for rows in &batches_for(PLAIN) {
        for (context, logits) in opened.iter_mut().zip(&mut logits) {
            logits.push(context.decode(rows).unwrap());
        }
    }
    for (&(model, _), session) in contexts.iter().zip(&sessions) {
        let (on_cpu, on_device) = (model != 1, model != 0);
        let expected: Vec<_> =
            on_cpu.then(|| "CPU".to_owned()).into_iter().chain(on_device.then(device)).collect();
        let devices: Vec<_> = capped_on(session).into_iter().map(|(device, _)| device).collect();
        assert_eq!(devices, expected);
    }
    logits.into_iter().zip(sessions.iter().map(Session::take_trace)).collect()
}

#[test]
fn contexts_on_both_devices_in_turns_run_each_under_its_own_caps() {
    let models = [Model::load(None), Model::load(Some(all())), Model::load(Some(half()))];
    let contexts = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)];
    let together = in_turns(&models, &contexts);
    for (i, one) in together.iter().enumerate() {
        assert!(
            together[..i].iter().all(|other| other.1 != one.1),
            "caps and devices differ, and so do rows"
        );
        let alone = in_turns(&models, &contexts[i..=i]);
        assert!(alone[0] == *one, "model {} with caps {}", contexts[i].0, contexts[i].1);
    }
}

#[test]
fn every_choice_of_a_route_gives_the_same_bits() {
    let hook = support::install();
    let batches = batches_for(PLAIN);
    for layers in [half(), all()] {
        let model = Model::load(Some(layers));
        let caps = some_caps(&model);
        let mut reference = None;
        for (choice, fused_norm) in [
            (RouteChoice::Inserted, false),
            (RouteChoice::Views, false),
            (RouteChoice::OneGraph, false),
            (RouteChoice::Auto, true),
        ] {
            let session = session(&model, &caps);
            session.update(|settings| {
                settings.route = choice;
                settings.fused_norm = fused_norm;
            });
            let logits = run(&mut model.context(PLAIN, Some((&hook, &session)), []), &batches);
            support::check_routes(&session, choice);
            let found = (logits, session.take_trace());
            let expected = reference.get_or_insert_with(|| found.clone());
            assert!(found == *expected, "{choice:?}, fused norm {fused_norm}, {layers} layers");
            assert!(session.fused_norms().fused.is_empty(), "only axiscap's own kernels fuse the norm");
        }
    }
}

#[test]
fn a_fault_on_either_device_fails_the_decode_and_the_next_one_runs() {
    let hook = support::install();
    let model = Model::load(Some(half()));
    let row = |position| Row { token: 42, position, sequence: 0, logits: true };

    // A block that no device computes, and fewer rows than were said.
    let session = Session::new(ModelShape { blocks: 2 * *BLOCKS, ..model.shape.clone() });
    let (late, absent) = (*BLOCKS - 2, *BLOCKS + 1);
    let caps = [1, late, absent].map(|block| cap(&model, block, 1, Bound::NONE));
    session.set_caps(Some(&CapSet::new(caps).unwrap())).unwrap();
    let mut context = model.context(PLAIN, Some((&hook, &session)), []);
    let error = context.decode(&[row(0), row(1)]).unwrap_err();
    assert_eq!(error, HookError::NotSeen { block: absent, seen: Seen::Never, rows: 2, outputs: 2 });
    drop(context);

    for block in [1, late] {
        let session = self::session(&model, &some_caps(&model));
        let tap = Tap { blocks: vec![block], see: Arc::new(|_, _| panic!("as the test asked")) };
        session.set_tap(Some(tap)).unwrap();
        let mut context = model.context(PLAIN, Some((&hook, &session)), []);
        let error = context.decode(&[row(0)]).unwrap_err();
        assert_eq!(error, HookError::Panic("as the test asked".into()), "block {block}");
        session.set_tap(None).unwrap();
        let decoded = context.decode(&[row(0)]).unwrap();
        assert_eq!(decoded.len(), 1, "block {block}");
    }
}
