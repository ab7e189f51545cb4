//! Other bounds and strengths in a table.

use axiscap::Bound;

use crate::status::Status;
use crate::table::make::Table;
use crate::{guard, pointer};

/// Changes the bounds of one cap of a table. `cap` counts the caps of all profiles in order. -INFINITY and
/// +INFINITY stand for no bound. Fails with AXISCAP_STATUS_NO_SUCH_CAP or AXISCAP_STATUS_BOUND, and the table
/// is then unchanged. Copies on GPUs change with axiscap_device_table_update.
///
/// Threads: no other thread may use the table in the meantime.
///
/// # Safety
/// `table` is NULL or a live handle that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_table_set_bound(
    table: *mut Table,
    cap: usize,
    floor: f32,
    ceiling: f32,
) -> Status {
    guard::call(|| {
        let bound = Bound::band(floor, ceiling)?;
        // SAFETY: the caller promises a live handle that nothing else uses.
        let Table(table) = unsafe { pointer::exclusive(table, "table") }?;
        Ok(table.set_bound(cap, bound)?)
    })
}

/// Changes the strength of one cap of a table, from 0 (observes) to 1 (moves the projection onto the bound).
/// `cap` counts the caps of all profiles in order. Fails with AXISCAP_STATUS_NO_SUCH_CAP or
/// AXISCAP_STATUS_STRENGTH, and the table is then unchanged.
///
/// Threads: no other thread may use the table in the meantime.
///
/// # Safety
/// `table` is NULL or a live handle that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn axiscap_table_set_strength(table: *mut Table, cap: usize, strength: f32) -> Status {
    guard::call(|| {
        // SAFETY: the caller promises a live handle that nothing else uses.
        let Table(table) = unsafe { pointer::exclusive(table, "table") }?;
        Ok(table.set_strength(cap, strength)?)
    })
}
