//! Views of graphs made for the purpose, in which ggml's backends fuse nodes before, at and after a block
//! output. The reference has one graph per block, computed without the hook, and the CPU kernels' caps between
//! them.

mod support;

use std::ffi::CString;
use std::ptr::{null, null_mut};

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, CapTable};
use axiscap_ggml::{Hook, HookError, ModelShape, RouteChoice, Session};
use llama_cpp_sys_2 as sys;

const WIDTH: usize = 128;

type Tensor = *mut sys::ggml_tensor;

/// What a block does to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// ADD. One token of it and the norm of the next block are summed in one go by ggml's Vulkan backend.
    Add,
    /// ADD of an ADD: ggml's GPU backends compute a chain of them as one.
    AddAdd,
    /// RMS_NORM, MUL, MUL_MAT, ADD: a llama block without its attention. GPU backends fuse the norm, and for one
    /// token the product with the addition.
    Product,
    /// RMS_NORM, MUL, MUL_MAT, ADD, ADD: as above, with a bias.
    ProductWithBias,
    /// MUL_MAT, RMS_NORM, MUL, ADD: the norm before the addition, as in Gemma. GPU backends fuse the last three.
    NormAdd,
    /// As above, then MUL by a scalar, which GPU backends fuse as well.
    NormAddScale,
    /// MUL alone: the block output is the end of what could be a fused norm.
    Scale,
}

/// What follows the last block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// RMS_NORM, MUL: the norm of the next block.
    Norm,
    /// VIEW and RESHAPE: nodes that compute nothing.
    Views,
    /// The graph ends with a block output, as where the scheduler splits it there.
    Nothing,
}

/// A ggml context whose tensors have memory of a backend.
struct Tensors {
    context: *mut sys::ggml_context,
    graph: *mut sys::ggml_cgraph,
    buffer: sys::ggml_backend_buffer_t,
    /// Leafs and what they are to hold.
    leafs: Vec<(Tensor, Vec<f32>)>,
}

impl Tensors {
    fn new() -> Self {
        let params = sys::ggml_init_params { mem_size: 4 << 20, mem_buffer: null_mut(), no_alloc: true };
        // SAFETY: ggml allocates the context itself. It is freed in `drop`.
        let context = unsafe { sys::ggml_init(params) };
        // SAFETY: a live context.
        let graph = unsafe { sys::ggml_new_graph(context) };
        Self { context, graph, buffer: null_mut(), leafs: Vec::new() }
    }

    /// Makes a leaf of f32.
    fn leaf(&mut self, width: usize, rows: usize, values: Vec<f32>) -> Tensor {
        assert_eq!(values.len(), width * rows);
        // SAFETY: a live context.
        let leaf =
            unsafe { sys::ggml_new_tensor_2d(self.context, sys::GGML_TYPE_F32, width as i64, rows as i64) };
        self.leafs.push((leaf, values));
        leaf
    }

    /// Gives all tensors memory and computes the graph.
    fn compute(&mut self, backend: sys::ggml_backend_t) -> sys::ggml_status {
        // SAFETY: the context and its tensors are alive, the backend is the caller's. The values are as long as
        // their leafs.
        unsafe {
            if self.buffer.is_null() {
                self.buffer = sys::ggml_backend_alloc_ctx_tensors(self.context, backend);
                assert!(!self.buffer.is_null(), "the backend has no memory");
            }
            for (leaf, values) in &self.leafs {
                sys::ggml_backend_tensor_set(*leaf, values.as_ptr().cast(), 0, size_of_val(&values[..]));
            }
            sys::ggml_backend_graph_compute(backend, self.graph)
        }
    }

    /// Reads a tensor that was computed.
    fn read(&self, tensor: Tensor) -> Vec<f32> {
        // SAFETY: a tensor of this context, contiguous and of f32, as all here. The vector is as long.
        unsafe {
            let bytes = sys::ggml_nbytes(tensor);
            let mut values = vec![0.0_f32; bytes / size_of::<f32>()];
            sys::ggml_backend_tensor_get(tensor, values.as_mut_ptr().cast(), 0, bytes);
            values
        }
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        // SAFETY: made by `new` and `compute`, freed once.
        unsafe {
            sys::ggml_backend_buffer_free(self.buffer);
            sys::ggml_free(self.context);
        }
    }
}

/// Values that depend on their place and the seed, of about this size.
fn values(count: usize, seed: usize, size: f32) -> Vec<f32> {
    (0..count).map(|i| (((37 * i + 53 * seed) % 211) as f32 / 105.0 - 1.0) * size).collect()
}

/// Adds block `index` to a graph, after these rows. Returns its output.
fn add_block(tensors: &mut Tensors, block: Block, index: usize, input: Tensor, rows: usize) -> Tensor {
    let random = |tensors: &mut Tensors, rows: usize, seed: usize, size: f32| -> Tensor {
        tensors.leaf(WIDTH, rows, values(WIDTH * rows, 11 * index + seed, size))
    };
    let c = tensors.context;
    // SAFETY: all tensors live in the context.
    unsafe {
        match block {
            Block::Add => sys::ggml_add(c, input, random(tensors, rows, 1, 1.0)),
            Block::AddAdd => {
                let first = sys::ggml_add(c, random(tensors, rows, 1, 1.0), random(tensors, rows, 2, 1.0));
                sys::ggml_add(c, first, input)
            }
            Block::Product | Block::ProductWithBias => {
                let norm = sys::ggml_rms_norm(c, input, 1e-5);
                let scaled = sys::ggml_mul(c, norm, random(tensors, 1, 3, 1.0));
                let product = sys::ggml_mul_mat(c, random(tensors, WIDTH, 4, 0.2), scaled);
                let product = match block {
                    Block::Product => product,
                    _ => sys::ggml_add(c, product, random(tensors, 1, 5, 1.0)),
                };
                sys::ggml_add(c, product, input)
            }
            Block::NormAdd | Block::NormAddScale => {
                let product = sys::ggml_mul_mat(c, random(tensors, WIDTH, 4, 0.2), input);
                let norm = sys::ggml_rms_norm(c, product, 1e-5);
                let scaled = sys::ggml_mul(c, norm, random(tensors, 1, 3, 1.0));
                let sum = sys::ggml_add(c, scaled, input);
                if block == Block::NormAdd {
                    return sum;
                }
                sys::ggml_mul(c, sum, tensors.leaf(1, 1, vec![1.25]))
            }
            Block::Scale => sys::ggml_mul(c, input, random(tensors, 1, 6, 1.5)),
        }
    }
}

/// Adds what follows the last block. Returns the results to compare.
fn add_end(tensors: &mut Tensors, end: End, input: Tensor, rows: usize) -> Option<Tensor> {
    let c = tensors.context;
    let weight = tensors.leaf(WIDTH, 1, values(WIDTH, 7, 1.0));
    // SAFETY: all tensors live in the context.
    unsafe {
        match end {
            End::Norm => Some(sys::ggml_mul(c, sys::ggml_rms_norm(c, input, 1e-5), weight)),
            End::Views => {
                let view = sys::ggml_view_1d(c, input, (WIDTH * rows) as i64, 0);
                Some(sys::ggml_reshape_2d(c, view, rows as i64, WIDTH as i64))
            }
            End::Nothing => None,
        }
    }
}

fn cap(block: usize, bound: Bound) -> Cap {
    Cap::new(Axis::from_direction(&values(WIDTH, 17 * block + 3, 1.0)).unwrap(), bound)
}

fn caps(blocks: usize, bound: Bound) -> CapSet {
    CapSet::new((0..blocks).map(|block| BlockCap { block, cap: cap(block, bound) })).unwrap()
}

/// The rows of every block output and of the end.
#[derive(Debug, PartialEq)]
struct Rows {
    outputs: Vec<Vec<u32>>,
    end: Option<Vec<u32>>,
}

fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|value| value.to_bits()).collect()
}

fn input(rows: usize) -> Vec<f32> {
    values(WIDTH * rows, 1, 2.0)
}

/// Makes a backend of the tests' device.
fn backend() -> sys::ggml_backend_t {
    // SAFETY: a device of ggml's registry.
    let backend = unsafe { sys::ggml_backend_dev_init(support::device(), null()) };
    assert!(!backend.is_null());
    backend
}

/// Computes all blocks as one graph, under the hook, several times over.
fn hooked(hook: &Hook, blocks: &[Block], end: End, rows: usize, bound: Bound, passes: usize) -> Rows {
    let session =
        Session::new(ModelShape { architecture: "llama".into(), blocks: blocks.len(), width: WIDTH });
    session.set_caps(Some(&caps(blocks.len(), bound))).unwrap();
    session.update(|settings| settings.route = RouteChoice::Views);
    let backend = hook.bind(&session, backend);
    let mut tensors = Tensors::new();
    let mut tail = tensors.leaf(WIDTH, rows, input(rows));
    let mut outputs = Vec::new();
    for (index, &block) in blocks.iter().enumerate() {
        tail = add_block(&mut tensors, block, index, tail, rows);
        let name = CString::new(format!("l_out-{index}")).unwrap();
        // SAFETY: a tensor of the context, and a C string.
        unsafe { sys::ggml_set_name(tail, name.as_ptr()) };
        outputs.push(tail);
    }
    let end = add_end(&mut tensors, end, tail, rows);
    // SAFETY: graph and tensors of one context.
    unsafe { sys::ggml_build_forward_expand(tensors.graph, end.unwrap_or(tail)) };
    for _ in 0..passes {
        let status = session.watch(rows, rows, || Ok::<_, HookError>(tensors.compute(backend)));
        assert_eq!(status, Ok(sys::GGML_STATUS_SUCCESS));
    }
    support::check_routes(&session, RouteChoice::Views);
    for stats in session.stats() {
        assert_eq!(stats.rows as usize, rows * passes);
    }
    let read = Rows {
        outputs: outputs.into_iter().map(|output| bits(&tensors.read(output))).collect(),
        end: end.map(|end| bits(&tensors.read(end))),
    };
    drop(tensors);
    // SAFETY: made above, freed once.
    unsafe { sys::ggml_backend_free(backend) };
    read
}

/// Computes one graph per block without the hook, and caps between them. The second value tells whether any
/// cap changed a row.
fn expected(blocks: &[Block], end: End, rows: usize, bound: Bound) -> (Rows, bool) {
    let backend = backend();
    let mut values = input(rows);
    let mut engaged = false;
    let mut outputs = Vec::new();
    let compute = |tensors: &mut Tensors, result: Tensor| {
        // SAFETY: graph and tensors of one context.
        unsafe { sys::ggml_build_forward_expand(tensors.graph, result) };
        assert_eq!(tensors.compute(backend), sys::GGML_STATUS_SUCCESS);
        tensors.read(result)
    };
    for (index, &block) in blocks.iter().enumerate() {
        let mut tensors = Tensors::new();
        let leaf = tensors.leaf(WIDTH, rows, values);
        let output = add_block(&mut tensors, block, index, leaf, rows);
        values = compute(&mut tensors, output);
        let before = bits(&values);
        let table = CapTable::new([&cap(index, bound)]).unwrap();
        Job::cap(RowsMut::from_slice(&mut values, WIDTH).unwrap()).run(&table).unwrap();
        engaged |= bits(&values) != before;
        outputs.push(bits(&values));
    }
    let mut tensors = Tensors::new();
    let leaf = tensors.leaf(WIDTH, rows, values.clone());
    let end = match end {
        // They compute nothing, and read the rows as they are.
        End::Views => Some(bits(&values)),
        _ => add_end(&mut tensors, end, leaf, rows).map(|end| bits(&compute(&mut tensors, end))),
    };
    drop(tensors);
    // SAFETY: made above, freed once.
    unsafe { sys::ggml_backend_free(backend) };
    (Rows { outputs, end }, engaged)
}

#[test]
fn every_node_after_a_block_output_reads_the_capped_rows() {
    use Block::{Add, AddAdd, NormAdd, NormAddScale, Product, ProductWithBias, Scale};
    let hook = support::install();
    let graphs: [&[Block]; 9] = [
        &[Add, Add, Add],
        &[AddAdd, AddAdd, Add],
        &[Product, Product],
        &[ProductWithBias, Add, ProductWithBias],
        &[NormAdd, NormAdd, Add],
        &[NormAddScale, NormAddScale],
        // A norm, a product and an addition, with a cut after each.
        &[Scale, Add, Scale, Scale],
        &[Add, Product, AddAdd, NormAdd, ProductWithBias, NormAddScale, Add],
        &[Product],
    ];
    for blocks in graphs {
        for end in [End::Norm, End::Views, End::Nothing] {
            // One row is a token of a decode, for which GPU backends fuse more.
            for rows in [1, 2, 9] {
                for bound in [Bound::NONE, Bound::band(-0.5, 0.5).unwrap()] {
                    let (expected, engaged) = expected(blocks, end, rows, bound);
                    assert_eq!(engaged, bound != Bound::NONE, "{blocks:?} {end:?} {rows} rows {bound:?}");
                    let found = hooked(&hook, blocks, end, rows, bound, 1);
                    assert_eq!(found, expected, "{blocks:?} {end:?} {rows} rows {bound:?}");
                }
            }
        }
    }
}

#[test]
fn hundreds_of_views_leave_no_state() {
    let hook = support::install();
    let blocks = [Block::Add, Block::Product, Block::NormAdd].repeat(8);
    let bound = Bound::band(-0.5, 0.5).unwrap();
    let found = hooked(&hook, &blocks, End::Norm, 2, bound, 40);
    assert_eq!(found, expected(&blocks, End::Norm, 2, bound).0);
}
