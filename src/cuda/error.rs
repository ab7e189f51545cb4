//! Why something on a GPU did not happen, and what to do about it.

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
        /// What the loader said.
        reason: String,
    },
    /// The driver is there, but no GPU is visible.
    #[error(
        "the NVIDIA driver shows {found} GPUs, so that there is no GPU {ordinal}; check nvidia-smi and CUDA_VISIBLE_DEVICES"
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
        /// What `cuDriverGetVersion` says: 1000 * major + 10 * minor.
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
        /// The capabilities this build holds code for.
        built: Vec<u32>,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {name} ({code}): {meaning}{}", remedy(*.code))]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's error code.
        code: u32,
        /// Its name.
        name: String,
        /// What the driver says about it.
        meaning: String,
    },
    /// Rows or a table that do not fit.
    #[error(transparent)]
    Invalid(#[from] Error),
    /// More rows, or wider ones, than a launch can index.
    #[error(
        "{rows} rows of {width} are more than one launch takes (2^31 rows of 2^30); launch them in parts"
    )]
    TooLarge {
        /// Rows.
        rows: usize,
        /// Their width.
        width: usize,
    },
    /// More caps on a row than the kernel for long or unaligned rows can take.
    #[error(
        "a profile of {depth} caps on rows wider than 16384 or not aligned to 16 bytes; the most there is {most}: align the rows, or cap in several launches"
    )]
    TooDeep {
        /// Caps of the deepest profile.
        depth: usize,
        /// The most.
        most: usize,
    },
    /// A slice or stream of another context than the table's.
    #[error(
        "the slice or stream is on GPU {found}, or in a context of its own, and the table is in the primary context of GPU {expected}; use one GPU's primary context for all (Device::context)"
    )]
    OtherContext {
        /// The table's GPU.
        expected: usize,
        /// The slice's or stream's GPU.
        found: usize,
    },
    /// A copy from or to the caller's memory on a stream that is being captured.
    #[error(
        "the stream is being captured into a graph, and a copy from or to memory that is gone at its replay cannot be part of it; update tables and read results before the capture begins or after it ends"
    )]
    Capturing,
    /// A table of another shape than the one it should replace.
    #[error(
        "the table has another shape than the one on the GPU ({what}); only values can be updated in place, upload a new table"
    )]
    TableShape {
        /// What differs.
        what: &'static str,
    },
}

fn explain(built: &[u32], arch: u32) -> String {
    if built.is_empty() {
        return "axiscap was built without nvcc; run scripts/setup-nvcc and build again, or use the CPU"
            .into();
    }
    let built: Vec<_> = built.iter().map(u32::to_string).collect();
    format!(
        "this build holds {}; build again with AXISCAP_CUDA_ARCHS={arch}, or use the CPU",
        built.join(", ")
    )
}

/// What to do about the driver's errors that are the machine's rather than the program's; empty for the others.
fn remedy(code: u32) -> &'static str {
    match code {
        2 => {
            "; free memory of the GPU (nvidia-smi says who holds it), or take a smaller batch, context or model"
        }
        34 => {
            "; the libcuda.so.1 that was found is the toolkit's stub: take its folder (lib64/stubs) out of LD_LIBRARY_PATH"
        }
        46 => {
            "; another process has the GPU to itself, or nobody may use it: see nvidia-smi -q -d COMPUTE, and set the mode by nvidia-smi -c DEFAULT"
        }
        222 => {
            "; the driver is older than the nvcc that compiled the kernels: update it, or build again with AXISCAP_CUDA_ARCHS set to this GPU's compute capability"
        }
        304 => {
            "; the driver could not open its devices: check that this user may read and write /dev/nvidia*, and that a container was started with GPU access"
        }
        700 | 719 => {
            "; a kernel failed, perhaps an earlier one, and its context is lost: restart the process, under compute-sanitizer to find the kernel"
        }
        802 => {
            "; on machines with NVSwitch the fabric manager has to run, in the driver's version: systemctl status nvidia-fabricmanager"
        }
        803 => {
            "; libcuda.so.1 and the kernel's module are of different drivers: reboot after an update, and in a container use the host's library"
        }
        804 => {
            "; a forward-compatibility libcuda.so.1 (cuda-compat) was found, which this GPU does not take: take its folder out of LD_LIBRARY_PATH, or update the driver"
        }
        999 => "; often the driver after a suspend or an update: reload its modules (nvidia_uvm), or reboot",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use cudarc::driver::sys::CUresult;

    use super::*;

    #[test]
    fn errors_of_the_machine_have_a_remedy() {
        for (result, remedy) in [
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
            let error = |code| CudaError::Driver {
                call: "cuInit",
                code,
                name: "CUDA_ERROR".into(),
                meaning: "what the driver says".into(),
            };
            let text = error(result as u32).to_string();
            assert!(text.starts_with("cuInit failed: CUDA_ERROR (") && text.contains(remedy), "{text}");
            assert!(error(1).to_string().ends_with("what the driver says"));
        }
        // This one has an error of its own.
        let text = crate::cuda::driver::failure("cuInit", CUresult::CUDA_ERROR_NO_DEVICE).to_string();
        assert!(text.contains("CUDA_VISIBLE_DEVICES"), "{text}");
    }

    #[test]
    fn messages_name_the_remedy() {
        let text = CudaError::NoDeviceCode { arch: 75, built: vec![80, 90] }.to_string();
        assert!(
            text.contains("7.5") && text.contains("80, 90") && text.contains("AXISCAP_CUDA_ARCHS=75"),
            "{text}"
        );
        let text = CudaError::NoDeviceCode { arch: 90, built: vec![] }.to_string();
        assert!(text.contains("setup-nvcc"), "{text}");
        let text = CudaError::DriverTooOld { found: 12080, needed: "13.0.88".into() }.to_string();
        assert!(text.contains("12.8") && text.contains("13.0.88"), "{text}");
    }
}
