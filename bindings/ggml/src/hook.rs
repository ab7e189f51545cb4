//! Installs the hook in ggml's devices, and binds sessions to backends.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use crate::backend::Backend;
use crate::config::Settings;
use crate::devices::{Installed, device_name, is_cpu, originals};
use crate::error::HookError;
#[cfg(feature = "linked")]
use crate::host::use_linked_host;
use crate::host::{
    self, Api, Device, FAILED, Graph, Layout, OwnGraphs, RawGraph, Status, Symbols, api, ggml_version,
    layout, named_offsets, use_host,
};
use crate::route::Route;
use crate::route::gpu::{CudaDrivers, DriverFactory, between_captures};
use crate::session::Session;
use crate::stock::{Guard, GuardState, ModelCaps, Reaction, StockBackend, Watcher, begin_backend};

type FreeBackend = unsafe extern "C" fn(host::Backend);
type GraphCompute = unsafe extern "C" fn(host::Backend, *mut RawGraph) -> Status;

/// The hook in ggml's devices. It stays installed while a clone of this handle or a context created under
/// [`Hook::bind`] lives. Then every slot gets its own function back.
#[derive(Debug, Clone)]
pub struct Hook(Arc<Installed>);

/// Findings of the hook in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookReport {
    /// ggml's version and commit.
    pub ggml: String,
    /// Measured byte offsets of the replaced slots and fields, by name.
    pub slots: Vec<(&'static str, usize)>,
    /// ggml's devices.
    pub devices: Vec<DeviceReport>,
}

/// One of ggml's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// E.g. `CPU`, `CUDA0`.
    pub name: String,
    /// E.g. the processor's or the card's name.
    pub description: String,
    /// How [`RouteChoice::Auto`](crate::RouteChoice::Auto) computes graphs there.
    pub route: Route,
    /// Why caps cannot run on the GPU, for a device of ggml's CUDA backend.
    pub reason: Option<String>,
}

/// A backend whose functions were replaced, with its own functions.
#[derive(Debug)]
struct Hooked {
    /// Keeps the hook installed.
    _installed: Arc<Installed>,
    free: FreeBackend,
    graph_compute: GraphCompute,
    serves: Serves,
}

/// Whom a hooked backend serves.
#[derive(Debug)]
enum Serves {
    /// A session, to which the context was bound.
    Session(Box<Backend>),
    /// The guard, in a context that the host made itself.
    Guard(Box<StockBackend>),
}

/// What the contexts that are being created belong to.
#[derive(Debug, Clone)]
struct Binding {
    owner: Owner,
    installed: Arc<Installed>,
    drivers: Arc<dyn DriverFactory>,
}

#[derive(Debug, Clone)]
enum Owner {
    Session(Session),
    Guard(Arc<GuardState>),
}

/// The binding of contexts that are created under no other one.
static REST: RwLock<Option<Binding>> = RwLock::new(None);

/// Hooked backends by address.
static BACKENDS: LazyLock<RwLock<HashMap<usize, Arc<Hooked>>>> = LazyLock::new(RwLock::default);

/// The own `free` of backends that no session is bound to, by address, where it waits for captures.
static WAITING: LazyLock<RwLock<HashMap<usize, FreeBackend>>> = LazyLock::new(RwLock::default);

thread_local! {
    static BINDING: RefCell<Option<Binding>> = const { RefCell::new(None) };
}

impl Hook {
    /// Installs the hook: measures ggml's layout and replaces two functions of every device. Contexts
    /// created under [`Hook::bind`] from now on can be capped. Others run as before. A second call returns
    /// the installed hook.
    ///
    /// ggml's backends must be registered before (`LlamaBackend::init`). Those loaded at run time must be
    /// loaded.
    ///
    /// # Errors
    /// [`HookError::Layout`] when this ggml is not laid out as needed, [`HookError::NoDevice`],
    /// [`HookError::OtherHost`].
    #[cfg(feature = "linked")]
    pub fn install() -> Result<Self, HookError> {
        use_linked_host()?;
        Installed::in_host().map(Self)
    }

    /// As `Hook::install`, in the ggml that the process has loaded, whose functions are found by their
    /// symbols.
    ///
    /// # Errors
    /// Those of `Hook::install`, and [`HookError::Symbol`].
    ///
    /// # Safety
    /// Each symbol must be the function of ggml of that name, and stay loaded until the process ends.
    pub unsafe fn install_in(symbols: Symbols<'_>) -> Result<Self, HookError> {
        // SAFETY: the caller promises ggml's functions.
        use_host(unsafe { Api::look_up(symbols)? })?;
        Installed::in_host().map(Self)
    }

    /// Runs `create`, which creates one llama_context on this thread, and binds the context's backends to
    /// `session`. [`Session::is_bound`] tells whether any backend was created.
    pub fn bind<R>(&self, session: &Session, create: impl FnOnce() -> R) -> R {
        self.bind_with(session, Arc::new(CudaDrivers), create)
    }

    /// As [`Hook::bind`], with a choice of GPU drivers.
    pub(crate) fn bind_with<R>(
        &self,
        session: &Session,
        drivers: Arc<dyn DriverFactory>,
        create: impl FnOnce() -> R,
    ) -> R {
        self.bind_to(Owner::Session(session.clone()), drivers, create)
    }

    fn bind_to<R>(&self, owner: Owner, drivers: Arc<dyn DriverFactory>, create: impl FnOnce() -> R) -> R {
        struct Unbind(Option<Binding>);
        impl Drop for Unbind {
            fn drop(&mut self) {
                BINDING.set(self.0.take());
            }
        }
        let binding = Binding { owner, installed: Arc::clone(&self.0), drivers };
        let _unbind = Unbind(BINDING.replace(Some(binding)));
        create()
    }

    /// Makes a guard, which caps contexts whose graphs show that they run a model of `models`. For programs
    /// that do not know of the hook. `settings` are those of every context.
    ///
    /// # Errors
    /// [`HookError::Architecture`] and [`HookError::Caps`] for caps that do not suit their own model,
    /// [`HookError::CapsRival`].
    pub fn guard(
        &self,
        models: Vec<ModelCaps>,
        settings: Settings,
        watcher: Arc<dyn Watcher>,
    ) -> Result<Guard, HookError> {
        Ok(Guard { state: Arc::new(GuardState::new(models, settings, watcher)?), hook: self.clone() })
    }

    /// Returns what was found in this process.
    #[must_use]
    pub fn report(&self) -> HookReport {
        HookReport {
            ggml: ggml_version(),
            slots: named_offsets(self.0.layout()),
            devices: self.0.list().into_iter().map(|d| device_report(d, self.0.own_graphs())).collect(),
        }
    }
}

impl Guard {
    /// Runs `create`, which creates contexts on this thread that are guarded.
    pub fn bind<R>(&self, create: impl FnOnce() -> R) -> R {
        self.hook.bind_to(Owner::Guard(Arc::clone(&self.state)), Arc::new(CudaDrivers), create)
    }

    /// Guards all contexts of the process that are created from now on under no other binding, until another
    /// guard does. The hook stays installed for as long.
    pub fn bind_rest(&self) {
        let owner = Owner::Guard(Arc::clone(&self.state));
        let installed = Arc::clone(&self.hook.0);
        let rest = Binding { owner, installed, drivers: Arc::new(CudaDrivers) };
        *REST.write().unwrap_or_else(PoisonError::into_inner) = Some(rest);
    }
}

fn device_report(device: Device, own_graphs: OwnGraphs) -> DeviceReport {
    // SAFETY: the description is a NUL-terminated string that lives as long as the device.
    let description = unsafe { CStr::from_ptr((api().ggml_backend_dev_description)(device)) }
        .to_string_lossy()
        .into_owned();
    let (route, reason) = match CudaDrivers.usable(device) {
        _ if is_cpu(device) => (Route::Inserted, None),
        None => (Route::HostViews, None),
        Some(Ok(())) if own_graphs == OwnGraphs::On => (Route::GpuViews, None),
        Some(Ok(())) => (Route::OneGraph, None),
        Some(Err(reason)) => (Route::HostViews, Some(reason)),
    };
    DeviceReport { name: device_name(device), description, route, reason }
}

/// # Safety
/// `backend` must be a live ggml backend.
unsafe fn compute_slot(backend: host::Backend, layout: &Layout) -> *mut Option<GraphCompute> {
    // SAFETY: the offset is within the backend.
    unsafe { backend.byte_add(layout.backend_graph_compute).cast() }
}

/// # Safety
/// `backend` must be a live ggml backend.
unsafe fn free_slot(backend: host::Backend, layout: &Layout) -> *mut Option<FreeBackend> {
    // SAFETY: the offset is within the backend.
    unsafe { backend.byte_add(layout.backend_free).cast() }
}

/// Replaces a device's `init_backend`. Creates the backend as before, and hooks it if a context is being
/// bound.
pub(crate) unsafe extern "C" fn init_backend(device: Device, params: *const c_char) -> host::Backend {
    // ggml's own functions return null for a backend that could not be created.
    let Some(original) = originals(device) else { return std::ptr::null_mut() };
    // SAFETY: the device's own function with the arguments it was called with.
    let backend = unsafe { (original.init)(device, params) };
    if backend.is_null() {
        return backend;
    }
    let own = BINDING.with(|b| b.try_borrow().ok().and_then(|b| b.clone()));
    let binding = own.or_else(|| REST.read().unwrap_or_else(PoisonError::into_inner).clone());
    let Some(binding) = binding else {
        if !is_cpu(device) {
            // SAFETY: `device` has just made `backend`.
            unsafe { free_between_captures(backend) };
        }
        return backend;
    };
    let hooked = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `device` has just made `backend`.
        unsafe { hook_backend(backend, device, &binding) }
    }));
    if let Err(error) = hooked.unwrap_or_else(|panic| Err(HookError::panic(panic.as_ref()))) {
        match &binding.owner {
            Owner::Session(session) => session.0.record.fail(error),
            // Without this backend there is no context.
            Owner::Guard(guard) if guard.fault(None, error) == Reaction::Fail => {
                return std::ptr::null_mut();
            }
            Owner::Guard(_) => {}
        }
    }
    backend
}

/// # Safety
/// `backend` must have been made by `device` and not be in use yet.
unsafe fn hook_backend(backend: host::Backend, device: Device, binding: &Binding) -> Result<(), HookError> {
    let Binding { owner, installed, drivers } = binding;
    let layout = layout();
    // SAFETY: the slots are where ggml itself reads them. Each backend has its own copy of its interface.
    let (compute, free) =
        unsafe { (compute_slot(backend, layout).read(), free_slot(backend, layout).read()) };
    let (Some(graph_compute), Some(free)) = (compute, free) else {
        return Err(HookError::Layout {
            version: ggml_version(),
            what: format!("a backend of {} has no graph_compute or no free", device_name(device)),
        });
    };
    let (name, is_cpu, own_graphs) = (device_name(device), is_cpu(device), installed.own_graphs());
    let serves = match owner {
        Owner::Session(session) => {
            let state = Arc::clone(&session.0);
            let own = Backend::new(state, device, name, is_cpu, own_graphs, drivers)?;
            Serves::Session(Box::new(own))
        }
        Owner::Guard(guard) => {
            if is_cpu {
                // The backend of the CPU is the last one of a context.
                installed.check_devices()?;
            }
            let own = begin_backend(guard, device, name, is_cpu, own_graphs, drivers);
            Serves::Guard(Box::new(own))
        }
    };
    let hooked = Hooked { _installed: Arc::clone(installed), free, graph_compute, serves };
    BACKENDS.write().unwrap_or_else(PoisonError::into_inner).insert(backend as usize, Arc::new(hooked));
    // SAFETY: the slots are where ggml itself reads them. From here on our functions find the entry.
    unsafe {
        compute_slot(backend, layout).write(Some(hooked_compute));
        free_slot(backend, layout).write(Some(hooked_free));
    }
    if let Owner::Session(session) = owner {
        session.0.set_bound();
    }
    Ok(())
}

/// Makes the `free` of a backend without a session wait for captures, which it would invalidate.
///
/// # Safety
/// `backend` must be live and not be in use yet, and the layout have been measured.
pub(crate) unsafe fn free_between_captures(backend: host::Backend) {
    // SAFETY: the slot is where ggml itself reads it. The backend has its own copy of its interface.
    let slot = unsafe { free_slot(backend, layout()) };
    // SAFETY: as above.
    if let Some(free) = unsafe { slot.read() } {
        WAITING.write().unwrap_or_else(PoisonError::into_inner).insert(backend as usize, free);
        // SAFETY: as above. From here on our function finds the entry.
        unsafe { slot.write(Some(waiting_free)) };
    }
}

/// Replaces the `free` of a backend without a session. Waits until nothing is being captured, then frees it as
/// before.
unsafe extern "C" fn waiting_free(backend: host::Backend) {
    let free = WAITING.write().unwrap_or_else(PoisonError::into_inner).remove(&(backend as usize));
    let Some(free) = free else { return };
    let _no_capture = between_captures();
    // SAFETY: the backend is still alive. Its slot gets its own function back before that runs.
    unsafe {
        free_slot(backend, layout()).write(Some(free));
        free(backend);
    }
}

/// Replaces a backend's `free`. Removes the hook from the backend, then frees it as before.
unsafe extern "C" fn hooked_free(backend: host::Backend) {
    let hooked = BACKENDS.write().unwrap_or_else(PoisonError::into_inner).remove(&(backend as usize));
    let Some(hooked) = hooked else { return };
    let layout = layout();
    let _no_capture = between_captures();
    // The GPU must be done with the backend's memory before that is freed.
    let closed = catch_unwind(AssertUnwindSafe(|| match &hooked.serves {
        Serves::Session(own) => own.close(backend),
        Serves::Guard(own) => own.close(backend),
    }));
    if let (Err(panic), Serves::Session(own)) = (closed, &hooked.serves) {
        own.fail(HookError::panic(panic.as_ref()));
    }
    // SAFETY: the backend is still alive. Its slots get their own functions back before its own free runs.
    unsafe {
        compute_slot(backend, layout).write(Some(hooked.graph_compute));
        free_slot(backend, layout).write(Some(hooked.free));
        (hooked.free)(backend);
    }
}

/// Replaces a backend's `graph_compute`.
unsafe extern "C" fn hooked_compute(backend: host::Backend, graph: *mut RawGraph) -> Status {
    let hooked = BACKENDS.read().unwrap_or_else(PoisonError::into_inner).get(&(backend as usize)).cloned();
    let Some(hooked) = hooked else { return FAILED };
    // SAFETY: ggml gives us the graph for the duration of this call.
    let graph = unsafe { Graph::new(graph) };
    // SAFETY: the backend's own function, on the backend that it came from.
    let compute = |graph: &Graph| unsafe { (hooked.graph_compute)(backend, graph.raw()) };
    match &hooked.serves {
        Serves::Session(own) => {
            let computed = catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: ggml calls with a live backend, and `compute` is that backend's own function.
                unsafe { own.compute(backend, &graph, &compute) }
            }));
            let computed = computed.unwrap_or_else(|panic| Err(HookError::panic(panic.as_ref())));
            computed.unwrap_or_else(|error| own.fail(error))
        }
        // SAFETY: as above.
        Serves::Guard(own) => unsafe { own.compute(backend, &graph, &compute) },
    }
}
