//! A GPU with the kernels loaded.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::{CudaContext, sys};

use super::driver::{self, Current, check};
use super::error::CudaError;
use super::image;
use super::plan::{Dtype, Job, Operation, Plan, kernel_name};
use super::shape::{Limits, Path};
use super::table::DeviceTable;
use crate::table::CapTable;

/// A stream of someone else's: ggml's, a framework's, or one of cudarc's. It is there for as long as `'a`, so that safe
/// code cannot put work on a stream that is gone:
///
/// ```compile_fail,E0515
/// use axiscap::cuda::{CudaError, Device, Stream, StreamRef};
/// fn dangling(device: &Device) -> Result<StreamRef<'_>, CudaError> {
///     let stream = Stream::new(device)?;
///     Ok(stream.as_ref())
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRef<'a>(pub(super) sys::CUstream, PhantomData<&'a ()>);

impl StreamRef<'_> {
    /// The legacy default stream.
    pub const DEFAULT: Self = Self(ptr::null_mut(), PhantomData);

    /// A stream by its handle (`CUstream`, which is also `cudaStream_t`).
    ///
    /// # Safety
    /// The handle is null or a live stream of the primary context of the device it is used with, and stays one for as
    /// long as the value or a copy of it is used, which may be for all of the lifetime that the caller chooses.
    #[must_use]
    pub unsafe fn from_raw(stream: *mut c_void) -> Self {
        Self(stream.cast(), PhantomData)
    }

    /// The handle.
    #[must_use]
    pub fn as_raw(self) -> *mut c_void {
        self.0.cast()
    }
}

/// How a launch relates to the one before it on its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// The kernel starts when the one before has ended.
    #[default]
    None,
    /// Programmatic dependent launch (compute capability 9.0 and later, ignored before): the kernel may start while
    /// the one before it ends, loads axes and weight, and then waits for it. The kernel before must not write the
    /// table or the weight; nor, where that one was itself launched so, the one before it, and so on back to the
    /// last full wait on the stream: a whole chain may overlap. Capturing such a launch needs a driver for CUDA 12.3.
    Programmatic,
}

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its index as CUDA counts.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, e.g. 90 for 9.0.
    pub arch: u32,
    /// Its limits.
    pub limits: Limits,
    /// The newest CUDA its driver supports: 1000 * major + 10 * minor.
    pub driver: i32,
}

/// The GPUs of this machine. Never panics.
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
        },
        driver: driver::version()?,
    })
}

/// A GPU with the kernels loaded into its primary context: the one that the CUDA runtime, and so ggml, uses.
///
/// Cloning is cheap. While any clone lives the kernels stay loaded; opening the same GPU again gives the same ones.
/// Every call makes the context current on its thread and puts back what was current before.
#[derive(Debug, Clone)]
pub struct Device {
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    info: DeviceInfo,
    /// Keeps the primary context alive. Dropped by hand: see [`Drop`].
    context: ManuallyDrop<Arc<CudaContext>>,
    module: sys::CUmodule,
    kernels: HashMap<(Operation, Dtype, Path), sys::CUfunction>,
}

// SAFETY: module and functions are handles into the context, which is not bound to a thread; the driver's functions
// on them may be called from any thread, concurrently. Nothing here changes after construction.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // cudarc makes the primary context current to release it, and leaves it so, destroyed where we were the last to
        // hold it: what was current before has to be put back after that. Locals are dropped in reverse order.
        let _previous = Current::keep();
        if let Ok(_current) = Current::enter(self.context.cu_ctx()) {
            // SAFETY: our module, unloaded once; nobody holds its functions any more.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
        // SAFETY: dropped here and nowhere else, and not used after.
        unsafe { ManuallyDrop::drop(&mut self.context) };
    }
}

impl Device {
    /// Opens a GPU: checks driver and device code, and loads all kernels, so that nothing is loaded later inside a
    /// stream capture. Never panics.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoDevice`], [`CudaError::DriverTooOld`], [`CudaError::NoDeviceCode`],
    /// [`CudaError::Driver`].
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        static OPEN: Mutex<Vec<(usize, Weak<Loaded>)>> = Mutex::new(Vec::new());
        driver::init()?;
        // A panic while the lock is held leaves the list as it was.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, loaded)| loaded.strong_count() > 0);
        if let Some(loaded) =
            open.iter().find(|(o, _)| *o == ordinal).and_then(|(_, loaded)| loaded.upgrade())
        {
            return Ok(Self { loaded });
        }
        let loaded = Arc::new(Loaded::new(ordinal)?);
        open.push((ordinal, Arc::downgrade(&loaded)));
        Ok(Self { loaded })
    }

    /// What GPU this is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.loaded.info
    }

    /// Its primary context, for use with cudarc.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.loaded.context
    }

    /// Copies a table to the GPU, on a stream of its own, and waits for it.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn upload(&self, table: &CapTable) -> Result<DeviceTable, CudaError> {
        DeviceTable::new(self, table)
    }

    /// Makes the context current until the guard is dropped.
    pub(super) fn enter(&self) -> Result<Current, CudaError> {
        Current::enter(self.loaded.context.cu_ctx())
    }

    /// Puts a job on a stream and returns at once. Works inside a stream capture.
    ///
    /// # Errors
    /// [`CudaError::Invalid`], [`CudaError::TooLarge`], [`CudaError::TooDeep`], [`CudaError::Driver`].
    ///
    /// # Safety
    /// Every address of the job is device memory of this GPU for what [`Job`] says lies there. Until the stream has
    /// passed the launch (for a captured one: any replay of it), the memory stays allocated, nobody else writes it
    /// or reads what is written, and the table lives. Rows do not overlap except as [`Job`] allows.
    pub unsafe fn launch(
        &self,
        job: &Job,
        table: &DeviceTable,
        stream: StreamRef<'_>,
        overlap: Overlap,
    ) -> Result<(), CudaError> {
        match Plan::new(job, &table.view(), &self.loaded.info.limits)? {
            // SAFETY: the caller's promise.
            Some(plan) => unsafe { self.launch_plan(&plan, stream, overlap) },
            None => Ok(()),
        }
    }

    /// Puts a plan on a stream, as [`Device::launch`] does after making it.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// As for [`Device::launch`]; the plan was made with this device's limits and a table of this device.
    pub unsafe fn launch_plan(
        &self,
        plan: &Plan,
        stream: StreamRef<'_>,
        overlap: Overlap,
    ) -> Result<(), CudaError> {
        let shape = plan.shape();
        let kernel = self.loaded.kernels[&(plan.operation, plan.dtype, shape.path)];
        let _current = self.enter()?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let programmatic = overlap == Overlap::Programmatic && self.loaded.info.arch >= 90;
        let config = sys::CUlaunchConfig {
            gridDimX: shape.blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: shape.threads,
            blockDimY: shape.groups,
            blockDimZ: 1,
            sharedMemBytes: shape.shared_bytes,
            hStream: stream.0,
            attrs: &mut attribute,
            numAttrs: programmatic.into(),
        };
        let mut argument = ptr::from_ref(plan.args()).cast_mut().cast::<c_void>();
        // SAFETY: the configuration and the one argument are alive during the call, which copies them; the argument
        // is the type that every kernel of the image takes. The caller answers for the addresses in it.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(&config, kernel, &mut argument, ptr::null_mut())
        })
    }

    /// Waits until everything on a stream is done.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong in earlier launches.
    pub fn synchronize(&self, stream: StreamRef<'_>) -> Result<(), CudaError> {
        let _current = self.enter()?;
        // SAFETY: a live stream for as long as its lifetime.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.0) })
    }
}

impl Loaded {
    fn new(ordinal: usize) -> Result<Self, CudaError> {
        let info = info(ordinal)?;
        let image = image::image();
        image::check_arch(image.archs, info.arch)?;
        image::check_driver(image.nvcc, info.driver)?;
        // cudarc makes the context current and leaves it so.
        let _previous = Current::keep()?;
        let context = CudaContext::new(ordinal)
            .map_err(|error| driver::failure("cuDevicePrimaryCtxRetain", error.0))?;
        let _current = Current::enter(context.cu_ctx())?;
        let mut module = ptr::null_mut();
        // SAFETY: the image is a complete fatbin, which carries its own length.
        check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&mut module, image::IMAGE.as_ptr().cast())
        })?;
        // From here on dropping `loaded` unloads the module.
        let mut loaded = Self { info, context: ManuallyDrop::new(context), module, kernels: HashMap::new() };
        for operation in Operation::ALL {
            for dtype in Dtype::ALL {
                for path in Path::ALL {
                    let kernel = loaded.kernel(operation, dtype, path)?;
                    loaded.kernels.insert((operation, dtype, path), kernel);
                }
            }
        }
        Ok(loaded)
    }

    fn kernel(&self, operation: Operation, dtype: Dtype, path: Path) -> Result<sys::CUfunction, CudaError> {
        let name = CString::new(kernel_name(operation, dtype, path)).unwrap_or_default();
        let mut kernel = ptr::null_mut();
        // SAFETY: a module of the current context and a C string.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&mut kernel, self.module, name.as_ptr())
        })?;
        // With lazy loading (the default since CUDA 12.2) a function may be loaded as late as its first launch, which a
        // capture does not survive: whoever asks about it has it loaded.
        let mut registers = 0;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NUM_REGS;
        // SAFETY: a function of the current context, and a valid pointer.
        check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut registers, attribute, kernel) })?;
        if path == Path::Staged {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let most = self.info.limits.shared_per_block as i32;
            // SAFETY: a function of the current context.
            check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(kernel, attribute, most) })?;
        }
        Ok(kernel)
    }
}
