//! The same launch on the CPU twin.

use axiscap::cpu::{self, Norm, Options, Rows, RowsMut};
use axiscap::cuda::Operation;

use crate::case::{Buffer, Case, EPS, Profiles, Setup, Value};

fn rows<E: Value>(buffer: &Buffer<E>) -> Rows<'_, E> {
    let (rows, width, stride) = buffer.extent();
    Rows::with_stride(buffer.first_row_on(), rows, width, stride).expect("rows")
}

fn rows_mut<E: Value>(buffer: &mut Buffer<E>) -> RowsMut<'_, E> {
    let (rows, width, stride) = buffer.extent();
    RowsMut::with_stride(buffer.first_row_on_mut(), rows, width, stride).expect("rows")
}

impl<E: Value> Setup<E> {
    /// Runs it on the CPU twin. It refuses profiles that do not exist: rows that name one get the empty profile, which
    /// is what a GPU makes of them, and are put on record.
    pub(crate) fn on_twin(&mut self, case: &Case) {
        let depth = self.table.deepest_profile();
        let profiles = self.profiles_that_exist(case);
        let mut options = Options::new().stats(&mut self.stats[..case.rows * depth]);
        if case.profiles != Profiles::One {
            options = options.profiles(&profiles);
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
        self.record_faults(case);
    }
}
