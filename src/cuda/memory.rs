//! Memory that kernels write and the host reads without stopping anything: a buffer on the GPU, one in page-locked
//! host memory, and copies between them in stream order.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use cudarc::driver::sys;

use super::device::Device;
use super::driver::{self, Memory, check};
use super::error::CudaError;
use super::stream::Stream;

/// The GPU that an address belongs to, or `None` for memory that no GPU holds (the host's, or none of CUDA's). Some
/// context must be current on this thread.
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
    // SAFETY: two attributes and as many places of the types that they have. The plural form succeeds for any
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

/// Memory of a GPU, its content undefined at first. Dropping it waits for the GPU.
#[derive(Debug)]
pub struct Buffer {
    device: Device,
    memory: Memory,
    bytes: usize,
}

impl Buffer {
    /// Allocates.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device, bytes: usize) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        Ok(Self { device: device.clone(), memory: Memory::new(bytes)?, bytes })
    }

    /// Where it begins; a multiple of 256.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops it without waiting for the GPU's other work, as [`DeviceTable::free_idle`](super::DeviceTable::free_idle).
    ///
    /// # Safety
    /// Nothing on the GPU uses it any more.
    pub unsafe fn free_idle(mut self) {
        if let Ok(_current) = self.device.enter() {
            self.memory.free_idle();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            self.memory.free();
        }
    }
}

/// Page-locked host memory, zero at first: copies from the GPU go there without the host waiting.
#[derive(Debug)]
pub struct PinnedBuffer {
    device: Device,
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory that this value alone owns.
unsafe impl Send for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device, bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.max(16);
        let _current = device.enter()?;
        let mut memory = ptr::null_mut();
        // SAFETY: the pointer is valid and the context current.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut memory, bytes, 0) })?;
        let memory = NonNull::new(memory.cast::<u8>()).ok_or(CudaError::Driver {
            call: "cuMemHostAlloc",
            code: 0,
            name: "CUDA_SUCCESS".into(),
            meaning: "it returned null".into(),
        })?;
        // SAFETY: just allocated, of that length.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Self { device: device.clone(), memory, bytes })
    }

    /// Its length.
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
    /// When it is shorter than `bytes`.
    ///
    /// # Safety
    /// That many bytes lie at `from` in memory of the stream's GPU. Until the stream has passed the copy, the
    /// buffer is neither read nor dropped.
    pub unsafe fn copy_from(&mut self, from: u64, bytes: usize, stream: &Stream) -> Result<(), CudaError> {
        assert!(bytes <= self.bytes, "{bytes} bytes into a buffer of {}", self.bytes);
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.device.enter()?;
        let to = self.memory.as_ptr().cast();
        // SAFETY: the target is long enough, the caller answers for the source.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream.as_ref().0) })
    }

    /// What it holds.
    ///
    /// # Safety
    /// No copy into it is under way.
    #[must_use]
    pub unsafe fn as_bytes(&self) -> &[u8] {
        // SAFETY: initialised when allocated; nobody writes it, by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: allocated by cuMemHostAlloc, freed once, with no copy under way.
            let _ = unsafe { sys::cuMemFreeHost(self.memory.as_ptr().cast()) };
        }
    }
}

/// Copies from the GPU behind everything on the stream, and waits for it.
///
/// # Errors
/// [`CudaError::Capturing`]; [`CudaError::Driver`], also for what went wrong in earlier work.
///
/// # Safety
/// `from` is memory of the stream's GPU for that many bytes.
pub unsafe fn read(to: &mut [u8], from: u64, stream: &Stream) -> Result<(), CudaError> {
    let _current = stream.device().enter()?;
    // SAFETY: the caller's promise.
    unsafe { driver::copy_to_host(to, from, stream.as_ref().0) }
}
