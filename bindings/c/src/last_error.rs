//! The message of a thread's last failure.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

use crate::text;

thread_local! {
    static MESSAGE: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Returned before a failure, and while a thread ends.
const NONE: &CStr = c"";

/// Keeps the message of a failure for this thread.
pub(crate) fn keep(message: &str) {
    let message = text::to_c(message);
    // A thread that ends has no more thread-local values, and asks for no message.
    let _ = MESSAGE.try_with(|last| last.replace(Some(message)));
}

/// Returns the message of the last call that failed on this thread, in UTF-8: what is wrong, and what to do.
/// The text is empty if no call has failed. A call that succeeds keeps the message.
///
/// Ownership: the library owns the text. It is valid until another call fails on this thread, or until the
/// thread ends.
///
/// Threads: every thread has its own message. Ask on the thread on which the call failed.
#[unsafe(no_mangle)]
pub extern "C" fn axiscap_last_error() -> *const c_char {
    let message = MESSAGE.try_with(|last| last.borrow().as_ref().map(|message| message.as_ptr()));
    message.ok().flatten().unwrap_or(NONE.as_ptr())
}
