//! Cases in the emulator.

use axiscap::cpu::Element;
use axiscap::cuda::{PackedTable, Plan, TableView};

use crate::case::{Buffer, Case, Setup, Value};
use crate::machine;

impl<E: Value> Setup<E> {
    /// Runs it in the emulator; false where the path cannot take it or there is nothing to do.
    pub(crate) fn emulate(&mut self, case: &Case) -> Result<bool, String> {
        let packed = PackedTable::new(&self.table);
        // The axes as a buffer with guards, like everything else.
        let mut axes = Buffer::<f32>::new(1, packed.axes().len(), 0, 0);
        axes.row_mut(0).copy_from_slice(packed.axes());
        let view = TableView {
            axes: axes.rows().address,
            params: packed.params().as_ptr() as u64,
            ends: packed.ends().as_ptr() as u64,
            layout: packed.layout(),
        };
        let plan =
            Plan::on_path(&self.job(case), &view, &case.limits, case.path).map_err(|e| e.to_string())?;
        let Some(plan) = plan else { return Ok(false) };
        // SAFETY: every buffer outlives the call and is ours alone.
        unsafe { machine::run(&plan, case.schedule) }?;
        Ok(true)
    }
}

/// Checks one case against the definition and the CPU twin; returns whether anything ran.
pub(crate) fn check<E: Value + Element>(case: &Case) -> bool {
    let mut setup = Setup::<E>::new(case);
    let (mut expected, mut twin) = (setup.clone(), setup.clone());
    expected.define(case);
    twin.on_twin(case);
    twin.same(&expected).unwrap_or_else(|e| panic!("the twin, {case:?} {:?}: {e}", E::DTYPE));
    let ran = setup.emulate(case).unwrap_or_else(|e| panic!("{case:?} {:?}: {e}", E::DTYPE));
    if ran {
        setup.same(&expected).unwrap_or_else(|e| panic!("{case:?} {:?}: {e}", E::DTYPE));
    }
    ran
}
