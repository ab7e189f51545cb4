//! One cap of a set: what it is, and other bounds and strengths.

use std::ffi::c_char;

use axiscap::{Bound, Cap, Error};

use crate::caps::describe::or_null;
use crate::caps::open::Caps;
use crate::failure::Failure;
use crate::status::Status;
use crate::{guard, pointer};

/// What axiscap_caps_get tells.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct CapInfo {
    /// The 0-based block on whose output the cap acts. Caps on one block act in the order of their indices.
    pub block: usize,
    /// The lower bound of the projection, -INFINITY if there is none.
    pub floor: f32,
    /// The upper bound of the projection, +INFINITY if there is none.
    pub ceiling: f32,
    /// From 0 (observes) to 1 (moves the projection onto the bound).
    pub strength: f32,
    /// The norm that the axis had before it was made a unit vector, or 0 if unknown.
    pub norm: f32,
    /// The unit axis, as many values as the caps are wide.
    pub axis: *const f32,
    /// The name, e.g. "assistant", or NULL if the cap has none.
    pub name: *const c_char,
}

/// Describes one cap, by its index below cap_count. Fails with AXISCAP_STATUS_NO_SUCH_CAP.
///
/// Ownership: axis and name belong to the caps. They are valid until axiscap_caps_free, also when bounds and
/// strengths change.
///
/// Threads: any number may call this with the same caps.
///
/// # Safety
/// `caps` is NULL or a live handle. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_get(caps: *const Caps, index: usize, out: *mut CapInfo) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle.
        let Caps { file, texts } = unsafe { pointer::shared(caps, "caps") }?;
        let all = file.caps.caps();
        let entry = all.get(index).ok_or(Error::NoSuchCap { index, caps: all.len() })?;
        let cap = &entry.cap;
        let info = CapInfo {
            block: entry.block,
            floor: cap.bound().lo(),
            ceiling: cap.bound().hi(),
            strength: cap.strength(),
            norm: cap.axis().norm().unwrap_or(0.0),
            axis: cap.axis().values().as_ptr(),
            name: or_null(texts.names[index].as_ref()),
        };
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::store(out, "out", info) }
    })
}

/// Changes the bounds of one cap. -INFINITY and +INFINITY stand for no bound. Fails with
/// AXISCAP_STATUS_NO_SUCH_CAP, or with AXISCAP_STATUS_BOUND for NaN and for bounds that no projection
/// satisfies. The caps are then unchanged. Tables that were made before keep their bounds.
///
/// Threads: no other thread may use the caps in the meantime.
///
/// # Safety
/// `caps` is NULL or a live handle that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_set_bound(
    caps: *mut Caps,
    index: usize,
    floor: f32,
    ceiling: f32,
) -> Status {
    guard::call(|| {
        let bound = Bound::band(floor, ceiling)?;
        // SAFETY: the caller promises a live handle that nothing else uses.
        unsafe { change(caps, index, |cap| Ok(cap.with_bound(bound))) }
    })
}

/// Changes the strength of one cap. Fails with AXISCAP_STATUS_NO_SUCH_CAP or AXISCAP_STATUS_STRENGTH. The caps
/// are then unchanged. Tables that were made before keep their strengths.
///
/// Threads: no other thread may use the caps in the meantime.
///
/// # Safety
/// `caps` is NULL or a live handle that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_caps_set_strength(caps: *mut Caps, index: usize, strength: f32) -> Status {
    // SAFETY: the caller promises a live handle that nothing else uses.
    guard::call(|| unsafe { change(caps, index, |cap| cap.with_strength(strength)) })
}

/// Changes one cap. Its axis and name stay where they are: the changed cap shares the axis' values, and names
/// are kept beside the file.
///
/// # Safety
/// `caps` is null or a live handle that nothing else uses.
unsafe fn change(
    caps: *mut Caps,
    index: usize,
    change: impl FnOnce(Cap) -> Result<Cap, Error>,
) -> Result<(), Failure> {
    // SAFETY: the caller promises a live handle that nothing else uses.
    let caps = unsafe { pointer::exclusive(caps, "caps") }?;
    caps.file.caps = caps.file.caps.with_changed(index, change)?;
    Ok(())
}
