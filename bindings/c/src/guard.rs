//! The edge between C and Rust: results become statuses, and panics stop here.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::failure::Failure;
use crate::last_error;
use crate::status::Status;

/// Runs the work of a call. A failure leaves its message for [`axiscap_last_error`](crate::axiscap_last_error).
pub(crate) fn call(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    // Functions that change a handle compute the new value first and assign it last. A panic therefore leaves
    // no handle half changed.
    match catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(of_panic(&*panic))) {
        Ok(()) => Status::Ok,
        Err(Failure { status, message }) => {
            last_error::keep(&message);
            status
        }
    }
}

fn of_panic(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("without a message");
    Failure::new(Status::Internal, format!("a fault of axiscap ({text}); please report it"))
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn message() -> String {
        // SAFETY: the pointer is a C string that lives until the next failure on this thread.
        unsafe { CStr::from_ptr(crate::axiscap_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_becomes_a_status() {
        assert_eq!(message(), "");
        assert_eq!(call(|| panic!("row {}", 7)), Status::Internal);
        assert_eq!(message(), "a fault of axiscap (row 7); please report it");
        assert_eq!(call(|| panic!("plain")), Status::Internal);
        assert_eq!(message(), "a fault of axiscap (plain); please report it");
        assert_eq!(call(|| std::panic::panic_any(7)), Status::Internal);
        assert!(message().contains("without a message"));
        assert_eq!(call(|| Ok(())), Status::Ok);
        assert!(message().contains("without a message"));
    }
}
