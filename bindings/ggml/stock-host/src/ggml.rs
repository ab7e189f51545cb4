//! A build of ggml in a folder, and a small graph of two block outputs.
//!
//! ```text
//! l_out-0 = ADD(input, added 0)    l_out-1 = ADD(l_out-0, added 1)    result_output = ADD(l_out-1, input)
//! ```

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::mem::ManuallyDrop;
use std::ptr::{NonNull, null};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Width of the rows.
pub const WIDTH: usize = 72;
/// Rows of the graph.
pub const ROWS: usize = 5;
/// Block outputs of the graph.
pub const OUTPUTS: usize = 2;

type Result<T> = std::result::Result<T, String>;
type Address = *mut c_void;

/// Returns the rows that enter the graph.
pub fn input() -> Vec<f32> {
    (0..WIDTH * ROWS).map(|i| ((37 * i) % 101) as f32 / 64.0 - 0.8).collect()
}

/// Returns what a block adds to the residual stream.
pub fn added(block: usize) -> Vec<f32> {
    (0..WIDTH * ROWS).map(|i| ((53 * i + block) % 89) as f32 / 128.0 - 0.3).collect()
}

/// The loaded libraries of one build. They stay loaded: their worker threads live until the process ends.
pub struct Ggml(ManuallyDrop<Vec<Library>>);

/// A backend of the build's CPU device.
pub struct Backend<'a> {
    raw: Address,
    ggml: &'a Ggml,
}

/// Calls a function of the build by its name.
macro_rules! call {
    ($ggml:expr, fn $name:ident($($arg:expr => $ty:ty),* $(,)?) -> $result:ty) => {{
        let symbol = $ggml.required(CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes())
            .unwrap_or(c""))?;
        // SAFETY: the function of this name has this signature in ggml's headers since 0.9.4. The arguments
        // are objects of the same build, alive for the call.
        unsafe {
            let function = std::mem::transmute::<Address, unsafe extern "C" fn($($ty),*) -> $result>(symbol.as_ptr());
            function($($arg),*)
        }
    }};
}

impl Ggml {
    /// Loads `libggml-base`, `libggml-cpu` where there is one, and `libggml`. Has the build load its CPU
    /// backend where that is a file of its own.
    pub fn load(folder: &str) -> Result<Self> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .map_err(|error| error.to_string())?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("libggml") && name.ends_with(".so"))
            .collect();
        names.sort();
        let (backends, libraries): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.starts_with("libggml-cpu-"));
        let rank = |name: &String| (!name.contains("-base"), !name.contains("-cpu"), name.clone());
        let mut libraries: Vec<_> = libraries.iter().collect();
        libraries.sort_by_key(|name| rank(name));
        let open = |name: &String| {
            // SAFETY: initialisers of ggml's libraries, which any program runs that links them.
            unsafe { Library::open(Some(format!("{folder}/{name}")), RTLD_NOW | RTLD_GLOBAL) }
                .map_err(|error| error.to_string())
        };
        let ggml = Self(ManuallyDrop::new(libraries.into_iter().map(open).collect::<Result<_>>()?));
        if ggml.0.is_empty() {
            return Err("no libggml*.so in this folder".into());
        }
        if !backends.is_empty() {
            let path = CString::new(folder).map_err(|error| error.to_string())?;
            call!(ggml, fn ggml_backend_load_all_from_path(path.as_ptr() => *const c_char) -> ());
        }
        Ok(ggml)
    }

    /// Returns the address of a symbol.
    pub fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        self.0.iter().find_map(|library| {
            // SAFETY: the address is only stored here.
            let symbol = unsafe { library.get::<Address>(name.to_bytes_with_nul()) }.ok()?;
            NonNull::new(symbol.as_raw_ptr())
        })
    }

    fn required(&self, name: &CStr) -> Result<NonNull<c_void>> {
        self.symbol(name).ok_or_else(|| format!("no function {name:?}"))
    }

    /// Loads the plugin and has it attach itself. Returns what it returns, 0 for success.
    pub fn attach(&self, plugin: &str) -> Result<c_int> {
        // SAFETY: the plugin's library does nothing as it is loaded.
        let library = unsafe { Library::new(plugin) }.map_err(|error| error.to_string())?;
        // SAFETY: the function has this signature.
        let attach = unsafe { library.get::<unsafe extern "C" fn() -> c_int>(b"axiscap_attach\0") };
        // SAFETY: it may be called at any time.
        Ok(unsafe { attach.map_err(|error| error.to_string())?() })
    }

    /// Returns the number of devices.
    pub fn devices(&self) -> Result<usize> {
        Ok(call!(self, fn ggml_backend_dev_count() -> usize))
    }

    /// Makes a backend of the CPU device.
    pub fn backend(&self) -> Result<Backend<'_>> {
        let registry = call!(self, fn ggml_backend_reg_by_name(c"CPU".as_ptr() => *const c_char) -> Address);
        if registry.is_null() {
            return Err("no CPU backend is registered".into());
        }
        let device = call!(self, fn ggml_backend_reg_dev_get(registry => Address, 0 => usize) -> Address);
        let raw =
            call!(self, fn ggml_backend_dev_init(device => Address, null() => *const c_char) -> Address);
        if raw.is_null() {
            Err("the CPU device makes no backend".into())
        } else {
            Ok(Backend { raw, ggml: self })
        }
    }

    /// Computes the graph on a backend that is made for it outside of any session.
    pub fn compute_unhooked(&self) -> Result<[Vec<f32>; OUTPUTS]> {
        self.compute(&self.backend()?)
    }

    /// Computes the graph and returns the rows of its block outputs.
    pub fn compute(&self, backend: &Backend<'_>) -> Result<[Vec<f32>; OUTPUTS]> {
        /// `ggml_init_params`
        #[repr(C)]
        struct InitParams {
            mem_size: usize,
            mem_buffer: Address,
            no_alloc: bool,
        }
        const F32: c_int = 0;
        let params = InitParams { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        let context = call!(self, fn ggml_init(params => InitParams) -> Address);
        let leaf = || -> Result<Address> {
            Ok(call!(self, fn ggml_new_tensor_2d(
                context => Address, F32 => c_int, WIDTH as i64 => i64, ROWS as i64 => i64
            ) -> Address))
        };
        let add = |a: Address, b: Address| -> Result<Address> {
            Ok(call!(self, fn ggml_add(context => Address, a => Address, b => Address) -> Address))
        };
        let leafs = [leaf()?, leaf()?, leaf()?];
        let mut outputs = [std::ptr::null_mut(); OUTPUTS];
        let mut rows = leafs[0];
        for (block, output) in outputs.iter_mut().enumerate() {
            rows = add(rows, leafs[1 + block])?;
            let name = CString::new(format!("l_out-{block}")).map_err(|error| error.to_string())?;
            call!(self, fn ggml_set_name(rows => Address, name.as_ptr() => *const c_char) -> Address);
            // A caller reads them, so no later node may take their memory.
            call!(self, fn ggml_set_output(rows => Address) -> ());
            *output = rows;
        }
        let end = add(rows, leafs[0])?;
        // As llama.cpp names logits, which end a micro-batch.
        call!(self, fn ggml_set_name(end => Address, c"result_output".as_ptr() => *const c_char) -> Address);
        let graph =
            call!(self, fn ggml_new_graph_custom(context => Address, 64 => usize, false => bool) -> Address);
        call!(self, fn ggml_build_forward_expand(graph => Address, end => Address) -> ());
        let buffer = call!(self, fn ggml_backend_alloc_ctx_tensors(
            context => Address, backend.raw => Address
        ) -> Address);
        if buffer.is_null() {
            return Err("the backend has no memory for the graph".into());
        }
        for (leaf, values) in leafs.into_iter().zip([input(), added(0), added(1)]) {
            call!(self, fn ggml_backend_tensor_set(
                leaf => Address, values.as_ptr().cast() => *const c_void, 0 => usize, size_of_val(&values[..]) => usize
            ) -> ());
        }
        let status =
            call!(self, fn ggml_backend_graph_compute(backend.raw => Address, graph => Address) -> c_int);
        let mut found = [const { Vec::new() }; OUTPUTS];
        for (output, rows) in outputs.into_iter().zip(&mut found) {
            *rows = vec![0.0_f32; WIDTH * ROWS];
            let bytes = size_of_val(&rows[..]);
            call!(self, fn ggml_backend_tensor_get(
                output => Address, rows.as_mut_ptr().cast() => Address, 0 => usize, bytes => usize
            ) -> ());
        }
        call!(self, fn ggml_backend_buffer_free(buffer => Address) -> ());
        call!(self, fn ggml_free(context => Address) -> ());
        if status == 0 { Ok(found) } else { Err(format!("ggml_backend_graph_compute: status {status}")) }
    }
}

impl Drop for Backend<'_> {
    fn drop(&mut self) {
        let free = || -> Result<()> {
            call!(self.ggml, fn ggml_backend_free(self.raw => Address) -> ());
            Ok(())
        };
        if let Err(error) = free() {
            eprintln!("warning: {error}");
        }
    }
}
