//! Cases in the emulator.

use axiscap::CapTable;
use axiscap::cuda::{Dtype, PackedTable, Plan, ProfileFaults, TableView};
use half::{bf16, f16};

use crate::case::{Buffer, Case, Setup, Value};
use crate::machine;

/// A table as it lies in memory of the emulator.
pub(crate) struct TableImage {
    packed: PackedTable,
    /// The axes as a buffer with guards, like everything else.
    axes: Buffer<f32>,
    /// Where profiles that do not exist are recorded.
    record: [u64; 2],
}

impl TableImage {
    pub(crate) fn new(table: &CapTable) -> Self {
        let packed = PackedTable::new(table);
        let mut axes = Buffer::<f32>::new(1, packed.axes().len(), 0, 0);
        axes.row_mut(0).copy_from_slice(packed.axes());
        Self { packed, axes, record: [0; 2] }
    }

    /// Its addresses, good for as long as the image stays where it is.
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

impl<E: Value> Setup<E> {
    /// Runs it in the emulator; false where the path cannot take it or there is nothing to do.
    pub(crate) fn emulate(&mut self, case: &Case) -> Result<bool, String> {
        let mut image = TableImage::new(&self.table);
        let view = image.view();
        let plan =
            Plan::on_path(&self.job(case), &view, &case.limits, case.path).map_err(|e| e.to_string())?;
        let Some(plan) = plan else { return Ok(false) };
        // SAFETY: every buffer outlives the call and is ours alone.
        unsafe { machine::run(&plan, case.schedule) }?;
        self.faults = ProfileFaults::from_bytes(&bytemuck::cast(image.record));
        Ok(true)
    }
}

/// What a case did.
pub(crate) struct Outcome {
    /// Whether there was anything to launch.
    pub(crate) ran: bool,
    /// How many times a cap acted.
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
    let ran = setup.emulate(case).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    if ran {
        setup.same(&expected).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    Outcome { ran, acted }
}
