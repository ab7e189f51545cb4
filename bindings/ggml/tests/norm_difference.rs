//! How far the fused norm is from ggml's, on real rows of a real model: the figures in docs/hook.md. Run with
//! `--nocapture` to see them.

use std::sync::{Arc, Mutex};

use axiscap::cpu::{self, Norm, RowsMut};
use axiscap::{Bound, CapSet, CapTable};
use llama_cpp_sys_2 as sys;

use super::driver::LaunchNorm;
use super::recording::{Recording, use_next};
use super::tests::{cap, context, generate, shape};
use crate::layout::Arena;
use crate::{Engine, Session, Tap};

/// Rows of a block, and the norm behind them.
struct Sample {
    block: usize,
    rows: Vec<f32>,
    norm: LaunchNorm,
}

/// Block outputs of a prompt and four tokens, from the first to the last but one.
fn samples() -> Vec<Sample> {
    let blocks: Vec<_> = (0..shape().blocks - 1).step_by(4).collect();
    let session = Session::new(shape());
    let caps = blocks.iter().map(|&block| cap(block, block, Bound::NONE));
    session.set_caps(Some(&CapSet::new(caps).unwrap())).unwrap();
    session.set_engine(Engine::Views);
    session.set_fused_norm(true);
    let seen = Arc::new(Mutex::new(vec![Vec::new(); shape().blocks]));
    let tap = {
        let seen = Arc::clone(&seen);
        Tap {
            blocks: blocks.clone(),
            see: Arc::new(move |block, rows| {
                for row in 0..rows.rows() {
                    seen.lock().unwrap()[block].extend_from_slice(rows.row(row));
                }
            }),
        }
    };
    session.set_tap(Some(tap)).unwrap();
    let (driver, _) = Recording::new();
    let norms = Arc::clone(&driver.norms);
    use_next(driver);
    generate(&mut context(&session, 256), &session, 4);
    let mut seen = seen.lock().unwrap();
    let norm_of = |block| norms.lock().unwrap().iter().find(|(of, _)| *of == block).unwrap().1;
    let sample =
        |block: usize| Sample { block, rows: std::mem::take(&mut seen[block]), norm: norm_of(block) };
    blocks.into_iter().map(sample).collect()
}

/// Rows through ggml's RMS_NORM and MUL on its CPU backend.
fn by_ggml(rows: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let (mut rows, mut weight) = (rows.to_vec(), weight.to_vec());
    let (mut between, mut out) = (vec![0.0_f32; rows.len()], vec![0.0_f32; rows.len()]);
    let arena = Arena::new(16).unwrap();
    // SAFETY: tensors and graph live in the arena, their data in vectors of the right length that outlive the call;
    // the backend is freed once.
    unsafe {
        let c = arena.context();
        let input = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, width as i64, (rows.len() / width) as i64);
        let weights = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_F32, width as i64);
        let norm = sys::ggml_rms_norm(c, input, eps);
        let scaled = sys::ggml_mul(c, norm, weights);
        (*input).data = rows.as_mut_ptr().cast();
        (*weights).data = weight.as_mut_ptr().cast();
        (*norm).data = between.as_mut_ptr().cast();
        (*scaled).data = out.as_mut_ptr().cast();
        let graph = sys::ggml_new_graph_custom(c, 8, false);
        sys::ggml_build_forward_expand(graph, scaled);
        let backend = sys::ggml_backend_cpu_init();
        assert!(!backend.is_null());
        assert_eq!(sys::ggml_backend_graph_compute(backend, graph), sys::GGML_STATUS_SUCCESS);
        sys::ggml_backend_free(backend);
    }
    out
}

/// Rows through the arithmetic of ggml's CUDA kernel, as its source has it: each of 256 threads (1024 from 1024
/// channels on) adds up every 256th square, then warps and then their sums are halved. Its reciprocal square root is
/// an approximation of the hardware, here the right one.
fn in_the_order_of_ggml_cuda(rows: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let threads = if width < 1024 { 256 } else { 1024 };
    let halved = |mut lanes: [f32; 32]| {
        for distance in [16, 8, 4, 2, 1] {
            lanes = std::array::from_fn(|lane| lanes[lane] + lanes[lane ^ distance]);
        }
        lanes[0]
    };
    let norm = |row: &[f32]| {
        let partial = |thread: usize| {
            row.iter().skip(thread).step_by(threads).fold(0.0_f32, |sum, &x| x.mul_add(x, sum))
        };
        let warp = |warp: usize| halved(std::array::from_fn(|lane| partial(32 * warp + lane)));
        let sum = halved(std::array::from_fn(|i| if i < threads / 32 { warp(i) } else { 0.0 }));
        let scale = 1.0 / (sum / width as f32 + eps).sqrt();
        row.iter().zip(weight).map(|(&x, &w)| scale * x * w).collect::<Vec<_>>()
    };
    rows.chunks(width).flat_map(norm).collect()
}

fn by_axiscap(rows: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let (mut rows, mut out) = (rows.to_vec(), vec![0.0; rows.len()]);
    let table = CapTable::new(&[cap(0, 1, Bound::NONE).cap]).unwrap();
    let to = RowsMut::from_slice(&mut out, width).unwrap();
    let rows = RowsMut::from_slice(&mut rows, width).unwrap();
    let norm = Norm::new(weight, eps).unwrap();
    cpu::cap_norm_rows(&table, rows, norm, to, cpu::Options::new()).unwrap();
    out
}

/// The differences of single values, relative to the values.
#[derive(Debug, Default)]
struct Difference {
    values: usize,
    differing: usize,
    squares: f64,
    most: f64,
}

impl Difference {
    fn add(&mut self, ours: &[f32], theirs: &[f32]) {
        for (&ours, &theirs) in ours.iter().zip(theirs) {
            let relative = if theirs == 0.0 { 0.0 } else { f64::from(ours - theirs) / f64::from(theirs) };
            assert!(theirs != 0.0 || ours == 0.0);
            self.values += 1;
            self.differing += usize::from(ours != theirs);
            self.squares += relative * relative;
            self.most = self.most.max(relative.abs());
        }
    }

    fn report(&self, what: &str) {
        let (values, differing) = (self.values, 100.0 * self.differing as f64 / self.values as f64);
        let rms = (self.squares / values as f64).sqrt();
        println!(
            "{what}: {values} values, {differing:.1} % differ; relative: rms {rms:.2e}, at most {:.2e}",
            self.most
        );
    }
}

#[test]
fn the_difference_to_ggmls_norm_is_a_few_last_bits() {
    let (mut cpu, mut cuda) = (Difference::default(), Difference::default());
    for Sample { block, rows, norm } in samples() {
        assert!(rows.len() > 4 * shape().width, "block {block}");
        // SAFETY: the launch names the weight of a model that is loaded for as long as the process runs.
        let weight = unsafe { std::slice::from_raw_parts(norm.weight as *const f32, shape().width) };
        let ours = by_axiscap(&rows, weight, norm.eps());
        cpu.add(&ours, &by_ggml(&rows, weight, norm.eps()));
        cuda.add(&ours, &in_the_order_of_ggml_cuda(&rows, weight, norm.eps()));
    }
    cpu.report("against ggml's CPU backend");
    cuda.report("against the order of ggml's CUDA kernel");
    // One factor per row: the rounding of the sum, the division and the root, and those of two products.
    for difference in [cpu, cuda] {
        assert!(difference.most < 8.0 * f64::from(f32::EPSILON), "{difference:?}");
    }
}
