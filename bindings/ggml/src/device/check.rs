//! The first rows that a GPU caps are compared with the CPU's, bit for bit.
//!
//! The kernels and their CPU twin are made to give the same bits (docs/operation.md). So a GPU, driver or build that
//! nobody has met yet proves itself on the caps and rows at hand, or stops.

use axiscap::cpu::{self, RowsMut};
use axiscap::{CapTable, RowStat};

use super::driver::{Driver, Launch, Result};
use crate::error::HookError;

/// Launches, and compares what came out with what [`cpu`] makes of the same rows. Waits for the GPU.
///
/// # Safety
/// That of [`Driver::launch`].
pub(super) unsafe fn launch_checked(
    driver: &mut dyn Driver,
    launch: &Launch,
    table: &CapTable,
    device: &str,
) -> Result<()> {
    let width = table.width();
    let values = (launch.rows - 1) * launch.stride + width;
    let (mut expected, mut found) = (vec![0.0; values], vec![0.0; values]);
    // SAFETY: the rows of the launch.
    unsafe {
        driver.read_rows(launch.address, &mut expected)?;
        driver.launch(launch)?;
        driver.read_rows(launch.address, &mut found)?;
    }
    let depth = table.deepest_profile();
    let mut stats = vec![RowStat::default(); launch.rows * depth];
    let rows = RowsMut::with_stride(&mut expected, launch.rows, width, launch.stride)?;
    cpu::cap_rows(table, rows, cpu::Options::new().stats(&mut stats))?;
    for row in 0..launch.rows {
        let at = row * launch.stride;
        let pairs = expected[at..at + width].iter().zip(&found[at..at + width]);
        for (column, (&expected, &found)) in pairs.enumerate() {
            if !same(expected, found) {
                let (device, block) = (device.into(), launch.block);
                return Err(HookError::DeviceDiffers { device, block, row, column, found, expected });
            }
        }
    }
    let Some(first) = launch.stats else { return Ok(()) };
    let mut reported = vec![RowStat::default(); stats.len()];
    driver.read_stats(first, &mut reported)?;
    for (i, (expected, found)) in stats.iter().zip(&reported).enumerate() {
        let equal = same(expected.before, found.before)
            && same(expected.after, found.after)
            && expected.flags == found.flags;
        if !equal {
            return Err(HookError::DeviceStatsDiffer {
                device: device.into(),
                block: launch.block,
                row: i / depth,
                found: format!("{found:?}"),
                expected: format!("{expected:?}"),
            });
        }
    }
    Ok(())
}

/// The payload of a NaN is the one thing that implementations may differ in.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}
