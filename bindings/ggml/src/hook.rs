//! Installs the hook in ggml's devices, and computes hooked backends' graphs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, Weak};

use llama_cpp_sys_2 as sys;

use crate::device::{NormObstacle, ON_DEVICE, Pass, Slot, between_captures, capping};
use crate::engine::{panicked, run_inserted, run_views};
use crate::environment::ggml_graphs_off;
use crate::error::HookError;
use crate::find::Finder;
use crate::graph::Graph;
use crate::layout::{Arena, Layout, ggml_version};
use crate::session::{Engine, Inner, Session};
use crate::stock_chain::{STOCK_CHAIN, StockChain};

type InitBackend = unsafe extern "C" fn(sys::ggml_backend_dev_t, *const c_char) -> sys::ggml_backend_t;
type FreeBackend = unsafe extern "C" fn(sys::ggml_backend_t);
type GraphCompute = unsafe extern "C" fn(sys::ggml_backend_t, *mut sys::ggml_cgraph) -> sys::ggml_status;

/// The hook in ggml's devices. It stays installed while a clone of this handle or a context created under
/// [`Hook::bind`] lives; then every slot is put back.
#[derive(Debug, Clone)]
pub struct Hook(Arc<Installed>);

/// What the hook found in this process.
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
    /// How blocks computed there are capped.
    pub capping: String,
}

#[derive(Debug)]
struct Installed {
    layout: Layout,
    /// Whether ggml's CUDA backend was told to make no graphs of its own.
    ggml_graphs_off: bool,
    devices: Vec<sys::ggml_backend_dev_t>,
}

// SAFETY: devices are static objects of ggml's registry, valid until the process ends; only their init_backend
// slot is written, under INSTALLED's lock.
unsafe impl Send for Installed {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Installed {}

/// One hooked backend: a device's stream of one llama_context.
#[derive(Debug)]
struct Backend {
    installed: Arc<Installed>,
    session: Arc<Inner>,
    free: FreeBackend,
    graph_compute: GraphCompute,
    /// It is ggml's CPU backend, which runs inserted nodes.
    is_cpu: bool,
    name: String,
    scratch: Mutex<Scratch>,
}

/// Reused from graph to graph. A backend computes one graph at a time.
#[derive(Debug)]
struct Scratch {
    finder: Finder,
    arena: Arena,
    staging: Vec<f32>,
    device: Slot,
    chain: StockChain,
}

/// The hook of this process, if one is installed.
static INSTALLED: Mutex<Weak<Installed>> = Mutex::new(Weak::new());

/// Our `init_backend`, by the one address that is written to slots and compared with.
static OURS: InitBackend = init_backend;

/// Each device's own `init_backend`, by the device's address. Never forgotten: a device may call our replacement
/// at the very moment at which it is taken back.
static ORIGINALS: LazyLock<RwLock<HashMap<usize, InitBackend>>> = LazyLock::new(RwLock::default);

/// Hooked backends by address.
static BACKENDS: LazyLock<RwLock<HashMap<usize, Arc<Backend>>>> = LazyLock::new(RwLock::default);

thread_local! {
    /// The session whose context is being created on this thread.
    static BINDING: RefCell<Option<(Session, Arc<Installed>)>> = const { RefCell::new(None) };
}

impl Hook {
    /// Installs the hook: measures ggml's layout and replaces `init_backend` of every device. Contexts that are
    /// created under [`Hook::bind`] from now on can be capped; others run as before. A second call returns the
    /// hook that is there.
    ///
    /// Backends must have been registered (`LlamaBackend::init`; with dynamically loaded ones, loaded).
    ///
    /// # Errors
    /// [`HookError::Layout`] when this ggml is not laid out as needed, [`HookError::NoDevice`].
    pub fn install() -> Result<Self, HookError> {
        let mut slot = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(installed) = slot.upgrade() {
            return Ok(Self(installed));
        }
        let layout = Layout::probe()?;
        // SAFETY: plain queries of ggml's registry.
        let devices: Vec<_> =
            unsafe { (0..sys::ggml_backend_dev_count()).map(|i| sys::ggml_backend_dev_get(i)).collect() };
        if devices.is_empty() {
            return Err(HookError::NoDevice);
        }
        let mut originals = ORIGINALS.write().unwrap_or_else(PoisonError::into_inner);
        let mut unhooked = Vec::new();
        for &device in &devices {
            // SAFETY: the device is a mutable static of its backend, and the slot is where ggml itself reads it.
            match unsafe { init_slot(device, layout).read() } {
                Some(found) if std::ptr::fn_addr_eq(found, OURS) => {}
                Some(found) => match originals.get(&(device as usize)) {
                    // Somebody has put a function of theirs over ours, which calls ours. If ours called it in turn,
                    // neither would ever return; ours is still reached, and still calls the device's own.
                    Some(&own) if !std::ptr::fn_addr_eq(found, own) => {
                        let device = device_name(device);
                        tracing::debug!(device, "another library has wrapped the hook: it stays within");
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
            // SAFETY: as above; a slot is one aligned word that holds a working function before and after.
            unsafe { init_slot(device, layout).write(Some(OURS)) };
        }
        let ggml_graphs_off = ggml_graphs_off();
        let installed = Arc::new(Installed { layout, ggml_graphs_off, devices });
        *slot = Arc::downgrade(&installed);
        Ok(Self(installed))
    }

    /// Runs `create`, which makes one llama_context on this thread: the backends that it initialises belong to
    /// `session`. Check [`Session::is_bound`] afterwards if `create` may not have made any.
    pub fn bind<R>(&self, session: &Session, create: impl FnOnce() -> R) -> R {
        struct Unbind(Option<(Session, Arc<Installed>)>);
        impl Drop for Unbind {
            fn drop(&mut self) {
                BINDING.set(self.0.take());
            }
        }
        let _unbind = Unbind(BINDING.replace(Some((session.clone(), Arc::clone(&self.0)))));
        create()
    }

    /// What was found in this process.
    #[must_use]
    pub fn report(&self) -> HookReport {
        let layout = self.0.layout;
        let uses = layout.graph_uses.map(|uses| ("ggml_cgraph.use_counts", uses.counts));
        let slots = [
            ("ggml_backend_device.iface.init_backend", layout.device_init_backend),
            ("ggml_backend.iface.free", layout.backend_free),
            ("ggml_backend.iface.graph_compute", layout.backend_graph_compute),
            ("ggml_cgraph.n_nodes", layout.graph_n_nodes),
            ("ggml_cgraph.n_leafs", layout.graph_n_leafs),
            ("ggml_cgraph.nodes", layout.graph_nodes),
            ("ggml_cgraph.uid", layout.graph_uid),
        ];
        HookReport {
            ggml: ggml_version(),
            slots: slots.into_iter().chain(uses).collect(),
            devices: self.0.devices.iter().map(|&d| device_report(d)).collect(),
        }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let slot = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        // Between our last handle going and this lock, another thread may have installed the hook anew.
        if slot.strong_count() > 0 {
            return;
        }
        let originals = ORIGINALS.read().unwrap_or_else(PoisonError::into_inner);
        for &device in &self.devices {
            // SAFETY: as in `install`. Only our own replacement is taken back.
            unsafe {
                let slot = init_slot(device, self.layout);
                if slot.read().is_some_and(|found| std::ptr::fn_addr_eq(found, OURS)) {
                    slot.write(originals.get(&(device as usize)).copied());
                }
            }
        }
    }
}

fn device_report(device: sys::ggml_backend_dev_t) -> DeviceReport {
    // SAFETY: the description is a NUL-terminated string that lives as long as the device.
    let description =
        unsafe { CStr::from_ptr(sys::ggml_backend_dev_description(device)) }.to_string_lossy().into_owned();
    let capping = match capping(device) {
        _ if is_cpu(device) => INSERTED.into(),
        None => VIEWS.into(),
        Some(Ok(())) => ON_DEVICE.into(),
        Some(Err(reason)) => format!("{VIEWS}: {reason}"),
    };
    DeviceReport { name: device_name(device), description, capping }
}

const INSERTED: &str = "caps are nodes in the backend's own graph";
pub(crate) const VIEWS: &str = "the graph is cut at capped blocks, caps run on the host";

const NEEDS_GRAPHS_OFF: &str = "one graph per token was asked for, but ggml makes graphs of its own; start the \
    program with GGML_CUDA_DISABLE_GRAPHS=1";

fn device_name(device: sys::ggml_backend_dev_t) -> String {
    // SAFETY: the name is a NUL-terminated string that lives as long as the device.
    unsafe { CStr::from_ptr(sys::ggml_backend_dev_name(device)) }.to_string_lossy().into_owned()
}

/// Whether this is ggml's own CPU backend, the one that can run GGML_OP_MAP_CUSTOM1 nodes.
fn is_cpu(device: sys::ggml_backend_dev_t) -> bool {
    // SAFETY: plain queries of a device of the registry; the name is NUL-terminated.
    unsafe {
        sys::ggml_backend_dev_type(device) == sys::GGML_BACKEND_DEVICE_TYPE_CPU
            && CStr::from_ptr(sys::ggml_backend_reg_name(sys::ggml_backend_dev_backend_reg(device))) == c"CPU"
    }
}

/// # Safety
/// `device` must be a device of ggml's registry.
unsafe fn init_slot(device: sys::ggml_backend_dev_t, layout: Layout) -> *mut Option<InitBackend> {
    // SAFETY: the offset is within the device.
    unsafe { device.byte_add(layout.device_init_backend).cast() }
}

/// # Safety
/// `backend` must be a live ggml backend.
unsafe fn compute_slot(backend: sys::ggml_backend_t, layout: Layout) -> *mut Option<GraphCompute> {
    // SAFETY: the offset is within the backend.
    unsafe { backend.byte_add(layout.backend_graph_compute).cast() }
}

/// # Safety
/// `backend` must be a live ggml backend.
unsafe fn free_slot(backend: sys::ggml_backend_t, layout: Layout) -> *mut Option<FreeBackend> {
    // SAFETY: the offset is within the backend.
    unsafe { backend.byte_add(layout.backend_free).cast() }
}

/// Replaces a device's `init_backend`: makes the backend as before, and hooks it if a context is being bound.
unsafe extern "C" fn init_backend(
    device: sys::ggml_backend_dev_t,
    params: *const c_char,
) -> sys::ggml_backend_t {
    let original = ORIGINALS.read().unwrap_or_else(PoisonError::into_inner).get(&(device as usize)).copied();
    // Null is ggml's own way of saying that a backend could not be made.
    let Some(original) = original else { return std::ptr::null_mut() };
    // SAFETY: the device's own function with the arguments it was called with.
    let backend = unsafe { original(device, params) };
    if backend.is_null() {
        return backend;
    }
    let Some((session, installed)) = BINDING.with(|b| b.try_borrow().ok().and_then(|b| b.clone())) else {
        return backend;
    };
    let hooked = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `backend` was just made by `device`.
        unsafe { hook_backend(backend, device, installed, &session) }
    }));
    if let Err(error) = hooked.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))) {
        session.0.fail(error);
    }
    backend
}

/// # Safety
/// `backend` must have been made by `device` and not be in use yet.
unsafe fn hook_backend(
    backend: sys::ggml_backend_t,
    device: sys::ggml_backend_dev_t,
    installed: Arc<Installed>,
    session: &Session,
) -> Result<(), HookError> {
    let layout = installed.layout;
    // SAFETY: the slots are where ggml itself reads them; each backend has its own copy of its interface.
    let (compute, free) =
        unsafe { (compute_slot(backend, layout).read(), free_slot(backend, layout).read()) };
    let (Some(graph_compute), Some(free)) = (compute, free) else {
        return Err(HookError::Layout {
            version: ggml_version(),
            what: format!("a backend of {} has no graph_compute or no free", device_name(device)),
        });
    };
    let entry = Backend {
        installed,
        session: Arc::clone(&session.0),
        free,
        graph_compute,
        is_cpu: is_cpu(device),
        name: device_name(device),
        scratch: Mutex::new(Scratch {
            finder: Finder::default(),
            arena: Arena::new(64)?,
            staging: Vec::new(),
            device: Slot::new(device, &session.0),
            chain: StockChain::default(),
        }),
    };
    BACKENDS.write().unwrap_or_else(PoisonError::into_inner).insert(backend as usize, Arc::new(entry));
    // SAFETY: as above; from here on our functions find the entry.
    unsafe {
        compute_slot(backend, layout).write(Some(hooked_compute));
        free_slot(backend, layout).write(Some(hooked_free));
    }
    session.0.set_bound_to_backend();
    Ok(())
}

/// Replaces a backend's `free`: forgets the backend, then frees it as before.
unsafe extern "C" fn hooked_free(backend: sys::ggml_backend_t) {
    let entry = BACKENDS.write().unwrap_or_else(PoisonError::into_inner).remove(&(backend as usize));
    if let Some(entry) = entry {
        let layout = entry.installed.layout;
        let _no_capture = between_captures();
        // What is on the GPU has to be done with the backend's memory before that goes.
        let closed = catch_unwind(AssertUnwindSafe(|| {
            let mut scratch = entry.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            scratch.device.close(&entry.session);
            scratch.chain.close(backend);
        }));
        if let Err(panic) = closed {
            entry.session.fail(panicked(panic.as_ref()));
        }
        // SAFETY: the backend is still alive; its slots get their own functions back before its own free runs.
        unsafe {
            compute_slot(backend, layout).write(Some(entry.graph_compute));
            free_slot(backend, layout).write(Some(entry.free));
            (entry.free)(backend);
        }
    }
}

/// Replaces a backend's `graph_compute`.
unsafe extern "C" fn hooked_compute(
    backend: sys::ggml_backend_t,
    graph: *mut sys::ggml_cgraph,
) -> sys::ggml_status {
    let entry = BACKENDS.read().unwrap_or_else(PoisonError::into_inner).get(&(backend as usize)).cloned();
    let Some(entry) = entry else { return sys::GGML_STATUS_FAILED };
    let computed = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: ggml hands us a graph that is ours until we return.
        let graph = unsafe { Graph::new(graph, entry.installed.layout) };
        // SAFETY: the backend's own function, on the backend it came from.
        let compute = |graph: &Graph| unsafe { (entry.graph_compute)(backend, graph.raw()) };
        entry.compute(backend, &graph, &compute)
    }));
    computed.unwrap_or_else(|panic| {
        entry.session.fail(panicked(panic.as_ref()));
        sys::GGML_STATUS_FAILED
    })
}

impl Backend {
    fn compute(
        &self,
        backend: sys::ggml_backend_t,
        graph: &Graph,
        compute: &dyn Fn(&Graph) -> sys::ggml_status,
    ) -> sys::ggml_status {
        let config = self.session.config();
        let Some(wanted) = config.wanted(self.session.model.width) else { return compute(graph) };
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { finder, arena, staging, device, chain } = &mut *scratch;
        let outputs = match finder.find(graph, wanted) {
            Ok(outputs) => outputs,
            Err(error) => {
                self.session.fail(error);
                return sys::GGML_STATUS_FAILED;
            }
        };
        // The CPU runs no captured graphs. ggml aborts the process where it begins a capture inside of ours.
        let asked = config.engine == Engine::DeviceGraph && !self.is_cpu;
        let one_graph = asked && self.installed.ggml_graphs_off;
        if outputs.is_empty() && !one_graph {
            return compute(graph);
        }
        if let Err(error) = self.session.claims(backend as usize, &outputs) {
            self.session.fail(error);
            return sys::GGML_STATUS_FAILED;
        }
        let norms_stay = |why: NormObstacle| {
            let capped = outputs.iter().filter(|o| o.rows() > 0 && config.caps_of(o.block).is_some());
            for output in capped.filter(|_| config.fused_norm) {
                self.session.norm_behind(&self.name, output.block, Some(why));
            }
        };
        if config.engine == Engine::StockChain {
            norms_stay(NormObstacle::StockOperations);
            self.session.used(&self.name, STOCK_CHAIN, None);
            let (outputs, config, session) = (&outputs[..], &config, &*self.session);
            let mut pass =
                Pass { graph, outputs, backend, staging, config, session, compute, one_graph: false };
            return chain.compute(&mut pass, &self.name);
        }
        if self.is_cpu && config.engine != Engine::Views {
            norms_stay(NormObstacle::NoGpu);
            self.session.used(&self.name, INSERTED, None);
            return run_inserted(graph, &outputs, arena, &config, &self.session, compute);
        }
        // Block outputs without rows may have no memory; every graph with caps to run has one with.
        let address = outputs.iter().find(|o| o.rows() > 0).map(|o| o.place().0 as u64);
        let path = match address {
            Some(address) => device.path(backend, &self.name, address, &self.session),
            // There is nothing to cap, but ggml does not capture it either.
            None if one_graph => device.path_of(backend, &self.name, graph, &self.session),
            None => None,
        };
        if let Some(path) = path {
            let mut path = path.lock().unwrap_or_else(PoisonError::into_inner);
            let (outputs, config, session) = (&outputs[..], &config, &*self.session);
            if asked && !one_graph {
                session.used(&self.name, ON_DEVICE, Some(NEEDS_GRAPHS_OFF));
            }
            let pass = Pass { graph, outputs, backend, staging, config, session, compute, one_graph };
            return path.compute(pass);
        }
        if address.is_none() {
            let status = compute(graph);
            if status == sys::GGML_STATUS_SUCCESS {
                outputs.iter().for_each(|output| self.session.saw_no_rows(output.block, &config));
            }
            return status;
        }
        let slow = device.reason().or((!self.is_cpu).then_some("this backend has no kernels of axiscap's"));
        self.session.used(&self.name, VIEWS, slow);
        norms_stay(NormObstacle::NoGpu);
        run_views(graph, &outputs, backend, staging, &config, &self.session, compute)
    }
}
