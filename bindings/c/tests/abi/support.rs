//! Handles that free themselves, files to open, and statuses with their messages.

use std::ffi::{CStr, c_char};
use std::ptr;

use axiscap::file::{CapFile, ModelInfo};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_c::{
    AXISCAP_CAP, AXISCAP_F32, Caps, Job, Status, Table, axiscap_caps_free, axiscap_caps_parse,
    axiscap_last_error, axiscap_table_free, axiscap_table_new,
};
use axiscap_testing::numbers::Random;

/// The caps file that the project ships.
pub(crate) const SHIPPED: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../lab/assets/smollm2-135m-instruct.caps.gguf");

/// Returns a C string as text.
pub(crate) fn text(pointer: *const c_char) -> String {
    // SAFETY: the library returns C strings, which live until the caller here has copied them.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap().to_owned()
}

/// Returns the message of this thread's last failure.
pub(crate) fn message() -> String {
    text(axiscap_last_error())
}

/// Asserts that a call has succeeded.
#[track_caller]
pub(crate) fn ok(status: Status) {
    assert_eq!(status, Status::Ok, "{}", message());
}

/// Asserts that a call has failed, and that its message holds a text.
#[track_caller]
pub(crate) fn failed(status: Status, expected: Status, part: &str) {
    assert_eq!(status, expected, "{}", message());
    assert!(message().contains(part), "{:?} is not in {:?}", part, message());
}

/// Caps that are freed with the test.
pub(crate) struct OpenCaps(pub(crate) *mut Caps);

impl Drop for OpenCaps {
    fn drop(&mut self) {
        // SAFETY: the handle is freed once.
        unsafe { axiscap_caps_free(self.0) };
    }
}

/// A table that is freed with the test.
pub(crate) struct OpenTable(pub(crate) *mut Table);

impl Drop for OpenTable {
    fn drop(&mut self) {
        // SAFETY: the handle is freed once.
        unsafe { axiscap_table_free(self.0) };
    }
}

// SAFETY: tables may be used from any thread, which the library asserts for its type.
unsafe impl Send for OpenTable {}
// SAFETY: as above; the tests share a table for calls that only read it.
unsafe impl Sync for OpenTable {}

/// Makes a cap with a random axis.
pub(crate) fn cap(random: &mut Random, width: usize, bound: Bound) -> Cap {
    let direction: Vec<f32> = (0..width).map(|_| random.signed() + 0.1).collect();
    Cap::new(Axis::from_direction(&direction).unwrap(), bound)
}

/// Makes a file with caps on the given blocks of a model of 8.
pub(crate) fn file(caps: impl IntoIterator<Item = (usize, Cap)>) -> CapFile {
    let caps = caps.into_iter().map(|(block, cap)| BlockCap { block, cap });
    CapFile::new(CapSet::new(caps).unwrap(), ModelInfo::new("llama", 8))
}

/// Opens a file from memory.
pub(crate) fn open(file: &CapFile) -> OpenCaps {
    let bytes = file.to_bytes().unwrap();
    let mut caps = ptr::null_mut();
    // SAFETY: the bytes live, and the handle is writable.
    ok(unsafe { axiscap_caps_parse(bytes.as_ptr().cast(), bytes.len(), &mut caps) });
    OpenCaps(caps)
}

/// Makes a table of a block, with a profile for each set.
pub(crate) fn table(sets: &[&OpenCaps], block: usize) -> OpenTable {
    let handles: Vec<*mut Caps> = sets.iter().map(|set| set.0).collect();
    let mut table = ptr::null_mut();
    // SAFETY: the handles live, and the table's is writable.
    ok(unsafe { axiscap_table_new(handles.as_ptr(), handles.len(), block, &mut table) });
    OpenTable(table)
}

/// A call without pointers that caps no rows of a width.
pub(crate) fn job(width: usize) -> Job {
    Job {
        size: size_of::<Job>(),
        operation: AXISCAP_CAP,
        dtype: AXISCAP_F32,
        rows: 0,
        width,
        h: ptr::null_mut(),
        h_stride: width,
        x: ptr::null(),
        x_stride: 0,
        residual: ptr::null(),
        residual_stride: 0,
        normed: ptr::null_mut(),
        normed_stride: 0,
        weight: ptr::null(),
        epsilon: 0.0,
        profiles: ptr::null(),
        profile_count: 0,
        stats: ptr::null_mut(),
        stat_count: 0,
    }
}
