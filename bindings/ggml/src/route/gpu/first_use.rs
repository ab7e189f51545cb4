//! Compares the first rows that a kernel caps with the CPU's, bit for bit.
//!
//! The kernels and their CPU twin give the same bits by design (docs/operation.md). The comparison checks
//! this for the GPU, driver and build at hand, and fails the decode otherwise.

use axiscap::cpu::{self, RowsMut};
use axiscap::{CapTable, RowStat};

use super::driver::{Driver, Launch, Result};
use crate::error::HookError;

/// Launches, and compares the result with that of [`cpu`] for the same rows. Waits for the GPU.
///
/// # Safety
/// The contract of [`Driver::launch`].
pub(super) unsafe fn launch_checked(
    driver: &mut dyn Driver,
    launch: &Launch,
    table: &CapTable,
    profiles: Option<&[u32]>,
    device: &str,
) -> Result<()> {
    let (width, rows) = (table.width(), launch.job.rows);
    let values = |stride| vec![0.0; (rows.count - 1) * stride + width];
    let (mut expected, mut found) = (values(rows.stride), values(rows.stride));
    let mut weight = vec![0.0; if launch.job.norm.is_some() { width } else { 0 }];
    let mut normed = launch.job.norm.map(|norm| (norm, values(norm.out.stride), values(norm.out.stride)));
    // SAFETY: the caller promises the rows of the launch, and its norm's weight and rows.
    unsafe {
        driver.read_rows(rows.address, &mut expected)?;
        if let Some(norm) = launch.job.norm {
            driver.read_rows(norm.weight, &mut weight)?;
        }
        driver.launch(launch)?;
        driver.read_rows(rows.address, &mut found)?;
        if let Some((norm, _, found)) = &mut normed {
            driver.read_rows(norm.out.address, found)?;
        }
    }
    let depth = table.max_caps_per_row();
    let mut stats = vec![RowStat::default(); rows.count * depth];
    let capped = RowsMut::with_stride(&mut expected, rows.count, width, rows.stride)?;
    let mut job = cpu::Job { row_profiles: profiles, ..cpu::Job::cap(capped).stats(&mut stats) };
    if let Some((norm, expected, _)) = &mut normed {
        let out = RowsMut::with_stride(expected, rows.count, width, norm.out.stride)?;
        job = job.norm(&weight, norm.epsilon, out);
    }
    job.run(table)?;
    let block = launch.block;
    if let Some((row, column, expected, found)) = difference(&expected, &found, width, rows.stride) {
        return Err(HookError::DeviceDiffers { device: device.into(), block, row, column, found, expected });
    }
    if let Some((norm, expected, found)) = &normed
        && let Some((row, column, expected, found)) = difference(expected, found, width, norm.out.stride)
    {
        return Err(HookError::DeviceNormDiffers {
            device: device.into(),
            block,
            row,
            column,
            found,
            expected,
        });
    }
    let Some(first) = launch.stats.filter(|_| depth > 0) else { return Ok(()) };
    let mut reported = vec![RowStat::default(); stats.len()];
    driver.read_stats(first, &mut reported)?;
    for (i, (expected, found)) in stats.iter().zip(&reported).enumerate() {
        let equal = same(expected.before, found.before)
            && same(expected.after, found.after)
            && expected.flags == found.flags;
        if !equal {
            return Err(HookError::DeviceStatsDiffer {
                device: device.into(),
                block,
                row: i / depth,
                found: format!("{found:?}"),
                expected: format!("{expected:?}"),
            });
        }
    }
    Ok(())
}

/// Returns the first difference of rows: row, column, and the two values.
fn difference(
    expected: &[f32],
    found: &[f32],
    width: usize,
    stride: usize,
) -> Option<(usize, usize, f32, f32)> {
    expected.chunks(stride).zip(found.chunks(stride)).enumerate().find_map(|(row, (expected, found))| {
        let pairs = expected.iter().zip(found).take(width).enumerate();
        let mut differing = pairs.filter(|(_, (expected, found))| !same(**expected, **found));
        differing.next().map(|(column, (&expected, &found))| (row, column, expected, found))
    })
}

/// Whether two values have the same bits. Two NaNs may differ in their payload.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}
