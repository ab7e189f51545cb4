//! Distance of the fused norm from ggml's, on real rows of a real model: the numbers in docs/hook.md. Run
//! with `--nocapture` to see them.

mod support;

use std::ffi::CString;
use std::num::NonZeroU32;
use std::ptr;
use std::sync::{Arc, Mutex};

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable, Epsilon};
use axiscap_ggml::{HookError, ModelShape, Session, Tap};
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

/// Rows of a block, and the norm that follows it.
struct Sample {
    block: usize,
    rows: Vec<f32>,
    weight: Vec<f32>,
    eps: f32,
}

/// The outputs of every fourth block but the last, for a prompt and three tokens.
fn samples() -> Vec<Sample> {
    let mut backend = LlamaBackend::init().unwrap();
    backend.void_logs();
    let model =
        LlamaModel::load_from_file(&backend, axiscap_testing::small_model(), &LlamaModelParams::default())
            .expect("it loads");
    let (layers, width) = (model.n_layer() as usize, model.n_embd() as usize);
    let session = Session::new(ModelShape { architecture: "llama".into(), blocks: layers, width });
    let blocks: Vec<_> = (0..layers - 1).step_by(4).collect();
    let seen = Arc::new(Mutex::new(vec![Vec::new(); layers]));
    let sink = Arc::clone(&seen);
    let see = move |block: usize, rows: axiscap_ggml::TapRows<'_>| {
        for row in 0..rows.rows() {
            sink.lock().unwrap()[block].extend_from_slice(rows.row(row));
        }
    };
    session.set_tap(Some(Tap { blocks: blocks.clone(), see: Arc::new(see) })).unwrap();
    let params = LlamaContextParams::default().with_n_ctx(NonZeroU32::new(512)).with_n_threads(2);
    let hook = support::install();
    let mut context = hook.bind(&session, || model.new_context(&backend, params)).unwrap();
    let mut tokens = model.vocab().tokenize(b"I feel so alone tonight. What are you, really?", false, true);
    let mut position = 0;
    for _ in 0..4 {
        let mut batch = LlamaBatch::new(tokens.len(), 1);
        for (i, &token) in tokens.iter().enumerate() {
            batch.add(token, position + i as i32, &[0], i + 1 == tokens.len()).unwrap();
        }
        let decoded = session.watch(tokens.len(), 1, || Ok::<_, HookError>(context.decode(&mut batch)));
        decoded.unwrap().unwrap();
        let logits = context.get_logits_ith(tokens.len() as i32 - 1);
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        position += tokens.len() as i32;
        tokens = vec![LlamaToken::new(best as i32)];
    }
    let mut seen = seen.lock().unwrap();
    let norms = norms_after(&blocks, width);
    let sample = |(&block, (weight, eps)): (&usize, (Vec<f32>, f32))| {
        let rows = std::mem::take(&mut seen[block]);
        Sample { block, rows, weight, eps }
    };
    blocks.iter().zip(norms).map(sample).collect()
}

/// Reads weight and epsilon of the norm after each block from the model's file.
fn norms_after(blocks: &[usize], width: usize) -> Vec<(Vec<f32>, f32)> {
    let path = CString::new(axiscap_testing::small_model().to_str().unwrap()).unwrap();
    let mut tensors = ptr::null_mut();
    // SAFETY: the path is a C string, and ggml loads all tensors into a new context. The key is a float, and
    // the weights are f32 of the model's width. File and context are freed once.
    unsafe {
        let file = sys::gguf_init_from_file(
            path.as_ptr(),
            sys::gguf_init_params { no_alloc: false, ctx: &mut tensors },
        );
        assert!(!file.is_null());
        let key = sys::gguf_find_key(file, c"llama.attention.layer_norm_rms_epsilon".as_ptr());
        let eps = sys::gguf_get_val_f32(file, key);
        let weight = |block: usize| {
            let name = CString::new(format!("blk.{}.attn_norm.weight", block + 1)).unwrap();
            let tensor = sys::ggml_get_tensor(tensors, name.as_ptr());
            assert_eq!(((*tensor).type_, (*tensor).ne[0]), (sys::GGML_TYPE_F32, width as i64));
            std::slice::from_raw_parts((*tensor).data.cast::<f32>(), width).to_vec()
        };
        let norms = blocks.iter().map(|&block| (weight(block), eps)).collect();
        sys::gguf_free(file);
        sys::ggml_free(tensors);
        norms
    }
}

/// Returns rows through ggml's RMS_NORM and MUL on its CPU backend.
fn by_ggml(rows: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let (mut rows, mut weight) = (rows.to_vec(), weight.to_vec());
    let (mut between, mut out) = (vec![0.0_f32; rows.len()], vec![0.0_f32; rows.len()]);
    // SAFETY: tensors and graph live in the context, their data in vectors of the right length that outlive
    // the call. Context and backend are freed once.
    unsafe {
        let params =
            sys::ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        let c = sys::ggml_init(params);
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
        sys::ggml_free(c);
    }
    out
}

/// Returns rows through the arithmetic of ggml's CUDA kernel, as its source has it. Each of 256 threads (1024
/// from 1024 channels on) adds every 256th square, then warps and then their sums are halved. Its reciprocal
/// square root is an approximation of the hardware, here the exact one.
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
    let table = CapTable::new(&[Cap::new(Axis::from_direction(weight).unwrap(), Bound::NONE)]).unwrap();
    let to = RowsMut::from_slice(&mut out, width).unwrap();
    let rows = RowsMut::from_slice(&mut rows, width).unwrap();
    Job::cap(rows).norm(weight, Epsilon::new(eps).unwrap(), to).run(&table).unwrap();
    out
}

/// The differences of single values, relative to the values.
#[derive(Debug, Default)]
struct Difference {
    values: usize,
    differing: usize,
    squares: f64,
    max: f64,
}

impl Difference {
    fn add(&mut self, ours: &[f32], theirs: &[f32]) {
        for (&ours, &theirs) in ours.iter().zip(theirs) {
            let relative = if theirs == 0.0 { 0.0 } else { f64::from(ours - theirs) / f64::from(theirs) };
            assert!(theirs != 0.0 || ours == 0.0);
            self.values += 1;
            self.differing += usize::from(ours != theirs);
            self.squares += relative * relative;
            self.max = self.max.max(relative.abs());
        }
    }

    fn report(&self, what: &str) {
        let (values, differing) = (self.values, 100.0 * self.differing as f64 / self.values as f64);
        let rms = (self.squares / values as f64).sqrt();
        println!(
            "{what}: {values} values, {differing:.1} % differ; relative: rms {rms:.2e}, at most {:.2e}",
            self.max
        );
    }
}

#[test]
fn the_difference_to_ggmls_norm_is_a_few_last_bits() {
    let (mut cpu, mut cuda) = (Difference::default(), Difference::default());
    for Sample { block, rows, weight, eps } in samples() {
        assert!(rows.len() > 4 * weight.len(), "block {block}");
        let ours = by_axiscap(&rows, &weight, eps);
        cpu.add(&ours, &by_ggml(&rows, &weight, eps));
        cuda.add(&ours, &in_the_order_of_ggml_cuda(&rows, &weight, eps));
    }
    cpu.report("against ggml's CPU backend");
    cuda.report("against the order of ggml's CUDA kernel");
    // One factor per row: the rounding of the sum, the division and the root, and those of two products.
    for difference in [cpu, cuda] {
        assert!(difference.max < 8.0 * f64::from(f32::EPSILON), "{difference:?}");
    }
}
