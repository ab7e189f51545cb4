//! What happens to the memory of a context between two decodes.

use axiscap_testing::llama::{ContextSettings, Row};

use crate::capped::{bits, rows};
use crate::script::{in_eights, run};
use crate::subjects::{keep_states, subjects};

/// Replaces the tokens of a batch.
fn other(mut rows: Vec<Row>) -> Vec<Row> {
    rows.iter_mut().for_each(|row| row.token = (row.token + 41) % 90 + 3);
    rows
}

#[test]
fn a_history_rolled_back_leaves_nothing_stale() {
    for subject in subjects() {
        for full_window in [true, false] {
            let settings = |params: &mut ContextSettings| {
                in_eights(params);
                params.swa_full = full_window;
            };
            run(subject, settings, |run| {
                run.decode(&rows(0, 0, 12, |_| true));
                let rolled_back = run.context().remove(0, 8, -1);
                assert_eq!(rolled_back, subject.rolls_back, "{}", subject.name);
                if !rolled_back {
                    run.context().clear();
                    run.decode(&rows(0, 0, 8, |i| i == 7));
                }
                assert_eq!(run.context().last_position(0), 7);
                run.decode(&other(rows(0, 8, 6, |_| true)));
                // The same history in a context that never saw the rest.
                let mut fresh = run.another(settings);
                fresh.decode(&rows(0, 0, 8, |i| i == 7));
                fresh.decode(&other(rows(0, 8, 6, |_| true)));
                let last = |results: &[Vec<f32>]| bits(&results[results.len() - 6..]);
                assert!(last(run.results()) == last(fresh.results()), "{}: something is stale", subject.name);
            });
        }
    }
}

#[test]
fn recurrent_states_that_are_kept_for_a_rollback() {
    for subject in keep_states() {
        let settings = |params: &mut ContextSettings| params.n_rs_seq = 4;
        run(&subject, settings, |run| {
            run.decode(&rows(0, 0, 8, |i| i == 7));
            run.decode(&rows(0, 8, 3, |_| true));
            assert!(run.context().remove(0, 9, -1), "two of three drafted tokens are rejected");
            run.decode(&other(rows(0, 9, 3, |_| true)));
            let mut fresh = run.another(settings);
            fresh.decode(&rows(0, 0, 8, |i| i == 7));
            fresh.decode(&rows(0, 8, 1, |_| true));
            fresh.decode(&other(rows(0, 9, 3, |_| true)));
            let last = |results: &[Vec<f32>]| results[results.len() - 3..].concat();
            let pairs = last(run.results()).into_iter().zip(last(fresh.results()));
            let distance = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(distance < 1e-3, "{}: logits differ by {distance}", subject.name);
        });
    }
}

#[test]
fn a_shifted_context_goes_on() {
    for subject in subjects() {
        run(subject, in_eights, |run| {
            run.decode(&rows(0, 0, 16, |i| i == 15));
            if !run.context().can_shift() || !run.context().remove(0, 4, 8) {
                assert!(!subject.rolls_back || subject.architecture == "deepseek2", "{}", subject.name);
                return;
            }
            run.context().shift(0, 8, -4);
            assert_eq!(run.context().last_position(0), 11);
            // The decode moves the keys as well, in a graph without blocks.
            run.decode(&rows(0, 12, 1, |_| true));
            run.decode(&rows(0, 13, 9, |i| i == 8));
        });
    }
}

#[test]
fn sequences_share_a_prefix() {
    for subject in subjects() {
        for unified in [true, false] {
            let settings = |params: &mut ContextSettings| {
                in_eights(params);
                params.n_seq_max = 4;
                params.n_ctx = 256;
                params.kv_unified = unified;
            };
            run(subject, settings, |run| {
                run.decode(&rows(0, 0, 12, |_| false).into_iter().map(with_logits).collect::<Vec<_>>());
                for sequence in 1..4 {
                    run.context().copy(0, sequence);
                }
                let next: Vec<_> = (0..4).flat_map(|sequence| rows(sequence, 12, 3, |i| i == 2)).collect();
                run.decode(&next);
                let next: Vec<_> = (0..4).flat_map(|sequence| rows(sequence, 15, 1, |_| true)).collect();
                run.decode(&next);
                // One of them ends, and another begins.
                assert!(run.context().remove(2, -1, -1));
                let mixed = [rows(1, 16, 2, |i| i == 1), rows(2, 0, 5, |i| i == 4), rows(3, 16, 1, |_| true)];
                run.decode(&mixed.concat());
            });
        }
    }
}

/// Asks for the logits of every third row: a batch needs some to be compared.
fn with_logits(row: Row) -> Row {
    Row { logits: row.position % 3 == 2, ..row }
}

#[test]
fn rows_that_belong_to_several_sequences() {
    for subject in subjects() {
        let settings = |params: &mut ContextSettings| {
            params.n_seq_max = 2;
            params.n_ctx = 256;
            params.kv_unified = true;
        };
        run(subject, settings, |run| {
            let prefix = rows(0, 0, 8, |i| i == 7);
            if subject.name.starts_with("recurrent") {
                // llama.cpp refuses rows of several sequences where it keeps states alone.
                assert_ne!(run.context().decode_shared(&prefix, &[0, 1]), 0, "{}", subject.name);
                run.decode(&prefix);
                return;
            }
            run.decode_with(&prefix, |context| context.decode_shared(&prefix, &[0, 1]));
            run.decode(&[rows(0, 8, 2, |i| i == 1), rows(1, 8, 1, |_| true)].concat());
        });
    }
}

#[test]
fn a_state_saved_and_restored() {
    for subject in subjects() {
        let settings = |params: &mut ContextSettings| {
            in_eights(params);
            params.n_seq_max = 2;
            params.n_ctx = 256;
        };
        run(subject, settings, |run| {
            run.decode(&rows(0, 0, 12, |i| i == 11));
            let state = run.context().state(0);
            run.decode(&rows(0, 12, 4, |_| true));
            // Into another sequence of the same context, over what it held.
            run.decode(&rows(1, 0, 3, |i| i == 2));
            assert!(run.context().set_state(1, &state), "{}", subject.name);
            let again: Vec<_> =
                rows(0, 12, 4, |_| true).into_iter().map(|row| Row { sequence: 1, ..row }).collect();
            run.decode(&again);
            // Into another context.
            let mut fresh = run.another(settings);
            assert!(fresh.context().set_state(0, &state));
            fresh.decode(&rows(0, 12, 4, |_| true));
            let results = run.results();
            let first = bits(&results[1..5]);
            assert!(first == bits(&results[results.len() - 4..]), "{}: in the same context", subject.name);
            assert!(first == bits(fresh.results()), "{}: in another context", subject.name);
        });
    }
}
