//! Memory that kernels write and the host reads without a wait: a buffer on the GPU, one in page-locked host
//! memory, and copies between them in stream order.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use cudarc::driver::sys;

use crate::cuda::device::Device;
use crate::cuda::driver::{self, Allocation, check};
use crate::cuda::error::{CudaError, DriverError};
use crate::cuda::stream::Stream;

/// Returns the GPU that an address belongs to, or `None` for memory of the host or unknown to CUDA. A context
/// must be current on this thread.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::NoDevice`], [`CudaError::Driver`].
pub fn gpu_of(address: u64) -> Result<Option<usize>, CudaError> {
    use sys::CUpointer_attribute_enum as A;
    driver::init()?;
    let mut kind = 0_u32;
    let mut ordinal = -1_i32;
    let mut attributes = [A::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, A::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL];
    let mut values: [*mut c_void; 2] = [(&raw mut kind).cast(), (&raw mut ordinal).cast()];
    // SAFETY: there are two attributes and two pointers to values of their types. This call succeeds for any
    // address, and leaves zeros for those it does not know.
    check("cuPointerGetAttributes", unsafe {
        sys::cuPointerGetAttributes(2, attributes.as_mut_ptr(), values.as_mut_ptr(), address)
    })?;
    let on_device = kind == sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as u32;
    Ok(if on_device { usize::try_from(ordinal).ok() } else { None })
}

impl Device {
    /// Whether an address is in this GPU's memory.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn holds(&self, address: u64) -> Result<bool, CudaError> {
        let _current = self.enter()?;
        Ok(gpu_of(address)? == Some(self.info().ordinal))
    }
}

/// Memory of a GPU. Its initial content is undefined. Dropping it waits for the GPU.
#[derive(Debug)]
pub struct Buffer {
    device: Device,
    memory: Allocation,
    bytes: usize,
}

impl Buffer {
    /// Allocates a buffer.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device, bytes: usize) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        Ok(Self { device: device.clone(), memory: Allocation::new(bytes)?, bytes })
    }

    /// Returns the buffer's address, a multiple of 256.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Returns the buffer's length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frees the buffer without waiting for the GPU's other work, as
    /// [`DeviceTable::free_without_sync`](crate::cuda::DeviceTable::free_without_sync).
    ///
    /// # Safety
    /// No work on the GPU uses the buffer any more.
    pub unsafe fn free_without_sync(mut self) {
        let memory = &mut self.memory;
        self.device.on_drop(|| memory.free_without_sync());
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = &mut self.memory;
        self.device.on_drop(|| memory.free());
    }
}

/// Page-locked host memory, initially zero. The host does not wait for copies from the GPU to it.
#[derive(Debug)]
pub struct PinnedBuffer {
    device: Device,
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is not bound to a thread, and this value alone owns it.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates a buffer of at least `bytes` bytes.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device, bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.max(16);
        let _current = device.enter()?;
        let mut memory = ptr::null_mut();
        // SAFETY: the pointer is valid and the context current.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut memory, bytes, 0) })?;
        let null = DriverError { call: "cuMemHostAlloc", code: sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY };
        let memory = NonNull::new(memory.cast::<u8>()).ok_or(null)?;
        // SAFETY: the memory was just allocated with this length.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Self { device: device.clone(), memory, bytes })
    }

    /// Returns the buffer's length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies from the GPU in stream order, and does not wait.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// If the buffer is shorter than `bytes`.
    ///
    /// # Safety
    /// `from` is memory of the stream's GPU for `bytes` bytes. Until the stream has passed the copy, the
    /// buffer is neither read nor dropped.
    pub unsafe fn copy_from(&mut self, from: u64, bytes: usize, stream: &Stream) -> Result<(), CudaError> {
        assert!(bytes <= self.bytes, "{bytes} bytes into a buffer of {}", self.bytes);
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.device.enter()?;
        let to = self.memory.as_ptr().cast();
        // SAFETY: the target is long enough, and the caller promises the source.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream.handle().0) };
        Ok(check("cuMemcpyDtoHAsync", copied)?)
    }

    /// Returns the buffer's content.
    ///
    /// # Safety
    /// No copy into the buffer is in progress.
    #[must_use]
    pub unsafe fn as_bytes(&self) -> &[u8] {
        // SAFETY: the memory was initialised when it was allocated, and the caller promises that no copy
        // writes it.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        self.device.on_drop(|| {
            // SAFETY: cuMemHostAlloc allocated the memory. It is freed once, and `copy_from` forbids a copy
            // in progress.
            check("cuMemFreeHost", unsafe { sys::cuMemFreeHost(self.memory.as_ptr().cast()) })
        });
    }
}

/// Copies from the GPU after everything on the stream, and waits for the copy.
///
/// # Errors
/// [`CudaError::Capturing`]; [`CudaError::Driver`], also for errors of earlier work on the stream.
///
/// # Safety
/// `from` is memory of the stream's GPU for that many bytes.
pub unsafe fn read(to: &mut [u8], from: u64, stream: &Stream) -> Result<(), CudaError> {
    let _current = stream.device().enter()?;
    // SAFETY: the caller promises the source, and the stream is of the current context.
    unsafe { driver::copy_to_host(to, from, stream.handle().0) }
}
