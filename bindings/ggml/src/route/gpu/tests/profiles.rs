//! Rows under different profiles on a GPU: one index per row in a buffer whose place stays.

use std::num::NonZeroU32;
use std::sync::Arc;

use axiscap::{CapSet, Policy};
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;

use super::super::{CudaDrivers, DriverFactory};
use super::hand_made::{HandMade, Runner, floor, two_blocks};
use super::model::{LOADED, caps, prompt, session};
use super::recording::{Op, Recording, taken};
use crate::profile::{MicroBatch, RowProfiles};
use crate::{BlockTrace, DecodeBatch, DecodeRow, Hook, HookError, ProfileId, RouteChoice, Session};

fn each(profiles: &[u32]) -> RowProfiles {
    let rows: Vec<_> =
        profiles.iter().zip(0..).map(|(&profile, index)| (profile, index, index == 0)).collect();
    RowProfiles::Each(Arc::new(MicroBatch::new(0, &rows)))
}

/// Writes of profiles, launches that run, captures and replays of a log.
fn steps(ops: &[Op]) -> Vec<Op> {
    let is_step = |op: &&Op| {
        matches!(op, Op::WriteProfiles(_) | Op::Upload(_) | Op::BeginCapture | Op::Replay(_) | Op::Discard)
    };
    ops.iter().filter(is_step).cloned().collect()
}

/// Rows that change their profiles change no launch, so that a captured graph serves all of them.
#[test]
fn other_profiles_of_the_rows_need_no_other_graph() {
    let session = two_blocks(floor(1.0));
    let set = session.profile_caps(ProfileId::DEFAULT).unwrap();
    let added = session
        .add_profile("added", &CapSet::clone(&set).with_policy(Policy::default().with_skip_positions(1)))
        .unwrap();
    let mut runner = Runner::with_session(session);
    let made = HandMade::new(3).with_uid(7);
    // Index 1 is the default profile, 2 the added one, 3 the added one where it leaves rows alone.
    let mut compute = |profiles: &[u32]| {
        runner.profiles = each(profiles);
        steps(&runner.compute(&made))
    };
    assert_eq!(compute(&[1, 0, 2]), [Op::Upload(0), Op::Upload(1), Op::WriteProfiles(4)]);
    assert_eq!(compute(&[1, 0, 2]), [], "they are there");
    assert_eq!(compute(&[2, 2, 3]), [Op::WriteProfiles(4), Op::BeginCapture, Op::Replay(0)]);
    assert_eq!(compute(&[2, 2, 3]), [Op::Replay(0)]);
    assert_eq!(
        compute(&[0, 0, 0]),
        [Op::WriteProfiles(4), Op::Replay(0)],
        "none is a profile like any other"
    );
    runner.profiles = RowProfiles::First(None);
    assert_eq!(steps(&runner.compute(&made)), [], "without indices it is another launch");
    runner.close();
    assert_eq!(runner.rows_counted(), [1 + 1 + 3; 2]);
    let stats = runner.session.profile_stats(added).unwrap();
    assert!(stats.iter().all(|stats| (stats.rows, stats.skipped) == (1 + 1 + 2 + 2, 2)), "{stats:?}");
}

#[test]
fn more_rows_move_the_buffer_and_discard_graphs() {
    let mut runner = Runner::with_session(two_blocks(floor(1.0)));
    let [few, many] = [HandMade::new(1).with_uid(7), HandMade::new(4).with_uid(17)];
    let mut compute = |made: &HandMade, profiles: &[u32]| {
        runner.profiles = each(profiles);
        steps(&runner.compute(made))
    };
    for expected in [2, 0, 0] {
        let written = compute(&few, &[1]).contains(&Op::WriteProfiles(2));
        assert_eq!(written, expected == 2);
    }
    let moved = compute(&many, &[1, 0, 0, 0]);
    assert_eq!(moved, [Op::Discard, Op::WriteProfiles(5)]);
    // What the buffer held is gone.
    assert_eq!(compute(&few, &[1]), [Op::WriteProfiles(2)]);
    runner.close();
    assert_eq!(runner.rows_counted(), [5; 2]);
}

#[test]
fn a_row_whose_profile_is_not_on_the_gpu_fails_the_next_decode() {
    let (mut driver, log) = Recording::new();
    driver.loses_profiles_after = Some(2);
    let mut runner = Runner::new(driver, log, two_blocks(floor(1.0)));
    runner.profiles = each(&[1, 1]);
    let made = HandMade::new(2).with_uid(7);
    // The first launches are compared with the CPU's.
    (0..2).for_each(|_| drop(runner.compute(&made)));
    runner.close();
    let error = runner.session.watch(1, 1, || Ok::<_, HookError>(())).unwrap_err();
    assert!(error.to_string().contains("its profile is not on the GPU"), "{error}");
}

/// Decodes a prompt in two sequences and three rows of each after it. The sequences are interleaved.
fn decode_two(session: &Session, drivers: Arc<dyn DriverFactory>) -> (Vec<Vec<f32>>, Vec<BlockTrace>) {
    const UBATCH: usize = 8;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(512))
        .with_n_ubatch(UBATCH as u32)
        .with_n_seq_max(2)
        .with_kv_unified(true)
        .with_n_threads(2)
        .with_n_threads_batch(2);
    let hook = Hook::install().unwrap();
    let mut context = hook.bind_with(session, drivers, || LOADED.1.new_context(&LOADED.0, params)).unwrap();
    let (prompt, mut logits) = (prompt(), Vec::new());
    let added = session.profiles()[1].id;
    let mut decode = |positions: std::ops::Range<usize>, swap: bool| {
        let mut batch = LlamaBatch::new(2 * positions.len(), 1);
        let mut rows = Vec::new();
        for position in positions.clone() {
            for sequence in 0..2 {
                let token = prompt[(position + sequence as usize) % prompt.len()];
                let output = position + 1 == positions.end;
                batch.add(token, position as i32, &[sequence], output).unwrap();
                let profile = if (sequence == 0) != swap { ProfileId::DEFAULT } else { added };
                let profile = (position != 2).then_some(profile);
                rows.push(DecodeRow { token: token.0, position: position as i32, profile, output });
            }
        }
        let indices: Vec<_> = (0..rows.len()).collect();
        let micro_batches: Vec<_> = indices.chunks(UBATCH).map(<[usize]>::to_vec).collect();
        let batch_rows = DecodeBatch { rows: &rows, micro_batches: &micro_batches };
        session.watch_batch(batch_rows, |_| Ok::<_, HookError>(context.decode(&mut batch))).unwrap().unwrap();
        for row in [2, 1] {
            logits.push(context.get_logits_ith(rows.len() as i32 - row).to_vec());
        }
    };
    decode(0..prompt.len(), false);
    for step in 0..3 {
        decode(prompt.len() + step..prompt.len() + step + 1, step == 1);
    }
    (logits, session.take_trace())
}

#[test]
fn a_mixed_batch_on_a_gpu_has_the_bits_of_the_cpu() {
    let start = |route| {
        let session = session(route);
        session.set_caps(Some(&caps().with_policy(Policy::default().with_skip_positions(1)))).unwrap();
        let other = caps().with_bounds(|_| axiscap::Bound::ceiling(-0.5).unwrap());
        session.add_profile("other", &other).unwrap();
        session
    };
    let on_the_cpu = start(RouteChoice::Auto);
    let expected = decode_two(&on_the_cpu, Arc::new(CudaDrivers));
    assert!(expected.1.iter().any(|traced| traced.rows.iter().any(|row| row.skipped)));
    let session = start(RouteChoice::Views);
    let (driver, log) = Recording::new();
    let found = decode_two(&session, driver.factory());
    assert!(found == expected, "other bits");
    assert_eq!(session.stats(), on_the_cpu.stats());
    let written = taken(&log).iter().filter(|op| matches!(op, Op::WriteProfiles(_))).count();
    // The prompt's micro-batches that differ, and one for each step that swaps the profiles.
    assert!((3..=8).contains(&written), "{written}");
}

/// The order in which llama.cpp computes the rows is compared with the expected one.
#[test]
fn rows_in_another_order_than_expected_fail_the_decode() {
    let session = session(RouteChoice::Auto);
    let mut context = super::model::context(&session, 8);
    let (prompt, mut batch) = (prompt(), LlamaBatch::new(6, 1));
    let mut rows = Vec::new();
    for (&token, position) in prompt.iter().zip(0..6) {
        batch.add(token, position, &[0], false).unwrap();
        let profile = Some(ProfileId::DEFAULT);
        rows.push(DecodeRow { token: token.0, position, profile, output: false });
    }
    let mut decode = |rows: &[DecodeRow], micro_batches: &[Vec<usize>]| {
        let batch_rows = DecodeBatch { rows, micro_batches };
        let decoded = session.watch_batch(batch_rows, |_| Ok::<_, HookError>(context.decode(&mut batch)));
        context.clear_kv_cache();
        decoded.map(|decoded| assert!(decoded.is_ok()))
    };
    assert_eq!(decode(&rows, &[vec![0, 1, 2, 3, 4, 5]]), Ok(()));
    for wrong in [vec![vec![0, 1, 2, 4, 3, 5]], vec![vec![0, 1, 2], vec![3, 4, 5]]] {
        let refused = decode(&rows, &wrong);
        assert!(matches!(refused, Err(HookError::RowOrder { .. })), "{refused:?}");
    }
    rows[3].position = 7;
    let refused = decode(&rows, &[vec![0, 1, 2, 3, 4, 5]]);
    assert!(matches!(refused, Err(HookError::RowOrder { .. })), "{refused:?}");
}
