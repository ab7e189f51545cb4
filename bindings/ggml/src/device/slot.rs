//! Whether a backend has a GPU that caps can run on, and why not.

use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use llama_cpp_sys_2 as sys;

use super::DevicePath;
use crate::graph::Graph;
use crate::session::Inner;

/// The GPU of a backend. Which one it is shows in the memory of the first block output.
#[derive(Debug)]
pub(crate) enum Slot {
    /// Caps run on the host; for a backend of a GPU, why.
    Host(Option<String>),
    /// ggml's CUDA backend, not yet asked for a capped graph.
    Unopened,
    /// Ready.
    Open(Arc<Mutex<DevicePath>>),
}

impl Slot {
    pub(crate) fn new(device: sys::ggml_backend_dev_t, _session: &Inner) -> Self {
        #[cfg(test)]
        // SAFETY: a plain query of a device of the registry. The stand-in works on host memory.
        if unsafe { sys::ggml_backend_dev_type(device) } == sys::GGML_BACKEND_DEVICE_TYPE_CPU
            && let Some(driver) = super::recording::for_this_thread()
        {
            let path = Arc::new(Mutex::new(DevicePath::new("recording".into(), driver)));
            _session.add_device(&path);
            return Self::Open(path);
        }
        match usable(device) {
            None => Self::Host(None),
            Some(Err(reason)) => Self::Host(Some(reason)),
            Some(Ok(())) => Self::Unopened,
        }
    }

    /// The path to the GPU that holds this address; opens it the first time.
    pub(crate) fn path(
        &mut self,
        backend: sys::ggml_backend_t,
        name: &str,
        address: u64,
        session: &Inner,
    ) -> Option<Arc<Mutex<DevicePath>>> {
        if let Some(Err(reason)) = self.open(backend, name, address, session) {
            *self = Self::Host(Some(reason));
        }
        self.opened()
    }

    /// The path to the GPU that computes a graph without rows to cap, to have it captured.
    pub(crate) fn path_of(
        &mut self,
        backend: sys::ggml_backend_t,
        name: &str,
        graph: &Graph,
        session: &Inner,
    ) -> Option<Arc<Mutex<DevicePath>>> {
        // A view may lie in memory of another backend; the results of this one do not.
        // SAFETY: nodes of the graph being computed are valid.
        let mut own = graph.nodes().iter().map(|&node| unsafe { &*node }).filter(|t| t.view_src.is_null());
        let address = own.find_map(|t| (!t.data.is_null()).then_some(t.data as u64))?;
        // A block output of a later graph may lie elsewhere: that decides how it is capped.
        if let Some(Err(reason)) = self.open(backend, name, address, session) {
            session.slow(name, &format!("graphs without capped blocks run launch by launch: {reason}"));
        }
        self.opened()
    }

    /// Opens the GPU that holds this address, if that was not done yet.
    fn open(
        &mut self,
        _backend: sys::ggml_backend_t,
        _name: &str,
        _address: u64,
        _session: &Inner,
    ) -> Option<Result<(), String>> {
        #[cfg(feature = "gpu")]
        if matches!(self, Self::Unopened) {
            // SAFETY: the backend is computing a graph of ours and outlives the path: `close` is called before its
            // own free.
            let driver = match unsafe { super::cuda::Cuda::open(_backend, _name, _address) } {
                Ok(driver) => driver,
                Err(reason) => return Some(Err(reason)),
            };
            let path = Arc::new(Mutex::new(DevicePath::new(_name.into(), Box::new(driver))));
            _session.add_device(&path);
            *self = Self::Open(path);
            return Some(Ok(()));
        }
        None
    }

    fn opened(&self) -> Option<Arc<Mutex<DevicePath>>> {
        match self {
            Self::Open(path) => Some(Arc::clone(path)),
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

    /// Gives everything on the GPU back; the backend is about to go.
    pub(crate) fn close(&mut self, session: &Inner) {
        if let Self::Open(path) = std::mem::replace(self, Self::Host(None)) {
            path.lock().unwrap_or_else(PoisonError::into_inner).close(session);
        }
    }
}

/// How blocks that this device computes are capped, for reports; `None` where it is not ggml's CUDA.
pub(crate) fn capping(device: sys::ggml_backend_dev_t) -> Option<Result<(), String>> {
    usable(device)
}

/// `None` where the device is not ggml's CUDA.
fn usable(device: sys::ggml_backend_dev_t) -> Option<Result<(), String>> {
    // SAFETY: plain queries of a device of the registry; the name is NUL-terminated.
    let name =
        unsafe { CStr::from_ptr(sys::ggml_backend_reg_name(sys::ggml_backend_dev_backend_reg(device))) };
    if name != c"CUDA" {
        return None;
    }
    #[cfg(feature = "gpu")]
    let usable = super::cuda::usable();
    #[cfg(not(feature = "gpu"))]
    let usable = Err("axiscap-ggml was built without its feature `gpu`".into());
    Some(usable)
}
