//! Why a call failed: its status and its message.

use axiscap::file::FileError;
use axiscap::{Error, RowsError};

use crate::status::Status;

/// Why a call failed.
#[derive(Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// Returns the same failure with the name of the argument that it is about.
    pub(crate) fn of(self, argument: &str) -> Self {
        Self { message: format!("{argument}: {}", self.message), ..self }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Width { .. } => Status::Width,
            Error::NanBound { .. } | Error::EmptyBound { .. } => Status::Bound,
            Error::Strength(_) => Status::Strength,
            Error::Epsilon(_) => Status::Epsilon,
            Error::NoSuchCap { .. } => Status::NoSuchCap,
            Error::EmptySet => Status::NoCaps,
            Error::TooMany { .. } => Status::TooMany,
            Error::Block { .. } | Error::BlockCount { .. } => Status::OtherModel,
            Error::Rows(error) => of_rows(error),
            // Axes come from files, whose reader has checked them, and nothing here chooses instructions.
            _ => Status::Internal,
        };
        Self::new(status, error.to_string())
    }
}

impl From<RowsError> for Failure {
    fn from(error: RowsError) -> Self {
        Error::Rows(error).into()
    }
}

fn of_rows(error: &RowsError) -> Status {
    match error {
        RowsError::ZeroWidth => Status::Width,
        RowsError::StrideTooSmall { .. } => Status::Stride,
        RowsError::Misaligned { .. } => Status::Misaligned,
        RowsError::Null => Status::NullPointer,
        RowsError::Overflow => Status::Overflow,
        RowsError::Count { .. } => Status::Count,
        RowsError::Profile { .. } => Status::Profile,
        // A job has one type and no slices.
        _ => Status::Internal,
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let status = match &error {
            FileError::Io { .. } => Status::Io,
            FileError::Malformed(_) => Status::Malformed,
            FileError::Unsupported(_) => Status::Unsupported,
            FileError::Invalid(_) => Status::InvalidFile,
            FileError::OtherModel { .. } => Status::OtherModel,
            FileError::PlainControlVector { .. } => Status::ControlVector,
            _ => Status::Internal,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(feature = "cuda")]
impl From<axiscap::cuda::CudaError> for Failure {
    fn from(error: axiscap::cuda::CudaError) -> Self {
        use axiscap::cuda::CudaError;
        let status = match &error {
            CudaError::NoDriver { .. } => Status::NoDriver,
            CudaError::NoDevice { .. } => Status::NoDevice,
            CudaError::DriverTooOld { .. } => Status::DriverTooOld,
            CudaError::NoDeviceCode { .. } => Status::NoDeviceCode,
            CudaError::Driver(_) => Status::Driver,
            CudaError::Invalid(error) => return error.clone().into(),
            CudaError::TooLarge { .. } | CudaError::TooManyCaps { .. } => Status::TooMany,
            CudaError::Capturing => Status::Capturing,
            CudaError::TableShape { .. } => Status::TableShape,
            // Contexts are compared for cudarc's slices alone.
            _ => Status::Internal,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use axiscap::cuda::{CudaError, DriverError};
    use cudarc::driver::sys::CUresult;

    use super::*;

    #[test]
    fn every_error_of_a_gpu_has_a_status_and_keeps_its_message() {
        let width = Error::Width { what: "x".into(), found: 1, against: "the rows", expected: 2 };
        for (error, status) in [
            (CudaError::NoDriver { reason: "none".into() }, Status::NoDriver),
            (CudaError::NoDevice { ordinal: 3, found: 1 }, Status::NoDevice),
            (CudaError::DriverTooOld { found: 12080, needed: "13.0".into() }, Status::DriverTooOld),
            (CudaError::NoDeviceCode { arch: 75, built: vec![90] }, Status::NoDeviceCode),
            (CudaError::TooLarge { rows: 1 << 40, width: 8 }, Status::TooMany),
            (CudaError::TooManyCaps { caps: 2000, max: 1024 }, Status::TooMany),
            (
                CudaError::Driver(DriverError { call: "cuInit", code: CUresult::CUDA_ERROR_UNKNOWN }),
                Status::Driver,
            ),
            (CudaError::Capturing, Status::Capturing),
            (CudaError::TableShape { what: "its width" }, Status::TableShape),
            (CudaError::Invalid(width), Status::Width),
        ] {
            let message = error.to_string();
            assert_eq!(Failure::from(error), Failure { status, message });
        }
    }
}
