//! The launch itself.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;

use crate::cuda::device::Device;
use crate::cuda::driver::check;
use crate::cuda::error::CudaError;
use crate::cuda::launch::plan::Plan;
use crate::cuda::stream::StreamRef;
use crate::cuda::table::DeviceTable;
use crate::op::{DeviceMemory, Job};

/// How a launch relates to the previous one on its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// The kernel starts when the previous one has ended.
    #[default]
    None,
    /// Programmatic dependent launch. It needs compute capability 9.0, and earlier GPUs ignore it.
    ///
    /// The kernel may start while the previous one ends. It loads axes and weight, and then waits for that
    /// kernel. The previous kernel must not write the table or the weight. If that was launched in the same
    /// way, neither must the one before it, and so on back to the last full wait on the stream, because a
    /// whole chain of launches may overlap. Capturing such a launch needs a driver for CUDA 12.3.
    Programmatic,
}

impl Job<DeviceMemory> {
    /// Puts the call on a stream and returns at once. Works inside a stream capture.
    ///
    /// # Errors
    /// [`CudaError::Invalid`], [`CudaError::TooLarge`], [`CudaError::TooManyCaps`], [`CudaError::Driver`].
    ///
    /// # Safety
    /// Every address of the job is memory of the table's GPU that holds what the job says. Until the stream
    /// has passed the launch (for a captured one: any replay of it), the memory stays allocated, nothing else
    /// writes it or reads what the launch writes, and the table lives. Rows overlap only as
    /// [`DeviceJob`](crate::op::DeviceJob) allows. The stream is of the table's GPU.
    pub unsafe fn launch(
        &self,
        table: &DeviceTable,
        stream: StreamRef<'_>,
        overlap: Overlap,
    ) -> Result<(), CudaError> {
        let device = table.device();
        match Plan::new(self, &table.view(), &device.info().limits)? {
            // SAFETY: the plan was made for this device and table. The caller promises the memory and the
            // stream.
            Some(plan) => unsafe { plan.launch(device, stream, overlap) },
            None => Ok(()),
        }
    }
}

impl Plan {
    /// Puts the plan on a stream and returns at once, as [`Job::launch`] does after planning.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// As for [`Job::launch`]. The plan was made with this device's limits and a table of this device.
    pub unsafe fn launch(
        &self,
        device: &Device,
        stream: StreamRef<'_>,
        overlap: Overlap,
    ) -> Result<(), CudaError> {
        let shape = self.shape();
        let kernel = device.kernel(self.operation, self.dtype, shape.path);
        let _current = device.enter()?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let programmatic = overlap == Overlap::Programmatic && device.info().arch >= 90;
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
        let mut argument = ptr::from_ref(self.args()).cast_mut().cast::<c_void>();
        // SAFETY: configuration and argument live during the call, which copies them. Every kernel of the
        // image takes one argument of this type. The caller promises the addresses in it.
        let launched = unsafe { sys::cuLaunchKernelEx(&config, kernel, &mut argument, ptr::null_mut()) };
        Ok(check("cuLaunchKernelEx", launched)?)
    }
}
