//! The layout of `ggml_tensor`, measured.
//!
//! `ggml_tensor` stands in ggml's public headers, but each build has the layout of its own headers. The
//! offsets are found by tensors whose fields are known: made by ggml's public functions, in memory that is
//! ours to search.

use std::ffi::CStr;

use super::api::{api, mismatch};
use super::arena::Arena;
use super::cpu::CpuBackend;
use super::types::{Dtype, F32, I32, RawTensor};
use crate::error::HookError;

/// Byte offsets within `ggml_tensor`, and what its numbers mean in this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TensorLayout {
    pub(super) dtype: usize,
    pub(super) buffer: usize,
    pub(super) ne: usize,
    pub(super) nb: usize,
    pub(super) op: usize,
    pub(super) op_params: usize,
    /// Words of `op_params`.
    pub(super) op_param_count: usize,
    pub(super) flags: usize,
    pub(super) src: usize,
    /// `GGML_MAX_SRC`.
    pub(super) src_count: usize,
    pub(super) view_src: usize,
    pub(super) view_offs: usize,
    pub(super) data: usize,
    pub(super) name: usize,
    /// `extra`, where the structure has a word after the name.
    pub(super) extra: Option<usize>,
    /// Padding of at least eight bytes after `extra`, where the structure has some.
    pub(super) padding: Option<usize>,
    /// `GGML_TENSOR_FLAG_OUTPUT`.
    pub(super) output_flag: i32,
    /// `GGML_TENSOR_FLAG_COMPUTE`; zero in builds that compute every node of a graph.
    pub(super) compute_flag: i32,
    pub(crate) ops: Ops,
}

/// An operation, `ggml_op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Op(pub(crate) u32);

/// The numbers of the operations that the hook tells apart. They change with ggml's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ops {
    pub(crate) mul: Op,
    pub(crate) mul_mat_id: Op,
    pub(crate) rms_norm: Op,
}

/// Types whose numbers GGUF files fix: F32, F16, I32.
const DTYPES: [(Dtype, &CStr); 3] = [(F32, c"f32"), (1, c"f16"), (I32, c"i32")];

/// Tensors made for the purpose, in memory of ours: all of it is initialised, so that any word may be looked
/// at.
struct Probe {
    arena: Arena,
    memory: Vec<u128>,
}

impl Probe {
    const TENSORS: usize = 24;

    fn new() -> Result<Self, HookError> {
        // SAFETY: the two functions only compute sizes.
        let bytes = unsafe {
            (Self::TENSORS + 1) * (api().ggml_tensor_overhead)()
                + (api().ggml_graph_overhead_custom)(Self::TENSORS, false)
                + 1024
        };
        let mut memory = vec![0_u128; bytes.div_ceil(size_of::<u128>())];
        // SAFETY: the probe keeps the memory for as long as the arena. Moving the vector does not move its
        // elements.
        let arena = unsafe { Arena::within(&mut memory) }?;
        Ok(Self { arena, memory })
    }

    /// Reads a number at this offset from a tensor of the probe's.
    fn word<T: Copy>(&self, tensor: *const RawTensor, offset: usize) -> T {
        let end = self.memory.as_ptr_range().end as usize;
        assert!(tensor as usize + offset + size_of::<T>() <= end, "the probe reads within its memory");
        // SAFETY: within the probe's memory, which is initialised; called with integers only, of which any
        // bits are valid.
        unsafe { tensor.byte_add(offset).cast::<T>().read_unaligned() }
    }
}

/// Returns the one offset, in steps of `step`, that `fits`.
fn only_offset(
    what: &str,
    bytes: usize,
    step: usize,
    fits: impl Fn(usize) -> bool,
) -> Result<usize, HookError> {
    let mut found = (0..bytes).step_by(step).filter(|&offset| fits(offset));
    match (found.next(), found.next()) {
        (Some(offset), None) => Ok(offset),
        (None, _) => Err(mismatch(format!("ggml_tensor has no field that holds {what}"))),
        (Some(_), Some(_)) => Err(mismatch(format!("several fields of ggml_tensor could hold {what}"))),
    }
}

impl TensorLayout {
    /// Measures the layout.
    pub(crate) fn measure() -> Result<Self, HookError> {
        for (dtype, name) in DTYPES {
            // SAFETY: a number that each ggml has a name for; the name is a static, NUL-terminated string.
            let found = unsafe { CStr::from_ptr((api().ggml_type_name)(dtype)) };
            if found != name {
                return Err(mismatch(format!("type {dtype} is {found:?} and not {name:?}")));
            }
        }
        let probe = Probe::new()?;
        let api = api();
        let c = probe.arena.context();
        // SAFETY: everything lives in the arena, which has room for Probe::TENSORS tensors and one graph;
        // arguments are tensors of the arena. Nothing is computed.
        let bytes = unsafe {
            let first = (api.ggml_new_tensor_1d)(c, F32, 1);
            let overhead = (api.ggml_tensor_overhead)();
            // A context begins with the header of its first object.
            let header = (first as usize).wrapping_sub(probe.memory.as_ptr() as usize);
            if header >= overhead {
                return Err(mismatch("a tensor does not follow the header of its object"));
            }
            overhead - header
        };
        let at = |tensor: *const RawTensor, offset| probe.word::<usize>(tensor, offset);
        let half = |tensor: *const RawTensor, offset| probe.word::<u32>(tensor, offset);
        let words = bytes - size_of::<usize>() + 1;
        let halves = bytes - size_of::<u32>() + 1;

        // SAFETY: the arena has room for the tensors, and the arguments are tensors of it. Nothing is
        // computed.
        let typed = DTYPES.map(|(dtype, _)| unsafe { (api.ggml_new_tensor_4d)(c, dtype, 7, 3, 5, 2) });
        let dtype = only_offset("its type", halves, 4, |offset| {
            typed.iter().zip(DTYPES).all(|(&tensor, (dtype, _))| half(tensor, offset) == dtype)
        })?;
        // SAFETY: the arena has room for the tensors, and the arguments are tensors of it. Nothing is
        // computed.
        let shaped: [_; 2] = unsafe {
            [(api.ggml_new_tensor_4d)(c, F32, 7, 3, 5, 2), (api.ggml_new_tensor_4d)(c, F32, 11, 4, 6, 9)]
        };
        let four = |expected: [[usize; 4]; 2], what| {
            only_offset(what, bytes - 4 * size_of::<usize>() + 1, 8, |offset| {
                shaped.iter().zip(expected).all(|(&tensor, expected)| {
                    (0..4).all(|i| at(tensor, offset + i * size_of::<usize>()) == expected[i])
                })
            })
        };
        let ne = four([[7, 3, 5, 2], [11, 4, 6, 9]], "its shape")?;
        let nb = four([[4, 28, 84, 420], [4, 44, 176, 1056]], "its strides")?;

        // SAFETY: the arena has room for the tensors, and the arguments are tensors of it. Nothing is
        // computed.
        let (a, b, sums, products, norms, experts, view) = unsafe {
            let leaf = || (api.ggml_new_tensor_1d)(c, F32, 8);
            let (a, b) = (leaf(), leaf());
            let sums = [(api.ggml_add)(c, a, b), (api.ggml_add)(c, b, a)];
            let products = [(api.ggml_mul)(c, sums[0], b), (api.ggml_mul)(c, sums[1], a)];
            let norms = EPSILONS.map(|epsilon| (api.ggml_rms_norm)(c, products[0], epsilon));
            let weights = (api.ggml_new_tensor_4d)(c, F32, 8, 2, 3, 1);
            let rows = (api.ggml_new_tensor_4d)(c, F32, 8, 1, 1, 1);
            let ids = (api.ggml_new_tensor_4d)(c, DTYPES[2].0, 1, 1, 1, 1);
            let experts = (api.ggml_mul_mat_id)(c, weights, rows, ids);
            let view = (api.ggml_view_1d)(c, a, 2, VIEW_OFFSET);
            (a, b, sums, products, norms, experts, view)
        };
        let pair = |tensor, offset| [at(tensor, offset), at(tensor, offset + size_of::<usize>())];
        let src = only_offset("its sources", words - size_of::<usize>(), 8, |offset| {
            pair(sums[0], offset) == [a as usize, b as usize]
                && pair(sums[1], offset) == [b as usize, a as usize]
                && pair(products[0], offset) == [sums[0] as usize, b as usize]
        })?;
        let view_src = only_offset("the tensor it is a view of", words, 8, |offset| {
            offset != src && at(view, offset) == a as usize && at(a, offset) == 0
        })?;
        let op_params = only_offset("the parameters of its operation", halves, 4, |offset| {
            norms.iter().zip(EPSILONS).all(|(&norm, epsilon)| half(norm, offset) == epsilon.to_bits())
        })?;
        // ggml keeps the offset among the parameters of the view's operation as well.
        let view_offs = only_offset("the offset of a view", words, 8, |offset| {
            offset != op_params && at(view, offset) == VIEW_OFFSET && at(a, offset) == 0
        })?;
        let op = only_offset("its operation", halves, 4, |offset| {
            let [of_a, sum, other_sum, product, other_product, norm] =
                [a, sums[0], sums[1], products[0], products[1], norms[0]].map(|tensor| half(tensor, offset));
            let distinct = sum != product && product != norm && sum != norm;
            let nodes = [sum, product, norm, half(experts, offset)];
            of_a == 0
                && sum == other_sum
                && product == other_product
                && distinct
                && nodes.iter().all(|op| (1..1024).contains(op))
        })?;
        let named = |tensor: *const RawTensor, name: &CStr| {
            // SAFETY: a tensor of the probe's; the description is a static, NUL-terminated string.
            let found = unsafe { CStr::from_ptr((api.ggml_op_desc)(tensor)) };
            if found == name {
                Ok(Op(half(tensor, op)))
            } else {
                Err(mismatch(format!("an operation is {found:?} and not {name:?}")))
            }
        };
        let ops = Ops {
            mul: named(products[0], c"MUL")?,
            mul_mat_id: named(experts, c"MUL_MAT_ID")?,
            rms_norm: named(norms[0], c"RMS_NORM")?,
        };

        let snapshot = |tensor| -> Vec<u32> { (0..halves).step_by(4).map(|at| half(tensor, at)).collect() };
        let before = snapshot(b);
        // SAFETY: a tensor of the probe's.
        unsafe { (api.ggml_set_output)(b) };
        let after = snapshot(b);
        let flags = only_offset("its flags", halves, 4, |offset| before[offset / 4] != after[offset / 4])?;
        let output_flag = (before[flags / 4] ^ after[flags / 4]).cast_signed();
        let compute_flag = {
            let before = half(norms[0], flags);
            // SAFETY: the arena has room for the graph, and the graph for the nodes that lead to the norm.
            unsafe {
                let graph = (api.ggml_new_graph_custom)(c, Probe::TENSORS, false);
                (api.ggml_build_forward_expand)(graph, norms[0]);
            }
            (half(norms[0], flags) & !before).cast_signed()
        };

        // SAFETY: tensors of the probe's; the name is longer than any that a tensor can hold, and
        // NUL-terminated.
        let (name, name_bytes) = unsafe {
            (api.ggml_set_name)(a, LONG_NAME.as_ptr().cast());
            let name = (api.ggml_get_name)(a);
            (name as usize - a as usize, CStr::from_ptr(name).to_bytes_with_nul().len())
        };
        if name + name_bytes > bytes {
            return Err(mismatch("the name of a tensor lies outside of it"));
        }
        let extra = (name + name_bytes).next_multiple_of(size_of::<usize>());
        let padding = extra + size_of::<usize>();
        let padding = (padding + size_of::<u64>() <= bytes).then_some(padding);
        let extra = (extra + size_of::<usize>() <= bytes).then_some(extra);

        let (data, buffer) = measure_memory()?;
        let known = [dtype, buffer, ne, nb, op, flags, src, view_src, view_offs, data, name];
        let end_of = |start: usize| {
            known.into_iter().filter(|&other| other > start).min().map_or(0, |end| end - start)
        };
        let src_count = end_of(src) / size_of::<usize>();
        let op_param_count = end_of(op_params) / size_of::<i32>();
        if !(3..=32).contains(&src_count) || !(1..=64).contains(&op_param_count) {
            return Err(mismatch(format!(
                "ggml_tensor has {src_count} sources and {op_param_count} words of parameters"
            )));
        }
        Ok(Self {
            dtype,
            buffer,
            ne,
            nb,
            op,
            op_params,
            op_param_count,
            flags,
            src,
            src_count,
            view_src,
            view_offs,
            data,
            name,
            extra,
            padding,
            output_flag,
            compute_flag,
            ops,
        })
    }
}

/// Two numbers whose bits stand nowhere else in a tensor.
const EPSILONS: [f32; 2] = [1.234_567e-5, 7.654_321e-6];

/// An offset in bytes that is no shape or stride of the probe's tensors.
const VIEW_OFFSET: usize = 20;

/// Longer than `GGML_MAX_NAME`.
const LONG_NAME: &[u8; 1025] = &{
    let mut name = [b'n'; 1025];
    name[1024] = 0;
    name
};

/// Measures the offsets of `data` and `buffer` by tensors that have memory.
fn measure_memory() -> Result<(usize, usize), HookError> {
    let probe = Probe::new()?;
    let api = api();
    let cpu = CpuBackend::new()?;
    let c = probe.arena.context();
    // SAFETY: the arena has room for the tensors, and the backend is alive.
    let (tensors, buffer) = unsafe {
        let tensors = [16, 32].map(|n| (api.ggml_new_tensor_1d)(c, F32, n));
        (tensors, (api.ggml_backend_alloc_ctx_tensors)(c, cpu.raw()))
    };
    if buffer.is_null() {
        return Err(mismatch("the CPU backend allocates no tensors"));
    }
    // SAFETY: the overhead of a tensor is at least its size; the probe's memory holds as much after each.
    let bytes = unsafe { (api.ggml_tensor_overhead)() } - size_of::<usize>() + 1;
    let data = only_offset("the address of its elements", bytes, 8, |offset| {
        tensors.iter().all(|&tensor| {
            // SAFETY: a tensor of the probe's.
            let data = unsafe { (api.ggml_get_data)(tensor) };
            !data.is_null() && probe.word::<usize>(tensor, offset) == data as usize
        })
    });
    let of_buffer = only_offset("its buffer", bytes, 8, |offset| {
        tensors.iter().all(|&tensor| probe.word::<usize>(tensor, offset) == buffer as usize)
    });
    // SAFETY: made above and freed once; its tensors are not used any more.
    unsafe { (api.ggml_backend_buffer_free)(buffer) };
    Ok((data?, of_buffer?))
}
