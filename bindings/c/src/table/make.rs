//! Making, describing and freeing a table.

use axiscap::{Cap, CapTable, Error};

use crate::caps::open::Caps;
use crate::failure::Failure;
use crate::status::Status;
use crate::{guard, pointer};

/// The caps of one block in contiguous memory.
#[derive(Debug)]
pub struct Table(pub(crate) CapTable);

/// What axiscap_table_describe tells.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TableInfo {
    /// Width of the rows that this table caps.
    pub width: usize,
    /// Number of caps, over all profiles.
    pub cap_count: usize,
    /// Number of profiles, including the empty profile 0.
    pub profile_count: usize,
    /// Number of caps of the longest profile. Statistics have that many entries per row.
    pub max_caps_per_row: usize,
}

/// Makes a table of the caps on one block, which axiscap_run takes and axiscap_device_table_new copies to a
/// GPU.
///
/// Each set of caps becomes a profile: `sets[0]` is profile 1, which rows have by default, `sets[1]` is
/// profile 2, and so on. Profile 0 is empty. A set without caps on the block is an empty profile. Fails with
/// AXISCAP_STATUS_NO_CAPS if no set has caps on the block, with AXISCAP_STATUS_WIDTH if the sets differ in
/// width, and with AXISCAP_STATUS_TOO_MANY above 65536 caps or sets.
///
/// Ownership: the table is a copy, and the sets may be freed at once. *out belongs to the caller, who frees it
/// with axiscap_table_free.
///
/// Threads: any number may make tables of the same sets.
///
/// # Safety
/// `sets` is NULL or an array of `set_count` pointers, each NULL or a live handle. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_table_new(
    sets: *const *mut Caps,
    set_count: usize,
    block: usize,
    out: *mut *mut Table,
) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises the array and its handles.
        let make = || Ok(Table(unsafe { table(sets, set_count, block) }?));
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::give(out, make) }
    })
}

/// # Safety
/// `sets` is null or an array of `set_count` pointers, each null or a live handle that nothing changes.
unsafe fn table(sets: *const *mut Caps, set_count: usize, block: usize) -> Result<CapTable, Failure> {
    // SAFETY: the caller promises the array.
    let sets = unsafe { pointer::array(sets, set_count, "sets") }?;
    if set_count > CapTable::MAX_CAPS {
        return Err(Error::TooMany { what: "sets", found: set_count, max: CapTable::MAX_CAPS }.into());
    }
    let mut profiles: Vec<Vec<&Cap>> = Vec::with_capacity(set_count);
    for (index, &caps) in sets.iter().enumerate() {
        // SAFETY: the caller promises live handles. The borrow ends with this function.
        let caps = unsafe { pointer::shared(caps.cast_const(), &format!("sets[{index}]")) }?;
        let on_block = caps.file.caps.caps().iter().filter(|entry| entry.block == block);
        profiles.push(on_block.map(|entry| &entry.cap).collect());
    }
    let profiles: Vec<&[&Cap]> = profiles.iter().map(Vec::as_slice).collect();
    CapTable::with_profiles(&profiles).map_err(|error| match error {
        Error::EmptySet => Failure::new(
            Status::NoCaps,
            format!("no set has a cap on block {block}; axiscap_caps_blocks lists the capped blocks"),
        ),
        error => error.into(),
    })
}

/// Describes a table.
///
/// Threads: any number may call this with the same table.
///
/// # Safety
/// `table` is NULL or a live handle. `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_table_describe(table: *const Table, out: *mut TableInfo) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle.
        let Table(table) = unsafe { pointer::shared(table, "table") }?;
        let info = TableInfo {
            width: table.width(),
            cap_count: table.cap_count(),
            profile_count: table.profile_count(),
            max_caps_per_row: table.max_caps_per_row(),
        };
        // SAFETY: the caller promises the pointer.
        unsafe { pointer::store(out, "out", info) }
    })
}

/// Frees a table; does nothing for NULL. Its copies on GPUs stay as they are.
///
/// Threads: nothing may use the table during the call or later.
///
/// # Safety
/// `table` is NULL, or a handle that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_table_free(table: *mut Table) {
    // SAFETY: the caller promises a handle that is freed once.
    guard::call(|| unsafe { pointer::free(table) });
}
