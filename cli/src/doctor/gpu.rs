//! The NVIDIA driver, asked without needing it.

use std::ffi::{c_char, c_int};

use libloading::Library;
use serde::Serialize;

/// What the driver says.
#[derive(Debug, Serialize)]
pub(super) struct Driver {
    /// Whether it can be loaded and answers.
    present: bool,
    /// The newest CUDA it runs, e.g. `13.0`.
    cuda: Option<String>,
    /// Names of its GPUs.
    gpus: Vec<String>,
    /// What is wrong, and what to do about it.
    missing: Option<String>,
}

#[cfg(windows)]
const LIBRARY: &str = "nvcuda.dll";
#[cfg(not(windows))]
const LIBRARY: &str = "libcuda.so.1";

impl Driver {
    /// Loads the driver's library and asks it.
    pub(super) fn probe() -> Self {
        let nothing =
            |missing: String| Self { present: false, cuda: None, gpus: Vec::new(), missing: Some(missing) };
        // SAFETY: NVIDIA's library, whose initialisers have no requirements.
        let library = match unsafe { Library::new(LIBRARY) } {
            Ok(library) => library,
            Err(_) => {
                return nothing(format!(
                    "{LIBRARY} is not there: no NVIDIA driver is installed; for a GPU install the driver (Debian: nvidia-driver, or libcuda1 in a container with a GPU), otherwise nothing is missing: everything runs on the CPU"
                ));
            }
        };
        match Self::ask(&library) {
            Ok(driver) => driver,
            Err(reason) => nothing(format!(
                "{LIBRARY} is there, but {reason}; check with nvidia-smi that the kernel module of the same version is loaded and this user may use /dev/nvidia*"
            )),
        }
    }

    fn ask(library: &Library) -> Result<Self, String> {
        // SAFETY: names and types are those of cuda.h; the symbols do not outlive the library.
        let (init, version, count, name) = unsafe {
            (
                symbol::<unsafe extern "C" fn(u32) -> c_int>(library, "cuInit")?,
                symbol::<unsafe extern "C" fn(*mut c_int) -> c_int>(library, "cuDriverGetVersion")?,
                symbol::<unsafe extern "C" fn(*mut c_int) -> c_int>(library, "cuDeviceGetCount")?,
                symbol::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(
                    library,
                    "cuDeviceGetName",
                )?,
            )
        };
        // SAFETY: flags must be 0.
        match unsafe { init(0) } {
            0 => {}
            100 => return Err("it finds no GPU (CUDA error 100)".into()),
            code => return Err(format!("it does not start (CUDA error {code})")),
        }
        let (mut cuda, mut gpus) = (0, 0);
        // SAFETY: both write one int.
        let codes = unsafe { (version(&mut cuda), count(&mut gpus)) };
        if codes != (0, 0) {
            return Err(format!("it does not answer (CUDA errors {} and {})", codes.0, codes.1));
        }
        let gpus = (0..gpus).map(|gpu| {
            let mut text = [0u8; 256];
            // SAFETY: writes at most the length given, with a final NUL.
            let code = unsafe { name(text.as_mut_ptr().cast(), text.len() as c_int - 1, gpu) };
            let end = text.iter().position(|&byte| byte == 0).unwrap_or(0);
            if code == 0 { String::from_utf8_lossy(&text[..end]).into_owned() } else { format!("GPU {gpu}") }
        });
        let gpus: Vec<_> = gpus.collect();
        let cuda = Some(format!("{}.{}", cuda / 1000, cuda % 1000 / 10));
        Ok(Self { present: true, cuda, gpus, missing: None })
    }

    pub(super) fn describe(&self) -> String {
        match &self.missing {
            Some(missing) => missing.clone(),
            None => format!("CUDA {}; {}", self.cuda.as_deref().unwrap_or("?"), self.gpus.join(", ")),
        }
    }
}

/// # Safety
/// `T` must be the type of the function of that name.
unsafe fn symbol<'l, T>(library: &'l Library, name: &str) -> Result<libloading::Symbol<'l, T>, String> {
    // SAFETY: as the caller promises.
    unsafe { library.get(name.as_bytes()) }.map_err(|_| format!("it has no {name}"))
}
