//! The same launch on the CPU twin, and the f64 oracle's judgement of it.

use axiscap::cpu::{self, Element, Norm, Options, Rows, RowsMut, oracle};
use axiscap::cuda::Operation;

use crate::case::{Buffer, Case, EPS, Setup, Value};

fn rows<E: Value + Element>(buffer: &Buffer<E>) -> Rows<'_, E> {
    let (rows, width, stride) = buffer.extent();
    Rows::with_stride(buffer.from_first(), rows, width, stride).expect("rows")
}

fn rows_mut<E: Value + Element>(buffer: &mut Buffer<E>) -> RowsMut<'_, E> {
    let (rows, width, stride) = buffer.extent();
    RowsMut::with_stride(buffer.from_first_mut(), rows, width, stride).expect("rows")
}

impl<E: Value + Element> Setup<E> {
    /// Runs it on the CPU twin.
    pub(crate) fn on_twin(&mut self, case: &Case) {
        let depth = self.table.deepest_profile();
        let mut options = Options::new().stats(&mut self.stats[..case.rows * depth]);
        if case.profiles {
            options = options.profiles(&self.profiles);
        }
        let norm = Norm::new(self.weight.row(0), EPS).expect("a norm");
        let (table, h, x, r, y) = (&self.table, &mut self.h, &self.x, &self.r, &mut self.y);
        match (case.operation, case.aliased) {
            (Operation::Cap, _) => cpu::cap_rows(table, rows_mut(h), options),
            (Operation::CapNorm, _) => cpu::cap_norm_rows(table, rows_mut(h), norm, rows_mut(y), options),
            // Addition commutes: x and the row in place may change sides.
            (Operation::AddCap, true) => cpu::add_cap_rows_in_place(table, rows(r), rows_mut(h), options),
            (Operation::AddCap, false) => cpu::add_cap_rows(table, rows(x), rows(r), rows_mut(h), options),
            (Operation::AddCapNorm, true) => {
                cpu::add_cap_norm_rows_in_place(table, rows(r), rows_mut(h), norm, rows_mut(y), options)
            }
            (Operation::AddCapNorm, false) => {
                cpu::add_cap_norm_rows(table, rows(x), rows(r), rows_mut(h), norm, rows_mut(y), options)
            }
        }
        .expect("the twin takes what the kernels take");
    }

    /// Holds what a launch did to f32 rows under `CapSet`s of one cap to the bounds of docs/operation.md. `before`
    /// is the setup as it was.
    pub(crate) fn judge(&self, before: &Self, case: &Case) -> usize {
        let (axis, params) = (self.table.axis(0), self.table.params()[0]);
        let mut acted = 0;
        for row in 0..case.rows {
            let (old, new): (Vec<f32>, Vec<f32>) = (before.h.widened(row), self.h.widened(row));
            let stat = self.stats[row];
            if stat.non_finite() || old.iter().any(|x| !x.is_finite()) {
                continue;
            }
            let projection = oracle::projection(&old, axis);
            let slack = oracle::projection_bound(&old, axis, E::VECTOR);
            assert!((f64::from(stat.before) - projection).abs() <= slack, "{case:?} row {row}: {stat:?}");
            if stat.engaged() && params.strength == 1.0 && E::VECTOR == 4 {
                let slack = oracle::capped_bound(case.width, E::VECTOR, stat.after, oracle::norm(&new));
                let reached = oracle::projection(&new, axis);
                assert!((reached - f64::from(stat.after)).abs() <= slack, "{case:?} row {row}: {reached}, {stat:?}");
                acted += 1;
            }
        }
        acted
    }
}
