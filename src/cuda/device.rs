//! A GPU with the kernels loaded.

use std::collections::HashMap;
use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::{CudaContext, sys};

use crate::cuda::driver::{self, Current, check, keep_error, take_error};
use crate::cuda::error::{CudaError, DriverError};
use crate::cuda::image;
use crate::cuda::launch::kernel::{KernelPath, kernel_name};
use crate::cuda::launch::limits::Limits;
use crate::op::{Dtype, Operation};

/// The properties of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// CUDA's index of the GPU.
    pub ordinal: usize,
    /// Name.
    pub name: String,
    /// Compute capability, e.g. 90 for 9.0.
    pub arch: u32,
    /// Limits that decide on launch shapes.
    pub limits: Limits,
    /// The newest CUDA version that its driver supports: 1000 * major + 10 * minor.
    pub driver: i32,
}

/// Lists the GPUs of this machine. Never panics.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::NoDevice`], [`CudaError::Driver`].
pub fn probe() -> Result<Vec<DeviceInfo>, CudaError> {
    driver::init()?;
    match driver::count()? {
        0 => Err(CudaError::NoDevice { ordinal: 0, found: 0 }),
        count => (0..count).map(info).collect(),
    }
}

fn info(ordinal: usize) -> Result<DeviceInfo, CudaError> {
    use sys::CUdevice_attribute_enum as A;
    let device = driver::device(ordinal)?;
    let get = |attribute| driver::attribute(device, attribute);
    let arch = get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? * 10
        + get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let blocks_per_multiprocessor = get(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR)?;
    Ok(DeviceInfo {
        ordinal,
        name: driver::name(device)?,
        arch,
        limits: Limits {
            multiprocessors: get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            threads_per_multiprocessor: get(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            blocks_per_multiprocessor,
            registers_per_multiprocessor: get(A::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)?,
            shared_per_multiprocessor: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            shared_per_block: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            shared_reserved: get(A::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK)?,
            barriers_per_multiprocessor: Limits::barriers_of(arch, blocks_per_multiprocessor),
            clusters: get(A::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH)? != 0
                && image::code_for(image::image().archs, arch).is_some_and(|code| code >= 90),
        },
        driver: driver::version()?,
    })
}

/// A GPU with the kernels loaded into its primary context, the one that the CUDA runtime and so ggml uses.
///
/// Clones share the loaded kernels, and so does a second [`Device::open`] of the same GPU. The kernels are
/// unloaded when the last clone is dropped. Every call makes the context current on its thread and restores
/// the previous one.
#[derive(Debug, Clone)]
pub struct Device {
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    info: DeviceInfo,
    /// Retains the primary context. [`Drop`] drops it explicitly.
    context: ManuallyDrop<Arc<CudaContext>>,
    module: sys::CUmodule,
    kernels: HashMap<(Operation, Dtype, KernelPath), sys::CUfunction>,
}

// SAFETY: module and functions are handles into the context, which is not bound to a thread. The driver's
// functions on them may be called from any thread.
unsafe impl Send for Loaded {}
// SAFETY: the fields do not change after construction, and the driver's functions on the handles may be
// called concurrently.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        let ordinal = self.info.ordinal;
        // cudarc makes the primary context current to release it, and leaves it current even if it is
        // destroyed by that. The previous context has to be restored after that. Locals are dropped in
        // reverse order.
        let previous = Current::keep(ordinal);
        let unload = |_current| {
            // SAFETY: the module is ours and unloaded once. The last device is gone, and its functions with
            // it.
            check("cuModuleUnload", unsafe { sys::cuModuleUnload(self.module) })
        };
        keep_error(ordinal, Current::enter(ordinal, self.context.cu_ctx()).and_then(unload));
        // SAFETY: dropped only here, and not used after.
        unsafe { ManuallyDrop::drop(&mut self.context) };
        keep_error(ordinal, previous.map(drop));
    }
}

impl Device {
    /// Opens a GPU: checks driver and device code, and loads all kernels. Never panics.
    ///
    /// No kernel has to be loaded later, which a stream capture would not survive.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoDevice`], [`CudaError::DriverTooOld`],
    /// [`CudaError::NoDeviceCode`], [`CudaError::Driver`].
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        static OPEN: Mutex<Vec<(usize, Weak<Loaded>)>> = Mutex::new(Vec::new());
        driver::init()?;
        // A panic while the lock is held leaves the list intact.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, loaded)| loaded.strong_count() > 0);
        if let Some(loaded) =
            open.iter().find(|(o, _)| *o == ordinal).and_then(|(_, loaded)| loaded.upgrade())
        {
            return Ok(Self { loaded });
        }
        take_error(ordinal)?;
        let loaded = Arc::new(Loaded::new(ordinal)?);
        open.push((ordinal, Arc::downgrade(&loaded)));
        Ok(Self { loaded })
    }

    /// Returns the GPU's properties.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.loaded.info
    }

    /// Returns the GPU's primary context, for use with cudarc.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.loaded.context
    }

    pub(super) fn ordinal(&self) -> usize {
        self.loaded.info.ordinal
    }

    /// Returns a kernel of the image.
    pub(super) fn kernel(&self, operation: Operation, dtype: Dtype, path: KernelPath) -> sys::CUfunction {
        self.loaded.kernels[&(operation, dtype, path)]
    }

    /// Makes the context current until the guard is dropped. Returns an error that a drop has left first.
    pub(super) fn enter(&self) -> Result<Current, DriverError> {
        take_error(self.ordinal())?;
        Current::enter(self.ordinal(), self.loaded.context.cu_ctx())
    }

    /// Runs the calls of a [`Drop`] with the context current. The GPU's next call returns their error.
    pub(super) fn on_drop(&self, calls: impl FnOnce() -> Result<(), DriverError>) {
        let current = Current::enter(self.ordinal(), self.loaded.context.cu_ctx());
        keep_error(self.ordinal(), current.and_then(|_current| calls()));
    }
}

impl Loaded {
    fn new(ordinal: usize) -> Result<Self, CudaError> {
        let info = info(ordinal)?;
        let image = image::image();
        image::check_arch(image.archs, info.arch)?;
        image::check_driver(image.nvcc, info.driver)?;
        // cudarc makes the context current and leaves it current.
        let _previous = Current::keep(ordinal)?;
        let context = CudaContext::new(ordinal)
            .map_err(|error| DriverError { call: "cuDevicePrimaryCtxRetain", code: error.0 })?;
        let _current = Current::enter(ordinal, context.cu_ctx())?;
        let mut module = ptr::null_mut();
        // SAFETY: the image is a complete fatbin, which holds its own length.
        check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&mut module, image::IMAGE.as_ptr().cast())
        })?;
        // From here on, dropping `loaded` unloads the module.
        let mut loaded = Self { info, context: ManuallyDrop::new(context), module, kernels: HashMap::new() };
        for operation in Operation::ALL {
            for dtype in Dtype::ALL {
                for path in KernelPath::ALL.into_iter().filter(|path| path.has(operation)) {
                    let kernel = loaded.load(operation, dtype, path)?;
                    loaded.kernels.insert((operation, dtype, path), kernel);
                }
            }
        }
        Ok(loaded)
    }

    fn load(
        &self,
        operation: Operation,
        dtype: Dtype,
        path: KernelPath,
    ) -> Result<sys::CUfunction, DriverError> {
        let name = CString::new(kernel_name(operation, dtype, path)).unwrap_or_default();
        let mut kernel = ptr::null_mut();
        // SAFETY: the module is of the current context, and the name is a C string.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&mut kernel, self.module, name.as_ptr())
        })?;
        // With lazy loading (the default since CUDA 12.2) a function may be loaded at its first launch, which
        // a stream capture does not survive. Asking for an attribute loads the function.
        let mut registers = 0;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NUM_REGS;
        // SAFETY: the function is of the current context, and the pointer is valid.
        check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut registers, attribute, kernel) })?;
        if path.shares_much() {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let max = self.info.limits.shared_per_block as i32;
            // SAFETY: the function is of the current context.
            check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(kernel, attribute, max) })?;
        }
        Ok(kernel)
    }
}
