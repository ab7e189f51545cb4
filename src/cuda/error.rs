//! Why something on a GPU did not happen, and what to do about it.

use std::fmt;

use cudarc::driver::sys::CUresult;

use crate::cuda::library;
use crate::error::Error;

/// Why a GPU could not be used, or a launch was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library cannot be loaded.
    #[error(
        "no NVIDIA driver: {reason}; install one (nvidia-smi should then work; in a container, start it with GPU access), or use the CPU"
    )]
    NoDriver {
        /// The loader's message.
        reason: String,
    },
    /// The driver shows no such GPU.
    #[error(
        "the NVIDIA driver shows {found} GPUs, so there is no GPU {ordinal}; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// The GPU asked for.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// The driver is older than the toolkit that compiled the kernels.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, but the kernels were compiled by CUDA {needed}; update the driver, or build axiscap with an nvcc of CUDA {} (set NVCC)",
        .found / 1000, .found % 1000 / 10, .found / 1000
    )]
    DriverTooOld {
        /// The result of `cuDriverGetVersion`: 1000 * major + 10 * minor.
        found: i32,
        /// The nvcc that compiled the kernels.
        needed: String,
    },
    /// This build holds no code that runs on this GPU.
    #[error(
        "no device code for this GPU (compute capability {}.{}): {}",
        .arch / 10, .arch % 10, explain(.built, *.arch)
    )]
    NoDeviceCode {
        /// The GPU's compute capability, e.g. 90.
        arch: u32,
        /// The capabilities that this build holds code for. Empty for a build without device code.
        built: Vec<u32>,
    },
    /// A call of the driver failed.
    #[error(transparent)]
    Driver(DriverError),
    /// Rows or a table do not fit.
    #[error(transparent)]
    Invalid(#[from] Error),
    /// There are more rows, or wider ones, than a launch can index.
    #[error(
        "{rows} rows of {width} are more than one launch takes (2^31 rows of 2^30); launch them in parts"
    )]
    TooLarge {
        /// Rows.
        rows: usize,
        /// Their width.
        width: usize,
    },
    /// There are more caps per row than the kernel for long or unaligned rows takes.
    #[error(
        "a profile of {caps} caps on rows wider than 16384 or not aligned to 16 bytes; the maximum is {max}: align the rows, or cap in several launches"
    )]
    TooManyCaps {
        /// Caps of the longest profile.
        caps: usize,
        /// The maximum.
        max: usize,
    },
    /// A slice or stream is in another context than the table.
    #[error(
        "the slice or stream is on GPU {found}, or in another context of it, and the table is in the primary context of GPU {expected}; use one GPU's primary context for all (Device::context)"
    )]
    OtherContext {
        /// The table's GPU.
        expected: usize,
        /// The slice's or stream's GPU.
        found: usize,
    },
    /// A stream that is being captured was asked to copy from or to the caller's memory.
    #[error(
        "the stream is being captured into a graph, which cannot hold a copy from or to memory that may be gone at its replay; update tables and read results before the capture begins or after it ends"
    )]
    Capturing,
    /// A table has another shape than the one that it should replace.
    #[error(
        "the table has another shape than the one on the GPU ({what}); only values can be updated in place, upload a new table"
    )]
    TableShape {
        /// The part that differs.
        what: &'static str,
    },
}

impl From<DriverError> for CudaError {
    fn from(error: DriverError) -> Self {
        match error.code {
            CUresult::CUDA_ERROR_NO_DEVICE => Self::NoDevice { ordinal: 0, found: 0 },
            _ => Self::Driver(error),
        }
    }
}

/// A failed call of the driver.
///
/// The error may also be one of earlier work on the GPU. An error that occurs while something is dropped is
/// returned by the next call on the same GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DriverError {
    /// The call, e.g. `cuMemAlloc`.
    pub call: &'static str,
    /// The result of the call.
    pub code: CUresult,
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {:?} ({})", self.call, self.code, self.code as u32)?;
        if let Some(meaning) = library::meaning(self.code) {
            write!(f, ": {meaning}")?;
        }
        match remedy(self.code) {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DriverError {}

fn explain(built: &[u32], arch: u32) -> String {
    if built.is_empty() {
        return "axiscap was built without nvcc, or with AXISCAP_CUDA_ARCHS=none; install the CUDA toolkit or set \
                NVCC, unset AXISCAP_CUDA_ARCHS and build again, or use the CPU"
            .into();
    }
    let built: Vec<_> = built.iter().map(u32::to_string).collect();
    format!(
        "this build holds {}; build again with AXISCAP_CUDA_ARCHS={arch}, or use the CPU",
        built.join(", ")
    )
}

/// Returns what to do about errors of the machine, as opposed to errors of the program.
fn remedy(code: CUresult) -> Option<&'static str> {
    use CUresult as R;
    Some(match code {
        R::CUDA_ERROR_OUT_OF_MEMORY => {
            "free memory of the GPU (nvidia-smi shows its users), or use less of it"
        }
        R::CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda.so.1 that was found is the toolkit's stub: take its folder (lib64/stubs) out of LD_LIBRARY_PATH"
        }
        R::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has exclusive use of the GPU, or its compute mode prohibits use: see nvidia-smi -q -d COMPUTE, and set the mode by nvidia-smi -c DEFAULT"
        }
        R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            "the driver is older than the nvcc that compiled the kernels: update it, or build again with AXISCAP_CUDA_ARCHS set to this GPU's compute capability"
        }
        R::CUDA_ERROR_OPERATING_SYSTEM => {
            "the driver could not open its devices: check that this user may read and write /dev/nvidia*, and that a container was started with GPU access"
        }
        R::CUDA_ERROR_ILLEGAL_ADDRESS | R::CUDA_ERROR_LAUNCH_FAILED => {
            "a kernel failed, perhaps an earlier one, and its context is lost: restart the process, under compute-sanitizer to find the kernel"
        }
        R::CUDA_ERROR_SYSTEM_NOT_READY => {
            "on machines with NVSwitch the fabric manager has to run, in the driver's version: systemctl status nvidia-fabricmanager"
        }
        R::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "libcuda.so.1 and the kernel's module are of different drivers: reboot after an update, and in a container use the host's library"
        }
        R::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "a forward-compatibility libcuda.so.1 (cuda-compat) was found, which this GPU does not support: take its folder out of LD_LIBRARY_PATH, or update the driver"
        }
        R::CUDA_ERROR_UNKNOWN => {
            "often the driver after a suspend or an update: reload its modules (nvidia_uvm), or reboot"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_machine_have_a_remedy() {
        for (code, remedy) in [
            (CUresult::CUDA_ERROR_OUT_OF_MEMORY, "nvidia-smi"),
            (CUresult::CUDA_ERROR_STUB_LIBRARY, "lib64/stubs"),
            (CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE, "nvidia-smi -c DEFAULT"),
            (CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "AXISCAP_CUDA_ARCHS"),
            (CUresult::CUDA_ERROR_OPERATING_SYSTEM, "/dev/nvidia"),
            (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "compute-sanitizer"),
            (CUresult::CUDA_ERROR_LAUNCH_FAILED, "compute-sanitizer"),
            (CUresult::CUDA_ERROR_SYSTEM_NOT_READY, "nvidia-fabricmanager"),
            (CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "reboot"),
            (CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, "cuda-compat"),
            (CUresult::CUDA_ERROR_UNKNOWN, "nvidia_uvm"),
        ] {
            let text = CudaError::from(DriverError { call: "cuInit", code }).to_string();
            let begin = format!("cuInit failed: {code:?} ({})", code as u32);
            assert!(
                text.starts_with(&begin) && text.contains(&format!("; {}", &self::remedy(code).unwrap()))
            );
            assert!(text.contains(remedy), "{text}");
        }
        let text = DriverError { call: "cuInit", code: CUresult::CUDA_ERROR_INVALID_VALUE }.to_string();
        assert!(
            text.starts_with("cuInit failed: CUDA_ERROR_INVALID_VALUE (1)") && !text.contains(';'),
            "{text}"
        );
        // A missing GPU has a separate variant.
        let error = CudaError::from(DriverError { call: "cuInit", code: CUresult::CUDA_ERROR_NO_DEVICE });
        assert_eq!(error, CudaError::NoDevice { ordinal: 0, found: 0 });
        assert!(error.to_string().contains("CUDA_VISIBLE_DEVICES"), "{error}");
    }

    #[test]
    fn messages_name_the_remedy() {
        let text = CudaError::NoDeviceCode { arch: 75, built: vec![80, 90] }.to_string();
        assert!(
            text.contains("7.5") && text.contains("80, 90") && text.contains("AXISCAP_CUDA_ARCHS=75"),
            "{text}"
        );
        let text = CudaError::NoDeviceCode { arch: 90, built: vec![] }.to_string();
        assert!(
            text.contains("without nvcc") && text.contains("set NVCC") && text.contains("ARCHS=none"),
            "{text}"
        );
        let text = CudaError::DriverTooOld { found: 12080, needed: "13.0.88".into() }.to_string();
        assert!(text.contains("12.8") && text.contains("13.0.88"), "{text}");
    }
}
