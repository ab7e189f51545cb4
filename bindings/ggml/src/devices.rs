//! ggml's devices, and the two of their functions that are replaced while the hook is installed.
//!
//! `init_backend` makes the backends of contexts. `get_type` is what llama.cpp asks every device for as it loads
//! a model (`make_cpu_buft_list`), before it creates a context: devices that were registered since the hook was
//! installed (`--rpc`) are hooked then.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::panic::catch_unwind;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, Weak};

use crate::error::HookError;
use crate::hook::init_backend;
use crate::host::{self, Device, DeviceType, Layout, OwnGraphs, api, ggml_version};

type InitBackend = unsafe extern "C" fn(Device, *const c_char) -> host::Backend;
type GetType = unsafe extern "C" fn(Device) -> DeviceType;

/// The hook in ggml's devices. Each slot gets its own function back when the value is dropped.
#[derive(Debug)]
pub(crate) struct Installed {
    layout: &'static Layout,
    own_graphs: OwnGraphs,
    devices: RwLock<Vec<Device>>,
}

// SAFETY: devices are objects of ggml's registry, valid until the process ends. Only two of their slots are
// written, under INSTALLED's lock.
unsafe impl Send for Installed {}
// SAFETY: shared access only reads, apart from the slots, which are written under INSTALLED's lock.
unsafe impl Sync for Installed {}

/// The own functions of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Originals {
    pub(crate) init: InitBackend,
    get_type: GetType,
}

/// The hook of this process, if one is installed.
static INSTALLED: Mutex<Weak<Installed>> = Mutex::new(Weak::new());

/// Our `init_backend`. A static gives it one address, because a function may have several.
static OUR_INIT: InitBackend = init_backend;

/// Our `get_type`.
static OUR_GET_TYPE: GetType = get_type;

/// The own functions of each device, by the device's address. Entries are kept until the process ends, because
/// a thread may be calling the replacement while it is taken back.
static ORIGINALS: LazyLock<RwLock<HashMap<usize, Originals>>> = LazyLock::new(RwLock::default);

/// Returns the own functions of a device that is hooked, or was.
pub(crate) fn originals(device: Device) -> Option<Originals> {
    ORIGINALS.read().unwrap_or_else(PoisonError::into_inner).get(&(device as usize)).copied()
}

impl Installed {
    /// Installs the hook in ggml, which is known, or returns the installed one with further devices hooked.
    ///
    /// # Errors
    /// [`HookError::Layout`], [`HookError::NoDevice`].
    pub(crate) fn in_host() -> Result<Arc<Self>, HookError> {
        let mut slot = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(installed) = slot.upgrade() {
            installed.hook_devices()?;
            return Ok(installed);
        }
        let layout = Layout::probe()?;
        let own_graphs = OwnGraphs::of_this_process();
        let installed = Arc::new(Self { layout, own_graphs, devices: RwLock::default() });
        installed.hook_devices()?;
        *slot = Arc::downgrade(&installed);
        Ok(installed)
    }

    pub(crate) fn layout(&self) -> &'static Layout {
        self.layout
    }

    pub(crate) fn own_graphs(&self) -> OwnGraphs {
        self.own_graphs
    }

    /// Returns the devices that are hooked.
    pub(crate) fn list(&self) -> Vec<Device> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the functions of every device of ggml's that does not have them replaced. To be called under
    /// the lock of `INSTALLED`.
    fn hook_devices(&self) -> Result<(), HookError> {
        let devices = all_devices();
        if devices.is_empty() {
            return Err(HookError::NoDevice);
        }
        let mut originals = ORIGINALS.write().unwrap_or_else(PoisonError::into_inner);
        let mut unhooked = Vec::new();
        for &device in &devices {
            // SAFETY: the device is a mutable object of its backend, and the slots are where ggml itself reads
            // them.
            let found =
                unsafe { (init_slot(device, self.layout).read(), type_slot(device, self.layout).read()) };
            let (Some(init), Some(get_type)) = found else {
                return Err(HookError::Layout {
                    version: ggml_version(),
                    what: format!("device {} has no init_backend or no get_type", device_name(device)),
                });
            };
            if std::ptr::fn_addr_eq(init, OUR_INIT) {
                continue;
            }
            match originals.get(&(device as usize)) {
                // Another library has replaced our function by one that calls it. Ours is still reached, and
                // calls the device's own. If it called the other library's, neither would return.
                Some(own) if !std::ptr::fn_addr_eq(init, own.init) => {
                    let device = device_name(device);
                    tracing::debug!(device, "another library has wrapped the hook, and calls it");
                }
                known => {
                    let own_type = known.map_or(get_type, |known| known.get_type);
                    originals.insert(device as usize, Originals { init, get_type: own_type });
                    unhooked.push(device);
                }
            }
        }
        drop(originals);
        for device in unhooked {
            // SAFETY: the device is a mutable object of its backend. Each slot is one aligned word, which holds
            // a valid function before and after.
            unsafe {
                type_slot(device, self.layout).write(Some(OUR_GET_TYPE));
                init_slot(device, self.layout).write(Some(OUR_INIT));
            }
        }
        *self.devices.write().unwrap_or_else(PoisonError::into_inner) = devices;
        Ok(())
    }

    /// Checks that all of ggml's devices are hooked.
    ///
    /// # Errors
    /// [`HookError::LateDevices`].
    pub(crate) fn check_devices(&self) -> Result<(), HookError> {
        let (all, hooked) = (all_devices(), self.list());
        let mut added = all.iter().filter(|device| !hooked.contains(device)).map(|&late| device_name(late));
        let Some(first) = added.next() else { return Ok(()) };
        let added = added.fold(first, |list, name| format!("{list}, {name}"));
        Err(HookError::LateDevices { hooked: hooked.len(), now: all.len(), added })
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let slot = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have installed the hook again before this lock was taken.
        if slot.strong_count() > 0 {
            return;
        }
        for device in self.list() {
            let Some(own) = originals(device) else { continue };
            // SAFETY: the device is a mutable object of its backend, and the slots are where ggml itself reads
            // them. Only our own replacements are taken back.
            unsafe {
                let init = init_slot(device, self.layout);
                if init.read().is_some_and(|found| std::ptr::fn_addr_eq(found, OUR_INIT)) {
                    init.write(Some(own.init));
                }
                let get_type = type_slot(device, self.layout);
                if get_type.read().is_some_and(|found| std::ptr::fn_addr_eq(found, OUR_GET_TYPE)) {
                    get_type.write(Some(own.get_type));
                }
            }
        }
    }
}

/// Replaces a device's `get_type`. Hooks devices that were registered since the last call, then answers as
/// before.
unsafe extern "C" fn get_type(device: Device) -> DeviceType {
    let _ = catch_unwind(hook_late_devices);
    match originals(device) {
        // SAFETY: the device's own function with the argument it was called with.
        Some(own) => unsafe { (own.get_type)(device) },
        // Entries are never removed.
        None => 0,
    }
}

/// Hooks devices that were registered since the hook was installed. A device that cannot be hooked is found
/// as a context is created ([`Installed::check_devices`]).
fn hook_late_devices() {
    // ggml asks for types while the hook measures its layout as well.
    let installed = INSTALLED.try_lock().ok().and_then(|slot| slot.upgrade());
    let Some(installed) = installed else { return };
    let hooked = installed.list();
    if all_devices().len() == hooked.len() {
        return;
    }
    let again = {
        let _slot = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        installed.hook_devices()
    };
    match again {
        Ok(()) => {
            let added = installed.list().into_iter().filter(|device| !hooked.contains(device));
            let added: Vec<_> = added.map(device_name).collect();
            tracing::info!("devices that were registered later are hooked, too: {}", added.join(", "));
        }
        Err(error) => tracing::error!("devices that were registered later cannot be hooked: {error}"),
    }
}

fn all_devices() -> Vec<Device> {
    // SAFETY: plain queries of ggml's registry.
    unsafe { (0..(api().ggml_backend_dev_count)()).map(|i| (api().ggml_backend_dev_get)(i)).collect() }
}

pub(crate) fn device_name(device: Device) -> String {
    // SAFETY: the name is a NUL-terminated string that lives as long as the device.
    unsafe { CStr::from_ptr((api().ggml_backend_dev_name)(device)) }.to_string_lossy().into_owned()
}

/// Whether this is ggml's own CPU backend, which can run GGML_OP_MAP_CUSTOM1 nodes.
pub(crate) fn is_cpu(device: Device) -> bool {
    registry_name(device) == c"CPU"
}

/// Whether another machine computes for this device: ggml's RPC backend.
pub(crate) fn is_rpc(device: Device) -> bool {
    registry_name(device) == c"RPC"
}

fn registry_name<'a>(device: Device) -> &'a CStr {
    // SAFETY: plain queries of a device of the registry. The name is NUL-terminated, and lives as long as the
    // registry.
    unsafe { CStr::from_ptr((api().ggml_backend_reg_name)((api().ggml_backend_dev_backend_reg)(device))) }
}

/// # Safety
/// `device` must be a device of ggml's registry.
unsafe fn init_slot(device: Device, layout: &Layout) -> *mut Option<InitBackend> {
    // SAFETY: the offset is within the device.
    unsafe { device.byte_add(layout.device_init_backend).cast() }
}

/// # Safety
/// `device` must be a device of ggml's registry.
unsafe fn type_slot(device: Device, layout: &Layout) -> *mut Option<GetType> {
    // SAFETY: the offset is within the device.
    unsafe { device.byte_add(layout.device_get_type).cast() }
}
