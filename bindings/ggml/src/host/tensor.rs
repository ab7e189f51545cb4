//! A tensor of ggml, read through measured offsets.

use std::ffi::CStr;
use std::ptr::NonNull;

use super::api::api;
use super::layout::layout;
use super::tensor_layout::{Op, Ops};
use super::types::{Buffer, Dtype, F32, I32, RawTensor};

/// Returns the numbers of operations in this process's ggml.
pub(crate) fn ops() -> Ops {
    layout().tensor.ops
}

/// A valid tensor of ggml. Equal tensors are the same tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(crate) struct Tensor(NonNull<RawTensor>);

impl Tensor {
    /// Returns the tensor at this address; `None` for null.
    ///
    /// # Safety
    /// The pointer must be null or a tensor of this process's ggml that stays valid, and is not written by
    /// others, for as long as the value or a copy of it is used. What it names as its sources and view source
    /// must be too.
    pub(crate) unsafe fn new(raw: *mut RawTensor) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    pub(crate) fn raw(self) -> *mut RawTensor {
        self.0.as_ptr()
    }

    /// Reads a field.
    ///
    /// # Safety
    /// `offset` must be that of a field of type `T`.
    unsafe fn field<T: Copy>(self, offset: usize) -> T {
        // SAFETY: by the contract of `new` the tensor is valid; by the caller's, the field is there.
        unsafe { self.0.byte_add(offset).cast::<T>().read() }
    }

    /// Returns the name without the terminating NUL.
    pub(crate) fn name<'a>(self) -> &'a [u8] {
        // SAFETY: the name is an array within the tensor that ggml always terminates with a NUL. The tensor
        // outlives its use by the contract of `new`.
        unsafe { CStr::from_ptr(self.0.byte_add(layout().tensor.name).cast().as_ptr()).to_bytes() }
    }

    pub(crate) fn dtype(self) -> Dtype {
        // SAFETY: the offset was measured.
        unsafe { self.field(layout().tensor.dtype) }
    }

    pub(crate) fn is_f32(self) -> bool {
        self.dtype() == F32
    }

    pub(crate) fn is_i32(self) -> bool {
        self.dtype() == I32
    }

    /// Returns the number of elements per dimension.
    pub(crate) fn ne(self) -> [i64; 4] {
        // SAFETY: the offset was measured.
        unsafe { self.field(layout().tensor.ne) }
    }

    /// Returns the stride per dimension in bytes.
    pub(crate) fn nb(self) -> [usize; 4] {
        // SAFETY: the offset was measured.
        unsafe { self.field(layout().tensor.nb) }
    }

    pub(crate) fn op(self) -> Op {
        // SAFETY: the offset was measured.
        Op(unsafe { self.field(layout().tensor.op) })
    }

    /// Returns the parameters of the operation as words.
    pub(crate) fn op_params<'a>(self) -> &'a [i32] {
        let layout = &layout().tensor;
        // SAFETY: offset and number of words were measured; any bits are a valid i32.
        unsafe {
            std::slice::from_raw_parts(
                self.0.byte_add(layout.op_params).cast().as_ptr(),
                layout.op_param_count,
            )
        }
    }

    pub(crate) fn flags(self) -> i32 {
        // SAFETY: the offset was measured.
        unsafe { self.field(layout().tensor.flags) }
    }

    /// Tells whether the tensor is an output of the graph, which its caller reads.
    pub(crate) fn is_output(self) -> bool {
        self.flags() & layout().tensor.output_flag != 0
    }

    /// Tells whether ggml computes the node.
    pub(crate) fn is_computed(self) -> bool {
        let flag = layout().tensor.compute_flag;
        self.flags() & flag == flag
    }

    /// Marks the node as one to compute if `source` is.
    ///
    /// # Safety
    /// The tensor must be the caller's to write.
    pub(crate) unsafe fn compute_like(self, source: Self) {
        let layout = &layout().tensor;
        let flags = self.flags() | source.flags() & layout.compute_flag;
        // SAFETY: the offset was measured; the caller owns the tensor.
        unsafe { self.0.byte_add(layout.flags).cast::<i32>().write(flags) }
    }

    /// Returns the source of this index; `None` beyond the last.
    pub(crate) fn source(self, index: usize) -> Option<Self> {
        let layout = &layout().tensor;
        if index >= layout.src_count {
            return None;
        }
        // SAFETY: the array was measured; sources of a valid tensor are valid.
        unsafe { Self::new(self.field(layout.src + index * size_of::<*mut RawTensor>())) }
    }

    /// Returns the places in the array of sources.
    pub(crate) fn source_places() -> std::ops::Range<usize> {
        0..layout().tensor.src_count
    }

    /// Returns the tensor that this one is a view of.
    pub(crate) fn view_source(self) -> Option<Self> {
        // SAFETY: the offset was measured; a view's source lives as long as the view.
        unsafe { Self::new(self.field(layout().tensor.view_src)) }
    }

    pub(crate) fn view_offset(self) -> usize {
        // SAFETY: the offset was measured.
        unsafe { self.field(layout().tensor.view_offs) }
    }

    /// Returns the address of the elements; zero where no memory is allocated.
    pub(crate) fn data(self) -> usize {
        // SAFETY: the offset was measured.
        unsafe { self.field(layout().tensor.data) }
    }

    /// Returns the tensor's own buffer, which is null for most views.
    pub(crate) fn buffer(self) -> Buffer {
        // SAFETY: the offset was measured.
        unsafe { self.field(layout().tensor.buffer) }
    }

    /// Returns the buffer that holds the elements, a view's source's included.
    pub(crate) fn owning_buffer(self) -> Buffer {
        self.view_source().unwrap_or(self).buffer()
    }

    /// Returns the backend's own pointer; zero where this build has none.
    pub(crate) fn extra(self) -> usize {
        // SAFETY: the offset was measured.
        layout().tensor.extra.map_or(0, |offset| unsafe { self.field(offset) })
    }

    /// Returns whether tensors have padding for [`Tensor::mark`].
    pub(crate) fn can_be_marked() -> bool {
        layout().tensor.padding.is_some()
    }

    /// Writes a mark into the padding, which nothing but a comparison of whole tensors reads. Returns the bytes
    /// that were there; `None` where there is no padding.
    ///
    /// # Safety
    /// The tensor must be the caller's to write, and what follows `extra` in this version of ggml be padding.
    pub(crate) unsafe fn mark(self, mark: u64) -> Option<u64> {
        let offset = layout().tensor.padding?;
        // SAFETY: the measured offset leaves eight bytes within the tensor; by the caller's contract they are
        // the caller's to write.
        unsafe {
            let padding = self.0.byte_add(offset).cast::<u64>();
            let before = padding.read_unaligned();
            padding.write_unaligned(mark);
            Some(before)
        }
    }

    /// Returns the size in bytes.
    pub(crate) fn bytes(self) -> usize {
        // SAFETY: by the contract of `new` the tensor is valid.
        unsafe { (api().ggml_nbytes)(self.raw()) }
    }
}
