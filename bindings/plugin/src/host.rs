//! Finds the ggml of this process.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

/// A function that each ggml has, whose address tells two of them apart.
const ANY_FUNCTION: &CStr = c"ggml_backend_dev_count";

/// The ggml of this process: the library that its functions can be looked up in.
#[derive(Debug)]
pub(crate) struct Host {
    handle: NonNull<c_void>,
    path: String,
}

// SAFETY: a handle of dlopen can be used on any thread, and is never closed.
unsafe impl Send for Host {}

/// Reason why no ggml was found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("{}, named by AXISCAP_GGML, is not loaded in this process, or has no ggml; name the loaded libggml.so or libllama.so", .0.display())]
    Named(PathBuf),
    #[error(
        "no library of this process has ggml's functions: the program has ggml linked in and does not export it; use a llama.cpp with shared libraries, as the official builds are"
    )]
    None,
    #[error(
        "{0} has a ggml without `ggml_backend_dev_count`: it is older than ggml 0.9.4, or a fork; use a llama.cpp with ggml 0.9.4 or newer"
    )]
    Old(String),
    #[error(
        "several libraries of this process have a ggml of their own ({}); name the one to cap in AXISCAP_GGML", .0.join(", ")
    )]
    Several(Vec<String>),
}

impl Host {
    /// Returns the ggml that a caller belongs to (an address in its code), or that AXISCAP_GGML names, or else
    /// the only one of the process.
    pub(crate) fn find(caller: Option<usize>, named: Option<&Path>) -> Result<Self, HostError> {
        if let Some(path) = named {
            return Self::open(path).ok_or_else(|| HostError::Named(path.into()));
        }
        if let Some(host) = caller.and_then(library_of).and_then(|path| Self::open(&path)) {
            return Ok(host);
        }
        let mut found: Vec<Self> = Vec::new();
        for path in loaded_libraries() {
            let Some(host) = Self::open(&path) else { continue };
            // A library that depends on ggml finds the functions as well.
            if !found.iter().any(|other| other.symbol(ANY_FUNCTION) == host.symbol(ANY_FUNCTION)) {
                found.push(host);
            }
        }
        match found.len() {
            0 => Err(old_ggml().map_or(HostError::None, HostError::Old)),
            1 => Ok(found.remove(0)),
            _ => Err(HostError::Several(found.into_iter().map(|host| host.path).collect())),
        }
    }

    /// Returns the path of the other ggml that asks: that of the caller, or else any that is loaded, unless one is
    /// named. `None` if it is this one.
    pub(crate) fn other(&self, caller: Option<usize>, named: Option<&Path>) -> Option<String> {
        let is_other = |host: &Self| host.symbol(ANY_FUNCTION) != self.symbol(ANY_FUNCTION);
        let other = match (caller, named) {
            (Some(caller), _) => library_of(caller).and_then(|path| Self::open(&path)).filter(is_other),
            (None, Some(named)) => Self::open(named).filter(is_other),
            (None, None) => loaded_libraries().iter().filter_map(|path| Self::open(path)).find(is_other),
        };
        other.map(|other| other.path)
    }

    /// Opens a library that is loaded, if it finds ggml's functions. An empty path is the program's.
    fn open(path: &Path) -> Option<Self> {
        Self::open_with(path, ANY_FUNCTION)
    }

    /// Opens a library that is loaded, if it finds this function.
    fn open_with(path: &Path, function: &CStr) -> Option<Self> {
        let name = CString::new(path.as_os_str().as_bytes()).ok()?;
        let name = if name.is_empty() { std::ptr::null() } else { name.as_ptr() };
        // SAFETY: the name is null or NUL-terminated. The library is loaded already, so that no code of it
        // runs. The handle is never closed.
        let handle = NonNull::new(unsafe { libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD) })?;
        let path =
            if path.as_os_str().is_empty() { "the program".into() } else { path.display().to_string() };
        let host = Self { handle, path };
        host.symbol(function)?;
        Some(host)
    }

    /// Returns the address of a function.
    pub(crate) fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the handle is open, and the name NUL-terminated.
        NonNull::new(unsafe { libc::dlsym(self.handle.as_ptr(), name.as_ptr()) })
    }

    /// Returns the path of the library.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns the registry of the backend of this name; null if there is none.
    pub(crate) fn registry_by_name(&self, name: &CStr) -> *const c_void {
        let Some(function) = self.symbol(c"ggml_backend_reg_by_name") else { return std::ptr::null() };
        // SAFETY: ggml's function of this name has this signature, and the name is NUL-terminated.
        unsafe {
            let function: extern "C" fn(*const c_char) -> *const c_void =
                std::mem::transmute(function.as_ptr());
            function(name.as_ptr())
        }
    }

    /// Returns the registry of the first device; null if there is none.
    pub(crate) fn first_registry(&self) -> *const c_void {
        let functions = [
            self.symbol(ANY_FUNCTION),
            self.symbol(c"ggml_backend_dev_get"),
            self.symbol(c"ggml_backend_dev_backend_reg"),
        ];
        let [Some(count), Some(get), Some(registry)] = functions else { return std::ptr::null() };
        // SAFETY: ggml's functions of these names have these signatures. The first device is asked for only
        // if there is one.
        unsafe {
            let count: extern "C" fn() -> usize = std::mem::transmute(count.as_ptr());
            let get: extern "C" fn(usize) -> *const c_void = std::mem::transmute(get.as_ptr());
            let registry: extern "C" fn(*const c_void) -> *const c_void =
                std::mem::transmute(registry.as_ptr());
            if count() == 0 { std::ptr::null() } else { registry(get(0)) }
        }
    }

    /// Registers a backend, as ggml does with those that it loads.
    pub(crate) fn register(&self, registry: *const c_void) {
        let Some(function) = self.symbol(c"ggml_backend_register") else { return };
        // SAFETY: ggml's function of this name has this signature, and the registry is never freed.
        unsafe {
            let function: extern "C" fn(*const c_void) = std::mem::transmute(function.as_ptr());
            function(registry);
        }
    }
}

/// Returns the path of a library with a ggml that has no devices.
fn old_ggml() -> Option<String> {
    loaded_libraries().iter().find_map(|path| Host::open_with(path, c"ggml_init")).map(|host| host.path)
}

/// Returns what the loader knows of the library that holds an address.
fn loader_info(address: usize) -> Option<libc::Dl_info> {
    // SAFETY: an all-zero value is valid for this plain structure.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for, and `found` can be written.
    let known = unsafe { libc::dladdr(address as *const c_void, &raw mut found) };
    (known != 0).then_some(found)
}

/// Whether an address is in this library.
pub(crate) fn is_own(address: usize) -> bool {
    let begin = |address| loader_info(address).map(|found| found.dli_fbase);
    begin(address) == begin(is_own as *const () as usize)
}

/// Returns the path of the loaded library that holds an address. An empty path is the program's.
pub(crate) fn library_of(address: usize) -> Option<PathBuf> {
    let found = loader_info(address).filter(|found| !found.dli_fname.is_null())?;
    // SAFETY: the name of a loaded library, NUL-terminated.
    let name = unsafe { CStr::from_ptr(found.dli_fname) };
    Some(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())).into())
}

/// Returns the paths of the loaded libraries. The program's is empty.
fn loaded_libraries() -> Vec<PathBuf> {
    unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: libc::size_t, paths: *mut c_void) -> c_int {
        // SAFETY: the loader passes a valid entry, and `paths` is the vector below. The name is null or
        // NUL-terminated.
        unsafe {
            let name = (*info).dlpi_name;
            let name = if name.is_null() { c"" } else { CStr::from_ptr(name) };
            let paths = &mut *paths.cast::<Vec<PathBuf>>();
            paths.push(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())).into());
        }
        0
    }
    let mut paths = Vec::<PathBuf>::new();
    // SAFETY: `add` takes the vector that it is passed, and does not unwind but for want of memory.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut paths).cast()) };
    paths
}
