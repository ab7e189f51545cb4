//! The compiled kernels of this build.

use crate::cuda::error::CudaError;

include!(concat!(env!("OUT_DIR"), "/image.rs"));

/// An aligned value. The driver reads a fatbin's header as a struct of 8-byte words, and `include_bytes`
/// promises no alignment.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static FATBIN: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/axiscap.fatbin")));

/// The fatbin. Empty in a build without device code.
pub(super) static IMAGE: &[u8] = &FATBIN.0;

/// The device code of this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Compute capabilities with machine code, e.g. 90 for 9.0, ascending. Empty in a build without device code.
    pub archs: &'static [u32],
    /// The nvcc that compiled the image. Empty in a build without device code.
    pub nvcc: &'static str,
    /// Size of the image in bytes.
    pub bytes: usize,
}

/// Returns the device code of this build.
#[must_use]
pub fn image() -> ImageInfo {
    ImageInfo { archs: MACHINE_CODE, nvcc: NVCC, bytes: IMAGE.len() }
}

/// Returns the capability that the code for a GPU of capability `arch` was compiled for: machine code of the same
/// major version and no later minor one, or else PTX (of the highest capability built for) of no later one.
pub(super) fn code_for(built: &[u32], arch: u32) -> Option<u32> {
    let machine_code = built.iter().rev().find(|&b| b / 10 == arch / 10 && b % 10 <= arch % 10);
    machine_code.or_else(|| built.last().filter(|&&newest| newest <= arch)).copied()
}

/// Checks that the image has code for a GPU of capability `arch`.
pub(super) fn check_arch(built: &[u32], arch: u32) -> Result<(), CudaError> {
    match code_for(built, arch) {
        Some(_) => Ok(()),
        None => Err(CudaError::NoDeviceCode { arch, built: built.to_vec() }),
    }
}

/// Checks that a driver for CUDA `found` loads code of this nvcc. Minor versions of one major version are
/// compatible.
pub(super) fn check_driver(nvcc: &str, found: i32) -> Result<(), CudaError> {
    let needed = nvcc.split('.').next().and_then(|major| major.parse::<i32>().ok()).unwrap_or(0);
    if found / 1000 >= needed { Ok(()) } else { Err(CudaError::DriverTooOld { found, needed: nvcc.into() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_aligned_as_the_driver_reads_it() {
        assert!(IMAGE.as_ptr().addr().is_multiple_of(16));
    }

    #[test]
    fn an_image_runs_on_gpus_that_its_code_covers() {
        let built = [80, 86, 89, 90, 100, 120];
        for arch in [80, 86, 87, 89, 90, 100, 103, 120, 121, 130] {
            assert_eq!(check_arch(&built, arch), Ok(()), "{arch}");
        }
        for arch in [75, 70, 110] {
            assert!(check_arch(&built, arch).is_err(), "{arch}");
        }
        assert!(check_arch(&[], 90).is_err());
        assert!(check_arch(&[90], 80).is_err());
        assert_eq!(check_arch(&[90], 120), Ok(()));
        for (arch, code) in [(80, 80), (87, 86), (90, 90), (103, 100), (121, 120), (130, 120)] {
            assert_eq!(code_for(&built, arch), Some(code), "{arch}");
        }
        // PTX for an earlier capability, which has no clusters.
        assert_eq!(code_for(&[80, 86], 90), Some(86));
    }

    #[test]
    fn drivers_load_images_of_their_own_or_an_earlier_major_version() {
        assert_eq!(check_driver("13.0.88", 13000), Ok(()));
        assert_eq!(check_driver("13.2.1", 13000), Ok(()));
        assert_eq!(check_driver("12.8.1", 13000), Ok(()));
        assert!(check_driver("13.0.88", 12080).is_err());
    }
}
