//! Embeddings in place of logits, pooled or not.

use axiscap_testing::llama::{ContextSettings, Row, TestContext};
use llama_cpp_sys_2 as sys;

use crate::capped::rows;
use crate::script::run_reading;
use crate::subjects::{real, subjects};

fn of_rows(context: &TestContext<'_>, rows: &[Row]) -> Vec<Vec<f32>> {
    (0..rows.len()).filter(|&row| rows[row].logits).map(|row| context.embedding(row)).collect()
}

fn of_sequences(context: &TestContext<'_>, _: &[Row]) -> Vec<Vec<f32>> {
    [0, 1].map(|sequence| context.pooled_embedding(sequence)).to_vec()
}

#[test]
fn embeddings_of_each_token() {
    for subject in subjects() {
        let settings = |params: &mut ContextSettings| {
            params.embeddings = true;
            params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        };
        run_reading(subject, settings, of_rows, |run| run.decode(&rows(0, 0, 12, |i| i % 2 == 1)));
    }
}

#[test]
fn pooled_embeddings_of_two_sequences() {
    for subject in subjects() {
        for pooling in
            [sys::LLAMA_POOLING_TYPE_MEAN, sys::LLAMA_POOLING_TYPE_CLS, sys::LLAMA_POOLING_TYPE_LAST]
        {
            let settings = |params: &mut ContextSettings| {
                params.embeddings = true;
                params.pooling_type = pooling;
                params.n_seq_max = 2;
                params.n_ctx = 256;
            };
            run_reading(subject, settings, of_sequences, |run| {
                run.decode(&[rows(0, 0, 6, |_| true), rows(1, 0, 6, |_| true)].concat());
            });
        }
    }
    // Without attention to the past, as embedding models are run.
    let settings = |params: &mut ContextSettings| {
        params.embeddings = true;
        params.pooling_type = sys::LLAMA_POOLING_TYPE_MEAN;
        params.attention_type = sys::LLAMA_ATTENTION_TYPE_NON_CAUSAL;
        params.n_seq_max = 2;
        params.n_ctx = 256;
    };
    run_reading(real(), settings, of_sequences, |run| {
        run.decode(&[rows(0, 0, 6, |_| true), rows(1, 0, 6, |_| true)].concat());
    });
}
