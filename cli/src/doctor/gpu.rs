//! The NVIDIA driver and its GPUs.

use serde::Serialize;

/// The driver's answers.
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

impl Driver {
    /// Loads the driver's library and asks it.
    #[cfg(feature = "gpu")]
    pub(super) fn probe() -> Self {
        match axiscap::cuda::probe() {
            Ok(gpus) => {
                let driver = gpus.first().map(|gpu| gpu.driver);
                Self {
                    present: true,
                    cuda: driver.map(|version| format!("{}.{}", version / 1000, version % 1000 / 10)),
                    gpus: gpus.into_iter().map(|gpu| gpu.name).collect(),
                    missing: None,
                }
            }
            Err(error) => Self::missing(match crate::remedy::cuda(&error) {
                Some(remedy) => format!("{error}; {remedy}"),
                None => error.to_string(),
            }),
        }
    }

    #[cfg(not(feature = "gpu"))]
    pub(super) fn probe() -> Self {
        Self::missing("not asked for: built without the feature gpu, so caps run on the CPU".into())
    }

    fn missing(why: String) -> Self {
        Self { present: false, cuda: None, gpus: Vec::new(), missing: Some(why) }
    }

    pub(super) fn describe(&self) -> String {
        match &self.missing {
            Some(missing) => missing.clone(),
            None => format!("CUDA {}; {}", self.cuda.as_deref().unwrap_or("?"), self.gpus.join(", ")),
        }
    }
}
