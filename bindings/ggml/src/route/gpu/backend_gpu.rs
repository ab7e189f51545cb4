//! The GPU of one backend, opened when the first graph with capped rows shows which one it is.

use std::ffi::CStr;
use std::sync::{Arc, Mutex};

use super::GpuRoute;
use super::driver::{Driver, DriverFactory};
use crate::host::{Backend, Device, api};
use crate::record::{Arrived, lock};

/// State of a backend's GPU.
#[derive(Debug)]
pub(crate) enum BackendGpu {
    /// Caps run on the host. For a backend of a GPU, with the reason.
    Host(Option<String>),
    /// The backend has not had a graph with capped rows yet.
    Unopened(Arc<dyn DriverFactory>),
    /// Ready for graphs.
    Open(Arc<Mutex<GpuRoute>>),
}

impl BackendGpu {
    pub(crate) fn new(device: Device, drivers: &Arc<dyn DriverFactory>) -> Self {
        match drivers.usable(device) {
            None => Self::Host(None),
            Some(Err(reason)) => Self::Host(Some(reason)),
            Some(Ok(())) => Self::Unopened(Arc::clone(drivers)),
        }
    }

    /// Whether there is a GPU to cap on, opened or not.
    pub(crate) fn is_there(&self) -> bool {
        !matches!(self, Self::Host(_))
    }

    /// Opens the GPU whose memory has this address, unless it is open. Returns the route if it was opened by this call.
    ///
    /// # Safety
    /// `backend` must be the live backend that this value belongs to. [`BackendGpu::close`] must be called before it is
    /// freed.
    pub(crate) unsafe fn open(
        &mut self,
        backend: Backend,
        name: &str,
        address: u64,
    ) -> Result<Option<Arc<Mutex<GpuRoute>>>, String> {
        let Self::Unopened(drivers) = self else { return Ok(None) };
        // SAFETY: the caller promises a live backend. `close` drops the driver before the backend is freed.
        let driver = unsafe { drivers.open(backend, name, address)? };
        let route = Arc::new(Mutex::new(GpuRoute::new(name.into(), driver)));
        *self = Self::Open(Arc::clone(&route));
        Ok(Some(route))
    }

    /// The route to the GPU, if it is open.
    pub(crate) fn route(&self) -> Option<Arc<Mutex<GpuRoute>>> {
        match self {
            Self::Open(route) => Some(Arc::clone(route)),
            _ => None,
        }
    }

    /// Why a backend of a GPU caps on the host.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::Host(reason) => reason.as_deref(),
            _ => None,
        }
    }

    /// Frees everything on the GPU, and returns the last statistics. The backend is about to be freed.
    pub(crate) fn close(&mut self) -> Arrived {
        match std::mem::replace(self, Self::Host(None)) {
            Self::Open(route) => lock(&route).close(),
            _ => Arrived::default(),
        }
    }
}

/// Drivers for ggml's CUDA backend.
#[derive(Debug)]
pub(crate) struct CudaDrivers;

impl DriverFactory for CudaDrivers {
    fn usable(&self, device: Device) -> Option<Result<(), String>> {
        // SAFETY: plain queries of a device of ggml's registry. The name is NUL-terminated.
        let name = unsafe {
            CStr::from_ptr((api().ggml_backend_reg_name)((api().ggml_backend_dev_backend_reg)(device)))
        };
        if name != c"CUDA" {
            return None;
        }
        #[cfg(feature = "gpu")]
        let usable = super::cuda::usable();
        #[cfg(not(feature = "gpu"))]
        let usable = Err(WITHOUT_FEATURE.into());
        Some(usable)
    }

    #[cfg(feature = "gpu")]
    unsafe fn open(&self, backend: Backend, name: &str, address: u64) -> Result<Box<dyn Driver>, String> {
        // SAFETY: the caller's promise is the contract of `Cuda::open`.
        Ok(Box::new(unsafe { super::cuda::Cuda::open(backend, name, address)? }))
    }

    #[cfg(not(feature = "gpu"))]
    unsafe fn open(&self, _: Backend, _: &str, _: u64) -> Result<Box<dyn Driver>, String> {
        Err(WITHOUT_FEATURE.into())
    }
}

#[cfg(not(feature = "gpu"))]
const WITHOUT_FEATURE: &str = "axiscap-ggml was built without its feature `gpu`";
