//! Installs the hook in ggml's devices, and binds sessions to backends.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, Weak};

use crate::backend::Backend;
use crate::config::Settings;
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

type InitBackend = unsafe extern "C" fn(Device, *const c_char) -> host::Backend;
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

#[derive(Debug)]
struct Installed {
    layout: &'static Layout,
    own_graphs: OwnGraphs,
    devices: RwLock<Vec<Device>>,
}

// SAFETY: devices are static objects of ggml's registry, valid until the process ends. Only their
// init_backend slot is written, under INSTALLED's lock.
unsafe impl Send for Installed {}
// SAFETY: shared access only reads, apart from the init_backend slots, which are written under INSTALLED's
// lock.
unsafe impl Sync for Installed {}

/// A backend whose functions were replaced, with its own functions.
#[derive(Debug)]
struct Hooked {
    installed: Arc<Installed>,
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

impl Installed {
    /// Replaces `init_backend` of every device of ggml's that does not have it replaced. To be called under the
    /// lock of `INSTALLED`.
    fn hook_devices(&self) -> Result<(), HookError> {
        let devices = all_devices();
        if devices.is_empty() {
            return Err(HookError::NoDevice);
        }
        let mut originals = ORIGINALS.write().unwrap_or_else(PoisonError::into_inner);
        let mut unhooked = Vec::new();
        for &device in &devices {
            // SAFETY: the device is a mutable static of its backend, and the slot is where ggml itself reads
            // it.
            match unsafe { init_slot(device, self.layout).read() } {
                Some(found) if std::ptr::fn_addr_eq(found, OURS) => {}
                Some(found) => match originals.get(&(device as usize)) {
                    // Another library has replaced our function by one that calls it. Ours is still reached,
                    // and calls the device's own. If it called the other library's, neither would return.
                    Some(&own) if !std::ptr::fn_addr_eq(found, own) => {
                        let device = device_name(device);
                        tracing::debug!(device, "another library has wrapped the hook, and calls it");
                    }
                    _ => {
                        originals.insert(device as usize, found);
                        unhooked.push(device);
                    }
                },
                None => {
                    return Err(HookError::Layout {
                        version: ggml_version(),
                        what: format!("device {} has no init_backend", device_name(device)),
                    });
                }
            }
        }
        drop(originals);
        for device in unhooked {
            // SAFETY: the device is a mutable static of its backend. The slot is one aligned word, which
            // holds a valid function before and after.
            unsafe { init_slot(device, self.layout).write(Some(OURS)) };
        }
        *self.devices.write().unwrap_or_else(PoisonError::into_inner) = devices;
        Ok(())
    }

    fn devices(&self) -> Vec<Device> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Checks that all of ggml's devices are hooked.
    ///
    /// # Errors
    /// [`HookError::LateDevices`].
    fn check_devices(&self) -> Result<(), HookError> {
        let (all, hooked) = (all_devices(), self.devices());
        let mut added = all.iter().filter(|device| !hooked.contains(device)).map(|&late| device_name(late));
        let Some(first) = added.next() else { return Ok(()) };
        let added = added.fold(first, |list, name| format!("{list}, {name}"));
        Err(HookError::LateDevices { hooked: hooked.len(), now: all.len(), added })
    }
}

fn all_devices() -> Vec<Device> {
    // SAFETY: plain queries of ggml's registry.
    unsafe { (0..(api().ggml_backend_dev_count)()).map(|i| (api().ggml_backend_dev_get)(i)).collect() }
}

/// The hook of this process, if one is installed.
static INSTALLED: Mutex<Weak<Installed>> = Mutex::new(Weak::new());

/// The binding of contexts that are created under no other one.
static REST: RwLock<Option<Binding>> = RwLock::new(None);

/// Our `init_backend`. A static gives it one address, because a function may have several.
static OURS: InitBackend = init_backend;

/// Each device's own `init_backend`, by the device's address. Entries are kept until the process ends,
/// because a thread may be calling the replacement while it is taken back.
static ORIGINALS: LazyLock<RwLock<HashMap<usize, InitBackend>>> = LazyLock::new(RwLock::default);

/// Hooked backends by address.
static BACKENDS: LazyLock<RwLock<HashMap<usize, Arc<Hooked>>>> = LazyLock::new(RwLock::default);

/// The own `free` of backends that no session is bound to, by address, where it waits for captures.
static WAITING: LazyLock<RwLock<HashMap<usize, FreeBackend>>> = LazyLock::new(RwLock::default);

thread_local! {
    static BINDING: RefCell<Option<Binding>> = const { RefCell::new(None) };
}

impl Hook {
    /// Installs the hook: measures ggml's layout and replaces `init_backend` of every device. Contexts
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
        Self::install_in_host()
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
        Self::install_in_host()
    }

    fn install_in_host() -> Result<Self, HookError> {
        let mut slot = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(installed) = slot.upgrade() {
            installed.hook_devices()?;
            return Ok(Self(installed));
        }
        let layout = Layout::probe()?;
        let own_graphs = OwnGraphs::of_this_process();
        let installed = Arc::new(Installed { layout, own_graphs, devices: RwLock::default() });
        installed.hook_devices()?;
        *slot = Arc::downgrade(&installed);
        Ok(Self(installed))
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
            slots: named_offsets(self.0.layout),
            devices: self.0.devices().into_iter().map(|d| device_report(d, self.0.own_graphs)).collect(),
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

impl Drop for Installed {
    fn drop(&mut self) {
        let slot = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have installed the hook again before this lock was taken.
        if slot.strong_count() > 0 {
            return;
        }
        let originals = ORIGINALS.read().unwrap_or_else(PoisonError::into_inner);
        for device in self.devices() {
            // SAFETY: the device is a mutable static of its backend, and the slot is where ggml itself reads
            // it. Only our own replacement is taken back.
            unsafe {
                let slot = init_slot(device, self.layout);
                if slot.read().is_some_and(|found| std::ptr::fn_addr_eq(found, OURS)) {
                    slot.write(originals.get(&(device as usize)).copied());
                }
            }
        }
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

fn device_name(device: Device) -> String {
    // SAFETY: the name is a NUL-terminated string that lives as long as the device.
    unsafe { CStr::from_ptr((api().ggml_backend_dev_name)(device)) }.to_string_lossy().into_owned()
}

/// Whether this is ggml's own CPU backend, which can run GGML_OP_MAP_CUSTOM1 nodes.
fn is_cpu(device: Device) -> bool {
    // SAFETY: plain queries of a device of the registry. The name is NUL-terminated.
    let registry = unsafe {
        CStr::from_ptr((api().ggml_backend_reg_name)((api().ggml_backend_dev_backend_reg)(device)))
    };
    registry == c"CPU"
}

/// # Safety
/// `device` must be a device of ggml's registry.
unsafe fn init_slot(device: Device, layout: &Layout) -> *mut Option<InitBackend> {
    // SAFETY: the offset is within the device.
    unsafe { device.byte_add(layout.device_init_backend).cast() }
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
unsafe extern "C" fn init_backend(device: Device, params: *const c_char) -> host::Backend {
    let original = ORIGINALS.read().unwrap_or_else(PoisonError::into_inner).get(&(device as usize)).copied();
    // ggml's own functions return null for a backend that could not be created.
    let Some(original) = original else { return std::ptr::null_mut() };
    // SAFETY: the device's own function with the arguments it was called with.
    let backend = unsafe { original(device, params) };
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
    let layout = installed.layout;
    // SAFETY: the slots are where ggml itself reads them. Each backend has its own copy of its interface.
    let (compute, free) =
        unsafe { (compute_slot(backend, layout).read(), free_slot(backend, layout).read()) };
    let (Some(graph_compute), Some(free)) = (compute, free) else {
        return Err(HookError::Layout {
            version: ggml_version(),
            what: format!("a backend of {} has no graph_compute or no free", device_name(device)),
        });
    };
    let (name, is_cpu, own_graphs) = (device_name(device), is_cpu(device), installed.own_graphs);
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
    let hooked = Hooked { installed: Arc::clone(installed), free, graph_compute, serves };
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
    let layout = hooked.installed.layout;
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
