//! The system's allocator, with a count of the bytes in use.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes in use.
pub(crate) static NOW: AtomicUsize = AtomicUsize::new(0);
/// The most bytes in use since it was set.
pub(crate) static MAX: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts the bytes in use.
pub(crate) struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MAX.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller promises a layout that the system's allocator takes.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller promises a pointer that `alloc` returned for this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}
