//! The CUDA kernels in this build.

use serde::Serialize;

/// Device code that was compiled in.
#[derive(Debug, Serialize)]
pub(super) struct Image {
    /// Whether the program was built to cap on GPUs at all (feature `gpu`).
    enabled: bool,
    /// Compute capabilities with machine code, e.g. 90 for 9.0.
    archs: Vec<u32>,
    /// The nvcc that compiled it.
    nvcc: Option<String>,
    bytes: usize,
}

impl Image {
    #[cfg(feature = "gpu")]
    pub(super) fn look() -> Self {
        let image = axiscap::cuda::image();
        let nvcc = (!image.nvcc.is_empty()).then(|| image.nvcc.to_owned());
        Self { enabled: true, archs: image.archs.to_vec(), nvcc, bytes: image.bytes }
    }

    #[cfg(not(feature = "gpu"))]
    pub(super) fn look() -> Self {
        Self { enabled: false, archs: Vec::new(), nvcc: None, bytes: 0 }
    }

    pub(super) fn describe(&self) -> String {
        match &self.nvcc {
            _ if !self.enabled => "built without the feature gpu: on a GPU, caps run on the host".into(),
            None => "no device code: built without nvcc or with AXISCAP_CUDA_ARCHS=none, so on a GPU caps run on the host; run scripts/setup-nvcc, unset AXISCAP_CUDA_ARCHS and build again".into(),
            Some(nvcc) => {
                let archs: Vec<_> = self.archs.iter().map(ToString::to_string).collect();
                format!("compute capabilities {}, and newer by PTX; {} KiB, by nvcc {nvcc}", archs.join(", "), self.bytes / 1024)
            }
        }
    }
}
