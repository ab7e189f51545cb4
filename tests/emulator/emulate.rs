//! Launches in the emulator.

use axiscap::cuda::ProfileFaults;
use axiscap::cuda::raw::{PackedTable, Plan, TableView};
use axiscap::{CapTable, Dtype};
use axiscap_testing::case::{Buffer, Case, Profiles, Setup, Value};
use half::{bf16, f16};

use crate::machine;

/// A table in memory of the emulator.
pub(crate) struct TableImage {
    packed: PackedTable,
    /// The axes, in a buffer with guard zones.
    axes: Buffer<f32>,
    /// The record of rows without a profile.
    record: [u64; 2],
}

impl TableImage {
    pub(crate) fn new(table: &CapTable) -> Self {
        let packed = PackedTable::new(table);
        let mut axes = Buffer::<f32>::new(1, packed.axes().len(), 0, 0);
        axes.row_mut(0).copy_from_slice(packed.axes());
        Self { packed, axes, record: [0; 2] }
    }

    /// Returns the table's addresses. They are valid as long as the image is not moved.
    pub(crate) fn view(&mut self) -> TableView {
        TableView {
            axes: self.axes.rows().address,
            params: self.packed.params().as_ptr() as u64,
            ends: self.packed.ends().as_ptr() as u64,
            faults: self.record.as_mut_ptr() as u64,
            layout: self.packed.layout(),
        }
    }
}

/// Runs a launch in the emulator, and returns its kernel. `None` if the path cannot take it or there are no
/// rows.
pub(crate) fn emulate<E: Value>(setup: &mut Setup<E>, case: &Case) -> Result<Option<String>, String> {
    let mut image = TableImage::new(&setup.table);
    let view = image.view();
    let plan = Plan::on_path(&setup.job(case), &view, &case.limits, case.path).map_err(|e| e.to_string())?;
    let Some(plan) = plan else { return Ok(None) };
    // SAFETY: every buffer outlives the call, and only this call uses it.
    unsafe { machine::run(&plan, case.schedule) }?;
    setup.faults = ProfileFaults::from_bytes(&bytemuck::cast(image.record));
    Ok(Some(plan.kernel()))
}

/// The outcome of a case.
pub(crate) struct Outcome {
    /// The kernel, if there was a launch.
    pub(crate) kernel: Option<String>,
    /// Whether rows of profile 0 and capped rows were in one launch.
    pub(crate) mixed: bool,
    /// Number of times that a cap acted.
    pub(crate) acted: usize,
}

/// Checks one case against the definition and the CPU twin.
pub(crate) fn check(case: &Case) -> Outcome {
    match case.dtype {
        Dtype::F32 => check_rows::<f32>(case),
        Dtype::F16 => check_rows::<f16>(case),
        Dtype::BF16 => check_rows::<bf16>(case),
    }
}

fn check_rows<E: Value>(case: &Case) -> Outcome {
    let mut setup = Setup::<E>::new(case);
    let (mut expected, mut twin) = (setup.clone(), setup.clone());
    let acted = expected.define(case);
    twin.on_twin(case);
    twin.same(&expected).unwrap_or_else(|e| panic!("the twin, {case:?}: {e}"));
    let kernel = emulate(&mut setup, case).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    if kernel.is_some() {
        setup.same(&expected).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    let capped = |&profile: &u32| setup.table.profile(profile).is_some_and(|caps| !caps.is_empty());
    let mixed =
        case.profiles != Profiles::One && setup.profiles.contains(&0) && setup.profiles.iter().any(capped);
    Outcome { kernel, mixed, acted }
}
